"""WebSocket servers and clients of two independent implementations, `websockets` and `wsproto`.

    websocket_peers.py serve websockets|wsproto PORT     echoes every message, sends `bye` when told `close`
    websocket_peers.py talk  websockets|wsproto PORT     talks to such a server; exits with 0 when all came back
"""

import socket
import sys
import threading

import websockets.sync.client
import websockets.sync.server
import wsproto
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    Request,
    TextMessage,
)

MESSAGES = ["hello", "", "x" * 125, "y" * 126, "z" * 70_000, b"\x00\xff" * 200_000, "last"]
SECONDS = 20


class Wsproto:
    """One end of a connection; `wsproto` has no I/O of its own."""

    def __init__(self, kind, stream):
        stream.settimeout(SECONDS)
        self.stream = stream
        self.protocol = wsproto.WSConnection(kind)
        self.waiting = []

    def send(self, event):
        self.stream.sendall(self.protocol.send(event))

    def event(self):
        while not self.waiting:
            received = self.stream.recv(65_536)
            self.protocol.receive_data(received or None)
            self.waiting = list(self.protocol.events())
            if not received and not self.waiting:
                raise EOFError("the peer closed without a word")
        return self.waiting.pop(0)

    def message(self):
        """The next whole message; pings are answered."""
        parts = []
        while True:
            event = self.event()
            if isinstance(event, Ping):
                self.send(event.response())
            elif isinstance(event, (TextMessage, BytesMessage)):
                parts.append(event.data)
                if event.message_finished:
                    return parts[0][:0].join(parts)
            else:
                return event

    def send_message(self, message):
        self.send(TextMessage(message) if isinstance(message, str) else BytesMessage(message))


def echo_wsproto(stream):
    end = Wsproto(wsproto.ConnectionType.SERVER, stream)
    assert isinstance(end.event(), Request)
    end.send(AcceptConnection())
    has_closed = False
    while True:
        message = end.message()
        if isinstance(message, CloseConnection):
            if not has_closed:
                end.send(message.response())
            return stream.close()
        if message == "close":
            end.send_message("bye")
            end.send(CloseConnection(1000))
            has_closed = True
        else:
            end.send_message(message)


def serve_wsproto(port):
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        threading.Thread(target=echo_wsproto, args=(listener.accept()[0],), daemon=True).start()


def serve_websockets(port):
    def echo(connection):
        for message in connection:
            if message == "close":
                connection.send("bye")
                return connection.close(1000)
            connection.send(message)

    with websockets.sync.server.serve(echo, "127.0.0.1", port, compression="deflate") as server:
        server.serve_forever()


def talk_wsproto(port):
    end = Wsproto(wsproto.ConnectionType.CLIENT, socket.create_connection(("127.0.0.1", port)))
    end.send(Request(host="a.test", target="/chat"))
    assert isinstance(end.event(), AcceptConnection)
    for message in MESSAGES:
        end.send_message(message)
        assert end.message() == message
    end.send(Ping(b"there?"))
    pong = end.event()
    assert isinstance(pong, Pong) and pong.payload == b"there?"
    end.send_message("close")
    assert end.message() == "bye"
    closing = end.message()
    assert isinstance(closing, CloseConnection) and closing.code == 1000
    end.send(closing.response())
    assert end.stream.recv(1) == b"", "the server ends the connection"


def talk_websockets(port):
    address = f"ws://127.0.0.1:{port}/chat"
    with websockets.sync.client.connect(address, max_size=None, proxy=None) as connection:
        for message in MESSAGES:
            connection.send(message)
            assert connection.recv(SECONDS) == message
        # All at once, so that neither side waits for the other.
        for number in range(200):
            connection.send(str(number) * 500)
        for number in range(200):
            assert connection.recv(SECONDS) == str(number) * 500
        assert connection.ping().wait(SECONDS)
        connection.send("close")
        assert connection.recv(SECONDS) == "bye"
        try:
            connection.recv(SECONDS)
        except websockets.exceptions.ConnectionClosedOK as closed:
            assert closed.rcvd.code == 1000
        else:
            raise AssertionError("the server closes")


globals()[f"{sys.argv[1]}_{sys.argv[2]}"](int(sys.argv[3]))
