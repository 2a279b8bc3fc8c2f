"""The proxy under test, or the oracle: started from a bootstrap that names the scripted control plane."""

import http.client
import json
import socket
import subprocess
import tempfile
import threading
import time

import resources as res


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Backend:
    """Answers every request with its own name."""

    def __init__(self, name):
        self.name = name.encode()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection, connection.makefile("rb") as lines:
            try:
                while line := lines.readline():
                    if line == b"\r\n":
                        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(self.name), self.name))
            except OSError:
                pass


def bootstrap(plane_port, admin_port, delta, node_once=False, fetch_timeout=None, clusters=(), node=None):
    ads = {
        "api_type": "DELTA_GRPC" if delta else "GRPC",
        "transport_api_version": "V3",
        "set_node_on_first_message_only": node_once,
        "grpc_services": [{"envoy_grpc": {"cluster_name": "plane"}}],
    }
    http2 = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": res.TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    plane = res.static("plane", plane_port, typed_extension_protocol_options=http2)
    return {
        "node": node or {"id": "n1", "cluster": "c1"},
        "admin": {"address": res.address(admin_port)},
        "dynamic_resources": {
            "ads_config": ads,
            "cds_config": res.source(fetch_timeout),
            "lds_config": res.source(fetch_timeout),
        },
        "static_resources": {"clusters": [plane, *clusters]},
    }


class Proxy:
    def __init__(self, binary, plane_port, delta, **options):
        self.admin_port = free_port()
        self.log = tempfile.TemporaryFile()
        self.config = tempfile.NamedTemporaryFile("w", suffix=".json")
        json.dump(bootstrap(plane_port, self.admin_port, delta, **options), self.config)
        self.config.flush()
        command = [binary, "-c", self.config.name, "--concurrency", "1", "--disable-hot-restart", "-l", "info"]
        command += ["--drain-time-s", "1", "--parent-shutdown-time-s", "2"]
        self.child = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def end(self):
        self.child.kill()
        self.child.wait()

    def runs(self):
        return self.child.poll() is None

    def output(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def admin(self, path):
        return get(self.admin_port, path)

    def stat(self, name):
        reply = self.admin(f"/stats?filter={name}")
        lines = (reply[1] if reply else "").splitlines()
        return next((line.rpartition(": ")[2] for line in lines if line.startswith(f"{name}: ")), None)


def get(port, path="/", patience=5):
    """Status and body; None where there is nobody, or no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def eventually(check, patience):
    """Whether `check` holds within the time."""
    deadline = time.monotonic() + patience
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
