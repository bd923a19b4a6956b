"""Regeneration of everything that is derived: one list of generators, one writer, one check.

Invariant: a generator is a pure function of the files under `root`; it returns the contents and
writes nothing, so that writing and checking cannot disagree, and two runs give the same bytes.
What lies under `generated/` and comes from no generator is stale: removed by `write`, named by
`differences`. Requirement: OC-CONFIG-6010.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from orch_tools import (
    api_reference,
    codegen_alerts,
    codegen_client,
    codegen_config,
    codegen_dashboards,
    codegen_metrics,
    codegen_routes,
    codegen_types,
    compliance,
    config_reference,
    requirements,
)

Generator = Callable[[Path], dict[str, str | bytes]]

GENERATORS: tuple[Generator, ...] = (
    codegen_types.generate,
    codegen_routes.generate,
    codegen_config.generate,
    codegen_metrics.generate,
    codegen_alerts.generate,
    codegen_dashboards.generate,
    api_reference.generate,
    config_reference.generate,
    codegen_client.generate_clients,
    requirements.generate,
    compliance.generate,
)

# Written by codegen alone, so whatever else is found in it is left over from an earlier generator.
OWNED_DIRECTORY = "generated"


class CodegenError(Exception):
    """A contract cannot be turned into code; the message names the file and the reason."""


def formatted(path: str, source: bytes) -> bytes:
    """Python source in the project's format, so that generators need not care about line breaks.

    Raises `CodegenError` for source that does not parse.
    """
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "100", "-"]
    result = subprocess.run(command, input=source, capture_output=True, check=False)
    if result.returncode:
        raise CodegenError(f"{path}: {result.stderr.decode().strip()}")
    return result.stdout


def collect(root: Path, generators: Iterable[Generator] = GENERATORS) -> dict[str, bytes]:
    """All generated files as path relative to `root` -> content, sorted by path.

    Raises `CodegenError` when two generators claim the same path, or one writes broken Python.
    """
    files: dict[str, bytes] = {}
    for generate in generators:
        for path, content in generate(root).items():
            if path in files:
                raise CodegenError(f"{path} comes from two generators")
            encoded = content.encode() if isinstance(content, str) else content
            files[path] = formatted(path, encoded) if path.endswith(".py") else encoded
    return dict(sorted(files.items()))


def stale_files(root: Path, files: dict[str, bytes]) -> list[str]:
    """Files below `generated/` that nothing generates any more; bytecode caches do not count."""
    owned = root / OWNED_DIRECTORY
    present = (path for path in sorted(owned.rglob("*")) if path.is_file())
    names = (path.relative_to(root).as_posix() for path in present)
    return [name for name in names if name not in files and "__pycache__" not in name.split("/")]


def differences(root: Path, files: dict[str, bytes]) -> list[str]:
    """One line for each file that `write` would change: missing, different or stale."""
    lines = []
    for name, content in files.items():
        path = root / name
        if not path.is_file():
            lines.append(f"missing: {name}")
        elif path.read_bytes() != content:
            lines.append(f"differs: {name}")
    lines.extend(f"stale: {name}" for name in stale_files(root, files))
    return lines


def write(root: Path, files: dict[str, bytes]) -> list[str]:
    """Make the tree equal to `files`; returns what changed, in the form of `differences`.

    Files that are equal already are not touched, so that their times stay and caches hold.
    """
    changes = differences(root, files)
    for change in changes:
        kind, name = change.split(": ", 1)
        path = root / name
        if kind == "stale":
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[name])
    return changes
