"""Text Generation Inference: `text-generation-launcher`.

Strict: its attention kernels depend on the batch and it has no switch against that (its
`--max-batch-size` holds on other hardware than NVIDIA's only), so a strict pool takes
`launch.slots: 1`: `--max-concurrent-requests` lets no second request in, and a batch of one is
always alike. `PREFIX_CACHING` (launcher/src/main.rs, `resolve_attention`) is on where the pool says
`deterministic_prefix_cache`, off otherwise. Its only draft models are its own (Medusa, n-grams).
Shards talk over a socket file and a port of their own, which replicas on one host must not share.
Metrics are always on. Options: TGI documentation, "text-generation-launcher arguments". Invariant:
see `profile`.
"""

from __future__ import annotations

import tempfile

from pool_managerd.launch_profiles.profile import (
    LaunchProfile,
    LaunchRefused,
    LaunchRequest,
    even_split,
)
from pool_managerd.memory_estimate import MIB, EngineMemory

BATCH_TOKENS = 4096  # TGI's default for --max-batch-prefill-tokens


def _command(program: str, request: LaunchRequest) -> list[str]:
    if request.draft_model is not None:
        raise LaunchRefused(
            f"launch.draft_model of pool {request.pool.id}: TGI takes no separate draft model"
        )
    if request.launch.prefix_cache_bytes:
        raise LaunchRefused(
            f"launch.prefix_cache_bytes of pool {request.pool.id}: TGI keeps prefixes in its KV "
            "cache only; use deterministic_prefix_cache"
        )
    if request.ctx < 2:
        raise LaunchRefused(f"ctx of pool {request.pool.id}: TGI needs at least 2 tokens")
    command = [program, "--model-id", request.model, "--hostname", request.host]
    command += ["--port", str(request.port), "--max-total-tokens", str(request.ctx)]
    command += ["--max-input-tokens", str(request.ctx - 1)]
    if request.slots is not None:
        command += ["--max-concurrent-requests", str(request.slots)]
    command += ["--num-shard", str(even_split(request, "TGI"))]
    command += ["--master-port", str(request.second_port)]
    command += ["--shard-uds-path", f"{tempfile.gettempdir()}/llama-orch-tgi-{request.port}"]
    return command


def _environment(request: LaunchRequest) -> dict[str, str]:
    return {"PREFIX_CACHING": "1" if request.pool.deterministic_prefix_cache else "0"}


PROFILE = LaunchProfile(
    engine="tgi",
    program="text-generation-launcher",
    install="build text-generation-inference, or run in its container image",
    slots=None,
    # As vLLM: PyTorch, CUDA context and captured graphs. Not measured.
    memory=EngineMemory("tensors", BATCH_TOKENS, 1536 * MIB, 3072 * MIB, 0, False),
    command=_command,
    environment=_environment,
)
