"""The other ends of torus-load that Python's libraries make: a server and a client of gRPC, a client of WebSocket.

    peers.py grpc-serve PORT          answers /shop.Cart/Add with the message it was sent, /shop.Cart/Fail with status 7,
                                      /shop.Cart/Stream with the message three times
    peers.py shop-serve PORT SET VERSION [KEY CERT]
                                      the service of shop.proto, with TLS where there is a key, and reflection of VERSION: v1alpha, as
                                      its library gives it, or v1, which gives one file for each question; SET is written: its
                                      descriptors, by protoc
    peers.py grpc-talk PORT           calls a server that echoes; exits with 0 when all came back
    peers.py websocket-talk URL CA    the same with WebSocket; CA is a file, or empty without TLS
"""

import os
import sys

SECONDS = 20


def grpc_serve(port):
    from concurrent import futures

    import grpc

    def add(message, context):
        return message

    def fail(message, context):
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")

    def stream(message, context):
        for _ in range(3):
            yield message

    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Cart", {
        "Add": grpc.unary_unary_rpc_method_handler(add),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
    }),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def shop_serve(port, path, version, key=None, cert=None):
    from concurrent import futures

    import grpc
    import grpc_tools
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from grpc_reflection.v1alpha import reflection, reflection_pb2
    from grpc_tools import protoc

    folder = os.path.dirname(os.path.abspath(__file__))
    known = os.path.join(os.path.dirname(grpc_tools.__file__), "_proto")
    assert protoc.main(["protoc", f"-I{folder}", f"-I{known}", "--include_imports", f"--descriptor_set_out={path}",
                        os.path.join(folder, "shop.proto")]) == 0
    pool = descriptor_pool.DescriptorPool()
    with open(path, "rb") as file:
        for proto in descriptor_pb2.FileDescriptorSet.FromString(file.read()).file:
            pool.Add(proto)
    item, total = (message_factory.GetMessageClass(pool.FindMessageTypeByName(f"shop.{name}")) for name in ("Item", "Total"))

    def add(message, context):
        if not message.name:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "an item without a name")
        return message

    def fill(messages, context):
        return total(words=", ".join(f"{message.count} {message.name}" for message in messages))

    def listed(message, context):
        for _ in range(message.count):
            yield message

    def talk(messages, context):
        yield from messages

    class OneFile(reflection.ReflectionServicer):
        def _file_by_filename(self, *arguments):
            return self.one(super()._file_by_filename(*arguments))

        def _file_containing_symbol(self, *arguments):
            return self.one(super()._file_containing_symbol(*arguments))

        def one(self, response):
            if response.HasField("file_descriptor_response"):
                del response.file_descriptor_response.file_descriptor_proto[1:]
            return response

    server = grpc.server(futures.ThreadPoolExecutor(8))
    coding = {"request_deserializer": item.FromString, "response_serializer": lambda message: message.SerializeToString()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Shop", {
        "Add": grpc.unary_unary_rpc_method_handler(add, **coding),
        "Fill": grpc.stream_unary_rpc_method_handler(fill, **coding),
        "List": grpc.unary_stream_rpc_method_handler(listed, **coding),
        "Talk": grpc.stream_stream_rpc_method_handler(talk, **coding),
    }),))
    if version == "v1alpha":
        reflection.enable_server_reflection(["shop.Shop", reflection.SERVICE_NAME], server, pool)
    else:
        handler = grpc.stream_stream_rpc_method_handler(
            OneFile(["shop.Shop"], pool).ServerReflectionInfo, reflection_pb2.ServerReflectionRequest.FromString,
            reflection_pb2.ServerReflectionResponse.SerializeToString)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
            f"grpc.reflection.{version}.ServerReflection", {"ServerReflectionInfo": handler}),))
    if key:
        with open(key, "rb") as private, open(cert, "rb") as chain:
            server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([(private.read(), chain.read())]))
    else:
        server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def grpc_talk(port):
    import queue

    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/shop.Cart/Add")
        for message in [b"", b"hello", b"x" * 1_000_000]:
            assert call(message, timeout=SECONDS) == message
        calls = [call.future(str(number).encode(), timeout=SECONDS) for number in range(200)]
        assert [done.result() for done in calls] == [str(number).encode() for number in range(200)]
        # Each message comes back before the next one goes.
        waiting = queue.Queue()
        replies = channel.stream_stream("/shop.Cart/Talk")(iter(waiting.get, None), timeout=SECONDS)
        for message in [b"one", b"", b"three"]:
            waiting.put(message)
            assert next(replies) == message
        waiting.put(None)
        assert list(replies) == []


def websocket_talk(url, ca):
    import ssl

    import websockets.sync.client

    context = ssl.create_default_context(cafile=ca) if ca else None
    with websockets.sync.client.connect(url, ssl=context, max_size=None, proxy=None) as connection:
        for message in ["hello", "", "y" * 126, "z" * 70_000, b"\x00\xff" * 200_000]:
            connection.send(message)
            assert connection.recv(SECONDS) == message
        connection.send(["in ", "three ", "pieces"])
        assert connection.recv(SECONDS) == "in three pieces"
        assert connection.ping().wait(SECONDS)
        connection.close(1000)
        assert connection.close_code == 1000


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {"grpc-serve": grpc_serve, "shop-serve": shop_serve, "grpc-talk": grpc_talk, "websocket-talk": websocket_talk}[command](*arguments)
