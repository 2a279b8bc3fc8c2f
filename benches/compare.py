#!/usr/bin/env python3
"""torus-proxy (io_uring, epoll), Envoy, nginx and HAProxy side by side: CPU for each request, rate, latency and memory.

Every proxy runs alone on one core (--proxy-cpu), load (wrk, h2load, torus-load) and backend (nginx; torus-load serve for
gRPC and TCP) on another (--load-cpu). All proxies are up at once and idle but one; the repetitions go round all of them, so
that what the machine does meanwhile meets everybody, and medians are printed. CPU time is the proxy's own, from /proc/PID:
schedstat for the sum in nanoseconds, stat for its split into user and system time. (/proc/stat would be wrong: the kernel
books a worker that waits in io_uring as busy.) A scenario that a proxy cannot serve is named with the reason, and the others
go on. Below stands the same minimal forwarding on the runtimes that a proxy could be built on.

  benches/compare.py                           # everything, about a quarter of an hour
  benches/compare.py --quick                   # one short repetition
  benches/compare.py --peers traefik,caddy     # these as well
  benches/compare.py --only torus-uring,nginx --json figures.json --html figures.html

Needs nginx, HAProxy, wrk, h2load, openssl and Envoy: scripts/install-test-tools.sh, and `peers` behind it for Traefik and
Caddy. Python's standard library is enough.
"""

import argparse
import collections
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile

from side_by_side import clients, page, proxies
from side_by_side.tools import Tools, free_ports, machine, versions

Scenario = collections.namedtuple("Scenario", "label client connections path bytes", defaults=("/1k", 1 << 10))
SCENARIOS = [
    Scenario("1 KiB, 1 connection", "http1", 1),
    Scenario("1 KiB, 64 connections", "http1", 64),
    Scenario("1 KiB, 512 connections", "http1", 512),
    Scenario("64 KiB, 64 connections", "http1", 64, "/64k"),
    Scenario("TLS, 1 KiB, 64 connections", "tls", 64),
    Scenario("HTTP/2, 1 KiB, 8 connections of 32 streams", "http2", 8),
    Scenario("HTTP/2 over TLS, 1 KiB, 8 connections of 32 streams", "http2-tls", 8),
    Scenario("TLS handshakes, 16 clients", "handshakes", 16),
    Scenario("gRPC unary, 1 KiB there and back, 4 connections of 32 streams", "grpc", 4, "/bench.Echo/Call"),
    Scenario("TCP, 1 KiB there and back, 64 connections", "tcp", 64),
    Scenario("TCP, 1 MiB there and back, 4 connections", "tcp", 4, bytes=1 << 20),
]
# The scenario whose rate is a proxy's highest; it is that of the runtimes too.
PLAIN = SCENARIOS[1]
SHARES = (25, 50, 75)


def main():
    options = arguments()
    if options.quick:
        options.repetitions, options.seconds, options.idle = 1, 1, min(options.idle, 500)
    folder = tempfile.mkdtemp(prefix="torus-bench-")
    # nginx's worker gives up root, and has to read what is in it.
    os.chmod(folder, 0o755)
    started = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.sched_setaffinity(0, {options.load_cpu})
    try:
        report = measure(options, folder, started)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        for process in started:
            # One that is stopped would not hear of it.
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in started:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)
    print(page.heading(report) + "\n")
    for table in page.tables(report):
        page.print_table(*table)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)
    if options.html:
        with open(options.html, "w") as file:
            file.write(page.page(report))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="torus-uring,torus-epoll,envoy,nginx,haproxy", help="proxies, by comma")
    parser.add_argument("--peers", default="", help="further ones, by comma: traefik, caddy")
    parser.add_argument("--repetitions", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=2, help="length of each measurement")
    parser.add_argument("--proxy-cpu", type=int, default=0)
    parser.add_argument("--load-cpu", type=int, default=1)
    parser.add_argument("--idle", type=int, default=4000, help="idle connections for the memory figure; 0 leaves it out")
    parser.add_argument("--many", type=int, default=10000, help="clusters and virtual hosts for the start; 0 leaves it out")
    parser.add_argument("--busy-poll-us", type=int, default=200, help="for the one-connection latency; 0 leaves it out")
    parser.add_argument("--scenario", type=int, action="append", help="index of a scenario; may be repeated")
    parser.add_argument("--quick", action="store_true", help="one repetition of a second")
    parser.add_argument("--no-shares", dest="shares", action="store_false",
                        help="leave out the latency at shares of each proxy's own highest rate")
    parser.add_argument("--no-runtimes", dest="runtimes", action="store_false", help="leave out the runtimes")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--html", help="file for a page with the tables")
    options = parser.parse_args()
    known = {"torus-uring", "torus-epoll", "envoy", "nginx", "haproxy", "traefik", "caddy"}
    options.names = [name for name in (options.only + "," + options.peers).split(",") if name]
    for name in options.names:
        if name not in known:
            parser.error(f"no proxy called '{name}'; there are: {', '.join(sorted(known))}")
    for at in options.scenario or []:
        if not 0 <= at < len(SCENARIOS):
            parser.error(f"no scenario {at}; there are 0 to {len(SCENARIOS) - 1}")
    return options


def measure(options, folder, started):
    names = options.names
    tools = Tools(names, options.runtimes)
    ports = free_ports(300)
    proxies.certificate(folder)
    backends = proxies.start_backends(options, tools, folder, started, ports)
    begin = lambda name, many=0: proxies.start_proxy(options, tools, folder, started, name, ports, backends, many)
    running = {name: begin(name) for name in names}
    report = {"machine": machine(), "options": vars(options), "versions": versions(tools, names), "start": {},
              "scenarios": {}, "missing": {}, "shares": {}, "idle": {}, "idle_tls": {}, "many": {}, "runtimes": {}}
    for name, proxy in running.items():
        report["start"][name] = {"resident_kb": proxy.resident_kb(), "ready_s": proxy.ready_s}
    if options.busy_poll_us and "torus-uring" in running:
        running["torus-busy"] = begin("torus-busy")
        # It spins while it waits, on the core of the others: it is stopped unless its turn has come.
        running["torus-busy"].pause()
    for scenario in [SCENARIOS[at] for at in options.scenario] if options.scenario else SCENARIOS:
        # Waiting actively is for latency.
        taking_part = {name: proxy for name, proxy in running.items() if name != "torus-busy" or scenario.connections == 1}
        report["scenarios"][scenario.label], report["missing"][scenario.label] = rounds(
            options, tools, folder, scenario, taking_part)
    if options.shares:
        shares(options, tools, running, report)
    for proxy in running.values():
        proxy.stop()
    for key, kind, count in (("idle", "http1", options.idle), ("idle_tls", "tls", options.idle // 2)):
        for name in names if count else []:
            # A new one: what connections before have left behind would be used again, and not show.
            proxy = begin(name)
            clients.idle_memory(proxy, kind, 64)
            report[key][name] = clients.idle_memory(proxy, kind, count)
            proxy.stop()
    for name in names if options.many else []:
        # The others have no clusters in this sense.
        if name in ("torus-uring", "torus-epoll", "envoy"):
            proxy = begin(name, options.many)
            report["many"][name] = {"ready_s": proxy.ready_s, "resident_kb": proxy.resident_kb()}
            proxy.stop()
    if options.runtimes:
        running = {name: proxies.start_runtime(options, tools, started, name, ports, backends) for name in proxies.RUNTIMES}
        report["runtimes"][PLAIN.label], _ = rounds(options, tools, folder, PLAIN, running)
        for proxy in running.values():
            proxy.stop()
    return report


def rounds(options, tools, folder, scenario, running):
    """Medians of each proxy in one scenario, and why others have none."""
    found, missing = {}, {}
    for repetition in range(options.repetitions):
        for name, proxy in running.items():
            if name in missing:
                continue
            # A machine that stands still for a second says nothing of the proxy: twice in a row does.
            for is_last in (False, True):
                try:
                    with proxy:
                        if repetition == 0:
                            clients.load(proxy, tools, scenario, 1, folder)
                        figures = clients.load(proxy, tools, scenario, options.seconds, folder)
                    break
                except proxies.Unfit as error:
                    if is_last:
                        missing[name] = str(error)
                    print(f"  {scenario.label:24} {name:12} {error}", file=sys.stderr)
            if name in missing:
                found.pop(name, None)
                continue
            found.setdefault(name, []).append(figures)
            print(f"  {scenario.label:24} {name:12} {repetition + 1}/{options.repetitions} "
                  f"{figures['cpu_us']:7.1f} us/request {figures['rate']:9.0f}/s", file=sys.stderr)
    return {name: clients.median_of(figures) for name, figures in found.items()}, missing


def shares(options, tools, running, report):
    """Latency in open loop at shares of what each proxy carried with 64 connections.

    Figures are medians of the runs that torus-load calls valid: where it was itself late, nothing is said of the proxy.
    """
    highest = report["scenarios"].get(PLAIN.label, {})
    found = {}
    for repetition in range(min(options.repetitions, 3)):
        for name in highest:
            for share in SHARES:
                rate = highest[name]["rate"] * share / 100
                try:
                    row = clients.at_share(running[name], tools, rate, options.seconds)
                except proxies.Unfit as error:
                    row = {"rate": rate, "verdict": str(error)}
                found.setdefault((name, share), []).append(row)
                print(f"  {share} % of its own maximum {name:12} {repetition + 1} {row['verdict']}", file=sys.stderr)
    for (name, share), rows in found.items():
        valid = [row for row in rows if row["verdict"] == "valid"]
        figures = {key: statistics.median(row[key] for row in valid) for key in ("p50_us", "p99_us", "p999_us") if valid}
        figures.update(rate=rows[0]["rate"], valid=len(valid), verdicts=[row["verdict"] for row in rows])
        report["shares"].setdefault(name, {})[share] = figures


if __name__ == "__main__":
    main()
