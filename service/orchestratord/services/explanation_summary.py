"""One or two sentences for people on why a task is where it is, with the figures that decided.

On a task's path: never; see `explanations`. The invariant: every figure in a sentence is a field of
a decision, of the outlook or of the share; nothing is computed here but units. Requirements:
ORCH-3091, ORCH-3094.
"""

from __future__ import annotations

from orchestrator_core.outlook import Outlook
from orchestrator_core.queueing.share import ShareView
from orchestrator_core.units import counted, duration
from orchestratord.services.decisions import (
    Canceled,
    Decision,
    Dispatched,
    Ended,
    Evicted,
    Moved,
    Preempted,
    Refused,
)

RECOVERED = "The service restarted since it was admitted: of before only its promise is known."

_AGAIN = {
    "preempted": "after a more urgent task",
    "worker-lost": "after its worker was lost",
    "drained": "after its worker was drained",
    "pool": "in another pool",
    "recovered": "after a restart of the service",
}


def waiting(
    flow: str, pool_id: str, outlook: Outlook, share: ShareView | None, last: Decision | None
) -> str:
    """Of a task that waits; `flow` is TENANT/PRIORITY, `last` what was decided last."""
    sentences = []
    if isinstance(last, Preempted):
        sentences.append(
            f"Interrupted for a more urgent task after {duration(last.ran_ms)} and "
            f"{_tokens(last.tokens_out)}; it is decoded again, what its readers have stays."
        )
    elif isinstance(last, Moved) and last.from_replica_id is not None:
        sentences.append(
            f"Its worker {last.from_replica_id} is gone after {_tokens(last.tokens_out or 0)} "
            f"({last.cause}); it goes on with another replica."
        )
    elif isinstance(last, Moved):
        sentences.append(f"Pool {last.from_pool_id} takes it no more.")
    place = f"behind {counted(outlook.position, 'task')}" if outlook.position else "next in turn"
    if not outlook.serving:
        place += "; no replica takes work there at the moment"
    elif outlook.held:
        place += f"; tenant {flow.partition('/')[0]} has all that its quotas allow there"
    else:
        place += f"; starts in about {duration(outlook.start_ms)}"
    sentences.append(f"Waits in pool {pool_id} {place}.")
    if share is not None:
        sentences.append(
            f"{flow} got {_percent(share.observed)} of the tokens lately, "
            f"its weights promise {_percent(share.entitled)}."
        )
    return " ".join([*sentences, *_late(outlook.slack_ms)])


def running(replica_id: str, outlook: Outlook, last: Dispatched | None, now_ms: int) -> str:
    """Of a task that runs; `last` is the decision that gave it its slot, where it is known."""
    if last is None:
        return " ".join([f"Runs on replica {replica_id}.", *_late(outlook.slack_ms)])
    since = f"Runs on replica {replica_id} of pool {last.pool_id} since "
    since += duration(max(now_ms - last.at_ms, 0))
    waited = duration(last.waited_ms)
    why = {
        "free-slot": "a slot was free when it came",
        "fair-turn": f"it was its turn after {waited}",
        "urgent": f"it went before its turn after {waited}, else it would have been late",
    }.get(last.reason, f"it goes on {_AGAIN.get(last.reason, 'again')}, {waited} later")
    grounds = [f"load {_percent(last.load_ratio)} before it", f"score {last.score:g}"]
    if last.affinity:
        grounds.append("its session's last replica")
    if last.saved_ratio:
        grounds.append(f"a known prefix saves {_percent(last.saved_ratio)}")
    if last.tenant_tasks is not None:
        grounds.append(f"{counted(last.tenant_tasks, 'task')} of its tenant nearby")
    slack = _late(outlook.slack_ms)
    if not slack and outlook.slack_ms is not None:
        slack = [f"Should end {duration(outlook.slack_ms)} before its deadline."]
    return " ".join([f"{since}: {why} ({', '.join(grounds)}).", *slack])


def ended(decision: Ended) -> str:
    """Of a task that has ended."""
    times = []
    if decision.queue_time_ms is not None:
        times.append(f"{duration(decision.queue_time_ms)} in the queue")
    if decision.decode_time_ms:
        times.append(f"{duration(decision.decode_time_ms)} from its first token to its end")
    if decision.preemptions:
        times.append(f"interrupted {_times(decision.preemptions)}")
    if decision.failovers:
        times.append(f"moved to another replica {_times(decision.failovers)}")
    told = ", ".join(times)
    if isinstance(decision, Canceled):
        return _sentence(f"Canceled after {_tokens(decision.tokens_out)}", told)
    if isinstance(decision, Evicted):
        waited = duration(decision.queue_time_ms or 0)
        return _refusal(f"Taken out of the queue after {waited} ({decision.reason})", decision)
    if decision.outcome != "completed":
        head = f"Failed after {_tokens(decision.tokens_out)} ({decision.reason})"
        return _refusal(head, decision)
    late = decision.slack_ms < 0
    margin = duration(abs(decision.slack_ms)) + (" late" if late else " before its deadline")
    return _sentence(f"Completed with {_tokens(decision.tokens_out)}, {margin}", told)


def refused(decision: Refused, times: int) -> str:
    """Of a task that was never admitted, for the last of so many times."""
    often = f", {_times(times)} by now" if times > 1 else ""
    return _refusal(f"Refused ({decision.reason}{often})", decision)


def _refusal(head: str, decision: Refused | Ended) -> str:
    text = f"{head}: {decision.cause}." if decision.cause else f"{head}."
    if decision.retry_after_ms is not None:
        text += f" Worth another try in {duration(decision.retry_after_ms)}."
    return text


def _late(slack_ms: int | None) -> list[str]:
    if slack_ms is None or slack_ms >= 0:
        return []
    return [f"It will probably end {duration(-slack_ms)} after its deadline."]


def _sentence(head: str, told: str) -> str:
    return f"{head}: {told}." if told else f"{head}."


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.0f} %"


def _tokens(number: int) -> str:
    return counted(number, "token")


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
