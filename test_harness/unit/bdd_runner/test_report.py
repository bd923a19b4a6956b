"""What the reports of `bdd-runner` say of the same run."""

from __future__ import annotations

import json

from bdd_runner.report import Outcome, Played, as_json, lines_of

PLAYED = [
    Played("sse/reading.feature", "It is read", ("ORCH-2002",), Outcome.PASSED, 0.24),
    Played(
        "sse/reading.feature",
        "It is read twice",
        ("ORCH-2002",),
        Outcome.FAILED,
        1.0,
        'Then "it" ends well',
        "AssertionError: one\nassert 1 == 2",
    ),
    Played("config/change.feature", "Revert", ("own-service",), Outcome.NEEDS_OWN_SERVICE),
]


def test_people_read_features_scenarios_the_failed_step_and_three_counts() -> None:
    assert list(lines_of(PLAYED)) == [
        "sse/reading.feature",
        "  passed  It is read (0.2 s)",
        "  FAILED  It is read twice (1.0 s)",
        '          Then "it" ends well',
        "          AssertionError: one",
        "          assert 1 == 2",
        "1 passed, 1 failed, 1 need their own service",
    ]


def test_programs_read_all_of_it_in_one_document() -> None:
    report = json.loads(as_json("http://127.0.0.1:1", "llamacpp m", PLAYED))

    assert (report["service"], report["model"]) == ("http://127.0.0.1:1", "llamacpp m")
    assert report["counts"] == {"passed": 1, "failed": 1, "needs_own_service": 1}
    assert [each["outcome"] for each in report["scenarios"]] == [
        "passed",
        "failed",
        "needs its own service",
    ]
    assert report["scenarios"][1]["step"] == 'Then "it" ends well'
    assert report["scenarios"][0]["tags"] == ["ORCH-2002"]
