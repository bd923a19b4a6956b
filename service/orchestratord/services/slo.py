"""Service level objectives, measured all the time: per pool and priority, over a sliding window.

Off the token path: a task is looked at when its first token comes and when it ends, the pools once
a second. What is measured of each task that was admitted:

- `first_token_p95_ms`: admission to first token.
- `tokens_64_p95_ms`: admission to the 64th token, or to the end of a shorter answer. Derived where
  there are more: 63 mean times between two tokens after the first, since nothing is done per token.
- A task that ends before it came there (cancelled, late, failed) and has taken longer than the goal
  has missed it, and counts with the time it took; one that has not says nothing.
- `error_ratio`: failed ones of those that were completed or failed. A failure is neither the
  client's (cancel, INVALID_PARAMS) nor its deadline's nor a refusal or eviction of admission.
- `throughput_ratio`: while batch tasks wait that could run, what was decoded, and the prompts read
  for it, in the milliseconds that the replica set's learned speed gives them, against the time of
  all slots that no other work held. A warm prefix counts as read; work done twice counts once.

Embedding and rerank tasks have no tokens: only their errors are measured. Tasks that a restart
brought back have no latencies: nobody knows when their first token was seen. Invariant: memory is
bounded by pools and window, whatever the traffic. Requirements: ORCH-2104, ORCH-3028, ORCH-3041.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator_core.errors import Code
from orchestrator_core.task import Priority, Workload
from orchestratord.services.jobs import Job
from orchestratord.services.scheduling import SchedulingService
from orchestratord.services.slo_windows import LatencyWindow, ShareWindow, Verdict

FIRST_TOKEN = "first_token_p95_ms"
TOKENS_64 = "tokens_64_p95_ms"
ERRORS = "error_ratio"
THROUGHPUT = "throughput_ratio"

# The answer's part whose time TOKENS_64 is about.
PART_TOKENS = 64

# How often pools are looked at: fine enough for the shortest window to hold 40 looks.
LOOK_S_MAX = 1.0
LOOKS_PER_WINDOW_MIN = 40
# The short window, which says whether a violation still goes on: so much of the long one, and
# enough looks to see one begin and end.
RECENT_RATIO = 0.1
LOOKS_PER_RECENT_MIN = 2

_FAILURES = frozenset(
    {
        Code.WORKER_RESET,
        Code.DECODE_TIMEOUT,
        Code.INTERNAL,
        Code.REPLICA_EXHAUSTED,
        Code.POOL_UNAVAILABLE,
    }
)


@dataclass(frozen=True, slots=True)
class Objective:
    """One objective; `goal` is in the unit that `name` says."""

    priority: Priority
    name: str
    goal: float

    @property
    def key(self) -> str:
        """Its name in reports, such as interactive.first_token_p95_ms."""
        return f"{self.priority.value}.{self.name}"


class Measure(NamedTuple):
    """What was measured lately; `met_ratio` is None, and nothing is violated, below the smallest
    number of samples that says something."""

    objective: Objective
    value: float
    met_ratio: float | None
    samples: int
    violated: bool


@dataclass(slots=True)
class _Work:
    """What was done for batch tasks of a pool since the last look."""

    tokens: int = 0
    prompt_tokens: int = 0


class SloService:
    """Owns the windows; `violated` and `measures` read them."""

    def __init__(
        self,
        objectives: Sequence[Objective],
        window_s: int,
        scheduling: SchedulingService,
        monotonic: Callable[[], float],
        notice_s: float | None = None,
    ) -> None:
        """`notice_s`: the end of a violation has to be noticed in this time, where somebody acts on
        one that lasts; no less than two looks."""
        self.look_s = min(LOOK_S_MAX, window_s / LOOKS_PER_WINDOW_MIN)
        self._objectives = {(of.priority, of.name): of for of in objectives}
        recent_s = min(window_s * RECENT_RATIO, notice_s or window_s)
        self._recent_ms = round(max(recent_s, self.look_s * LOOKS_PER_RECENT_MIN) * 1000)
        self._window_ms = window_s * 1000
        self._scheduling = scheduling
        self._monotonic = monotonic
        self._latencies: dict[tuple[str, Priority, str], LatencyWindow] = {}
        self._shares: dict[tuple[str, Priority, str], ShareWindow] = {}
        self._work: dict[str, _Work] = {}
        self._waited: set[str] = set()  # pools whose batch tasks waited at the last look
        self._looked_ms = self._now_ms()

    # --- what happens to tasks ---------------------------------------------------------------

    def first_token(self, job: Job) -> None:
        """It came just now."""
        if not job.recovered:
            self._latency(job, FIRST_TOKEN, job.first_token_ms - job.task.arrived_ms)

    def ended(self, job: Job, outcome: str, code: Code | None) -> None:
        """An admitted task's end was decided: `completed`, `canceled`, or an error with `code`."""
        priority, completed = job.task.priority, outcome == "completed"
        failed = code in _FAILURES
        if (completed or failed) and (of := self._objectives.get((priority, ERRORS))) is not None:
            window = self._share(job.pool_id, of)
            window.observe(1 if failed else 0, 1, self._now_ms())
        if job.task.workload is not Workload.COMPLETION:
            return
        self._meter(job)
        if job.recovered:
            return
        took_ms = job.ended_ms - job.task.arrived_ms
        if not job.first_token_ms:
            self._end_without(job, FIRST_TOKEN, took_ms, reached=completed)
        tokens = job.log.tokens
        if job.first_token_ms and tokens >= PART_TOKENS:
            decode_ms = job.ended_ms - job.first_token_ms
            part_ms = decode_ms * (PART_TOKENS - 1) / (tokens - 1)
            self._latency(job, TOKENS_64, job.first_token_ms - job.task.arrived_ms + part_ms)
        else:
            self._end_without(job, TOKENS_64, took_ms, reached=completed)

    def _end_without(self, job: Job, name: str, took_ms: int, *, reached: bool) -> None:
        """The end is all there is to measure: it was `reached` in time or not, or the goal was
        missed before it."""
        of = self._objectives.get((job.task.priority, name))
        if of is not None and (reached or took_ms > of.goal):
            self._latency(job, name, took_ms)

    def _latency(self, job: Job, name: str, latency_ms: float) -> None:
        key = (job.pool_id, job.task.priority, name)
        window = self._latencies.get(key)
        if window is None:
            if (of := self._objectives.get((job.task.priority, name))) is None:
                return
            window = self._latencies[key] = LatencyWindow(
                int(of.goal), self._window_ms, self._recent_ms
            )
        window.observe(latency_ms, self._now_ms())

    def _share(self, pool_id: str, of: Objective) -> ShareWindow:
        key = (pool_id, of.priority, of.name)
        if (window := self._shares.get(key)) is None:
            window = ShareWindow(
                of.goal, self._window_ms, self._recent_ms, at_most=of.name == ERRORS
            )
            self._shares[key] = window
        return window

    # --- the pools, once in a while ----------------------------------------------------------

    def look(self, running: Iterable[Job]) -> None:
        """Account for what batch tasks got since the last look. O(running tasks + pools)."""
        now_ms = self._now_ms()
        elapsed_ms, self._looked_ms = now_ms - self._looked_ms, now_ms
        taken: dict[str, int] = {}  # slots that batch tasks could not have
        for job in running:
            if _decodes_batch(job):
                self._meter(job)
            else:
                taken[job.pool_id] = taken.get(job.pool_id, 0) + 1
        work, self._work = self._work, {}
        waited, self._waited = self._waited, set()
        self._forget_all_but(self._scheduling.scheduler.pool_ids())
        of = self._objectives.get((Priority.BATCH, THROUGHPUT))
        if of is None:
            return
        scheduler = self._scheduling.scheduler
        for pool_id in scheduler.pool_ids():
            if (backlog := scheduler.backlog(pool_id, Priority.BATCH)) is None:
                continue
            self._waited.add(pool_id)
            slots = backlog.slots - taken.get(pool_id, 0)
            if pool_id in waited and slots > 0 and elapsed_ms > 0:
                done = work.get(pool_id) or _Work()
                served_ms = (
                    done.tokens * backlog.decode_ms_per_token
                    + done.prompt_tokens * backlog.prefill_ms_per_token
                )
                self._share(pool_id, of).observe(served_ms, slots * elapsed_ms, now_ms)

    def _forget_all_but(self, pool_ids: Collection[str]) -> None:
        for key in [key for key in self._latencies if key[0] not in pool_ids]:
            del self._latencies[key]
        for key in [key for key in self._shares if key[0] not in pool_ids]:
            del self._shares[key]

    def _meter(self, job: Job) -> None:
        """Count what a batch task decoded since it was last seen."""
        tokens = job.log.tokens
        if tokens <= job.metered_tokens or not _decodes_batch(job):
            return
        work = self._work.setdefault(job.pool_id, _Work())
        work.tokens += tokens - job.metered_tokens
        if not job.metered_tokens:
            work.prompt_tokens += job.task.prompt_tokens
        job.metered_tokens = tokens

    # --- what came of it ---------------------------------------------------------------------

    def measures(self, pool_ids: Sequence[str]) -> list[Measure]:
        """Every objective that something was measured for in these pools, taken together."""
        now_ms = self._now_ms()
        found = (self._measure(of, pool_ids, now_ms) for of in self._objectives.values())
        return [measure for measure in found if measure is not None]

    def violated(self, pool_id: str) -> list[Objective]:
        """The objectives that are violated in a pool. O(objectives)."""
        now_ms = self._now_ms()
        return [
            of
            for of in self._objectives.values()
            if (verdict := self._judge(of, (pool_id,), now_ms)) is not None and verdict.violated
        ]

    def snapshot(self, pool_ids: Sequence[str]) -> dict[str, float]:
        """The measures of these pools by name, as `ReplicaSet.slo` has them."""
        report: dict[str, float] = {}
        for measure in self.measures(pool_ids):
            report[measure.objective.key] = round(measure.value, 4)
            if measure.met_ratio is not None:
                report[f"{measure.objective.key}_attainment_ratio"] = round(measure.met_ratio, 4)
        return report

    def _measure(self, of: Objective, pool_ids: Sequence[str], now_ms: int) -> Measure | None:
        latencies, shares = self._windows(of, pool_ids)
        if latencies:
            value = LatencyWindow.p95_ms(latencies, now_ms)
        else:
            value = ShareWindow.ratio(shares, now_ms) if shares else None
        verdict = self._judge(of, pool_ids, now_ms)
        if value is None or verdict is None:
            return None
        return Measure(of, value, verdict.met_ratio, verdict.samples, verdict.violated)

    def _judge(self, of: Objective, pool_ids: Sequence[str], now_ms: int) -> Verdict | None:
        latencies, shares = self._windows(of, pool_ids)
        if latencies:
            return LatencyWindow.judge(latencies, now_ms)
        return ShareWindow.judge(shares, now_ms) if shares else None

    def _windows(
        self, of: Objective, pool_ids: Sequence[str]
    ) -> tuple[list[LatencyWindow], list[ShareWindow]]:
        """Of one kind or the other, as the objective is."""
        keys = [(pool_id, of.priority, of.name) for pool_id in pool_ids]
        return (
            [self._latencies[key] for key in keys if key in self._latencies],
            [self._shares[key] for key in keys if key in self._shares],
        )

    def _now_ms(self) -> int:
        return int(self._monotonic() * 1000)


def _decodes_batch(job: Job) -> bool:
    return job.task.priority is Priority.BATCH and job.task.workload is Workload.COMPLETION
