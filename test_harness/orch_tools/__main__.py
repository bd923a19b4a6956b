"""`python -m orch_tools`: the developer's single door to generation and checks.

`regen` writes everything that is derived from contracts, spec and tests; `requirements` checks the
ids; `evidence` compares what a test run proved with what is committed; `check` is all of CI but the
tests. The repository root is found from this file. Requirement: OC-CONFIG-6010.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from orch_tools import codegen, evidence, metrics_lint, proof, requirements, spec_changes
from orch_tools.open_list import OpenListError

ROOT = Path(__file__).resolve().parents[2]

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

# What CI runs, in the order of rising cost: name -> arguments of this Python.
CHECKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("format", ("-m", "ruff", "format", "--check", ".")),
    ("lint", ("-m", "ruff", "check", ".")),
    ("requirements", ("-m", "orch_tools", "requirements")),
    ("regen", ("-m", "orch_tools", "regen", "--check")),
    ("imports", ("-c", "from importlinter.cli import lint_imports_command as c; c()")),
    ("types", ("-m", "mypy")),
)


@app.command()
def regen(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 and name what differs.")
    ] = False,
) -> None:
    """Write everything generated, or check that it is up to date."""
    try:
        files = codegen.collect(ROOT)
    except (codegen.CodegenError, evidence.EvidenceError, requirements.RequirementErrors) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    changes = codegen.differences(ROOT, files) if check else codegen.write(ROOT, files)
    for change in changes:
        typer.echo(change)
    if check and changes:
        typer.echo("run `make regen` and commit the result", err=True)
        raise typer.Exit(1)
    typer.echo(f"{len(files)} files, {len(changes)} {'differ' if check else 'written'}")


@app.command("requirements")
def lint_requirements(
    settle: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="First bring requirements/open.yaml up to date."),
    ] = None,
    waits_for: Annotated[
        str, typer.Option(metavar="CAPABILITY", help="What brings the proof of what --settle adds.")
    ] = "",
) -> None:
    """Check the specification and everything that names its ids; exit 1 and name each problem."""
    if settle:
        try:
            requirements.settle(ROOT, settle, waits_for)
        except (requirements.RequirementErrors, OpenListError) as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from error
    problems = requirements.lint(ROOT)
    try:
        problems += spec_changes.problems(ROOT)
    except spec_changes.ChangelogError as error:
        problems.append(str(error))
    except requirements.RequirementErrors:
        pass  # the lint has just named them
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise typer.Exit(1)
    typer.echo("requirements: no problem")


@app.command("evidence")
def compare_evidence(
    fresh: Annotated[
        Path, typer.Option("--compare", help="Evidence that a full test run has just written.")
    ],
) -> None:
    """Compare a run's evidence with the committed one; exit 1 and name what differs.

    Says nothing when nothing does, so that the test run's own summary stays the last word.
    """
    try:
        changes = evidence.differences(
            evidence.read_evidence(ROOT / evidence.EVIDENCE_FILE), evidence.read_evidence(fresh)
        )
    except evidence.EvidenceError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    for change in changes:
        typer.echo(change)
    if changes:
        typer.echo("run `make evidence` and commit the result", err=True)
        raise typer.Exit(1)


@app.command("proof")
def make_proof(
    fresh: Annotated[
        Path, typer.Option("--evidence", help="Evidence that a full test run has just written.")
    ],
    reports: Annotated[Path, typer.Option(help="What the tests reported.")] = ROOT / "dist/reports",
    out: Annotated[Path, typer.Option(help="The bundle; replaced.")] = ROOT / "dist/proof",
) -> None:
    """Put a proof bundle together and sign it with the key that LLORCH_PROOF_KEY names."""
    try:
        key = proof.signing_key(os.environ.get("LLORCH_PROOF_KEY"))
        proof.build(ROOT, out, evidence=fresh, reports=reports, key=key, finished=datetime.now(UTC))
    except (proof.ProofError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{out}: check it with `llama-orch proof verify {out}`")


@app.command()
def release(
    version: Annotated[str, typer.Argument(help="What the contracts become: 1.1.0.")],
    date: Annotated[str, typer.Option(help="YYYY-MM-DD; today where it is left out.")] = "",
) -> None:
    """Make what CHANGELOG_SPEC.md has under Unreleased a version, and remember the contracts."""
    try:
        spec_changes.release(ROOT, version, date or datetime.now(UTC).date().isoformat())
    except (spec_changes.ChangelogError, requirements.RequirementErrors) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


app.command("metrics-lint")(metrics_lint.command)


@app.command()
def check() -> None:
    """Run every check of CI; all run even when one fails, and the exit status is 1 if any did."""
    failed = []
    for name, arguments in CHECKS:
        typer.echo(f"== {name}")
        # Unbuffered order: our heading must stand above the child's own output.
        sys.stdout.flush()
        if subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False).returncode:
            failed.append(name)
    if failed:
        typer.echo(f"failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
