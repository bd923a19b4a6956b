"""`llama-orch devices`: the GPUs of the service's host, and whose engines run on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from msgspec import UNSET, UnsetType

from orch_cli.exit_codes import EPILOG
from orch_cli.output import Output
from orch_cli.profiles import JsonOption, ProfileOption, UrlOption, choose

if TYPE_CHECKING:
    from orchcontrol_v1.types import Device

_GIB = 1 << 30
_COLUMNS = ["gpu", "name", "memory GiB", "used %", "°C", "W", "slowed by", "state", "engines"]


def devices(
    url: UrlOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """List the GPUs with memory, use, heat, power and the engines on them.

    Example: llama-orch devices --json
    """
    output = Output.of_process(as_json=as_json)
    with choose(url, profile).control() as client:
        found = client.list_devices()
    if as_json:
        output.json(found)
        return
    output.table("GPUs", _COLUMNS, map(_row, found.devices))
    if found.message is not UNSET:
        output.note(found.message, "yellow")


def _row(device: Device) -> tuple[str, ...]:
    # Two rows have one index where a GPU is divided; the UUID tells a MIG instance.
    uuid = device.uuid or ""
    instance = uuid.startswith("MIG-")
    engines = []
    for process in device.processes or ():
        memory = process.memory_used_bytes
        engines.append(
            process.replica_id if memory is UNSET else f"{process.replica_id} ({_gib(memory)} GiB)"
        )
    state = "lost" if device.lost is True else "divided" if device.mig is True else ""
    return (
        f"{device.index} {uuid}" if instance else str(device.index),
        device.name or "",
        f"{_gib(device.memory_used_bytes)}/{_gib(device.memory_total_bytes)}",
        _number(device.utilization_percent),
        _number(device.temperature_celsius),
        _number(device.power_watts),
        " ".join(device.throttle_reasons or ()),
        state,
        " ".join(engines),
    )


def _gib(count_bytes: int | UnsetType) -> str:
    return "?" if count_bytes is UNSET else f"{count_bytes / _GIB:.1f}"


def _number(value: float | UnsetType) -> str:
    return "?" if value is UNSET else f"{value:.0f}"


def register(app: typer.Typer) -> None:
    """Add `devices` to the command line."""
    app.command("devices", epilog=EPILOG)(devices)
