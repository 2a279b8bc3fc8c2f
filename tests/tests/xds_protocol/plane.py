"""A control plane that says what a script tells it, and keeps what it was asked: xds-protos and grpcio, none of it ours."""

import collections
import queue
import threading
import time
from concurrent import futures

import grpc
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401 so that it can be packed by name
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2  # noqa: F401
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2  # noqa: F401
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2, tls_pb2  # noqa: F401
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf import any_pb2, json_format

MESSAGES = {
    "cds": cluster_pb2.Cluster,
    "eds": endpoint_pb2.ClusterLoadAssignment,
    "lds": listener_pb2.Listener,
    "rds": route_pb2.RouteConfiguration,
    "sds": secret_pb2.Secret,
}
URLS = {kind: f"type.googleapis.com/{message.DESCRIPTOR.full_name}" for kind, message in MESSAGES.items()}
KINDS = {url: kind for kind, url in URLS.items()}

# A request in the words of both variants. `names` is everything asked for after it, `*` included where it was written out.
Ask = collections.namedtuple("Ask", "kind version nonce error node names first subscribe unsubscribe initial")


def encode(kind, resource):
    """The bytes of a resource given as JSON, or as they are."""
    if isinstance(resource, bytes):
        return resource
    return json_format.ParseDict(resource, MESSAGES[kind]()).SerializeToString(deterministic=True)


class Stream:
    """One open stream: what came, and what is to go out."""

    def __init__(self):
        self.answers = queue.Queue()
        self.asked = []
        self.names = collections.defaultdict(set)
        self.seen = set()
        self.ended = False

    def end(self):
        self.answers.put(None)


class Plane(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    """Listens on one port for the life of a case, with pauses where the script wants them."""

    def __init__(self):
        self.changed = threading.Condition()
        self.streams = []
        self.nonce = 0
        self.port = 0
        self.server = None
        self.start()

    def start(self):
        options = [("grpc.so_reuseport", 0), ("grpc.max_send_message_length", -1)]
        self.server = grpc.server(futures.ThreadPoolExecutor(8), options=options)
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        self.server.start()

    def stop(self):
        for stream in self.streams:
            stream.end()
        self.server.stop(0).wait()

    def StreamAggregatedResources(self, requests, context):
        yield from self._serve(requests, self._sotw)

    def DeltaAggregatedResources(self, requests, context):
        yield from self._serve(requests, self._delta)

    def _serve(self, requests, read):
        stream = Stream()
        with self.changed:
            self.streams.append(stream)
            self.changed.notify_all()
        threading.Thread(target=self._read, args=(stream, requests, read), daemon=True).start()
        while (answer := stream.answers.get()) is not None:
            yield answer

    def _read(self, stream, requests, read):
        try:
            for request in requests:
                with self.changed:
                    stream.asked.append(read(stream, request))
                    self.changed.notify_all()
        except Exception:  # the peer is gone, in one of many ways
            pass
        with self.changed:
            stream.ended = True
            self.changed.notify_all()
        stream.end()

    def _sotw(self, stream, request):
        kind = KINDS.get(request.type_url, request.type_url)
        first = kind not in stream.seen
        stream.seen.add(kind)
        stream.names[kind] = set(request.resource_names)
        return self._ask(kind, request, request.version_info, first, stream, (), (), {})

    def _delta(self, stream, request):
        kind = KINDS.get(request.type_url, request.type_url)
        first = kind not in stream.seen
        stream.seen.add(kind)
        stream.names[kind] |= set(request.resource_names_subscribe)
        stream.names[kind] -= set(request.resource_names_unsubscribe)
        subscribe, unsubscribe = tuple(request.resource_names_subscribe), tuple(request.resource_names_unsubscribe)
        return self._ask(kind, request, None, first, stream, subscribe, unsubscribe, dict(request.initial_resource_versions))

    @staticmethod
    def _ask(kind, request, version, first, stream, subscribe, unsubscribe, initial):
        error = request.error_detail.message if request.HasField("error_detail") else None
        node = json_format.MessageToDict(request.node, preserving_proto_field_name=True) if request.HasField("node") else None
        names = frozenset(stream.names[kind])
        return Ask(kind, version, request.response_nonce, error, node, names, first, subscribe, unsubscribe, initial)

    def wait(self, found, patience):
        """What `found` returns once that is not None; None where it takes too long."""
        deadline = time.monotonic() + patience
        with self.changed:
            while (value := found()) is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self.changed.wait(left)
            return value

    def next_nonce(self):
        self.nonce += 1
        return f"nonce-{self.nonce}"


def pack(kind, body, url=None):
    return any_pb2.Any(type_url=url or URLS[kind], value=body)


def wrapped(kind, name, version, body, ttl=None, url=None):
    """A resource in the envelope that names it; without a body it is a heartbeat."""
    wrapper = discovery_pb2.Resource(name=name, version=version)
    if body is not None:
        wrapper.resource.CopyFrom(pack(kind, body, url))
    if ttl is not None:
        wrapper.ttl.FromMilliseconds(int(ttl * 1000))
    return wrapper


def sotw_answer(kind, version, nonce, packed, url=None):
    return discovery_pb2.DiscoveryResponse(version_info=version, nonce=nonce, type_url=url or URLS[kind], resources=packed)


def delta_answer(kind, version, nonce, resources, removed, url=None):
    return discovery_pb2.DeltaDiscoveryResponse(
        system_version_info=version, nonce=nonce, type_url=url or URLS[kind], resources=resources, removed_resources=removed
    )
