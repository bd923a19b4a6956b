"""A task's log: ids by place, replay from anywhere."""

from __future__ import annotations

import pytest

from orchestratord.services.event_log import TaskLog

STARTED = b'{"queue_position":0,"predicted_start_ms":0}'


def finished_log() -> TaskLog:
    log = TaskLog()
    log.start(STARTED)
    log.append([b"Hello", b" w\\n"])
    log.append(["örld".encode()])
    log.end("end", b'{"tokens_out":3,"decode_ms":5}')
    return log


WHOLE = (
    b'event: started\nid: 1\ndata: {"queue_position":0,"predicted_start_ms":0}\n\n'
    b'event: token\nid: 2\ndata: {"t":"Hello","i":0}\n\n'
    b'event: token\nid: 3\ndata: {"t":" w\\n","i":1}\n\n'
    b'event: token\nid: 4\ndata: {"t":"\xc3\xb6rld","i":2}\n\n'
    b'event: end\nid: 5\ndata: {"tokens_out":3,"decode_ms":5}\n\n'
)


@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster, and more")
@pytest.mark.req("ORCH-2002", partial="all but one property of a stream")
@pytest.mark.req("OC-CTRL-2020", "OC-CTRL-2022", partial="all but ids")
def test_ids_follow_from_the_place_alone() -> None:
    log = finished_log()

    data, next_id = log.encode(1)

    assert data == WHOLE
    assert next_id == 6
    assert log.encode(next_id) == (b"", 6)


@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster, and more")
@pytest.mark.parametrize("last_event_id", range(7))
def test_a_reader_gets_exactly_what_it_missed(last_event_id: int) -> None:
    events = [event + b"\n\n" for event in WHOLE.split(b"\n\n")[:-1]]

    data, _ = finished_log().encode(last_event_id + 1)

    assert data == b"".join(events[last_event_id:])


def test_a_reader_ahead_of_the_log_waits_for_its_place() -> None:
    log = TaskLog()
    log.start(STARTED)
    log.append([b"a"])

    assert log.encode(4) == (b"", 4)
    log.append([b"b", b"c"])

    assert log.encode(4) == (b'event: token\nid: 4\ndata: {"t":"c","i":2}\n\n', 5)


def test_a_task_that_never_started_has_only_its_terminal_event() -> None:
    log = TaskLog()
    log.end("error", b"{}")

    assert log.encode(1) == (b"event: error\nid: 2\ndata: {}\n\n", 3)


def test_readers_at_the_same_place_share_one_encoding() -> None:
    log = TaskLog()
    log.start(STARTED)
    log.append([b"x"])

    first, _ = log.encode(2)
    second, _ = log.encode(2)

    assert first is second


def test_a_replay_comes_in_bounded_steps_and_loses_nothing() -> None:
    log = TaskLog()
    log.start(STARTED)
    log.append([b"t%d" % i for i in range(10)])
    log.end("end", b"{}")

    steps, at = [], 1
    while True:
        data, at = log.encode(at, limit_tokens=3)
        if not data:
            break
        steps.append(data)

    assert b"".join(steps).count(b"event: token") == 10
    assert max(step.count(b"event: token") for step in steps) == 3
    assert steps[-1].endswith(b"event: end\nid: 12\ndata: {}\n\n")


def test_a_sealed_log_is_split_once_for_a_replay_and_given_up_at_its_end() -> None:
    log = finished_log()

    _, at = log.encode(1, limit_tokens=1)
    first = log.pieces()
    _, at = log.encode(at, limit_tokens=1)
    assert log.pieces() is first
    while log.encode(at, limit_tokens=1)[0]:
        _, at = log.encode(at, limit_tokens=1)

    assert log.pieces() is not first


def test_a_restored_log_reads_like_the_one_that_was_sealed() -> None:
    log = finished_log()

    again = TaskLog.restored(log.seal(), 3)
    again.start(STARTED)
    again.end("end", b'{"tokens_out":3,"decode_ms":5}')

    assert again.encode(1)[0] == WHOLE
    assert again.text() == b"Hello w\\n\xc3\xb6rld"
    assert again.text_bytes == log.text_bytes


def test_the_end_of_a_lost_log_reaches_a_reader_that_had_more() -> None:
    log = TaskLog()
    log.start(STARTED)
    log.truncated = True
    log.end("error", b"{}")

    assert log.encode(40) == (b"event: error\nid: 40\ndata: {}\n\n", 41)


def test_listeners_hear_every_change_until_they_stop() -> None:
    log = TaskLog()
    heard: list[int] = []

    def listener() -> None:
        heard.append(log.tokens)

    log.listen(listener)

    log.start(STARTED)
    log.append([b"a"])
    log.unlisten(listener)
    log.append([b"b"])

    assert heard == [0, 1]
