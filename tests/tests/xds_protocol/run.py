#!/usr/bin/env python3
"""Runs the cases against a proxy, and says how each ended.

    run.py --proxy torus-proxy [--envoy] [--variant sotw|delta] [--case REGEX] [--short] [--jobs N]

One line a case: `ok`, or `FAIL` with the first step that went otherwise. The exit code is 1 where one failed.
"""

import argparse
import concurrent.futures
import re
import sys
import time

import steps
from cases import CASES


def run(binary, is_envoy, name, variant):
    script, _, _, _, options = CASES[name]
    case = None
    number = 0
    began = time.monotonic()
    try:
        case = steps.Running(binary, is_envoy, variant == "delta", options)
        case.proxy = case.start()
        for number, step in enumerate(script, 1):
            step(case)
        if not case.proxy.runs():
            raise steps.Differs("the proxy ended")
        return name, variant, None, time.monotonic() - began
    except steps.Differs as why:
        tail = "\n      ".join(case.proxy.output().splitlines()[-6:]) if case.proxy else ""
        return name, variant, f"step {number} of {len(script)}: {why}\n      {tail}", time.monotonic() - began
    finally:
        if case:
            case.end()


def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("--proxy", required=True)
    flags.add_argument("--envoy", action="store_true", help="the proxy is Envoy")
    flags.add_argument("--variant", choices=("sotw", "delta"))
    flags.add_argument("--case", default="")
    flags.add_argument("--short", action="store_true")
    flags.add_argument("--jobs", type=int, default=4)
    flags.add_argument("--patience", type=float, default=steps.PATIENCE)
    flags = flags.parse_args()
    steps.PATIENCE = flags.patience
    chosen = [
        (name, variant)
        for name, (_, variants, _, short, _) in CASES.items()
        for variant in variants
        if flags.variant in (None, variant) and re.search(flags.case, name) and (short or not flags.short)
    ]
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(flags.jobs) as pool:
        running = [pool.submit(run, flags.proxy, flags.envoy, *it) for it in chosen]
        for done in running:
            name, variant, why, took = done.result()
            failed += why is not None
            print(f"{'ok  ' if why is None else 'FAIL'} {variant:5} {took:5.2f} s  {name}{'' if why is None else ': ' + why}", flush=True)
    count = {it: sum(variant == it for _, variant in chosen) for it in ("sotw", "delta")}
    print(f"{len(chosen) - failed} of {len(chosen)} cases passed ({count['sotw']} sotw, {count['delta']} delta)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
