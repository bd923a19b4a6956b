"""`llama-orch explain`: why a task was placed, delayed, shed or refused (ORCH-3091, ORCH-3094)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from msgspec import UNSET

from orch_cli.exit_codes import EPILOG
from orch_cli.identifiers import uuid_argument
from orch_cli.output import Output, visible
from orch_cli.profiles import JsonOption, ProfileOption, UrlOption, choose
from orchestrator_core.units import duration
from orchqueue_v1.types import TaskExplanation

TenantOption = Annotated[
    str | None,
    typer.Option("--tenant", help="Whose task, if not your own; needs a key of role control."),
]


def explain(
    task_id: Annotated[str, typer.Argument(metavar="TASK_ID", help="The task.")],
    tenant: TenantOption = None,
    url: UrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say why a task is where it is: placed, delayed, preempted, moved, shed or refused.

    First a sentence, then how the task stands now, then each decision with the values that it was
    taken from; times count from the first one. A task is known as long as its stream can be read.

    Examples:

    \b
        llama-orch explain 5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11
        llama-orch explain 5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11 --tenant acme --json
    """
    output = Output.of_process(as_json=as_json)
    uuid_argument("TASK_ID", task_id)
    with choose(url, profile).data() as client:
        told = client.explain_task(task_id, tenant=tenant)
    if as_json:
        output.json(told)
        return
    output.raw(f"{visible(told.summary)}\n\n")
    output.table(f"Task {task_id}", ["what", "value"], _standing(told))
    output.raw("\n")
    began_ms = told.decisions[0].at_ms if told.decisions else 0
    output.table(
        "Decisions",
        ["after", "decision", "reason", "values"],
        [
            (duration(max(d.at_ms - began_ms, 0)), d.decision, d.reason, _values(d.values))
            for d in told.decisions
        ],
    )


def _standing(told: TaskExplanation) -> list[tuple[str, str]]:
    """How the task stands, without what is not known."""
    facts = {
        "state": told.state,
        "tenant": told.tenant,
        "priority": told.priority,
        "pool": told.pool_id,
        "replica": told.replica_id,
        "tasks before it": told.queue_position,
    }
    rows = [(name, str(value)) for name, value in facts.items() if value is not UNSET]
    if told.predicted_start_ms is not UNSET:
        rows.append(("starts in about", duration(told.predicted_start_ms)))
    if told.slack_ms is not UNSET:
        late = told.slack_ms < 0
        margin = duration(abs(told.slack_ms))
        rows.append(("slack", f"{margin} late" if late else margin))
    if told.on_time_probability is not UNSET:
        rows.append(("on time", f"{100 * told.on_time_probability:.0f} %"))
    if told.share is not UNSET:
        for name, value in (("got", told.share.observed), ("is promised", told.share.entitled)):
            if value is not UNSET:
                rows.append((f"share it {name}", f"{100 * value:.0f} %"))
    if told.decisions:
        began = datetime.fromtimestamp(told.decisions[0].at_ms / 1000, UTC)
        rows.append(("first decision", began.isoformat(" ", "milliseconds")))
    return rows


def _values(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return f'"{text}"' if " " in text else text


def register(app: typer.Typer) -> None:
    """Add `explain` to the command line."""
    app.command("explain", epilog=EPILOG)(explain)
