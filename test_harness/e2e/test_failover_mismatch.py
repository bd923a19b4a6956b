"""A second replica that says something else: none of its bytes may reach the client (ORCH-3201)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness_kit.gated_engine import GatedEngine, words_by_seed
from harness_kit.http_probe import Event, numbered, task, text_of
from harness_kit.service_process import CONTROL_KEY, MODEL, ServiceProcess, external_pool

TOKENS = 20
SENT = 5  # tokens the client has when the first replica dies


def _same(words: list[str]) -> list[str]:
    return words


def _other(words: list[str]) -> list[str]:
    return words[: SENT - 2] + [" wrong"] * (TOKENS - SENT + 2)


def _other_at_once(words: list[str]) -> list[str]:
    return [" wrong"] * TOKENS


def _shorter(words: list[str]) -> list[str]:
    return words[: SENT - 1]


def _cut_elsewhere(words: list[str]) -> list[str]:
    text = "".join(words)
    return [text[at : at + 7] for at in range(0, len(text), 7)]


SECOND_RUN = {
    "same": _same,
    "other": _other,
    "other at once": _other_at_once,
    "shorter": _shorter,
    "cut elsewhere": _cut_elsewhere,
}
MISMATCHES = ("other", "other at once", "shorter")


def second_replica(prompt: str, seed: int, count: int) -> list[str]:
    return SECOND_RUN[prompt](words_by_seed(prompt, seed, count))


@dataclass(frozen=True)
class Failover:
    service: ServiceProcess
    streams: dict[str, list[Event]]


@pytest.fixture(scope="module")
def failover(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Failover]:
    """All tasks run on the first replica, which dies while only the second is there for them."""
    slots = len(SECOND_RUN)
    directory = tmp_path_factory.mktemp("mismatch")
    with (
        GatedEngine(slots=slots) as first,
        GatedEngine(slots=slots, script=second_replica) as other,
    ):
        other.loading = True
        pool = external_pool(first.url, other.url)
        with ServiceProcess(directory, pool) as service, service.probe() as probe:
            first.hold(SENT)
            documents = {name: task(MODEL, prompt=name, max_tokens=TOKENS) for name in SECOND_RUN}
            for document in documents.values():
                assert probe.post("/v1/tasks", document).status == 202
            readers = {name: service.probe() for name in SECOND_RUN}
            streams = {
                name: reader.stream(documents[name]["task_id"]) for name, reader in readers.items()
            }
            events = {name: stream.take(SENT + 1) for name, stream in streams.items()}
            other.loading = False
            service.wait_metric("replica_ready", 2)
            first.crash()
            for name, stream in streams.items():
                events[name] += stream.rest()
                readers[name].close()
            yield Failover(service, events)


@pytest.mark.req("ORCH-3201")
@pytest.mark.parametrize("name", MISMATCHES)
def test_a_mismatch_ends_the_stream_and_sends_nothing_of_the_second_run(
    failover: Failover, name: str
) -> None:
    events = numbered(failover.streams[name])

    assert text_of(events) == "".join(words_by_seed(name, 42, TOKENS)[:SENT])
    assert [event.name for event in events] == ["started", *["token"] * SENT, "error"]
    assert events[-1].id == SENT + 2
    assert events[-1].data["code"] == "WORKER_RESET"
    assert events[-1].data["retriable"] is True


@pytest.mark.req("ORCH-3201", partial="all but one case of a failover")
@pytest.mark.parametrize("name", ["same", "cut elsewhere"])
def test_equal_text_goes_on_however_the_second_replica_cuts_it(
    failover: Failover, name: str
) -> None:
    events = failover.streams[name]

    assert text_of(events) == "".join(words_by_seed(name, 42, TOKENS))
    kept = numbered(events)
    assert [event.id for event in kept] == [*range(1, len(kept) + 1)]
    assert kept[-1].name == "end"
    assert kept[-1].data["tokens_out"] == len(kept) - 2
    assert [event.data["failovers"] for event in events if event.name == "metrics"][-1] == 1


@pytest.mark.req("ORCH-3201", partial="all but the counters")
@pytest.mark.req("ORCH-3028", partial="GPU and VRAM use, SLO attainment")
def test_mismatches_and_resumptions_are_counted(failover: Failover) -> None:
    counted = {
        outcome: failover.service.metric("failovers_total", outcome=outcome)
        for outcome in ("resumed", "mismatch", "lost")
    }

    # Each loss of a worker is counted where it goes on, and once more where the bytes differ.
    assert counted == {"resumed": len(SECOND_RUN), "mismatch": len(MISMATCHES), "lost": 0}
    recovered = len(SECOND_RUN) - len(MISMATCHES)
    assert failover.service.metric("failover_recovery_ms_count") == recovered
    assert len(failover.service.wait_log("task.failover_mismatch", 3)) == len(MISMATCHES)
    lines = failover.service.wait_log("task.failed_over", recovered)
    assert [line["replica_id"] for line in lines] == ["r1"] * recovered
    with failover.service.probe(CONTROL_KEY) as control:
        health = control.get("/v1/pools/p0/health").json()
    counts = {r["id"]: (r["failovers"], r["mismatches"]) for r in health["replicas"]}
    assert counts == {"r0": (0, 0), "r1": (recovered, len(MISMATCHES))}
