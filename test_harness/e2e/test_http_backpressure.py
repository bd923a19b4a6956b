"""Full queues under each policy, rate limits and quotas: what refused and dropped ones are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import Answer, HttpProbe, task
from harness_kit.service_process import (
    ALL_KEY,
    DATA_KEY,
    OTHER_TENANT_KEY,
    ServiceProcess,
    external_pool,
    model_of,
)
from harness_kit.waiting import wait_until

# One engine and one model per pool, so that no test disturbs another.
POOLS: dict[str, dict[str, Any]] = {
    "reject": {"queue": {"capacity": 2, "full_policy": "reject"}},
    "drop-lru": {"queue": {"capacity": 2, "full_policy": "drop-lru"}},
    "shed-low-priority": {"queue": {"capacity": 2, "full_policy": "shed-low-priority"}},
    "classes": {
        "queue": {"capacity": 8, "full_policy": "reject"},
        "admission": {"priorities": [{"name": "batch", "queue_capacity": 1}]},
    },
    "rate": {
        "admission": {
            "priorities": [{"name": "interactive", "queue_capacity": 9, "rate_limit_rps": 0.5}]
        }
    },
    "quota": {"admission": {"fairness": {"kind": "wfq", "tenants": [{"id": "acme", "rps": 0.5}]}}},
    "tokens": {
        "admission": {
            "fairness": {"kind": "wfq", "tenants": [{"id": "acme", "tokens_per_minute": 600}]}
        }
    },
    "concurrent": {
        "admission": {"fairness": {"kind": "wfq", "tenants": [{"id": "acme", "max_concurrent": 1}]}}
    },
}


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, GatedEngine]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(GatedEngine(slots=2 if name == "concurrent" else 1))
            for name in POOLS
        }


@pytest.fixture(scope="module")
def service(
    engines: dict[str, GatedEngine], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    pools = [
        external_pool(engines[name].url, pool_id=name, model=model_of(name), **overrides)
        for name, overrides in POOLS.items()
    ]
    with ServiceProcess(tmp_path_factory.mktemp("backpressure"), *pools) as running:
        for name in POOLS:
            running.wait_metric("replica_ready", 1, pool_id=name)
        yield running


@pytest.fixture
def probe(service: ServiceProcess) -> Iterator[HttpProbe]:
    with service.probe() as client:
        yield client


@contextmanager
def held(service: ServiceProcess, engine: GatedEngine, pool: str) -> Iterator[None]:
    """Nothing decodes inside; afterwards everything of the pool comes to its end."""
    engine.hold()
    try:
        yield
    finally:
        engine.allow()

        def idle() -> bool:
            text = service.metrics()
            names = ("queue_depth{", "tasks_running{")
            figures = [x for x in text.splitlines() if x.startswith(names) and pool in x]
            return all(line.endswith(" 0.0") for line in figures)

        wait_until(idle, 10, f"pool {pool} is idle")


def submit(probe: HttpProbe, pool: str, **fields: Any) -> tuple[Answer, dict[str, Any]]:
    document = task(model_of(pool), **fields)
    return probe.post("/v1/tasks", document), document


def assert_backpressure(answer: Answer, code: str, label: str, pool: str) -> dict[str, Any]:
    """A 429 with both headers, rounded as pinned, and the policy in full."""
    assert answer.status == 429, answer
    envelope: dict[str, Any] = answer.json()
    backoff_ms = int(answer.headers["x-backoff-ms"])
    assert envelope["code"] == code
    assert envelope["policy_label"] == label
    assert envelope["pool_id"] == pool
    assert envelope["engine"] == "llamacpp"
    assert envelope["retriable"] is True
    assert envelope["retry_after_ms"] == backoff_ms
    assert backoff_ms >= 1
    assert int(answer.headers["retry-after"]) == -(-backoff_ms // 1000)
    return envelope


@pytest.mark.req("ORCH-2007", "ORCH-3005", "OC-CTRL-2011", "OC-CORE-1002")
@pytest.mark.req("ORCH-3004", partial="the order")
def test_reject_refuses_what_does_not_fit_and_drops_nobody(
    service: ServiceProcess, engines: dict[str, GatedEngine], probe: HttpProbe
) -> None:
    pool = "reject"
    rejects = service.metric("admission_backpressure_events_total", policy=pool)
    with held(service, engines[pool], pool):
        admitted = [submit(probe, pool) for _ in range(3)]
        refused, _ = submit(probe, pool)
        depth = service.metric("queue_depth", pool_id=pool)

    assert [answer.status for answer, _ in admitted] == [202, 202, 202]
    assert [answer.json()["queue_position"] for answer, _ in admitted] == [0, 0, 1]
    assert_backpressure(refused, "ADMISSION_REJECT", "reject", pool)
    assert depth == 2
    for _, document in admitted:
        assert probe.stream(document["task_id"]).rest()[-1].name == "end"
    assert service.metric("admission_backpressure_events_total", policy=pool) == rejects + 1


@pytest.mark.req("ORCH-3005", "OC-CORE-1002")
@pytest.mark.req("ORCH-2007", partial="all but one policy or header")
def test_drop_lru_admits_the_new_task_and_ends_the_longest_waiting(
    service: ServiceProcess, engines: dict[str, GatedEngine], probe: HttpProbe
) -> None:
    pool = "drop-lru"
    with held(service, engines[pool], pool):
        _, running = submit(probe, pool)
        _, oldest = submit(probe, pool)
        _, younger = submit(probe, pool)
        answer, newest = submit(probe, pool)
        dropped = probe.stream(oldest["task_id"]).rest()

    assert answer.status == 202
    assert [event.name for event in dropped] == ["error"]
    assert dropped[0].id == 2
    assert dropped[0].data["code"] == "QUEUE_FULL_DROP_LRU"
    assert dropped[0].data["policy_label"] == "drop-lru"
    assert dropped[0].data["retriable"] is True
    for document in (running, younger, newest):
        assert probe.stream(document["task_id"]).rest()[-1].name == "end"


@pytest.mark.req("ORCH-3005", "OC-CORE-1002", "ORCH-2007")
def test_drop_lru_takes_the_lowest_priority_first_and_none_above_the_new_one(
    service: ServiceProcess, engines: dict[str, GatedEngine], probe: HttpProbe
) -> None:
    pool = "drop-lru"
    with held(service, engines[pool], pool):
        submit(probe, pool)
        _, urgent = submit(probe, pool, priority="interactive")
        _, patient = submit(probe, pool, priority="batch")
        admitted, second_urgent = submit(probe, pool, priority="interactive")
        refused, _ = submit(probe, pool, priority="batch")
        dropped = probe.stream(patient["task_id"]).rest()

    assert admitted.status == 202
    assert dropped[-1].data["code"] == "QUEUE_FULL_DROP_LRU"
    # Both that wait now are interactive: nobody may be dropped for a batch task.
    assert_backpressure(refused, "QUEUE_FULL_DROP_LRU", "drop-lru", pool)
    for document in (urgent, second_urgent):
        assert probe.stream(document["task_id"]).rest()[-1].name == "end"


@pytest.mark.req("ORCH-3005", "OC-CORE-1002", "ORCH-2007")
def test_shed_low_priority_ends_waiting_tasks_of_a_strictly_lower_priority_only(
    service: ServiceProcess, engines: dict[str, GatedEngine], probe: HttpProbe
) -> None:
    pool = "shed-low-priority"
    with held(service, engines[pool], pool):
        submit(probe, pool)
        waiting = [submit(probe, pool, priority="batch")[1] for _ in range(2)]
        batch_refused, _ = submit(probe, pool, priority="batch")
        admitted = [submit(probe, pool, priority="interactive") for _ in range(2)]
        shed = [probe.stream(document["task_id"]).rest() for document in waiting]
        urgent_refused, _ = submit(probe, pool, priority="interactive")

    assert_backpressure(batch_refused, "ADMISSION_REJECT", "shed-low-priority", pool)
    assert_backpressure(urgent_refused, "ADMISSION_REJECT", "shed-low-priority", pool)
    assert [answer.status for answer, _ in admitted] == [202, 202]
    for events in shed:
        assert [event.name for event in events] == ["error"]
        assert events[0].data["code"] == "ADMISSION_REJECT"
        assert events[0].data["policy_label"] == "shed-low-priority"
        assert events[0].data["retriable"] is True
    for _, document in admitted:
        assert probe.stream(document["task_id"]).rest()[-1].name == "end"


@pytest.mark.req("OC-CORE-1001", "ORCH-3004", partial="the order")
def test_a_class_has_a_bound_of_its_own(
    service: ServiceProcess, engines: dict[str, GatedEngine], probe: HttpProbe
) -> None:
    pool = "classes"
    with held(service, engines[pool], pool):
        submit(probe, pool)
        first, _ = submit(probe, pool, priority="batch")
        second, _ = submit(probe, pool, priority="batch")
        urgent, _ = submit(probe, pool, priority="interactive")

    assert first.status == 202
    assert_backpressure(second, "ADMISSION_REJECT", "reject", pool)
    assert urgent.status == 202


@pytest.mark.req("ORCH-3006")
@pytest.mark.req("ORCH-2007", partial="all but one policy or header")
def test_a_rate_limit_lets_a_burst_of_one_pass_and_counts_per_client(
    service: ServiceProcess,
) -> None:
    with service.probe(DATA_KEY) as client, service.probe(OTHER_TENANT_KEY) as other:
        first, document = submit(client, "rate")
        repeated = client.post("/v1/tasks", document)
        second, _ = submit(client, "rate")
        of_another_class, _ = submit(client, "rate", priority="batch")
        of_another_client, _ = submit(other, "rate")

    assert first.status == 202
    assert repeated.status == 202  # the same task again asks for nothing new
    envelope = assert_backpressure(second, "ADMISSION_REJECT", "rate-limit", "rate")
    assert envelope["retry_after_ms"] <= 2000
    assert of_another_class.status == 202
    assert of_another_client.status == 202


@pytest.mark.req("ORCH-3077")
@pytest.mark.req("ORCH-2007", partial="all but one policy or header")
@pytest.mark.req("ORCH-3036", partial="tokens and memory")
def test_a_tenant_s_requests_per_second_are_a_quota_over_all_its_keys(
    service: ServiceProcess,
) -> None:
    with (
        service.probe(DATA_KEY) as client,
        service.probe(ALL_KEY) as colleague,
        service.probe(OTHER_TENANT_KEY) as other,
    ):
        first, _ = submit(client, "quota")
        second, _ = submit(colleague, "quota", priority="batch")
        of_another_tenant, _ = submit(other, "quota")

    assert first.status == 202
    assert_backpressure(second, "ADMISSION_REJECT", "quota", "quota")
    assert of_another_tenant.status == 202


@pytest.mark.req("ORCH-3036", partial="concurrent jobs and memory")
@pytest.mark.req("ORCH-2007", partial="all but one policy or header")
def test_a_tenant_s_tokens_per_minute_count_prompt_and_decoded_tokens_of_all_its_keys(
    service: ServiceProcess,
) -> None:
    with (
        service.probe(DATA_KEY) as client,
        service.probe(ALL_KEY) as colleague,
        service.probe(OTHER_TENANT_KEY) as other,
    ):
        too_many, _ = submit(client, "tokens", max_tokens=597, ctx=1024)  # and four of its prompt
        first, document = submit(client, "tokens", max_tokens=590, ctx=1024)
        second, _ = submit(colleague, "tokens", priority="batch", max_tokens=8)
        of_another_tenant, _ = submit(other, "tokens", max_tokens=700, ctx=1024)
        end = client.stream(document["task_id"]).rest()[-1]

    assert too_many.status == 429
    assert too_many.json()["policy_label"] == "quota"
    assert too_many.json()["retriable"] is False
    assert first.status == 202
    envelope = assert_backpressure(second, "ADMISSION_REJECT", "quota", "tokens")
    assert envelope["retry_after_ms"] <= 600  # six of twelve tokens are missing, ten a second come
    assert "tokens_per_minute" in envelope["message"]
    assert of_another_tenant.status == 202
    assert end.data["tokens_out"] == 590


@pytest.mark.req("ORCH-3077")
@pytest.mark.req("ORCH-3036", partial="tokens and memory")
def test_max_concurrent_lets_more_tasks_wait_rather_than_refusing_them(
    service: ServiceProcess, engines: dict[str, GatedEngine]
) -> None:
    pool = "concurrent"
    engine = engines[pool]
    with (
        service.probe(DATA_KEY) as client,
        service.probe(OTHER_TENANT_KEY) as other,
        held(service, engine, pool),
    ):
        mine = [submit(client, pool)[1] for _ in range(2)]
        engine.wait_busy(1)
        running_with_a_free_slot = engine.busy
        theirs = submit(other, pool)[1]
        engine.wait_busy(2)
        engine.allow()
        ends = [client.stream(document["task_id"]).rest()[-1] for document in mine]
        ends.append(other.stream(theirs["task_id"]).rest()[-1])

    assert running_with_a_free_slot == 1
    assert [end.name for end in ends] == ["end", "end", "end"]


@pytest.mark.req("ORCH-3029", partial="all but the 202")
@pytest.mark.req("ORCH-2001", partial="that every check comes before the queue")
def test_queue_positions_count_the_tasks_that_go_first(
    service: ServiceProcess, engines: dict[str, GatedEngine], probe: HttpProbe
) -> None:
    pool = "classes"
    with held(service, engines[pool], pool):
        answers = [submit(probe, pool)[0] for _ in range(5)]

    positions = [answer.json()["queue_position"] for answer in answers]
    assert positions == [0, 0, 1, 2, 3]
    for answer in answers:
        body = answer.json()
        assert answer.headers["x-queue-position"] == str(body["queue_position"])
        assert answer.headers["x-queue-eta-ms"] == str(body["predicted_start_ms"])
    starts_ms = [answer.json()["predicted_start_ms"] for answer in answers]
    assert starts_ms[0] == 0
    assert starts_ms[1:] == sorted(starts_ms[1:])
    assert starts_ms[1] >= 1


@pytest.mark.req("ORCH-3079", partial="order and refusal")
def test_a_waiting_task_whose_deadline_passes_ends_with_deadline_unmet(
    service: ServiceProcess, engines: dict[str, GatedEngine], probe: HttpProbe
) -> None:
    pool = "classes"
    with held(service, engines[pool], pool):
        submit(probe, pool)
        answer, document = submit(probe, pool, deadline_ms=300)
        events = probe.stream(document["task_id"]).rest()

    assert answer.status == 202
    assert [event.name for event in events] == ["error"]
    assert events[0].data["code"] == "DEADLINE_UNMET"
    assert events[0].data["retriable"] is True
    assert events[0].data["engine"] == "llamacpp"
