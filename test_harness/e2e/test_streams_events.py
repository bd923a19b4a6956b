"""The stream of a task: its grammar, its ids, replay, many readers, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from harness_kit.gated_engine import GatedEngine, words_by_seed
from harness_kit.http_probe import Event, HttpProbe, numbered, task
from harness_kit.service_process import MODEL, ServiceProcess, external_pool

METRICS_MS = 1000
# What is hard to carry: escapes, line ends of every kind, controls, wide and joined characters.
HARD_TEXT = (
    'quote " and \\ backslash',
    "\n",
    "\r\n",
    "\r",
    "\n\n",
    "data: not an event\n\n",
    "\t\x00\x1f\x7f",
    "é",
    "日本語",
    "🦙",
    "👩‍👩‍👧‍👦",
    "\u2028\u2029\x85",
    "\ufeff",
    "</script>",
    " ",
)


def script(prompt: str, seed: int, count: int) -> list[str]:
    if prompt == "hard":
        return [HARD_TEXT[i % len(HARD_TEXT)] for i in range(count)]
    if prompt == "wide":  # more than the kernel buffers of a connection take
        return ["x" * 1000] * count
    return words_by_seed(prompt, seed, count)


@pytest.fixture(scope="module")
def engine() -> Iterator[GatedEngine]:
    with GatedEngine(slots=4, script=script) as running:
        yield running


@pytest.fixture(scope="module")
def service(
    engine: GatedEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    directory = tmp_path_factory.mktemp("streams")
    streams = {"metrics_ms": METRICS_MS}
    with ServiceProcess(directory, external_pool(engine.url), streams=streams) as running:
        yield running


@pytest.fixture
def probe(service: ServiceProcess) -> Iterator[HttpProbe]:
    with service.probe() as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_is_left_running(engine: GatedEngine) -> Iterator[None]:
    engine.allow()
    yield
    engine.allow()
    engine.wait_busy(0)


def admit(probe: HttpProbe, **fields: Any) -> dict[str, Any]:
    document = task(MODEL, **fields)
    assert probe.post("/v1/tasks", document).status == 202
    return document


def finished(probe: HttpProbe, **fields: Any) -> tuple[str, list[Event]]:
    """A task that has ended, and its numbered events."""
    task_id = str(admit(probe, **fields)["task_id"])
    return task_id, numbered(probe.stream(task_id).rest())


# --- grammar ------------------------------------------------------------------------------------


@pytest.mark.req("ORCH-2002", "OC-CTRL-2020", "OC-CTRL-2021", "OC-CTRL-2022")
@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster, and more")
def test_a_stream_is_started_then_tokens_then_one_end_with_ids_by_place(
    probe: HttpProbe,
) -> None:
    document = task(MODEL, max_tokens=5)
    promise = probe.post("/v1/tasks", document).json()

    stream = probe.stream(document["task_id"])
    events = numbered(stream.rest())

    words = words_by_seed(document["prompt"], 42, 5)
    assert [(event.name, event.id) for event in events] == [
        ("started", 1),
        ("token", 2),
        ("token", 3),
        ("token", 4),
        ("token", 5),
        ("token", 6),
        ("end", 7),
    ]
    assert events[0].data == {
        "queue_position": promise["queue_position"],
        "predicted_start_ms": promise["predicted_start_ms"],
    }
    assert [event.data for event in events[1:-1]] == [
        {"t": word, "i": index} for index, word in enumerate(words)
    ]
    assert events[-1].data["tokens_out"] == 5
    assert events[-1].data["decode_ms"] == 5  # as the engine measured it
    assert "canceled" not in events[-1].data
    assert stream.complete


@pytest.mark.req("ORCH-2002", partial="all but one property of a stream")
def test_the_response_is_an_event_stream_that_nobody_caches(probe: HttpProbe) -> None:
    document = admit(probe)

    stream = probe.stream(document["task_id"])
    stream.rest()

    assert stream.status == 200
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.headers["cache-control"] == "no-cache"
    assert "content-length" not in stream.headers


@pytest.mark.req("ORCH-2002", partial="all but one property of a stream")
def test_the_connection_of_a_stream_serves_the_next_requests(probe: HttpProbe) -> None:
    for _ in range(3):
        document = admit(probe)
        assert probe.stream(document["task_id"]).rest()[-1].name == "end"
        assert probe.get(f"/v1/sessions/{document['session_id']}").status == 200

    assert probe.connections == 1


@pytest.mark.req("ORCH-2002", partial="all but one property of a stream")
def test_requests_may_be_pipelined_behind_a_stream(probe: HttpProbe, engine: GatedEngine) -> None:
    engine.hold(2)
    document = admit(probe)

    probe.send("GET", f"/v1/tasks/{document['task_id']}/stream")
    probe.send("GET", "/livez")
    engine.allow()
    stream = probe.read_answer()
    live = probe.read_answer()

    assert stream.status == 200
    assert stream.body.count(b"event: end\n") == 1
    assert live.status == 200
    assert live.headers["content-type"] == "application/json"
    assert live.body == b'{"live":true}'


@pytest.mark.req("ORCH-3100", "OC-CTRL-2023", "OC-METRICS-7110")
@pytest.mark.req("ORCH-3032", partial="all but what a metrics event repeats of it")
@pytest.mark.req("ORCH-3023", partial="a failover")
def test_a_metrics_event_follows_started_at_once_and_then_every_period(
    probe: HttpProbe, engine: GatedEngine
) -> None:
    engine.hold()
    document = admit(probe)

    stream = probe.stream(document["task_id"])
    first = stream.take(4, numbered=False)  # nothing is decoded: only metrics can follow
    engine.allow()
    rest = stream.rest()

    assert [event.name for event in first] == ["started", "metrics", "metrics", "metrics"]
    assert [event.id for event in first] == [1, None, None, None]
    data = first[1].data
    assert 0 <= data["on_time_probability"] <= 1
    assert data["queue_depth"] == 0
    assert data["kv_warmth"] is False
    assert data["kv_migrated"] is False
    assert data["failovers"] == 0
    assert data["engine_version"] == "llama.cpp gated-1"
    assert data["model_digest"] == "unknown"
    assert data["replica_id"] == "r0"
    assert rest[-1].name == "end"


@pytest.mark.req("ORCH-2002", partial="all but one property of a stream")
@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster, and more")
@pytest.mark.req("ORCH-3201", partial="the death of a worker")
def test_any_text_goes_through_in_one_line_of_data(probe: HttpProbe) -> None:
    count = 2 * len(HARD_TEXT)

    _, events = finished(probe, prompt="hard", max_tokens=count)

    tokens = [event.data["t"] for event in events if event.name == "token"]
    assert tokens == [*HARD_TEXT, *HARD_TEXT]
    for event in events:
        assert b"\r" not in event.raw
        assert len(event.raw.split(b"\n")) == 3


# --- replay -------------------------------------------------------------------------------------


@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster, and more")
def test_a_finished_stream_reads_the_same_again_and_again(probe: HttpProbe) -> None:
    task_id, first = finished(probe)

    again = [probe.stream(task_id).rest() for _ in range(3)]

    for events in again:
        assert [event.raw for event in events] == [event.raw for event in first]


@pytest.mark.req(
    "ORCH-3202", partial="another node, which comes with the cluster, and what is replayed"
)
@pytest.mark.parametrize("after", range(11))
def test_last_event_id_of_a_finished_task_gives_what_follows_it(
    probe: HttpProbe, after: int
) -> None:
    task_id, events = finished(probe, max_tokens=8)

    stream = probe.stream(task_id, after)

    assert [event.raw for event in stream.rest()] == [event.raw for event in events[after:]]
    assert stream.status == 200
    assert len(events) == 10


@pytest.mark.req(
    "ORCH-3202", partial="another node, which comes with the cluster, and what is replayed"
)
def test_last_event_id_of_a_running_task_gives_what_follows_it_at_every_place(
    service: ServiceProcess, probe: HttpProbe, engine: GatedEngine
) -> None:
    engine.hold(4)
    task_id = admit(probe, max_tokens=8)["task_id"]
    probe.stream(task_id).take(5)
    probe.close()
    readers = [service.probe() for _ in range(10)]
    streams = [reader.stream(task_id, after) for after, reader in enumerate(readers)]
    before = [stream.take(5 - after) if after < 5 else [] for after, stream in enumerate(streams)]

    engine.allow()
    joined = [
        early + numbered(stream.rest()) for early, stream in zip(before, streams, strict=True)
    ]
    for reader in readers:
        reader.close()

    whole = joined[0]
    assert [event.id for event in whole] == [*range(1, 11)]
    for after, events in enumerate(joined):
        assert [event.raw for event in events] == [event.raw for event in whole[after:]]


@pytest.mark.req(
    "ORCH-3202", partial="another node, which comes with the cluster, and what is replayed"
)
def test_last_event_id_ahead_of_the_log_waits_for_it(
    service: ServiceProcess, probe: HttpProbe, engine: GatedEngine
) -> None:
    engine.hold(2)
    task_id = admit(probe, max_tokens=8)["task_id"]
    with service.probe() as early:
        stream = early.stream(task_id, 7)  # it has seen tokens 0 to 5, as before a crash
        engine.allow()
        events = numbered(stream.rest())

    assert [(event.name, event.id) for event in events] == [
        ("token", 8),
        ("token", 9),
        ("end", 10),
    ]


@pytest.mark.req(
    "ORCH-3202", partial="another node, which comes with the cluster, and what is replayed"
)
@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize(
    "bad", ["-1", "x", "1.0", "1e3", "0x1", " ", "+1", "9223372036854775808", "1,2", "\xb2"]
)
def test_a_last_event_id_that_is_no_whole_number_is_400(probe: HttpProbe, bad: str) -> None:
    task_id, _ = finished(probe)

    answer = probe.stream(task_id, bad).answer()

    envelope = answer.json()
    assert (answer.status, envelope["code"]) == (400, "INVALID_PARAMS")
    assert envelope["message"].startswith("Last-Event-ID: ")


@pytest.mark.req(
    "ORCH-3202", partial="another node, which comes with the cluster, and what is replayed"
)
@pytest.mark.parametrize("beyond", ["10", "11", "9223372036854775807", "0010"])
def test_a_last_event_id_at_or_beyond_the_end_gives_an_empty_stream(
    probe: HttpProbe, beyond: str
) -> None:
    task_id, _ = finished(probe, max_tokens=8)

    stream = probe.stream(task_id, beyond)

    assert stream.status == 200
    assert stream.rest() == []
    assert stream.complete


@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster, and more")
def test_a_long_stream_replays_whole_from_anywhere(probe: HttpProbe) -> None:
    # More than one replay step, and more than any socket buffer.
    task_id, events = finished(probe, max_tokens=6000, ctx=8000)

    late = probe.stream(task_id, 4000).rest()

    assert [event.id for event in events] == [*range(1, 6003)]
    assert [event.raw for event in late] == [event.raw for event in events[4000:]]


# --- several readers ----------------------------------------------------------------------------


@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster, and more")
def test_several_readers_at_once_get_identical_numbered_events(
    service: ServiceProcess, probe: HttpProbe, engine: GatedEngine
) -> None:
    engine.hold(3)
    task_id = admit(probe, max_tokens=200)["task_id"]
    readers = [service.probe() for _ in range(8)]
    streams = [reader.stream(task_id) for reader in readers]
    outcomes: dict[int, list[Event]] = {}

    def read(number: int) -> None:
        outcomes[number] = streams[number].rest()

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    service.wait_metric("stream_readers", 8)
    engine.allow()
    for thread in threads:
        thread.join(20)
    for reader in readers:
        reader.close()

    raws = [[event.raw for event in numbered(outcomes[number])] for number in range(8)]
    assert len(raws[0]) == 202
    assert all(raw == raws[0] for raw in raws)


@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster, and more")
def test_a_reader_that_does_not_read_holds_nobody_up(
    service: ServiceProcess, probe: HttpProbe, engine: GatedEngine
) -> None:
    engine.hold()
    big = admit(probe, prompt="wide", max_tokens=8000, ctx=8192)
    with service.probe() as sleeper:
        sleeper.send("GET", f"/v1/tasks/{big['task_id']}/stream")
        service.wait_metric("stream_readers", 1)
        engine.allow()
        events = numbered(probe.stream(big["task_id"]).rest())
        engine.wait_busy(0)
        slept = sleeper.read_answer()

    assert [event.id for event in events] == [*range(1, 8003)]
    # The sleeper lost nothing: what it had not read was kept in the log.
    assert slept.status == 200
    assert slept.body.count(b"event: token\n") == 8000
    assert slept.body.endswith(events[-1].raw + b"\n\n")


@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster, and more")
def test_tokens_are_decoded_whether_or_not_anybody_reads(
    service: ServiceProcess, probe: HttpProbe, engine: GatedEngine
) -> None:
    task_id = admit(probe)["task_id"]
    service.wait_log("task.ended", job_id=task_id)

    events = probe.stream(task_id).rest()

    assert [event.id for event in events] == [*range(1, 11)]


@pytest.mark.req("ORCH-2002", partial="all but one property of a stream")
def test_a_stream_opened_while_the_task_waits_begins_when_it_starts(
    service: ServiceProcess, probe: HttpProbe, engine: GatedEngine
) -> None:
    engine.hold()
    for _ in range(4):
        admit(probe)
    engine.wait_busy(4)
    waiting = task(MODEL)
    promise = probe.post("/v1/tasks", waiting).json()
    with service.probe() as reader:
        stream = reader.stream(waiting["task_id"])
        service.wait_metric("stream_readers", 1)
        depth = service.metric("queue_depth")
        engine.allow()
        events = stream.rest()

    assert depth == 1
    assert promise["predicted_start_ms"] >= 1
    assert events[0].name == "started"
    assert events[0].data == {
        "queue_position": promise["queue_position"],
        "predicted_start_ms": promise["predicted_start_ms"],
    }
    assert events[-1].name == "end"


# --- cancel -------------------------------------------------------------------------------------


@pytest.mark.req("ORCH-2003", "ORCH-3017", "ORCH-3026", "OC-CTRL-2012")
def test_cancelling_a_running_task_ends_it_and_frees_its_slot(
    service: ServiceProcess, probe: HttpProbe, engine: GatedEngine
) -> None:
    engine.hold(3)
    task_id = admit(probe, max_tokens=50)["task_id"]
    with service.probe() as reader:
        stream = reader.stream(task_id)
        before = stream.take(4)
        answer = probe.post(f"/v1/tasks/{task_id}/cancel")
        engine.wait_busy(0)
        after = numbered(stream.rest())

    assert (answer.status, answer.body) == (204, b"")
    assert [event.name for event in before] == ["started", "token", "token", "token"]
    assert [(event.name, event.id) for event in after] == [("end", 5)]
    assert after[0].data["canceled"] is True
    assert after[0].data["tokens_out"] == 3
    assert service.metric("tasks_running") == 0


@pytest.mark.req("ORCH-2003", "ORCH-3017", "OC-CORE-1005")
def test_cancelling_a_waiting_task_ends_it_without_started_and_it_never_decodes(
    service: ServiceProcess, probe: HttpProbe, engine: GatedEngine
) -> None:
    engine.hold()
    for _ in range(4):
        admit(probe)
    task_id = admit(probe, prompt="never decoded")["task_id"]
    with service.probe() as reader:
        stream = reader.stream(task_id)
        answer = probe.post(f"/v1/tasks/{task_id}/cancel")
        events = stream.rest()
    late = probe.stream(task_id).rest()
    engine.allow()
    engine.wait_busy(0)

    assert answer.status == 204
    assert [(event.name, event.id) for event in events] == [("end", 2)]
    assert events[0].data == {"tokens_out": 0, "decode_ms": 0, "canceled": True}
    assert [event.raw for event in late] == [event.raw for event in events]
    assert "never decoded" not in [decode.body["prompt"] for decode in engine.decodes]


@pytest.mark.req("ORCH-2003", partial="all but one case of a cancel")
def test_cancelling_a_finished_task_is_204_and_changes_nothing(probe: HttpProbe) -> None:
    task_id, before = finished(probe)

    answers = [probe.post(f"/v1/tasks/{task_id}/cancel") for _ in range(2)]
    after = probe.stream(task_id).rest()

    assert [answer.status for answer in answers] == [204, 204]
    assert [event.raw for event in after] == [event.raw for event in before]


@pytest.mark.req("ORCH-2003", partial="all but one case of a cancel")
@pytest.mark.req("ORCH-3024", partial="all but one case of a repeated id")
def test_a_cancel_may_be_repeated_and_the_id_stays_used(
    probe: HttpProbe, engine: GatedEngine
) -> None:
    engine.hold()
    document = admit(probe)

    statuses = [probe.post(f"/v1/tasks/{document['task_id']}/cancel").status for _ in range(3)]
    again = probe.post("/v1/tasks", document)
    events = probe.stream(document["task_id"]).rest()

    assert statuses == [204, 204, 204]
    assert again.status == 202
    assert [event.name for event in events if event.terminal] == ["end"]
    assert events[-1].data["canceled"] is True


@pytest.mark.req("ORCH-3026", "OC-CTRL-2012")
def test_no_token_follows_the_204_of_a_cancel_in_full_flow(
    service: ServiceProcess, probe: HttpProbe
) -> None:
    for max_tokens in (2000, 4000, 6000, 7000):
        task_id = admit(probe, max_tokens=max_tokens, ctx=8000)["task_id"]
        with service.probe() as reader:
            stream = reader.stream(task_id)
            stream.take(2)
            status = probe.post(f"/v1/tasks/{task_id}/cancel").status
            # All that was sent before the 204 is in the log by now; nothing comes after it.
            with service.probe() as late:
                replay = numbered(late.stream(task_id).rest())
            rest = numbered(stream.rest())

        assert status == 204
        assert rest[-1].raw == replay[-1].raw
        assert rest[-1].data["tokens_out"] == len(replay) - 2
        assert rest[-1].id == len(replay)


@pytest.mark.req("ORCH-2003", partial="all but one case of a cancel")
@pytest.mark.parametrize(
    ("body", "media_type"),
    [(b"", "text/plain"), (b"{not json", "application/json"), (b"x" * 5000, "text/plain")],
)
def test_the_body_of_a_cancel_is_ignored(probe: HttpProbe, body: bytes, media_type: str) -> None:
    task_id, _ = finished(probe)
    path = f"/v1/tasks/{task_id}/cancel"

    answer = probe.request("POST", path, body, {"Content-Type": media_type})

    assert answer.status == 204
    assert probe.get("/livez").status == 200
    assert probe.connections == 1


# --- what ends badly ----------------------------------------------------------------------------


def test_a_best_effort_task_whose_engine_breaks_in_mid_stream_ends_with_worker_reset(
    service: ServiceProcess, probe: HttpProbe, engine: GatedEngine
) -> None:
    engine.hold(3)
    task_id = admit(probe, determinism="best_effort")["task_id"]
    stream = probe.stream(task_id)
    before = stream.take(4)
    lost = service.metric("failovers_total", outcome="lost")

    engine.break_decodes()
    after = numbered(stream.rest())
    service.wait_ready()

    assert [event.name for event in before] == ["started", "token", "token", "token"]
    assert [(event.name, event.id) for event in after] == [("error", 5)]
    assert after[0].data["code"] == "WORKER_RESET"
    assert after[0].data["retriable"] is True
    assert after[0].data["engine"] == "llamacpp"
    assert service.metric("failovers_total", outcome="lost") == lost + 1


@pytest.mark.req("ORCH-3201", partial="strict tasks")
def test_a_best_effort_task_restarts_while_nothing_was_sent(
    service: ServiceProcess, probe: HttpProbe, engine: GatedEngine
) -> None:
    engine.hold()
    task_id = admit(probe, determinism="best_effort")["task_id"]
    engine.wait_busy(1)

    engine.break_decodes()
    engine.allow()
    events = numbered(probe.stream(task_id).rest())

    assert [event.id for event in events] == [*range(1, 11)]
    assert events[-1].name == "end"
