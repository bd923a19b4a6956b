"""Every command's --help as a person reads it on a terminal of 100 columns (OC-CLI-8001)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion
from typer.main import get_command
from typer.testing import CliRunner

from orch_cli.main import app


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of each command and group, the root's first."""
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*words, name))


@pytest.mark.req("OC-CLI-8001", partial="what the commands do")
@pytest.mark.parametrize("words", tuple(commands(get_command(app))), ids=" ".join)
def test_what_help_says(
    words: tuple[str, ...], snapshot: SnapshotAssertion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")

    shown = CliRunner().invoke(app, [*words, "--help"], prog_name="llama-orch")

    assert shown.exit_code == 0
    assert shown.stdout == snapshot
