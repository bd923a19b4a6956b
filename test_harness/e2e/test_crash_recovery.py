"""kill -9 of the service at the worst moments: nothing that was answered 202 is lost or runs twice
to the client's eyes. The engine is a fake one, so that every moment can be chosen."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness_kit.gated_engine import NO_GATE, GatedEngine, words_by_seed
from harness_kit.http_probe import (
    Answer,
    Event,
    HttpProbe,
    ProbeError,
    numbered,
    task,
    text_of,
)
from harness_kit.service_process import MODEL, ServiceProcess, external_pool, refused
from harness_kit.waiting import wait_until


def undisturbed(document: dict[str, Any]) -> str:
    """What the fake engine says to this task, computed beside it."""
    return "".join(words_by_seed(document["prompt"], document["seed"], document["max_tokens"]))


# --- one crash, looked at from all sides --------------------------------------------------------


@dataclass
class Crash:
    """What was there before the kill, and who reads after it."""

    service: ServiceProcess
    engine: GatedEngine
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    before: dict[str, list[Event]] = field(default_factory=dict)
    promises: dict[str, Answer] = field(default_factory=dict)
    decoded_after: list[str] = field(default_factory=list)

    def submit(self, probe: HttpProbe, name: str, **fields: Any) -> None:
        document = task(MODEL, **({"prompt": name, "max_tokens": 20} | fields))
        self.documents[name] = document
        self.promises[name] = probe.post("/v1/tasks", document)
        assert self.promises[name].status == 202

    def id_of(self, name: str) -> str:
        return str(self.documents[name]["task_id"])

    def after(self, name: str, last_event_id: int | None = None) -> list[Event]:
        """All numbered events that the restarted service gives."""
        with self.service.probe() as probe:
            return numbered(probe.stream(self.id_of(name), last_event_id).rest())


QUEUED = ("queued 1", "queued 2", "queued 3", "queued 4")


@pytest.fixture(scope="module")
def crash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crash]:
    directory = tmp_path_factory.mktemp("crash")
    with GatedEngine(slots=2) as engine:
        pool = external_pool(engine.url)
        with ServiceProcess(directory, pool) as service, service.probe() as probe:
            crash = Crash(service, engine)
            crash.submit(probe, "finished")
            crash.before["finished"] = numbered(probe.stream(crash.id_of("finished")).rest())
            crash.submit(probe, "finished best effort", determinism="best_effort")
            events = probe.stream(crash.id_of("finished best effort")).rest()
            crash.before["finished best effort"] = numbered(events)

            engine.hold(5)
            crash.submit(probe, "cancelled while running")
            running = service.probe()
            stream = running.stream(crash.id_of("cancelled while running"))
            early = stream.take(6)
            path = f"/v1/tasks/{crash.id_of('cancelled while running')}/cancel"
            assert probe.post(path).status == 204
            crash.before["cancelled while running"] = early + numbered(stream.rest())
            running.close()

            crash.submit(probe, "strict")
            crash.submit(probe, "best effort", determinism="best_effort")
            readers = [service.probe() for _ in range(3)]
            streams = {
                name: reader.stream(crash.id_of(name))
                for name, reader in zip(("strict", "best effort"), readers, strict=False)
            }
            crash.before |= {name: stream.take(6) for name, stream in streams.items()}
            for name in (*QUEUED, "cancelled while waiting"):
                crash.submit(probe, name)
            streams["queued 2"] = readers[2].stream(crash.id_of("queued 2"))
            path = f"/v1/tasks/{crash.id_of('cancelled while waiting')}/cancel"
            assert probe.post(path).status == 204
            service.kill()

            for name, stream in streams.items():
                assert numbered(stream.until_cut()) == [], name
            for reader in readers:
                reader.close()
            decodes_before = len(engine.decodes)
            engine.slots = 1  # so that the order of what follows can be seen
            engine.allow()
            service.restart()
            for name in QUEUED:
                crash.after(name)
            crash.decoded_after = [d.body["prompt"] for d in engine.decodes[decodes_before:]]
            yield crash


@pytest.mark.req("ORCH-3203")
@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster")
@pytest.mark.req("ORCH-3201", partial="a worker that dies while the service lives")
@pytest.mark.parametrize("last_seen", [None, 0, 1, 3, 6])
def test_a_running_strict_task_goes_on_where_its_reader_was(
    crash: Crash, last_seen: int | None
) -> None:
    seen = crash.before["strict"][: last_seen or 0]

    joined = seen + crash.after("strict", last_seen)

    assert [event.id for event in joined] == [*range(1, 23)]
    assert text_of(joined) == undisturbed(crash.documents["strict"])
    assert joined[-1].name == "end"
    assert [e.raw for e in joined[:6]] == [e.raw for e in crash.before["strict"]]


@pytest.mark.req("ORCH-3203")
@pytest.mark.req("ORCH-3004", partial="the bound")
def test_what_ran_runs_first_and_what_waited_keeps_its_order(crash: Crash) -> None:
    assert crash.decoded_after == ["strict", *QUEUED]


@pytest.mark.req("ORCH-3203", partial="all but one case of a crash")
@pytest.mark.req("ORCH-3029", partial="all but that the promise survives a crash")
@pytest.mark.parametrize("name", QUEUED)
def test_a_queued_task_keeps_its_promise_and_its_text(crash: Crash, name: str) -> None:
    events = crash.after(name)

    promise = crash.promises[name].json()
    assert events[0].data["queue_position"] == promise["queue_position"]
    assert events[0].data["predicted_start_ms"] == promise["predicted_start_ms"]
    assert text_of(events) == undisturbed(crash.documents[name])


@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster")
@pytest.mark.req("ORCH-3203", partial="all but one case of a crash")
@pytest.mark.parametrize("name", ["finished", "finished best effort", "cancelled while running"])
def test_a_finished_log_reads_the_same_after_the_crash(crash: Crash, name: str) -> None:
    events = crash.after(name)

    assert [event.raw for event in events] == [event.raw for event in crash.before[name]]
    tail = crash.after(name, 3)
    assert [event.raw for event in tail] == [event.raw for event in events[3:]]


@pytest.mark.req("ORCH-3203", partial="all but one case of a crash")
@pytest.mark.req("ORCH-3026", partial="tokens that race with the cancel")
@pytest.mark.parametrize("name", ["cancelled while waiting", "cancelled while running"])
def test_a_cancel_that_was_acknowledged_survives(crash: Crash, name: str) -> None:
    events = crash.after(name)

    assert events[-1].name == "end"
    assert events[-1].data["canceled"] is True
    assert name not in crash.decoded_after


@pytest.mark.req("ORCH-3203", partial="all but one case of a crash")
@pytest.mark.parametrize("last_seen", [None, 6])
def test_a_running_best_effort_task_ends_with_worker_reset(
    crash: Crash, last_seen: int | None
) -> None:
    events = crash.after("best effort", last_seen)

    assert events[-1].name == "error"
    assert events[-1].data["code"] == "WORKER_RESET"
    assert events[-1].data["retriable"] is True
    assert [event.name for event in events if event.terminal] == ["error"]
    assert not [event for event in events if event.name == "token"]
    assert "best effort" not in crash.decoded_after


@pytest.mark.req("ORCH-3024", partial="all but one case of a repeated id")
@pytest.mark.req("ORCH-3203", partial="all but one case of a crash")
@pytest.mark.parametrize("name", ["finished", "strict", "queued 1", "cancelled while waiting"])
def test_the_same_body_after_the_crash_gives_the_same_202(crash: Crash, name: str) -> None:
    with crash.service.probe() as probe:
        again = probe.post("/v1/tasks", crash.documents[name])
        other = probe.post("/v1/tasks", crash.documents[name] | {"max_tokens": 3})

    assert again.status == 202
    assert again.body == crash.promises[name].body
    assert other.status == 409
    assert crash.decoded_after.count(name) <= 1


# --- many crashes at moments nobody chose -------------------------------------------------------

KILLS = 4
CLIENTS = 4


@pytest.mark.req("ORCH-3203", "ORCH-3024")
@pytest.mark.req("ORCH-3051", partial="priority inversion under load")
def test_every_task_that_was_answered_202_ends_exactly_once_whenever_it_is_killed(
    tmp_path: Path,
) -> None:
    moments = random.Random(20260712)
    accepted: list[dict[str, Any]] = []
    pool_queue = {"capacity": 1000, "full_policy": "reject"}
    with GatedEngine(slots=3) as engine:
        pool = external_pool(engine.url, queue=pool_queue)
        with ServiceProcess(tmp_path, pool, journal={"sync": "normal"}) as service:
            for _ in range(KILLS):
                # Some tasks end, some run, some wait when the kill comes.
                engine.allow(moments.choice((0, 4, NO_GATE)))
                enough = len(accepted) + moments.randrange(3, 60)
                clients = [
                    threading.Thread(target=_submit_until_killed, args=(service, accepted))
                    for _ in range(CLIENTS)
                ]
                for client in clients:
                    client.start()
                _wait_for(accepted, enough)
                service.kill()
                for client in clients:
                    client.join(20)
                service.restart()
            engine.allow()

            with service.probe() as probe:
                streams = [probe.stream(document["task_id"]).rest() for document in accepted]

    assert len(accepted) > KILLS * 3
    for document, events in zip(accepted, streams, strict=True):
        kept = numbered(events)
        assert [event.id for event in kept] == [*range(1, 13)]
        assert [event.name for event in events if event.terminal] == ["end"]
        assert text_of(kept) == undisturbed(document)


def _wait_for(accepted: list[dict[str, Any]], count: int) -> None:
    wait_until(lambda: len(accepted) >= count, 20, f"{count} tasks are admitted")


def _submit_until_killed(service: ServiceProcess, accepted: list[dict[str, Any]]) -> None:
    """Submit one task after the other until the service is gone."""
    try:
        with service.probe() as probe:
            while True:
                document = task(MODEL, max_tokens=10)
                if probe.post("/v1/tasks", document).status == 202:
                    accepted.append(document)
    except (ProbeError, OSError):
        return


# --- a stop that is no crash --------------------------------------------------------------------

SHUTDOWN_MS = 4000


@pytest.mark.req("ORCH-3203", partial="all but one case of a crash")
@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster")
def test_sigterm_lets_running_tasks_finish_and_waiting_streams_resume_after_the_restart(
    tmp_path: Path,
) -> None:
    with GatedEngine(slots=1) as engine:
        limits = {"shutdown_ms": SHUTDOWN_MS}
        with ServiceProcess(tmp_path, external_pool(engine.url), server=limits) as service:
            engine.hold(3)
            running, waiting = task(MODEL, prompt="running"), task(MODEL, prompt="waiting")
            with service.probe() as one, service.probe() as two:
                for document in (running, waiting):
                    assert one.post("/v1/tasks", document).status == 202
                stream = one.stream(running["task_id"])
                early = stream.take(4)
                idle = two.stream(waiting["task_id"])
                service.terminate()
                # The stream of what waits ends properly, without a terminal event.
                while_waiting = idle.rest()
                engine.allow()
                ran = early + numbered(stream.rest())
            status = service.wait_exit(SHUTDOWN_MS / 1000)
            listens = not refused(service)
            service.restart()
            with service.probe() as probe:
                resumed = numbered(probe.stream(waiting["task_id"]).rest())
                kept = numbered(probe.stream(running["task_id"]).rest())

    assert status == 0
    assert not listens
    assert while_waiting == []
    assert idle.complete
    assert ran[-1].name == "end"
    assert text_of(ran) == undisturbed(running)
    assert [event.raw for event in kept] == [event.raw for event in ran]
    assert text_of(resumed) == undisturbed(waiting)


@pytest.mark.req("ORCH-3203", partial="all but one case of a crash")
@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster")
def test_sigterm_ends_in_time_although_a_task_does_not_and_it_resumes_byte_for_byte(
    tmp_path: Path,
) -> None:
    with GatedEngine(slots=1) as engine:
        limits = {"shutdown_ms": SHUTDOWN_MS // 2}
        with ServiceProcess(tmp_path, external_pool(engine.url), server=limits) as service:
            engine.hold(3)
            document = task(MODEL)
            with service.probe() as probe:
                assert probe.post("/v1/tasks", document).status == 202
                stream = probe.stream(document["task_id"])
                early = stream.take(4)
                service.terminate()
                rest = numbered(stream.rest())
            status = service.wait_exit(SHUTDOWN_MS / 2000 + 0.5)
            engine.wait_busy(0)
            engine.allow()
            service.restart()
            with service.probe() as probe:
                resumed = numbered(probe.stream(document["task_id"], 4).rest())

    assert status == 0
    assert rest == []
    assert text_of(early + resumed) == undisturbed(document)
    assert [event.id for event in early + resumed] == [*range(1, 11)]


@pytest.mark.req("ORCH-3203", partial="all but one case of a crash")
def test_a_second_service_on_the_same_state_refuses_to_start(tmp_path: Path) -> None:
    with GatedEngine() as engine, ServiceProcess(tmp_path, external_pool(engine.url)) as first:
        second = ServiceProcess(tmp_path / "second", external_pool(engine.url))
        second.config["server"]["state_dir"] = str(first.state_dir)
        with pytest.raises(AssertionError, match="did not start"):
            second.start()
        status = second.wait_exit(10)
        with first.probe() as probe:
            still_serves = probe.post("/v1/tasks", task(MODEL)).status

    assert status != 0
    assert str(first.pid) in second.log_text()
    assert still_serves == 202
