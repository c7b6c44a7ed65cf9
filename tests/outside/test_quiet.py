"""A partner that says nothing for a while: it comes back to the connection that it left, whatever it says then.

After a second without a request the gateway keeps of an HTTP/1.1 connection what it cannot do without. The pauses here
are the partners' own and longer than that.
"""

import contextlib
import json
import signal
import time

import pytest
from stage import H1, Stage, chat, door_closes, eventually, memory

PAUSE = 2.5
BODY = json.dumps(chat()).encode()


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    one = Stage(tmp_path_factory.mktemp("quiet"))
    yield one
    one.close()
    assert "panicked at" not in one.gateway.log


def asked(one):
    connection = H1(one.connect())
    assert connection.ask(body=chat()).status == 200
    return connection


def answers(connection, *expected):
    for status in expected:
        got, headers = connection.read_head()
        assert got == status
        connection.read_body(headers)


def test_whoever_comes_back_is_served_whatever_it_says(house):
    chunked = {"content_length": None, "transfer_encoding": "chunked"}
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (BODY[:7], BODY[7:])) + b"0\r\n\r\n"
    never, plain, two, halves, body, large, crooked = (H1(house.connect()), *(asked(house) for _ in range(6)))
    half = halves.head(body=BODY)
    halves.send(half[:50])
    body.send(body.head(body=BODY)[: -len(BODY)])
    for _ in range(2):
        time.sleep(PAUSE)
        for connection in (never, plain):
            assert connection.ask(body=chat()).status == 200
            assert connection.ask(body=chat(stream=True)).body.endswith(b"data: [DONE]\n\n")
        two.send(two.head("/v1/models") + two.head(body=BODY, **chunked)[: -len(BODY)] + pieces)
        answers(two, 200, 200)
    halves.send(half[50:])
    answers(halves, 200)
    body.send(BODY)
    answers(body, 200)
    large.send(large.head("/v1/models", x_filler="x" * 20_000))
    answers(large, 431)
    crooked.send(crooked.head("/v1/models", transfer_encoding="gzip"))
    answers(crooked, 400)
    for over in (large, crooked):
        assert not over.more()


def test_a_quiet_connection_ends_with_tls_own_farewell(stage):
    one = stage(listen='idle_timeout = "3s"')
    began, connection = time.monotonic(), asked(one)
    # A connection that is merely closed raises SSLEOFError.
    connection.socket.suppress_ragged_eofs = False
    assert not connection.more()
    assert time.monotonic() - began >= 2.9


def test_a_quiet_client_that_leaves_is_noticed(stage):
    one = stage()
    leaving, staying = asked(one), asked(one)
    time.sleep(PAUSE)
    assert one.metric("portcullis_connections_active", listener="partners") == 2
    leaving.close()
    eventually(lambda: one.metric("portcullis_connections_active", listener="partners") == 1, what="one connection")
    assert staying.ask(body=chat()).status == 200


def test_who_is_suspended_while_quiet_is_cut_off(stage):
    one = stage()
    connection, other = asked(one), H1(one.connect("globex"))
    assert other.ask(body=chat()).status == 200
    time.sleep(PAUSE)
    one.run("revoke", "--org", "acme", "--reason", "a test", check=True)
    with contextlib.suppress(ConnectionError):
        assert not connection.more()
    assert other.ask(body=chat()).status == 200


def test_a_quiet_connection_has_its_last_call_and_holds_up_no_stop(stage):
    one = stage(listen='drain = { delay = "0s", deadline = "60s" }')
    silent, late = asked(one), asked(one)
    time.sleep(PAUSE)
    one.gateway.signal(signal.SIGTERM)
    door_closes(one)
    answer = late.ask(body=chat())
    assert (answer.status, answer.headers.get("connection")) == (200, "close")
    assert one.gateway.wait(20) == 0, "a third of the deadline"
    assert not silent.more()


def test_a_quiet_connection_takes_less_memory_than_one_that_asks(stage):
    """With the HTTP library's two buffers of 8 kB a connection takes 28 kB, without them 16."""
    one = stage()
    asked(one).close()
    before, many = memory(one), [asked(one) for _ in range(400)]
    eventually(lambda: memory(one) - before < len(many) * 22 * 1024, 15, what="the memory of quiet connections")
    for connection in many:
        assert connection.ask("/v1/models").status == 200
        connection.close()
