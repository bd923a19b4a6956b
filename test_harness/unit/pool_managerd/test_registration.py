"""When a pool manager reports, and how often it asks an orchestrator that is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest

from harness_kit.virtual_time import run_virtual
from pool_managerd.registration import COALESCE_S, Heartbeat, OrchestratorAway, Refused

LEASE_MS = 15_000
OK: dict[str, Any] = {"lease_ms": LEASE_MS, "pools": ["p"]}


class Orchestrator:
    """Answers by turns with `answers`, the last one for ever; notes when it was asked."""

    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        self._answers = list(answers)
        self.asked_s: list[float] = []
        self.reports: list[Mapping[str, Any]] = []

    async def register(self, report: Mapping[str, Any]) -> dict[str, Any]:
        self.asked_s.append(round(asyncio.get_running_loop().time(), 3))
        self.reports.append(report)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def beats(
    orchestrator: Orchestrator,
    for_s: float,
    changes: Sequence[float] = (),
    jitter: Callable[[], float] = lambda: 0.0,
) -> tuple[list[dict[str, Any]], list[float]]:
    """The first answers and the times of the reports, with changes at these times."""
    first: list[dict[str, Any]] = []

    async def scenario() -> None:
        state = {"changes": 0}
        heartbeat = Heartbeat(
            lambda: dict(state), orchestrator.register, LEASE_MS, jitter, first.append
        )

        def change() -> None:
            state["changes"] += 1
            heartbeat.stir()

        loop = asyncio.get_running_loop()
        for at_s in changes:
            loop.call_at(at_s, change)
        work = asyncio.create_task(heartbeat.run())
        done, _ = await asyncio.wait((work,), timeout=for_s)
        heartbeat.close()
        await work
        assert done == set() or work.exception() is None

    run_virtual(scenario())
    return first, orchestrator.asked_s


@pytest.mark.req("OC-POOL-3003", partial="processes and HTTP")
class TestHeartbeat:
    @pytest.mark.parametrize(("jitter", "period_s"), [(0.0, 5.0), (1.0, 4.0)])
    def test_three_heartbeats_fit_into_a_lease(self, jitter: float, period_s: float) -> None:
        first, asked_s = beats(Orchestrator(OK), 13.0, jitter=lambda: jitter)

        assert asked_s == [round(period_s * n, 3) for n in range(int(13.0 // period_s) + 1)]
        assert first == [OK]

    def test_changes_that_come_together_are_one_report_and_all_of_it(self) -> None:
        orchestrator = Orchestrator(OK)

        _, asked_s = beats(orchestrator, 4.0, changes=[1.0, 1.01, 1.02, 3.0])

        assert asked_s == [0.0, 1.0 + COALESCE_S, 3.0 + COALESCE_S]
        assert [report["changes"] for report in orchestrator.reports] == [0, 3, 4]

    def test_an_orchestrator_that_is_away_is_asked_ever_more_rarely_whatever_changes(self) -> None:
        away = OrchestratorAway("nobody")

        _, asked_s = beats(
            Orchestrator(OK, away), 24.0, changes=[1.0, *[2 + n / 10 for n in range(100)]]
        )

        # After the failure at 1.05 s: half of 0.25, 0.5, 1, 2, 4, 5, 5 … seconds.
        gaps_s = [round(b - a, 3) for a, b in pairwise(asked_s[1:])]
        assert gaps_s[:7] == [0.125, 0.25, 0.5, 1.0, 2.0, 2.5, 2.5]

    def test_one_that_is_back_is_told_everything_and_beats_go_on(self) -> None:
        away = OrchestratorAway("nobody")
        orchestrator = Orchestrator(away, away, OK)

        first, asked_s = beats(orchestrator, 6.0)

        assert asked_s == [0.0, 0.125, 0.375, 5.375]
        assert first == [OK]

    @pytest.mark.parametrize("status", [400, 401, 403, 404])
    def test_a_lasting_refusal_at_the_start_ends_it(self, status: int) -> None:
        orchestrator = Orchestrator(Refused(status, "no"))

        with pytest.raises(Refused, match=r"^no$"):
            beats(orchestrator, 1.0)

        assert len(orchestrator.asked_s) == 1

    def test_another_start_that_holds_the_lease_is_waited_for(self) -> None:
        held = Refused(409, "epoch: held")

        first, asked_s = beats(Orchestrator(held, held, OK), 1.0)

        assert asked_s == [0.0, 0.125, 0.375]
        assert first == [OK]

    def test_a_refusal_later_does_not_end_it(self) -> None:
        first, asked_s = beats(Orchestrator(OK, Refused(403, "no"), OK), 6.0)

        assert asked_s == [0.0, 5.0, 5.125]
        assert first == [OK]
