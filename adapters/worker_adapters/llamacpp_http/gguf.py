"""A small reader of GGUF metadata: what a model's shape is, and bytes of KV cache per token.

Off the request's path: read once per model file, when a replica becomes Ready, and before an engine
is launched (with `gguf_tensors`). Invariants: every length is checked against the file before it
is used; a file that is cut, foreign or hostile raises `GgufError`, nothing else; tensors are never
read.
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
TEXT_BYTES_MAX = 16 * 1024 * 1024  # chat templates have some tens of kilobytes
STRINGS_MAX = 8_388_608  # the largest vocabularies have a million entries
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


class GgufBroken(GgufError):
    """It is no GGUF file, or not all of one: nothing can load it."""


class Cursor:
    """Reads a file's header in order; every method raises `GgufError` beyond the file's end."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data
        self._at = 0

    @property
    def at(self) -> int:
        """Bytes read so far."""
        return self._at

    def take(self, length_bytes: int) -> bytes:
        end = self._at + length_bytes
        if end > len(self._data):
            raise GgufBroken(f"cut at byte {len(self._data)}: {length_bytes} more were announced")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def skip(self, length_bytes: int) -> None:
        if self._at + length_bytes > len(self._data):
            raise GgufBroken(f"cut at byte {len(self._data)}: {length_bytes} more were announced")
        self._at += length_bytes

    def number(self, form: struct.Struct) -> bool | int | float:
        value: bool | int | float = form.unpack(self.take(form.size))[0]
        return value

    def count(self, form: struct.Struct = _U64) -> int:
        return int(self.number(form))

    def text(self) -> str:
        length_bytes = self.count()
        if length_bytes > TEXT_BYTES_MAX and length_bytes <= len(self._data):
            raise GgufError(f"a text of {length_bytes} bytes is longer than {TEXT_BYTES_MAX}")
        return self.take(length_bytes).decode("utf-8", "replace")

    def value(self) -> Value | None:
        """The next typed value; None for an array that is skipped."""
        kind = self.count(_U32)
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_scalar(kind))
        element, length = self.count(_U32), self.count()
        if element == _STRING:
            if length > STRINGS_MAX:
                raise GgufError(f"a list of {length} texts is longer than {STRINGS_MAX}")
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
    return parse_header(data)[0]


def parse_header(data: bytes | mmap.mmap) -> tuple[dict[str, Value], int, Cursor]:
    """As `parse_metadata`, with the number of tensors and the cursor at the first one's entry.

    Raises:
        GgufError: see `parse_metadata`.
    """
    cursor = Cursor(data)
    if cursor.take(4) != MAGIC:
        raise GgufBroken("no GGUF magic")
    version = cursor.count(_U32)
    if version not in VERSIONS:
        raise GgufError(f"version {version} is not supported")
    tensors = cursor.count()
    keys = cursor.count()
    if keys > KEYS_MAX:
        raise GgufError(f"{keys} keys are more than {KEYS_MAX}")
    metadata: dict[str, Value] = {}
    for _ in range(keys):
        key = cursor.text()
        value = cursor.value()
        if value is not None:
            metadata[key] = value
    return metadata, tensors, cursor


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
            raise GgufBroken(str(error)) from error
        with mapped:
            return parse_metadata(mapped)


def figure(metadata: Mapping[str, Value], name: str) -> int:
    """The architecture's positive number `name`, such as `block_count`.

    Raises:
        GgufError: it is missing or not a positive number.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise GgufError("general.architecture is missing")
    value = metadata.get(f"{architecture}.{name}")
    if not isinstance(value, int) or value <= 0:
        raise GgufError(f"{architecture}.{name} is missing")
    return value


def kv_bytes_per_layer(metadata: Mapping[str, Value]) -> tuple[int, ...]:
    """Bytes that one token's keys and values take in each layer, in f16.

    Raises:
        GgufError: a figure that is needed is missing or not a number, or there are too many layers.
    """
    layers = figure(metadata, "block_count")
    if layers > ARRAY_KEPT_MAX:
        raise GgufError(f"{layers} layers are more than {ARRAY_KEPT_MAX}")
    architecture = metadata["general.architecture"]
    kv_heads = metadata.get(f"{architecture}.attention.head_count_kv")
    if isinstance(kv_heads, list):
        heads = [int(count) if abs(count) <= 2**31 else 0 for count in kv_heads]  # inf, nan: 0
        if len(heads) != layers or any(count < 0 for count in heads):
            raise GgufError(f"{architecture}.attention.head_count_kv does not fit {layers} layers")
    elif isinstance(kv_heads, int):
        heads = [kv_heads] * layers
    else:
        heads = [figure(metadata, "attention.head_count")] * layers
    widths = 0
    for name in ("key_length", "value_length"):
        if f"{architecture}.attention.{name}" in metadata:
            widths += figure(metadata, f"attention.{name}")
        else:
            widths += figure(metadata, "embedding_length") // figure(
                metadata, "attention.head_count"
            )
    return tuple(count * widths * KV_ELEMENT_BYTES for count in heads)


def kv_bytes_per_token(metadata: Mapping[str, Value]) -> int:
    """Bytes that one token's keys and values take over all layers, in f16.

    Raises:
        GgufError: see `kv_bytes_per_layer`.
    """
    return sum(kv_bytes_per_layer(metadata))
