"""Sentences from values alone."""

from __future__ import annotations

import pytest

from orchestrator_core.outlook import Outlook
from orchestrator_core.queueing.share import ShareView
from orchestratord.services import explanation_summary as summary
from orchestratord.services.decisions import Dispatched, Ended, Evicted, Moved, Refused, Resumed

RUNS = Outlook(0, 0, 1000, 5_200, 0.9, False, 2)


def with_outlook(
    position: int = 0, start_ms: int = 300, slack_ms: int | None = 20_000, serving: int = 2
) -> Outlook:
    return Outlook(position, start_ms, 1000, slack_ms, 0.9, False, serving)


class TestWaiting:
    @pytest.mark.req("ORCH-3091", partial="a sentence")
    def test_place_and_share_decide(self) -> None:
        share = ShareView(0.24, 0.25)

        text = summary.waiting("acme/batch", "p", with_outlook(12, 3400), share, None)

        assert text == (
            "Waits in pool p behind 12 tasks; starts in about 3.4 s. "
            "acme/batch got 24 % of the tokens lately, its weights promise 25 %."
        )

    def test_the_next_one_and_one_that_will_be_late(self) -> None:
        text = summary.waiting("acme/batch", "p", with_outlook(slack_ms=-1200), None, None)

        assert text == (
            "Waits in pool p next in turn; starts in about 300 ms. "
            "It will probably end 1.2 s after its deadline."
        )

    def test_one_that_another_pool_has_taken(self) -> None:
        moved = Moved(5, "pool", "p", pool_id="q")

        text = summary.waiting("acme/batch", "q", with_outlook(1, serving=0), None, moved)

        assert text == (
            "Pool p takes it no more. Waits in pool q behind 1 task; no replica takes work there "
            "at the moment."
        )


class TestRunning:
    def test_after_its_turn_on_the_sessions_replica(self) -> None:
        start = Dispatched(
            1000, "fair-turn", "p", "r1", 1, 3400, 0.75, 0.5, True, 0.3, 2, None, 5200
        )

        text = summary.running("r1", RUNS, start, 3100)

        assert text == (
            "Runs on replica r1 of pool p since 2.1 s: it was its turn after 3.4 s (load 50 % "
            "before it, score 0.75, its session's last replica, a known prefix saves 30 %, "
            "2 tasks of its tenant nearby). Should end 5.2 s before its deadline."
        )

    @pytest.mark.parametrize(
        ("reason", "why"),
        [
            ("preempted", "it goes on after a more urgent task, 400 ms later"),
            ("worker-lost", "it goes on after its worker was lost, 400 ms later"),
            ("recovered", "it goes on after a restart of the service, 400 ms later"),
        ],
    )
    def test_again(self, reason: str, why: str) -> None:
        start = Resumed(1000, reason, "p", "r0", 2, 400, 0.25, 0.5, False, 0.0)

        assert why in summary.running("r0", RUNS, start, 1000)

    def test_before_its_turn(self) -> None:
        start = Dispatched(1000, "urgent", "p", "r0", 1, 400, 0.25, 0.5, False, 0.0)

        text = summary.running("r0", with_outlook(slack_ms=None), start, 1000)

        assert "it went before its turn after 400 ms, else it would have been late" in text
        assert "deadline" not in text  # nobody knows how long it takes


class TestEnded:
    def test_late(self) -> None:
        end = Ended(9, "completed", "completed", -700, 400, 1200, 10, 64, 1, 2)

        assert summary.ended(end) == (
            "Completed with 64 tokens, 700 ms late: 400 ms in the queue, 1.2 s from its first "
            "token to its end, interrupted 2 times, moved to another replica once."
        )

    def test_failed(self) -> None:
        end = Ended(
            9, "timeout", "failed", 700, 400, 0, 10, 1, 0, 0, "DECODE_TIMEOUT", "no token", 50
        )

        assert summary.ended(end) == (
            "Failed after 1 token (timeout): no token. Worth another try in 50 ms."
        )

    def test_evicted(self) -> None:
        end = Evicted(9, "deadline", "expired", 0, 400, 0, 10, 0, 0, 0, "DEADLINE_UNMET", "late")

        assert summary.ended(end) == "Taken out of the queue after 400 ms (deadline): late."


def test_refused_several_times() -> None:
    last = Refused(9, "quota", "ADMISSION_REJECT", "tokens_per_minute: used up", 61_000)

    assert summary.refused(last, 1) == (
        "Refused (quota): tokens_per_minute: used up. Worth another try in 1 min 1 s."
    )
    assert summary.refused(last, 3).startswith("Refused (quota, 3 times by now): ")
