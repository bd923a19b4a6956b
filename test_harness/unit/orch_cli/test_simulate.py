"""`simulate`: what it prints, and what decides it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from harness_kit.scripted_cli import run
from orch_cli.exit_codes import CliError
from orch_cli.simulated_fleet import deadline_ranges, fleet, priority_mix, tenant_names
from orch_simulator.workload import DeadlineRange
from orchestrator_core.task import Priority

CONFIGURATION = """\
auth: { keys: [ { id: k, tenant: gold, roles: [data], key_env: A_KEY_THAT_IS_NOT_SET } ] }
sessions: { max_turns: 3 }
pools:
  - id: p0
    engine: llamacpp
    model: "builtin:smollm2"
    ctx: 2048
    devices: [0]
    queue: { capacity: 40, full_policy: drop-lru }
    admission:
      fairness: { kind: wfq, tenants: [ { id: gold, weight: 3 } ] }
    timeouts: { wall_ms: 30000, idle_ms: 5000 }
    replicas:
      - { id: r0, url: "http://127.0.0.1:9001" }
      - { id: r1, url: "http://127.0.0.1:9002" }
"""

RUN = ("simulate", "--poisson", "--tasks", "60", "--rate", "6")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(CONFIGURATION, "utf-8")
    return path


def outcome_of(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    outcome: dict[str, Any] = json.loads(result.stdout)
    return outcome


@pytest.mark.req(
    "ORCH-3075", "ORCH-3079", "ORCH-3081", partial="all but what the simulator shows of it"
)
def test_a_run_prints_waits_shares_deadlines_and_preemptions_by_tenant_and_priority() -> None:
    result = run(*RUN)

    assert result.exit_code == 0, result.output
    heading, *rows = result.stdout.splitlines()
    for column in ("TENANT", "PRIORITY", "WAIT P50", "SHARE", "FAIR SHARE", "ON TIME", "PREEMPTED"):
        assert column in heading.split("\t")
    assert any(row.startswith("tenant-1\tbatch\t") for row in rows)
    assert "60 tasks in " in result.stderr
    assert "real time" not in result.stderr


def test_equal_options_print_equal_results_and_another_seed_does_not() -> None:
    first, again, other = (run(*RUN, "--json", "--seed", seed) for seed in ("1", "1", "2"))

    assert outcome_of(first) == outcome_of(again)
    assert outcome_of(other) != outcome_of(first)


def test_generated_arrivals_can_be_kept_and_replayed(tmp_path: Path) -> None:
    trace = str(tmp_path / "t.jsonl")

    generated = outcome_of(run(*RUN, "--json", "--save-trace", trace))
    replayed = outcome_of(run("simulate", "--trace", trace, "--json"))

    assert replayed == generated


def test_the_configuration_gives_pools_classes_tenants_and_needs_no_secret(file: Path) -> None:
    pools, limits, _ = fleet(file, None, slots=4, queue_capacity=None)
    (pool,) = pools

    assert (pool.replicas, pool.slots_per_replica, pool.wall_ms) == (2, 4, 30_000)
    assert (pool.spec.queue_capacity, pool.spec.full_policy.value) == (40, "drop-lru")
    assert [(tenant.id, tenant.weight) for tenant in pool.spec.tenants] == [("gold", 3)]
    assert limits.session_max_turns == 3
    assert tenant_names(pools, None) == ("gold",)
    assert tenant_names(pools, 3) == ("gold", "tenant-1", "tenant-2")


def test_options_replace_what_the_configuration_says(file: Path) -> None:
    (pool,), _, _ = fleet(file, replicas=7, slots=1, queue_capacity=9)

    assert (pool.replicas, pool.spec.queue_capacity) == (7, 9)
    assert {policy.queue_capacity for policy in pool.spec.priorities} == {9}
    outcome = outcome_of(run(*RUN, "--config", str(file), "--replicas", "7", "--json"))
    assert outcome["slots"] == 28


def test_cost_and_plot_are_given_when_asked_for(tmp_path: Path) -> None:
    plot = tmp_path / "load.svg"

    result = run(*RUN, "--cost", "--plot", str(plot))

    assert result.exit_code == 0, result.output
    assert "EVENT\tWAITING\tDECISIONS\tMEAN" in result.stdout
    assert "s of real time" in result.stderr
    assert plot.read_text("utf-8").startswith("<svg ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate"], "exactly one of --poisson and --trace"),
        (["simulate", "--poisson", "--trace", "x"], "exactly one of --poisson and --trace"),
        ([*RUN, "--rate", "0"], "--rate 0: must be above 0"),
        (["simulate", "--trace", "no-such-file.jsonl"], "no-such-file.jsonl: No such file"),
        ([*RUN, "--priority-mix", "urgent=1"], "'urgent=1' is not of the form interactive="),
        ([*RUN, "--plot", "no-such-folder/x.svg"], "no-such-folder/x.svg: No such file"),
    ],
)
def test_wrong_usage_is_told_before_or_instead_of_a_result(arguments: list[str], said: str) -> None:
    result = run(*arguments)

    assert result.exit_code != 0
    assert said in result.stderr


def test_a_bad_trace_is_told_with_its_line(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"at_ms": 1}\n', "utf-8")

    result = run("simulate", "--trace", str(trace))

    assert result.exit_code == 2
    assert "t.jsonl, line 1: " in result.stderr
    assert 'hint: a line looks like {"at_ms": 0, ' in result.stderr


def test_a_bad_configuration_is_told_as_serve_tells_it(file: Path) -> None:
    file.write_text(CONFIGURATION.replace("ctx: 2048", "ctx: 0"), "utf-8")

    result = run(*RUN, "--config", str(file))

    assert result.exit_code == 2
    assert "pools[0].ctx = 0: must be at least 1" in result.stderr


def test_mixes_and_ranges_are_read_as_written() -> None:
    assert priority_mix("interactive=1, batch=0.5") == {
        Priority.INTERACTIVE: 1.0,
        Priority.BATCH: 0.5,
    }
    assert deadline_ranges("interactive=0.5:2,batch=60") == {
        Priority.INTERACTIVE: DeadlineRange(500, 2_000),
        Priority.BATCH: DeadlineRange(60_000, 60_000),
    }


@pytest.mark.parametrize(
    "text", ["interactive=1:2", "interactive=1:2,batch=3:2", "interactive=1:2,batch=x", "batch"]
)
def test_ranges_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(CliError):
        deadline_ranges(text)


@pytest.mark.parametrize("text", ["batch=0", "batch=-1", "batch=inf", ""])
def test_mixes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(CliError):
        priority_mix(text)
