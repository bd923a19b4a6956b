"""A small reader of GGUF metadata, for one figure: bytes of KV cache per token.

Off the request's path: read once per model file, when a replica becomes Ready. Invariants: every
length is checked against the file before it is used; a file that is cut, foreign or hostile raises
`GgufError`, nothing else; tensors are never read.
Source: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3, little-endian.
Requirements: ORCH-3032, ORCH-3022.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path

MAGIC = b"GGUF"
VERSIONS = (2, 3)
KEYS_MAX = 65_536  # real files have 20 to 60
ARRAY_KEPT_MAX = 4_096  # per-layer lists are kept, vocabularies are skipped
KV_ELEMENT_BYTES = 2  # f16, llama.cpp's default type for K and V

_SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

Value = bool | int | float | str | list[bool | int | float]


class GgufError(ValueError):
    """The file is not a GGUF file that this reader understands."""


class _Cursor:
    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def take(self, length_bytes: int) -> bytes:
        end = self._at + length_bytes
        if end > len(self._data):
            raise GgufError(f"cut at byte {len(self._data)}: {length_bytes} more were announced")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def skip(self, length_bytes: int) -> None:
        if self._at + length_bytes > len(self._data):
            raise GgufError(f"cut at byte {len(self._data)}: {length_bytes} more were announced")
        self._at += length_bytes

    def number(self, form: struct.Struct) -> bool | int | float:
        value: bool | int | float = form.unpack(self.take(form.size))[0]
        return value

    def count(self, form: struct.Struct = _U64) -> int:
        return int(self.number(form))

    def text(self) -> str:
        return self.take(self.count()).decode("utf-8", "replace")

    def value(self) -> Value | None:
        """The next typed value; None for an array that is skipped."""
        kind = self.count(_U32)
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_scalar(kind))
        element, length = self.count(_U32), self.count()
        if element == _STRING:
            for _ in range(length):
                self.skip(self.count())
            return None
        form = _scalar(element)
        if length > ARRAY_KEPT_MAX:
            self.skip(length * form.size)
            return None
        return [self.number(form) for _ in range(length)]


def _scalar(kind: int) -> struct.Struct:
    form = _SCALARS.get(kind)
    if form is None:
        raise GgufError(f"unknown value type {kind}")
    return form


def parse_metadata(data: bytes | mmap.mmap) -> dict[str, Value]:
    """The key-value section of a GGUF file; string arrays and long arrays are left out.

    Raises:
        GgufError: not GGUF, an unsupported version, or cut.
    """
    cursor = _Cursor(data)
    if cursor.take(4) != MAGIC:
        raise GgufError("no GGUF magic")
    version = cursor.count(_U32)
    if version not in VERSIONS:
        raise GgufError(f"version {version} is not supported")
    cursor.count()  # number of tensors
    keys = cursor.count()
    if keys > KEYS_MAX:
        raise GgufError(f"{keys} keys are more than {KEYS_MAX}")
    metadata: dict[str, Value] = {}
    for _ in range(keys):
        key = cursor.text()
        value = cursor.value()
        if value is not None:
            metadata[key] = value
    return metadata


def read_metadata(path: Path) -> dict[str, Value]:
    """As `parse_metadata`, of the file at `path`, without reading its tensors.

    Raises:
        GgufError: see `parse_metadata`; also for an empty file.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file cannot be mapped
            raise GgufError(str(error)) from error
        with mapped:
            return parse_metadata(mapped)


def kv_bytes_per_token(metadata: Mapping[str, Value]) -> int:
    """Bytes that one token's keys and values take over all layers, in f16.

    Raises:
        GgufError: a figure that is needed is missing or not a number.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise GgufError("general.architecture is missing")

    def figure(name: str) -> int:
        value = metadata.get(f"{architecture}.{name}")
        if not isinstance(value, int) or value <= 0:
            raise GgufError(f"{architecture}.{name} is missing")
        return value

    layers = figure("block_count")
    kv_heads = metadata.get(f"{architecture}.attention.head_count_kv")
    if isinstance(kv_heads, list):
        heads = sum(int(count) for count in kv_heads)  # one entry a layer
    elif isinstance(kv_heads, int):
        heads = kv_heads * layers
    else:
        heads = figure("attention.head_count") * layers
    widths = 0
    for name in ("key_length", "value_length"):
        if f"{architecture}.attention.{name}" in metadata:
            widths += figure(f"attention.{name}")
        else:
            widths += figure("embedding_length") // figure("attention.head_count")
    return heads * widths * KV_ELEMENT_BYTES
