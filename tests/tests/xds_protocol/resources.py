"""Resources that cases push, as JSON of Envoy's messages."""

import functools
import pathlib
import subprocess
import tempfile

ADS = {"ads": {}, "resource_api_version": "V3"}
TYPE = "type.googleapis.com/"
HCM = TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = TYPE + "envoy.extensions.filters.http.router.v3.Router"
DOWNSTREAM_TLS = TYPE + "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
TCP_PROXY = TYPE + "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"


def source(fetch_timeout=None):
    return ADS if fetch_timeout is None else {**ADS, "initial_fetch_timeout": fetch_timeout}


def address(port, host="127.0.0.1"):
    return {"socket_address": {"address": host, "port_value": port}}


def assignment(name, *ports, **more):
    hosts = [{"endpoint": {"address": address(port)}} for port in ports]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts, **more}] if ports else []}


def static(name, port, **more):
    return {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": assignment(name, port), **more}


def eds(name, service=None, fetch_timeout=None, **more):
    config = {"eds_config": source(fetch_timeout)}
    if service:
        config["service_name"] = service
    return {"name": name, "type": "EDS", "connect_timeout": "1s", "eds_cluster_config": config, **more}


def route(action, match=None):
    return {"match": match or {"prefix": "/"}, **action}


def says(body, status=200):
    return {"direct_response": {"status": status, "body": {"inline_string": body}}}


def to(cluster):
    return {"route": {"cluster": cluster}}


def table(name, action, match=None, domains=("*",)):
    return {"name": name, "virtual_hosts": [{"name": "all", "domains": list(domains), "routes": [route(action, match)]}]}


def manager(routes, **more):
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}
    return {"@type": HCM, "stat_prefix": "in", **routes, "http_filters": [router], **more}


def rds(name, fetch_timeout=None):
    return {"rds": {"route_config_name": name, "config_source": source(fetch_timeout)}}


def inline(action):
    return {"route_config": table("inline", action)}


def listener(name, port, routes, **more):
    config = manager(routes, **more)
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": config}]
    return {"name": name, "address": address(port), "filter_chains": [{"filters": filters}]}


def tcp_listener(name, port, cluster):
    config = {"@type": TCP_PROXY, "stat_prefix": "tcp", "cluster": cluster}
    filters = [{"name": "envoy.filters.network.tcp_proxy", "typed_config": config}]
    return {"name": name, "address": address(port), "filter_chains": [{"filters": filters}]}


def tls_listener(name, port, routes, secret, fetch_timeout=None):
    """A listener whose certificate is the discovered `secret`."""
    made = listener(name, port, routes)
    named = {"name": secret, "sds_config": source(fetch_timeout)}
    context = {"@type": DOWNSTREAM_TLS, "common_tls_context": {"tls_certificate_sds_secret_configs": [named]}}
    made["filter_chains"][0]["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": context}
    return made


@functools.cache
def pair(number):
    """The certificate and the key called `number`, made once."""
    with tempfile.TemporaryDirectory() as folder:
        made = [f"{folder}/{part}.pem" for part in ("certificate", "key")]
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", f"/CN={number}", "-out", made[0], "-keyout", made[1]], check=True, capture_output=True)
        return tuple(pathlib.Path(path).read_text() for path in made)


def certificate(name, number, key=None):
    chain, own = pair(number)[0], pair(number if key is None else key)[1]
    return {"name": name, "tls_certificate": {"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": own}}}
