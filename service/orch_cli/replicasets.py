"""`llama-orch replicasets`: who gives the same bytes, and how busy they are (ORCH-2104)."""

from __future__ import annotations

import typer
from msgspec import UNSET

from orch_cli.exit_codes import EPILOG
from orch_cli.output import Output
from orch_cli.profiles import JsonOption, ProfileOption, UrlOption, choose


def replicasets(
    url: UrlOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """List the replica sets with their load, slots and replicas.

    Example: llama-orch replicasets --json
    """
    output = Output.of_process(as_json=as_json)
    with choose(url, profile).control() as client:
        sets = client.list_replicasets()
    if as_json:
        output.json(sets)
        return
    rows: list[tuple[str, ...]] = []
    for item in sets:
        for replica in item.replicas or []:
            free = "?" if replica.slots_free is UNSET else replica.slots_free
            total = "?" if replica.slots_total is UNSET else replica.slots_total
            rows.append(
                (
                    item.id,
                    item.engine,
                    replica.pool_id,
                    replica.id,
                    replica.state,
                    f"{free}/{total}",
                )
            )
        if not item.replicas:
            rows.append((item.id, item.engine, "", "", "no replica", ""))
    output.table("Replica sets", ["set", "engine", "pool", "replica", "state", "slots free"], rows)


def register(app: typer.Typer) -> None:
    """Add `replicasets` to the command line."""
    app.command("replicasets", epilog=EPILOG)(replicasets)
