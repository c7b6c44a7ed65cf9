"""An HTTP/2 client that hides nothing: frames are written as given and kept as they come.

The well-behaved libraries refuse to send what these tests must send.
"""

import json
import time

import hpack
from hyperframe.frame import (
    ContinuationFrame, DataFrame, Frame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame,
    WindowUpdateFrame,
)  # fmt: skip

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME = 16_384


class Stream:
    """What came on one stream."""

    def __init__(self):
        self.headers, self.data, self.frames, self.reset, self.ended = {}, b"", 0, None, False

    @property
    def status(self):
        return int(self.headers[":status"]) if ":status" in self.headers else None

    @property
    def reason(self):
        return self.headers.get("portcullis-reason")

    @property
    def over(self):
        return self.ended or self.reset is not None

    @property
    def json(self):
        return json.loads(self.data)


def fields(path="/v1/chat/completions", body=b"", **changed):
    """The header list of a proper request. Keywords are headers (`_` for `-`, `:` names as given); None drops one."""
    own = {":method": "POST" if body else "GET", ":scheme": "https", ":authority": "localhost", ":path": path}
    if body:
        own |= {"portcullis-purpose": "research", "content-type": "application/json", "content-length": str(len(body))}
    own |= {name.replace("_", "-"): value for name, value in changed.items()}
    return [(name, value) for name, value in own.items() if value is not None]


class H2:
    """A connection. With `manners`, settings and pings are acknowledged and windows kept open."""

    def __init__(self, socket, settings=None, manners=True):
        self.socket, self.buffer, self.manners = socket, b"", manners
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.streams, self.goaway, self.closed, self.next, self.block = {}, None, None, 1, None
        self.settings, self.windows, self.pongs, self.acknowledged = {}, {0: 65_535}, 0, 0
        self.send(PREFACE, SettingsFrame(settings=settings or {}))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, *frames):
        data = b"".join(one if isinstance(one, bytes) else one.serialize() for one in frames)
        self.socket.sendall(data)
        return len(data)

    def stream(self, number):
        return self.streams.setdefault(number, Stream())

    def open(self):
        """The number of a new stream."""
        number, self.next = self.next, self.next + 2
        return number

    def head(self, number, headers, end=True):
        """The frames of a head."""
        # Values beside ASCII are sent as they are: as Latin-1 bytes.
        block = self.encoder.encode([tuple(t.encode("latin-1") if isinstance(t, str) else t for t in one) for one in headers])
        pieces = [block[at:at + FRAME] for at in range(0, len(block), FRAME)] or [b""]
        frames = [HeadersFrame(number, pieces[0], flags=["END_STREAM"] if end else [])]
        frames += [ContinuationFrame(number, piece) for piece in pieces[1:]]
        frames[-1].flags.add("END_HEADERS")
        return frames

    def request(self, headers, body=b"", end=True, deaf=False):
        """Sends one request. What the windows do not take at once waits for them, until there is an answer; `deaf`,
        whatever is answered."""
        number = self.open()
        stream, frames = self.stream(number), self.head(number, headers, end=end and not body)
        self.windows.setdefault(number, self.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, 65_535))
        while body:
            piece = body[:FRAME]
            if min(self.windows[0], self.windows[number]) < len(piece):
                self.send(*frames)
                frames = []
                done = lambda: stream.over and not deaf  # noqa: E731
                self.until(lambda: done() or min(self.windows[0], self.windows[number]) >= len(piece))
                if done() or self.closed:
                    return stream
            body = body[FRAME:]
            frames.append(DataFrame(number, piece, flags=["END_STREAM"] if end and not body else []))
            for window in (0, number):
                self.windows[window] -= len(piece)
        self.send(*frames)
        return stream

    def read(self):
        """Reads once and takes in what is whole; false at the end."""
        try:
            got = self.socket.recv(65_536)
        except ConnectionError as error:
            got, self.closed = b"", type(error).__name__
        if not got:
            self.closed = self.closed or "end"
            return False
        self.buffer += got
        while len(self.buffer) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self.buffer[:9]))
            if len(self.buffer) < 9 + length:
                break
            frame.parse_body(memoryview(self.buffer[9:9 + length]))
            self.buffer = self.buffer[9 + length:]
            self.take(frame)
        return True

    def take(self, frame):
        stream, answers = self.stream(frame.stream_id), []
        if isinstance(frame, (HeadersFrame, ContinuationFrame)):
            self.block = frame.data if isinstance(frame, HeadersFrame) else self.block + frame.data
            if "END_HEADERS" in frame.flags:
                stream.headers |= dict(self.decoder.decode(self.block))
        elif isinstance(frame, DataFrame):
            stream.data += frame.data
            stream.frames += 1
            if self.manners and frame.flow_controlled_length:
                answers += [WindowUpdateFrame(at, frame.flow_controlled_length) for at in (0, frame.stream_id)]
                self.acknowledged += 1
        elif isinstance(frame, RstStreamFrame):
            stream.reset = frame.error_code
        elif isinstance(frame, GoAwayFrame):
            self.goaway = frame.error_code
        elif isinstance(frame, PingFrame):
            self.pongs += "ACK" in frame.flags
            if self.manners and "ACK" not in frame.flags:
                answers.append(PingFrame(0, frame.opaque_data, flags=["ACK"]))
        elif isinstance(frame, WindowUpdateFrame):
            self.windows[frame.stream_id] = self.windows.get(frame.stream_id, 0) + frame.window_increment
        elif isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self.settings |= frame.settings
            if self.manners:
                answers.append(SettingsFrame(flags=["ACK"]))
        stream.ended |= "END_STREAM" in frame.flags
        if answers:
            self.send(*answers)

    def until(self, done, within=10.0):
        """Reads until `done()` or the connection's end; whether it was done."""
        deadline = time.monotonic() + within
        while not done():
            left = deadline - time.monotonic()
            assert left > 0, f"nothing decisive within {within} s"
            self.socket.settimeout(left)
            if not self.read():
                return bool(done())
        return True

    def finish(self, stream, within=10.0):
        """Reads until the stream, or the connection, is over."""
        self.until(lambda: stream.over, within)
        return stream

    def end(self, within=10.0):
        """Reads to the connection's end and tells how it came."""
        self.until(lambda: False, within)
        return self.closed
