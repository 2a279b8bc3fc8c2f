#!/usr/bin/env python3
"""torus-proxy (io_uring, epoll), Envoy, nginx and HAProxy side by side: CPU for each request, rate, latency and memory.

Every proxy runs alone on one core (--proxy-cpu), load (wrk, h2load, torus-load) and backend (nginx) on another
(--load-cpu). All proxies are up at once and idle but one; the repetitions go round all of them, so that what the machine
does meanwhile meets everybody, and medians are printed. CPU time is the proxy's own, from /proc/PID: schedstat for the sum in
nanoseconds, stat for its split into user and system time. (/proc/stat would be wrong: the kernel books a worker that waits in
io_uring as busy.) A scenario that a proxy cannot serve is named with the reason, and the others go on.

  benches/compare.py                           # everything, about twenty minutes
  benches/compare.py --quick                   # one short repetition
  benches/compare.py --only torus-uring,nginx --json figures.json --html figures.html

Needs nginx, HAProxy, wrk, h2load, openssl and Envoy: scripts/install-test-tools.sh. Python's standard library is enough.
"""

import argparse
import html
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
SCENARIOS = [  # label, path, connections, how the client speaks
    ("1 KiB, 1 connection", "/1k", 1, "http1"),
    ("1 KiB, 64 connections", "/1k", 64, "http1"),
    ("1 KiB, 512 connections", "/1k", 512, "http1"),
    ("64 KiB, 64 connections", "/64k", 64, "http1"),
    ("TLS, 1 KiB, 64 connections", "/1k", 64, "tls"),
    ("HTTP/2, 1 KiB, 8 connections of 32 streams", "/1k", 8, "http2"),
    ("HTTP/2 over TLS, 1 KiB, 8 connections of 32 streams", "/1k", 8, "http2-tls"),
    ("TLS handshakes, 16 clients", "/1k", 16, "handshakes"),
]
STREAMS = 32
SHARES = (25, 50, 75)
TLS_CONTEXT = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
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
    print(heading(report) + "\n")
    for table in tables(report):
        print_table(*table)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)
    if options.html:
        with open(options.html, "w") as file:
            file.write(page(report))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="torus-uring,torus-epoll,envoy,nginx,haproxy", help="proxies, by comma")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="length of each measurement")
    parser.add_argument("--proxy-cpu", type=int, default=0)
    parser.add_argument("--load-cpu", type=int, default=1)
    parser.add_argument("--idle", type=int, default=4000, help="idle connections for the memory figure; 0 leaves it out")
    parser.add_argument("--many", type=int, default=10000, help="clusters and virtual hosts for the start; 0 leaves it out")
    parser.add_argument("--busy-poll-us", type=int, default=200, help="for the one-connection latency; 0 leaves it out")
    parser.add_argument("--scenario", type=int, action="append", help="index of a scenario; may be repeated")
    parser.add_argument("--quick", action="store_true", help="one repetition of two seconds")
    parser.add_argument("--no-shares", dest="shares", action="store_false",
                        help="leave out the latency at shares of each proxy's own highest rate")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--html", help="file for a page with the tables")
    return parser.parse_args()


def measure(options, folder, started):
    tools = Tools(options)
    ports = iter(free_ports(80))
    certificate(folder)
    backend_port = next(ports)
    start_backend(options, tools, folder, started, backend_port)
    names = options.only.split(",")
    scenarios = [SCENARIOS[at] for at in options.scenario] if options.scenario else SCENARIOS
    proxies = {}
    for name in names:
        proxies[name] = start_proxy(options, tools, folder, started, name, ports, backend_port)
    report = {"machine": machine(), "options": vars(options), "versions": versions(tools, names), "start": {},
              "scenarios": {}, "missing": {}, "shares": {}, "idle": {}, "many": {}}
    for name, proxy in proxies.items():
        report["start"][name] = {"resident_kb": proxy.resident_kb(), "ready_s": proxy.ready_s}
    if options.busy_poll_us and "torus-uring" in proxies:
        proxies["torus-busy"] = start_proxy(
            options, tools, folder, started, "torus-busy", ports, backend_port)
        # It spins while it waits, on the core of the others: it is stopped unless its turn has come.
        proxies["torus-busy"].pause()
    for label, path, connections, client in scenarios:
        rounds, missing = {}, {}
        for repetition in range(options.repetitions):
            for name, proxy in proxies.items():
                if name == "torus-busy" and connections != 1 or name in missing:
                    continue
                try:
                    with proxy:
                        proxy.load(tools, path, connections, 1, client)
                        figures = proxy.load(tools, path, connections, options.seconds, client)
                except Unfit as error:
                    missing[name] = str(error)
                    print(f"  {label:24} {name:12} left out: {error}", file=sys.stderr)
                    continue
                rounds.setdefault(name, []).append(figures)
                print(f"  {label:24} {name:12} {repetition + 1}/{options.repetitions} "
                      f"{figures['cpu_us']:7.1f} us/request {figures['rate']:9.0f}/s", file=sys.stderr)
        report["scenarios"][label] = {name: median_of(figures) for name, figures in rounds.items()}
        report["missing"][label] = missing
    if options.shares:
        shares(options, tools, proxies, names, report)
    if options.idle:
        for name in names:
            report["idle"][name] = idle_memory(proxies[name], options.idle)
    for proxy in proxies.values():
        proxy.stop()
    if options.many:
        for name in (name for name in names if name not in ("nginx", "haproxy")):
            proxy = start_proxy(options, tools, folder, started, name, ports, backend_port,
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
        self.haproxy = shutil.which("haproxy") or "/usr/sbin/haproxy"
        self.wrk = shutil.which("wrk")
        self.h2load = shutil.which("h2load")
        built = [path for path in (self.torus_proxy, self.torus_load) if not os.path.exists(path)]
        if built and "torus" in options.only:
            command = ["cargo", "build", "--release", "--locked", "--bin", "torus-proxy", "--bin", "torus-load"]
            subprocess.run(command, cwd=ROOT, check=True)
        needed = [self.nginx, self.wrk, self.h2load, shutil.which("openssl")]
        needed += [self.envoy] if "envoy" in options.only else []
        needed += [self.haproxy] if "haproxy" in options.only else []
        for path in needed:
            if not path or not os.path.exists(path):
                sys.exit("a tool is missing; try: scripts/install-test-tools.sh")


class Unfit(Exception):
    """A proxy does not serve a scenario as it must."""


class Proxy:
    """A running proxy, stopped in its tracks (SIGSTOP) outside of `with` where it would spin."""

    def __init__(self, name, process, listen, ready_s):
        self.name, self.process, self.listen, self.ready_s = name, process, listen, ready_s
        self.port = listen["http1"]
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

    def load(self, tools, path, connections, seconds, client):
        is_tls = client in ("tls", "http2-tls", "handshakes")
        port = self.listen["tls" if is_tls else client]
        url = f"{'https' if is_tls else 'http'}://127.0.0.1:{port}{path}"
        before = self.cpu()
        if client.startswith("http2"):
            return self.load_http2(tools, url, connections, seconds, before)
        command = [tools.wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", url]
        if client == "handshakes":
            # Each request opens a connection, and wrk resumes no session.
            command += ["-H", "Connection: close"]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        after = self.cpu()
        requests = int(re.search(r"(\d+) requests in", text).group(1))
        if requests == 0 or "Non-2xx" in text:
            raise Unfit(f"no good answers: {' '.join(text.split()[-12:])}")
        total, user, system = (later - sooner for later, sooner in zip(after, before))
        share = user / (user + system) if user + system else 0
        return {
            "cpu_us": total / requests * 1e6,
            "user_us": total * share / requests * 1e6,
            "rate": requests / seconds,
            "p50_us": percentile(text, "50%"),
            "p99_us": percentile(text, "99%"),
            "memory_kb": self.resident_kb(),
            "errors": sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", text))),
        }


    def load_http2(self, tools, url, connections, seconds, before):
        log = tempfile.NamedTemporaryFile(prefix="torus-bench-", suffix=".log")
        command = [tools.h2load, f"-c{connections}", f"-m{STREAMS}", "-t1", "-D", str(seconds), "--log-file", log.name, url]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        after = self.cpu()
        found = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text)
        statuses = re.search(r"(\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text)
        if not found or not statuses or int(statuses.group(1)) == 0 or "Application protocol: http/1.1" in text:
            raise Unfit(f"no good answers over HTTP/2: {' '.join(text.split()[-12:])}")
        requests = int(statuses.group(1))
        # One line a request: start, status, microseconds.
        times = sorted(int(line.rsplit(b"\t", 1)[1]) for line in log if line.count(b"\t") == 2)
        total, user, system = (later - sooner for later, sooner in zip(after, before))
        share = user / (user + system) if user + system else 0
        at = lambda quantile: times[min(len(times) - 1, int(len(times) * quantile))] if times else None
        return {
            "cpu_us": total / requests * 1e6,
            "user_us": total * share / requests * 1e6,
            "rate": requests / seconds,
            "p50_us": at(0.5),
            "p99_us": at(0.99),
            "memory_kb": self.resident_kb(),
            "errors": int(found.group(3)) + int(found.group(4)) + sum(int(statuses.group(at)) for at in (3, 4)),
        }


def shares(options, tools, proxies, names, report):
    """Latency in open loop at shares of what each proxy carried with 64 connections.

    Figures are medians of the runs that torus-load calls valid: where it was itself late, nothing is said of the proxy.
    """
    highest = report["scenarios"].get(SCENARIOS[1][0], {})
    rounds = {}
    for repetition in range(options.repetitions):
        for name in names:
            if name not in highest:
                continue
            for share in SHARES:
                rate = highest[name]["rate"] * share / 100
                command = [tools.torus_load, "run", f"http://127.0.0.1:{proxies[name].port}/1k", "-q", "--json", "-",
                           "-c", "256", "-r", f"{rate:.0f}", "-d", f"{options.seconds}s", "--arrivals", "poisson"]
                with proxies[name]:
                    found = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
                times = dict(map(tuple, found["response_time"]["percentiles"]))
                row = {"rate": rate, "verdict": found["verdict"]["kind"]}
                row.update({key: times[at] / 1e3 for key, at in (("p50_us", 50), ("p99_us", 99), ("p999_us", 99.9))})
                rounds.setdefault((name, share), []).append(row)
                print(f"  {share} % of its own maximum {name:12} {repetition + 1}/{options.repetitions} "
                      f"p99 {row['p99_us']:.0f} us, {row['verdict']}", file=sys.stderr)
    for (name, share), rows in rounds.items():
        valid = [row for row in rows if row["verdict"] == "valid"]
        figures = {key: statistics.median(row[key] for row in valid) for key in ("p50_us", "p99_us", "p999_us") if valid}
        figures.update(rate=rows[0]["rate"], valid=len(valid), verdicts=[row["verdict"] for row in rows])
        report["shares"].setdefault(name, {})[share] = figures


def percentile(text, label):
    match = re.search(re.escape(label) + r"\s+([\d.]+)(us|ms|s)", text)
    scale = {"us": 1, "ms": 1e3, "s": 1e6}
    return float(match.group(1)) * scale[match.group(2)] if match else None


def median_of(rounds):
    def median(key):
        values = [figures[key] for figures in rounds if figures[key] is not None]
        return statistics.median(values) if values else None

    result = {key: median(key) for key in ("cpu_us", "user_us", "rate", "p50_us", "p99_us", "memory_kb")}
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


def certificate(folder):
    """A key and a certificate that it signs itself, in two files and in one as HAProxy wants it."""
    key, cert = os.path.join(folder, "key.pem"), os.path.join(folder, "cert.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost"], check=True, capture_output=True)
    with open(os.path.join(folder, "both.pem"), "w") as out:
        for path in (cert, key):
            with open(path) as file:
                out.write(file.read())


def start_proxy(options, tools, folder, started, name, ports, backend_port, many=0):
    environment = dict(os.environ)
    port, admin, plain_http2, tls = next(ports), next(ports), next(ports), next(ports)
    listen = {"http1": port, "http2": port, "tls": tls}
    if name == "nginx":
        config = nginx_config(folder, "proxy", f"""
        upstream backend {{ server 127.0.0.1:{backend_port}; keepalive 1024; keepalive_requests 1000000000; }}
        server {{
            listen 127.0.0.1:{port} backlog=4096;
            listen 127.0.0.1:{plain_http2} http2 backlog=4096;
            listen 127.0.0.1:{tls} ssl http2 backlog=4096;
            ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
            location / {{
                proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection "";
                proxy_buffers 16 8k;
            }}
        }}""")
        listen["http2"] = plain_http2
        command, ready = [tools.nginx, "-c", config, "-p", folder], f"http://127.0.0.1:{port}/1k"
    elif name == "haproxy":
        config = os.path.join(folder, "haproxy.cfg")
        with open(config, "w") as out:
            out.write(f"""
global
    nbthread 1
    maxconn 9000
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend main
    bind 127.0.0.1:{port} backlog 4096
    bind 127.0.0.1:{plain_http2} proto h2 backlog 4096
    bind 127.0.0.1:{tls} ssl crt {folder}/both.pem alpn h2,http/1.1 backlog 4096
    default_backend backend
backend backend
    http-reuse always
    server one 127.0.0.1:{backend_port}
""")
        listen["http2"] = plain_http2
        command, ready = [tools.haproxy, "-db", "-f", config], f"http://127.0.0.1:{port}/1k"
    else:
        file = os.path.join(folder, f"{name}-{many}.yaml")
        with open(file, "w") as out:
            out.write(bootstrap(port, admin, backend_port, many, tls, folder))
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
    return Proxy(name, process, listen, time.monotonic() - begun)


def bootstrap(port, admin, backend_port, many, tls, folder):
    """One cluster and one virtual host, and as many more as asked for, on a plain listener and one with TLS."""
    hosts = ["""            - {name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: backend}}]}"""]
    for number in range(many):
        hosts.append(f"""            - {{name: host-{number}, domains: ["host-{number}.test"], """
                     f"""routes: [{{match: {{prefix: /}}, route: {{cluster: cluster-{number}}}}}]}}""")
    pem = lambda name: f"{{filename: {folder}/{name}.pem}}"
    context = (f"""{{"@type": {TLS_CONTEXT}, common_tls_context: {{alpn_protocols: [h2, http/1.1], """
               f"""tls_certificates: [{{certificate_chain: {pem('cert')}, private_key: {pem('key')}}}]}}}}""")
    lines = [f"""
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
static_resources:
  listeners:"""]
    for name, at, served in (("main", port, hosts), ("secure", tls, hosts[:1])):
        lines.append(f"""  - name: {name}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {at}}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": {HCM}
          stat_prefix: {name}
          http_filters: [{{name: router, typed_config: {{"@type": {ROUTER}}}}}]
          route_config:
            name: {name}
            virtual_hosts:""")
        lines += served
        if name == "secure":
            lines.append(f"      transport_socket: {{name: tls, typed_config: {context}}}")
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


def versions(tools, names):
    asked = {"envoy": [tools.envoy, "--version"], "nginx": [tools.nginx, "-v"], "haproxy": [tools.haproxy, "-v"]}
    found = {}
    for name in names:
        command = asked.get(name, [tools.torus_proxy, "--version"])
        answer = subprocess.run(command, capture_output=True, text=True)
        number = re.search(r"\d+\.\d+\.\d+", answer.stdout + answer.stderr)
        found[name] = number.group(0) if number else "unknown"
    return found


def heading(report):
    machine = report["machine"]
    programs = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}; {programs}"


def tables(report):
    """Each table as title, columns and rows; a ratio is that proxy's CPU over torus-uring's."""
    rows = []
    for label, figures in report["scenarios"].items():
        ours = figures.get("torus-uring", {}).get("cpu_us")
        for name, row in figures.items():
            rows.append([label, name, number(row["cpu_us"], 1), number(row["user_us"], 1),
                         number(row["cpu_us"] / ours if ours else None, 2), number(row["rate"]), number(row["p50_us"]),
                         number(row["p99_us"]), number(row["memory_kb"] / 1024, 1), str(row["errors"])])
        missing = report["missing"].get(label, {})
        rows += [[label, name, f"not there: {reason}"] + ["-"] * 7 for name, reason in missing.items()]
    yield "Scenarios", ["scenario", "proxy", "CPU us/request", "of it user", "CPU, of torus-uring's", "requests/s", "p50 us",
                        "p99 us", "resident MB", "errors"], rows
    rows = [[name, f"{share} %", number(row["rate"]), number(row.get("p50_us")), number(row.get("p99_us")),
             number(row.get("p999_us")), ", ".join(row["verdicts"])]
            for name, found in report["shares"].items() for share, row in found.items()]
    yield "Latency at shares of each proxy's own highest rate (open loop, Poisson, 1 KiB)", [
        "proxy", "share", "requests/s", "p50 us", "p99 us", "p99.9 us", "verdicts"], rows
    rows = []
    for name, row in report["start"].items():
        idle = report["idle"].get(name, {}).get("bytes_each")
        many = report["many"].get(name, {})
        resident = many.get("resident_kb")
        rows.append([name, number(row["resident_kb"] / 1024, 1), number(row["ready_s"], 3), number(idle),
                     number(many.get("ready_s"), 3), number(resident / 1024 if resident else None, 1)])
    yield "Memory and start", ["proxy", "resident at start MB", "ready s", "bytes/idle connection", "many clusters: ready s",
                               "resident MB"], rows


def print_table(title, columns, rows):
    if rows:
        print(f"### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        print("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")


def page(report):
    """The tables as one page that needs no network; a bar stands behind each CPU figure."""
    out = ["<!doctype html><html lang=en><meta charset=utf-8><title>Proxies side by side</title><style>"
           "body{font:15px system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse;margin:1em 0}"
           "td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child,"
           "td:nth-child(2),th:nth-child(2){text-align:left}"
           "span{background:linear-gradient(90deg,#9cf var(--width),#eee 0);padding:0 3em}</style><h1>Proxies side by side</h1>",
           f"<p>{html.escape(heading(report))}, {report['machine']['time']}</p>"]
    for title, columns, rows in tables(report):
        head = "".join(f"<th>{html.escape(column)}" for column in columns)
        out.append(f"<h2>{html.escape(title)}</h2><table><tr>{head}</tr>")
        highest = {}
        for row in rows if title == "Scenarios" else []:
            if row[3] != "-":
                highest[row[0]] = max(highest.get(row[0], 0), float(row[2]))
        for row in rows:
            cells = [html.escape(cell) for cell in row]
            if row[0] in highest and row[3] != "-":
                width = 100 * float(row[2]) / highest[row[0]]
                cells[2] = f"<span style='--width:{width:.0f}%'>{row[2]}</span>"
            out.append("<tr>" + "".join(f"<td>{cell}" for cell in cells) + "</tr>")
        out.append("</table>")
    return "\n".join(out) + "\n"


def number(value, digits=0):
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
