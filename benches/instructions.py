#!/usr/bin/env python3
"""Counts the instructions of each micro benchmark and compares them with benches/baseline.json.

A count that is more than 5 % above its baseline fails, with the numbers shown. Counts depend on the compiler, on the C library
and on valgrind: where one of them is not the baseline's, the counts are printed and not compared, and that is said.

  benches/instructions.py                 # compare
  benches/instructions.py --update        # write the baseline anew

Needs valgrind and gungraun-runner: scripts/install-test-tools.sh. Python's standard library is enough.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BASELINE = os.path.join(ROOT, "benches", "baseline.json")
WORSE_MAX = 0.05


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--update", action="store_true", help="write the counts as the new baseline")
    options = parser.parse_args()
    for tool in ("valgrind", "gungraun-runner"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is missing; try: scripts/install-test-tools.sh")
    here = toolchain()
    counts = measure()
    if options.update:
        with open(BASELINE, "w") as file:
            json.dump({"toolchain": here, "instructions": counts}, file, indent=1)
            file.write("\n")
        print(f"{len(counts)} counts written to {os.path.relpath(BASELINE, ROOT)}")
        return
    with open(BASELINE) as file:
        baseline = json.load(file)
    different = [name for name in here if here[name] != baseline["toolchain"].get(name)]
    failures = []
    print(f"{'benchmark':56} {'baseline':>9} {'now':>9} {'change':>8}")
    for name in sorted(counts.keys() | baseline["instructions"].keys()):
        before, now = baseline["instructions"].get(name), counts.get(name)
        if before is None or now is None:
            change = "new" if before is None else "gone"
            failures.append(f"{name} is {change}; write the baseline anew: benches/instructions.py --update")
        else:
            ratio = now / before - 1
            change = f"{ratio * 100:+.1f} %"
            if ratio > WORSE_MAX:
                failures.append(f"{name}: {now} instructions, {ratio * 100:.1f} % more than {before}")
        print(f"{name:56} {before or '-':>9} {now or '-':>9} {change:>8}")
    if different:
        for name in different:
            print(f"not compared: the baseline was made with {name} {baseline['toolchain'].get(name)}; here it is {here[name]}")
    elif failures:
        sys.exit("\n".join(failures))


def measure():
    """Instructions by the name of the benchmark."""
    command = ["cargo", "bench", "--locked", "--quiet", "-p", "torus-benches", "--bench", "instructions", "--",
               "--output-format=json", "--callgrind-args=--cache-sim=no"]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if run.returncode != 0:
        sys.exit(f"the benchmarks failed with exit code {run.returncode}")
    counts = {}
    for line in run.stdout.splitlines():
        if line.startswith("{"):
            summary = json.loads(line)
            counts[name_of(summary)] = instructions_of(summary)
    if not counts:
        sys.exit("the benchmarks printed no summary")
    return dict(sorted(counts.items()))


def name_of(summary):
    name = summary["function_name"]
    return f"{name}::{summary['id']}" if summary.get("id") else name


def instructions_of(summary):
    """The count of event Ir over the whole run."""
    for profile in summary["profiles"]:
        count = profile["data"]["total"]["metrics"].get("Ir") if profile["tool"] == "Callgrind" else None
        if count:
            return count["values"]["new"]
    sys.exit(f"no count of instructions for {name_of(summary)}")


def toolchain():
    """What counts depend on besides our own code."""
    rustc = subprocess.run(["rustc", "--version"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    valgrind = subprocess.run(["valgrind", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    return {"rustc": rustc, "valgrind": valgrind, "libc": " ".join(platform.libc_ver()), "machine": platform.machine()}


if __name__ == "__main__":
    main()
