"""The blocks of a prompt, and who may reuse what was read of them."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import pytest

from harness_kit.core_builders import make_pool
from harness_kit.service_clients import draft
from harness_kit.service_world import PROFILE, ServiceWorld, Setup, run_world
from orchestrator_core.placement.prefix_tree import BLOCK_BYTES, MAX_BLOCKS
from orchestrator_core.task import Determinism, Workload
from orchestratord.services.drafts import Draft
from orchestratord.services.prompt_blocks import chain, prompt_blocks
from orchestratord.services.replicas import PoolTraits
from worker_adapters.mock.script import MockScript

SYSTEM = "You are a careful assistant. " * 20  # 580 bytes: two whole blocks
BEST_EFFORT = frozenset({Determinism.BEST_EFFORT})


def traits(reuse: frozenset[Determinism]) -> PoolTraits:
    return PoolTraits(make_pool(prefix_reuse=reuse), "model", 1000, 1000, False)


def blocks(
    prompt: str,
    *pools: frozenset[Determinism],
    workload: Workload = Workload.COMPLETION,
    determinism: Determinism = Determinism.BEST_EFFORT,
    kv_hint: str | None = None,
) -> tuple[int, ...]:
    given = [traits(reuse) for reuse in pools]
    return prompt_blocks(prompt, workload, determinism, kv_hint, lambda: given)


@pytest.mark.req("ORCH-3205")
class TestBlocks:
    def test_each_hash_covers_everything_up_to_the_end_of_its_block(self) -> None:
        text = SYSTEM.encode()

        def expected(size_bytes: int) -> int:
            return int.from_bytes(blake2b(text[:size_bytes], digest_size=8).digest(), "big")

        assert chain(text) == (expected(BLOCK_BYTES), expected(2 * BLOCK_BYTES))

    def test_prompts_share_hashes_exactly_as_far_as_they_begin_alike(self) -> None:
        long, longer = blocks(SYSTEM + "a" * 600, BEST_EFFORT), blocks(SYSTEM, BEST_EFFORT)

        assert len(long) == 4
        assert long[:2] == longer
        assert blocks("x" + SYSTEM, BEST_EFFORT)[0] != longer[0]

    def test_blocks_are_of_bytes_so_that_a_character_may_lie_in_two(self) -> None:
        # 400 bytes of two-byte characters after one byte: a character crosses the block's end.
        prompt = "x" + "é" * 200

        assert blocks(prompt, BEST_EFFORT) == chain(prompt.encode())
        assert len(chain(prompt.encode())) == 1

    def test_of_a_huge_prompt_only_the_beginning_is_hashed(self) -> None:
        huge = "é" * (BLOCK_BYTES * MAX_BLOCKS)

        assert blocks(huge, BEST_EFFORT) == chain(huge.encode()[: BLOCK_BYTES * MAX_BLOCKS])
        assert len(blocks(huge, BEST_EFFORT)) == MAX_BLOCKS


@pytest.mark.req("ORCH-3205")
class TestWhoMayReuse:
    @pytest.mark.parametrize(
        "task",
        [
            {"determinism": Determinism.STRICT},
            {"kv_hint": "cold"},
            {"workload": Workload.EMBEDDING},
        ],
        ids=["strict", "cold", "embedding"],
    )
    def test_what_is_decoded_cold_is_not_hashed(self, task: dict[str, Any]) -> None:
        assert blocks(SYSTEM, BEST_EFFORT, **task) == ()
        assert blocks(SYSTEM, BEST_EFFORT) != ()

    def test_one_pool_that_reuses_is_enough_and_none_is_nothing(self) -> None:
        assert blocks(SYSTEM, frozenset(), BEST_EFFORT) == blocks(SYSTEM, BEST_EFFORT)
        assert blocks(SYSTEM, frozenset()) == ()
        assert blocks(SYSTEM) == ()

    def test_strict_tasks_are_hashed_where_a_warm_prefix_changes_no_byte(self) -> None:
        strict = Determinism.STRICT

        assert blocks(SYSTEM, frozenset(Determinism), determinism=strict) != ()


TWO_ENGINES = Setup(
    engines={name: MockScript(4, token_delay_ms=10, prefill_delay_ms=20) for name in ("r0", "r1")},
    pool=make_pool(sampler_profile_version=PROFILE, prefix_reuse=BEST_EFFORT),
)


def best_effort(number: int, prompt: str = SYSTEM, **changes: Any) -> Draft:
    fields = {"ctx": 4096, "determinism": Determinism.BEST_EFFORT, "prompt": prompt}
    return draft(number, **(fields | changes))


def place_of(world: ServiceWorld, of: Draft) -> str:
    job = world.life.jobs.get(of.key)
    assert job is not None
    return job.replica_id


async def warm_second(world: ServiceWorld) -> None:
    """r1 has read SYSTEM, r0 something else; both are idle again."""
    await world.admit(draft(1))
    await world.admit(best_effort(2))
    assert place_of(world, best_effort(2)) == "r1"
    await world.advance(1.0)


@pytest.mark.req("ORCH-3205", "ORCH-3009")
class TestService:
    def test_a_task_goes_where_its_beginning_was_read_and_says_that_it_was_warm(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await warm_second(world)

            alike, unlike = best_effort(3, SYSTEM + "And now?"), best_effort(4, "Other " * 100)
            await world.admit(alike)
            await world.advance(1.0)
            await world.admit(unlike)
            await world.advance(1.0)

            warm = [world.life.jobs.get(of.key) for of in (alike, unlike)]
            assert [place_of(world, alike), place_of(world, unlike)] == ["r1", "r0"]
            assert [job is not None and job.kv_warm for job in warm] == [True, False]

        run_world(scenario, TWO_ENGINES)

    @pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
    def test_a_task_that_waited_over_a_crash_is_placed_by_its_prompt_as_before(self) -> None:
        one_slot = Setup(
            engines={"r0": MockScript(slots_total=1, token_delay_ms=10)}, pool=TWO_ENGINES.pool
        )

        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            await world.admit(best_effort(2))
            before = world.life.jobs.get(best_effort(2).key)
            assert before is not None

            world.crash()
            world.restart(ready=False)

            after = world.life.jobs.get(best_effort(2).key)
            assert after is not None
            assert after.task.prefix_blocks == before.task.prefix_blocks == chain(SYSTEM.encode())

        run_world(scenario, one_slot)
