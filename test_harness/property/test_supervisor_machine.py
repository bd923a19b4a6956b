"""Whatever happens to a launched engine, its replica stays what the diagram says it is.

Hypothesis plays engines that end, hang, print, lie and recover, GPUs that fail and operators that
drain, on virtual time, against the product's own supervisor; the model is what an onlooker saw.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from harness_kit.supervisor_world import SupervisorWorld
from pool_managerd.observer import Cause, CauseCode, DeviceFault
from pool_managerd.settings import RestartSettings
from worker_adapters.adapter_api.types import EngineFault, Health

MAX_FAILURES, WINDOW_S, BROKEN_S = 4, 30, 3
LAST_WORDS = ("", "CUDA error: out of memory", "std::bad_alloc", "bind: Address already in use")
# From Broken at its longest, over one more failure and a preload, to Ready.
HEALED_S = 8 * BROKEN_S * 2 + 30
FAULTS: tuple[DeviceFault, ...] = ("cuda-error", "xid", "ecc", "gpu-lost", "reset")


class SupervisorMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        restarts = RestartSettings(MAX_FAILURES, WINDOW_S, BROKEN_S)
        self.world = SupervisorWorld(restarts=restarts, preload_ms=5_000)
        self.lost_ports = 0

    def teardown(self) -> None:
        self.world.close()

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 5.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_s(seconds)

    @rule(health=st.sampled_from(Health))
    def health_is(self, health: Health) -> None:
        self.world.engine.health = health

    @rule(silent=st.booleans())
    def it_hangs(self, silent: bool) -> None:
        self.world.engine.silent = silent

    @rule(fault=st.sampled_from([None, EngineFault.INTERNAL, EngineFault.RESET]))
    def decodes_fail(self, fault: EngineFault | None) -> None:
        self.world.engine.decode_fault = fault

    @rule(drifts=st.booleans(), leaks=st.booleans(), mute=st.booleans())
    def it_lies(self, drifts: bool, leaks: bool, mute: bool) -> None:
        engine = self.world.engine
        engine.drifts, engine.leaks_slots, engine.mute = drifts, leaks, mute

    @rule(words=st.sampled_from(LAST_WORDS), code=st.sampled_from([0, 1, -9]))
    def it_ends(self, words: str, code: int) -> None:
        if self.world.process is not None:
            self.lost_ports += "already in use" in words
            self.world.process.exit(code, words)

    @rule()
    def it_prints_a_fault(self) -> None:
        if self.world.process is not None:
            self.world.process.print("CUDA error: unspecified launch failure")

    @rule(fault=st.sampled_from(FAULTS))
    def its_gpu_fails(self, fault: DeviceFault) -> None:
        self.world.supervisor.device_fault(fault, "GPU 0")

    @rule()
    def a_connection_breaks(self) -> None:
        self.world.supervisor.broken(Cause(CauseCode.CONNECTION, "cut", 0))

    @rule()
    def somebody_drains_it(self) -> None:
        self.world.replica.drain()

    @rule()
    def the_drain_is_lifted(self) -> None:
        self.world.replica.lift()

    @rule()
    def all_is_well_again(self) -> None:
        """Liveness: an engine that works is Ready again after the longest rest there is."""
        engine = self.world.engine
        engine.health, engine.silent, engine.decode_fault = Health.OK, False, None
        engine.drifts = engine.leaks_slots = engine.mute = False
        self.world.replica.lift()
        self.world.pass_s(HEALED_S)
        assert self.world.replica.is_ready

    @invariant()
    def the_observer_hears_ready_and_lost_in_turns(self) -> None:
        turns = [word for word in self.world.recorder.words() if word in ("ready", "lost")]
        assert turns == (["ready", "lost"] * len(turns))[: len(turns)]
        assert (len(turns) % 2 == 1) == self.world.replica.serves

    @invariant()
    def nothing_serves_without_a_living_engine_that_passed(self) -> None:
        if self.world.replica.serves:
            assert self.world.process is not None
            assert self.world.recorder.self_tests[-1]

    @invariant()
    def ready_comes_after_a_self_test_or_another_time_in_the_same_life(self) -> None:
        states = [state for _, state in self.world.recorder.states]
        tested = False
        for state in states:
            tested = state == "SelfTest" or (tested and state != "Preloading")
            assert state != "Ready" or tested

    @invariant()
    def starts_are_bounded(self) -> None:
        """In any window: what the closed circuit allows, a trial, and ports that were lost."""
        starts_s = self.world.starts_s
        bound = MAX_FAILURES + 1 + WINDOW_S // BROKEN_S + self.lost_ports
        for last, at_s in enumerate(starts_s):
            assert sum(at_s - WINDOW_S <= other <= at_s for other in starts_s[: last + 1]) <= bound

    @invariant()
    def each_fault_is_counted_once_and_told(self) -> None:
        view, recorder = self.world.replica.view(), self.world.recorder
        assert view.driver_reset_events == len(recorder.device_faults) <= len(self.world.processes)
        assert view.oom_events == len(recorder.memory_failures) <= len(self.world.processes)
        assert view.restarts == recorder.words().count("restarted")


@pytest.mark.req("ORCH-3002", "ORCH-3049", "ORCH-3053", "OC-POOL-3011")
class TestSupervisor(SupervisorMachine.TestCase):  # type: ignore[misc, valid-type]
    """The machine as a test."""

    settings = settings(settings.get_profile("dev"), stateful_step_count=25)
