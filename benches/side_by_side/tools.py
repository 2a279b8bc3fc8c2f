"""Programs that the comparison runs, and the machine that it runs on."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CACHE = os.environ.get("TORUS_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "torus")
NGINX_STREAM = ("/usr/lib/nginx/modules/ngx_stream_module.so", "/usr/lib64/nginx/modules/ngx_stream_module.so")


class Tools:
    """Where every program is; what is missing of ours is built, and of others' is told."""

    def __init__(self, names, runtimes):
        target = os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target")
        release = os.path.join(target, "release")
        self.torus_proxy = os.environ.get("TORUS_PROXY_BIN") or os.path.join(release, "torus-proxy")
        self.torus_load = os.environ.get("TORUS_LOAD_BIN") or os.path.join(release, "torus-load")
        self.envoy = os.environ.get("TORUS_ENVOY_BIN") or os.path.join(CACHE, "bin", "envoy")
        self.traefik, self.caddy = (os.path.join(CACHE, "bin", name) for name in ("traefik", "caddy"))
        self.nginx = shutil.which("nginx") or "/usr/sbin/nginx"
        self.haproxy = shutil.which("haproxy") or "/usr/sbin/haproxy"
        self.wrk = shutil.which("wrk")
        self.h2load = shutil.which("h2load")
        # Where it is a module of its own, as in Debian; a path that is none where it is built in or missing.
        self.nginx_stream = next((path for path in NGINX_STREAM if os.path.exists(path)), None)
        self.forward_ring = os.path.join(release, "examples", "forward")
        self.forward = {}
        wanted = [(self.torus_load, ["--bin", "torus-load"])]
        if any(name.startswith("torus") for name in names):
            wanted.append((self.torus_proxy, ["--bin", "torus-proxy"]))
        build([flag for path, flags in wanted if not os.path.exists(path) for flag in flags], ROOT)
        if runtimes:
            self.build_runtimes(target)
        needed = [self.nginx, self.wrk, self.h2load, shutil.which("openssl")]
        needed += [getattr(self, name) for name in ("envoy", "haproxy", "traefik", "caddy") if name in names]
        for path in needed:
            if not path or not os.path.exists(path):
                sys.exit(f"{path or 'a tool'} is missing; try: scripts/install-test-tools.sh peers")

    def build_runtimes(self, target):
        """The forwarder on the proxy's own runtime is an example; the others are a workspace of their own."""
        if not os.path.exists(self.forward_ring):
            build(["-p", "torus-ring", "--example", "forward"], ROOT)
        target = os.environ.get("TORUS_RUNTIMES_TARGET_DIR") or os.path.join(target, "runtimes")
        self.forward = {name: os.path.join(target, "release", f"forward-{name}") for name in ("monoio", "tokio", "glommio")}
        if not all(map(os.path.exists, self.forward.values())):
            build(["--target-dir", target], os.path.join(ROOT, "benches", "runtimes"))


def build(flags, folder):
    if flags:
        subprocess.run(["cargo", "build", "--release", "--locked"] + flags, cwd=folder, check=True)


def start(started, command, cpu, environment=None):
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               env=environment, preexec_fn=lambda: os.sched_setaffinity(0, {cpu}))
    started.append(process)
    return process


def wait_ready(url, name, process=None):
    """Until `url` answers 200; of tcp://HOST:PORT, until it accepts."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if url.startswith("tcp://"):
                host, port = url[6:].split(":")
                with socket.create_connection((host, int(port)), timeout=1):
                    return
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
    asked = {"envoy": [tools.envoy, "--version"], "nginx": [tools.nginx, "-v"], "haproxy": [tools.haproxy, "-v"],
             "traefik": [tools.traefik, "version"], "caddy": [tools.caddy, "version"]}
    found = {}
    for name in names:
        command = asked.get(name, [tools.torus_proxy, "--version"])
        answer = subprocess.run(command, capture_output=True, text=True)
        number = re.search(r"\d+\.\d+\.\d+", answer.stdout + answer.stderr)
        found[name] = number.group(0) if number else "unknown"
    return found
