"""A report lies in the folder of reports and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness_kit.report_files import report_file


def test_a_report_lies_in_the_named_folder_with_its_own_folders_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLORCH_REPORTS_DIR", str(tmp_path / "reports"))

    path = report_file("chaos/invariants.json")

    path.write_text("{}")
    assert path == tmp_path / "reports" / "chaos" / "invariants.json"


@pytest.mark.parametrize("name", ["../elsewhere.json", "/etc/report", "", "a/../.."])
def test_a_name_that_leads_out_of_the_folder_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLORCH_REPORTS_DIR", str(tmp_path / "reports"))

    with pytest.raises(ValueError, match="below reports/"):
        report_file(name)
