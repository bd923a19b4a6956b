"""Every alert in `promtool test rules`: it fires where it must, and keeps quiet right below that.

What Prometheus sees is written by hand: for the objectives as a share of tasks that miss them, in
multiples of the budget that ORCH-3041 allows, for the other alerts in `rules/alerts.yaml`.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness_kit.contract_files import CONTRACTS
from orch_tools.codegen_alerts import ALERTS_PATH, RUNBOOKS_PATH
from orch_tools.metrics_lint import promtool

ROOT = CONTRACTS.parent
RULES = ROOT / ALERTS_PATH
GROUPS = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
ALERTS = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
# promtool takes the groups in no order unless told one: the records come first, since half an hour
# later what an alert reads of them is stale.
ORDER = [group["name"] for group in GROUPS]
CASES = yaml.safe_load((Path(__file__).parent / "rules" / "alerts.yaml").read_text("utf-8"))

# ORCH-3041: alert -> priority, objective, and the share of tasks that may miss it.
BUDGETS = {
    "InteractiveFirstTokenSlow": ("interactive", "first_token_p95_ms", 0.05),
    "InteractiveAnswersSlow": ("interactive", "tokens_64_p95_ms", 0.05),
    "InteractiveErrors": ("interactive", "error_ratio", 0.005),
    "BatchErrors": ("batch", "error_ratio", 0.01),
}
THROUGHPUT = "BatchThroughputLow"
# The workbook's windows: how many times too fast a budget burns -> which of them say so.
BURNS = {0.9: [], 1.1: ["3d"], 5.9: ["3d"], 6.1: ["6h", "3d"], 14.3: ["6h", "3d"]}
BURNS |= {14.5: ["1h", "6h", "3d"]}
# How much of the throughput was reached -> the same.
REACHED = {1.0: [], 0.99: ["3d"], 0.81: ["3d"], 0.79: ["6h", "3d"], 0.51: ["6h", "3d"]}
REACHED |= {0.49: ["1h", "6h", "3d"]}
# A share that does not change is the same over every window, whatever part of it has data.
MINUTES = 20


def promtool_test(tmp_path: Path, *groups: dict[str, Any]) -> None:
    """AssertionError with promtool's own words where an alert is not as expected; the groups have
    one interval."""
    path, interval = tmp_path / "test.yaml", groups[0]["interval"]
    document = {
        "rule_files": [str(RULES)],
        "group_eval_order": ORDER,
        "evaluation_interval": interval,
        "tests": [*groups],
    }
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    done = subprocess.run(
        [promtool(), "test", "rules", str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def series(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"series": name, "values": sent} for name, sent in values.items()]


def fired(alert: str, labels: dict[str, str], value: str = "") -> dict[str, Any]:
    """What promtool expects of a firing alert: our labels, and its texts with them filled in."""
    window = labels.get("window")
    (rule,) = (r for r in ALERTS if r["alert"] == alert and r["labels"].get("window") == window)
    texts = {}
    for name, text in rule["annotations"].items():
        filled = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
        texts[name] = re.sub(r"\{\{ \$value[^}]*\}\}", value, filled)
    return {"exp_labels": rule["labels"] | labels, "exp_annotations": texts}


def at(alert: str, time: str, *expected: dict[str, Any]) -> dict[str, Any]:
    return {"alertname": alert, "eval_time": time, "exp_alerts": list(expected)}


def burning(alert: str, *stages: tuple[float, int]) -> list[dict[str, str]]:
    """Ten thousand tasks a sample: so many times more than the budget allows miss the objective,
    for so many samples."""
    priority, objective, budget = BUDGETS[alert]
    sent = {"met": "0", "missed": "0"}
    count = dict.fromkeys(sent, 0)
    for factor, samples in stages:
        missed = round(factor * budget * 10_000)
        for result, step in (("met", 10_000 - missed), ("missed", missed)):
            sent[result] += f" {count[result] + step}+{step}x{samples - 1}"
            count[result] += step * samples
    of = f'engine="llamacpp",pool_id="p",priority="{priority}",objective="{objective}"'
    return series(
        {f'slo_tasks_total{{{of},result="{result}"}}': values for result, values in sent.items()}
    )


@pytest.mark.req("ORCH-3041")
@pytest.mark.parametrize("alert", BUDGETS)
def test_an_objective_s_alerts_fire_above_their_burn_rates_only(alert: str, tmp_path: Path) -> None:
    priority, objective, budget = BUDGETS[alert]
    groups = []
    for factor, windows in BURNS.items():
        share = f"{factor * budget * 100:.4g}%"
        labels = {"priority": priority, "objective": objective}
        expected = [fired(alert, labels | {"window": window}, share) for window in windows]
        checks = [at(other, f"{MINUTES}m") for other in (*BUDGETS, THROUGHPUT) if other != alert]
        checks.append(at(alert, f"{MINUTES}m", *expected))
        groups.append(
            {
                "interval": "1m",
                "input_series": burning(alert, (factor, MINUTES)),
                "alert_rule_test": checks,
            }
        )

    promtool_test(tmp_path, *groups)


@pytest.mark.req("ORCH-3041")
def test_the_page_ends_minutes_after_the_trouble(tmp_path: Path) -> None:
    alert = "InteractiveErrors"
    labels = {"priority": "interactive", "objective": "error_ratio"}
    over = {
        "interval": "1m",
        "input_series": burning(alert, (20, 70), (0, 50)),
        "alert_rule_test": [
            at(
                alert,
                "70m",
                *(
                    fired(alert, labels | {"window": window}, "10%")
                    for window in ("1h", "6h", "3d")
                ),
            ),
            # The last five minutes were good; half an hour and six were not.
            at(
                alert,
                "78m",
                *(fired(alert, labels | {"window": w}, "8.974%") for w in ("6h", "3d")),
            ),
        ],
    }

    promtool_test(tmp_path, over)


@pytest.mark.req("ORCH-3041")
def test_a_bad_hour_after_three_good_days_is_no_ticket_and_a_bad_day_is(tmp_path: Path) -> None:
    alert, hour = "InteractiveErrors", 2
    labels = {"priority": "interactive", "objective": "error_ratio", "window": "3d"}
    good, bad_hour, bad_day = 72 * hour, (10, hour), (4, 24 * hour)
    groups = [
        {
            "interval": "30m",
            "input_series": burning(alert, (0, good), bad),
            "alert_rule_test": [at(alert, f"{(good + bad[1]) * 30}m", *expected)],
        }
        for bad, expected in ((bad_hour, []), (bad_day, [fired(alert, labels, "0.6667%")]))
    ]

    promtool_test(tmp_path, *groups)


@pytest.mark.req("ORCH-3041")
def test_throughput_alerts_fire_below_their_share_of_the_objective(tmp_path: Path) -> None:
    of = {"priority": "batch", "objective": "throughput_ratio"}
    name = 'slo_attainment_ratio{engine="llamacpp",pool_id="p",priority="batch",'
    groups = []
    for reached, windows in REACHED.items():
        said = f"{reached * 100:.4g}%"
        expected = [fired(THROUGHPUT, of | {"window": window}, said) for window in windows]
        groups.append(
            {
                "interval": "1m",
                "input_series": series(
                    {name + 'objective="throughput_ratio"}': f"{reached}x{MINUTES}"}
                ),
                "alert_rule_test": [at(THROUGHPUT, f"{MINUTES}m", *expected)],
            }
        )

    promtool_test(tmp_path, *groups)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{n} {case['alert']}") for n, case in enumerate(CASES)]
)
def test_an_alert_fires_when_it_must_and_not_before(case: dict[str, Any], tmp_path: Path) -> None:
    alert = case["alert"]
    expected = fired(alert, case.get("labels", {}), case.get("value", ""))

    promtool_test(
        tmp_path,
        {
            "interval": "1m",
            "input_series": series(case["series"]),
            "alert_rule_test": [
                *(at(alert, quiet) for quiet in case["quiet"]),
                at(alert, case["fires"], expected),
            ],
        },
    )


def test_every_alert_has_a_case_that_keeps_it_quiet_and_one_that_fires_it() -> None:
    tried = {*BUDGETS, THROUGHPUT, *(case["alert"] for case in CASES if case["quiet"])}

    assert tried == {rule["alert"] for rule in ALERTS}


def test_every_alert_says_what_is_wrong_and_links_to_a_runbook_that_exists() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / RUNBOOKS_PATH).read_text("utf-8"), re.MULTILINE)
    anchors = {heading.lower() for heading in headings}

    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
        assert rule["annotations"]["description"], rule["alert"]
        path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert path == RUNBOOKS_PATH
        assert anchor in anchors


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    done = subprocess.run(
        [promtool(), "check", "rules", str(RULES)], capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(ALERTS) + 5} rules found" in done.stdout
