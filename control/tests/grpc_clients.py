"""gRPC servers that name themselves, and a client of an `xds:///` target.

grpc_clients.py serve NAME   prints its port, and serves until its standard input ends
grpc_clients.py call TARGET  for each line `COUNT [METADATA=VALUE]` on standard input makes that many calls, and prints how many each server got
"""
import collections
import json
import sys
from concurrent import futures

import grpc

METHOD = "/torus.Echo/Name"


def serve(name):
    def handle(_request, _context):
        return name.encode()

    handler = grpc.unary_unary_rpc_method_handler(handle)
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("torus.Echo", {"Name": handler}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(0)


def call(target):
    with grpc.insecure_channel(target) as channel:
        method = channel.unary_unary(METHOD)
        for line in sys.stdin:
            count, *metadata = line.split()
            metadata = [tuple(field.split("=", 1)) for field in metadata]
            seen = collections.Counter()
            for _ in range(int(count)):
                try:
                    answer = method(b"", metadata=metadata, timeout=10, wait_for_ready=True)
                    seen[answer.decode()] += 1
                except grpc.RpcError as error:
                    seen[f"{error.code().name}: {error.details()}"] += 1
            print(json.dumps(seen), flush=True)


{"serve": serve, "call": call}[sys.argv[1]](sys.argv[2])
