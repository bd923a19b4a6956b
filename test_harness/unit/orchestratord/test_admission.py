"""From a draft to a durable promise, or to a refusal that leaves nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from harness_kit.service_clients import draft, token_events
from harness_kit.service_process import metric_in
from harness_kit.service_world import POOL, PROFILE, ServiceWorld, Setup, run_world
from orchestrator_core.determinism import derive_seed
from orchestrator_core.errors import Code, Reason, Refusal
from orchestrator_core.limits import Limits
from orchestrator_core.task import Workload
from orchestratord.services.admission import IdConflict, Outcome
from orchestratord.services.drafts import Draft, Message, SamplingOverride
from orchestratord.services.jobs import Job
from worker_adapters.adapter_api.types import EngineError, EngineFault, Sampling
from worker_adapters.mock.client import MockClient
from worker_adapters.mock.script import answer_of, template_of

# ORCH-3099's budgets are charged by the token, so prompts are counted by the engine.
EXACT = Setup(exact_counts=True, limits=Limits(session_max_turns=10**6, budget_tokens=1000))


async def refused(world: ServiceWorld, one: Draft) -> Refusal:
    submission = world.submit(one)
    await world.settle()
    assert isinstance(submission.outcome, Refusal)
    return submission.outcome


async def fail_once(world: ServiceWorld, one: Draft) -> None:
    """The disk fails the admission, and works again before anything that follows from that."""
    outcomes: list[Outcome] = []

    def answered(outcome: Outcome) -> None:
        outcomes.append(outcome)
        world.life.journal.fail(None)

    world.life.journal.fail("disk full")
    world.life.admission.submit(one, answered)
    await world.settle()
    assert [type(outcome) for outcome in outcomes] == [Refusal]


def job_of(world: ServiceWorld, one: Draft) -> Job:
    job = world.life.jobs.get(one.key)
    assert job is not None
    return job


@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
def test_the_answer_waits_until_the_task_is_on_disk() -> None:
    async def scenario(world: ServiceWorld) -> None:
        world.life.journal.hold()
        submission = world.submit(draft(1))
        await world.advance(1.0)
        assert submission.outcome is None

        world.life.journal.resume()
        await world.settle()

        assert submission.admitted
        assert submission.on_disk

    run_world(scenario)


class TestOneId:
    """ORCH-3024: the same id admits one task."""

    @pytest.mark.req("ORCH-3024")
    def test_the_same_body_again_is_the_same_task_with_the_same_promise(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            first = await world.admit(draft(2))
            again = world.submit(draft(2))

            assert again.promise == first.promise
            assert first.outcome is again.outcome
            await world.advance(1.0)
            assert world.decodes == [draft(1).task_id, draft(2).task_id]
            assert world.submit(draft(2)).promise == first.promise

        run_world(scenario)

    @pytest.mark.req("ORCH-3024", partial="all but one case of a repeated id")
    @pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
    def test_the_same_body_while_the_first_is_not_durable_is_answered_with_it(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            world.life.journal.hold()
            first, again = world.submit(draft(1)), world.submit(draft(1))
            await world.advance(0.1)
            assert again.outcome is None

            world.life.journal.resume()
            await world.settle()

            assert first.outcome is again.outcome
            assert again.on_disk
            assert world.decodes == [draft(1).task_id]

        run_world(scenario)

    @pytest.mark.req("ORCH-3024", partial="all but one case of a repeated id")
    def test_another_body_under_a_known_id_is_a_conflict(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))

            other = world.submit(draft(1, max_tokens=5))

            assert other.outcome == IdConflict(draft(1).task_id)
            assert job_of(world, draft(1)).task.max_tokens == 4

        run_world(scenario)

    def test_the_same_id_of_another_tenant_is_another_task(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            await world.admit(draft(1, tenant="umbra", max_tokens=5))

            assert job_of(world, draft(1)).task.max_tokens == 4
            assert job_of(world, draft(1, tenant="umbra")).task.max_tokens == 5

        run_world(scenario)

    @pytest.mark.req("ORCH-3024", partial="all but one case of a repeated id")
    def test_two_requests_whose_prompts_are_counted_at_once_are_one_task(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            first, again = world.submit(draft(1)), world.submit(draft(1))
            conflict = world.submit(draft(1, max_tokens=5))
            await world.advance(1.0)

            assert first.outcome is again.outcome
            assert first.admitted
            assert conflict.outcome == IdConflict(draft(1).task_id)
            assert world.decodes == [draft(1).task_id]

        run_world(scenario, EXACT)


class TestBrokenJournal:
    """What could not be made durable was not admitted, and leaves nothing."""

    @pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
    @pytest.mark.parametrize("waits", [False, True])
    def test_the_task_is_refused_and_its_slot_or_place_is_free(self, waits: bool) -> None:
        async def scenario(world: ServiceWorld) -> None:
            if waits:
                await world.admit(draft(9, max_tokens=100))
            world.life.journal.fail("disk full")

            submission, again = world.submit(draft(1)), world.submit(draft(1))
            await world.advance(0.05)

            assert isinstance(submission.outcome, Refusal)
            assert submission.outcome.code is Code.INTERNAL
            assert submission.outcome.retriable
            assert submission.outcome.retry_after_ms == 1000
            assert "disk full" not in submission.outcome.message  # the log's, not the client's
            assert again.outcome == submission.outcome
            assert world.metric("tasks_rejected_total", engine="llamacpp", reason="invalid") >= 1
            assert world.life.jobs.get(draft(1).key) is None
            assert world.life.scheduling.scheduler.waiting_keys(POOL) == ()
            assert world.engines["r0"].running_count == (1 if waits else 0)
            shown = world.life.telemetry.render().decode()
            assert metric_in(shown, "tasks_enqueued_total") == (1 if waits else 0)

        run_world(scenario)

    def test_who_was_admitted_when_it_broke_is_refused_too(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            submission = world.submit(draft(1))
            world.life.journal.fail("disk full")
            await world.advance(0.05)

            assert isinstance(submission.outcome, Refusal)
            assert submission.outcome.code is Code.INTERNAL
            assert world.engines["r0"].running_count == 0

        run_world(scenario)

    @pytest.mark.req("ORCH-3024", partial="all but one case of a repeated id")
    @pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
    def test_the_same_id_may_be_tried_again_and_then_survives_a_crash(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await fail_once(world, draft(1))

            await world.admit(draft(1))
            world.crash()
            world.restart()
            client = world.read(draft(1))
            await world.advance(1.0)

            assert [frame.raw for frame in client.tokens] == token_events(draft(1))
            assert client.terminal is not None
            assert client.terminal.event == "end"
            assert "canceled" not in client.terminal.data

        run_world(scenario)

    def test_nothing_of_it_stays_in_the_journal(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await fail_once(world, draft(1))

            await world.advance(1.0)

            assert world.disk.rows == {}

        run_world(scenario)


class TestSamplerProfiles:
    SETUP = Setup(
        profiles={PROFILE: Sampling(temperature=0.5, top_k=7, stop=("x",)), "v2": Sampling()}
    )

    def test_the_pools_profile_is_taken_and_the_request_overrides_single_values(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            override = SamplingOverride(top_k=0, min_p=0.25)
            await world.admit(draft(1, sampling=override))

            payload = job_of(world, draft(1)).payload
            assert payload is not None
            expected = Sampling(temperature=0.5, top_p=1.0, top_k=0, min_p=0.25, stop=("x",))
            assert payload.sampling == expected
            assert job_of(world, draft(1)).task.sampler_profile_version == PROFILE

        run_world(scenario, self.SETUP)

    def test_every_field_can_be_overridden(self) -> None:
        override = SamplingOverride(0.1, 0.2, 3, 0.4, 1.5, ("a", "b"))

        assert override.over(Sampling()) == Sampling(0.1, 0.2, 3, 0.4, 1.5, ("a", "b"))
        assert SamplingOverride(stop=()).over(Sampling(stop=("x",))).stop == ()

    @pytest.mark.req("ORCH-3046", partial="all but which profiles a set takes")
    def test_a_profile_that_no_pool_pins_is_refused_by_name(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            refusal = await refused(world, draft(1, sampler_profile_version="v2"))

            assert refusal.code is Code.INVALID_PARAMS
            assert refusal.message.startswith("sampler_profile_version: 'v2'")
            assert "'v1'" in refusal.message
            assert (await world.admit(draft(2, sampler_profile_version=PROFILE))).admitted

        run_world(scenario, self.SETUP)

    @pytest.mark.req("ORCH-3045", partial="all but the seed")
    def test_without_a_seed_it_comes_from_the_task_id_and_zero_is_a_seed(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            await world.admit(draft(2, seed=0))

            first, second = job_of(world, draft(1)).payload, job_of(world, draft(2)).payload
            assert first is not None
            assert second is not None
            assert first.seed == derive_seed(draft(1).task_id) != 0
            assert second.seed == 0

        run_world(scenario)


class TestCounting:
    @pytest.mark.req("ORCH-3014", "ORCH-3015")
    @pytest.mark.parametrize(("max_tokens", "fits"), [(11, True), (12, False)])
    def test_tokens_are_counted_exactly_at_the_border_of_the_context(
        self, max_tokens: int, fits: bool
    ) -> None:
        # Five tokens for the mock, 29 bytes: neither bytes nor an estimate from them will do.
        prompt = "extraordinary is what we want"

        async def scenario(world: ServiceWorld) -> None:
            one = draft(1, ctx=16, prompt=prompt, max_tokens=max_tokens)
            submission = world.submit(one)
            await world.settle()

            assert submission.admitted is fits
            if isinstance(submission.outcome, Refusal):
                assert submission.outcome.code is Code.INVALID_PARAMS
                assert submission.outcome.message.startswith("prompt (5 tokens)")
            else:
                assert job_of(world, one).task.prompt_tokens == 5

        run_world(scenario)

    def test_a_prompt_whose_bytes_fit_is_not_counted_by_the_engine(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            one = draft(1, ctx=13, prompt="é " * 3, max_tokens=4)  # 9 bytes

            submission = world.submit(one)

            assert world.life.jobs.get(one.key) is not None, "decided in the same turn"
            assert job_of(world, one).task.prompt_tokens == 3  # a quarter of 9, rounded up
            await world.settle()
            assert submission.admitted

        run_world(scenario)

    @pytest.mark.req("ORCH-3099")
    def test_with_budgets_every_prompt_is_counted(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            one = draft(1, prompt="one two three")
            await world.admit(one)

            assert job_of(world, one).task.prompt_tokens == 3
            session = world.life.sessions.get("acme", one.session_id)
            assert session is not None
            assert session.tokens_budget_remaining == 1000 - 3 - 4

        run_world(scenario, EXACT)

    def test_inputs_are_counted_together(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            inputs = ("c", "", "d e f")
            one = draft(1, workload=Workload.RERANK, prompt="a b", inputs=inputs)
            await world.admit(one)

            assert job_of(world, one).task.prompt_tokens == 6

        run_world(scenario, EXACT)

    def test_fairness_charges_what_the_client_expects_or_else_the_maximum(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1, prompt="12345678", max_tokens=9))
            await world.admit(draft(2, prompt="12345678", max_tokens=9, expected_tokens=5))

            assert job_of(world, draft(1)).task.cost_tokens == 2 + 9
            assert job_of(world, draft(2)).task.cost_tokens == 2 + 5

        run_world(scenario)

    def test_an_engine_that_cannot_count_is_a_pool_that_is_not_there(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            world.engines["r0"].kill()

            refusal = await refused(world, draft(1))

            assert refusal.code is Code.POOL_UNAVAILABLE
            assert refusal.retriable
            assert refusal.retry_after_ms == 1000
            assert world.life.jobs.get(draft(1).key) is None

        run_world(scenario, EXACT)


class TestMessages:
    MESSAGES = (Message("system", "Be brief."), Message("user", "Hi"))

    @pytest.mark.req("ORCH-3058", partial="sampling")
    def test_a_chat_becomes_a_prompt_by_the_engines_template(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            one = draft(1, prompt=None, messages=self.MESSAGES)
            await world.admit(one)
            client = world.read(one)
            await world.advance(1.0)

            prompt = template_of([{"role": m.role, "content": m.content} for m in self.MESSAGES])
            pieces = answer_of(prompt, 0, Sampling(), 4).pieces
            assert [frame.data["t"] for frame in client.tokens] == list(pieces)

        run_world(scenario)

    @pytest.mark.parametrize(
        "fault", [EngineFault.UNSUPPORTED, EngineFault.INVALID, EngineFault.CONTEXT]
    )
    def test_messages_that_the_engine_refuses_are_the_clients_mistake(
        self, fault: EngineFault
    ) -> None:
        class Strict(MockClient):
            async def apply_template(self, messages: Sequence[Mapping[str, str]]) -> str:
                raise EngineError(fault, "no such role")

        async def scenario(world: ServiceWorld) -> None:
            world.crash()
            world.restart(ready=False)
            client = Strict(world.engines["r0"], None)
            properties = await client.properties()
            world.life.replicas.replica_ready(POOL, "r0", client, properties, ())

            refusal = await refused(world, draft(1, prompt=None, messages=self.MESSAGES))

            assert refusal.code is Code.INVALID_PARAMS
            assert refusal.message.startswith("messages: ")
            assert "no such role" in refusal.message
            assert not refusal.retriable

        run_world(scenario)


class TestRefusals:
    @pytest.mark.req("ORCH-3010")
    def test_without_a_ready_replica_the_pool_is_unready_and_nothing_is_kept(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            world.crash()
            world.restart(ready=False)

            refusal = await refused(world, draft(1))

            assert refusal.code is Code.POOL_UNREADY
            assert len(world.life.jobs) == 0
            assert world.disk.rows == {}

        run_world(scenario)

    @pytest.mark.parametrize("changes", [{"model_ref": "other"}, {"engine": "vllm"}])
    def test_a_model_that_nobody_serves_is_unavailable(self, changes: dict[str, Any]) -> None:
        async def scenario(world: ServiceWorld) -> None:
            assert (await refused(world, draft(1, **changes))).code is Code.POOL_UNAVAILABLE

        run_world(scenario)

    def test_the_engines_digest_is_a_name_of_the_model(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            assert (await world.admit(draft(1, model_ref="sha256:" + "0" * 64))).admitted

        run_world(scenario)

    def test_while_the_service_shuts_down_new_tasks_are_refused_and_known_ones_are_known(
        self,
    ) -> None:
        async def scenario(world: ServiceWorld) -> None:
            first = await world.admit(draft(1))
            closed = Refusal(Code.POOL_UNREADY, Reason.DRAINING, "shutting down", retriable=True)
            world.life.admission.closed = closed

            assert await refused(world, draft(2)) == closed
            assert world.submit(draft(1)).promise == first.promise
            assert world.life.jobs.get(draft(2).key) is None

        run_world(scenario)

    @pytest.mark.req("OC-CTRL-2051")
    @pytest.mark.req("ORCH-3028", partial="GPU and VRAM use, SLO attainment")
    def test_a_refusal_is_counted_by_reason_code_and_policy(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            session = draft(1).session_id
            await world.admit(draft(1))
            await refused(world, draft(2, session_id=session))

            reason = {"engine": "llamacpp", "reason": "session-turns"}
            assert world.metric("tasks_rejected_total", **reason) == 1
            assert world.metric("errors_total", code="ADMISSION_REJECT") == 1
            policy = {"engine": "llamacpp", "policy": "session"}
            assert world.metric("admission_backpressure_events_total", **policy) == 1

        logs = run_world(scenario, Setup(limits=Limits(session_max_turns=1)))

        line = next(line for line in logs if line["event"] == "task.rejected")
        assert line["job_id"] == draft(2).task_id
        assert line["tenant_id"] == "acme"
        assert line["code"] == "ADMISSION_REJECT"


@pytest.mark.req("ORCH-3203", partial="all but the journal")
def test_nothing_is_asked_of_the_core_while_the_journal_is_known_to_fail() -> None:
    async def scenario(world: ServiceWorld) -> None:
        world.life.journal.fail("disk full")
        submissions = [world.submit(draft(n)) for n in range(50)]
        await world.advance(2.0)

        assert all(isinstance(one.outcome, Refusal) for one in submissions)
        world.life.journal.fail(None)
        await world.advance(1.0)
        assert world.disk.rows == {}
        assert len(world.life.jobs) == 0

    run_world(scenario)


def test_an_answer_comes_also_where_the_core_breaks_after_the_tokenizer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(world: ServiceWorld) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("broken")

        monkeypatch.setattr(world.life.admission, "_decide", broken)
        long_prompt = draft(1, prompt="word " * 200, ctx=300)
        submission = world.submit(long_prompt)
        await world.advance(1.0)

        assert isinstance(submission.outcome, Refusal)
        assert submission.outcome.code is Code.INTERNAL

    run_world(scenario)
