"""The load client counts what it got, and only what is whole."""

from __future__ import annotations

import asyncio

import pytest

from bench.dialects import Dialect, OpenAiChat, OrchQueue
from bench.load import ClosedLoop, ClosedLoopRun, Connection, Tally, quantiles_ms

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}"
TOKEN = b'event: token\nid: 2\ndata: {"t":"a","i":0}\n\n'
END = b'event: end\nid: 3\ndata: {"tokens_out":1}\n\n'


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.requests: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.requests.append(bytes(data))

    def abort(self) -> None:
        pass


class Owner:
    """Stands where a run would: remembers whose turn is over."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect, self.tally = dialect, Tally()
        self.finished: list[Connection] = []

    def done(self, connection: Connection) -> None:
        self.finished.append(connection)


def connected(dialect: Dialect) -> tuple[Owner, Connection, Wire]:
    owner, wire = Owner(dialect), Wire()
    connection = Connection(owner, "127.0.0.1", 1, quickack=False)
    connection.connection_made(wire)
    return owner, connection, wire


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def orch(tokens: int, *, admit_only: bool = False) -> OrchQueue:
    return OrchQueue("h", tokens, "key", "repo:m", admit_only=admit_only)


def test_a_task_is_a_post_and_the_stream_on_the_same_connection() -> None:
    owner, connection, wire = connected(orch(1))

    connection.begin(0)
    connection.data_received(ACCEPTED)
    connection.data_received(HEAD + chunked(TOKEN, END))

    assert [request.split(b" ")[0] for request in wire.requests] == [b"POST", b"GET"]
    assert owner.finished == [connection]
    assert (owner.tally.tokens, owner.tally.errors) == (1, [])
    assert len(owner.tally.total_s) == len(owner.tally.first_token_s) == 1


def test_an_event_cut_between_reads_counts_once() -> None:
    owner, connection, _ = connected(orch(2))
    body = chunked(TOKEN[:9], TOKEN[9:] + TOKEN, END)

    connection.begin(0)
    connection.data_received(ACCEPTED)
    connection.data_received(HEAD + body[:70])
    connection.data_received(body[70:])

    assert (owner.tally.tokens, owner.tally.errors) == (2, [])


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ((TOKEN,), "1 of 1 tokens, without end mark"),
        ((TOKEN, TOKEN, END), "2 of 1 tokens, with end mark"),
        ((END,), "0 of 1 tokens, with end mark"),
    ],
)
def test_a_stream_with_other_tokens_or_no_end_is_an_error(
    pieces: tuple[bytes, ...], said: str
) -> None:
    owner, connection, _ = connected(orch(1))

    connection.begin(0)
    connection.data_received(ACCEPTED)
    connection.data_received(HEAD + chunked(*pieces))

    assert owner.tally.errors == [said]
    assert owner.tally.total_s == []
    assert owner.finished == [connection]


def test_a_refusal_is_an_error_with_its_status_and_text() -> None:
    owner, connection, wire = connected(orch(1))

    connection.begin(0)
    connection.data_received(b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\n\r\nfull")

    assert owner.tally.errors == ["status 429 full"]
    assert len(wire.requests) == 1


def test_a_connection_lost_under_way_is_an_error_and_an_idle_one_is_not() -> None:
    owner, connection, _ = connected(OpenAiChat("h", 1))

    connection.connection_lost(None)
    connection.connection_made(Wire())
    connection.begin(0)
    connection.connection_lost(None)

    assert owner.tally.errors == ["connection lost"]


def test_admission_alone_ends_with_the_202() -> None:
    owner, connection, wire = connected(orch(1, admit_only=True))

    connection.begin(0)
    connection.data_received(ACCEPTED)

    assert (len(wire.requests), owner.tally.errors) == (1, [])
    assert len(owner.tally.service_s) == 1


def test_latency_runs_from_the_due_time() -> None:
    owner, connection, _ = connected(orch(1, admit_only=True))

    connection.begin(0, due_s=-1000.0)
    connection.data_received(ACCEPTED)

    assert owner.tally.total_s[0] - owner.tally.service_s[0] > 1000.0


def test_quantiles_take_the_nearest_rank_in_milliseconds() -> None:
    ranks = quantiles_ms([i / 1000 for i in range(100, 0, -1)])

    assert ranks is not None
    assert (ranks.p50, ranks.p95, ranks.p99, ranks.max) == (51.0, 96.0, 100.0, 100.0)
    assert quantiles_ms([]) is None


def test_a_run_against_nobody_fails_at_once() -> None:
    run = ClosedLoopRun("127.0.0.1", 0, OpenAiChat("h", 1), ClosedLoop(1, requests=1))

    with pytest.raises(OSError, match=r"."):
        asyncio.run(run.go())
