"""Each engine's command line and environment, from a pool's settings."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from pool_managerd.launch_profiles import LaunchRefused, LaunchRequest, profile_of, runs_on_cpu
from pool_managerd.settings import LaunchSettings, PoolSettings

GIB = 1024**3


def request(engine: str, launch: LaunchSettings, **pool: object) -> LaunchRequest:
    settings = replace(PoolSettings("p", engine, "repo:org/model", ctx=2048), **pool)  # type: ignore[arg-type]
    return LaunchRequest(
        pool=settings,
        launch=launch,
        host="127.0.0.1",
        port=9001,
        second_port=9002,
        model="/models/m",
        draft_model="/models/d" if launch.draft_model else None,
        slots=launch.slots,
        ctx=settings.ctx,
        kv_bytes_per_device=3 * GIB,
    )


def command_of(engine: str, launch: LaunchSettings, **pool: object) -> list[str]:
    wanted = request(engine, launch, **pool)
    return profile_of(wanted.pool, launch).command("engine", wanted)


def environment_of(engine: str, launch: LaunchSettings, **pool: object) -> dict[str, str]:
    wanted = request(engine, launch, **pool)
    return profile_of(wanted.pool, launch).environment(wanted)


def has(command: list[str], *words: str) -> bool:
    """Whether the words stand in the command, one after the other."""
    return any(tuple(command[at : at + len(words)]) == words for at in range(len(command)))


def test_llama_server_gets_the_context_of_all_its_slots_and_must_not_shrink_it() -> None:
    command = command_of("llamacpp", LaunchSettings(program="llama-server"), devices=("0",))

    assert command == [
        *("engine", "--model", "/models/m", "--host", "127.0.0.1", "--port", "9001"),
        *("--ctx-size", "8192", "--parallel", "4", "--metrics", "--slots", "--no-webui"),
        *("--fit", "off", "--n-gpu-layers", "999", "--cache-ram", "0"),
    ]


def test_one_slot_of_llama_cpp_decodes_one_task_after_the_other() -> None:
    gpu = command_of("llamacpp", LaunchSettings(program="x", slots=1), devices=("0",))
    cpu = command_of("llamacpp", LaunchSettings(slots=1))

    assert has(gpu, "--parallel", "1", "--no-cont-batching")
    assert has(cpu, "--parallel", "1", "--no-cont-batching")


@pytest.mark.req("ORCH-3012", partial="the launch; the configuration's rules are proved beside it")
@pytest.mark.parametrize(("split", "ratios"), [((3.0, 1.0), "3,1"), (None, "1,1")])
def test_llama_server_splits_by_the_ratios_or_evenly(
    split: tuple[float, ...] | None, ratios: str
) -> None:
    launch = LaunchSettings(program="llama-server")

    command = command_of("llamacpp", launch, devices=("0", "1"), tensor_split=split)

    assert has(command, "--split-mode", "layer", "--tensor-split", ratios)


def test_llama_cpp_drafts_and_keeps_prefixes_where_it_is_told_to() -> None:
    launch = LaunchSettings(program="x", draft_model="file:/models/d", prefix_cache_bytes=GIB)

    gpu = command_of("llamacpp", launch, devices=("0",), deterministic_prefix_cache=True)
    cpu = command_of("llamacpp", replace(launch, program=None), deterministic_prefix_cache=True)

    assert has(gpu, "--spec-type", "draft-simple", "--model-draft", "/models/d")
    assert has(gpu, "--cache-ram", "1024")
    assert has(gpu, "--ubatch-size", "1")
    assert has(cpu, "--strict-prefix", "--draft-model", "file:/models/d")
    assert has(cpu, "--prefix-cache-mib", "1024")


def test_without_a_program_llama_cpp_is_our_launcher_of_the_cpu_build() -> None:
    pool = PoolSettings("p", "llamacpp", "builtin:smollm2", ctx=512)

    assert command_of("llamacpp", LaunchSettings())[:4] == [
        *("engine", "-P", "-m", "pool_managerd.llamacpp_launcher")
    ]
    assert profile_of(pool, LaunchSettings()).program == sys.executable
    assert runs_on_cpu(pool, LaunchSettings())
    assert not runs_on_cpu(pool, LaunchSettings(program="llama-server"))
    assert not runs_on_cpu(pool, LaunchSettings(command=("llama-server",)))
    assert not runs_on_cpu(replace(pool, engine="vllm"), LaunchSettings())


def test_vllm_shares_tensors_over_its_devices_and_takes_the_kv_that_was_estimated() -> None:
    launch = LaunchSettings(slots=8)

    command = command_of("vllm", launch, devices=("0", "1"), homogeneous=True)

    assert command == [
        *("engine", "serve", "/models/m", "--host", "127.0.0.1", "--port", "9001"),
        *("--max-model-len", "2048", "--seed", "0", "--max-num-seqs", "8"),
        *("--kv-cache-memory-bytes", str(3 * GIB), "--tensor-parallel-size", "2"),
        "--no-enable-prefix-caching",
    ]


def test_vllm_keeps_strict_promises_by_batch_invariance_or_by_one_task_at_a_time() -> None:
    many = environment_of("vllm", LaunchSettings(slots=8), devices=("0",))
    one = environment_of("vllm", LaunchSettings(slots=1), devices=("0",))
    cpu = environment_of("vllm", LaunchSettings(slots=8))

    assert many == {"VLLM_NO_USAGE_STATS": "1", "VLLM_BATCH_INVARIANT": "1"}
    assert one == {"VLLM_NO_USAGE_STATS": "1"}
    assert cpu == {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "3"}


def test_vllm_without_slots_keeps_its_own_default() -> None:
    command = command_of("vllm", LaunchSettings(), devices=("0",))

    assert "--max-num-seqs" not in command
    assert "--kv-cache-memory-bytes" not in command


def test_vllm_drafts_and_keeps_prefixes_where_it_is_told_to() -> None:
    launch = LaunchSettings(draft_model="file:/models/d", prefix_cache_bytes=3 * GIB // 2)

    command = command_of("vllm", launch, devices=("0",))

    assert has(command, "--enable-prefix-caching", "--kv-offloading-backend", "native")
    assert has(command, "--kv-offloading-size", "1.500")
    assert json.loads(command[-1]) == {
        "method": "draft_model",
        "model": "/models/d",
        "num_speculative_tokens": 3,
    }


def test_tgi_gets_shards_slots_and_ports_of_its_own() -> None:
    command = command_of("tgi", LaunchSettings(slots=1), devices=("0", "1"), homogeneous=True)
    environment = environment_of("tgi", LaunchSettings())

    assert has(command, "--model-id", "/models/m", "--hostname", "127.0.0.1", "--port", "9001")
    assert has(command, "--max-total-tokens", "2048", "--max-input-tokens", "2047")
    assert has(command, "--max-concurrent-requests", "1", "--num-shard", "2")
    assert has(command, "--master-port", "9002")
    assert environment == {"PREFIX_CACHING": "0"}


def test_triton_serves_its_repository_with_metrics_on_a_port_of_their_own() -> None:
    assert command_of("triton", LaunchSettings()) == [
        *("engine", "--model-repository=/models/m", "--http-address", "127.0.0.1"),
        *("--http-port", "9001", "--allow-grpc=false", "--metrics-address", "127.0.0.1"),
        *("--metrics-port", "9002", "--exit-timeout-secs=3"),
    ]


@pytest.mark.parametrize(
    ("engine", "launch", "pool", "problem"),
    [
        ("vllm", LaunchSettings(), {"tensor_split": (3.0, 1.0)}, "tensor_split of pool p: vLLM"),
        ("tgi", LaunchSettings(), {"tensor_split": (3.0, 1.0)}, "tensor_split of pool p: TGI"),
        ("tgi", LaunchSettings(draft_model="d"), {}, "launch.draft_model of pool p: TGI"),
        ("tgi", LaunchSettings(prefix_cache_bytes=1), {}, "launch.prefix_cache_bytes of pool p"),
        ("tgi", LaunchSettings(), {"ctx": 1}, "ctx of pool p: TGI needs at least 2"),
        ("triton", LaunchSettings(slots=2), {}, "launch.slots of pool p: Triton"),
        ("triton", LaunchSettings(draft_model="d"), {}, "launch.draft_model of pool p: Triton"),
        ("mock", LaunchSettings(), {}, "no launch profile for engine 'mock'"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_by_its_key(
    engine: str, launch: LaunchSettings, pool: dict[str, object], problem: str
) -> None:
    with pytest.raises(LaunchRefused, match=problem):
        command_of(engine, launch, devices=("0", "1"), **pool)
