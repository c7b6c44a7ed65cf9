"""Many streams and many requests over few connections, read by one thread that does next to nothing with each.

A thread for each connection would measure how Python's threads take turns. What came is kept with the time it came and
looked at afterwards.
"""

import contextlib
import json
import selectors
import ssl
import threading
import time

import frames
from hyperframe.frame import DataFrame, SettingsFrame, WindowUpdateFrame
from stage import H1, chat

DATA, HEADERS, RST_STREAM, SETTINGS, PING = 0, 1, 3, 4, 6
END_STREAM = ACK = 1
WIDE = 1 << 28


def taken_apart(buffer):
    """The whole frames of HTTP/2 in the buffer, as (kind, flags, stream, payload), and what is left of it."""
    found, start = [], 0
    while len(buffer) - start >= 9:
        payload = start + 9
        end = payload + int.from_bytes(buffer[start:start + 3], "big")
        if len(buffer) < end:
            break
        number = int.from_bytes(buffer[start + 5:payload], "big")
        found.append((buffer[start + 3], buffer[start + 4], number, buffer[payload:end]))
        start = end
    return found, buffer[start:]


def manners(kind, flags, payload):
    """What a frame wants for an answer."""
    if kind not in (SETTINGS, PING) or flags & ACK:
        return b""
    payload = payload if kind == PING else b""
    return len(payload).to_bytes(3, "big") + bytes([kind, ACK, 0, 0, 0, 0]) + payload


class Stream:
    """What one stream got: when, what last, and how and when it ended (`cut`, `reset`, `complete`)."""

    __slots__ = ("times", "last", "ended", "ended_at")

    def __init__(self):
        self.times, self.last, self.ended, self.ended_at = [], b"", None, None

    def took(self, data, at):
        self.times.append(at)
        self.last = data

    def end(self, how, at):
        if self.ended is None:
            self.ended, self.ended_at = how, at


class Plain:
    """A connection of HTTP/1.1 with one stream on it."""

    def __init__(self, stage, body, certificate, headers):
        wire = H1(stage.connect(certificate))
        wire.send(wire.head(body=body, **headers))
        status, _ = wire.read_head()
        assert status == 200, status
        self.socket, self.streams = wire.socket, [Stream()]

    def feed(self, data, at):
        (stream,) = self.streams
        stream.took(data, at)
        if data.endswith(b"0\r\n\r\n"):
            stream.end("complete", at)


class Shared:
    """A connection of HTTP/2 with many streams on it."""

    def __init__(self, stage, body, certificate, headers, count):
        self.socket = stage.connect(certificate, alpn=("h2",))
        wire = frames.H2(self.socket, settings={SettingsFrame.INITIAL_WINDOW_SIZE: WIDE})
        fields, self.by_number, self.buffer = frames.fields(body=body, **headers), {}, b""
        opened = [WindowUpdateFrame(0, WIDE)]
        for _ in range(count):
            number = wire.open()
            self.by_number[number] = Stream()
            opened += [*wire.head(number, fields, end=False), DataFrame(number, body, flags=["END_STREAM"])]
        wire.send(*opened)
        self.streams = list(self.by_number.values())

    def feed(self, data, at):
        found, self.buffer = taken_apart(self.buffer + data)
        for kind, flags, number, payload in found:
            stream = self.by_number.get(number)
            if stream is None:
                if answer := manners(kind, flags, payload):
                    self.socket.send(answer)
                continue
            if kind == DATA and payload:
                stream.took(payload, at)
            if kind == RST_STREAM:
                stream.end("reset", at)
            elif kind in (DATA, HEADERS) and flags & END_STREAM:
                stream.end("complete", at)


class Readers:
    """Connections with open streams, and the thread that reads them all."""

    def __init__(self):
        self.selector, self.connections, self.stop = selectors.DefaultSelector(), [], False
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        return self

    def open(self, stage, model, certificate="acme", shared=0, **headers):
        """A connection with one stream (HTTP/1.1), or with `shared` of them (HTTP/2)."""
        body = json.dumps(chat(model, stream=True, max_tokens=90_000)).encode()
        if shared:
            connection = Shared(stage, body, certificate, headers, shared)
        else:
            connection = Plain(stage, body, certificate, headers)
        connection.socket.setblocking(False)
        self.connections.append(connection)
        return connection.streams

    def start(self):
        for connection in self.connections:
            self.selector.register(connection.socket, selectors.EVENT_READ, connection)
            # What TLS has already taken off the socket does not wake anybody.
            self._take(connection)
        self.thread.start()

    def _run(self):
        while not self.stop:
            for key, _ in self.selector.select(0.05):
                self._take(key.data)

    def _take(self, connection):
        with contextlib.suppress(ssl.SSLWantReadError):
            try:
                while data := connection.socket.recv(65_536):
                    connection.feed(data, time.monotonic())
            except ssl.SSLWantReadError:
                raise
            except OSError:
                pass
            at = time.monotonic()
            self.selector.unregister(connection.socket)
            connection.socket.close()
            for stream in connection.streams:
                stream.end("cut", at)

    def __exit__(self, *_):
        self.stop = True
        if self.thread.is_alive():
            self.thread.join(5)
        for connection in self.connections:
            connection.socket.close()
        self.selector.close()
