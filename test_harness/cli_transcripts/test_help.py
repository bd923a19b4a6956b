"""Every command's --help as a person reads it on a terminal of 100 columns (OC-CLI-8001)."""

from __future__ import annotations

import pytest
from syrupy.assertion import SnapshotAssertion
from typer.testing import CliRunner

from harness_kit.scripted_cli import every_command
from orch_cli.main import app


@pytest.mark.req("OC-CLI-8001", partial="what the commands do")
@pytest.mark.parametrize("words", tuple(every_command()), ids=" ".join)
def test_what_help_says(
    words: tuple[str, ...], snapshot: SnapshotAssertion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")

    shown = CliRunner().invoke(app, [*words, "--help"], prog_name="llama-orch")

    assert shown.exit_code == 0
    assert shown.stdout == snapshot
