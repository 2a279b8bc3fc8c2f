"""Each proxy and backend: its configuration, its start, and what it uses."""

import os
import re
import signal
import subprocess
import time

from .tools import start, wait_ready

TICKS = os.sysconf("SC_CLK_TCK")
ENVOY = "type.googleapis.com/envoy.extensions"
TLS_CONTEXT = f"{ENVOY}.transport_sockets.tls.v3.DownstreamTlsContext"
HCM = f"{ENVOY}.filters.network.http_connection_manager.v3.HttpConnectionManager"
TCP_PROXY = f"{ENVOY}.filters.network.tcp_proxy.v3.TcpProxy"
ROUTER = f"{ENVOY}.filters.http.router.v3.Router"
HTTP_OPTIONS = f"{ENVOY}.upstreams.http.v3.HttpProtocolOptions"
# What each of them listens for: one port each.
KINDS = ("http1", "http2", "tls", "grpc", "tcp")
# Why a proxy has no such port.
WITHOUT = {("caddy", "tcp"): "Caddy forwards TCP with a plugin alone",
           ("nginx", "tcp"): "this nginx has no stream module"}
RUNTIMES = ("ring-uring", "ring-epoll", "monoio", "monoio-default", "tokio", "glommio")


class Unfit(Exception):
    """A proxy does not serve a scenario as it must."""


class Proxy:
    """A running proxy, stopped in its tracks (SIGSTOP) outside of `with` where it would spin."""

    def __init__(self, name, process, listen, ready_s):
        self.name, self.process, self.listen, self.ready_s = name, process, listen, ready_s
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

    def port(self, kind):
        if kind not in self.listen:
            raise Unfit(WITHOUT.get((self.name, kind), "not there"))
        return self.listen[kind]

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
        """Seconds so far: all, user, system."""
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


def certificate(folder):
    """A key and a certificate that it signs itself, in two files and in one as HAProxy wants it."""
    key, cert = os.path.join(folder, "key.pem"), os.path.join(folder, "cert.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"], check=True, capture_output=True)
    with open(os.path.join(folder, "both.pem"), "w") as out:
        for path in (cert, key):
            with open(path) as file:
                out.write(file.read())


def start_backends(options, tools, folder, started, ports):
    """One for HTTP (nginx), one for gRPC and one for TCP (both echo): their ports."""
    www = os.path.join(folder, "www")
    os.mkdir(www)
    for name, size in (("1k", 1 << 10), ("64k", 64 << 10), ("1m", 1 << 20)):
        with open(os.path.join(www, name), "w") as file:
            file.write("x" * size)
    backends = {kind: next(ports) for kind in ("http", "grpc", "tcp")}
    config = nginx_config(folder, "backend", http=f"""
        server {{
            listen 127.0.0.1:{backends['http']} backlog=4096;
            root {www};
            open_file_cache max=10 inactive=1h;
            location = /1k {{ return 200 "{'x' * 1024}"; }}
        }}""")
    start(started, [tools.nginx, "-c", config, "-p", folder], options.load_cpu)
    for kind, flags in (("grpc", []), ("tcp", ["--tcp"])):
        command = [tools.torus_load, "serve", "--threads", "1", "--listen", f"127.0.0.1:{backends[kind]}"]
        start(started, command + flags, options.load_cpu)
    wait_ready(f"http://127.0.0.1:{backends['http']}/1k", "the backend")
    wait_ready(f"http://127.0.0.1:{backends['grpc']}/", "the gRPC backend")
    wait_ready(f"tcp://127.0.0.1:{backends['tcp']}", "the TCP backend")
    return backends


def start_proxy(options, tools, folder, started, name, ports, backends, many=0):
    environment = dict(os.environ)
    listen = {kind: next(ports) for kind in KINDS}
    ready = f"http://127.0.0.1:{listen['http1']}/1k"
    if name == "nginx":
        command = [tools.nginx, "-c", nginx(tools, folder, listen, backends), "-p", folder]
    elif name == "haproxy":
        command = [tools.haproxy, "-db", "-f", haproxy(folder, listen, backends)]
    elif name == "traefik":
        command = [tools.traefik, f"--configFile={traefik(folder, listen, backends)}"]
    elif name == "caddy":
        command = [tools.caddy, "run", "--adapter", "caddyfile", "--config", caddy(folder, listen, backends)]
        environment.update(HOME=folder, XDG_DATA_HOME=folder, XDG_CONFIG_HOME=folder)
    else:
        admin = next(ports)
        file = os.path.join(folder, f"{name}-{many}.yaml")
        with open(file, "w") as out:
            out.write(bootstrap(folder, listen, admin, backends, many))
        # One listener tells the versions of HTTP apart.
        listen["http2"] = listen["http1"]
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


def start_runtime(options, tools, started, name, ports, backends):
    """The minimal forwarding, on a runtime."""
    port = next(ports)
    addresses = [f"127.0.0.1:{port}", f"127.0.0.1:{backends['http']}"]
    if name.startswith("ring-"):
        command = [tools.forward_ring] + addresses + [name.removeprefix("ring-")]
    elif name == "monoio-default":
        command = [tools.forward["monoio"]] + addresses + ["--default-flags"]
    else:
        command = [tools.forward[name]] + addresses
    begun = time.monotonic()
    process = start(started, command, options.proxy_cpu)
    wait_ready(f"http://127.0.0.1:{port}/1k", name, process)
    return Proxy(name, process, {"http1": port}, time.monotonic() - begun)


def nginx_config(folder, name, http, stream="", modules=""):
    path = os.path.join(folder, f"{name}.conf")
    with open(path, "w") as file:
        file.write(f"""
    {modules}
    daemon off; worker_processes 1; error_log {folder}/{name}.log; pid {folder}/{name}.pid;
    worker_rlimit_nofile 20000;
    events {{ worker_connections 16000; }}
    http {{
        access_log off; tcp_nodelay on; sendfile on; default_type text/plain;
        keepalive_requests 1000000000; keepalive_timeout 1h;
        client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
        uwsgi_temp_path {folder}; scgi_temp_path {folder};
        {http}
    }}
    {stream}""")
    return path


def nginx(tools, folder, listen, backends):
    http = f"""
        upstream backend {{ server 127.0.0.1:{backends['http']}; keepalive 1024; keepalive_requests 1000000000; }}
        upstream grpc {{ server 127.0.0.1:{backends['grpc']}; keepalive 1024; keepalive_requests 1000000000; }}
        server {{
            listen 127.0.0.1:{listen['http1']} backlog=4096;
            listen 127.0.0.1:{listen['http2']} http2 backlog=4096;
            listen 127.0.0.1:{listen['tls']} ssl http2 backlog=4096;
            ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
            location / {{
                proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection "";
                proxy_buffers 16 8k;
            }}
        }}
        server {{
            listen 127.0.0.1:{listen['grpc']} http2 backlog=4096;
            location / {{ grpc_pass grpc://grpc; }}
        }}"""
    if not tools.nginx_stream:
        del listen["tcp"]
        return nginx_config(folder, "proxy", http)
    stream = f"""stream {{
        upstream tcp {{ server 127.0.0.1:{backends['tcp']}; }}
        server {{ listen 127.0.0.1:{listen['tcp']} backlog=4096; proxy_pass tcp; tcp_nodelay on; }}
    }}"""
    return nginx_config(folder, "proxy", http, stream, f"load_module {tools.nginx_stream};")


def haproxy(folder, listen, backends):
    path = os.path.join(folder, "haproxy.cfg")
    with open(path, "w") as out:
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
    bind 127.0.0.1:{listen['http1']} backlog 4096
    bind 127.0.0.1:{listen['http2']} proto h2 backlog 4096
    bind 127.0.0.1:{listen['tls']} ssl crt {folder}/both.pem alpn h2,http/1.1 backlog 4096
    default_backend backend
backend backend
    http-reuse always
    server one 127.0.0.1:{backends['http']}
frontend grpc
    bind 127.0.0.1:{listen['grpc']} proto h2 backlog 4096
    default_backend grpc
backend grpc
    http-reuse always
    server one 127.0.0.1:{backends['grpc']} proto h2
listen tcp
    mode tcp
    bind 127.0.0.1:{listen['tcp']} backlog 4096
    server one 127.0.0.1:{backends['tcp']}
""")
    return path


def traefik(folder, listen, backends):
    static, dynamic = os.path.join(folder, "traefik.yaml"), os.path.join(folder, "traefik-routes.yaml")
    # It takes HTTP/1.1 and HTTP/2 without TLS at one port.
    listen["http2"] = listen["http1"]
    with open(static, "w") as out:
        out.write(f"""
global: {{checkNewVersion: false, sendAnonymousUsage: false}}
log: {{level: ERROR}}
entryPoints:
  plain: {{address: "127.0.0.1:{listen['http1']}"}}
  secure: {{address: "127.0.0.1:{listen['tls']}"}}
  grpc: {{address: "127.0.0.1:{listen['grpc']}"}}
  tcp: {{address: "127.0.0.1:{listen['tcp']}"}}
serversTransport: {{maxIdleConnsPerHost: 1024}}
providers: {{file: {{filename: {dynamic}}}}}
""")
    with open(dynamic, "w") as out:
        out.write(f"""
http:
  routers:
    plain: {{entryPoints: [plain], rule: "PathPrefix(`/`)", service: backend}}
    secure: {{entryPoints: [secure], rule: "PathPrefix(`/`)", service: backend, tls: {{}}}}
    grpc: {{entryPoints: [grpc], rule: "PathPrefix(`/`)", service: grpc}}
  services:
    backend: {{loadBalancer: {{servers: [{{url: "http://127.0.0.1:{backends['http']}"}}]}}}}
    grpc: {{loadBalancer: {{servers: [{{url: "h2c://127.0.0.1:{backends['grpc']}"}}]}}}}
tcp:
  routers:
    tcp: {{entryPoints: [tcp], rule: "HostSNI(`*`)", service: tcp}}
  services:
    tcp: {{loadBalancer: {{servers: [{{address: "127.0.0.1:{backends['tcp']}"}}]}}}}
tls:
  certificates: [{{certFile: {folder}/cert.pem, keyFile: {folder}/key.pem}}]
""")
    return static


def caddy(folder, listen, backends):
    path = os.path.join(folder, "Caddyfile")
    listen["http2"] = listen["http1"]
    del listen["tcp"]
    with open(path, "w") as out:
        out.write(f"""
{{
    admin off
    auto_https off
    persist_config off
    default_bind 127.0.0.1
    log {{
        level ERROR
    }}
    servers {{
        protocols h1 h2 h2c
    }}
}}
http://:{listen['http1']} {{
    reverse_proxy 127.0.0.1:{backends['http']} {{
        transport http {{
            keepalive_idle_conns_per_host 1024
        }}
    }}
}}
https://:{listen['tls']} {{
    tls {folder}/cert.pem {folder}/key.pem
    reverse_proxy 127.0.0.1:{backends['http']} {{
        transport http {{
            keepalive_idle_conns_per_host 1024
        }}
    }}
}}
http://:{listen['grpc']} {{
    reverse_proxy h2c://127.0.0.1:{backends['grpc']}
}}
""")
    return path


def bootstrap(folder, listen, admin, backends, many):
    """Envoy's and torus-proxy's: one cluster and one virtual host, and as many more as asked for, on a plain listener, one with
    TLS, one for gRPC and one for TCP."""
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
    grpc = [hosts[0].replace("cluster: backend", "cluster: grpc")]
    for name, kind, served in (("main", "http1", hosts), ("secure", "tls", hosts[:1]), ("grpc", "grpc", grpc)):
        lines.append(f"""  - name: {name}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {listen[kind]}}}}}
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
        if kind == "tls":
            lines.append(f"      transport_socket: {{name: tls, typed_config: {context}}}")
    lines.append(f"""  - name: tcp
    address: {{socket_address: {{address: 127.0.0.1, port_value: {listen['tcp']}}}}}
    filter_chains:
    - filters: [{{name: tcp, typed_config: {{"@type": {TCP_PROXY}, stat_prefix: tcp, cluster: tcp}}}}]
  clusters:""")
    over_http2 = (f"""    typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: """
                  f"""{{"@type": {HTTP_OPTIONS}, explicit_http_config: {{http2_protocol_options: {{}}}}}}}}""")
    clusters = [("backend", "http"), ("grpc", "grpc"), ("tcp", "tcp")]
    for name, kind in clusters + [(f"cluster-{number}", "http") for number in range(many)]:
        lines.append(f"""  - name: {name}
    type: STATIC
    connect_timeout: 1s
    circuit_breakers: {{thresholds: [{{max_connections: 100000, max_requests: 100000, max_pending_requests: 100000}}]}}
    load_assignment:
      cluster_name: {name}
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {backends[kind]}}}}}}}""")
        if kind == "grpc":
            lines.append(over_http2)
    return "\n".join(lines) + "\n"
