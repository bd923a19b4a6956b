"""`llama-orch session`: what is left of a session, and forgetting one (ORCH-2004, ORCH-2005)."""

from __future__ import annotations

from typing import Annotated

import typer
from msgspec import UNSET, UnsetType

from orch_cli.exit_codes import EPILOG
from orch_cli.identifiers import uuid_argument
from orch_cli.output import Output
from orch_cli.profiles import JsonOption, ProfileOption, UrlOption, choose
from orchestrator_core.units import duration

SessionId = Annotated[str, typer.Argument(metavar="SESSION_ID", help="The session.")]

group = typer.Typer(
    no_args_is_help=True, help="Look at sessions.", epilog=EPILOG, rich_markup_mode=None
)


@group.command("show", epilog=EPILOG)
def show(
    session_id: SessionId,
    url: UrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a session: time to live, turns, KV, and what is left of its budgets.

    Example: llama-orch session show 0b7e64a8-6a54-4d2a-9c62-3f1f7f6f2c10
    """
    output = Output.of_process(as_json=as_json)
    uuid_argument("SESSION_ID", session_id)
    with choose(url, profile).data() as client:
        info = client.get_session(session_id)
    if as_json:
        output.json(info)
        return
    output.table(
        f"Session {session_id}",
        ["what", "value"],
        [
            ("ends in", _known(info.ttl_ms_remaining, "", as_time=True)),
            ("turns", _known(info.turns)),
            ("kv", _known(info.kv_bytes, " bytes")),
            (
                "kv warm",
                "unknown" if info.kv_warmth is UNSET else "yes" if info.kv_warmth else "no",
            ),
            ("tokens left", _left(info.tokens_budget_remaining)),
            ("decode time left", _left(info.time_budget_remaining_ms, " ms")),
            ("cost left", _left(info.cost_budget_remaining)),
        ],
    )


@group.command("forget", epilog=EPILOG)
def forget(
    session_id: SessionId,
    url: UrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget a session and free its KV; its tasks go on.

    Example: llama-orch session forget 0b7e64a8-6a54-4d2a-9c62-3f1f7f6f2c10
    """
    output = Output.of_process(as_json=as_json)
    uuid_argument("SESSION_ID", session_id)
    with choose(url, profile).data() as client:
        client.delete_session(session_id)
    if as_json:
        output.json({"session_id": session_id, "forgotten": True})
    else:
        output.raw(f"forgot {session_id}\n")


def _known(value: float | UnsetType, unit: str = "", *, as_time: bool = False) -> str:
    if value is UNSET:
        return "unknown"
    return duration(value) if as_time else f"{value}{unit}"


def _left(value: float | UnsetType, unit: str = "") -> str:
    return "unlimited" if value is UNSET else f"{value}{unit}"


def register(app: typer.Typer) -> None:
    """Add `session` to the command line."""
    app.add_typer(group, name="session")
