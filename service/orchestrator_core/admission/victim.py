"""Who goes from a queue that has been full for long: expected start ahead of age (ORCH-3080).

On a task's path: between the check for room and the eviction, in pools whose policy makes room.
Nothing here changes state. The invariants: the victim is of the class that the pool's policy has
chosen (`PoolQueue.find_room`), so nothing urgent goes for something less urgent; while overload is
momentary the policy's plain choice stands (drop-lru: the longest-waiting task).

Decision: dropping the oldest is right for a burst (the newest are the ones somebody still waits
for), but under lasting overload it drops exactly those that are about to start: every task waits
long and none is served fresh. So once a bound has been full for `pool_queue.LASTING_MS` it is
1. a task that will miss its deadline anyway, by the estimator: its loss costs nobody anything;
2. else the one that would start last; of equals the one that has waited longest.
It costs O(`FLOWS_COMPARED` * log n): head and tail of all flows up to that number, beyond it of the
flows to which the longest-waiting and the most recent tasks belong.
"""

from __future__ import annotations

from orchestrator_core.pool_state import Pool
from orchestrator_core.task import Priority, Task


def last_to_start(pool: Pool, priority: Priority, now_ms: int) -> Task:
    """The waiting task of this priority that is missed least; some task of it must wait."""
    times = pool.times.times if pool.times is not None and pool.times.times.known else None

    def loss(contender: tuple[Task, int]) -> tuple[bool, int, int]:
        task, sequence = contender
        ahead = pool.position(task, sequence)
        late = False
        if times is not None:
            end_ms = pool.start_delay_ms(ahead, now_ms) + times.task_ms(task)
            late = now_ms + end_ms > task.deadline_at_ms
        return late, ahead, -sequence

    return max(pool.queue.contenders(priority), key=loss)[0]
