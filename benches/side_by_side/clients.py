"""What drives a proxy, and the figures that it gives: wrk, h2load, torus-load, and connections that wait."""

import json
import os
import re
import socket
import ssl
import statistics
import subprocess
import tempfile
import time

from .proxies import Unfit

STREAMS = 32
# Percentiles that wrk does not print of itself; requests go out as without it.
WRK_SCRIPT = """done = function(_, latency)
    for _, at in ipairs({50, 99, 99.9}) do io.write(string.format("p%g = %d us\\n", at, latency:percentile(at))) end
end
"""
FIGURES = ("cpu_us", "user_us", "rate", "p50_us", "p99_us", "p999_us", "memory_kb")


def load(proxy, tools, scenario, seconds, folder):
    """Figures of one measurement.

    Errors: Unfit, where the proxy has no such port or does not answer as it must.
    """
    client = scenario.client
    kind = {"handshakes": "tls", "http2-tls": "tls"}.get(client, client)
    port = proxy.port(kind)
    before = proxy.cpu()
    if client in ("http2", "http2-tls"):
        figures = h2load(tools, client, port, scenario, seconds)
    elif client in ("grpc", "tcp"):
        figures = torus_load(tools, client, port, scenario, seconds, folder)
    else:
        figures = wrk(tools, client, port, scenario, seconds, folder)
    after = proxy.cpu()
    total, user, system = (later - sooner for later, sooner in zip(after, before))
    share = user / (user + system) if user + system else 0
    requests = figures.pop("requests")
    figures.update(cpu_us=total / requests * 1e6, user_us=total * share / requests * 1e6, rate=requests / seconds,
                   memory_kb=proxy.resident_kb())
    return figures


def wrk(tools, client, port, scenario, seconds, folder):
    script = os.path.join(folder, "wrk.lua")
    with open(script, "w") as file:
        file.write(WRK_SCRIPT)
    scheme = "http" if client == "http1" else "https"
    command = [tools.wrk, "-t1", f"-c{scenario.connections}", f"-d{seconds}s", "-s", script]
    if client == "handshakes":
        # Each request opens a connection, and wrk resumes no session.
        command += ["-H", "Connection: close"]
    text = ran(command + [f"{scheme}://127.0.0.1:{port}{scenario.path}"])
    requests = int(re.search(r"(\d+) requests in", text).group(1))
    if requests == 0 or "Non-2xx" in text:
        raise Unfit(f"no good answers: {' '.join(text.split()[-12:])}")
    percentile = lambda at: int(re.search(rf"^p{at} = (\d+) us", text, re.M).group(1))
    return {"requests": requests, "p50_us": percentile("50"), "p99_us": percentile("99"), "p999_us": percentile(r"99\.9"),
            "errors": sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", text)))}


def h2load(tools, client, port, scenario, seconds):
    with tempfile.NamedTemporaryFile(prefix="torus-bench-", suffix=".log") as log:
        scheme = "http" if client == "http2" else "https"
        text = ran([tools.h2load, f"-c{scenario.connections}", f"-m{STREAMS}", "-t1", "-D", str(seconds),
                    "--log-file", log.name, f"{scheme}://127.0.0.1:{port}{scenario.path}"])
        # One line a request: start, status, microseconds.
        times = sorted(int(line.rsplit(b"\t", 1)[1]) for line in log if line.count(b"\t") == 2)
    found = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text)
    statuses = re.search(r"(\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text)
    if not found or not statuses or int(statuses.group(1)) == 0 or "Application protocol: http/1.1" in text:
        raise Unfit(f"no good answers over HTTP/2: {' '.join(text.split()[-12:])}")
    at = lambda quantile: times[min(len(times) - 1, int(len(times) * quantile))] if times else None
    return {"requests": int(statuses.group(1)), "p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999),
            "errors": int(found.group(3)) + int(found.group(4)) + sum(int(statuses.group(at)) for at in (3, 4))}


def torus_load(tools, client, port, scenario, seconds, folder):
    """gRPC, whose status must be 0, and TCP, whose bytes must come back."""
    message = os.path.join(folder, f"message-{scenario.bytes}")
    with open(message, "w") as file:
        file.write("x" * scenario.bytes)
    target = f"http://127.0.0.1:{port}{scenario.path}" if client == "grpc" else f"tcp://127.0.0.1:{port}"
    command = [tools.torus_load, "run", target, "--closed", "-q", "--json", "-", "-c", str(scenario.connections),
               "-d", f"{seconds}s", "--warmup", "0s", "--body-file", message]
    report = json.loads(ran(command + (["--grpc", "--streams", str(STREAMS)] if client == "grpc" else []), (0, 3)))
    requests = report["requests"]
    if not requests["succeeded"]:
        raise Unfit(f"no good answers: {json.dumps(requests['errors'])}")
    times = dict(map(tuple, report["service_time"]["percentiles"]))
    return {"requests": requests["succeeded"], "errors": requests["failed"],
            "p50_us": times[50] / 1e3, "p99_us": times[99] / 1e3, "p999_us": times[99.9] / 1e3}


def ran(command, codes=(0,)):
    """What `command` prints."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in codes:
        raise Unfit(f"{os.path.basename(command[0])}: {' '.join(done.stderr.split()[-20:])}")
    return done.stdout


def at_share(proxy, tools, rate, seconds):
    """Latency in open loop at `rate`, as torus-load saw it, with its verdict on itself."""
    command = [tools.torus_load, "run", f"http://127.0.0.1:{proxy.port('http1')}/1k", "-q", "--json", "-", "-c", "256",
               "-r", f"{rate:.0f}", "-d", f"{seconds}s", "--warmup", "500ms", "--arrivals", "poisson"]
    found = json.loads(ran(command, (0, 3)))
    times = dict(map(tuple, found["response_time"]["percentiles"]))
    row = {"rate": rate, "verdict": found["verdict"]["kind"]}
    row.update({key: times[at] / 1e3 for key, at in (("p50_us", 50), ("p99_us", 99), ("p999_us", 99.9))})
    return row


def median_of(rounds):
    def median(key):
        values = [figures[key] for figures in rounds if figures[key] is not None]
        return statistics.median(values) if values else None

    result = {key: median(key) for key in FIGURES}
    result["errors"] = sum(figures["errors"] for figures in rounds)
    result["cpu_us_all"] = [round(figures["cpu_us"], 2) for figures in rounds]
    return result


def idle_memory(proxy, kind, count):
    """Bytes of resident memory for each connection that was used once and then waits."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with proxy:
        before = proxy.resident_kb()
        connections = []
        for number in range(count):
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            # More source addresses than one, so that the client's ports suffice.
            connection.bind((f"127.0.0.{2 + number // 20000}", 0))
            connection.connect(("127.0.0.1", proxy.port(kind)))
            if kind == "tls":
                connection = context.wrap_socket(connection)
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
