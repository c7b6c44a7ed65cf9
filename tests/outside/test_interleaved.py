"""Nobody gets another's answer, however many ask at once.

A hundred thousand requests, each with a model's name of its own that the mock model repeats in all it says. What
happens to answers when upstreams and clients misbehave at the same time is in `test_upstream.py`.
"""

import json
import selectors
import ssl
import time

from frames import PREFACE
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame, WindowUpdateFrame
from many import DATA, END_STREAM, HEADERS, RST_STREAM, WIDE, manners, taken_apart
from stage import chat

REQUESTS = 100_000
NAMED = b'"model":"'


def name(number):
    return b"mock-tokens-1.n-%06d" % number


def body(number):
    # Every fourth answer is streamed.
    return json.dumps(chat(name(number).decode(), stream=number % 4 == 0, max_tokens=5)).encode()


class Asker:
    """A connection that always has so many requests on the way, and judges what comes back."""

    def __init__(self, stage, numbers, depth, alpn):
        self.socket, self.numbers, self.depth = stage.connect(alpn=(alpn,)), iter(numbers), depth
        self.buffer, self.open, self.right, self.wrong, self.over = b"", {}, 0, [], False
        self.greet()
        self.ask()
        self.socket.setblocking(False)

    def ask(self):
        asked = []
        while len(self.open) < self.depth and (number := next(self.numbers, None)) is not None:
            asked.append(self.request(number))
        if asked:
            data = b"".join(asked)
            # So little is on the way that there is always room.
            assert self.socket.send(data) == len(data)
        self.over = not self.open

    def judge(self, number, said):
        own = said.count(NAMED + name(number) + b'"')
        if own and own == said.count(NAMED):
            self.right += 1
        else:
            self.wrong.append((number, said[:500]))

    def read(self):
        try:
            while data := self.socket.recv(1 << 18):
                self.buffer += data
        except ssl.SSLWantReadError:
            self.take()
            self.ask()
        else:
            raise AssertionError(f"the connection ended: {self.buffer[-500:]}")


class Pipelined(Asker):
    """HTTP/1.1: answers come in the order of their requests."""

    def greet(self):
        pass

    def request(self, number):
        self.open[number] = True
        content = body(number)
        head = (b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nportcullis-purpose: research\r\n"
                b"content-type: application/json\r\ncontent-length: %d\r\n\r\n")  # fmt: skip
        return head % len(content) + content

    def take(self):
        while (head := self.buffer.find(b"\r\n\r\n")) >= 0:
            number = next(iter(self.open))
            lines = self.buffer[:head].lower()
            assert lines.startswith(b"http/1.1 200"), self.buffer[:1000]
            if (stated := lines.find(b"\r\ncontent-length: ")) >= 0:
                end = head + 4 + int(lines[stated + 18:].split(b"\r", 1)[0])
            elif (end := self.buffer.find(b"\r\n0\r\n\r\n", head + 4)) >= 0:
                end += 7
            if not 0 <= end <= len(self.buffer):
                return
            self.judge(number, self.buffer[head:end])
            del self.open[number]
            self.buffer = self.buffer[end:]


def literal(text):
    assert len(text) < 127
    return bytes([len(text)]) + text


# By the static table and literals alone, so that it is the same every time.
HEAD = (
    b"\x83\x87\x04" + literal(b"/v1/chat/completions") + b"\x01" + literal(b"localhost")
    + b"\x00" + literal(b"portcullis-purpose") + literal(b"research") + b"\x0f\x10" + literal(b"application/json")
)  # fmt: skip


class Multiplexed(Asker):
    """HTTP/2: answers come in any order."""

    def greet(self):
        self.next, self.streams = 1, {}
        hello = [SettingsFrame(settings={SettingsFrame.INITIAL_WINDOW_SIZE: WIDE}), WindowUpdateFrame(0, WIDE)]
        self.socket.sendall(PREFACE + b"".join(frame.serialize() for frame in hello))

    def request(self, number):
        stream, self.next = self.next, self.next + 2
        self.open[stream], self.streams[stream] = number, []
        head = HeadersFrame(stream, HEAD, flags=["END_HEADERS"])
        return head.serialize() + DataFrame(stream, body(number), flags=["END_STREAM"]).serialize()

    def take(self):
        found, self.buffer = taken_apart(self.buffer)
        for kind, flags, stream, payload in found:
            if stream == 0:
                if answer := manners(kind, flags, payload):
                    self.socket.send(answer)
                continue
            assert kind != RST_STREAM, (self.open[stream], payload)
            if kind == DATA:
                self.streams[stream].append(payload)
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                self.judge(self.open.pop(stream), b"".join(self.streams.pop(stream)))


def test_a_hundred_thousand_interleaved_requests_each_get_their_own_answer(stage):
    one, askers = stage(), []
    shares = [range(first, REQUESTS, 20) for first in range(20)]
    for share in shares[:12]:
        askers.append(Pipelined(one, share, 20, "http/1.1"))
    for share in shares[12:]:
        askers.append(Multiplexed(one, share, 40, "h2"))
    selector, deadline = selectors.DefaultSelector(), time.monotonic() + 600
    for asker in askers:
        selector.register(asker.socket, selectors.EVENT_READ, asker)
    while not all(asker.over for asker in askers):
        assert time.monotonic() < deadline, [(asker.right, len(asker.open)) for asker in askers]
        for key, _ in selector.select(5):
            key.data.read()
            assert not key.data.wrong, key.data.wrong
    assert sum(asker.right for asker in askers) == REQUESTS
    assert one.ledger()["totals"]["requests"] == REQUESTS, "none was sent twice"
    for asker in askers:
        asker.socket.close()
    selector.close()
