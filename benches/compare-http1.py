#!/usr/bin/env python3
"""torus-proxy, Envoy and nginx side by side: CPU for each request, rate, latency and memory of plain HTTP/1.1 forwarding.

Every proxy runs alone on one core (--proxy-cpu), load (wrk) and backend (nginx) on another
(--load-cpu). All proxies are up at once and idle but one; the repetitions go round all of them, so that what the machine
does meanwhile meets everybody, and medians are printed. CPU time is the proxy's own, from /proc/PID: schedstat for the sum in
nanoseconds, stat for its split into user and system time. (/proc/stat would be wrong: the kernel books a worker that waits in
io_uring as busy.)

  benches/compare-http1.py                           # everything, about ten minutes
  benches/compare-http1.py --quick                   # one short repetition
  benches/compare-http1.py --only torus-uring,nginx --json figures.json

Needs nginx, wrk and Envoy: scripts/install-test-tools.sh. Python's standard library is enough.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CACHE = os.environ.get("TORUS_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "torus")
TICKS = os.sysconf("SC_CLK_TCK")
SCENARIOS = [  # label, path, connections
    ("1 KiB, 1 connection", "/1k", 1),
    ("1 KiB, 64 connections", "/1k", 64),
    ("1 KiB, 512 connections", "/1k", 512),
    ("64 KiB, 64 connections", "/64k", 64),
]
HCM = ("type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3."
       "HttpConnectionManager")
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


def main():
    options = arguments()
    if options.quick:
        options.repetitions, options.seconds = 1, 2
    folder = tempfile.mkdtemp(prefix="torus-bench-")
    started = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.sched_setaffinity(0, {options.load_cpu})
    try:
        report = measure(options, folder, started)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)
    print_report(report)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="torus-uring,torus-epoll,envoy,nginx", help="proxies, by comma")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="length of each measurement")
    parser.add_argument("--proxy-cpu", type=int, default=0)
    parser.add_argument("--load-cpu", type=int, default=1)
    parser.add_argument("--idle", type=int, default=5000, help="idle connections for the memory figure; 0 leaves it out")
    parser.add_argument("--many", type=int, default=10000, help="clusters and virtual hosts for the start; 0 leaves it out")
    parser.add_argument("--busy-poll-us", type=int, default=200, help="for the one-connection latency; 0 leaves it out")
    parser.add_argument("--scenario", type=int, action="append", help="index of a scenario; may be repeated")
    parser.add_argument("--quick", action="store_true", help="one repetition of two seconds")
    parser.add_argument("--json", help="file for the figures")
    return parser.parse_args()


def measure(options, folder, started):
    tools = Tools(options)
    ports = iter(free_ports(40))
    backend_port = next(ports)
    start_backend(options, tools, folder, started, backend_port)
    names = options.only.split(",")
    scenarios = [SCENARIOS[at] for at in options.scenario] if options.scenario else SCENARIOS
    proxies = {}
    for name in names:
        proxies[name] = start_proxy(options, tools, folder, started, name, next(ports), next(ports), backend_port)
    report = {"machine": machine(), "options": vars(options), "start": {}, "scenarios": {}, "idle": {}, "many": {}}
    for name, proxy in proxies.items():
        report["start"][name] = {"resident_kb": proxy.resident_kb(), "ready_s": proxy.ready_s}
    if options.busy_poll_us and "torus-uring" in proxies:
        proxies["torus-busy"] = start_proxy(
            options, tools, folder, started, "torus-busy", next(ports), next(ports), backend_port)
        # It spins while it waits, on the core of the others: it is stopped unless its turn has come.
        proxies["torus-busy"].pause()
    for label, path, connections in scenarios:
        rounds = {}
        for repetition in range(options.repetitions):
            for name, proxy in proxies.items():
                if name == "torus-busy" and connections != 1:
                    continue
                with proxy:
                    proxy.load(tools, path, connections, 1)
                    figures = proxy.load(tools, path, connections, options.seconds)
                rounds.setdefault(name, []).append(figures)
                print(f"  {label:24} {name:12} {repetition + 1}/{options.repetitions} "
                      f"{figures['cpu_us']:7.1f} us/request {figures['rate']:9.0f}/s", file=sys.stderr)
        report["scenarios"][label] = {name: median_of(figures) for name, figures in rounds.items()}
    if options.idle:
        for name in names:
            report["idle"][name] = idle_memory(proxies[name], options.idle)
    for proxy in proxies.values():
        proxy.stop()
    if options.many:
        for name in (name for name in names if name != "nginx"):
            proxy = start_proxy(options, tools, folder, started, name, next(ports), next(ports), backend_port,
                                many=options.many)
            report["many"][name] = {"ready_s": proxy.ready_s, "resident_kb": proxy.resident_kb()}
            proxy.stop()
    return report


class Tools:
    """Programs that the comparison runs."""

    def __init__(self, options):
        target = os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target")
        self.torus_proxy = os.environ.get("TORUS_PROXY_BIN") or os.path.join(target, "release", "torus-proxy")
        self.torus_load = os.environ.get("TORUS_LOAD_BIN") or os.path.join(target, "release", "torus-load")
        self.envoy = os.environ.get("TORUS_ENVOY_BIN") or os.path.join(CACHE, "bin", "envoy")
        self.nginx = shutil.which("nginx") or "/usr/sbin/nginx"
        self.wrk = shutil.which("wrk")
        built = [path for path in (self.torus_proxy, self.torus_load) if not os.path.exists(path)]
        if built and "torus" in options.only:
            command = ["cargo", "build", "--release", "--locked", "--bin", "torus-proxy", "--bin", "torus-load"]
            subprocess.run(command, cwd=ROOT, check=True)
        for path in (self.nginx, self.wrk, self.envoy if "envoy" in options.only else self.nginx):
            if not path or not os.path.exists(path):
                sys.exit("a tool is missing; try: scripts/install-test-tools.sh")


class Proxy:
    """A running proxy, stopped in its tracks (SIGSTOP) outside of `with` where it would spin."""

    def __init__(self, name, process, port, ready_s):
        self.name, self.process, self.port, self.ready_s = name, process, port, ready_s
        self.paused = False
        self.spins = False

    def __enter__(self):
        if self.paused:
            os.kill(self.process.pid, signal.SIGCONT)
            self.paused = False
        return self

    def __exit__(self, *_):
        if self.spins:
            self.pause()

    def pause(self):
        self.spins = True
        os.kill(self.process.pid, signal.SIGSTOP)
        self.paused = True

    def stop(self):
        self.__enter__()
        self.process.terminate()
        self.process.wait()

    def pids(self):
        """The process and its children (nginx has a master and a worker)."""
        found = [self.process.pid]
        try:
            with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
                found += [int(pid) for pid in file.read().split()]
        except OSError:
            pass
        return found

    def cpu(self):
        """User and system seconds so far."""
        total_ns = user = system = 0
        for pid in self.pids():
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/schedstat") as file:
                    total_ns += int(file.read().split()[0])
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
            user += int(fields[11]) / TICKS
            system += int(fields[12]) / TICKS
        return total_ns / 1e9, user, system

    def resident_kb(self):
        total = 0
        for pid in self.pids():
            with open(f"/proc/{pid}/status") as file:
                total += int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1))
        return total

    def load(self, tools, path, connections, seconds):
        before = self.cpu()
        command = [tools.wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--latency",
                   f"http://127.0.0.1:{self.port}{path}"]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        after = self.cpu()
        requests = int(re.search(r"(\d+) requests in", text).group(1))
        if requests == 0 or "Non-2xx" in text:
            sys.exit(f"{self.name} does not answer {path} well:\n{text}")
        total, user, system = (later - sooner for later, sooner in zip(after, before))
        share = user / (user + system) if user + system else 0
        return {
            "cpu_us": total / requests * 1e6,
            "user_us": total * share / requests * 1e6,
            "rate": requests / seconds,
            "p50_us": percentile(text, "50%"),
            "p99_us": percentile(text, "99%"),
            "errors": sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", text))),
        }


def percentile(text, label):
    match = re.search(re.escape(label) + r"\s+([\d.]+)(us|ms|s)", text)
    scale = {"us": 1, "ms": 1e3, "s": 1e6}
    return float(match.group(1)) * scale[match.group(2)] if match else None


def median_of(rounds):
    def median(key):
        values = [figures[key] for figures in rounds if figures[key] is not None]
        return statistics.median(values) if values else None

    result = {key: median(key) for key in ("cpu_us", "user_us", "rate", "p50_us", "p99_us")}
    result["errors"] = sum(figures["errors"] for figures in rounds)
    result["cpu_us_all"] = [round(figures["cpu_us"], 2) for figures in rounds]
    return result


def idle_memory(proxy, count):
    """Bytes of resident memory for each connection that was used once and then waits."""
    with proxy:
        before = proxy.resident_kb()
        connections = []
        for number in range(count):
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            # More source addresses than one, so that the client's ports suffice.
            connection.bind((f"127.0.0.{2 + number // 20000}", 0))
            connection.connect(("127.0.0.1", proxy.port))
            connection.sendall(b"GET /1k HTTP/1.1\r\nhost: a\r\n\r\n")
            received = b""
            while len(received) < 1024:
                received += connection.recv(65536)
            connections.append(connection)
        time.sleep(1)
        after = proxy.resident_kb()
        for connection in connections:
            connection.close()
    return {"connections": count, "bytes_each": (after - before) * 1024 / count}


def start_backend(options, tools, folder, started, port):
    www = os.path.join(folder, "www")
    os.mkdir(www)
    for name, size in (("1k", 1 << 10), ("64k", 64 << 10)):
        with open(os.path.join(www, name), "w") as file:
            file.write("x" * size)
    config = nginx_config(folder, "backend", f"""
        server {{
            listen 127.0.0.1:{port} backlog=4096;
            root {www};
            open_file_cache max=10 inactive=1h;
            location = /1k {{ return 200 "{'x' * 1024}"; }}
        }}""")
    start(started, [tools.nginx, "-c", config, "-p", folder], options.load_cpu)
    wait_ready(f"http://127.0.0.1:{port}/1k", "the backend")


def nginx_config(folder, name, inner):
    path = os.path.join(folder, f"{name}.conf")
    with open(path, "w") as file:
        file.write(f"""
    daemon off; worker_processes 1; error_log {folder}/{name}.log; pid {folder}/{name}.pid;
    worker_rlimit_nofile 20000;
    events {{ worker_connections 16000; }}
    http {{
        access_log off; tcp_nodelay on; sendfile on; default_type text/plain;
        keepalive_requests 1000000000; keepalive_timeout 1h;
        client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
        uwsgi_temp_path {folder}; scgi_temp_path {folder};
        {inner}
    }}""")
    return path


def start_proxy(options, tools, folder, started, name, port, admin, backend_port, many=0):
    environment = dict(os.environ)
    if name == "nginx":
        config = nginx_config(folder, "proxy", f"""
        upstream backend {{ server 127.0.0.1:{backend_port}; keepalive 1024; keepalive_requests 1000000000; }}
        server {{
            listen 127.0.0.1:{port} backlog=4096;
            location / {{
                proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection "";
                proxy_buffers 16 8k;
            }}
        }}""")
        command, ready = [tools.nginx, "-c", config, "-p", folder], f"http://127.0.0.1:{port}/1k"
    else:
        file = os.path.join(folder, f"{name}-{many}.yaml")
        with open(file, "w") as out:
            out.write(bootstrap(port, admin, backend_port, many))
        binary = tools.envoy if name == "envoy" else tools.torus_proxy
        command = [binary, "-c", file, "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
        if name == "torus-busy":
            command += ["--busy-poll-us", str(options.busy_poll_us)]
        if name.startswith("torus"):
            environment["TORUS_IO"] = "epoll" if name == "torus-epoll" else "uring"
        ready = f"http://127.0.0.1:{admin}/ready"
    begun = time.monotonic()
    process = start(started, command, options.proxy_cpu, environment)
    wait_ready(ready, name, process)
    return Proxy(name, process, port, time.monotonic() - begun)


def bootstrap(port, admin, backend_port, many):
    """One cluster and one virtual host, and as many more as asked for."""
    lines = [f"""
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
static_resources:
  listeners:
  - name: main
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": {HCM}
          stat_prefix: main
          http_filters: [{{name: router, typed_config: {{"@type": {ROUTER}}}}}]
          route_config:
            name: local
            virtual_hosts:
            - {{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: backend}}}}]}}"""]
    for number in range(many):
        lines.append(f"""            - {{name: host-{number}, domains: ["host-{number}.test"], """
                     f"""routes: [{{match: {{prefix: /}}, route: {{cluster: cluster-{number}}}}}]}}""")
    lines.append("  clusters:")
    for name in ["backend"] + [f"cluster-{number}" for number in range(many)]:
        lines.append(f"""  - name: {name}
    type: STATIC
    connect_timeout: 1s
    circuit_breakers: {{thresholds: [{{max_connections: 100000, max_requests: 100000, max_pending_requests: 100000}}]}}
    load_assignment:
      cluster_name: {name}
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {backend_port}}}}}}}""")
    return "\n".join(lines) + "\n"


def start(started, command, cpu, environment=None):
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               env=environment, preexec_fn=lambda: os.sched_setaffinity(0, {cpu}))
    started.append(process)
    return process


def wait_ready(url, name, process=None):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=1) as reply:
                if reply.status == 200:
                    return
        except OSError:
            pass
        if process and process.poll() is not None:
            sys.exit(f"{name} ended: {process.stderr.read().decode(errors='replace')[-2000:]}")
        time.sleep(0.002)
    sys.exit(f"{name} did not become ready at {url}")


def free_ports(count):
    """Ports below the ephemeral range, so that no client socket takes them meanwhile."""
    port = 12000 + os.getpid() % 15000
    while count:
        port += 1
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        count -= 1
        yield port


def machine():
    with open("/proc/cpuinfo") as file:
        model = re.search(r"model name\s*: (.*)", file.read())
    return {"kernel": os.uname().release, "cpu": model.group(1) if model else os.uname().machine,
            "cores": os.cpu_count(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def print_report(report):
    print(f"\n{report['machine']['cpu']}, {report['machine']['cores']} cores, Linux {report['machine']['kernel']}\n")
    print("| scenario | proxy | CPU us/request | of it user | requests/s | p50 us | p99 us | errors |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for label, figures in report["scenarios"].items():
        for name, row in figures.items():
            print(f"| {label} | {name} | {row['cpu_us']:.1f} | {row['user_us']:.1f} | {row['rate']:.0f} "
                  f"| {number(row['p50_us'])} | {number(row['p99_us'])} | {row['errors']} |")
    print("\n| proxy | resident at start MB | ready s | bytes/idle connection | many clusters: ready s | resident MB |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, row in report["start"].items():
        idle = report["idle"].get(name, {}).get("bytes_each")
        many = report["many"].get(name, {})
        resident = many.get("resident_kb")
        print(f"| {name} | {row['resident_kb'] / 1024:.1f} | {row['ready_s']:.3f} | {number(idle)} "
              f"| {number(many.get('ready_s'), 3)} | {number(resident / 1024 if resident else None, 1)} |")


def number(value, digits=0):
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
