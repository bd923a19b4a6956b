"""`llama-orch capabilities`: what can be asked for here (ORCH-3095)."""

from __future__ import annotations

import typer

from orch_cli.exit_codes import EPILOG
from orch_cli.output import Output
from orch_cli.profiles import JsonOption, ProfileOption, UrlOption, choose


def capabilities(
    url: UrlOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """Show the engines, models, context sizes, workloads and limits of the service.

    Example: llama-orch capabilities
    """
    output = Output.of_process(as_json=as_json)
    with choose(url, profile).control() as client:
        offer = client.get_capabilities()
    if as_json:
        output.json(offer)
        return
    output.table(
        f"API {offer.api_version}",
        ["engine", "models", "largest ctx", "workloads", "limits", "features"],
        [
            (
                engine.engine,
                " ".join(engine.model_refs or []),
                engine.ctx_max,
                " ".join(engine.supported_workloads or []),
                " ".join(
                    f"{name}={limit:g}"
                    for name, limit in sorted((engine.rate_limits or {}).items())
                ),
                " ".join(engine.features or []),
            )
            for engine in offer.engines
        ],
    )
    if offer.cpu_carve_out is True:
        output.note(
            "CPU carve-out: engines run without a GPU here; for demos and CI only", "yellow"
        )


def register(app: typer.Typer) -> None:
    """Add `capabilities` to the command line."""
    app.command("capabilities", epilog=EPILOG)(capabilities)
