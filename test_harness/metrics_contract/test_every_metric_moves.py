"""Each metric of the contract moves on a live service when what it tells of happens.

A table: the metric, the deed (`metrics_contract.deeds`) that moves it, in which series, and by how
much. Where others move it too (a client goes on submitting all the time) only the direction is
sure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from harness_kit.contract_files import CONTRACTS
from harness_kit.service_process import metric_in
from metrics_contract.stage import Stage
from orch_metrics import DEFINITIONS

Change = Callable[[float], bool]


def by(amount: float) -> Change:
    return lambda change: change == amount


def more(change: float) -> bool:
    return change > 0


def less(change: float) -> bool:
    return change < 0


def other(change: float) -> bool:
    return change != 0


MIB = 1 << 20
# metric -> deed, labels, change
MOVES: dict[str, tuple[str, dict[str, str], Change]] = {
    "tasks_enqueued_total": (
        "serve",
        {"pool_id": "work", "engine_version": "llama.cpp gated-1"},
        by(2),
    ),
    "tasks_started_total": ("serve", {"pool_id": "work", "replica_id": "r0"}, by(2)),
    "tasks_canceled_total": ("cancel", {"pool_id": "work", "reason": "client"}, by(1)),
    "tasks_rejected_total": ("refuse", {"reason": "queue-full"}, by(1)),
    "queue_depth": ("hold", {"pool_id": "work", "priority": "interactive"}, by(1)),
    "kv_cache_usage_ratio": ("use_gpu", {"pool_id": "gpu"}, more),
    "gpu_utilization": ("use_gpu", {"pool_id": "gpu", "device": "0"}, by(67)),
    "vram_used_bytes": ("use_gpu", {"pool_id": "gpu", "device": "0"}, by(300 * MIB)),
    "latency_first_token_ms": ("serve", {"pool_id": "work"}, by(2)),
    "latency_decode_ms": ("serve", {"pool_id": "work"}, by(2)),
    "latency_queue_ms": ("serve", {"pool_id": "work"}, by(2)),
    "tokens_in_total": ("serve", {"pool_id": "work"}, by(6)),
    "tokens_out_total": ("serve", {"pool_id": "work"}, by(16)),
    "admission_backpressure_events_total": ("refuse", {"policy": "reject"}, by(1)),
    "admission_share": ("preempt", {"tenant": "acme"}, other),
    "deadlines_met_ratio": ("preempt", {"priority": "interactive"}, more),
    "preemptions_total": ("preempt", {"mode": "hard"}, by(1)),
    "resumptions_total": ("preempt", {"engine": "llamacpp"}, by(1)),
    "slo_value": ("break_pace", {"pool_id": "slow", "objective": "error_ratio"}, by(0)),
    "slo_attainment_ratio": ("break_pace", {"pool_id": "slow", "objective": "error_ratio"}, by(1)),
    "slo_tasks_total": ("serve", {"pool_id": "work", "objective": "error_ratio"}, by(2)),
    "admission_breaker_open": ("break_pace", {"pool_id": "slow", "priority": "batch"}, by(1)),
    "tasks_running": ("hold", {"pool_id": "work", "priority": "interactive"}, by(1)),
    "tasks_finished_total": ("serve", {"pool_id": "work", "outcome": "completed"}, by(2)),
    "failovers_total": ("fail_over", {"pool_id": "pair", "outcome": "resumed"}, by(1)),
    "failover_recovery_ms": ("fail_over", {"pool_id": "pair"}, by(1)),
    "stream_readers": ("hold", {}, more),
    "log_bytes_retained": ("serve", {}, more),
    "sessions_open": ("serve", {}, more),
    "slots": ("fail_over", {"pool_id": "pair"}, by(-2)),
    "slots_busy": ("hold", {"pool_id": "work"}, by(1)),
    "replica_ready": ("fail_over", {"pool_id": "pair"}, by(-1)),
    "replica_state": ("fail_over", {"pool_id": "pair", "state": "Ready"}, by(-1)),
    "replica_restarts_total": ("run_out_of_memory", {"pool_id": "gpu"}, by(1)),
    "preload_outcomes_total": ("run_out_of_memory", {"pool_id": "gpu", "outcome": "ready"}, by(1)),
    "self_tests_total": ("run_out_of_memory", {"pool_id": "gpu", "outcome": "passed"}, by(1)),
    "oom_events_total": ("run_out_of_memory", {"pool_id": "gpu", "reason": "vram"}, by(1)),
    "driver_reset_events_total": ("lose_gpu", {"pool_id": "gpu", "reason": "gpu-lost"}, by(1)),
    "reloads_total": ("reload", {"pool_id": "gpu", "outcome": "switched"}, by(1)),
    "drains_total": ("drain", {"pool_id": "pair", "outcome": "idle"}, by(1)),
    "config_reloads_total": ("reload_configuration", {"outcome": "unchanged"}, by(1)),
    "gpu_memory_total_bytes": ("use_gpu", {"device": "0"}, by((90_000 - 81_920) * MIB)),
    "gpu_memory_used_bytes": ("use_gpu", {"device": "0"}, by((9_000 - 1_024) * MIB)),
    "gpu_temperature_celsius": ("use_gpu", {"device": "0"}, by(91 - 40)),
    "gpu_power_watts": ("use_gpu", {"device": "0"}, by(600 - 250.5)),
    "gpu_sm_clock_mhz": ("use_gpu", {"device": "0"}, by(900 - 1980)),
    "gpu_throttled": ("use_gpu", {"device": "0"}, by(1)),
    "gpu_ecc_errors": ("lose_gpu", {"device": "1"}, by(2)),
    "gpu_lost": ("lose_gpu", {"device": "0"}, by(1)),
    "pool_managers_registered": ("register", {}, by(1)),
    "model_store_bytes": ("restart", {}, more),
    "host_ram_used_bytes": ("fill_memory", {}, other),
    "cpu_carve_out": ("restart", {}, by(-1)),
    "journal_commits_total": ("serve", {}, more),
    "journal_commit_ms": ("serve", {}, more),
    "journal_failing": ("fill_disk", {}, by(1)),
    "journal_bytes": ("write_much", {}, more),
    "http_requests_total": ("refuse", {"operation": "submit_task", "status": "429"}, by(1)),
    "errors_total": ("refuse", {"code": "ADMISSION_REJECT"}, by(1)),
    "build_info": ("start", {}, by(1)),
}


@pytest.mark.req("ORCH-3028", "OC-CORE-1041", "OC-METRICS-7101")
@pytest.mark.parametrize("name", sorted(MOVES))
def test_a_metric_moves_when_what_it_tells_of_happens(stage: Stage, name: str) -> None:
    deed, labels, expected = MOVES[name]
    series = f"{name}_count" if name.endswith("_ms") else name
    before, after = stage.seen[deed].before, stage.seen[deed].after

    change = metric_in(after, series, **labels) - metric_in(before, series, **labels)

    assert f"\n{series}" in after
    assert expected(change), f"{name} {labels} changed by {change} with {deed}"


def test_every_metric_of_the_contract_has_a_deed_unless_it_is_only_planned() -> None:
    assert {each.name for each in DEFINITIONS if not each.planned} == set(MOVES)


def test_the_service_sets_every_metric_but_those_that_are_only_planned() -> None:
    service = Path(CONTRACTS.parent / "service")
    source = "\n".join(path.read_text(encoding="utf-8") for path in service.rglob("*.py"))
    used = set(re.findall(r"\bmetrics\.([a-z_]+)", source))

    for each in DEFINITIONS:
        assert (each.name in used) is not each.planned, each.name
