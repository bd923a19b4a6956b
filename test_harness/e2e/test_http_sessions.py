"""Sessions over HTTP: turns, time to live, deletion, and token budgets from reserve to settle."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import Answer, HttpProbe, task
from harness_kit.service_process import MODEL, ServiceProcess, external_pool
from harness_kit.waiting import wait_until

TTL_MS = 3000
MAX_TURNS = 3
BUDGET_TOKENS = 100
PROMPT = "words are tokens"  # to the fake engine: with a budget set, admission asks it
PROMPT_TOKENS = 3


@pytest.fixture(scope="module")
def engine() -> Iterator[GatedEngine]:
    with GatedEngine(slots=1) as running:
        yield running


@pytest.fixture(scope="module")
def service(
    engine: GatedEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    sessions = {
        "ttl_ms": TTL_MS,
        "max_turns": MAX_TURNS,
        "budgets": {"tokens": BUDGET_TOKENS, "time_ms": 600_000, "cost": None},
    }
    directory = tmp_path_factory.mktemp("sessions")
    with ServiceProcess(directory, external_pool(engine.url), sessions=sessions) as running:
        yield running


@pytest.fixture
def probe(service: ServiceProcess) -> Iterator[HttpProbe]:
    with service.probe() as client:
        yield client


def submit(probe: HttpProbe, session_id: str, **fields: Any) -> tuple[Answer, str]:
    document = task(MODEL, **({"prompt": PROMPT, "session_id": session_id} | fields))
    return probe.post("/v1/tasks", document), document["task_id"]


def session_of(probe: HttpProbe, session_id: str) -> dict[str, Any]:
    answer = probe.get(f"/v1/sessions/{session_id}")
    assert answer.status == 200
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.req("ORCH-2004", "ORCH-3021")
def test_a_session_shows_what_is_left_of_it(probe: HttpProbe) -> None:
    session_id = str(uuid.uuid4())
    answer, task_id = submit(probe, session_id, max_tokens=8)
    assert answer.status == 202
    probe.stream(task_id).rest()

    shown = session_of(probe, session_id)

    assert 0 < shown.pop("ttl_ms_remaining") <= TTL_MS
    assert 599_000 <= shown.pop("time_budget_remaining_ms") <= 600_000
    assert shown == {
        "turns": 1,
        "kv_bytes": 0,
        "kv_warmth": False,
        "tokens_budget_remaining": BUDGET_TOKENS - PROMPT_TOKENS - 8,
    }


@pytest.mark.req("ORCH-3021")
def test_a_session_takes_no_more_than_its_turns(probe: HttpProbe) -> None:
    session_id = str(uuid.uuid4())

    answers = [submit(probe, session_id, max_tokens=1)[0] for _ in range(MAX_TURNS + 1)]

    assert [answer.status for answer in answers] == [202, 202, 202, 429]
    envelope = answers[-1].json()
    assert envelope["code"] == "ADMISSION_REJECT"
    assert envelope["policy_label"] == "session"
    assert envelope["retriable"] is False
    assert envelope["message"].startswith("session_id: ")
    assert session_of(probe, session_id)["turns"] == MAX_TURNS


@pytest.mark.req("ORCH-3021")
@pytest.mark.req("ORCH-2004", partial="all but the time to live")
def test_a_session_ends_by_itself_and_its_id_begins_a_new_one(probe: HttpProbe) -> None:
    session_id = str(uuid.uuid4())
    for _ in range(2):
        assert submit(probe, session_id, max_tokens=1)[0].status == 202
    first_ttl_ms = session_of(probe, session_id)["ttl_ms_remaining"]

    path = f"/v1/sessions/{session_id}"
    wait_until(
        lambda: probe.get(path).status == 404, TTL_MS / 1000 + 1, "the session has ended by itself"
    )
    assert submit(probe, session_id, max_tokens=1)[0].status == 202

    assert first_ttl_ms <= TTL_MS
    assert session_of(probe, session_id)["turns"] == 1


@pytest.mark.req("ORCH-2005")
def test_a_deleted_session_is_gone_and_its_tasks_go_on(
    probe: HttpProbe, engine: GatedEngine
) -> None:
    session_id = str(uuid.uuid4())
    engine.hold(2)
    _, task_id = submit(probe, session_id)
    engine.wait_busy(1)

    deleted = probe.request("DELETE", f"/v1/sessions/{session_id}")
    after = probe.get(f"/v1/sessions/{session_id}")
    again = probe.request("DELETE", f"/v1/sessions/{session_id}")
    engine.allow()

    assert (deleted.status, deleted.body) == (204, b"")
    assert (after.status, again.status) == (404, 404)
    assert probe.stream(task_id).rest()[-1].data["tokens_out"] == 8
    assert submit(probe, session_id, max_tokens=1)[0].status == 202
    assert session_of(probe, session_id)["turns"] == 1


@pytest.mark.req("ORCH-3099")
@pytest.mark.req("ORCH-2005", partial="that KV is freed")
@pytest.mark.req("ORCH-3203", partial="all but one case of a crash")
def test_after_a_crash_turns_and_budgets_are_what_they_were_and_a_deleted_session_is_gone(
    engine: GatedEngine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ended, running, forgotten = (str(uuid.uuid4()) for _ in range(3))
    directory = tmp_path_factory.mktemp("sessions-crash")
    sessions = {"budgets": {"tokens": BUDGET_TOKENS}}
    with ServiceProcess(directory, external_pool(engine.url), sessions=sessions) as service:
        with service.probe() as probe:
            for max_tokens in (10, 20):
                _, task_id = submit(probe, ended, max_tokens=max_tokens)
                probe.stream(task_id).rest()
            # The engine has one slot, so this one is on disk before the next is admitted.
            engine.hold(5)
            _, task_id = submit(probe, running, max_tokens=40)
            assert submit(probe, forgotten, max_tokens=30)[0].status == 202
            assert probe.request("DELETE", f"/v1/sessions/{forgotten}").status == 204
        service.kill()
        service.restart()
        with service.probe() as probe:
            after = [session_of(probe, session_id) for session_id in (ended, running)]
            status = probe.get(f"/v1/sessions/{forgotten}").status
            engine.allow()
            probe.stream(task_id).rest()
            settled = session_of(probe, running)

    assert [shown["turns"] for shown in after] == [2, 1]
    assert [shown["tokens_budget_remaining"] for shown in after] == [
        BUDGET_TOKENS - 2 * PROMPT_TOKENS - 10 - 20,
        BUDGET_TOKENS - PROMPT_TOKENS - 40,
    ]
    assert status == 404
    assert settled["tokens_budget_remaining"] == BUDGET_TOKENS - PROMPT_TOKENS - 40


@pytest.mark.req("ORCH-3099", "OC-CORE-1023", "OC-CORE-1024", "OC-CTRL-2068")
def test_a_token_budget_is_reserved_at_admission_and_settled_at_the_end(
    probe: HttpProbe, engine: GatedEngine
) -> None:
    session_id = str(uuid.uuid4())
    engine.hold()
    first, task_id = submit(probe, session_id, max_tokens=60)
    reserved = session_of(probe, session_id)["tokens_budget_remaining"]
    engine.allow(10)
    stream = probe.stream(task_id)
    stream.take(11)
    with HttpProbe(probe.port, probe.key) as canceller:
        assert canceller.post(f"/v1/tasks/{task_id}/cancel").status == 204
    stream.rest()
    settled = session_of(probe, session_id)["tokens_budget_remaining"]
    engine.allow()

    left_after_reserving = BUDGET_TOKENS - PROMPT_TOKENS - 60
    assert first.headers["x-budget-tokens-remaining"] == str(left_after_reserving)
    assert "x-budget-cost-remaining" not in first.headers
    assert int(first.headers["x-budget-time-remaining-ms"]) <= 600_000
    assert stream.headers["x-budget-tokens-remaining"] == str(left_after_reserving)
    assert reserved == left_after_reserving
    # Ten tokens were sent, and the prompt was read.
    assert settled == BUDGET_TOKENS - PROMPT_TOKENS - 10


@pytest.mark.req("ORCH-3099", "OC-CORE-1023", "OC-CTRL-2068")
def test_a_task_beyond_the_budget_is_429_and_not_retriable(probe: HttpProbe) -> None:
    session_id = str(uuid.uuid4())

    exactly, task_id = submit(probe, session_id, max_tokens=BUDGET_TOKENS - PROMPT_TOKENS)
    beyond, _ = submit(probe, session_id, max_tokens=1)
    probe.stream(task_id).rest()
    elsewhere, _ = submit(probe, str(uuid.uuid4()), max_tokens=1)

    assert exactly.status == 202
    assert exactly.headers["x-budget-tokens-remaining"] == "0"
    envelope = beyond.json()
    assert (beyond.status, envelope["code"]) == (429, "ADMISSION_REJECT")
    assert envelope["policy_label"] == "budget"
    assert envelope["retriable"] is False
    assert "retry_after_ms" not in envelope
    assert {"retry-after", "x-backoff-ms"} <= beyond.headers.keys()
    assert elsewhere.status == 202


@pytest.mark.req("ORCH-3099", "ORCH-3100", "OC-CTRL-2023", "OC-METRICS-7111")
def test_metrics_events_show_what_the_budget_has_left(
    probe: HttpProbe, engine: GatedEngine
) -> None:
    session_id = str(uuid.uuid4())
    engine.hold(1)
    _, task_id = submit(probe, session_id, max_tokens=20)
    metrics = probe.stream(task_id).until("metrics").data
    engine.allow()

    assert metrics["tokens_budget_remaining"] == BUDGET_TOKENS - PROMPT_TOKENS - 20
    assert "time_budget_remaining_ms" in metrics
    assert "cost_budget_remaining" not in metrics
