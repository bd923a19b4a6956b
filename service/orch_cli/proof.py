"""`llama-orch proof verify`: hold a proof bundle against itself and against a key.

It needs no service and no repository: an auditor runs it on what was handed over.
Requirement: OC-CONFIG-6010.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from orch_cli.exit_codes import EPILOG, CliError, ExitCode
from orch_cli.output import Output
from orch_cli.profiles import JsonOption

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from orch_cli.proof_bundle import Verification

group = typer.Typer(
    no_args_is_help=True,
    help="Check what a test run has proved.",
    epilog=EPILOG,
    rich_markup_mode=None,
)


@group.command("verify", epilog=EPILOG)
def verify_bundle(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The bundle that `make compliance` made.")
    ] = Path("dist/proof"),
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", help="The public key (PEM) that must have signed it."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a proof bundle: every file, the signature, and that its claims follow from its
    evidence.

    Without --key the signature is checked with the key in the bundle: that shows that nothing was
    changed since it was signed, not who signed it. Exit 0: nothing wrong; 1: something is, each
    problem named.

    Examples:

    \b
        llama-orch proof verify
        llama-orch proof verify dist/proof --key ci_public_key.pem --json
    """
    from orch_cli.proof_bundle import NotABundle, verify  # cryptography is slow to import

    output = Output.of_process(as_json=as_json)
    try:
        found = verify(folder, _key(key) if key else None)
    except NotABundle as error:
        raise CliError(str(error)) from None
    except OSError as error:
        raise CliError(f"{error.filename or folder}: {error.strerror}") from None
    if as_json:
        output.json(msgspec.to_builtins(found))
    else:
        _show(output, folder, found)
    if found.problems:
        raise typer.Exit(ExitCode.TASK_FAILED)


def _key(path: Path) -> Ed25519PublicKey:
    from orch_cli.proof_bundle import load_public_key

    try:
        return load_public_key(path)
    except OSError as error:
        raise CliError(f"--key {path}: {error.strerror}") from None
    except ValueError as error:
        raise CliError(
            f"--key {path}: {error}",
            hint="it takes a PEM file, as `openssl pkey -pubout` writes it of an Ed25519 key",
        ) from None


def _show(output: Output, folder: Path, found: Verification) -> None:
    for problem in found.problems:
        output.raw(f"FAILED {problem}\n")
    statuses = ", ".join(f"{number} {status}" for status, number in found.statuses.items())
    output.raw(f"{folder}: {found.files} files, of commit {found.commit or 'unknown'}")
    output.raw(f", made {found.finished_on}\n" if found.finished_on else "\n")
    output.raw(f"requirements: {statuses or 'none'}\n")
    by = "the key you named" if found.trusted else "a key that came with it"
    output.raw(f"signed by {by}, {found.key_id}\n")
    if not found.trusted:
        output.note("who signed it is not shown; --key FILE names the key that you trust")
    output.raw("not a proof\n" if found.problems else "ok\n")


def register(app: typer.Typer) -> None:
    """Add `proof` to the command line."""
    app.add_typer(group, name="proof")
