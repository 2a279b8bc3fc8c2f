"""What a case is made of. A step is a function of the running case; it raises `Differs` where something else happens."""

import http.client
import re
import socket
import ssl
import time

import plane as wire
import proxy as programs
import resources as res

PATIENCE = 10.0
# How long nothing must happen for it to count as nothing.
SILENCE = 0.4


class Differs(Exception):
    pass


class Running:
    """A case under way: the control plane, the proxy, and what was said so far."""

    def __init__(self, binary, is_envoy, delta, options):
        self.is_envoy, self.delta = is_envoy, delta
        self.plane = wire.Plane()
        self.backends, self.ports, self.connections = {}, {}, {}
        self.world = {kind: {} for kind in wire.MESSAGES}
        self.cursor, self.pushed, self.accepted = {}, {}, {}
        self.stream_index = 0
        options = {name: value(self) if callable(value) else value for name, value in options.items()}
        self.proxy = None
        self.start = lambda: programs.Proxy(binary, self.plane.port, delta, **options)

    def end(self):
        if self.proxy:
            self.proxy.end()
        self.plane.stop()

    def backend(self, name):
        if name not in self.backends:
            self.backends[name] = programs.Backend(name)
        return self.backends[name].port

    def port(self, name):
        if name not in self.ports:
            self.ports[name] = programs.free_port()
        return self.ports[name]

    def stream(self):
        streams = self.plane.streams
        return streams[self.stream_index] if self.stream_index < len(streams) else None

    def await_ask(self, kind, fits, what, patience=PATIENCE):
        """The next request of `kind` that fits; those before it are passed over."""
        def found():
            stream = self.stream()
            for index in range(self.cursor.get(kind, 0), len(stream.asked) if stream else 0):
                if stream.asked[index].kind == kind and fits(stream.asked[index]):
                    self.cursor[kind] = index + 1
                    return stream.asked[index]
            return None

        ask = self.plane.wait(found, patience)
        if ask is None:
            stream = self.stream()
            seen = [a for a in stream.asked if a.kind == kind][-3:] if stream else "no stream"
            raise Differs(f"{kind}: no request {what}; the last were {seen}")
        return ask


def resolved(case, resource):
    return resource(case) if callable(resource) else resource


def names_of(ask):
    return ask.names - {"*"}


def asks(kind, names=None, version=None, node=None, first=None, initial=None, only=None):
    """A request of this kind comes. `only` is what a delta request adds and takes away by itself."""

    def fits(case):
        def check(ask):
            return all((
                names is None or names_of(ask) == set(names),
                version is None or case.delta or ask.version == version,
                node is None or node(ask.node),
                first is None or ask.first == first,
                initial is None or not case.delta or ask.initial == initial,
                only is None or not case.delta or (set(ask.subscribe), set(ask.unsubscribe)) == tuple(map(set, only)),
            ))
        return check

    what = f"names={names} version={version} first={first} initial={initial} only={only}"
    return lambda case: case.await_ask(kind, fits(case), what)


def push(kind, resources=None, remove=(), keep=True, version=None, ttl=None, wrap=False, url=None, item_url=None, again=(), heartbeat=()):
    """Sends resources by name. In SotW, everything there is goes along for clusters and listeners; `again` are extra copies."""

    def run(case):
        stream = case.plane.wait(case.stream, PATIENCE)
        if stream is None:
            raise Differs("there is no stream")
        new = {name: wire.encode(kind, resolved(case, it)) for name, it in (resources or {}).items()}
        nonce = case.plane.next_nonce()
        label = version or f"v{case.plane.nonce}"
        world = dict(case.world[kind])
        world.update(new)
        for name in remove:
            world.pop(name, None)
        if keep:
            case.world[kind] = world
        sent = world if kind in ("cds", "lds") and not case.delta else new
        items = list(sent.items()) if not case.delta else list(new.items())
        items += [(name, new[name]) for name in again]
        envelope = lambda name, body: wire.wrapped(kind, name, label, body, ttl, item_url)
        if case.delta:
            body = [envelope(name, body) for name, body in items] + [wire.wrapped(kind, it, label, None, ttl) for it in heartbeat]
            answer = wire.delta_answer(kind, label, nonce, body, list(remove), url)
        else:
            if ttl is not None or wrap or heartbeat:
                outer = "type.googleapis.com/envoy.service.discovery.v3.Resource"
                items = [(name, body) for name, body in items if name not in heartbeat]
                boxes = [envelope(name, body) for name, body in items]
                boxes += [wire.wrapped(kind, name, label, None, ttl) for name in heartbeat]
                packed = [wire.pack(kind, box.SerializeToString(), outer) for box in boxes]
            else:
                packed = [wire.pack(kind, body, item_url) for _, body in items]
            answer = wire.sotw_answer(kind, label, nonce, packed, url)
        case.pushed[kind] = (nonce, label)
        stream.answers.put(answer)

    return run


def acks(kind):
    """The newest push of this kind is accepted."""

    def run(case):
        nonce, version = case.pushed[kind]
        ask = case.await_ask(kind, lambda ask: ask.nonce == nonce, f"with {nonce}")
        if ask.error is not None:
            raise Differs(f"{kind}: refused: {ask.error}")
        if not case.delta and ask.version != version:
            raise Differs(f"{kind}: acknowledges version {ask.version!r}, not {version!r}")
        case.accepted[kind] = version

    return run


def nacks(kind, *texts):
    """The newest push is refused; the reason has these words. The version in the request stays that of the last good one."""

    def run(case):
        nonce, version = case.pushed[kind]
        ask = case.await_ask(kind, lambda ask: ask.nonce == nonce, f"with {nonce}")
        if ask.error is None:
            raise Differs(f"{kind}: {version} is accepted")
        good = case.accepted.get(kind, "")
        if not case.delta and ask.version != good:
            raise Differs(f"{kind}: refuses with version {ask.version!r}; the last good one is {good!r}")
        for text in () if case.is_envoy else texts:
            if not re.search(text, ask.error):
                raise Differs(f"{kind}: the reason {ask.error!r} does not say {text!r}")

    return run


def silent(kind, seconds=SILENCE):
    """No request of this kind comes for a while."""

    def run(case):
        def found():
            stream = case.stream()
            later = stream.asked[case.cursor.get(kind, 0):] if stream else []
            return next((ask for ask in later if ask.kind == kind), None)

        ask = case.plane.wait(found, seconds)
        if ask is not None:
            raise Differs(f"{kind}: an unexpected request {ask}")

    return run


def gets(name, status, body=None, path="/"):
    """Sooner or later a request to the listener `name` is answered so."""

    def run(case):
        last = []

        def check():
            last[:] = [programs.get(case.port(name), path)]
            reply = last[0]
            return reply is not None and reply[0] == status and (body is None or reply[1] == body)

        if not programs.eventually(check, PATIENCE):
            raise Differs(f"{name}{path}: {last[0]}, not {status} {body!r}")

    return run


def still(name, status, body=None, path="/"):
    """A request is answered so now, and a moment later."""

    def run(case):
        for _ in range(3):
            reply = programs.get(case.port(name), path)
            if reply is None or reply[0] != status or (body is not None and reply[1] != body):
                raise Differs(f"{name}{path}: {reply}, not still {status} {body!r}")
            time.sleep(0.05)

    return run


def shows(name, number):
    """A handshake with the listener shows this certificate."""

    def run(case):
        wanted = res.pair(number)[0].strip()
        shown = None

        def check():
            nonlocal shown
            try:
                shown = ssl.get_server_certificate(("127.0.0.1", case.port(name)), timeout=2).strip()
            except OSError as error:
                shown = repr(error)
            return shown == wanted

        if not programs.eventually(check, PATIENCE):
            raise Differs(f"{name}: shows {shown[-60:]}, not the certificate {number}")

    return run


def closed(name):
    """Sooner or later nobody listens there."""

    def run(case):
        if not programs.eventually(lambda: not listens(case.port(name)), PATIENCE):
            raise Differs(f"{name}: still listens")

    return run


def not_open(name, seconds=SILENCE):
    """Nobody listens there for a while."""

    def run(case):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            # Envoy may hold the port bound with nobody who accepts: that is not being served either.
            if programs.get(case.port(name), patience=0.2) is not None:
                raise Differs(f"{name}: is served already")
            time.sleep(0.02)

    return run


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


def drops(name):
    """A connection is closed without an answer."""

    def run(case):
        if not programs.eventually(lambda: listens(case.port(name)), PATIENCE):
            raise Differs(f"{name}: does not listen")
        reply = programs.get(case.port(name), patience=2)
        if reply is not None:
            raise Differs(f"{name}: answers {reply}")

    return run


def on_one_connection(key, name, status, body):
    """A request on a connection that is kept for further ones."""

    def run(case):
        connection = case.connections.get(key)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", case.port(name), timeout=5)
            connection.connect()
            # A connection that was closed must show, not be opened anew.
            connection.auto_open = 0
            case.connections[key] = connection
        try:
            connection.request("GET", "/")
            reply = connection.getresponse()
            found = (reply.status, reply.read().decode())
        except (OSError, http.client.HTTPException) as error:
            raise Differs(f"{name}: the connection is gone: {error!r}") from error
        if found != (status, body):
            raise Differs(f"{name}: {found} on the kept connection, not {status} {body!r}")

    return run


def stat(name, value):
    """Sooner or later the stat has this value: a number, or a function of it."""

    def run(case):
        seen = []

        def check():
            text = case.proxy.stat(name)
            seen[:] = [text]
            number = int(text) if text and text.isdigit() else None
            return number is not None and (value(number) if callable(value) else number == value)

        if not programs.eventually(check, PATIENCE):
            raise Differs(f"{name}: {seen[0]}, not {value}")

    return run


def cut():
    """The control plane ends the stream; the next steps are about the stream after it."""

    def run(case):
        stream = case.stream()
        case.stream_index = len(case.plane.streams)
        case.cursor = {}
        stream.end()

    return run


def down():
    """The control plane is gone."""

    def run(case):
        case.plane.stop()
        case.stream_index = len(case.plane.streams)
        case.cursor = {}

    return run


def up():
    return lambda case: case.plane.start()


def wait(seconds):
    return lambda case: time.sleep(seconds)


def envoy_only(step):
    return lambda case: step(case) if case.is_envoy else None


def torus_only(step):
    return lambda case: None if case.is_envoy else step(case)

