"""Where tasks go in a running service: the replica that has read a prompt's beginning, or another.

The fake engines say that they read any prompt in 1 ms and give a token per ms. All long prompts
here have 1088 tokens (4 bytes each) of which 1024 are shared, and one token is decoded: a replica
that has read the beginning saves 1024/1088 ms of 2 ms, 0.47 of the task. With eight slots each that
outweighs three busy ones (0.375) and not four (0.5).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import HttpProbe, task
from harness_kit.service_process import MODEL, ServiceProcess, external_pool, launched_pool
from harness_kit.waiting import wait_until

SLOTS = 8
SHARED = "abc " * 1024
TAIL_TOKENS = 64
# Loading the model, and decoding on cores that others use as well.
SLOW_S = 60.0


def prompt(beginning: str = SHARED) -> str:
    """1088 tokens that begin alike and end in a way of their own."""
    tail = f"{uuid.uuid4().hex[:3]} " * TAIL_TOKENS
    return beginning + tail


@pytest.fixture
def engines() -> Iterator[list[GatedEngine]]:
    with ExitStack() as running:
        yield [running.enter_context(GatedEngine(slots=SLOTS)) for _ in range(2)]


def submit(probe: HttpProbe, model: str = MODEL, **fields: Any) -> str:
    document = task(
        model, **({"ctx": 8192, "max_tokens": 1, "determinism": "best_effort"} | fields)
    )
    answer = probe.post("/v1/tasks", document)
    assert answer.status == 202, answer
    return str(document["task_id"])


def run(service: ServiceProcess, probe: HttpProbe, **fields: Any) -> str:
    """A task from submission to its end; returns the replica that decoded it."""
    return replica_of(service, probe, submit(probe, **fields))


def replica_of(service: ServiceProcess, probe: HttpProbe, task_id: str) -> str:
    """The replica that decodes a task to its end, as its last log line says."""
    assert probe.stream(task_id).rest()[-1].name == "end"
    return str(service.wait_log("task.ended", job_id=task_id)[0]["replica_id"])


def warm_second(probe: HttpProbe, engines: list[GatedEngine]) -> None:
    """r1 has read the shared beginning, r0 another prompt of that size; both are idle again."""
    for engine in engines:
        engine.hold()
    first = submit(probe, prompt=prompt("xyz " * 1024), determinism="strict")
    engines[0].wait_busy(1)
    second = submit(probe, prompt=prompt())
    engines[1].wait_busy(1)
    for engine in engines:
        engine.allow()
    for task_id in (first, second):
        probe.stream(task_id).rest()


@pytest.mark.req("ORCH-3205")
@pytest.mark.req("ORCH-3008", partial="device masks and anti-affinity")
def test_a_shared_prefix_draws_tasks_to_its_replica_until_that_is_much_busier(
    engines: list[GatedEngine], tmp_path_factory: pytest.TempPathFactory
) -> None:
    pool = external_pool(*(engine.url for engine in engines))
    with ServiceProcess(tmp_path_factory.mktemp("prefix"), pool) as service:
        service.wait_metric("replica_ready", 2)
        with service.probe() as probe:
            warm_second(probe, engines)

            alike = run(service, probe, prompt=prompt())
            unlike = run(service, probe, prompt=prompt("ijk " * 1024))
            strict = run(service, probe, prompt=prompt(), determinism="strict")
            cold = run(service, probe, prompt=prompt(), kv_hint="cold")

            for engine in engines:
                engine.hold()
            held = []
            busy = []
            for count in range(1, 6):
                held.append(submit(probe, prompt=prompt()))
                engines[1].wait_busy(min(count, 4))
                engines[0].wait_busy(max(count - 4, 0))
                busy.append([engine.busy for engine in engines])
            for engine in engines:
                engine.allow()
            placed = [replica_of(service, probe, task_id) for task_id in held]

    assert alike == "r1"
    assert [unlike, strict, cold] == ["r0", "r0", "r0"]
    assert busy == [[0, 1], [0, 2], [0, 3], [0, 4], [1, 4]]
    assert placed == ["r1", "r1", "r1", "r1", "r0"]


@pytest.mark.req("ORCH-3205")
def test_without_prefix_reuse_tasks_go_by_load_alone(
    engines: list[GatedEngine], tmp_path_factory: pytest.TempPathFactory
) -> None:
    urls = (engine.url for engine in engines)
    pool = external_pool(*urls, placement={"prefix_reuse": False})
    with ServiceProcess(tmp_path_factory.mktemp("no-prefix"), pool) as service:
        service.wait_metric("replica_ready", 2)
        with service.probe() as probe:
            warm_second(probe, engines)

            alike = run(service, probe, prompt=prompt())

    assert alike == "r0"


@pytest.mark.req("ORCH-3008", partial="all but anti-affinity")
def test_a_tenants_tasks_are_spread_over_nodes(
    engines: list[GatedEngine], tmp_path_factory: pytest.TempPathFactory
) -> None:
    # r0 and r1 are one node: by load alone a third of the tasks would go to each replica.
    with GatedEngine(slots=SLOTS) as third:
        nodes = [(engines[0], "a"), (engines[1], "a"), (third, "b")]
        replicas = [
            {"id": f"r{number}", "url": engine.url, "labels": {"node": node}}
            for number, (engine, node) in enumerate(nodes)
        ]
        pool = external_pool(replicas=replicas, placement={"anti_affinity": ["node"]})
        with ServiceProcess(tmp_path_factory.mktemp("spread"), pool) as service:
            service.wait_metric("replica_ready", 3)
            with service.probe() as probe:
                for engine, _ in nodes:
                    engine.hold()
                held = [submit(probe, prompt="Hello") for _ in range(8)]
                third.wait_busy(4)
                engines[0].wait_busy(2)
                engines[1].wait_busy(2)
                for engine, _ in nodes:
                    engine.allow()
                for task_id in held:
                    probe.stream(task_id).rest()


@pytest.mark.req("ORCH-3205", "ORCH-3009", "ORCH-3022")
def test_on_real_engines_the_prefix_is_really_reused_and_the_kv_in_use_is_a_metric(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model = "builtin:smollm2"
    story = "Once upon a time there was a small village by the sea, and in it lived a cat. " * 20
    with ServiceProcess(tmp_path_factory.mktemp("reuse"), launched_pool(2)) as service:
        service.wait_metric("replica_ready", 2, SLOW_S)
        with service.probe() as probe, service.probe() as occupant:
            # While the first engine is busy the second reads the story.
            fields: dict[str, Any] = {"ctx": 1024, "max_tokens": 200, "determinism": "strict"}
            busy = submit(probe, model, **fields)
            occupant.stream(busy).take(3)
            reader = run(service, probe, model=model, prompt=story, ctx=1024, max_tokens=4)
            other = replica_of(service, probe, busy)
            session_id = str(uuid.uuid4())

            again = run(
                service,
                probe,
                model=model,
                prompt=story + "One day",
                ctx=1024,
                max_tokens=4,
                session_id=session_id,
            )
            session = probe.get(f"/v1/sessions/{session_id}").json()

        assert reader != other
        assert again == reader
        assert session["kv_warmth"] is True
        assert session["kv_bytes"] > 0
        # About 390 of 2048 tokens; asked of the engine once a second.
        wait_until(
            lambda: 0.1 < service.metric("kv_cache_usage_ratio", replica_id=reader) < 0.5,
            SLOW_S,
            "the KV in use is shown",
        )
