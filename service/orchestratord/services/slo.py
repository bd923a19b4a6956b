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

from collections.abc import Callable, Iterable, Mapping, Sequence
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
LATENCIES = frozenset({FIRST_TOKEN, TOKENS_64})

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


class _Windows:
    """Of one pool and priority; None where there is no such objective."""

    __slots__ = ("errors", "first_token", "throughput", "tokens_64")

    def __init__(self, goals: Mapping[str, float], window_ms: int, recent_ms: int) -> None:
        def latencies(name: str) -> LatencyWindow | None:
            goal = goals.get(name)
            return None if goal is None else LatencyWindow(round(goal), window_ms, recent_ms)

        def shares(name: str) -> ShareWindow | None:
            goal, at_most = goals.get(name), name == ERRORS
            if goal is None:
                return None
            return ShareWindow(goal, window_ms, recent_ms, at_most=at_most)

        self.first_token = latencies(FIRST_TOKEN)
        self.tokens_64 = latencies(TOKENS_64)
        self.errors = shares(ERRORS)
        self.throughput = shares(THROUGHPUT)


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
        self._scheduling = scheduling
        self._monotonic = monotonic
        self._window_s = window_s
        self._windows: dict[tuple[str, Priority], _Windows] = {}
        self._work: dict[str, _Work] = {}
        self._waited: set[str] = set()  # pools whose batch tasks waited at the last look
        self._looked_ms = self._now_ms()
        self._recent_ms = 0
        self._goals: dict[Priority, dict[str, float]] = {}
        # Hears of each task and objective whether it was met.
        self.on_judged: Callable[[Job, str, bool], None] | None = None
        self.reconfigure(objectives, notice_s)

    def reconfigure(self, objectives: Sequence[Objective], notice_s: float | None) -> None:
        """Other objectives from now on; a priority whose goals are the same keeps what was measured
        for it, unless violations have to be noticed sooner or later than before."""
        recent_s = min(self._window_s * RECENT_RATIO, notice_s or self._window_s)
        recent_ms = round(max(recent_s, self.look_s * LOOKS_PER_RECENT_MIN) * 1000)
        goals = {
            priority: {of.name: of.goal for of in objectives if of.priority is priority}
            for priority in Priority
        }
        same = {p for p in Priority if recent_ms == self._recent_ms and goals[p] == self._goals[p]}
        self._windows = {key: kept for key, kept in self._windows.items() if key[1] in same}
        self._objectives, self._goals, self._recent_ms = tuple(objectives), goals, recent_ms

    # --- what happens to tasks ---------------------------------------------------------------

    def first_token(self, job: Job) -> None:
        """It came just now."""
        task = job.task
        window = self._of(job.pool_id, task.priority).first_token
        if window is not None and not job.recovered:
            met = window.observe(job.first_token_ms - task.arrived_ms, self._now_ms())
            self._judged(job, FIRST_TOKEN, met)

    def ended(self, job: Job, outcome: str, code: Code | None) -> None:
        """An admitted task's end was decided: `completed`, `canceled`, or an error with `code`."""
        task, completed, now_ms = job.task, outcome == "completed", self._now_ms()
        windows = self._of(job.pool_id, task.priority)
        if windows.errors is not None and (completed or code in _FAILURES):
            windows.errors.observe(0 if completed else 1, 1, now_ms)
            self._judged(job, ERRORS, completed)
        if task.workload is not Workload.COMPLETION:
            return
        self._meter(job)
        if job.recovered:
            return
        took_ms, tokens = job.ended_ms - task.arrived_ms, job.log.tokens
        if not job.first_token_ms:
            met = _end_without(windows.first_token, took_ms, completed, now_ms)
            self._judged(job, FIRST_TOKEN, met)
        if windows.tokens_64 is not None and job.first_token_ms and tokens >= PART_TOKENS:
            decode_ms = job.ended_ms - job.first_token_ms
            rest_ms = decode_ms * (tokens - PART_TOKENS) / (tokens - 1)
            met = windows.tokens_64.observe(took_ms - rest_ms, now_ms)
        else:
            met = _end_without(windows.tokens_64, took_ms, completed, now_ms)
        self._judged(job, TOKENS_64, met)

    def _judged(self, job: Job, objective: str, met: bool | None) -> None:
        if met is not None and self.on_judged is not None:
            self.on_judged(job, objective, met)

    def _of(self, pool_id: str, priority: Priority) -> _Windows:
        windows = self._windows.get((pool_id, priority))
        if windows is None:
            window_ms = self._window_s * 1000
            windows = _Windows(self._goals[priority], window_ms, self._recent_ms)
            self._windows[pool_id, priority] = windows
        return windows

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
        scheduler = self._scheduling.scheduler
        for gone in [key for key in self._windows if key[0] not in scheduler.pool_ids()]:
            del self._windows[gone]
        for pool_id in scheduler.pool_ids():
            if (backlog := scheduler.backlog(pool_id, Priority.BATCH)) is None:
                continue
            self._waited.add(pool_id)
            slots = backlog.slots - taken.get(pool_id, 0)
            window = self._of(pool_id, Priority.BATCH).throughput
            if window is not None and pool_id in waited and slots > 0 and elapsed_ms > 0:
                done = work.get(pool_id) or _Work()
                served_ms = (
                    done.tokens * backlog.decode_ms_per_token
                    + done.prompt_tokens * backlog.prefill_ms_per_token
                )
                window.observe(served_ms, slots * elapsed_ms, now_ms)

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
        found = (self._measure(of, pool_ids, now_ms) for of in self._objectives)
        return [measure for measure in found if measure is not None]

    def violated(self, pool_id: str) -> list[Objective]:
        """The objectives that are violated in a pool. O(objectives)."""
        now_ms = self._now_ms()
        return [of for of in self._objectives if self._judge(of, (pool_id,), now_ms).violated]

    def snapshot(self, pool_ids: Sequence[str]) -> dict[str, float]:
        """The measures of these pools by name, as `ReplicaSet.slo` has them."""
        report: dict[str, float] = {}
        for measure in self.measures(pool_ids):
            report[measure.objective.key] = round(measure.value, 4)
            if measure.met_ratio is not None:
                report[f"{measure.objective.key}_attainment_ratio"] = round(measure.met_ratio, 4)
        return report

    def _measure(self, of: Objective, pool_ids: Sequence[str], now_ms: int) -> Measure | None:
        if of.name in LATENCIES:
            value = LatencyWindow.p95_ms(self._latencies(of, pool_ids), now_ms)
        else:
            value = ShareWindow.ratio(self._shares(of, pool_ids), now_ms)
        if value is None:
            return None
        samples, met_ratio, violated = self._judge(of, pool_ids, now_ms)
        return Measure(of, value, met_ratio, samples, violated)

    def _judge(self, of: Objective, pool_ids: Sequence[str], now_ms: int) -> Verdict:
        if of.name in LATENCIES:
            return LatencyWindow.judge(self._latencies(of, pool_ids), now_ms)
        return ShareWindow.judge(self._shares(of, pool_ids), now_ms)

    def _latencies(self, of: Objective, pool_ids: Sequence[str]) -> list[LatencyWindow]:
        first = of.name == FIRST_TOKEN
        known = (self._windows.get((pool_id, of.priority)) for pool_id in pool_ids)
        found = (each.first_token if first else each.tokens_64 for each in known if each)
        return [window for window in found if window is not None]

    def _shares(self, of: Objective, pool_ids: Sequence[str]) -> list[ShareWindow]:
        errors = of.name == ERRORS
        known = (self._windows.get((pool_id, of.priority)) for pool_id in pool_ids)
        found = (each.errors if errors else each.throughput for each in known if each)
        return [window for window in found if window is not None]

    def _now_ms(self) -> int:
        return int(self._monotonic() * 1000)


def _end_without(
    window: LatencyWindow | None, took_ms: int, completed: bool, now_ms: int
) -> bool | None:
    """The end is all there is to measure: that of the answer, or one that came before the answer
    did and says something only where the goal was missed by then; None where it says nothing."""
    if window is None or not (completed or took_ms > window.goal_ms):
        return None
    return window.observe(took_ms, now_ms)


def _decodes_batch(job: Job) -> bool:
    return job.task.priority is Priority.BATCH and job.task.workload is Workload.COMPLETION
