"""The command line and the environment of a launched engine.

Off a task's path: used at each start of an engine. Placeholders in `launch.command` and
`launch.args`: `{host}` and `{port}` to listen on, `{model}` (a path for `builtin:` and `file:`
models, the name for `repo:` ones), `{ctx}` in tokens per task, `{quant}`, `{pool_id}`,
`{replica_id}`; a literal brace is written twice. Invariants: an engine sees the pool's device mask
and no other GPU (OC-POOL-3020); it never inherits the service's secrets.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from pool_managerd.model_files import ModelUnavailable, find_model, verified_digest
from pool_managerd.settings import LaunchSettings, PoolSettings

HOST = "127.0.0.1"
DEFAULT_ENGINE = "llamacpp"  # what the default launcher runs
# Finds an engine's processes again, also those that left its process group.
MARKER_VARIABLE = "LLAMA_ORCH_ENGINE"

# API keys live in the service's environment (`auth.keys[].key_env`), so an engine gets only what
# programs commonly need; anything else comes with `launch.env`.
_INHERITED = frozenset(("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ", "VIRTUAL_ENV"))
_INHERITED_PREFIXES = ("CUDA_", "GGML_", "HF_", "LC_", "NCCL_", "NVIDIA_", "OMP_", "PYTHON")


class LaunchRefused(Exception):
    """The engine cannot be started as configured; names the key and what to do."""


def engine_command(
    pool: PoolSettings, launch: LaunchSettings, replica_id: str, port: int
) -> list[str]:
    """The command line that makes this replica listen on `port`; verifies the model file where it
    is named in the command, which reads all of it.

    Raises `LaunchRefused` for a bad placeholder or an engine without a default command, and
    `ModelUnavailable`.
    """
    if launch.command is None and pool.engine != DEFAULT_ENGINE:
        raise LaunchRefused(f"launch.command is needed for engine {pool.engine!r}")
    values: dict[str, object] = {
        "host": HOST,
        "port": port,
        "ctx": pool.ctx,
        "quant": pool.quant,
        "pool_id": pool.id,
        "replica_id": replica_id,
    }
    configured = [*(launch.command or ()), *launch.args]
    if any("{model}" in part for part in configured):
        values["model"] = _model_argument(pool.model)
    else:
        values["model"] = pool.model
    try:
        command = [part.format_map(values) for part in launch.command or ()]
        arguments = [part.format_map(values) for part in launch.args]
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise LaunchRefused(
            f"launch.command or launch.args has a bad placeholder ({error}); known are "
            + " ".join(f"{{{name}}}" for name in values)
        ) from None
    python = [sys.executable, "-P", "-m"]
    parent = ["--parent-pid", str(os.getpid())]
    if launch.command is not None:
        return [*python, "pool_managerd.exec_with_parent", *parent, "--", *command, *arguments]
    default = [*python, "pool_managerd.llamacpp_launcher", *parent, "--model", pool.model]
    default += ["--host", HOST, "--port", str(port), "--ctx", str(pool.ctx)]
    if pool.deterministic_prefix_cache:
        default.append("--strict-prefix")
    return [*default, *arguments]


def engine_environment(
    pool: PoolSettings, launch: LaunchSettings, marker: str, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The engine's whole environment; `launch.env` wins over what is inherited, the device mask
    over both."""
    environment = {
        name: value
        for name, value in inherited.items()
        if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    environment.update(launch.env)
    if pool.devices:
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # so that an index means the same to all
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(pool.devices)
    environment[MARKER_VARIABLE] = marker
    return environment


def _model_argument(model: str) -> str:
    if model.startswith("repo:"):
        return model.removeprefix("repo:")
    if model.startswith("sha256:"):
        raise ModelUnavailable(f"model {model!r}: a digest needs the catalog to find its file")
    file = find_model(model)
    if file.sha256 is not None:
        verified_digest(file)
    return str(file.path)
