"""What is done to the service so that each metric moves, by name, in the order of their doing.

A deed is a context manager: its block is entered at its height. `DEEDS` is what `Stage.perform`
takes; which metric each of them moves says `test_every_metric_moves`.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness_kit import nvml_library
from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import HttpProbe, task
from harness_kit.model_files import gguf_bytes, llama_metadata, llama_tensors
from harness_kit.service_process import CONTROL_KEY, metric_in, model_of
from harness_kit.waiting import wait_until
from metrics_contract.stage import WAIT_S, Deed, Stage
from pool_managerd.model_import import import_file
from pool_managerd.model_store import ModelStore

LATE_AT_ONCE = 5
MIB = 1 << 20


def read(probe: HttpProbe, task_id: str) -> None:
    assert probe.stream(task_id).rest()[-1].terminal


def order(stage: Stage, path: str, body: Any = None) -> None:
    with stage.service.probe(CONTROL_KEY) as control:
        answer = control.post(path, body)
    assert answer.status in (200, 202), answer


def ready_again(stage: Stage, pool_id: str, count: int) -> None:
    stage.service.wait_metric("replica_ready", count, WAIT_S, pool_id=pool_id)


@contextmanager
def preempt(stage: Stage) -> Iterator[None]:
    """An urgent task interrupts a long one. The first deed: by the estimator's first guess, which
    holds until three tasks of a set have ended, the long one takes eight seconds."""
    engine = stage.urgent
    with stage.service.probe() as probe, stage.service.probe() as reader:
        engine.hold(5)
        long = stage.admit(probe, "urgent", priority="batch", max_tokens=400, ctx=2048)
        stream = reader.stream(long)
        stream.take(6)
        read(probe, stage.admit(probe, "urgent", max_tokens=2, deadline_ms=3_000))
        engine.allow()
        stream.rest()
    yield


@contextmanager
def serve(stage: Stage) -> Iterator[None]:
    """A task of each priority is served."""
    with stage.service.probe() as probe:
        for priority in ("interactive", "batch"):
            read(probe, stage.admit(probe, "work", priority=priority, prompt="one two three"))
    yield


@contextmanager
def hold(stage: Stage) -> Iterator[None]:
    """One task decodes, with a reader, and one waits."""
    engine = stage.work
    engine.hold(1)
    with stage.service.probe() as probe, stage.service.probe() as reader:
        running = stage.admit(probe, "work")
        stream = reader.stream(running)
        stream.take(2)
        waiting = stage.admit(probe, "work")
        yield
        engine.allow()
        stream.rest()
        read(probe, waiting)
    engine.wait_busy(0)


@contextmanager
def cancel(stage: Stage) -> Iterator[None]:
    """A task that decodes is cancelled."""
    stage.work.hold(1)
    with stage.service.probe() as probe:
        running = stage.admit(probe, "work")
        stage.work.wait_busy(1)
        assert probe.post(f"/v1/tasks/{running}/cancel").status == 204
        read(probe, running)
    yield
    stage.work.allow()
    stage.work.wait_busy(0)


@contextmanager
def refuse(stage: Stage) -> Iterator[None]:
    """A task comes to a full queue."""
    stage.work.hold(1)
    with stage.service.probe() as probe:
        admitted = [stage.admit(probe, "work") for _ in range(3)]
        assert probe.post("/v1/tasks", task(model_of("work"))).status == 429
        yield
        stage.work.allow()
        for task_id in admitted:
            read(probe, task_id)


@contextmanager
def fail_over(stage: Stage) -> Iterator[None]:
    """The engine under two running tasks dies; they go on at the other one."""
    with stage.service.probe() as probe, stage.service.probe() as reader:
        for engine in stage.pair:
            engine.hold(2)
        admitted = stage.admit(probe, "pair", max_tokens=20)
        stream = reader.stream(admitted)
        stream.take(3)
        (dying,) = (engine for engine in stage.pair if engine.busy)
        dying.crash()
        stage.service.wait_metric("replica_ready", 1, WAIT_S, pool_id="pair")
        for engine in stage.pair:
            engine.allow()
        stream.rest()
        yield
    dying.listen()
    ready_again(stage, "pair", 2)


@contextmanager
def break_pace(stage: Stage) -> Iterator[None]:
    """Interactive tasks miss their objective until the circuit breaker opens."""
    engine: GatedEngine = stage.slow
    with stage.service.probe() as probe:

        def is_open() -> bool:
            engine.hold()
            admitted = [stage.admit(probe, "slow", max_tokens=1) for _ in range(LATE_AT_ONCE)]
            engine.wait_busy(LATE_AT_ONCE)
            engine.allow()
            for task_id in admitted:
                read(probe, task_id)
            return stage.service.metric("admission_breaker_open", pool_id="slow") >= 1

        wait_until(is_open, WAIT_S, "the circuit breaker opens")
    yield


@contextmanager
def use_gpu(stage: Stage) -> Iterator[None]:
    """The engine on GPU 0 takes memory, and decodes; the GPU gets hot, loud and faulty."""
    (pid,) = stage.service.engine_pids().values()
    stage.gpus.runs(0, pid, 300)
    stage.gpus.set(
        0,
        util=77,
        temperature=91,
        power_mw=600_000,
        sm_mhz=900,
        throttle=0x40,
        used_mib=9_000,
        total_mib=90_000,
    )
    with stage.service.probe() as probe:
        decoding = stage.admit(probe, "gpu", max_tokens=400, ctx=2048)
        wait_until(
            lambda: stage.service.metric("kv_cache_usage_ratio", pool_id="gpu") > 0,
            WAIT_S,
            "the engine tells of its KV",
        )
        stage.service.wait_metric("vram_used_bytes", 300 * MIB)
        yield
        assert probe.post(f"/v1/tasks/{decoding}/cancel").status == 204
        read(probe, decoding)


@contextmanager
def run_out_of_memory(stage: Stage) -> Iterator[None]:
    """An engine ends for want of memory, and is started and tested again."""
    (pid,) = stage.service.engine_pids().values()
    tested = stage.service.metric("self_tests_total", pool_id="gpu")
    os.kill(pid, signal.SIGUSR1)
    stage.service.wait_metric("self_tests_total", tested + 1, WAIT_S, pool_id="gpu")
    ready_again(stage, "gpu", 1)
    yield


@contextmanager
def lose_gpu(stage: Stage) -> Iterator[None]:
    """GPU 1, with no engine on it, has a memory error; then GPU 0 does not answer any more. The
    last deed with engines on it: after one more failure they wait long for their next start."""
    stage.gpus.set(1, ecc=2)
    stage.gpus.set(0, lost=nvml_library.LOST)
    stage.service.wait_metric("gpu_lost", 1, WAIT_S, device="0")
    stage.service.wait_metric("gpu_ecc_errors", 2, WAIT_S, device="1")
    stage.service.wait_metric("driver_reset_events_total", 1, WAIT_S, pool_id="gpu")
    yield
    stage.gpus.set(0, lost=None)
    stage.service.wait_metric("gpu_lost", 0, WAIT_S)


@contextmanager
def drain(stage: Stage) -> Iterator[None]:
    """A replica is drained, and taken back."""
    order(stage, "/v1/pools/pair/drain", {"deadline_ms": 60_000, "replica_id": "r1"})
    stage.service.wait_metric("drains_total", 1, WAIT_S, pool_id="pair", outcome="idle")
    yield
    order(stage, "/v1/pools/pair/resume", {"replica_id": "r1"})
    ready_again(stage, "pair", 2)


@contextmanager
def reload(stage: Stage) -> Iterator[None]:
    """A pool gets another model."""
    order(stage, "/v1/pools/gpu/reload", {"new_model_ref": "file:/models/other.gguf"})
    stage.service.wait_metric("reloads_total", 1, WAIT_S, pool_id="gpu", outcome="switched")
    yield


@contextmanager
def reload_configuration(stage: Stage) -> Iterator[None]:
    """The configuration is read again."""
    order(stage, "/v1/config/reload", {})
    yield


@contextmanager
def register(stage: Stage) -> Iterator[None]:
    """A pool manager registers, without an engine."""
    report = {"lease_ms": 60_000, "epoch": "0" * 16, "replicas": []}
    with stage.service.probe(CONTROL_KEY) as control:
        body = bytes(str(report).replace("'", '"'), "ascii")
        fields = {"Content-Type": "application/json"}
        answer = control.request("PUT", "/v1/pool-managers/m0", body, fields)
    assert answer.status == 200, answer
    yield


@contextmanager
def fill_memory(stage: Stage) -> Iterator[None]:
    """A quarter of a gigabyte of the host's memory is used."""
    before = stage.service.metric("host_ram_used_bytes")
    used = bytearray(os.urandom(MIB)) * 256
    wait_until(
        lambda: stage.service.metric("host_ram_used_bytes") != before, WAIT_S, "the gauge moves"
    )
    yield
    del used


@contextmanager
def write_much(stage: Stage) -> Iterator[None]:
    """Tasks with prompts of megabytes that no compression makes small, until the journal's files
    have no room left from earlier ones."""
    before = stage.service.metric("journal_bytes")
    with stage.service.probe() as probe:

        def grown() -> bool:
            read(probe, stage.admit(probe, "work", prompt=os.urandom(3 * MIB // 2).hex()))
            return stage.service.metric("journal_bytes") > before

        wait_until(grown, WAIT_S, "the journal grows")
    yield


@contextmanager
def fill_disk(stage: Stage) -> Iterator[str]:
    """A task does not fit on the disk: its admission cannot become durable. The journal finds out
    within a second that smaller records do, so the scrape that saw it failing is the deed's."""
    pid, sizes = stage.service.pid, resource.RLIMIT_FSIZE
    soft, hard = resource.prlimit(pid, sizes)
    large = os.urandom(3 * MIB // 2).hex()  # no compression helps
    scrape = ""
    resource.prlimit(pid, sizes, (2 * MIB, hard))
    try:
        with stage.service.probe() as probe:

            def failing() -> bool:
                nonlocal scrape
                document = task(model_of("work"), prompt=large, ctx=8192)
                answer = probe.post("/v1/tasks", document)
                assert answer.status == 500, answer
                scrape = stage.service.metrics()
                return metric_in(scrape, "journal_failing") == 1

            wait_until(failing, WAIT_S, "the journal fails")
            yield scrape
    finally:
        resource.prlimit(pid, sizes, (soft, hard))
    stage.service.wait_metric("journal_failing", 0, WAIT_S)


@contextmanager
def restart(stage: Stage) -> Iterator[None]:
    """The service starts anew, with a model in its store and no leave to run engines on the CPU."""
    service = stage.service
    service.stop()
    model = service.directory / "small.gguf"
    model.write_bytes(gguf_bytes(llama_metadata(), llama_tensors()))
    import_file(ModelStore(service.state_dir / "models", None), model)
    service.config["platform"]["cpu_carve_out"] = False
    service.start(until_ready=False)
    service.wait_metric("model_store_bytes", model.stat().st_size, WAIT_S)
    yield


DEEDS: dict[str, Deed] = {
    deed.__name__: deed
    for deed in (
        preempt,
        serve,
        hold,
        cancel,
        refuse,
        fail_over,
        break_pace,
        use_gpu,
        run_out_of_memory,
        drain,
        reload,
        reload_configuration,
        register,
        fill_memory,
        write_much,
        lose_gpu,
    )
}
# What no other client may be about for.
DEEDS_ALONE: dict[str, Deed] = {deed.__name__: deed for deed in (fill_disk, restart)}
