"""kill -9 of the service in the middle of a backlog: who is next, and who must wait, is as before.

The engine is a fake one with a single slot, so that its record is the order of starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import Answer, task
from harness_kit.service_process import (
    DATA_KEY,
    MODEL,
    OTHER_TENANT_KEY,
    ServiceProcess,
    external_pool,
)
from harness_kit.waiting import wait_until

KEYS = {"acme": DATA_KEY, "zeta": OTHER_TENANT_KEY}
TASKS = 60  # of each tenant
TOKENS = 8
PATIENCE_S = 60.0


@contextmanager
def service_with(
    directory: Path, *tenants: dict[str, Any]
) -> Iterator[tuple[ServiceProcess, GatedEngine]]:
    with ExitStack() as stack:
        engine = stack.enter_context(GatedEngine(slots=1))
        pool = external_pool(
            engine.url,
            queue={"capacity": 256, "full_policy": "reject"},
            admission={"fairness": {"kind": "wfq", "tenants": list(tenants)}},
        )
        yield stack.enter_context(ServiceProcess(directory, pool)), engine


def submit(service: ServiceProcess, tenant: str, name: str, **fields: Any) -> Answer:
    with service.probe(KEYS[tenant]) as probe:
        return probe.post("/v1/tasks", task(MODEL, **({"prompt": name} | fields)))


def order_of_starts(directory: Path, kill_after: list[int]) -> list[str]:
    """Equal backlogs with weights 3 and 1; the service dies each time so many tasks have started.
    Their names, in the order in which the engine first heard of them."""
    weights = {"id": "acme", "weight": 3}, {"id": "zeta", "weight": 1}
    with service_with(directory, *weights) as (service, engine):
        engine.hold()
        assert submit(service, "zeta", "in the slot").status == 202
        engine.wait_busy(1)
        for number in range(TASKS):
            for tenant in KEYS:
                name = f"{tenant} {number}"
                answer = submit(service, tenant, name, priority="batch", max_tokens=TOKENS)
                assert answer.status == 202, answer

        def started() -> list[str]:
            return list(dict.fromkeys(seen.body["prompt"] for seen in engine.decodes))

        def wait_started(count: int) -> None:
            wait_until(lambda: len(started()) >= count, PATIENCE_S, f"{count} tasks started")

        engine.allow()
        for count in kill_after:
            wait_started(count)
            assert len(started()) < 2 * TASKS, "it is killed in the middle"
            service.kill()
            service.restart()
        service.wait_metric("queue_depth", 0, PATIENCE_S)
        service.wait_metric("tasks_running", 0, PATIENCE_S)
        assert {seen.sent for seen in engine.decodes if seen.finished} == {TOKENS}
        finished = {seen.body["prompt"] for seen in engine.decodes if seen.finished}
        assert finished == set(started())
        return started()[1:]


@pytest.mark.req("ORCH-3203", partial="what ran and what it said; a node that is replaced")
@pytest.mark.req("ORCH-3075", partial="with a real engine")
def test_over_two_crashes_weights_and_order_are_those_of_a_run_without(tmp_path: Path) -> None:
    undisturbed = order_of_starts(tmp_path / "undisturbed", [])

    disturbed = order_of_starts(tmp_path / "disturbed", [26, 55])

    assert disturbed == undisturbed
    # Equal tasks: tokens are 3 to 1 as long as both wait, which acme's 60 tasks do for 80.
    contested = [name.partition(" ")[0] for name in disturbed[:80]]
    assert 2.7 <= contested.count("acme") / contested.count("zeta") <= 3.3
    assert len(disturbed) == 2 * TASKS


@pytest.mark.req("ORCH-3077", "ORCH-3036", partial="that it holds after a restart")
def test_a_quota_that_was_used_up_is_used_up_after_the_crash(tmp_path: Path) -> None:
    tenants = (
        {"id": "zeta", "rps": 0.01},  # a burst of one, and the next one 100 s later
        # A task reserves 4 + 20: the next one fits when 23 have come back, after 55 s.
        {"id": "acme", "tokens_per_minute": 25},
    )
    with service_with(tmp_path, *tenants) as (service, engine):
        engine.hold()
        for tenant in KEYS:
            assert submit(service, tenant, "Once upon a time", max_tokens=20).status == 202, tenant
        engine.wait_busy(1)
        service.kill()
        service.restart()

        answers = {
            tenant: submit(service, tenant, "and another time", max_tokens=20) for tenant in KEYS
        }

        for tenant, answer in answers.items():
            assert answer.status == 429, tenant
            envelope = answer.json()
            assert (envelope["code"], envelope["policy_label"]) == ("ADMISSION_REJECT", "quota")
            assert envelope["retriable"] is True
        engine.allow()
        service.wait_metric("queue_depth", 0, PATIENCE_S)
