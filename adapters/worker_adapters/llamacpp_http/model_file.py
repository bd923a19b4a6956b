"""What a model file tells: its digest and its KV bytes per token, read once.

Off the request's path: asked when a replica becomes Ready. llama.cpp names its file but not the
file's digest, so the adapter hashes it, in a thread. Invariant: an answer belongs to the file as
it is now: path, size and modification time are the cache's key.
Requirements: ORCH-3032, OC-ADAPT-5011.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path

from worker_adapters.llamacpp_http.gguf import GgufError, kv_bytes_per_token, read_metadata


@dataclass(frozen=True, slots=True)
class ModelFile:
    """`digest` is `sha256:` and 64 hex digits; `kv_bytes_per_token` is 0 where unknown."""

    digest: str
    kv_bytes_per_token: int


class ModelFiles:
    """Inspects model files; replicas that serve one file share one inspection."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], ModelFile] = {}

    async def inspect(self, path: str) -> ModelFile | None:
        """The file at `path`, or None when it cannot be read here."""
        return await asyncio.to_thread(self._inspect, Path(path))

    def _inspect(self, path: Path) -> ModelFile | None:
        try:
            stat = path.stat()
            key = (str(path), stat.st_size, stat.st_mtime_ns)
            known = self._known.get(key)
            if known is not None:
                return known
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            try:
                kv_bytes = kv_bytes_per_token(read_metadata(path))
            except GgufError:
                kv_bytes = 0
        except OSError:
            return None
        found = ModelFile(f"sha256:{digest}", kv_bytes)
        self._known[key] = found
        return found
