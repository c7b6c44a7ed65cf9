"""The log on stderr: whoever reads it, or does not, holds up nobody, and what was not said is counted."""

import os
import signal
import threading
import time

import pytest
from stage import H1, Stage, chat, eventually, fetch

DROPPED = "portcullis_log_lines_dropped_total"


class Unread:
    """A pipe that a gateway's stderr is, until somebody reads."""

    def __init__(self):
        self.reader, self.writer = os.pipe()
        self.bytes = b""

    @property
    def text(self):
        # What was read so far may end within a character.
        return self.bytes.decode(errors="replace")

    def read(self):
        """Reads from now on, to the end, on a thread."""

        def take():
            while piece := os.read(self.reader, 1 << 16):
                self.bytes += piece
            os.close(self.reader)

        thread = threading.Thread(target=take)
        thread.start()
        return thread


def crowded(one):
    """Starts the gateway on a pipe that nobody reads, and has it log until lines are dropped; the pipe."""
    pipe = Unread()
    one.start(stderr=pipe.writer)
    os.close(pipe.writer)
    wrong = "".join(f'wrong_{number} = "{"x" * 4000}"\n' for number in range(100))
    one.write_org("globex", wrong + Stage.GLOBEX)

    def asked():
        assert fetch(one.admin + "/-/reload", data={}, method="POST").status == 422
        with H1(one.connect()) as connection:
            assert connection.ask(body=chat()).status == 200
            assert connection.ask(body=chat(), portcullis_purpose="gardening").status == 400
        return one.metric(DROPPED)

    eventually(asked, within=60, what="a dropped line")
    one.write_org("globex", Stage.GLOBEX)
    assert fetch(one.admin + "/-/reload", data={}, method="POST").status == 200
    return pipe


def test_a_log_that_nobody_reads_holds_up_nobody_and_what_it_misses_is_told_later(stage):
    one = stage(start=False)
    pipe = crowded(one)
    dropped = eventually(lambda: one.metric(DROPPED), what="the count")
    reading = pipe.read()
    eventually(lambda: "dropped from this log" in pipe.text, what="the word about it")
    one.gateway.signal(signal.SIGUSR1)
    eventually(lambda: "SIGUSR1 does nothing" in pipe.text, what="the next line")
    assert one.gateway.end() == 0
    reading.join(10)
    lines = pipe.text.splitlines()
    told = [line for line in lines if "dropped from this log" in line]
    assert [f"lines={dropped:.0f}" in line for line in told] == [True], (told, dropped)
    assert sum(len(line) for line in lines[: lines.index(told[0])]) > 800_000, "what there was room for is whole"
    at = [next(at for at, line in enumerate(lines) if word in line) for word in (told[0], "SIGUSR1 does", " draining")]
    assert at == sorted(at)


@pytest.mark.parametrize("json", [False, True], ids=["text", "json"])
def test_a_log_that_nobody_reads_holds_up_no_stop(stage, json):
    one = stage(start=False, more="[log]\nformat = \"json\"" if json else "")
    pipe = crowded(one)
    began = time.monotonic()
    one.gateway.signal(signal.SIGTERM)
    assert one.gateway.wait(20) == 0
    assert time.monotonic() - began < 10
    os.close(pipe.reader)


def test_a_log_whose_reader_has_left_holds_up_nobody(stage):
    one = stage(start=False)
    pipe = Unread()
    one.start(stderr=pipe.writer)
    os.close(pipe.writer)
    os.close(pipe.reader)
    one.gateway.signal(signal.SIGUSR1)
    eventually(lambda: one.metric(DROPPED), what="the count")
    assert one.ask(body=chat()).status == 200
    assert one.gateway.end() == 0
