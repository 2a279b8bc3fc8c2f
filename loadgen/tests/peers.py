"""The other ends of torus-load that Python's libraries make: a server and a client of gRPC, a client of WebSocket.

    peers.py grpc-serve PORT          answers /shop.Cart/Add with the message it was sent, /shop.Cart/Fail with status 7,
                                      /shop.Cart/Stream with the message three times
    peers.py grpc-talk PORT           calls a server that echoes; exits with 0 when all came back
    peers.py websocket-talk URL CA    the same with WebSocket; CA is a file, or empty without TLS
"""

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
    {"grpc-serve": grpc_serve, "grpc-talk": grpc_talk, "websocket-talk": websocket_talk}[command](*arguments)
