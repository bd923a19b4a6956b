"""Embeddings and scores: computed on one replica, or again on another, and cancelled."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness_kit.service_clients import draft
from harness_kit.service_world import POOL, ServiceWorld, Setup, run_world
from orchestrator_core.errors import Code, Refusal
from orchestrator_core.task import Workload
from worker_adapters.mock.script import MockScript, score_of, vector_of

SCRIPT = MockScript(slots_total=1, token_delay_ms=10)
PAIR = Setup(engines={"r0": SCRIPT, "r1": SCRIPT})


@pytest.mark.req("ORCH-2001", partial="all but the services' part")
def test_embeddings_come_as_the_result_of_end() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1, workload=Workload.EMBEDDING, prompt=None, inputs=("a", "b"))
        await world.admit(one)
        client = world.read(one)

        await world.settle()

        assert client.terminal is not None
        assert client.terminal.data["result"] == {"embeddings": [vector_of("a"), vector_of("b")]}
        assert client.terminal.data["tokens_out"] == 0
        assert client.terminal.id == 2
        assert client.terminal.on_disk

    run_world(scenario)


def test_rerank_scores_come_as_the_result_of_end() -> None:
    async def scenario(world: ServiceWorld) -> None:
        documents = ("a river", "a green house")
        one = draft(1, workload=Workload.RERANK, prompt="green river", inputs=documents)
        await world.admit(one)
        client = world.read(one)

        await world.settle()

        assert client.terminal is not None
        expected = [score_of("green river", document) for document in documents]
        assert client.terminal.data["result"] == {"scores": expected}
        assert expected == [0.5, 0.5]

    run_world(scenario)


def test_a_workload_that_no_replica_offers_is_refused_at_admission() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1, workload=Workload.EMBEDDING, prompt=None, inputs=("a",))
        submission = world.submit(one)

        await world.settle()

        assert isinstance(submission.outcome, Refusal)
        assert submission.outcome.code is Code.INVALID_PARAMS
        assert submission.outcome.message.startswith("workload: embedding is not offered")
        assert world.life.jobs.get(one.key) is None

    run_world(scenario, Setup(engines={"r0": replace(SCRIPT, features=frozenset())}))


@pytest.mark.req("ORCH-3201", partial="all but one case of a failover")
def test_an_embedding_is_computed_again_on_another_replica() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1, workload=Workload.EMBEDDING, prompt=None, inputs=("a",))
        world.engines["r0"].kill()
        await world.admit(one)
        client = world.read(one)

        await world.advance(1.0)

        assert client.terminal is not None
        assert client.terminal.data["result"] == {"embeddings": [vector_of("a")]}

    run_world(scenario, PAIR)


@pytest.mark.req("ORCH-3017", partial="all but the services' part")
def test_a_cancelled_embedding_frees_its_slot_and_gives_no_result() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1, workload=Workload.EMBEDDING, prompt=None, inputs=("a",))
        world.submit(one)
        job = world.life.jobs.get(one.key)
        assert job is not None
        world.life.cancellation.request(job)
        await world.settle()

        client = world.read(one)
        assert client.terminal is not None
        assert client.terminal.data["canceled"] is True
        assert "result" not in client.terminal.data
        assert world.life.scheduling.scheduler.running(POOL) == ()

    run_world(scenario)
