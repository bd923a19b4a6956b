"""`llama-orch drain`, `cordon`, `resume`, `reload`, `promote` and `rollback`: orders to a pool.

An order is answered at once and goes on in the service; with `--wait` its steps are shown as they
come, and the exit status is its outcome's. Requirements: ORCH-2101, ORCH-2102, ORCH-3033,
OC-CLI-8001.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer
from msgspec import UNSET, UnsetType

from orch_cli.exit_codes import EPILOG, ExitCode
from orch_cli.output import Output
from orch_cli.pools import PoolId, show_health
from orch_cli.profiles import JsonOption, ProfileOption, UrlOption, choose
from orchcontrol_v1.client import OrchControlClient
from orchcontrol_v1.types import (
    CordonRequest,
    DrainRequest,
    PoolHealth,
    ReloadRequest,
    ReplicaHealth,
)

# How often `--wait` looks: engines take seconds to stop and to load.
LOOK_S = 0.25

ReplicaOption = Annotated[
    str | None, typer.Option("--replica", metavar="ID", help="Only this replica of the pool.")
]
WaitOption = Annotated[
    bool, typer.Option("--wait", help="Show its steps until it is done; Ctrl-C stops looking only.")
]

Value = TypeVar("Value")

# What `--wait` has to know of a health: None while it goes on, else whether it went well.
Outcome = Callable[[PoolHealth], bool | None]


def drain(
    pool_id: PoolId,
    deadline_ms: Annotated[
        int,
        typer.Option(
            "--deadline-ms", min=1, help="After that, what still runs goes elsewhere or ends."
        ),
    ] = 30_000,
    replica: ReplicaOption = None,
    wait: WaitOption = False,
    url: UrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a pool or a replica finish what runs and take no more; its engine stops then.

    Examples:

    \b
        llama-orch drain llama3-8b-gpu0 --deadline-ms 30000 --wait
        llama-orch drain llama3-8b-gpu0 --replica llama3-8b-gpu0-1
    """
    request = DrainRequest(deadline_ms=deadline_ms, replica_id=_optional(replica))
    _give(
        pool_id, wait, url, profile, as_json,
        lambda client: client.drain_pool(pool_id, request),
        lambda health: settled(health, replica, "Stopped"),
    )  # fmt: skip


def cordon(
    pool_id: PoolId,
    replica: ReplicaOption = None,
    url: UrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a pool or a replica no new work; what runs and waits keeps its place.

    Example: llama-orch cordon llama3-8b-gpu0 --replica llama3-8b-gpu0-1
    """
    request = CordonRequest(replica_id=_optional(replica))
    _give(
        pool_id, False, url, profile, as_json,
        lambda client: client.cordon_pool(pool_id, request),
        lambda health: True,
    )  # fmt: skip


def resume(
    pool_id: PoolId,
    replica: ReplicaOption = None,
    wait: WaitOption = False,
    url: UrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lift a cordon or a drain; engines that a drain has stopped start again.

    Example: llama-orch resume llama3-8b-gpu0 --wait
    """
    request = CordonRequest(replica_id=_optional(replica))
    _give(
        pool_id, wait, url, profile, as_json,
        lambda client: client.resume_pool(pool_id, request),
        lambda health: settled(health, replica, "Ready"),
    )  # fmt: skip


def reload(
    pool_id: PoolId,
    model: Annotated[str, typer.Option("--model", metavar="REF", help="What to serve instead.")],
    deadline_ms: Annotated[
        int | None,
        typer.Option("--deadline-ms", min=1, help="How long tasks on the old model may take."),
    ] = None,
    canary_percent: Annotated[
        int | None,
        typer.Option("--canary-percent", min=1, max=99, help="Give it this share of the tasks."),
    ] = None,
    canary_tenant: Annotated[
        list[str] | None,
        typer.Option("--canary-tenant", metavar="ID", help="Give it this tenant's tasks."),
    ] = None,
    wait: WaitOption = False,
    url: UrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Switch a pool to another model; it keeps the old one when the new one cannot be made Ready.

    With a share the new model runs beside the old one until `promote` or `rollback`.

    Examples:

    \b
        llama-orch reload llama3-8b-gpu0 --model builtin:smollm2 --wait
        llama-orch reload llama3-8b-gpu0 --model file:new.gguf --canary-percent 5
    """
    request = ReloadRequest(
        new_model_ref=model,
        deadline_ms=_optional(deadline_ms),
        canary_percent=_optional(canary_percent),
        canary_tenants=_optional(canary_tenant or None),
    )
    good = "canary" if canary_percent or canary_tenant else "done"
    _give(
        pool_id, wait, url, profile, as_json,
        lambda client: client.reload_pool(pool_id, request),
        lambda health: _arrived(health, good),
    )  # fmt: skip


def promote(
    pool_id: PoolId,
    wait: WaitOption = False,
    url: UrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a canary all of the traffic.

    Example: llama-orch promote llama3-8b-gpu0 --wait
    """
    _give(
        pool_id, wait, url, profile, as_json,
        lambda client: client.promote_pool(pool_id),
        lambda health: _arrived(health, "done"),
    )  # fmt: skip


def rollback(
    pool_id: PoolId,
    wait: WaitOption = False,
    url: UrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go back to the model before the last reload, or end a canary.

    Example: llama-orch rollback llama3-8b-gpu0 --wait
    """
    phases: list[str] = []

    def outcome(health: PoolHealth) -> bool | None:
        phases.append(_phase(health))
        if phases == ["failed"]:
            return True  # the reload had come to nothing: there is nothing to go back from
        return _arrived(health, "rolled_back")

    _give(
        pool_id, wait, url, profile, as_json,
        lambda client: client.rollback_pool(pool_id),
        outcome,
    )  # fmt: skip


def _give(
    pool_id: str,
    wait: bool,
    url: str | None,
    profile: str | None,
    as_json: bool,
    order: Callable[[OrchControlClient], PoolHealth],
    outcome: Outcome,
) -> None:
    """Give an order, and show the pool's health then, or when it is done."""
    output = Output.of_process(as_json=as_json)
    with choose(url, profile).control() as client:
        health, went_well = order(client), True
        if wait:
            health, went_well = _follow(client, pool_id, health, output, outcome)
    show_health(output, {pool_id: health})
    if not went_well:
        raise typer.Exit(ExitCode.TASK_FAILED)


def _follow(
    client: OrchControlClient, pool_id: str, health: PoolHealth, output: Output, outcome: Outcome
) -> tuple[PoolHealth, bool]:
    """Look again and again until the order is done; every change is a line for people."""
    shown: dict[str, str] = {}
    while True:
        for subject, stand in _stands(health).items():
            if shown.get(subject) != stand:
                output.note(f"{subject}: {stand}")
                shown[subject] = stand
        if (went_well := outcome(health)) is not None:
            return health, went_well
        time.sleep(LOOK_S)
        health = client.pool_health(pool_id)


def _stands(health: PoolHealth) -> dict[str, str]:
    """What people want to see of a pool on its way: its reload, and each replica."""
    stands = {}
    if health.reload is not UNSET:
        message = "" if health.reload.message is UNSET else f" ({health.reload.message})"
        stands["reload"] = f"{health.reload.phase}{message}"
    for replica in _replicas(health):
        cordoned = ", cordoned" if replica.cordoned is True else ""
        stands[replica.id] = f"{replica.state}{cordoned}"
    return stands


def _replicas(health: PoolHealth) -> list[ReplicaHealth]:
    return [] if health.replicas is UNSET else health.replicas


def settled(health: PoolHealth, replica_id: str | None, state: str) -> bool | None:
    """Whether the replica, or all of them, came to this state; None while some are on their way.
    One that is gone, or that is left alone after too many failures, will not."""
    stands = [r.state for r in _replicas(health) if replica_id is None or r.id == replica_id]
    if replica_id is not None and not stands:
        return False
    if state == "Ready" and "Broken" in stands:
        return False
    return True if all(stand == state for stand in stands) else None


def _phase(health: PoolHealth) -> str:
    return "idle" if health.reload is UNSET else health.reload.phase


def _arrived(health: PoolHealth, good: str) -> bool | None:
    """Whether a reload came where it should; None while it is under way."""
    phase = _phase(health)
    if phase == good:
        return True
    return False if phase in ("failed", "rolled_back", "done", "idle") else None


def _optional(value: Value | None) -> Value | UnsetType:
    return UNSET if value is None else value


def register(app: typer.Typer) -> None:
    """Add the orders to the command line."""
    for order in (drain, cordon, resume, reload, promote, rollback):
        app.command(order.__name__, epilog=EPILOG)(order)
