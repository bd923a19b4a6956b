"""The thread that looks at the GPUs: what it finds reaches the event loop, what hangs does not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from gpu_telemetry.faults import FaultKind, GpuFault
from gpu_telemetry.nvml import NvmlUnavailable
from gpu_telemetry.snapshot import OFF_THE_BUS, DeviceSnapshot, HostGpus, ProcessMemory
from harness_kit.waiting import wait_until_async
from pool_managerd.gpu_watch import GpuWatch

WAIT_S = 20.0
WELL = DeviceSnapshot(0, "GPU-a", processes=(ProcessMemory(11, 5), ProcessMemory(12, 6)))
LOST = DeviceSnapshot(0, "GPU-a", lost=OFF_THE_BUS)


class Script:
    """A reader whose looks are told in advance; the last one repeats."""

    def __init__(self, looks: Iterable[HostGpus | Exception]) -> None:
        self._looks = list(looks)
        self.looks = 0
        self.closed = False
        self.threads: set[int] = set()
        self.may_return = threading.Event()
        self.may_return.set()

    def look(self) -> HostGpus:
        self.threads.add(threading.get_ident())
        self.may_return.wait()
        self.looks += 1
        look = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        if isinstance(look, Exception):
            raise look
        return look

    def close(self) -> None:
        self.closed = True


def until(
    script: Script,
    condition: Callable[[GpuWatch], bool],
    *,
    hang_s: float = 60.0,
    owner_of: Callable[[int], tuple[str, str] | None] = lambda _: None,
) -> tuple[GpuWatch, list[GpuFault]]:
    """Watch with a look per millisecond until the condition holds."""
    faults: list[GpuFault] = []

    async def scenario() -> GpuWatch:
        watch = GpuWatch(1, lambda: script, hang_s)
        watch.on_fault = faults.append
        watch.owner_of = owner_of
        watch.start()
        await wait_until_async(lambda: condition(watch), WAIT_S)
        await watch.stop()
        return watch

    return asyncio.run(scenario()), faults


def looked(watch: GpuWatch) -> bool:
    return bool(watch.latest().devices)


def test_a_look_reaches_the_loop_from_a_thread_of_its_own() -> None:
    script = Script([HostGpus((WELL,), "580")])

    watch, faults = until(script, looked)

    assert watch.latest() == HostGpus((WELL,), "580")
    assert faults == []
    assert script.closed
    assert script.threads.isdisjoint({threading.get_ident()})
    assert len(script.threads) == 1


@pytest.mark.req("ORCH-3053", partial="the circuit breaker")
def test_a_device_that_is_lost_and_comes_back_is_told_once_each() -> None:
    last = replace(WELL, utilization_percent=1)
    script = Script([HostGpus((device,)) for device in (WELL, LOST, LOST, WELL, last)])

    with capture_logs() as logs:
        _, faults = until(script, lambda w: w.latest().devices == (last,))

    assert [(fault.kind, fault.index, fault.fatal) for fault in faults] == [
        (FaultKind.LOST, 0, True),
        (FaultKind.BACK, 0, False),
    ]
    told = [line for line in logs if line["event"] in ("gpu.fault", "gpu.back")]
    assert [(line["event"], line["log_level"], line["cause"]) for line in told] == [
        ("gpu.fault", "error", OFF_THE_BUS),
        ("gpu.back", "info", f"answers again; it was lost: {OFF_THE_BUS}"),
    ]


def test_engines_are_known_by_their_processes_also_after_the_device_is_lost() -> None:
    script = Script([HostGpus((WELL,)), HostGpus((LOST,))])
    owners = {11: ("p", "p-0")}

    watch, _ = until(
        script, lambda w: w.latest().devices == (LOST,), owner_of=lambda pid: owners.get(pid)
    )

    assert watch.engines_on(0) == {("p", "p-0")}
    assert watch.engines_on(1) == frozenset()


def test_errors_between_two_looks_are_no_news_about_the_devices() -> None:
    worse = replace(WELL, ecc_errors=1)
    script = Script(
        [
            HostGpus((replace(WELL, ecc_errors=0),)),
            NvmlUnavailable("the NVIDIA driver is gone: Timeout"),
            HostGpus((worse,)),
        ]
    )

    _, faults = until(script, lambda w: w.latest().devices == (worse,))

    assert [fault.kind for fault in faults] == [FaultKind.ECC]


def test_a_host_without_a_driver_is_told_once_and_looked_at_again() -> None:
    absent = NvmlUnavailable("no NVIDIA driver is installed here")
    script = Script([absent, absent, absent, HostGpus((WELL,), "580")])

    with capture_logs() as logs:
        watch, _ = until(script, looked)

    assert watch.latest() == HostGpus((WELL,), "580")
    lines = [line for line in logs if line["event"] == "gpu.telemetry_unavailable"]
    assert [(line["log_level"], line["cause"]) for line in lines] == [
        ("info", "no NVIDIA driver is installed here")
    ]


def test_a_defect_in_a_look_is_seen_and_the_next_one_happens() -> None:
    script = Script([ValueError("odd"), HostGpus((WELL,))])

    with capture_logs() as logs:
        watch, _ = until(script, looked)

    assert watch.latest().message is None
    (line,) = [line for line in logs if line["event"] == "gpu.telemetry_unavailable"]
    assert line["log_level"] == "warning"
    assert "ValueError('odd')" in line["cause"]


@pytest.fixture
def stuck() -> Iterator[Script]:
    script = Script([HostGpus((WELL,))])
    script.may_return.clear()
    yield script
    script.may_return.set()


def test_a_driver_that_hangs_is_said_to_and_stops_neither_the_loop_nor_the_end(
    stuck: Script,
) -> None:
    def hangs(watch: GpuWatch) -> bool:
        return bool(stuck.threads) and "not answered" in (watch.latest().message or "")

    watch, _ = until(stuck, hangs, hang_s=0.01)

    assert watch.latest().message == "the NVIDIA driver has not answered for 0.01 s"
    assert (stuck.looks, stuck.closed, len(stuck.threads)) == (0, False, 1)


def test_who_waits_for_the_first_look_goes_on_when_it_is_overdue(stuck: Script) -> None:
    async def scenario() -> HostGpus:
        watch = GpuWatch(1, lambda: stuck, 0.01)
        watch.start()
        async with asyncio.timeout(WAIT_S):
            await watch.looked()
        await watch.stop()
        return watch.latest()

    assert asyncio.run(scenario()).devices == ()


def test_with_a_period_of_zero_nobody_looks() -> None:
    script = Script([HostGpus((WELL,))])

    async def scenario() -> HostGpus:
        watch = GpuWatch(0, lambda: script)
        watch.start()
        await watch.looked()
        await watch.stop()
        return watch.latest()

    message = asyncio.run(scenario()).message

    assert message == "nobody looks at the GPUs: platform.gpu_telemetry_ms is 0"
    assert script.looks == 0
