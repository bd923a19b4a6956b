"""The watchdog as clients see it: stuck and endless tasks end typed, their neighbours go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import HttpProbe, numbered, task
from harness_kit.service_process import ServiceProcess, external_pool, model_of

IDLE_MS = 700
WALL_MS = 4000  # the hub's metrics events, one a second, tell how late it is
FAR_MS = 60_000


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, GatedEngine]]:
    with GatedEngine(slots=2) as idle, GatedEngine(slots=2) as wall:
        yield {"idle": idle, "wall": wall}


@pytest.fixture(scope="module")
def service(
    engines: dict[str, GatedEngine], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    timeouts = {
        "idle": {"wall_ms": FAR_MS, "idle_ms": IDLE_MS},
        "wall": {"wall_ms": WALL_MS, "idle_ms": FAR_MS},
    }
    pools = [
        external_pool(engine.url, pool_id=name, model=model_of(name), timeouts=timeouts[name])
        for name, engine in engines.items()
    ]
    with ServiceProcess(tmp_path_factory.mktemp("timeouts"), *pools) as running:
        for name in engines:
            running.wait_metric("replica_ready", 1, pool_id=name)
        yield running


@pytest.fixture
def probe(service: ServiceProcess) -> Iterator[HttpProbe]:
    with service.probe() as client:
        yield client


def admit(probe: HttpProbe, pool: str, **fields: Any) -> str:
    document = task(model_of(pool), **fields)
    assert probe.post("/v1/tasks", document).status == 202
    return str(document["task_id"])


@pytest.mark.req("ORCH-3016")
@pytest.mark.req("OC-CORE-1022", partial="the wall time, which is the test beside it")
@pytest.mark.req("ORCH-3017", partial="a cancel by the caller")
@pytest.mark.parametrize(
    ("pool", "determinism"), [("idle", "strict"), ("idle", "best_effort"), ("wall", "strict")]
)
def test_a_stuck_task_ends_with_decode_timeout_and_its_slot_serves_the_next(
    service: ServiceProcess,
    engines: dict[str, GatedEngine],
    probe: HttpProbe,
    pool: str,
    determinism: str,
) -> None:
    engine = engines[pool]
    engine.hold(2)
    task_id = admit(probe, pool, determinism=determinism)
    events = numbered(probe.stream(task_id).rest())
    engine.wait_busy(0)
    engine.allow()
    next_ones = [admit(probe, pool) for _ in range(3)]
    ends = [probe.stream(next_id).rest()[-1] for next_id in next_ones]

    assert [event.name for event in events] == ["started", "token", "token", "error"]
    assert events[-1].id == 4
    assert events[-1].data["code"] == "DECODE_TIMEOUT"
    assert events[-1].data["retriable"] is True
    assert f"timeouts.{pool}_ms" in events[-1].data["message"]
    assert [end.name for end in ends] == ["end", "end", "end"]
    assert [line for line in service.log_lines() if line["level"] == "error"] == []


@pytest.mark.req("ORCH-3016", "OC-CORE-1022")
def test_a_task_beyond_its_wall_time_does_not_take_its_neighbours_along(
    service: ServiceProcess, engines: dict[str, GatedEngine], probe: HttpProbe
) -> None:
    engine = engines["wall"]
    engine.hold(2)
    endless = admit(probe, "wall")
    stream = probe.stream(endless)
    stream.until("metrics")
    stream.until("metrics")  # a second of its time is over
    with service.probe() as other:
        neighbour = admit(other, "wall", determinism="best_effort")
        beside = other.stream(neighbour)
        early = beside.take(3)
        late = numbered(stream.rest())
        engine.allow()
        rest = numbered(beside.rest())

    assert late[-1].data["code"] == "DECODE_TIMEOUT"
    assert len(early) == 3
    assert rest[-1].name == "end"
    assert rest[-1].data["tokens_out"] == 8
