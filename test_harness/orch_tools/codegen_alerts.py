"""Recording rules, alerts and `docs/runbooks.md` from `contracts/observability.yaml`.

The alerts on objectives are multi-window and multi-burn-rate (The Site Reliability Workbook,
chapter 5): one recording rule for each window, over all priorities and objectives; one alert for
each objective and pair of windows. Every alert links to its section of the runbooks. Requirement:
ORCH-3041.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from orch_tools import observability
from orch_tools.observability import MISSED, MISSED_LABELS

ALERTS_PATH = "generated/alerts/llama-orch.yaml"
RUNBOOKS_PATH = "docs/runbooks.md"

_HEADER = f"# Generated from {observability.SOURCE_PATH} by `make regen`; do not edit.\n"
_RUNBOOKS = f"""# Runbooks

Generated from `{observability.SOURCE_PATH}` by `make regen`; do not edit.
One section for each alert of `{ALERTS_PATH}`: what it says, and what to look at first. A `page`
wants somebody now, a `ticket` in working hours. What the commands do stands in
[operations](operations.md).
"""

Rule = dict[str, Any]


def generate(root: Path) -> dict[str, str | bytes]:
    """Path -> content. Raises `ObservabilityError`."""
    declared = observability.read(root)
    return {ALERTS_PATH: alerts_file(declared), RUNBOOKS_PATH: runbooks(declared)}


def alerts_file(declared: dict[str, Any]) -> str:
    """The rule file that Prometheus loads."""
    groups = [
        {"name": "llama-orch-records", "rules": records(declared)},
        {"name": "llama-orch-objectives", "rules": objective_alerts(declared)},
        {"name": "llama-orch", "rules": [_alert(declared, each) for each in declared["alerts"]]},
    ]
    text: str = yaml.safe_dump({"groups": groups}, sort_keys=False, width=110, allow_unicode=True)
    return _HEADER + text


def records(declared: dict[str, Any]) -> list[Rule]:
    """The share of tasks that missed each objective, over every window."""
    by = ", ".join(MISSED_LABELS)
    rates = declared["burn_rates"]
    windows = dict.fromkeys(each[end] for each in rates for end in ("short", "long"))
    return [
        {
            "record": f"{MISSED}{window}",
            "expr": f'sum by ({by}) (rate(slo_tasks_total{{result="missed"}}[{window}]))'
            f" / sum by ({by}) (rate(slo_tasks_total[{window}]))",
        }
        for window in windows
    ]


def objective_alerts(declared: dict[str, Any]) -> list[Rule]:
    """For each objective one alert a pair of windows; throughput, which is no matter of single
    tasks, by how much of the objective was reached on average."""
    rules = []
    for slo in declared["slos"]:
        of = {"priority": slo["priority"], "objective": slo["objective"]}
        selector = "{" + ",".join(f'{name}="{value}"' for name, value in of.items()) + "}"
        for rate in declared["burn_rates"]:
            if "budget" in slo:
                bound = f"{rate['factor']} * {slo['budget']}"
                parts = [f"{MISSED}{rate[end]}{selector} > {bound}" for end in ("long", "short")]
                said = f"over {rate['long']}, {rate['factor']} times what the objective allows"
                value = "{{ $value | humanizePercentage }} of them"
            else:
                parts = [
                    "avg by (priority, objective) "
                    f"(avg_over_time(slo_attainment_ratio{selector}[{rate[end]}]))"
                    f" < {rate['reached']}"
                    for end in ("long", "short")
                ]
                said = f"over {rate['long']}"
                value = "{{ $value | humanizePercentage }} of the objective was reached"
            alert = {
                "alert": slo["alert"],
                "severity": rate["severity"],
                "expr": " and ".join(parts),
                "labels": {"window": rate["long"]},
                "summary": _sentence(slo["what"]),
                "description": f"{value} {said}, and still over {rate['short']}.",
            }
            rules.append(_alert(declared, alert))
    return rules


def _alert(declared: dict[str, Any], alert: dict[str, Any]) -> Rule:
    url = f"{declared['runbook_base']}{RUNBOOKS_PATH}#{alert['alert'].lower()}"
    rule: Rule = {"alert": alert["alert"], "expr": alert["expr"]}
    if "for" in alert:
        rule["for"] = alert["for"]
    rule["labels"] = {"severity": alert["severity"], **alert.get("labels", {})}
    rule["annotations"] = {
        "summary": alert["summary"],
        "description": alert["description"],
        "runbook_url": url,
    }
    return rule


def runbooks(declared: dict[str, Any]) -> str:
    """The whole document, in Markdown."""
    parts = [_RUNBOOKS]
    pairs = ", ".join(f"{r['severity']} over {r['long']}" for r in declared["burn_rates"])
    for slo in declared["slos"]:
        parts.append(f"## {slo['alert']}\n\n{_sentence(slo['what'])} ({pairs}).\n")
        parts.append(slo["runbook"])
    for alert in declared["alerts"]:
        lasting = f", after {alert['for']}" if "for" in alert else ""
        said = f"`{alert['expr']}` ({alert['severity']}{lasting})"
        parts.append(f"## {alert['alert']}\n\n{said}\n")
        parts.append(alert["runbook"])
    return "\n".join(parts)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
