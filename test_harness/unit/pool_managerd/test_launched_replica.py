"""The life of a launched replica, on virtual time: self-test, faults, restarts, the circuit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from structlog.testing import capture_logs

from harness_kit.supervisor_world import SupervisorWorld
from pool_managerd.kernel_evidence import MemoryKills
from pool_managerd.observer import Cause, CauseCode, DeviceFault
from pool_managerd.settings import RestartSettings
from worker_adapters.adapter_api.types import EngineFault, Health

World = Callable[..., SupervisorWorld]
CUDA_ERROR = "CUDA error: an illegal memory access was encountered"


@pytest.fixture
def world() -> Iterator[World]:
    """Makes worlds, and ends them."""
    worlds: list[SupervisorWorld] = []

    def make(**settings: object) -> SupervisorWorld:
        worlds.append(SupervisorWorld(**settings))  # type: ignore[arg-type]
        return worlds[-1]

    yield make
    for made in worlds:
        made.close()


def states(of: SupervisorWorld) -> list[str]:
    return [state for _, state in of.recorder.states]


@pytest.mark.req("ORCH-3049", "ORCH-3002")
def test_an_engine_is_ready_only_after_its_self_test(world: World) -> None:
    one = world()

    one.until("Ready")

    assert states(one) == ["Preloading", "SelfTest", "Ready"]
    assert one.recorder.self_tests == [True]
    assert one.recorder.words() == ["preloaded", "ready"]


@pytest.mark.req("ORCH-3049")
def test_a_failed_self_test_stops_the_start_and_the_next_one_is_spaced(world: World) -> None:
    one = world()
    one.engine.drifts = True

    one.until("Backoff")
    cause = one.recorder.causes[-1]
    one.pass_s(20)

    assert (cause.code, "differ" in cause.message) == ("self-test", True)
    assert "Ready" not in states(one)
    assert set(one.recorder.self_tests) == {False}
    assert [round(at_s) for at_s in one.starts_s] == [0, 0, 2, 4, 8, 16]  # 0.5, 1, 2, 4, 8 s apart

    one.engine.drifts = False
    one.until("Ready")

    assert one.recorder.self_tests[-1]


def test_one_life_has_one_self_test(world: World) -> None:
    one = world()
    one.until("Ready")

    one.supervisor.broken(Cause(CauseCode.CONNECTION, "cut", 0))
    one.until("Ready")

    assert one.recorder.self_tests == [True]
    assert len(one.processes) == 1


def test_an_engine_that_ends_during_its_self_test_tells_its_own_cause(world: World) -> None:
    one = world()
    one.engine.mute = True
    one.until("SelfTest")
    assert one.process is not None

    one.process.exit(1, "CUDA error: out of memory")
    one.until("Backoff")

    assert [cause.code for cause in one.recorder.causes] == ["vram-oom"]
    assert one.recorder.self_tests == []


def test_the_preload_deadline_is_the_pools(world: World) -> None:
    one = world(preload_ms=7_000)
    one.engine.health = Health.LOADING

    one.pass_s(6.9)
    before = list(one.recorder.causes)
    one.pass_s(0.5)

    assert before == []
    assert [cause.code for cause in one.recorder.causes] == ["preload-timeout"]
    assert "7 s after its start" in one.recorder.causes[0].message


def test_the_preload_deadline_holds_for_the_self_test_too(world: World) -> None:
    one = world(preload_ms=7_000)
    one.engine.mute = True

    one.pass_s(7.1)

    assert [cause.code for cause in one.recorder.causes] == ["preload-timeout"]
    assert one.recorder.self_tests == [False]


@pytest.mark.req("ORCH-3038", "OC-POOL-3010", "ORCH-3053")
def test_an_engine_that_prints_a_cuda_error_and_lives_is_lost_at_once_and_started_again(
    world: World,
) -> None:
    one = world()
    one.until("Ready")
    first = one.process
    assert first is not None

    first.print(CUDA_ERROR)

    assert one.recorder.words()[-1] == "lost"  # in the same turn: its tasks move now
    assert one.recorder.causes[-1].message == f"the engine printed: {CUDA_ERROR}"
    one.until("Ready")
    assert one.process is not first
    assert states(one)[3:] == ["Unready", "Backoff", "Preloading", "SelfTest", "Ready"]
    assert one.recorder.device_faults == ["cuda-error"]
    assert one.replica.view().driver_reset_events == 1


@pytest.mark.req("ORCH-3053", "OC-POOL-3010")
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("xid", "xid"),
        ("ecc", "ecc"),
        ("gpu-lost", "gpu-lost"),
        ("reset", "gpu-reset"),
        ("cuda-error", "cuda-error"),
    ],
)
def test_a_fault_of_its_gpu_ends_the_engine_and_is_reported_as_what_it_is(
    world: World, fault: DeviceFault, code: str
) -> None:
    one = world()
    one.until("Ready")

    with capture_logs() as logs:
        one.supervisor.device_fault(fault, "GPU 0 said so")
        one.supervisor.device_fault("xid", "and again")
        one.until("Backoff")

    lost = next(line for line in logs if line.get("state") == "Unready")
    assert (lost["code"], lost["cause"], lost["driver_reset_events"]) == (code, "GPU 0 said so", 1)
    assert one.recorder.device_faults == [fault]
    last = one.replica.view().last_error
    assert last is not None
    assert (last.code, last.message) == (code, "GPU 0 said so")
    assert one.process is None


def test_a_gpu_that_fails_while_no_engine_runs_changes_nothing(world: World) -> None:
    one = world()
    one.engine.drifts = True
    one.until("Backoff")
    before = len(one.recorder.causes)

    one.supervisor.device_fault("ecc", "GPU 0")
    one.engine.drifts = False
    one.until("Ready")

    assert len(one.recorder.causes) == before


@pytest.mark.req("ORCH-3039")
@pytest.mark.parametrize(
    ("words", "code", "counted"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory.", "vram-oom", ["vram"]),
        ("terminate called: std::bad_alloc", "host-oom", ["host-ram"]),
        ("Segmentation fault", "exited", []),
    ],
)
def test_vram_and_host_memory_are_told_apart_when_an_engine_ends(
    world: World, words: str, code: str, counted: list[str]
) -> None:
    one = world()
    one.until("Ready")
    assert one.process is not None

    one.process.exit(1, words)
    one.until("Backoff")

    assert one.recorder.causes[-1].code == code
    assert words in one.recorder.causes[-1].message
    assert one.recorder.memory_failures == counted


@pytest.mark.req("ORCH-3053", "OC-POOL-3011")
def test_a_restart_storm_ends_in_broken_and_one_good_start_heals_it(world: World) -> None:
    one = world(restarts=RestartSettings(3, 100, 40))
    one.engine.decode_fault = EngineFault.INTERNAL

    one.until("Broken")
    one.pass_s(39)
    assert (str(one.replica.state), len(one.starts_s)) == ("Broken", 3)

    one.pass_s(2)  # one more start, which fails
    assert (str(one.replica.state), len(one.starts_s)) == ("Broken", 4)

    one.engine.decode_fault = None
    one.pass_s(77)  # the rest is doubled
    assert str(one.replica.state) == "Broken"
    one.until("Ready", 5)

    assert len(one.starts_s) == 5
    assert one.replica.view().restarts == 4


def test_a_port_lost_to_somebody_else_is_no_storm(world: World) -> None:
    one = world(restarts=RestartSettings(3, 100, 40))
    one.engine.health = Health.DOWN
    one.pass_s(0.1)

    for _ in range(2):
        assert one.process is not None
        one.process.exit(1, "bind: Address already in use")
        one.pass_s(0.2)
    one.engine.health = Health.OK
    one.until("Ready", 1)

    assert len(one.starts_s) == 3
    # It is one preload, which a reload waits for.
    assert states(one) == ["Preloading", "SelfTest", "Ready"]
    assert one.recorder.words() == ["preloaded", "ready"]
    assert one.replica.view().restarts == 0


def test_ports_that_are_always_lost_fail_the_preload(world: World) -> None:
    one = world(restarts=RestartSettings(3, 100, 40))
    one.engine.health = Health.DOWN

    for _ in range(3):
        one.pass_s(0.2)
        assert one.process is not None
        one.process.exit(1, "bind: Address already in use")
    one.until("Backoff")

    assert len(one.starts_s) == 3
    assert [cause.code for cause in one.recorder.causes] == ["exited"]


@pytest.mark.req("OC-POOL-3003")
def test_draining_serves_on_is_probed_on_and_can_be_lifted(world: World) -> None:
    one = world()
    one.until("Ready")

    assert one.replica.drain()
    one.pass_s(30)
    assert one.recorder.words() == ["preloaded", "ready"]  # what runs goes on
    assert not one.replica.drain()
    assert one.replica.lift()
    one.replica.drain()
    one.engine.health = Health.DOWN
    one.pass_s(1)

    assert one.recorder.words()[-1] == "lost"
    assert states(one)[-4:] == ["Draining", "Ready", "Draining", "Unready"]


def test_the_end_of_a_drain_moves_what_still_runs(world: World) -> None:
    one = world()
    one.until("Ready")
    one.replica.drain()

    one.replica.drained(Cause(CauseCode.DRAINED, "deadline", 0))

    assert one.recorder.words()[-1] == "lost"
    assert states(one)[-2:] == ["Draining", "Stopped"]


class CountedKills(MemoryKills):
    """Counts how often the kernel is asked."""

    looks = 0

    def count(self) -> int:
        self.looks += 1
        return 0


def test_the_kernel_is_asked_for_memory_kills_at_a_start_and_at_an_exit_only(world: World) -> None:
    one = world()
    kills = one.supervisor._memory_kills = CountedKills()
    one.until("Ready")

    one.pass_s(60)
    alive = kills.looks
    assert one.process is not None
    one.process.exit(-9)
    one.pass_s(0.01)

    assert alive == 1
    assert kills.looks > alive
