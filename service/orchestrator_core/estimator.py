"""When a task will start and how long it will take, from what its replica set has shown so far.

On a task's path: behind `predicted_start_ms` of the 202, feasibility at admission, retry hints and
`on_time_probability`. The invariant: state is a few averages per set, whatever the traffic.
Requirements: ORCH-2001, ORCH-3079, ORCH-3081.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp, log

from orchestrator_core.limits import Limits
from orchestrator_core.task import Task, Workload

# Of more slots than this callers pass a sample, and its share of the tasks ahead: a prediction then
# costs O(this) at most.
MAX_SLOTS_MODELLED = 32

# Scale of a logistic distribution with standard deviation 1: sqrt(3) / pi.
_LOGISTIC_SCALE_RATIO = 0.5513

# Predictions are never believed to be better than this relative error.
_MIN_ERROR_RATIO = 0.05

# How wrong a predicted wait is believed to be before outcomes tell.
_WAIT_DOUBT_RATIO = 1.0


def generated_tokens(task: Task) -> int:
    """How many tokens the task is expected to decode; none for embedding and rerank."""
    if task.workload is not Workload.COMPLETION:
        return 0
    return max(task.cost_tokens - task.prompt_tokens, 0)


class ServiceTimes:
    """EWMA of milliseconds per token of one replica set, and of how wrong predictions were."""

    __slots__ = (
        "_limits",
        "decode_ms_per_token",
        "error_ratio",
        "finished",
        "prefill_ms_per_token",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.finished = 0
        self.prefill_ms_per_token: float | None = None
        self.decode_ms_per_token: float | None = None
        self.error_ratio = 0.25  # before there is a prediction to compare with

    @property
    def known(self) -> bool:
        """Whether enough tasks have finished to judge a deadline."""
        return self.finished >= self._limits.feasible_after

    def service_ms(self, prompt_tokens: int, decode_tokens: int) -> float:
        """Expected prefill and decode time together."""
        prefill, decode = self.prefill_ms_per_token, self.decode_ms_per_token
        if prefill is None:
            prefill = self._limits.prior_prefill_ms_per_token
        if decode is None:
            decode = self._limits.prior_decode_ms_per_token
        return prompt_tokens * prefill + decode_tokens * decode

    def task_ms(self, task: Task) -> float:
        """Expected service time of one task."""
        return self.service_ms(task.prompt_tokens, generated_tokens(task))

    def observe(self, tokens_in: int, tokens_out: int, prefill_ms: int, decode_ms: int) -> None:
        """Learn from a finished task."""
        if self.finished:
            predicted = self.service_ms(tokens_in, tokens_out)
            error = abs(prefill_ms + decode_ms - predicted) / max(predicted, 1.0)
            self.error_ratio = self._blend(self.error_ratio, min(error, 10.0))
        if tokens_in > 0:
            per_token = prefill_ms / tokens_in
            self.prefill_ms_per_token = self._blend(self.prefill_ms_per_token, per_token)
        if tokens_out > 0:
            per_token = decode_ms / tokens_out
            self.decode_ms_per_token = self._blend(self.decode_ms_per_token, per_token)
        self.finished += 1

    def on_time_ratio(self, expected_ms: float, slack_ms: float, wait_ms: float = 0.0) -> float:
        """Probability that something expected to take `expected_ms` takes at most `slack_ms`.

        A log-logistic distribution around the expectation, as wide as past predictions were wrong,
        and wider by the share that is `wait_ms`: others may come in between.
        1.0 until enough tasks have finished; 0.0 when the deadline has passed.
        """
        if slack_ms <= 0:
            return 0.0
        if not self.known:
            return 1.0
        expected_ms = max(expected_ms, 1.0)
        spread = max(self.error_ratio, _MIN_ERROR_RATIO) + _WAIT_DOUBT_RATIO * wait_ms / expected_ms
        x = log(slack_ms / expected_ms) / (spread * _LOGISTIC_SCALE_RATIO)
        return 1.0 / (1.0 + exp(-max(-40.0, min(40.0, x))))

    def _blend(self, old: float | None, new: float) -> float:
        weight = self._limits.ewma_weight_ratio
        return new if old is None else old + weight * (new - old)


def remaining_ms(expected_end_ms: float, now_ms: int) -> float:
    """How long a running task still holds its slot. One that overruns is expected to overrun by
    half as much again: nothing better is known about it, and "any moment now" would be a lie."""
    left = expected_end_ms - now_ms
    return max(left, -left / 2, 1.0)


def all_remaining_ms(ends: Iterable[tuple[float, int]], now_ms: int) -> list[float]:
    """`remaining_ms` of each (expected end, sequence), ascending. Written out, since every newcomer
    behind a queue asks for it: a call for each slot was a tenth of the cost of its admission."""
    return sorted(
        [left if (left := end - now_ms) >= 1.0 else max(-left / 2, 1.0) for end, _ in ends]
    )


def start_delay_ms(ahead: int, slots_ms: Sequence[float], task_ms: float) -> float:
    """Milliseconds until a task starts that has `ahead` tasks of `task_ms` each before it.

    Args:
        slots_ms: for each slot, ascending, when it becomes free; 0 is free now.

    List scheduling, solved without simulating the queue: O(slots log slots), whatever `ahead` is.
    Without a slot (no Ready replica) one slot that is free now stands in: nobody knows better.
    """
    if not slots_ms:
        return ahead * task_ms
    if not ahead:
        return slots_ms[0]
    task_ms = max(task_ms, 1e-3)
    # By `level` at most `ahead` + 1 tasks have started, were the slots to start parts of tasks,
    # and so at most as many whole ones; at least that many less one for each slot in use.
    in_use, sum_ms = 0, 0.0
    level = slots_ms[0]
    for free in slots_ms:
        if in_use and (task_ms * (ahead + 1 - in_use) + sum_ms) / in_use <= free:
            break
        in_use += 1
        sum_ms += free
        level = free
    level = max(level, (task_ms * (ahead + 1 - in_use) + sum_ms) / in_use)
    turns = [(level - free) // task_ms + 1 for free in slots_ms[:in_use]]
    missing = ahead + 1 - int(sum(turns))
    if missing <= 0:
        return level
    # Each slot starts one more within the next `task_ms`; the last that is missing is the task.
    following = [free + turn * task_ms for free, turn in zip(slots_ms, turns, strict=False)]
    return sorted((*following, *slots_ms[in_use:]))[missing - 1]
