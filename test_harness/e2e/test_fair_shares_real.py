"""Weights and priorities with a real model behind them: two llama.cpp slots, more work than fits.

What ran in which order is read from the service's own log, so nothing here is decided by a clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness_kit.http_probe import task
from harness_kit.service_process import (
    DATA_KEY,
    OTHER_TENANT_KEY,
    ServiceProcess,
    launched_pool,
)
from harness_kit.waiting import wait_until

BUILTIN = "builtin:smollm2"
PROMPT = "Once upon a time, in a small village by the sea,"
# The real engine shares its cores with whatever else runs.
SLOW_S = 90.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    tenants = [{"id": "acme", "weight": 3}, {"id": "zeta", "weight": 1}]
    pool = launched_pool(
        1, queue={"capacity": 256}, admission={"fairness": {"kind": "wfq", "tenants": tenants}}
    )
    directory: Path = tmp_path_factory.mktemp("shares")
    with ServiceProcess(directory, pool, sessions={"max_turns": 1000}) as running:
        yield running


def submit(service: ServiceProcess, key: str, count: int, **fields: Any) -> list[str]:
    """Admit `count` tasks; their ids in order."""
    documents = [
        task(BUILTIN, prompt=PROMPT, ctx=256, seed=seed, deadline_ms=120_000, **fields)
        for seed in range(count)
    ]
    with service.probe(key) as probe:
        for document in documents:
            answer = probe.post("/v1/tasks", document)
            assert answer.status == 202, answer
    return [document["task_id"] for document in documents]


def ended(service: ServiceProcess, ids: set[str]) -> list[dict[str, Any]]:
    """The log lines of the ends of these tasks, in their order, once all have ended."""

    def lines() -> list[dict[str, Any]]:
        return [line for line in service.log_lines("task.ended") if line["job_id"] in ids]

    wait_until(lambda: len(lines()) == len(ids), SLOW_S, "all tasks have ended")
    return lines()


def hold_slots(service: ServiceProcess) -> None:
    """Take both slots for as long as a few hundred submissions last."""
    submit(service, DATA_KEY, 2, priority="interactive", max_tokens=160)


@pytest.mark.req("ORCH-3075", "OC-CORE-1004")
def test_two_tenants_with_equal_backlogs_get_tokens_three_to_one(service: ServiceProcess) -> None:
    hold_slots(service)
    acme = submit(service, DATA_KEY, 24, priority="batch", max_tokens=8)
    zeta = submit(service, OTHER_TENANT_KEY, 24, priority="batch", max_tokens=8)

    lines = ended(service, {*acme, *zeta})
    both_waited = lines[:24]  # 18 and 6 of them: acme's 24 last for 32 ends
    tokens = {"acme": 0, "zeta": 0}
    for line in both_waited:
        tokens[line["tenant_id"]] += line["tokens_in"] + line["tokens_out"]

    assert {line["outcome"] for line in lines} == {"completed"}
    assert tokens["acme"] / sum(tokens.values()) == pytest.approx(0.75, abs=0.075)


@pytest.mark.req("ORCH-3075", "ORCH-3079", "ORCH-3081")
def test_a_burst_of_chats_meets_its_deadlines_in_a_flood_of_batch_work_that_still_moves(
    service: ServiceProcess,
) -> None:
    hold_slots(service)
    flood = submit(service, DATA_KEY, 24, priority="batch", max_tokens=16)
    burst = submit(service, DATA_KEY, 30, priority="interactive", max_tokens=8)

    lines = ended(service, {*flood, *burst})
    order = [line["job_id"] for line in lines]
    last_of_burst = max(order.index(task_id) for task_id in burst)
    moved = [task_id for task_id in order[:last_of_burst] if task_id in flood]

    assert {line["outcome"] for line in lines} == {"completed"}
    assert all(line["on_time_probability"] == 1.0 for line in lines if line["job_id"] in burst)
    # 30 chats of about 20 tokens against one eighth of that for batch work of about 28 each.
    assert 1 <= len(moved) <= 6
