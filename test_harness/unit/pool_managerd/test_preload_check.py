"""What is started with the memory that a host has; GPUs and free memory as plain values."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gpu_telemetry.snapshot import DeviceSnapshot, HostGpus, MigInstance
from harness_kit.model_files import (
    gguf_bytes,
    llama_metadata,
    llama_tensors,
    safetensors_bytes,
    write_hugging_face_model,
)
from pool_managerd.launch_profiles import LaunchRefused
from pool_managerd.memory_estimate import GIB, MIB, Room
from pool_managerd.model_files import ModelUnavailable
from pool_managerd.preload_check import DoesNotFit, LaunchPlan, PreloadCheck
from pool_managerd.settings import LaunchSettings, MemorySettings, PoolSettings

# SmolLM2 on the CPU with 4 slots of 2048 tokens: 92 MiB of weights, 180 of KV, 3 and 60 beside.
CPU_MIB = 335
SERVER = LaunchSettings(program="llama-server")
WAIT_S = 10.0
POOL = PoolSettings(
    "p", "llamacpp", "builtin:smollm2", ctx=2048, memory=MemorySettings(headroom_ratio=0.0)
)


def gpu(
    index: int, free_mib: int, total_mib: int = 24 * 1024, name: str = "NVIDIA L4"
) -> DeviceSnapshot:
    return DeviceSnapshot(
        index,
        f"GPU-{index}0000000",
        name,
        memory_total_bytes=total_mib * MIB,
        memory_free_bytes=free_mib * MIB,
    )


def check_of(
    *gpus: DeviceSnapshot, host_mib: int | None = 64 * 1024, message: str | None = None
) -> PreloadCheck:
    room = None if host_mib is None else Room(host_mib * MIB, 64 * GIB)
    return PreloadCheck(lambda: HostGpus(gpus, message=message), lambda: room)


def admit(check: PreloadCheck, pool: PoolSettings, launch: LaunchSettings) -> LaunchPlan:
    """The plan of a start that is called off again: nothing is held."""
    return check.admit(pool, launch)[0]


def on(*devices: str, **more: object) -> PoolSettings:
    return replace(POOL, devices=devices, **more)  # type: ignore[arg-type]


@pytest.mark.req("ORCH-3003")
@pytest.mark.req("OC-POOL-3002")
def test_what_the_host_has_no_memory_for_is_not_started() -> None:
    assert admit(check_of(host_mib=CPU_MIB + 1), POOL, LaunchSettings()).slots == 4

    with pytest.raises(DoesNotFit) as caught:
        admit(check_of(host_mib=CPU_MIB - 2), POOL, LaunchSettings())

    assert str(caught.value) == (
        "needs 335 MiB of host memory (weights 92 MiB, KV 180 MiB, scratch 3 MiB, runtime 60 MiB), "
        "333 MiB are free; it would fit with 3 slots instead of 4 or ctx 1792 instead of 2048"
    )


@pytest.mark.req("ORCH-3003")
def test_what_a_gpu_has_no_memory_for_is_not_started() -> None:
    with pytest.raises(DoesNotFit, match=r"needs \d+ MiB on GPU 1 \(.*\), 100 MiB are free"):
        admit(check_of(gpu(0, 9000), gpu(1, 100)), on("0", "1", homogeneous=True), SERVER)


@pytest.mark.req("ORCH-3011", partial="what the engine is given")
def test_memory_beside_the_mask_is_never_counted() -> None:
    with pytest.raises(DoesNotFit, match="on GPU 1"):
        admit(check_of(gpu(0, 9000), gpu(1, 100)), on("1"), SERVER)


def test_a_check_that_is_switched_off_launches_and_sees() -> None:
    pool = replace(POOL, memory=MemorySettings(check=False))

    plan = admit(check_of(host_mib=1), pool, LaunchSettings())

    assert (plan.slots, plan.ctx) == (4, 2048)


@pytest.mark.req("ORCH-3003")
def test_engines_that_start_together_do_not_count_the_same_memory_twice() -> None:
    check = check_of(host_mib=CPU_MIB * 3 // 2)
    _, hold = check.admit(POOL, LaunchSettings())

    with pytest.raises(DoesNotFit, match="167 MiB are free; it would not fit with fewer slots or"):
        admit(check, POOL, LaunchSettings())
    hold.release()

    assert admit(check, POOL, LaunchSettings()).estimate is not None


def test_a_start_that_is_called_off_holds_no_memory() -> None:
    check = check_of(host_mib=CPU_MIB + 1)
    admitted = check.admit(POOL, LaunchSettings())
    plan = admitted[0]

    del admitted

    assert admit(check, POOL, LaunchSettings()) == plan


def test_a_file_that_is_read_slowly_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.safetensors")  # to be read only once somebody writes
    slow = replace(POOL, id="slow", engine="vllm", model=f"file:{tmp_path}/m.safetensors")
    check = check_of(host_mib=CPU_MIB + 1)
    _, hold = check.admit(POOL, LaunchSettings())
    plans: list[LaunchPlan] = []
    start = threading.Thread(
        target=lambda: plans.append(admit(check, slow, LaunchSettings())), daemon=True
    )
    start.start()
    with (tmp_path / "m.safetensors").open("wb") as writer:  # opens when the reader does

        def others() -> None:
            hold.release()
            check.exhausted("other", None)
            plans.append(admit(check, POOL, LaunchSettings()))

        other = threading.Thread(target=others, daemon=True)
        other.start()
        other.join(WAIT_S)
        waited = other.is_alive()
        writer.write(b"no model")

    start.join(WAIT_S)
    other.join(WAIT_S)

    assert not waited
    assert [plan.unchecked != "" for plan in plans] == [False, True]


def test_a_device_is_one_however_masks_name_it() -> None:
    check = check_of(gpu(0, 1300))
    _, hold = check.admit(on("0"), SERVER)

    with pytest.raises(DoesNotFit, match="on GPU GPU-0"):
        admit(check, on("GPU-00000000"), SERVER)
    hold.release()


@pytest.mark.req("ORCH-3039", partial="how exhaustion is told apart")
def test_with_too_little_memory_slots_and_context_shrink_to_their_minima() -> None:
    pool = replace(POOL, memory=MemorySettings(True, 0.0, slots_min=2, ctx_min=256))

    with capture_logs() as logs:
        fewer = admit(check_of(host_mib=CPU_MIB - 2), pool, LaunchSettings())
        shorter = admit(check_of(host_mib=200), pool, LaunchSettings())

    assert (fewer.slots, fewer.ctx, fewer.reduced) == (3, 2048, True)
    # Two slots leave 200 - 92 - 60 - 1 MiB, which is 1024 tokens of 2 x 22.5 KiB and a little.
    assert (shorter.slots, shorter.ctx) == (2, 1024)
    assert [line["event"] for line in logs] == ["preload.reduced"] * 2


def test_a_command_of_ones_own_is_not_given_less_than_is_configured() -> None:
    pool = replace(POOL, memory=MemorySettings(True, 0.0, slots_min=1, ctx_min=256))
    launch = LaunchSettings(command=("llama-server", "-m", "{model}"))

    with pytest.raises(DoesNotFit):
        admit(check_of(host_mib=600), pool, launch)


@pytest.mark.req("ORCH-3039", partial="how exhaustion is told apart")
def test_after_running_out_of_gpu_memory_the_next_estimate_is_higher() -> None:
    pool = on("0", memory=MemorySettings(True, 0.0, slots_min=1))
    check = check_of(gpu(0, 930))
    first = admit(check, pool, SERVER)

    check.exhausted("p", first.estimate)
    second = admit(check, pool, SERVER)

    assert first.estimate is not None
    assert second.estimate is not None
    assert (first.slots, second.slots) == (4, 1)
    (_, demand) = second.estimate.devices[0]
    assert demand.runtime_bytes == (512 + 256) * MIB


@pytest.mark.req("ORCH-3039", partial="how exhaustion is told apart")
def test_where_the_higher_estimate_leaves_nothing_the_plain_one_is_tried_again() -> None:
    check = check_of(gpu(0, 930))
    plan = admit(check, on("0"), SERVER)
    check.exhausted("p", plan.estimate)

    with pytest.raises(DoesNotFit, match="runtime 768 MiB"):
        admit(check, on("0"), SERVER)

    assert admit(check, on("0"), SERVER).estimate == plan.estimate


@pytest.mark.req("ORCH-3012", partial="the configuration's rules")
def test_devices_that_are_declared_alike_are_looked_at() -> None:
    pool = on("0", "1", homogeneous=True)
    other_kind = gpu(1, 9000, name="NVIDIA T4")
    smaller = gpu(1, 9000, 16 * 1024)
    a_little_less = gpu(1, 9000, 24 * 1024 - 300)

    with pytest.raises(LaunchRefused, match=r"homogeneous is true, but GPU 0 is NVIDIA L4 .* T4"):
        admit(check_of(gpu(0, 9000), other_kind), pool, SERVER)
    with pytest.raises(LaunchRefused, match="with 24576 MiB and GPU 1 is NVIDIA L4 with 16384 MiB"):
        admit(check_of(gpu(0, 9000), smaller), pool, SERVER)
    assert admit(check_of(gpu(0, 9000), a_little_less), pool, SERVER).estimate is not None
    ratios = replace(pool, tensor_split=(3.0, 1.0))
    assert admit(check_of(gpu(0, 9000), smaller), ratios, SERVER).estimate is not None


@pytest.mark.req("ORCH-3011", partial="what the engine is given")
def test_a_device_that_the_driver_does_not_know_is_refused() -> None:
    with pytest.raises(LaunchRefused, match=r"names 7, which is not there .* knows 0 \(GPU-0"):
        admit(check_of(gpu(0, 9000)), on("7"), SERVER)


def test_a_mig_instance_has_the_memory_of_its_slice() -> None:
    instance = MigInstance(0, "MIG-1", 5 * GIB, 5 * GIB - 100 * MIB)
    divided = replace(gpu(0, 9000), mig=(instance,))

    with pytest.raises(DoesNotFit, match=r"on GPU MIG-1 .* 100 MiB are free"):
        admit(check_of(divided), on("MIG-1"), SERVER)


@pytest.mark.parametrize(
    ("pool", "launch", "why"),
    [
        (
            PoolSettings("p", "triton", "/models"),
            LaunchSettings(),
            "no estimate is made for triton",
        ),
        (POOL, SERVER, "the pool has no device mask"),
        (POOL, LaunchSettings(command=("run",)), "the pool has no device mask"),
        (on("0"), LaunchSettings(command=("run",)), "does not name {model}"),
        (on("0", model="repo:org/x"), SERVER, "model 'repo:org/x' is not a file"),
        (on("0", engine="mock"), LaunchSettings(command=("run",)), "no launch profile"),
    ],
)
def test_what_cannot_be_estimated_is_started_and_said(
    pool: PoolSettings, launch: LaunchSettings, why: str
) -> None:
    with capture_logs() as logs:
        plan = admit(check_of(gpu(0, 1), host_mib=1), pool, launch)

    assert plan.estimate is None
    assert why in plan.unchecked
    assert [line["event"] for line in logs] == ["preload.unchecked"]


def test_a_file_that_is_no_model_is_left_to_the_engine_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF, or so it says")

    plan = admit(check_of(), replace(POOL, model=f"file:{tmp_path}/m.gguf"), LaunchSettings())

    assert "m.gguf: version 1919885356 is not supported" in plan.unchecked


@pytest.mark.req("OC-POOL-3002")
@pytest.mark.parametrize("launch", [LaunchSettings(), SERVER], ids=["our launcher", "llama-server"])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "cannot mmap an empty file"),
        (b"not a model at all", "no GGUF magic"),
        (gguf_bytes(llama_metadata(), llama_tensors())[:-1], "cut at byte "),
        (None, "Is a directory"),
    ],
    ids=["empty", "foreign", "cut", "a folder"],
)
def test_a_file_that_no_engine_can_load_starts_none(
    tmp_path: Path, launch: LaunchSettings, content: bytes | None, why: str
) -> None:
    model = tmp_path / "m.gguf"
    if content is None:
        model.mkdir()
    else:
        model.write_bytes(content)
    pool = replace(POOL, model=f"file:{model}")

    with pytest.raises(ModelUnavailable, match=f"m.gguf: {why}"):
        admit(check_of(), pool, launch)

    unchecked = replace(pool, memory=MemorySettings(check=False))
    assert why in admit(check_of(), unchecked, launch).unchecked
    assert why in admit(check_of(), pool, LaunchSettings(command=("run", "{model}"))).unchecked


def test_a_folder_with_a_shard_missing_starts_nothing_and_names_the_shard(tmp_path: Path) -> None:
    shard = safetensors_bytes({"a": ("F16", (64, 64), 8192)})
    write_hugging_face_model(tmp_path, {"model_type": "llama"}, [shard, shard], ["a", "b"])
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    pool = replace(POOL, engine="vllm", model=f"file:{tmp_path}")

    with pytest.raises(ModelUnavailable, match=r"model-00002-of-00002\.safetensors does not exist"):
        admit(check_of(), pool, LaunchSettings())


def test_without_a_driver_the_host_alone_is_checked() -> None:
    check = check_of(message="no NVIDIA driver is installed here")

    plan = admit(check, on("0"), SERVER)

    assert set(plan.rooms) == {"host"}
    with pytest.raises(DoesNotFit, match="of host memory"):
        admit(check_of(host_mib=10, message="no driver"), on("0"), SERVER)


def test_a_model_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    check = check_of()
    pool = replace(POOL, model=f"file:{path}")

    def weights(layers: int, mtime_s: int) -> int:
        path.write_bytes(gguf_bytes(llama_metadata(layers), llama_tensors(layers)))
        os.utime(path, (mtime_s, mtime_s))
        plan = admit(check, pool, LaunchSettings())
        assert plan.estimate is not None
        return plan.estimate.host.weights_bytes

    # A layer is a Q4_0 matrix of 64 x 64 and a norm.
    assert weights(3, 2000) - weights(2, 1000) == 128 * 18 + 256
