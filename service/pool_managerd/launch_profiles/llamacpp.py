"""llama.cpp: `llama-server` (with `launch.program`, or a `launch.command`), and our launcher of the
CPU build.

Strict: on the CPU four slots give the bytes of one (measured, 64 of 64 seeded streams), so slots
stay as configured. CUDA kernels are chosen by the size of the batch, so there a strict pool takes
`launch.slots: 1`, which becomes `--parallel 1 --no-cont-batching`. A warm prefix differs from a
cold one unless each token is its own batch: `deterministic_prefix_cache` becomes
`--ubatch-size 1` and makes prefill as slow as decoding (measured). `--fit off`: what does not fit
must fail and not shrink silently. `--ctx-size` is the total, which the server deals out to its
slots. Options: llama.cpp, tools/server/README.md. Invariant: see `profile`.
"""

from __future__ import annotations

import sys

from pool_managerd.launch_profiles.profile import LaunchProfile, LaunchRequest
from pool_managerd.memory_estimate import MIB, EngineMemory

SLOTS = 4
CPU_BATCH_TOKENS = 64  # llamacpp_launcher.BATCH_TOKENS
SERVER_BATCH_TOKENS = 512  # llama-server's default for --ubatch-size


def _server_command(program: str, request: LaunchRequest) -> list[str]:
    slots = request.slots or SLOTS
    command = [program, "--model", request.model, "--host", request.host]
    command += ["--port", str(request.port)]
    command += ["--ctx-size", str(request.ctx * slots), "--parallel", str(slots)]
    if slots == 1:
        command.append("--no-cont-batching")
    command += ["--metrics", "--slots", "--no-webui", "--fit", "off", "--n-gpu-layers", "999"]
    command += ["--cache-ram", str(-(-request.launch.prefix_cache_bytes // MIB))]
    if request.devices > 1:
        ratios = request.pool.tensor_split or (1.0,) * request.devices
        command += ["--split-mode", "layer"]
        command += ["--tensor-split", ",".join(f"{ratio:g}" for ratio in ratios)]
    if request.pool.deterministic_prefix_cache:
        command += ["--ubatch-size", "1"]
    if request.draft_model is not None:
        command += ["--spec-type", "draft-simple", "--model-draft", request.draft_model]
        command += ["--n-gpu-layers-draft", "999"]
    return command


def _launcher_command(program: str, request: LaunchRequest) -> list[str]:
    command = [program, "-P", "-m", "pool_managerd.llamacpp_launcher"]
    # The launcher takes the reference itself: it proves the file's digest before it loads it.
    command += ["--model", request.pool.model, "--host", request.host]
    command += ["--port", str(request.port), "--ctx", str(request.ctx)]
    command += ["--parallel", str(request.slots or SLOTS)]
    if request.slots == 1:
        command.append("--no-cont-batching")
    if request.pool.deterministic_prefix_cache:
        command.append("--strict-prefix")
    if request.launch.draft_model is not None:
        command += ["--draft-model", request.launch.draft_model]
    if request.launch.prefix_cache_bytes:
        command += ["--prefix-cache-mib", str(-(-request.launch.prefix_cache_bytes // MIB))]
    return command


def _environment(request: LaunchRequest) -> dict[str, str]:
    return {}


SERVER = LaunchProfile(
    engine="llamacpp",
    program="llama-server",
    install="build llama.cpp with -DGGML_CUDA=ON and put llama-server into PATH",
    slots=SLOTS,
    # The context of CUDA 12 and 13 takes 300 to 550 MiB of a GPU, and the libraries as much of the
    # host; the table of embeddings is not offloaded.
    memory=EngineMemory("layers", SERVER_BATCH_TOKENS, 512 * MIB, 640 * MIB, 256, True),
    command=_server_command,
    environment=_environment,
)
CPU_LAUNCHER = LaunchProfile(
    engine="llamacpp",
    program=sys.executable,
    install="pip install llama-orch[engine]",
    slots=SLOTS,
    # Measured with SmolLM2: 60 MiB that neither context nor slots change, of which the vocabulary
    # of 49152 entries takes about 12.
    memory=EngineMemory("layers", CPU_BATCH_TOKENS, 0, 48 * MIB, 256, False),
    command=_launcher_command,
    environment=_environment,
    on_cpu=True,
)
