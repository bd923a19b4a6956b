"""Real llama.cpp processes are drained, reloaded, tried as canaries and rolled back under load.

The issue's own "done when": no task lost, no error to a client, every strict stream byte for byte
what an undisturbed run gives; a broken model changes nothing.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from harness_kit.http_probe import Event, numbered, task, text_of
from harness_kit.service_process import CONTROL_KEY, POOL, ServiceProcess, launched_pool
from harness_kit.waiting import wait_until
from pool_managerd.model_files import find_model
from pool_managerd.processes import start_ticks

MODEL = "builtin:smollm2"
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "top_k": 40}
PROMPT = "Once upon a time, in a small village by the sea,"
# Loading the model, and decoding on a core that others use as well.
SLOW_S = 60.0
STREAMS = 40
SEEDS = (21, 22, 23, 24)
CANARY = f"{POOL}.canary"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path_factory.mktemp("rollouts"), launched_pool(2)) as running:
        yield running


@pytest.fixture
def ready(service: ServiceProcess) -> ServiceProcess:
    """Both engines are up, whatever the tests before have left."""
    service.wait_metric("replica_ready", 2, SLOW_S)
    return service


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same model by another reference."""
    link = tmp_path_factory.mktemp("model") / "copy.gguf"
    link.symlink_to(find_model(MODEL).path)
    return f"file:{link}"


def order(service: ServiceProcess, name: str, **body: Any) -> dict[str, Any]:
    """An operator's order, which is accepted; the pool's health."""
    with service.probe(CONTROL_KEY) as probe:
        bodiless = name in ("promote", "rollback")
        answer = probe.post(f"/v1/pools/{POOL}/{name}", None if bodiless else body)
    assert answer.status == 202, answer
    return dict(answer.json())


def health(service: ServiceProcess) -> dict[str, Any]:
    with service.probe(CONTROL_KEY) as probe:
        return dict(probe.get(f"/v1/pools/{POOL}/health").json())


def wait_phase(service: ServiceProcess, phase: str) -> None:
    wait_until(lambda: health(service)["reload"]["phase"] == phase, SLOW_S, f"phase {phase}")


def states(service: ServiceProcess) -> dict[str, str]:
    return {replica["id"]: replica["state"] for replica in health(service)["replicas"]}


def story(seed: int, max_tokens: int = 10, **fields: Any) -> dict[str, Any]:
    fields = {"deadline_ms": 120_000, "sampling": SAMPLED, **fields}
    return task(MODEL, prompt=PROMPT, max_tokens=max_tokens, seed=seed, **fields)


def told(service: ServiceProcess, document: dict[str, Any]) -> list[Event]:
    """All events of a task that was admitted."""
    with service.probe() as probe:
        return probe.stream(document["task_id"]).rest()


def undisturbed(service: ServiceProcess, seed: int, max_tokens: int = 10) -> str:
    """The text of a run that nobody disturbs."""
    document = story(seed, max_tokens)
    with service.probe() as probe:
        probe.submit(document)
    events = told(service, document)
    assert events[-1].name == "end"
    return text_of(events)


class Customer:
    """Somebody who submits one small task after another, and notes every one that went wrong."""

    def __init__(self, service: ServiceProcess) -> None:
        self._service = service
        self._stop = threading.Event()
        self.served = 0
        self.complaints: list[str] = []
        self._thread = threading.Thread(target=self._shop)

    def __enter__(self) -> Customer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(SLOW_S)
        assert not self._thread.is_alive()

    def _shop(self) -> None:
        with self._service.probe() as probe:
            while not self._stop.is_set():
                document = story(31, 2)
                answer = probe.post("/v1/tasks", document)
                if answer.status != 202:
                    self.complaints.append(str(answer))
                    continue
                end = probe.stream(document["task_id"]).rest()[-1]
                if end.name != "end":
                    self.complaints.append(str(end))
                self.served += 1


@pytest.mark.req("ORCH-2102", "OC-CTRL-2003", "ORCH-3031", partial="the configuration's reload")
def test_forty_streams_under_way_and_a_client_who_goes_on_notice_nothing_of_a_reload(
    ready: ServiceProcess, copy: str
) -> None:
    expected = {seed: undisturbed(ready, seed) for seed in SEEDS}
    before = states(ready)
    documents = [story(SEEDS[n % len(SEEDS)]) for n in range(STREAMS)]
    with ready.probe() as probe:
        for document in documents:
            probe.submit(document)

    with Customer(ready) as customer:
        order(ready, "reload", new_model_ref=copy)
        wait_phase(ready, "done")
        served = customer.served
        wait_until(lambda: customer.served > served + 1, SLOW_S, "a task after the switch")
    streams = [told(ready, document) for document in documents]

    assert customer.complaints == []
    assert [text_of(events) for events in streams] == [expected[d["seed"]] for d in documents]
    assert all(numbered(events)[-1].name == "end" for events in streams)
    after = health(ready)
    assert after["model_ref"] == copy
    assert {replica["model_ref"] for replica in after["replicas"]} == {copy}
    assert not set(before) & set(states(ready))
    assert set(ready.engine_pids()) == set(states(ready))


@pytest.mark.req("ORCH-2102", "OC-CTRL-2003", partial="a reload that succeeds")
def test_a_broken_model_changes_nothing(ready: ServiceProcess, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF, or so it says")
    expected, before = undisturbed(ready, 21, 40), states(ready)
    served = health(ready)["model_ref"]
    document = story(21, 40)
    with ready.probe() as probe:
        probe.submit(document)

    with Customer(ready) as customer:
        order(ready, "reload", new_model_ref=f"file:{broken}")
        wait_phase(ready, "failed")
    events = told(ready, document)

    assert customer.complaints == []
    assert text_of(events) == expected
    assert (health(ready)["model_ref"], states(ready)) == (served, before)
    assert health(ready)["reload"]["message"]
    assert ready.metric("reloads_total", outcome="failed") == 1


@pytest.mark.req("OC-CTRL-2002")
@pytest.mark.req("ORCH-2101", partial="work that ends before the deadline")
@pytest.mark.req("ORCH-3201", partial="causes other than a drain's deadline, and a mismatch")
def test_a_drain_s_deadline_in_mid_stream_costs_a_strict_task_nothing_but_a_pause(
    ready: ServiceProcess,
) -> None:
    expected, document = undisturbed(ready, 22, 40), story(22, 40)
    with ready.probe() as probe:
        probe.submit(document)
        stream = probe.stream(document["task_id"])
        events = stream.take(8, numbered=False)
        where = [event.data["replica_id"] for event in events if event.name == "metrics"][-1]

        shown = order(ready, "drain", deadline_ms=1, replica_id=where)
        events += stream.rest()

    assert text_of(events) == expected
    assert numbered(events)[-1].name == "end"
    last = [event.data for event in events if event.name == "metrics"][-1]
    assert (last["failovers"], last["replica_id"] != where) == (1, True)
    assert {r["id"]: r["cordoned"] for r in shown["replicas"]}[where] is True
    wait_until(lambda: where not in ready.engine_pids(), SLOW_S, "the engine has stopped")
    assert states(ready)[where] == "Stopped"
    order(ready, "resume", replica_id=where)
    ready.wait_metric("replica_ready", 2, SLOW_S)
    assert states(ready)[where] == "Ready"


@pytest.mark.req("ORCH-3033", partial="a share by label")
def test_a_canary_gets_its_share_and_is_rolled_back_without_a_loss(
    ready: ServiceProcess, copy: str
) -> None:
    served, before = health(ready)["model_ref"], states(ready)
    expected = undisturbed(ready, 23)
    order(ready, "reload", new_model_ref=copy, canary_percent=50)
    wait_phase(ready, "canary")
    documents = [story(23) for _ in range(12)]
    with ready.probe() as probe:
        for document in documents:
            probe.submit(document)

    shown = order(ready, "rollback")
    wait_phase(ready, "rolled_back")
    order(ready, "rollback")  # a second time changes nothing
    streams = [told(ready, document) for document in documents]

    assert shown["reload"]["phase"] == "rolling_back"
    assert [text_of(events) for events in streams] == [expected] * len(documents)
    chosen = sum(is_chosen(f"acme/{document['task_id']}") for document in documents)
    assert 0 < chosen < len(documents)
    # What waited for the canary went back to the pool; what ran there ended there.
    counted = completed(ready, documents)
    assert counted[CANARY] <= chosen
    assert set(counted) <= {POOL, CANARY}
    assert (health(ready)["model_ref"], states(ready)) == (served, before)
    with ready.probe(CONTROL_KEY) as probe:
        assert probe.get(f"/v1/pools/{CANARY}/health").status == 404


@pytest.mark.req("ORCH-3033", partial="a share by label, and the rollback")
def test_a_canary_is_promoted_under_its_load(ready: ServiceProcess, copy: str) -> None:
    expected = undisturbed(ready, 24)
    order(ready, "reload", new_model_ref=copy, canary_percent=50)
    wait_phase(ready, "canary")
    first = [story(24, 2) for _ in range(12)]
    with ready.probe() as probe:
        for document in first:
            probe.submit(document)
    for document in first:
        told(ready, document)
    shares = completed(ready, first)
    documents = [story(24) for _ in range(12)]
    with ready.probe() as probe:
        for document in documents:
            probe.submit(document)

    order(ready, "promote")
    wait_phase(ready, "done")
    streams = [told(ready, document) for document in documents]

    chosen = sum(is_chosen(f"acme/{document['task_id']}") for document in first)
    assert shares == {POOL: len(first) - chosen, CANARY: chosen}
    assert [text_of(events) for events in streams] == [expected] * len(documents)
    assert health(ready)["model_ref"] == copy
    assert {replica["model_ref"] for replica in health(ready)["replicas"]} == {copy}


@pytest.mark.req("ORCH-2102", partial="a reload that succeeds or fails by itself")
def test_a_crash_in_the_middle_of_a_reload_leaves_a_clean_next_start(
    ready: ServiceProcess, copy: str
) -> None:
    order(ready, "reload", new_model_ref=copy)
    wait_until(lambda: len(ready.engine_pids()) > 2, SLOW_S, "new engines beside the old ones")
    pids = ready.engine_pids()

    ready.kill()
    ready.restart()
    ready.wait_metric("replica_ready", 2, SLOW_S)

    assert {name: start_ticks(pid) for name, pid in pids.items()} == dict.fromkeys(pids)
    assert health(ready)["model_ref"] == MODEL
    assert set(states(ready)) == {f"{POOL}-0", f"{POOL}-1"}
    assert undisturbed(ready, 21)


def is_chosen(key: str) -> bool:
    """The documented choice of a canary of 50 %."""
    digest = blake2b(f"{POOL}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < 50


def completed(service: ServiceProcess, documents: list[dict[str, Any]]) -> Counter[str]:
    """How many of these tasks each pool has completed; each of them is completed once."""
    ids = {document["task_id"] for document in documents}
    ends: list[dict[str, Any]] = []

    def all_ended() -> bool:
        ends[:] = [line for line in service.log_lines("task.ended") if line["job_id"] in ids]
        return len(ends) >= len(ids)

    wait_until(all_ended, SLOW_S, "all have ended")
    assert [line["outcome"] for line in ends] == ["completed"] * len(ids)
    return Counter(line["pool_id"] for line in ends)
