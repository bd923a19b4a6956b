"""A scripted `libnvidia-ml.so.1`: NVIDIA's own bindings run against GPUs that a test invents.

The library (`nvml_stub.c`) is built with gcc, once per run. What it answers stands in a file that
it reads anew at each call, so that a GPU changes while the service runs. A process of its own loads
it by `environment`; this process by `load`, since the loader finds a library that is loaded already
by its name. Invariant: a library without a script says that no driver is loaded.

The file has one thing per line; a figure that is not there is one that the GPU does not support:

    driver version=580.65.06
    gpu 0 uuid=GPU-… name=H100 bus=0x10 total_mib=81920 used_mib=1024 … lost=15 gone=1
    mig 0 1 uuid=MIG-… total_mib=10240 used_mib=0      instance 1 of GPU 0
    process gpu=0 slice=1 pid=4711 used_mib=300
    link 0 1 level_code=10 nvlink=1
    event gpu=0 xid=79 number=1                        given out once
    error nvmlDeviceGetPowerUsage code=3               what the function answers
    hang nvmlDeviceGetUUID                             until the line is gone
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml_stub.c")
LIBRARY = "libnvidia-ml.so.1"
SCRIPT_VARIABLE = "SCRIPTED_NVML"
DRIVER = "580.65.06"

# nvmlReturn_t
NOT_SUPPORTED = 3
DRIVER_NOT_LOADED = 9
FUNCTION_NOT_FOUND = 13
LOST = 15
RESET_REQUIRED = 16
# nvmlGpuTopologyLevel_t
SINGLE_SWITCH = 10
SYSTEM = 50

# Over all scripts, since a library that is loaded remembers which ones it gave out.
_event_numbers = itertools.count(1)


def build(directory: Path) -> Path:
    """Build the library into `directory` and return its path. AssertionError without gcc."""
    compiler = shutil.which("gcc")
    assert compiler is not None, (
        "these tests build a library in C: apt-get install gcc libc6-dev (or the like of it)"
    )
    library = directory / LIBRARY
    flags = ["-O1", "-Wall", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}"]
    subprocess.run([compiler, *flags, "-o", str(library), str(SOURCE)], check=True)
    return library


def uuid_of(index: int) -> str:
    """The UUID of a scripted GPU."""
    return f"GPU-{index:08x}-5c12-4d1e-8a5b-0123456789ab"


def mig_uuid_of(index: int, number: int) -> str:
    """The UUID of instance `number` of a scripted GPU."""
    return f"MIG-{index:04x}{number:04x}-77aa-5c12-8a5b-0123456789ab"


@dataclass(slots=True)
class Gpu:
    """A GPU that works; `figures` are those of its line, `instances` make it a divided one."""

    index: int
    figures: dict[str, int | str | None] = field(default_factory=dict)
    instances: dict[int, dict[str, int]] = field(default_factory=dict)
    processes: list[tuple[int, int, int | None]] = field(default_factory=list)

    def runs(self, pid: int, used_mib: int, instance: int | None = None) -> Gpu:
        """A process computes on it, or on one of its instances."""
        self.processes.append((pid, used_mib, instance))
        return self

    def lines(self) -> Iterable[str]:
        """Its part of the script."""
        figures: dict[str, int | str | None] = {
            "uuid": uuid_of(self.index),
            "name": "Scripted_H100",
            "bus": 0x10 + self.index,
            "total_mib": 81920,
            "used_mib": 1024,
            "reserved_mib": 512,
            "util": 10 + self.index,
            "temperature": 40 + self.index,
            "power_mw": 250_500,
            "sm_mhz": 1980,
            "throttle": 0,
            "ecc": 0,
            "mig": int(bool(self.instances)),
            "node": 0,
            "cpus": 0xFF,
        }
        figures |= self.figures
        yield f"gpu {self.index} {_words(figures)}"
        for number, memory in self.instances.items():
            uuid = mig_uuid_of(self.index, number)
            yield f"mig {self.index} {number} {_words({'uuid': uuid, **memory})}"
        for pid, used_mib, instance in self.processes:
            place = "" if instance is None else f" slice={instance}"
            yield f"process gpu={self.index}{place} pid={pid} used_mib={used_mib}"


class ScriptedNvml:
    """The GPUs of a scripted host; each setter takes effect at the next call of the library."""

    def __init__(self, library: Path, script: Path) -> None:
        self._library = library
        self._script = script
        self._gpus: list[Gpu] = []
        self._lines: list[str] = []
        self.has_driver = True
        self.write()

    @property
    def environment(self) -> dict[str, str]:
        """With it a new process has these GPUs."""
        beside = os.environ.get("LD_LIBRARY_PATH")
        paths = [str(self._library.parent), *([beside] if beside else [])]
        return {"LD_LIBRARY_PATH": ":".join(paths), SCRIPT_VARIABLE: str(self._script)}

    def load(self) -> None:
        """Load the library into this process; set `SCRIPT_VARIABLE` while it is used."""
        ctypes.CDLL(str(self._library))

    @property
    def script(self) -> Path:
        return self._script

    def gpus(self, *gpus: Gpu) -> None:
        """These and no others."""
        self._gpus = list(gpus)
        self.write()

    def set(self, index: int, **figures: int | str | None) -> None:
        """Change figures of a GPU; None: it does not support that one (any more)."""
        self._gpu(index).figures |= figures
        self.write()

    def runs(self, index: int, pid: int, used_mib: int, instance: int | None = None) -> None:
        """A process computes on a GPU."""
        self._gpu(index).runs(pid, used_mib, instance)
        self.write()

    def link(self, a: int, b: int, level: int, *, nvlink: bool) -> None:
        """How two GPUs reach each other."""
        self._lines.append(f"link {a} {b} level_code={level} nvlink={int(nvlink)}")
        self.write()

    def xid(self, index: int, xid: int) -> None:
        """The driver reports a critical error, once."""
        self._lines.append(f"event gpu={index} xid={xid} number={next(_event_numbers)}")
        self.write()

    def fails(self, function: str, code: int) -> None:
        """This function of the library answers so, for every device."""
        self._lines.append(f"error {function} code={code}")
        self.write()

    def hangs(self, function: str) -> None:
        """This function of the library does not return until `recovers`."""
        self._lines.append(f"hang {function}")
        self.write()

    def recovers(self) -> None:
        """No function fails or hangs any more."""
        self._lines = [line for line in self._lines if line.split()[0] not in ("error", "hang")]
        self.write()

    def write(self) -> None:
        """Write the script; at once, so that the library never reads a part of it."""
        lines = [f"driver version={DRIVER}"] if self.has_driver else []
        lines += [line for gpu in self._gpus for line in gpu.lines()]
        beside = self._script.with_name(self._script.name + ".new")
        beside.write_text("\n".join([*lines, *self._lines]) + "\n", encoding="ascii")
        beside.replace(self._script)

    def _gpu(self, index: int) -> Gpu:
        return next(gpu for gpu in self._gpus if gpu.index == index)


def _words(figures: dict[str, int | str | None]) -> str:
    return " ".join(f"{name}={value}" for name, value in figures.items() if value is not None)
