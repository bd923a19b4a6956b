"""Quotas and shares of tenants with the whole service around the core, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from harness_kit.core_builders import make_pool
from harness_kit.service_clients import draft
from harness_kit.service_world import PROFILE, ServiceWorld, Setup, run_world
from orchestrator_core.errors import Code, Reason, Refusal
from orchestrator_core.pool import TenantPolicy
from orchestrator_core.queueing.share import ShareView
from orchestrator_core.task import Priority
from orchestratord.services.telemetry import Telemetry
from worker_adapters.mock.script import MockScript

INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH


def setup_of(*tenants: TenantPolicy, slots: int = 1, **script: Any) -> Setup:
    pool = make_pool(sampler_profile_version=PROFILE, tenants=tenants)
    engine = MockScript(slots_total=slots, token_delay_ms=10, **script)
    return Setup(engines={"r0": engine}, pool=pool)


@pytest.mark.req("ORCH-3036", partial="concurrent jobs and memory")
class TestTokensPerMinute:
    # A word is a token of the mock's: three of them and four decoded ones.
    LONG_WORDS = "incomprehensibilities " * 2 + "antidisestablishmentarianism"

    def test_prompts_of_a_bounded_tenant_are_counted_and_not_guessed(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            first = await world.admit(draft(1, prompt=self.LONG_WORDS))
            second = world.submit(draft(2, prompt=self.LONG_WORDS))
            await world.settle()

            assert first.outcome is not None
            assert second.admitted

            third = world.submit(draft(3, prompt="one"))
            await world.settle()

            assert isinstance(third.outcome, Refusal)
            assert (third.outcome.code, third.outcome.reason, third.outcome.policy_label) == (
                Code.ADMISSION_REJECT,
                Reason.QUOTA,
                "quota",
            )

        run_world(scenario, setup_of(TenantPolicy("acme", tokens_per_minute=14)))

    def test_who_comes_back_when_told_is_admitted(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1, prompt=self.LONG_WORDS))
            refused = world.submit(draft(2, prompt=self.LONG_WORDS))
            await world.settle()
            assert isinstance(refused.outcome, Refusal)
            assert refused.outcome.retry_after_ms is not None

            # What the first one has left is nothing: it decodes what it asked for.
            await world.advance(refused.outcome.retry_after_ms / 1000)

            await world.admit(draft(2, prompt=self.LONG_WORDS))

        run_world(scenario, setup_of(TenantPolicy("acme", tokens_per_minute=7)))


@pytest.mark.req("ORCH-3036", partial="concurrent jobs and tokens")
class TestKvBytes:
    """A token of context takes 1024 bytes, a task of `draft` 512 of them."""

    TENANT = TenantPolicy("acme", kv_bytes=512 * 1024)

    def test_a_second_task_waits_for_the_first_and_another_tenant_does_not(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            for number in (1, 2):
                await world.admit(draft(number))
            await world.admit(draft(3, tenant="umbra"))

            assert world.decodes == [draft(1).task_id, draft(3).task_id]
            await world.advance(1.0)
            assert world.decodes == [draft(number).task_id for number in (1, 3, 2)]

        run_world(scenario, setup_of(self.TENANT, slots=3))

    def test_after_a_crash_what_runs_again_counts_again(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            for number in (1, 2):
                await world.admit(draft(number))

            world.crash()
            world.restart()
            await world.settle()

            assert world.decodes == [draft(1).task_id, draft(1).task_id]
            await world.advance(1.0)
            assert world.decodes[2:] == [draft(2).task_id]

        run_world(scenario, setup_of(self.TENANT, slots=3))

    def test_a_task_that_alone_takes_more_is_refused(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            refused = world.submit(draft(1, ctx=513))
            await world.settle()

            assert isinstance(refused.outcome, Refusal)
            assert (refused.outcome.policy_label, refused.outcome.retriable) == ("quota", False)
            assert "kv_bytes" in refused.outcome.message

        run_world(scenario, setup_of(self.TENANT))

    def test_an_engine_that_does_not_tell_is_not_bounded(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            for number in (1, 2):
                await world.admit(draft(number))

            assert world.decodes == [draft(number).task_id for number in (1, 2)]

        run_world(scenario, setup_of(self.TENANT, slots=3, kv_bytes_per_token=0))


@pytest.mark.req("ORCH-3076", partial="that they follow the weights over a minute")
class TestShares:
    def test_a_scrape_shows_what_each_flow_got_of_what_was_started(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            # All cost the same, and one slot serves them in the order of their weights.
            for number in range(40):
                tenant = "acme" if number % 2 else "zeta"
                await world.admit(
                    draft(number, tenant=tenant, priority=BATCH, prompt="a b", expected_tokens=4)
                )
            await world.advance(20 * 0.05)  # half of them

            scheduler = world.life.scheduling.scheduler
            world.life.telemetry.share_gauges(scheduler.shares(world.clock_ms()))
            text = world.life.telemetry.render().decode()

            lines = [line for line in text.splitlines() if line.startswith("admission_share{")]
            shares = {line.partition("}")[0]: float(line.rpartition(" ")[2]) for line in lines}
            assert shares['admission_share{priority="batch",tenant="acme"'] == pytest.approx(
                0.75, abs=0.05
            )
            assert sum(shares.values()) == pytest.approx(1.0)

        run_world(scenario, setup_of(TenantPolicy("acme", weight=3), TenantPolicy("zeta")))

    def test_beyond_the_budget_of_labels_the_small_ones_add_up_in_other(self) -> None:
        telemetry = Telemetry()
        shares = {(f"t{number:03}", BATCH): ShareView(0.001, 0.0) for number in range(300)}
        shares[("large", BATCH)] = ShareView(0.7, 0.0)

        telemetry.share_gauges(shares)
        telemetry.share_gauges(shares)

        def shown(tenant: str) -> float | None:
            labels = {"tenant": tenant, "priority": "batch"}
            return telemetry.registry.get_sample_value("admission_share", labels)

        assert shown("large") == pytest.approx(0.7)
        assert shown("t000") == pytest.approx(0.001)
        assert shown("t299") is None
        assert shown("other") == pytest.approx(0.046)  # 255 have a label of their own

    def test_a_flow_that_has_faded_shows_nothing(self) -> None:
        telemetry = Telemetry()
        flow = ("acme", INTERACTIVE)
        telemetry.share_gauges({flow: ShareView(1.0, 1.0)})

        telemetry.share_gauges({})

        labels = {"tenant": "acme", "priority": "interactive"}
        assert telemetry.registry.get_sample_value("admission_share", labels) == 0.0


def test_a_tenant_s_policy_is_what_its_pool_says_by_then() -> None:
    async def scenario(world: ServiceWorld) -> None:
        replicas = world.life.replicas

        assert replicas.counts_tokens("llamacpp", "model", "acme")
        assert not replicas.counts_tokens("llamacpp", "model", "umbra")
        assert not replicas.counts_tokens("llamacpp", "another", "acme")

    bounded = setup_of(TenantPolicy("acme", tokens_per_minute=7), TenantPolicy("umbra"))
    run_world(scenario, bounded)
