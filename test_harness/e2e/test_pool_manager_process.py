"""Pool managers as processes of their own, with real llama.cpp: served, killed, stopped, orphaned.

What a client reads is byte for byte what an undisturbed run gives, whatever becomes of managers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness_kit.http_probe import replica_of, task, text_of
from harness_kit.manager_process import ManagerProcess
from harness_kit.model_files import gguf_bytes, llama_metadata, llama_tensors
from harness_kit.service_process import CONTROL_KEY, POOL, ServiceProcess, launched_pool
from harness_kit.waiting import wait_until
from pool_managerd.processes import start_ticks

MODEL = "builtin:smollm2"
TOKENS = 80
PROMPT = "Once upon a time, in a small village by the sea,"
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "top_k": 40}
# Loading the model, and decoding on cores that others use as well.
SLOW_S = 60.0


def managed_pool() -> dict[str, Any]:
    """A pool of the small model whose engines come from managers."""
    pool = launched_pool(1)
    del pool["launch"]
    return pool | {"managed": True}


@contextmanager
def orchestrator(directory: Path) -> Iterator[ServiceProcess]:
    """The service with that pool, on a port that it keeps over a restart; no replica yet."""
    service = ServiceProcess(directory / "service", managed_pool())
    try:
        service.start(until_ready=False)
        service.config["server"]["port"] = service.port
        yield service
    finally:
        service.kill()


def manager(
    directory: Path, service: ServiceProcess, name: str = "m0", **options: Any
) -> ManagerProcess:
    """A manager with one engine for the pool."""
    url = f"http://127.0.0.1:{service.port}"
    return ManagerProcess(directory / name, url, launched_pool(1), name=name, **options)


def story(seed: int, tokens: int = TOKENS) -> dict[str, Any]:
    return task(MODEL, prompt=PROMPT, max_tokens=tokens, seed=seed, sampling=SAMPLED)


def undisturbed(service: ServiceProcess, seed: int) -> str:
    """The text of a run that nobody disturbs."""
    document = story(seed)
    with service.probe() as probe:
        probe.submit(document)
        return text_of(probe.stream(document["task_id"]).rest())


@pytest.mark.req("ORCH-3201", partial="causes other than a killed host, and a mismatch")
def test_a_manager_killed_in_mid_stream_costs_a_strict_task_nothing(tmp_path: Path) -> None:
    with (
        orchestrator(tmp_path) as service,
        manager(tmp_path, service, "m0") as first,
        manager(tmp_path, service, "m1") as second,
    ):
        managing = first.wait_managing()
        service.wait_metric("replica_ready", 2, SLOW_S)
        expected = undisturbed(service, 21)
        engines = {"m0.p0-0": first.engine_pids(), "m1.p0-0": second.engine_pids()}
        document = story(21)
        with service.probe() as probe:
            probe.submit(document)
            stream = probe.stream(document["task_id"])
            events = [*stream.through("metrics"), *stream.take(12)]
            name = replica_of(events)

            {"m0.p0-0": first, "m1.p0-0": second}[name].kill()
            events += stream.rest()
        (pid,) = engines[name].values()
        wait_until(lambda: start_ticks(pid) is None, SLOW_S, "its engine died with it")

        assert text_of(events) == expected
        assert (managing["id"], managing["pools"]) == ("m0", [POOL])
        assert managing["unknown_pools"] == []
        assert service.metric("pool_managers_registered") == 2  # its lease has not run out
        service.wait_metric("replica_ready", 1, SLOW_S)


@pytest.mark.req("ORCH-3203", partial="engines of the service's own")
def test_a_restarted_orchestrator_gets_its_engines_back_and_serves_what_was_admitted(
    tmp_path: Path,
) -> None:
    with orchestrator(tmp_path) as service, manager(tmp_path, service) as only:
        service.wait_metric("replica_ready", 1, SLOW_S)
        expected = undisturbed(service, 22)
        engines = only.engine_pids()
        document = story(22)
        with service.probe() as probe:
            probe.submit(document)
            probe.stream(document["task_id"]).take(8, numbered=True)
            service.kill()

        service.restart()
        with service.probe() as probe:
            events = probe.stream(document["task_id"]).rest()
        service.wait_log("manager.registered", 2)

        assert text_of(events) == expected
        assert only.engine_pids() == engines  # they ran on
        assert len(service.log_lines("manager.registered")) == 2  # once with each


@pytest.mark.req("ORCH-2101", partial="engines of the service's own")
def test_sigterm_lets_a_stream_end_on_its_engine_and_leaves_nothing(tmp_path: Path) -> None:
    with orchestrator(tmp_path) as service, manager(tmp_path, service) as only:
        service.wait_metric("replica_ready", 1, SLOW_S)
        expected = undisturbed(service, 23)
        pids = list(only.engine_pids().values())
        document = story(23)
        with service.probe() as probe:
            probe.submit(document)
            stream = probe.stream(document["task_id"])
            events = stream.take(4, numbered=False)
            only.terminate()
            events += stream.rest()
        status = only.wait_exit(SLOW_S)
        with service.probe(CONTROL_KEY) as probe:
            managers = probe.get("/v1/pool-managers").json()

        assert text_of(events) == expected
        assert [e.data["failovers"] for e in events if e.name == "metrics"][-1] == 0
        assert status == 0
        assert [pid for pid in pids if start_ticks(pid) is not None] == []
        assert managers == []
        service.wait_metric("replica_ready", 0, SLOW_S)


@pytest.mark.req("OC-POOL-3003", partial="engines of the service's own")
def test_why_a_managers_engine_is_not_ready_is_the_pools_state_and_cause(tmp_path: Path) -> None:
    model = tmp_path / "cut.gguf"
    model.write_bytes(gguf_bytes(llama_metadata(), llama_tensors())[:-1])
    pool = launched_pool(1, model=f"file:{model}")
    with (
        orchestrator(tmp_path) as service,
        ManagerProcess(tmp_path / "m0", f"http://127.0.0.1:{service.port}", pool) as only,
        service.probe() as probe,
    ):
        only.wait_managing()
        health: dict[str, Any] = {}

        def told() -> bool:
            health.update(probe.get(f"/v1/pools/{POOL}/health").json())
            return "last_error" in health and health["state"] != "Preloading"  # it tries again

        wait_until(told, SLOW_S, "the cause is known")
        engines = only.engine_pids()

    assert (health["ready"], health["state"]) == (False, "Unready")
    assert health["last_error"]["code"] == "model"
    assert f"{model}: cut at byte" in health["last_error"]["message"]
    assert engines == {}  # none was started


@pytest.mark.req("OC-CTRL-2040", partial="the pool manager's part")
def test_a_manager_whose_key_lacks_the_role_says_so_and_ends(tmp_path: Path) -> None:
    with (
        orchestrator(tmp_path) as service,
        manager(tmp_path, service, key="data-key-4f1c0e5b") as only,
    ):
        status = only.wait_exit(SLOW_S)
        pids = list(only.engine_pids().values())

        assert status == 2
        assert "refuses this manager: the key lacks the role control" in only.log_text()
        assert "data-key-4f1c0e5b" not in only.log_text()
        assert pids == []
