"""Command line and environment of a launched engine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pool_managerd.launch_command import LaunchRefused, engine_command, engine_environment
from pool_managerd.model_files import ModelUnavailable
from pool_managerd.settings import LaunchSettings, PoolSettings

POOL = PoolSettings("pool-a", "llamacpp", "builtin:smollm2", quant="q4", ctx=512)


def test_the_default_is_our_launcher_with_the_pools_model_and_context() -> None:
    command = engine_command(POOL, LaunchSettings(args=("--parallel", "2")), "pool-a-0", 9001)

    assert command == [
        *(sys.executable, "-P", "-m", "pool_managerd.llamacpp_launcher"),
        *("--parent-pid", str(os.getpid())),
        *("--model", "builtin:smollm2", "--host", "127.0.0.1", "--port", "9001", "--ctx", "512"),
        *("--parallel", "2"),
    ]


def test_a_deterministic_prefix_cache_is_asked_of_the_default_launcher() -> None:
    pool = PoolSettings("a", "llamacpp", "builtin:smollm2", deterministic_prefix_cache=True)

    assert "--strict-prefix" in engine_command(pool, LaunchSettings(), "a-0", 9001)


def test_a_configured_command_is_filled_in_and_dies_with_us(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"x")
    pool = PoolSettings("a", "llamacpp", f"file:{model}", quant="q8", ctx=4096)
    launch = LaunchSettings(
        command=("llama-server", "-m", "{model}", "--alias={pool_id}/{replica_id}-{quant}"),
        args=("--host", "{host}", "--port", "{port}", "-c", "{ctx}", "--json", "{{}}"),
    )

    command = engine_command(pool, launch, "a-1", 9002)

    assert command[:7] == [
        *(sys.executable, "-P", "-m", "pool_managerd.exec_with_parent"),
        *("--parent-pid", str(os.getpid()), "--"),
    ]
    assert command[7:] == [
        *("llama-server", "-m", str(model), "--alias=a/a-1-q8"),
        *("--host", "127.0.0.1", "--port", "9002", "-c", "4096", "--json", "{}"),
    ]


def test_a_repository_model_goes_to_the_command_by_its_name() -> None:
    pool = PoolSettings("a", "vllm", "repo:org/name")
    launch = LaunchSettings(command=("vllm", "serve", "{model}"))

    assert engine_command(pool, launch, "a-0", 9001)[-1] == "org/name"


@pytest.mark.req("ORCH-3037", partial="the catalog's artifacts, which come later")
def test_a_model_file_is_verified_before_its_path_is_handed_over(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"x")
    pool = PoolSettings("a", "llamacpp", f"file:{model}@sha256:{'0' * 64}")

    with pytest.raises(ModelUnavailable, match="not loaded"):
        engine_command(pool, LaunchSettings(command=("llama-server", "{model}")), "a-0", 9001)


@pytest.mark.parametrize("bad", ["{slots}", "{", "{port.x}", "{0}"])
def test_a_bad_placeholder_is_refused_with_the_known_ones(bad: str) -> None:
    launch = LaunchSettings(command=("llama-server", bad))

    with pytest.raises(LaunchRefused, match=r"bad placeholder .*\{host\} \{port\}"):
        engine_command(POOL, launch, "a-0", 9001)


def test_another_engine_needs_a_command() -> None:
    with pytest.raises(LaunchRefused, match=r"launch\.command is needed for engine 'vllm'"):
        engine_command(PoolSettings("a", "vllm", "repo:x"), LaunchSettings(), "a-0", 9001)


@pytest.mark.req("OC-POOL-3020")
@pytest.mark.req("ORCH-3001", partial="the device mask")
def test_the_device_mask_wins_over_everything_else() -> None:
    pool = PoolSettings("a", "llamacpp", "builtin:smollm2", devices=("1", "GPU-7f"))
    launch = LaunchSettings(env=(("CUDA_VISIBLE_DEVICES", "0"),))

    environment = engine_environment(pool, launch, "m", {"CUDA_VISIBLE_DEVICES": "2"})

    assert environment["CUDA_VISIBLE_DEVICES"] == "1,GPU-7f"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_an_engine_does_not_inherit_the_services_secrets() -> None:
    inherited = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "PYTHONPATH": "/p",
        "ACME_KEY": "secret",
        "LLAMA_ORCH_API_KEY": "secret",
    }
    launch = LaunchSettings(env=(("GGML_X", "1"), ("HF_TOKEN", "given on purpose")))

    environment = engine_environment(POOL, launch, "marker", inherited)

    assert environment == {
        "PATH": "/bin",
        "LC_ALL": "C",
        "PYTHONPATH": "/p",
        "GGML_X": "1",
        "HF_TOKEN": "given on purpose",
        "LLAMA_ORCH_ENGINE": "marker",
    }
