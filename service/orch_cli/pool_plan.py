"""`llama-orch pools plan`: what a configuration would start, and whether there is memory for it.

Talks to no service and starts nothing: it reads the configuration, the headers of the models'
files, and this machine's free memory. Invariant: exit status 0 says that every engine whose memory
is known here would be started. (ORCH-3001, ORCH-3003, ORCH-3012)
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orch_cli.exit_codes import ExitCode
from orch_cli.output import Output
from orch_cli.profiles import JsonOption
from orch_cli.serve import configuration_failure

if TYPE_CHECKING:
    from gpu_telemetry.snapshot import HostGpus
    from pool_managerd.launch_preview import ReplicaPreview

_MIB = 1 << 20


def plan(
    config: Annotated[
        Path,
        typer.Option("--config", envvar="LLAMA_ORCH_CONFIG", metavar="FILE", help="Configuration."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show what a configuration would start, without starting it.

    For every engine: its command line, its environment (of launch.env only the names), the estimate
    of its memory on each device and on the host, and whether that is free here and now. Ports are
    chosen at the start and stand as 0. The exit status is 1 when an engine would not be started.

    Examples:

    \b
        llama-orch pools plan --config llama-orch.yaml
        llama-orch pools plan --config llama-orch.yaml --json | jq .message
    """
    # Imported here: the other commands shall not pay for the service's imports.
    from orchestratord.configuration import AnyEnvironment, ConfigError, load_config
    from orchestratord.settings import model_store, pool_settings
    from pool_managerd.launch_preview import preview_pools
    from pool_managerd.preload_check import PreloadCheck

    output = Output.of_process(as_json=as_json)
    try:
        loaded = load_config(config, environ=AnyEnvironment())
    except ConfigError as error:
        problems = [str(problem) for problem in error.problems]
        raise configuration_failure(error.source, problems) from None
    gpus = _look()
    check = PreloadCheck(lambda: gpus)
    pools = [pool_settings(pool) for pool in loaded.config.pools]
    if not as_json and gpus.message is not None and any(pool.devices for pool in pools):
        output.note(f"the memory of GPUs is not known here: {gpus.message}", "yellow")
    failed = False
    count = 0
    for preview in preview_pools(pools, check, model_store(loaded.config)):
        count += 1
        failed = failed or preview.refused is not None
        if as_json:
            output.json(_document(preview))
        else:
            _show(output, preview)
    if not count:
        output.note(f"{config}: no pool launches anything")
    if failed:
        raise typer.Exit(ExitCode.TASK_FAILED)


def _look() -> HostGpus:
    """This machine's GPUs; none, with the reason, where there is no driver."""
    from gpu_telemetry.nvml import NvmlReader, NvmlUnavailable
    from gpu_telemetry.snapshot import HostGpus

    reader = NvmlReader()
    try:
        return reader.look()
    except NvmlUnavailable as error:
        return HostGpus(message=str(error))
    finally:
        reader.close()


def _document(preview: ReplicaPreview) -> dict[str, Any]:
    plan = preview.plan
    estimate = None if plan is None else plan.estimate
    return {
        "pool_id": preview.pool_id,
        "replica_id": preview.replica_id,
        "starts": preview.refused is None,
        "message": preview.refused or "; ".join(preview.notes),
        "command": preview.command,
        "environment": preview.environment,
        "slots": None if plan is None else plan.slots,
        "ctx": None if plan is None else plan.ctx,
        "reduced": plan is not None and plan.reduced,
        "kv_tokens_max": None if plan is None else plan.kv_tokens_max,
        "memory": []
        if estimate is None or plan is None
        else [
            {
                "place": place,
                **{
                    f"{name.replace(' ', '_').lower()}_bytes": size for name, size in demand.parts()
                },
                "total_bytes": demand.total_bytes,
                "free_bytes": None if (room := plan.rooms.get(place)) is None else room.free_bytes,
            }
            for place, demand in estimate.places()
        ],
    }


def _show(output: Output, preview: ReplicaPreview) -> None:
    plan = preview.plan
    verdict = f"no: {preview.refused}" if preview.refused else "yes"
    rows = [("engine", preview.replica_id), ("starts", verdict)]
    rows += [("note", note) for note in preview.notes]
    if plan is not None and plan.reduced:
        rows.append(("note", "reduced to what fits (memory.slots_min, memory.ctx_min)"))
    if plan is not None and plan.kv_tokens_max is not None:
        rows.append(("KV", f"there is room for {plan.kv_tokens_max} tokens"))
    if preview.command:
        environment = [
            name if value is None else f"{name}={shlex.quote(value)}"
            for name, value in preview.environment.items()
        ]
        rows.append(("command", shlex.join(preview.command)))
        rows.append(("environment", " ".join(environment)))
    output.table("", ["what", "value"], rows)
    if plan is not None and plan.estimate is not None:
        places = []
        for place, demand in plan.estimate.places():
            room = plan.rooms.get(place)
            free = "unknown" if room is None else f"{room.free_bytes / _MIB:.0f}"
            parts = [f"{size / _MIB:.0f}" if size else "-" for _, size in demand.parts()]
            places.append((place, *parts, f"{demand.total_bytes / _MIB:.0f}", free))
        names = [name for name, _ in plan.estimate.host.parts()]
        slots, ctx = plan.estimate.slots, plan.estimate.ctx
        title = f"Memory in MiB, {slots} slots of {ctx} tokens"
        output.table(title, ["place", *names, "in all", "free"], places)
