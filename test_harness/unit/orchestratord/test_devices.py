"""What is told of GPUs that tell little, and of engines that nobody knows any more."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from gpu_telemetry.snapshot import OFF_THE_BUS, DeviceSnapshot, HostGpus, ProcessMemory
from harness_kit.service_world import ServiceWorld, run_world
from orchestratord.services.devices import DeviceService
from pool_managerd.gpu_report import GpuReport, report_of

SILENT = DeviceSnapshot(0, "")
HOT = DeviceSnapshot(
    1,
    "GPU-bbbb2222",
    temperature_celsius=90,
    utilization_percent=0,
    throttle_reasons=("thermal",),
    processes=(ProcessMemory(1, None), ProcessMemory(2, 50)),
)
LOST = DeviceSnapshot(1, "GPU-bbbb2222", lost=OFF_THE_BUS)


def report(*devices: DeviceSnapshot) -> GpuReport:
    owners = {1: ("p", "p-0"), 2: ("gone", "gone-0")}
    return report_of(HostGpus(devices), owners, [])


def test_what_a_gpu_does_not_tell_is_left_out() -> None:
    async def scenario(world: ServiceWorld) -> None:
        shown = report(SILENT)
        devices = DeviceService(lambda: shown, world.life.replicas, world.life.telemetry.metrics)

        document = devices.devices()

        assert document == {"devices": [{"index": 0, "lost": False, "mig": False, "processes": []}]}

    run_world(scenario)


def test_gauges_are_of_what_was_told_and_go_with_the_gpu_that_tells_nothing_more() -> None:
    async def scenario(world: ServiceWorld) -> None:
        shown = [report(SILENT, HOT)]
        devices = DeviceService(lambda: shown[0], world.life.replicas, world.life.telemetry.metrics)

        devices.set_gauges()
        before = gauges(world)
        shown[0] = report(LOST)
        devices.set_gauges()
        after = gauges(world)

        # Of an engine whose memory the driver does not tell there is no such figure, and of one
        # whose pool is gone there is none at all.
        assert before == {
            ("gpu_lost", "0"): 0.0,
            ("gpu_lost", "1"): 0.0,
            ("gpu_temperature_celsius", "1"): 90.0,
            ("gpu_throttled", "1"): 1.0,
            ("gpu_utilization", "1"): 0.0,
        }
        assert after == {("gpu_lost", "1"): 1.0}

    run_world(scenario)


def gauges(world: ServiceWorld) -> dict[tuple[str, str], float]:
    """Every sample that has a device, by name and device."""
    families = text_string_to_metric_families(world.life.telemetry.render().decode())
    return {
        (sample.name, sample.labels["device"]): sample.value
        for family in families
        for sample in family.samples
        if "device" in sample.labels
    }
