"""Triton Inference Server: `tritonserver` on a model repository, which the pool's `model` names.

Slots, context, split and strictness are in the repository's `config.pbtxt` (instance groups,
batching, the engine's own parameters), so a pool that sets `launch.slots`, `tensor_split`,
`launch.draft_model` or `launch.prefix_cache_bytes` is refused instead of being ignored; strict
pools need a model without dynamic batching. What its backends load is not told by a model file, so
there is no estimate of its memory. Metrics are on, on a port of their own. Options: Triton, its
`--help`.
Invariant: see `profile`.
"""

from __future__ import annotations

from pool_managerd.launch_profiles.profile import LaunchProfile, LaunchRefused, LaunchRequest

EXIT_TIMEOUT_S = 3


def _command(program: str, request: LaunchRequest) -> list[str]:
    settings = {
        "launch.slots": request.launch.slots,
        "tensor_split": request.pool.tensor_split,
        "launch.draft_model": request.launch.draft_model,
        "launch.prefix_cache_bytes": request.launch.prefix_cache_bytes,
    }
    for key, value in settings.items():
        if value:
            raise LaunchRefused(
                f"{key} of pool {request.pool.id}: Triton takes it from its model repository"
            )
    command = [program, f"--model-repository={request.model}"]
    command += ["--http-address", request.host, "--http-port", str(request.port)]
    command += ["--allow-grpc=false", "--metrics-address", request.host]
    command += ["--metrics-port", str(request.second_port)]
    return [*command, f"--exit-timeout-secs={EXIT_TIMEOUT_S}"]


def _environment(request: LaunchRequest) -> dict[str, str]:
    return {}


PROFILE = LaunchProfile(
    engine="triton",
    program="tritonserver",
    install="install Triton Inference Server (the package nvidia-pytriton carries one)",
    slots=None,
    memory=None,
    command=_command,
    environment=_environment,
)
