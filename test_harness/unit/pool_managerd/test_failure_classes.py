"""What engines and kernels print when memory, driver or GPU fail them, line by line.

The lines are those of real reports: the issues named in `failure_classes` and the projects' own
sources; addresses and paths are shortened.
"""

from __future__ import annotations

import pytest

from pool_managerd.failure_classes import (
    PATTERNS,
    ExitEvidence,
    Failure,
    classify_exit,
    lasting_fault,
    may_tell,
)
from pool_managerd.observer import CauseCode

LLAMACPP = {
    "vram-oom": (
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 144817.04 MiB on device 0: "
        "cudaMalloc failed: out of memory",
        "alloc_tensor_range: failed to allocate CUDA0 buffer of size 151851674624",
        "ggml_gallocr_reserve_n: failed to allocate CUDA4 buffer of size 150995968",
        "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
        "CUDA error: out of memory",
        "CUDA error 2 at ggml-cuda.cu:359: out of memory",
    ),
    "host-oom": (
        "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 437944320\n"
        "alloc_tensor_range: failed to allocate CPU buffer of size 437944320",
        "llama_model_load: error loading model: unable to allocate CPU buffer",
        "llama_model_load: error loading model: mmap failed: Cannot allocate memory",
        "ggml_aligned_malloc: insufficient memory (attempted to allocate 4096.00 MB)",
        "terminate called after throwing an instance of\n  what():  std::bad_alloc",
    ),
    "cuda-error": (
        "CUDA error: an illegal memory access was encountered\n"
        "  current device: 0, in function ggml_backend_cuda_synchronize at ggml-cuda.cu:2450",
        "CUDA error: unspecified launch failure",
        "CUDA error: no kernel image is available for execution on the device",
        "ggml_cuda_init: failed to initialize CUDA: CUDA driver version is insufficient for CUDA "
        "runtime version",
    ),
    "ecc": ("CUDA error: uncorrectable ECC error encountered",),
}
VLLM = {
    "vram-oom": (
        "(EngineCore_DP0 pid=65064) ERROR 01-08 11:19:33 [core.py:866] torch.OutOfMemoryError: "
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 GiB",
        "ValueError: No available memory for the cache blocks. Try increasing "
        "`gpu_memory_utilization` when initializing the engine.",
        "ValueError: Free memory on device (3.2/23.69 GiB) on startup is less than desired GPU "
        "memory utilization (0.9, 21.32 GiB).",
        "ValueError: The model's max seq len (32768) is larger than the maximum number of tokens "
        "that can be stored in KV cache (17648).",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ),
    "cuda-error": (
        "(Worker_PP0 pid=23220) ERROR 07-15 21:01:01 [multiproc_executor.py:1007] "
        "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
        "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1970, unhandled "
        "cuda error",
        "[rank0]:[E815 12:00:00] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL",
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
        "RuntimeError: No CUDA GPUs are available",
    ),
    "ecc": ("RuntimeError: CUDA error: uncorrectable ECC error encountered",),
    "host-oom": (
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate "
        "memory: you tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)",
        "MemoryError",
        "OSError: [Errno 12] Cannot allocate memory",
    ),
}
TGI = {
    "vram-oom": (
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 128.00 MiB (GPU 0; "
        "15.77 GiB total capacity; 15.37 GiB already allocated)",
        "RuntimeError: Not enough memory to handle 4096 prefill tokens. You need to decrease "
        "`--max-batch-prefill-tokens`",
    ),
    "cuda-error": (
        "RuntimeError: CUDA error: device-side assert triggered",
        "RuntimeError: CUDA error: operation not supported",
    ),
    "host-oom": ("memory allocation of 34359738368 bytes failed",),
}
TRITON = {
    "vram-oom": (
        "E1103 02:59:01.152656 81041 backend_model.cc:553] ERROR: Failed to create instance: "
        "unexpected error when creating modelInstanceState: [TensorRT-LLM][ERROR] CUDA runtime "
        "error in ::cudaMallocAsync(ptr, n, mCudaStream->get()): out of memory (tllmBuffers.h:112)",
        "[TensorRT-LLM][ERROR] 1: [defaultAllocator.cpp::allocate::20] Error Code 1: Cuda Runtime "
        "(out of memory)",
        "[E] 2: [engine.cpp::createExecutionContext] Error Code 2: OutOfMemory (Requested size was "
        "1073741824 bytes.)",
        "onnxruntime::CudaCall CUDA failure 2: out of memory ; GPU=0 ; hostname=a",
    ),
    "cuda-error": (
        "[TensorRT-LLM][ERROR] Error Code 1: Cuda Runtime (an illegal memory access was "
        "encountered)",
        "[TensorRT-LLM][ERROR] CUDA runtime error in cudaDeviceGetDefaultMemPool(&memPool, "
        "device): operation not supported (bufferManager.cpp:170)",
    ),
}
DRIVER = {
    "gpu-lost": (
        "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', GPU has fallen off the bus.",
        "Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost.  Reboot the "
        "system to recover this GPU",
    ),
    "ecc": ("NVRM: Xid (PCI:0000:65:00): 48, pid=2112, name=python, DBE (double bit error)",),
    "xid": ("NVRM: Xid (PCI:0000:65:00): 31, pid=2112, Ch 00000010, MMU Fault: ENGINE GRAPHICS",),
    "gpu-reset": ("nvidia-smi: GPU requires reset",),
}
PRINTED = [
    pytest.param(line, code, id=f"{source}-{code}-{number}")
    for source, lines in {
        "llama.cpp": LLAMACPP,
        "vllm": VLLM,
        "tgi": TGI,
        "triton": TRITON,
        "driver": DRIVER,
    }.items()
    for code, printed in lines.items()
    for number, line in enumerate(printed)
]
# Warnings of engines that go on, words of users, and ends that have nothing to do with memory.
HARMLESS = (
    "warning: failed to mlock 12345-byte buffer (after previously locking 0 bytes): Cannot "
    "allocate memory",
    "ggml_cuda_host_malloc: failed to allocate 1024.00 MiB of pinned memory: out of memory",
    "ggml_cuda_init: found 1 CUDA devices:",
    "INFO 09-08 [logger.py:41] Received request cmpl-1: prompt: 'CUDA error: an illegal memory "
    "access was encountered', params: SamplingParams(n=1)",
    '{"prompt": "CUDA out of memory. NVRM: Xid (PCI:0000:3b:00): 79, GPU is lost"}',
    "couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080",
    "GGML_ASSERT(n_tokens <= n_batch) failed",
)


def end(output: str, *, exit_code: int = 1, **more: object) -> Failure | None:
    evidence = {"pid": 4711, "exit_code": exit_code, "output": output.encode(), **more}
    return classify_exit(ExitEvidence(**evidence))  # type: ignore[arg-type]


@pytest.mark.req("ORCH-3039", partial="what follows from it")
@pytest.mark.req("ORCH-3053", partial="restart storms")
@pytest.mark.parametrize(("line", "code"), PRINTED)
def test_an_engine_that_ended_is_classed_by_what_it_printed(line: str, code: str) -> None:
    failure = end(f"loading\n{line}\nllama_server: exiting\n")

    assert failure is not None
    assert failure.code == code
    assert failure.evidence in line


@pytest.mark.parametrize("line", HARMLESS)
def test_warnings_and_words_of_users_are_no_failure(line: str) -> None:
    assert end(f"{line}\nsegmentation fault\n") is None
    assert lasting_fault(line.encode()) is None


@pytest.mark.req("ORCH-3038", partial="what follows from it")
@pytest.mark.parametrize(("line", "code"), PRINTED)
def test_a_living_engine_is_given_up_for_failures_of_driver_and_gpu_only(
    line: str, code: str
) -> None:
    told = {lasting_fault(part.encode()) for part in line.split("\n")}
    starts_without_gpu = ("insufficient", "too old", "No CUDA GPUs")

    codes = {failure.code.value for failure in told if failure is not None}

    lives_on = code in ("vram-oom", "host-oom") or any(word in line for word in starts_without_gpu)
    assert codes == (set() if lives_on else {code})


@pytest.mark.parametrize(("line", "code"), PRINTED)
def test_the_cheap_look_misses_nothing(line: str, code: str) -> None:
    if any(lasting_fault(part.encode()) is not None for part in line.split("\n")):
        assert may_tell(line.encode())


def test_every_pattern_has_a_sample() -> None:
    samples = [
        line.encode()
        for lines in (LLAMACPP, VLLM, TGI, TRITON, DRIVER)
        for printed in lines.values()
        for sample in printed
        for line in sample.split("\n")
    ]
    ends = {failure.code for line in samples if (failure := end(line.decode())) is not None}

    assert ends == {pattern.code for pattern in PATTERNS}


def test_what_the_gpu_says_of_itself_explains_what_followed() -> None:
    failure = end(
        "CUDA error: unspecified launch failure\nCUDA error: out of memory\n"
        "CUDA error: uncorrectable ECC error encountered\nCUDA error: unknown error\n"
    )

    assert failure is not None
    assert failure.code is CauseCode.ECC


def test_a_failure_that_the_engine_survived_long_ago_is_not_its_end() -> None:
    assert end("torch.OutOfMemoryError: CUDA out of memory\n" + "served\n" * 200) is None


@pytest.mark.parametrize("exit_code", [-9, 137])
def test_sigkill_is_want_of_memory_only_where_the_kernel_says_so(exit_code: int) -> None:
    killed = end("served\n", exit_code=exit_code, memory_killed=True)

    assert killed is not None
    assert killed.code is CauseCode.HOST_OOM
    assert end("served\n", exit_code=exit_code) is None
    assert end("served\n", exit_code=1, memory_killed=True) is None


def test_a_launcher_whose_worker_was_killed_is_classed_with_it() -> None:
    output = (
        "Shard process was signaled to shutdown with signal 9 rank=0\nError: ShardCannotStart\n"
    )

    killed = end(output, memory_killed=True)

    assert killed is not None
    assert killed.code is CauseCode.HOST_OOM
    assert end(output) is None


def test_the_kernels_log_counts_where_it_names_this_process() -> None:
    own = "Memory cgroup out of memory: Killed process 4711 (llama-server) total-vm:9kB"
    xid = "NVRM: Xid (PCI:0000:65:00): 31, pid=4711, name=llama-server, Ch 00000010"
    others = ("Out of memory: Killed process 47110 (x)", "NVRM: Xid (PCI:0000:65:00): 79, pid=9")

    killed, faulted = end("", kernel_lines=(own,)), end("", kernel_lines=(xid,))

    assert killed is not None
    assert (killed.code, killed.evidence) == (CauseCode.HOST_OOM, own)
    assert faulted is not None
    assert faulted.code is CauseCode.XID
    assert end("", exit_code=-9, kernel_lines=others) is None
