"""Real llama.cpp processes under the service: one dies in mid-stream, then the service itself does.

The issue's own "done when": what the client reads is byte for byte what an undisturbed run gives.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from harness_kit.http_probe import numbered, replica_of, task, text_of
from harness_kit.service_process import ServiceProcess, launched_pool

MODEL = "builtin:smollm2"
TOKENS = 80
# Greedy text may repeat itself; a sampled one shows that seed and sampler state start anew as well.
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "top_k": 40}
PROMPT = "Once upon a time, in a small village by the sea,"
# Loading the model, and decoding on a core that others use as well.
SLOW_S = 60.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path_factory.mktemp("failover"), launched_pool(2)) as running:
        yield running


@pytest.fixture
def ready(service: ServiceProcess) -> ServiceProcess:
    """Both engines are up."""
    service.wait_metric("replica_ready", 2, SLOW_S)
    return service


def story(seed: int, **fields: Any) -> dict[str, Any]:
    return task(MODEL, prompt=PROMPT, max_tokens=TOKENS, seed=seed, sampling=SAMPLED, **fields)


def undisturbed(service: ServiceProcess, seed: int) -> str:
    """The text of a run that nobody disturbs."""
    document = story(seed)
    with service.probe() as probe:
        probe.submit(document)
        events = probe.stream(document["task_id"]).rest()
    assert events[-1].name == "end"
    return text_of(events)


@pytest.mark.req("ORCH-3201", "ORCH-3023")
@pytest.mark.req("ORCH-3045", partial="engines side by side, which is the test beside it")
@pytest.mark.req("ORCH-3050", partial="the other three engines")
@pytest.mark.req("ORCH-3051", partial="priority inversion under load")
def test_an_engine_killed_in_mid_stream_costs_a_strict_task_nothing_but_a_pause(
    ready: ServiceProcess,
) -> None:
    expected = undisturbed(ready, seed=11)
    document = story(11)
    with ready.probe() as probe:
        probe.submit(document)
        stream = probe.stream(document["task_id"])
        events = [*stream.through("metrics"), *stream.take(12)]

        os.kill(ready.engine_pids()[replica_of(events)], signal.SIGKILL)
        events += stream.rest()

    assert text_of(events) == expected
    kept = numbered(events)
    assert [event.id for event in kept] == [*range(1, TOKENS + 3)]
    assert kept[-1].name == "end"
    metrics = [event.data for event in events if event.name == "metrics"]
    assert metrics[0]["failovers"] == 0
    assert metrics[-1]["failovers"] == 1
    assert metrics[-1]["kv_migrated"] is False
    assert metrics[-1]["kv_warmth"] is False
    assert metrics[-1]["replica_id"] != metrics[0]["replica_id"]
    assert ready.metric("failovers_total", outcome="resumed") == 1
    ready.wait_metric("replica_ready", 2, SLOW_S)
    assert ready.metric("replica_restarts_total") >= 1


@pytest.mark.req("ORCH-3201", partial="strict tasks")
def test_an_engine_killed_in_mid_stream_resets_a_best_effort_task(ready: ServiceProcess) -> None:
    document = story(12, determinism="best_effort")
    with ready.probe() as probe:
        probe.submit(document)
        stream = probe.stream(document["task_id"])
        events = [*stream.through("metrics"), *stream.take(8)]

        os.kill(ready.engine_pids()[replica_of(events)], signal.SIGKILL)
        events += stream.rest()

    assert events[-1].name == "error"
    assert events[-1].data["code"] == "WORKER_RESET"
    assert events[-1].data["retriable"] is True
    assert events[-1].data["engine"] == "llamacpp"
    tokens = [event for event in events if event.name == "token"]
    assert events[-1].id == len(tokens) + 2


@pytest.mark.req("ORCH-3045")
@pytest.mark.req("ORCH-3050", partial="the other three engines")
@pytest.mark.req("ORCH-3058", partial="all but sampling of one model")
def test_both_engines_say_the_same_at_once_and_alone(ready: ServiceProcess) -> None:
    expected = undisturbed(ready, seed=13)
    documents = [story(13) for _ in range(4)]  # two on each engine
    with ready.probe() as probe:
        for document in documents:
            probe.submit(document)
        streams = [probe.stream(document["task_id"]).rest() for document in documents]

    assert [text_of(events) for events in streams] == [expected] * 4
    started = ready.metrics().splitlines()
    replicas = {line for line in started if line.startswith("tokens_out_total{")}
    assert len(replicas) == 2


@pytest.mark.req("ORCH-3203", partial="all but one case of a crash")
@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster")
@pytest.mark.req("ORCH-3201", partial="a worker that dies while the service lives")
def test_the_service_killed_in_mid_stream_goes_on_after_its_restart_byte_for_byte(
    ready: ServiceProcess,
) -> None:
    expected = undisturbed(ready, seed=14)
    document, waiting = story(14), story(15)
    with ready.probe() as probe:
        probe.submit(document)
        probe.submit(waiting)
        stream = probe.stream(document["task_id"])
        seen = numbered(stream.take(20))
        engines = set(ready.engine_pids().values())
        ready.kill()
        seen += numbered(stream.until_cut())
    ready.restart()
    with ready.probe() as probe:
        rest = numbered(probe.stream(document["task_id"], seen[-1].id).rest())
        whole = numbered(probe.stream(document["task_id"]).rest())
        other = probe.stream(waiting["task_id"]).rest()

    assert 20 <= len(seen) < TOKENS
    assert text_of(seen + rest) == expected
    assert [event.id for event in seen + rest] == [*range(1, TOKENS + 3)]
    assert text_of(whole) == expected
    assert text_of(other) == undisturbed(ready, seed=15)
    # No engine of the killed service is left beside the new ones.
    assert not [pid for pid in engines if _alive(pid)]


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
