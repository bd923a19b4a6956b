"""Priority inversion under load (ORCH-3051): urgent work never stands behind work of a lower
priority for longer than the weights allow, however much of it there is.

One service process, a fake engine of four slots, two tenants that flood it with batch tasks of
mixed sizes from two threads while chats arrive among them. What the scheduler did is read from the
log, which has its decisions in the order in which they were taken: no clock decides anything here.

The bound is that of start-time fair queueing (Goyal, Vin, Cheng 1996, theorem 1): while two flows
f and g both wait, their work divided by their weights differs by at most l_f/w_f + l_g/w_g, where
l is a flow's largest task.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness_kit.fake_engine import FakeEngine
from harness_kit.fake_engine_script import FakeScript
from harness_kit.http_probe import task
from harness_kit.service_process import (
    DATA_KEY,
    MODEL,
    OTHER_TENANT_KEY,
    ServiceProcess,
    external_pool,
)
from harness_kit.waiting import wait_until

FLOOD = 240  # batch tasks of each tenant
CHATS = 60
WEIGHTS = {"interactive": 8, "batch": 1}
BATCH_TOKENS = (10, 80)
CHAT_TOKENS = (5, 20)
ALL_ENDED_S = 90.0
# A tenant that may run this many tasks fills that with batch work of its own.
MAX_CONCURRENT = 2


@dataclass(frozen=True, slots=True)
class Step:
    """One task was admitted or dispatched, in the order of the log."""

    event: str
    task_id: str
    tenant: str
    priority: str


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServiceProcess, list[Step]]]:
    """The service after the load, and everything that it decided."""
    directory: Path = tmp_path_factory.mktemp("inversion")
    with FakeEngine(FakeScript(slots_total=4, token_interval_s=0.001)) as engine:
        pool = external_pool(
            engine.url,
            ctx=4096,
            queue={"capacity": 2000},
            admission={
                "priorities": [
                    {"name": name, "queue_capacity": 1000, "weight": weight}
                    for name, weight in WEIGHTS.items()
                ],
                "fairness": {"tenants": [{"id": "zeta", "max_concurrent": MAX_CONCURRENT}]},
            },
        )
        with ServiceProcess(directory, pool, sessions={"max_turns": 1000}) as service:
            floods = [
                threading.Thread(target=flood, args=(service, key, seed))
                for seed, key in enumerate((DATA_KEY, OTHER_TENANT_KEY))
            ]
            for thread in floods:
                thread.start()
            for thread in floods:
                thread.join()
            admitted = len(service.log_lines("task.admitted"))
            wait_until(
                lambda: len(service.log_lines("task.ended")) >= 2 * (FLOOD + CHATS),
                ALL_ENDED_S,
                f"all tasks have ended ({admitted} admitted)",
            )
            yield service, steps_of(service)


def flood(service: ServiceProcess, key: str, seed: int) -> None:
    """Submit batch tasks and, among them, chats; sizes and places are seeded."""
    generator = random.Random(seed)
    kinds = ["batch"] * FLOOD + ["interactive"] * CHATS
    generator.shuffle(kinds)
    with service.probe(key) as probe:
        for kind in kinds:
            least, most = BATCH_TOKENS if kind == "batch" else CHAT_TOKENS
            document = task(
                MODEL,
                priority=kind,
                prompt="p",
                max_tokens=generator.randint(least, most),
                deadline_ms=600_000,
            )
            answer = probe.post("/v1/tasks", document)
            assert answer.status == 202, answer


def steps_of(service: ServiceProcess) -> list[Step]:
    names = {"task.admitted": "admitted", "task.dispatched": "dispatched"}
    return [
        Step(names[line["event"]], line["job_id"], line["tenant_id"], line["priority"])
        for line in service.log_lines()
        if line["event"] in names
    ]


def cost_tokens(service: ServiceProcess) -> dict[str, int]:
    """What fairness charged each task: its prompt of one token, and what it was to decode."""
    return {line["job_id"]: 1 + line["tokens_out"] for line in service.log_lines("task.ended")}


def passed_while_waiting(steps: list[Step], tenant: str) -> list[list[Step]]:
    """For every stretch in which some chat of the tenant waited: what was dispatched in it, the
    chat that ended it included."""
    waiting: set[str] = set()
    stretches: list[list[Step]] = []
    for step in steps:
        if step.event == "admitted":
            if step.tenant == tenant and step.priority == "interactive":
                if not waiting:
                    stretches.append([])
                waiting.add(step.task_id)
        elif waiting:
            stretches[-1].append(step)
            waiting.discard(step.task_id)
    return stretches


def excess_tokens(stretch: list[Step], cost: dict[str, int]) -> float:
    """By how much batch work was ahead of its share, in tokens of batch work."""
    done = dict.fromkeys(WEIGHTS, 0)
    worst = 0.0
    for step in stretch:
        done[step.priority] += cost[step.task_id]
        share = done["interactive"] * WEIGHTS["batch"] / WEIGHTS["interactive"]
        worst = max(worst, done["batch"] - share)
    return worst


@pytest.mark.req("ORCH-3051", "ORCH-3075")
def test_while_a_chat_waits_batch_work_gets_no_more_than_its_share(
    load: tuple[ServiceProcess, list[Step]],
) -> None:
    service, steps = load
    cost = cost_tokens(service)

    # Of the tenant without a quota: the other one's chats may wait for places of their own.
    stretches = passed_while_waiting(steps, "acme")
    worst = max(excess_tokens(stretch, cost) for stretch in stretches)

    largest_batch, largest_chat = 1 + BATCH_TOKENS[1], 1 + CHAT_TOKENS[1]
    assert sum(map(len, stretches)) > CHATS  # chats did have to wait
    assert worst <= largest_batch + largest_chat * WEIGHTS["batch"] / WEIGHTS["interactive"]


@pytest.mark.req("ORCH-3051", "ORCH-3077")
def test_a_tenant_at_its_quota_gives_its_next_place_to_its_chats(
    load: tuple[ServiceProcess, list[Step]],
) -> None:
    service, steps = load
    cost = cost_tokens(service)

    own = [step for step in steps if step.tenant == "zeta"]
    stretches = passed_while_waiting(own, "zeta")
    worst = max(excess_tokens(stretch, cost) for stretch in stretches)

    # Its classes share with everybody's: within the tenant the bound holds for each change of
    # places, of which one more may stand between two of its own.
    largest_batch = 1 + BATCH_TOKENS[1]
    assert sum(map(len, stretches)) > CHATS // 2
    assert worst <= 2 * largest_batch


@pytest.mark.req("ORCH-3051")
def test_nothing_is_lost_or_run_twice_and_every_slot_comes_back(
    load: tuple[ServiceProcess, list[Step]],
) -> None:
    service, steps = load

    dispatched = [step.task_id for step in steps if step.event == "dispatched"]
    outcomes: list[Any] = [line["outcome"] for line in service.log_lines("task.ended")]

    assert len(dispatched) == len(set(dispatched)) == 2 * (FLOOD + CHATS)
    assert outcomes == ["completed"] * (2 * (FLOOD + CHATS))
    assert service.metric("slots_busy") == 0
