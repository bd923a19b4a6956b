"""The command line and the environment of a launched engine.

Off a task's path: used at each start of an engine. A command of one's own (`launch.command`) is
taken as it is; without one the engine's launch profile makes it, and its program is looked for
before anything starts. Placeholders in `launch.command` and
`launch.args`: `{host}` and `{port}` to listen on, `{model}` (a path for `builtin:` and `file:`
models, the name for `repo:` ones), `{ctx}` in tokens per task, `{quant}`, `{pool_id}`,
`{replica_id}`; a literal brace is written twice. Invariants: an engine sees the pool's device mask
and no other GPU (OC-POOL-3020); it never inherits the service's secrets.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence

from pool_managerd.cpu_affinity import cpu_list
from pool_managerd.launch_profiles import LaunchRefused, LaunchRequest, profile_of
from pool_managerd.model_files import find_model, verified_digest
from pool_managerd.preload_check import LaunchPlan
from pool_managerd.settings import LaunchSettings, PoolSettings

HOST = "127.0.0.1"
# Finds an engine's processes again, also those that left its process group.
MARKER_VARIABLE = "LLAMA_ORCH_ENGINE"

# API keys live in the service's environment (`auth.keys[].key_env`), so an engine gets only what
# programs commonly need; anything else comes with `launch.env`.
_INHERITED = frozenset(("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ", "VIRTUAL_ENV"))
_INHERITED_PREFIXES = ("CUDA_", "GGML_", "HF_", "LC_", "NCCL_", "NVIDIA_", "OMP_", "PYTHON")


def engine_command(
    pool: PoolSettings,
    launch: LaunchSettings,
    replica_id: str,
    port: int,
    plan: LaunchPlan | None = None,
    *,
    second_port: int = 0,
    cpus: Sequence[int] = (),
) -> list[str]:
    """The command line that makes this replica listen on `port`; verifies the model file where it
    is named in the command, which reads all of it. `plan` None starts what is configured. An
    engine that runs on GPUs stays on `cpus`, those near them; none binds it to none.

    Raises `LaunchRefused` for a bad placeholder, for what the engine cannot do, and where its
    program is not installed; `ModelUnavailable`.
    """
    words = engine_words(pool, launch, replica_id, port, plan, second_port=second_port)
    if launch.command is None:
        missing = missing_program(pool, launch)
        if missing is not None:
            raise LaunchRefused(missing)
        if profile_of(pool, launch).on_cpu:
            # Our launcher proves them as well; here it is the model that fails, there an exit.
            for model in (pool.model, launch.draft_model):
                if model is not None:
                    _proved(model)
            return [*words, "--parent-pid", str(os.getpid())]
    return _with_parent(words, cpus)


def engine_words(
    pool: PoolSettings,
    launch: LaunchSettings,
    replica_id: str,
    port: int,
    plan: LaunchPlan | None = None,
    *,
    second_port: int = 0,
    verify: bool = True,
) -> list[str]:
    """The engine's own command line, without what makes it end with us; nothing is looked for but
    the model's file, whose digest is proved where `verify` says so.

    Raises `LaunchRefused` for a bad placeholder and for what the engine cannot do;
    `ModelUnavailable`.
    """
    named = model_argument if verify else _model_name
    ctx = pool.ctx if plan is None else plan.ctx
    configured = [*(launch.command or ()), *launch.args]
    values: dict[str, object] = {
        "host": pool.host,
        "port": port,
        "ctx": ctx,
        "quant": pool.quant,
        "pool_id": pool.id,
        "replica_id": replica_id,
        "model": pool.model,
    }
    if any("{model}" in part for part in configured):
        values["model"] = named(pool.model)
    try:
        own = [part.format_map(values) for part in launch.command or ()]
        arguments = [part.format_map(values) for part in launch.args]
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise LaunchRefused(
            f"launch.command or launch.args has a bad placeholder ({error}); known are "
            + " ".join(f"{{{name}}}" for name in values)
        ) from None
    if launch.command is not None:
        return [*own, *arguments]
    profile = profile_of(pool, launch)
    request = _request(pool, launch, plan, named, port, second_port)
    return [*profile.command(launch.program or profile.program, request), *arguments]


def missing_program(pool: PoolSettings, launch: LaunchSettings) -> str | None:
    """Why the profile's program cannot be run here and what to install; None where it can be.
    Raises `LaunchRefused` for an engine without a profile."""
    profile = profile_of(pool, launch)
    program = launch.program or profile.program
    if shutil.which(program) is not None:
        return None
    key = "launch.program" if launch.program else "PATH"
    return (
        f"the engine {profile.engine} is not installed here: {key} has no program {program!r}; "
        f"{profile.install}, or give launch.command"
    )


def _request(
    pool: PoolSettings,
    launch: LaunchSettings,
    plan: LaunchPlan | None,
    named: Callable[[str], str],
    port: int = 0,
    second_port: int = 0,
) -> LaunchRequest:
    if profile_of(pool, launch).on_cpu:
        named = str  # our launcher finds the model itself
    return LaunchRequest(
        pool=pool,
        launch=launch,
        host=pool.host,
        port=port,
        second_port=second_port,
        model=named(pool.model),
        draft_model=None if launch.draft_model is None else named(launch.draft_model),
        slots=launch.slots if plan is None else plan.slots,
        ctx=pool.ctx if plan is None else plan.ctx,
        kv_bytes_per_device=None if plan is None else plan.kv_bytes_per_device,
    )


def engine_environment(
    pool: PoolSettings,
    launch: LaunchSettings,
    marker: str,
    inherited: Mapping[str, str],
    profiled: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The engine's whole environment: `launch.env` wins over what its profile says (`profiled`) and
    over what is inherited, the device mask over all."""
    environment = {
        name: value
        for name, value in inherited.items()
        if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    environment.update(profiled or {})
    environment.update(launch.env)
    if pool.devices:
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # so that an index means the same to all
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(pool.devices)
    environment[MARKER_VARIABLE] = marker
    return environment


def profile_environment(
    pool: PoolSettings, launch: LaunchSettings, plan: LaunchPlan | None
) -> dict[str, str]:
    """What the engine's profile adds to its environment; nothing to a command of one's own."""
    if launch.command is not None:
        return {}
    profile = profile_of(pool, launch)
    return profile.environment(_request(pool, launch, plan, _model_name))


def model_argument(model: str) -> str:
    """A model as an engine's command takes it, its digest proved. Raises `ModelUnavailable`."""
    if not model.startswith("repo:"):
        _proved(model)
    return _model_name(model)


def _proved(model: str) -> None:
    file = find_model(model)
    if file.sha256 is not None:
        verified_digest(file)


def _model_name(model: str) -> str:
    if model.startswith("repo:"):
        return model.removeprefix("repo:")
    return str(find_model(model).path)


def _with_parent(command: list[str], cpus: Sequence[int]) -> list[str]:
    """The command as one that ends with us."""
    python = [sys.executable, "-P", "-m", "pool_managerd.exec_with_parent"]
    near = ["--cpus", cpu_list(cpus)] if cpus else []
    return [*python, "--parent-pid", str(os.getpid()), *near, "--", *command]
