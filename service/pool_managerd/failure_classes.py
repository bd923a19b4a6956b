"""What an engine's end, or a line that it printed, says of memory, driver and GPU.

Between the supervisor of a launched engine and the cause that operators see. Pure: evidence in, a
class and the line that told it out. Patterns are data; each names where its text comes from.

Invariant: a line is believed up to its first quotation mark or brace only. Engines print prompts
quoted or as JSON, and nobody may end a replica by sending "CUDA error" as a prompt.
Requirements: ORCH-3038, ORCH-3039, ORCH-3053, OC-POOL-3010.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pool_managerd.observer import CauseCode

# An engine's last account of itself; older lines may tell of failures that it survived.
LAST_LINES = 200
# A cause is shown to people and logged.
LINE_CHARS = 400
SIGKILL = 9


@dataclass(frozen=True, slots=True)
class Failure:
    """A class, and the evidence in words."""

    code: CauseCode
    evidence: str


@dataclass(frozen=True, slots=True)
class ExitEvidence:
    """All that is known of an engine's end. `exit_code` is negative for a signal, as in
    `subprocess`; `memory_killed`: the kernel killed some process for want of memory since the
    engine's start; `kernel_lines` are those of the kernel's log since the engine's start."""

    pid: int
    exit_code: int
    output: bytes
    memory_killed: bool = False
    kernel_lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pattern:
    """Text that an engine prints, in a line without `unless`. `lasting`: an engine that printed it
    and lives will not work again, so nobody waits for its end."""

    code: CauseCode
    text: bytes
    lasting: bool = False
    unless: bytes = b""


# In order of precedence: what a GPU reports of itself explains the errors that follow from it.
PATTERNS = (
    # Linux driver messages, "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."; numbers:
    # NVIDIA, XID Errors (docs.nvidia.com/deploy/xid-errors). 48 double bit error, 64 row remapping
    # failed, 94 and 95 contained and uncontained ECC error.
    Pattern(CauseCode.GPU_LOST, rb"\bXid \(PCI:[0-9a-fA-F:.]+\): 79\b", lasting=True),
    Pattern(CauseCode.ECC, rb"\bXid \(PCI:[0-9a-fA-F:.]+\): (?:48|64|94|95)\b", lasting=True),
    Pattern(CauseCode.XID, rb"\bXid \(PCI:[0-9a-fA-F:.]+\): \d+", lasting=True),
    # The driver's log and nvmlErrorString, as nvidia-smi prints it.
    Pattern(CauseCode.GPU_LOST, rb"GPU has fallen off the bus|\bGPU is lost\b", lasting=True),
    Pattern(CauseCode.GPU_RESET, rb"GPU requires (?:a )?reset", lasting=True),
    # cudaGetErrorString(cudaErrorECCUncorrectable); vLLM issue 5222, ollama issue 4226.
    Pattern(
        CauseCode.ECC,
        rb"uncorrectable ECC error encountered|CUDA_ERROR_ECC_UNCORRECTABLE",
        lasting=True,
    ),
    # ggml-cuda.cu, ggml-alloc.c, llama-model.cpp; llama.cpp issues 20431, 1230.
    Pattern(CauseCode.VRAM_OOM, rb"cudaMalloc failed: out of memory"),
    Pattern(CauseCode.VRAM_OOM, rb"(?:failed|unable) to allocate CUDA\d+ buffer"),
    Pattern(CauseCode.VRAM_OOM, rb"CUDA error: out of memory|CUDA error 2 at "),
    # PyTorch (vLLM, TGI), before and after its exception was renamed; TGI issues 866, 1354.
    Pattern(CauseCode.VRAM_OOM, rb"torch(?:\.cuda)?\.OutOfMemoryError|CUDA out of memory\b"),
    Pattern(CauseCode.VRAM_OOM, rb"CU(?:BLAS|DNN)_STATUS_ALLOC_FAILED"),
    # vLLM, v1/worker/gpu_worker.py and v1/core/kv_cache_utils.py.
    Pattern(CauseCode.VRAM_OOM, rb"No available memory for the cache blocks"),
    Pattern(
        CauseCode.VRAM_OOM,
        rb"Free memory on device .{0,80}is less than desired GPU memory utilization",
    ),
    Pattern(
        CauseCode.VRAM_OOM,
        rb"larger than the (?:available KV cache memory|maximum number of tokens that can be "
        rb"stored in KV cache)",
    ),
    # TGI, text_generation_server/models/flash_causal_lm.py.
    Pattern(CauseCode.VRAM_OOM, rb"Not enough memory to handle .{0,40}prefill"),
    # TensorRT-LLM and TensorRT under Triton; tensorrtllm_backend issues 195, 281, 438.
    Pattern(CauseCode.VRAM_OOM, rb"CUDA runtime error in .{0,200}: out of memory"),
    Pattern(CauseCode.VRAM_OOM, rb"Cuda Runtime \(out of memory\)|: OutOfMemory \("),
    # ONNX Runtime and TensorFlow under Triton, NCCL.
    Pattern(
        CauseCode.VRAM_OOM,
        rb"CUDA failure 2: out of memory|CUDA_ERROR_OUT_OF_MEMORY|Cuda failure (?:2 )?'out of mem",
    ),
    # cudaGetErrorString, as ggml and PyTorch print it; vLLM issues 24430, 28714.
    Pattern(
        CauseCode.CUDA_ERROR,
        rb"CUDA error: |CUDA error \d+ at ",
        lasting=True,
        unless=rb"out of memory|STATUS_ALLOC_FAILED",
    ),
    Pattern(
        CauseCode.CUDA_ERROR,
        rb"an illegal memory access was encountered|unspecified launch failure|"
        rb"device-side assert triggered|misaligned address",
        lasting=True,
    ),
    Pattern(
        CauseCode.CUDA_ERROR,
        rb"CUDA runtime error in |CUDA failure \d+: |Cuda Runtime \(",
        lasting=True,
        unless=rb"out of memory",
    ),
    # NCCL through PyTorch: DistBackendError, ProcessGroupNCCL's watchdog.
    Pattern(
        CauseCode.CUDA_ERROR,
        rb"NCCL error\b|Watchdog caught collective operation timeout",
        lasting=True,
    ),
    # At its start. An engine that goes on without a GPU printed them too, so they end nothing.
    Pattern(
        CauseCode.CUDA_ERROR,
        rb"CUDA driver version is insufficient|NVIDIA driver on your system is too old|"
        rb"Driver/library version mismatch|no CUDA-capable device is detected|"
        rb"No CUDA GPUs are available|NCCL WARN Cuda failure",
    ),
    # The Linux kernel: mm/oom_kill.c.
    Pattern(CauseCode.HOST_OOM, rb"[Oo]ut of memory: Killed process \d+"),
    # The C++ and Rust runtimes, CPython, PyTorch's allocator, ggml.c, strerror(ENOMEM). Where mlock
    # fails llama.cpp warns and goes on.
    Pattern(CauseCode.HOST_OOM, rb"std::bad_alloc|memory allocation of \d+ bytes failed"),
    Pattern(CauseCode.HOST_OOM, rb"\bMemoryError\b|DefaultCPUAllocator: "),
    Pattern(CauseCode.HOST_OOM, rb"ggml_aligned_malloc: insufficient memory"),
    Pattern(CauseCode.HOST_OOM, rb"(?:failed|unable) to allocate CPU buffer"),
    Pattern(CauseCode.HOST_OOM, rb"Cannot allocate memory|\[Errno 12\]", unless=rb"mlock"),
)

# Cheap to look for in all that an engine prints; every lasting device pattern has one of them.
_HINT = re.compile(
    rb"CUDA|Cuda|Xid|NCCL|GPU|ECC|encountered|launch failure|assert|misalign|Watchdog"
)


def _compiled(pattern: Pattern) -> re.Pattern[bytes]:
    without = b"(?!.*(?:" + pattern.unless + b"))" if pattern.unless else b""
    # Within the first 240 bytes, before any quotation mark or brace; an apostrophe is neither.
    before = rb"(?:[^'\"`{}]|(?<=\w)'(?=\w)){0,240}?"
    return re.compile(without + before + b"(?:" + pattern.text + b")")


_COMPILED = tuple((pattern, _compiled(pattern)) for pattern in PATTERNS)
_LASTING = tuple(entry for entry in _COMPILED if entry[0].lasting)


def classify_exit(evidence: ExitEvidence) -> Failure | None:
    """Why an engine ended, where memory, driver or GPU is to blame; None for anything else."""
    own = [line for line in evidence.kernel_lines if _names(line, evidence.pid)]
    lines = [line.encode(errors="replace") for line in own]
    lines += evidence.output.splitlines()[-LAST_LINES:]
    for pattern, compiled in _COMPILED:
        for line in reversed(lines):
            if compiled.match(line):
                return Failure(pattern.code, _shown(line))
    # A launcher whose worker was killed ends by itself, with a line or a status that says so.
    killed = evidence.exit_code in (-SIGKILL, 128 + SIGKILL) or any(
        b"signal 9" in line or b"SIGKILL" in line for line in lines
    )
    if killed and evidence.memory_killed:
        return Failure(
            CauseCode.HOST_OOM,
            "the kernel killed a process for want of memory since the engine's start",
        )
    return None


def lasting_fault(line: bytes) -> Failure | None:
    """The driver's or GPU's failure that a line of a living engine tells of, if any."""
    if _HINT.search(line):
        for pattern, compiled in _LASTING:
            if compiled.match(line):
                return Failure(pattern.code, _shown(line))
    return None


def may_tell(output: bytes) -> bool:
    """Whether any line of it could be a `lasting_fault`; cheap, for all that an engine prints."""
    return _HINT.search(output) is not None


def _names(kernel_line: str, pid: int) -> bool:
    """Whether the kernel speaks of this process: `Killed process 123 (name)`, `pid=123`,
    `pid='123'`."""
    return re.search(rf"(?:\bprocess |\bpid='?){pid}\b", kernel_line) is not None


def _shown(line: bytes) -> str:
    return line.decode(errors="replace").strip()[:LINE_CHARS]
