"""Command line and environment of a launched engine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pool_managerd.launch_command import engine_command, engine_environment
from pool_managerd.launch_profiles import LaunchRefused
from pool_managerd.model_files import ModelUnavailable
from pool_managerd.settings import LaunchSettings, PoolSettings

POOL = PoolSettings("pool-a", "llamacpp", "builtin:smollm2", quant="q4", ctx=512)


def test_the_default_is_our_launcher_with_the_pools_model_and_context() -> None:
    command = engine_command(POOL, LaunchSettings(args=("--parallel", "2")), "pool-a-0", 9001)

    assert command == [
        *(sys.executable, "-P", "-m", "pool_managerd.llamacpp_launcher"),
        *("--model", "builtin:smollm2", "--host", "127.0.0.1", "--port", "9001", "--ctx", "512"),
        *("--parallel", "4", "--parallel", "2"),  # the last one counts
        *("--parent-pid", str(os.getpid())),
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


@pytest.mark.parametrize(
    ("engine", "program", "advice"),
    [
        ("vllm", "vllm", "pip install vllm"),
        ("tgi", "text-generation-launcher", "build text-generation-inference"),
        ("triton", "tritonserver", "install Triton"),
    ],
)
def test_an_engine_that_is_not_installed_is_refused_with_what_to_install(
    engine: str, program: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    pool = PoolSettings("a", engine, "repo:x")

    with pytest.raises(LaunchRefused, match=f"PATH has no program '{program}'; {advice}"):
        engine_command(pool, LaunchSettings(), "a-0", 9001)


def test_a_program_of_ones_own_that_is_not_there_is_refused_by_its_key() -> None:
    launch = LaunchSettings(program="/opt/llama/llama-server")

    with pytest.raises(LaunchRefused, match=r"launch\.program has no program '/opt/llama"):
        engine_command(POOL, launch, "a-0", 9001)


def test_a_program_of_ones_own_is_started_by_the_engines_profile_and_dies_with_us(
    tmp_path: Path,
) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    launch = LaunchSettings(program=str(program), args=("--threads", "2"))

    command = engine_command(POOL, launch, "pool-a-0", 9001)

    assert command[3:7] == [
        "pool_managerd.exec_with_parent",
        "--parent-pid",
        str(os.getpid()),
        "--",
    ]
    assert command[7:9] == [str(program), "--model"]
    assert command[-2:] == ["--threads", "2"]


@pytest.mark.req("OC-POOL-3020")
@pytest.mark.req("ORCH-3001", partial="the device mask")
def test_the_device_mask_wins_over_everything_else() -> None:
    pool = PoolSettings("a", "llamacpp", "builtin:smollm2", devices=("1", "GPU-7f"))
    launch = LaunchSettings(env=(("CUDA_VISIBLE_DEVICES", "0"),))

    environment = engine_environment(pool, launch, "m", {"CUDA_VISIBLE_DEVICES": "2"})

    assert environment["CUDA_VISIBLE_DEVICES"] == "1,GPU-7f"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_configured_variable_wins_over_the_profiles() -> None:
    launch = LaunchSettings(env=(("VLLM_BATCH_INVARIANT", "0"),))
    profiled = {"VLLM_BATCH_INVARIANT": "1", "VLLM_NO_USAGE_STATS": "1"}

    environment = engine_environment(POOL, launch, "m", {}, profiled)

    assert environment["VLLM_BATCH_INVARIANT"] == "0"
    assert environment["VLLM_NO_USAGE_STATS"] == "1"


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
