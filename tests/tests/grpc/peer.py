"""One end of gRPC calls with grpcio: `serve PORT`, or `call PORT` which runs every case and prints one line for each.

Messages are bytes as they are; what a method does is in its name. `large` takes the number of mebibytes from LARGE_MEBIBYTES.
"""
import os, sys, threading, time
import grpc

SERVICE = "test.Interop"
MEBIBYTE = 1 << 20
LARGE = int(os.environ.get("LARGE_MEBIBYTES", "16"))
same = lambda data: data
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)]


class Handlers(grpc.GenericRpcHandler):
    def service(self, details):
        name = details.method.rsplit("/", 1)[-1]
        method = getattr(self, name, None)
        if method is None:
            return None
        kind = method.kind
        make = getattr(grpc, kind + "_rpc_method_handler")
        return make(method, request_deserializer=same, response_serializer=same)


def rpc(shape):
    def add(method):
        method.kind = shape
        setattr(Handlers, method.__name__, staticmethod(method))
        return method
    return add


@rpc("unary_unary")
def Echo(request, context):
    context.send_initial_metadata([("x-initial", dict(context.invocation_metadata()).get("x-asked", "none"))])
    context.set_trailing_metadata([("x-trailing", "t"), ("x-bin-bin", bytes(range(8)))])
    return request


@rpc("unary_unary")
def Fail(request, context):
    code = {code.value[0]: code for code in grpc.StatusCode}[int(request)]
    context.abort(code, "failed: 100% \u00e4")


@rpc("unary_unary")
def Sleep(request, context):
    time.sleep(float(request))
    return b"late"


@rpc("unary_unary")
def Deadline(request, context):
    left = context.time_remaining()
    return b"none" if left is None or left > 1e6 else str(left).encode()


@rpc("stream_unary")
def Collect(requests, context):
    return str(sum(len(request) for request in requests)).encode()


@rpc("unary_stream")
def Expand(request, context):
    for number in range(int(request)):
        yield str(number).encode()


@rpc("unary_stream")
def Large(request, context):
    piece = bytes(64 * 1024)
    for _ in range(int(request) * 16):
        yield piece


@rpc("unary_stream")
def Partly(request, context):
    yield b"first"
    context.abort(grpc.StatusCode.ABORTED, "enough")


@rpc("stream_stream")
def Chat(requests, context):
    for request in requests:
        yield request


ENDED = threading.Event()


@rpc("unary_stream")
def Endless(request, context):
    ENDED.clear()
    context.add_callback(ENDED.set)
    number = 0
    while context.is_active():
        yield str(number).encode()
        number += 1
        time.sleep(0.01)


@rpc("unary_unary")
def Ended(request, context):
    return b"yes" if ENDED.wait(5) else b"no"


def serve(port):
    from concurrent import futures
    server = grpc.server(futures.ThreadPoolExecutor(16), options=OPTIONS)
    server.add_generic_rpc_handlers([Handlers()])
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print("serving", flush=True)
    server.wait_for_termination()


def call(port):
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)
    path = lambda name: f"/{SERVICE}/{name}"
    unary = lambda name: channel.unary_unary(path(name), request_serializer=same, response_deserializer=same)
    collect = lambda name: channel.stream_unary(path(name), request_serializer=same, response_deserializer=same)
    expand = lambda name: channel.unary_stream(path(name), request_serializer=same, response_deserializer=same)
    chat = lambda name: channel.stream_stream(path(name), request_serializer=same, response_deserializer=same)
    failed = 0

    def expect(found, wanted):
        assert found == wanted, f"{found!r} instead of {wanted!r}"

    def refused(code, run):
        try:
            run()
        except grpc.RpcError as error:
            expect(error.code(), code)
            return error
        raise AssertionError(f"no {code}")

    def case(test):
        nonlocal failed
        try:
            test()
            print("passed:", test.__name__, flush=True)
        except Exception as error:
            failed += 1
            print("FAILED:", test.__name__, type(error).__name__, error, flush=True)

    def empty_unary():
        expect(unary("Echo")(b"", timeout=20), b"")

    def unary_of_4_mebibytes():
        data = os.urandom(4 * MEBIBYTE)
        assert unary("Echo")(data, timeout=20) == data

    def metadata_both_ways():
        _, done = unary("Echo").with_call(b"x", metadata=[("x-asked", "a"), ("x-data-bin", b"\0\xff")], timeout=20)
        expect(dict(done.initial_metadata()).get("x-initial"), "a")
        trailing = dict(done.trailing_metadata())
        expect((trailing.get("x-trailing"), trailing.get("x-bin-bin")), ("t", bytes(range(8))))

    def every_status():
        for code in grpc.StatusCode:
            if code is not grpc.StatusCode.OK:
                error = refused(code, lambda: unary("Fail")(str(code.value[0]).encode(), timeout=20))
                expect(error.details(), "failed: 100% \u00e4")

    def unknown_method():
        refused(grpc.StatusCode.UNIMPLEMENTED, lambda: unary("Nothing")(b"", timeout=20))

    def client_stream():
        expect(collect("Collect")(iter([bytes(1000)] * 500), timeout=20), b"500000")

    def empty_client_stream():
        expect(collect("Collect")(iter([]), timeout=20), b"0")

    def server_stream():
        expect(list(expand("Expand")(b"500", timeout=20)), [str(number).encode() for number in range(500)])

    def empty_server_stream():
        expect(list(expand("Expand")(b"0", timeout=20)), [])

    def both_streams_in_turn():
        said = []
        turn = threading.Semaphore(1)

        def talk():
            for number in range(50):
                turn.acquire()
                yield str(number).encode()

        for reply in chat("Chat")(talk(), timeout=20):
            said.append(reply)
            turn.release()
        expect(said, [str(number).encode() for number in range(50)])

    def status_after_messages():
        messages = []
        error = refused(grpc.StatusCode.ABORTED, lambda: messages.extend(expand("Partly")(b"", timeout=20)))
        expect(error.details(), "enough")

    def deadline_passes():
        started = time.monotonic()
        refused(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: unary("Sleep")(b"2", timeout=0.3))
        assert time.monotonic() - started < 1.5, "it ended late"

    def deadline_is_told():
        left = float(unary("Deadline")(b"", timeout=15))
        assert 0 < left <= 15.1, left

    def cancelled_stream_ends_upstream():
        call = expand("Endless")(b"", timeout=20)
        expect([next(call), next(call)], [b"0", b"1"])
        call.cancel()
        expect(unary("Ended")(b"", timeout=20), b"yes")

    def cancelled_unary():
        call = unary("Sleep").future(b"1", timeout=20)
        call.cancel()
        assert call.cancelled()

    def large_server_stream():
        total = sum(len(piece) for piece in expand("Large")(str(LARGE).encode(), timeout=300))
        expect(total, LARGE * MEBIBYTE)

    def large_client_stream():
        pieces = (bytes(64 * 1024) for _ in range(LARGE * 16))
        expect(collect("Collect")(pieces, timeout=300), str(LARGE * MEBIBYTE).encode())

    def many_at_once():
        calls = [unary("Echo").future(str(number).encode(), timeout=20) for number in range(300)]
        expect([call.result() for call in calls], [str(number).encode() for number in range(300)])

    tests = [test for name, test in list(locals().items()) if callable(test) and getattr(test, "__code__", None)
             and test.__code__.co_argcount == 0 and name not in ("refused", "case", "expect")]
    for test in tests:
        case(test)
    print(f"{len(tests) - failed} of {len(tests)} passed", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    {"serve": serve, "call": call}[sys.argv[1]](int(sys.argv[2]))
