"""The tensor section of a GGUF file: which tensors there are and how many bytes each takes.

Off a task's path: read before an engine is launched, for the memory it will need. Invariants: a
tensor's bytes lie inside the file, so that a cut download is found before an engine maps it; a
file that is cut or hostile raises `GgufError`, nothing else; the tensors themselves are not read.
Source: the GGUF specification (ggml, docs/gguf.md); block sizes from ggml's type traits.
Requirements: ORCH-3003, ORCH-3037.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from worker_adapters.llamacpp_http.gguf import Cursor, GgufBroken, GgufError, Value, parse_header

TENSORS_MAX = 262_144  # the largest mixture-of-experts files have some thousand
DIMENSIONS_MAX = 4  # GGML_MAX_DIMS
ELEMENTS_MAX = 2**62
ALIGNMENT_DEFAULT = 32  # general.alignment where the file does not say
_U32 = struct.Struct("<I")

# ggml type -> (elements of a block, bytes of a block).
BLOCKS: dict[int, tuple[int, int]] = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 40),  # Q8_1
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
    40: (64, 36),  # NVFP4
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `dimensions` as GGUF has them (innermost first), `size_bytes` in the file."""

    name: str
    dimensions: tuple[int, ...]
    type: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What one file says; `path` is for messages."""

    path: Path
    metadata: dict[str, Value]
    tensors: tuple[TensorInfo, ...]


def parse_file(data: bytes | mmap.mmap, path: Path) -> GgufFile:
    """Metadata and tensors of a whole GGUF file; only its header is read.

    Raises:
        GgufError: not GGUF, an unsupported version, cut, or with numbers that cannot be.
    """
    metadata, count, cursor = parse_header(data)
    if count > TENSORS_MAX:
        raise GgufError(f"{count} tensors are more than {TENSORS_MAX}")
    entries = [_entry(cursor) for _ in range(count)]
    alignment = metadata.get("general.alignment", ALIGNMENT_DEFAULT)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20:
        raise GgufError(f"general.alignment is {str(alignment)[:40]}")
    start = -(-cursor.at // alignment) * alignment
    room = len(data) - start
    sizes = _sizes([(offset, size) for *_, offset, size in entries], max(room, 0))
    tensors = []
    for (name, dimensions, kind, offset, _), size in zip(entries, sizes, strict=True):
        if offset + size > room:
            end = start + offset + size
            raise GgufBroken(f"cut at byte {len(data)}: tensor {name[:80]!r} ends at byte {end}")
        tensors.append(TensorInfo(name, dimensions, kind, size))
    return GgufFile(path, metadata, tuple(tensors))


def read_file(path: Path) -> GgufFile:
    """As `parse_file`, of the file at `path`.

    Raises:
        GgufError: see `parse_file`; also for an empty file.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file cannot be mapped
            raise GgufBroken(str(error)) from error
        with mapped:
            return parse_file(mapped, path)


def _entry(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int, int | None]:
    """Name, dimensions, type, offset, and bytes where the type is known."""
    name = cursor.text()
    rank = cursor.count(_U32)
    if rank > DIMENSIONS_MAX:
        raise GgufError(f"tensor {name[:80]!r} has {rank} dimensions, more than {DIMENSIONS_MAX}")
    dimensions = tuple(cursor.count() for _ in range(rank))
    elements = 1
    for length in dimensions:
        elements *= length
    if elements > ELEMENTS_MAX:
        raise GgufError(f"tensor {name[:80]!r} has {elements} elements, more than {ELEMENTS_MAX}")
    kind, offset = cursor.count(_U32), cursor.count()
    block = BLOCKS.get(kind)
    if block is None:
        return name, dimensions, kind, offset, None
    return name, dimensions, kind, offset, -(-elements // block[0]) * block[1]


def _sizes(placed: list[tuple[int, int | None]], room_bytes: int) -> list[int]:
    """Bytes of each tensor; one of a type that is newer than our table reaches to the next one."""
    if all(size is not None for _, size in placed):
        return [size for _, size in placed if size is not None]
    offsets = sorted({offset for offset, _ in placed} | {room_bytes})
    following = dict(pairwise(offsets))
    return [
        size if size is not None else max(0, following.get(offset, offset) - offset)
        for offset, size in placed
    ]
