"""An HTTP/2 client that hides nothing: every stream's pieces with the times they came, and how each thing ended.

One thread reads, so that many streams of many connections can be watched while the test does something else.
"""

import contextlib
import json
import socket
import threading
import time

import h2.config
import h2.connection
import h2.events
import h2.settings
from stage import eventually


class Exchange:
    """One request and what came of it; `ended` is `complete`, `reset`, or how the connection ended."""

    def __init__(self, number):
        self.number, self.rest = number, b""
        self.status, self.headers, self.pieces = None, {}, []
        self.ended, self.ended_at = None, None

    @property
    def body(self):
        return b"".join(piece for _, piece in self.pieces)

    @property
    def text(self):
        return self.body.decode()

    @property
    def json(self):
        return json.loads(self.body)

    def end(self, how):
        if self.ended is None:
            self.ended_at, self.ended = time.monotonic(), how

    def wait(self, within=10.0):
        return eventually(lambda: self.ended, within, what="the stream's end")


class H2:
    """A connection. `over` says how it ended (`goaway` comes first where the other side says so)."""

    def __init__(self, stage, certificate="acme"):
        self.socket = stage.connect(certificate, alpn=("h2",))
        self.wire = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.lock, self.exchanges = threading.Lock(), {}
        self.goaway_at, self.over, self.over_at = None, None, None
        self.wire.initiate_connection()
        # The peer's frames are a stream that never ends: its window must not.
        self.wire.increment_flow_control_window(2**30)
        self.wire.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**30})
        self.socket.sendall(self.wire.data_to_send())
        self.socket.settimeout(None)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        # The reader must be gone first: the next socket gets the same descriptor, and the reader would read from it.
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.thread.join(5)
        self.socket.close()

    def send(self, path="/v1/chat/completions", body=None, hold=0, **headers):
        """Sends a request, but for `hold` bytes at its end; keywords are headers as in `H1.head`."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        method = "GET" if data is None else "POST"
        fields = {":method": method, ":scheme": "https", ":authority": "localhost", ":path": path}
        if data is not None:
            fields |= {"portcullis-purpose": "research", "content-type": "application/json"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        with self.lock:
            number = self.wire.get_next_available_stream_id()
            exchange = self.exchanges[number] = Exchange(number)
            fields = [(name, value) for name, value in fields.items() if value is not None]
            self.wire.send_headers(number, fields, end_stream=data is None)
            if data is not None:
                exchange.rest = data[len(data) - hold:]
                self.wire.send_data(number, data[:len(data) - hold], end_stream=not hold)
            self.socket.sendall(self.wire.data_to_send())
        if self.over:
            exchange.end(self.over)
        return exchange

    def finish(self, exchange):
        """Sends what was held back."""
        with self.lock:
            self.wire.send_data(exchange.number, exchange.rest, end_stream=True)
            self.socket.sendall(self.wire.data_to_send())

    def ask(self, path="/v1/chat/completions", body=None, **headers):
        """One request, answered whole."""
        exchange = self.send(path, body, **headers)
        assert exchange.wait() == "complete", exchange.ended
        return exchange

    def stream(self, body, path="/v1/chat/completions", **headers):
        """A request whose answer has begun to flow."""
        exchange = self.send(path, body, **headers)
        eventually(lambda: exchange.pieces or exchange.ended, what="the first piece")
        assert exchange.status == 200, (exchange.status, exchange.text)
        return exchange

    def _read(self):
        how, buffer = "closed", b""
        try:
            while received := self.socket.recv(65536):
                buffer += received
                with self.lock:
                    while len(buffer) >= 9 and len(buffer) >= (size := 9 + int.from_bytes(buffer[:3], "big")):
                        frame, buffer = buffer[:size], buffer[size:]
                        for event in self.wire.receive_data(frame):
                            self._take(event)
                    if out := self.wire.data_to_send():
                        self.socket.sendall(out)
        except (OSError, ValueError) as error:
            how = type(error).__name__
        finally:
            self.over_at, self.over = time.monotonic(), how
            for exchange in list(self.exchanges.values()):
                exchange.end(how)

    def _take(self, event):
        exchange = self.exchanges.get(getattr(event, "stream_id", None))
        match event:
            case h2.events.ResponseReceived():
                exchange.headers = dict(event.headers)
                exchange.status = int(exchange.headers[":status"])
            case h2.events.DataReceived():
                exchange.pieces.append((time.monotonic(), event.data))
            case h2.events.StreamEnded():
                exchange.end("complete")
            case h2.events.StreamReset():
                exchange.end("reset")
            case h2.events.ConnectionTerminated():
                self.goaway_at = self.goaway_at or time.monotonic()
                # h2 takes nothing after this frame, although it lets open streams come to their end.
                self.wire.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN
