"""Where a replica stands, and the only ways it gets elsewhere.

    Unloaded ── START ──► Preloading ── HEALTHY ──► Ready
                  ▲           │ FAIL                  │ LOSE
                  │           ▼                       ▼
               Backoff ◄─ WAIT ── Unready ◄───────────┘     Unready ── HEALTHY ──► Ready
    any but Stopped ── STOP ──► Stopped

Invariant: Ready is reached through HEALTHY only, so nothing is Ready that did not just answer
and prove what it is. Requirements: ORCH-3002, ORCH-3010, OC-POOL-3001, OC-POOL-3002.
"""

from __future__ import annotations

from enum import StrEnum


class ReplicaState(StrEnum):
    UNLOADED = "Unloaded"  # not started yet
    PRELOADING = "Preloading"  # started; it loads its model
    READY = "Ready"  # takes work
    UNREADY = "Unready"  # takes no work; the last error says why
    BACKOFF = "Backoff"  # launched ones: waits before it is started again
    STOPPED = "Stopped"  # the service stops


class Signal(StrEnum):
    """What happened to a replica."""

    START = "start"
    HEALTHY = "healthy"  # healthy, and its properties fit the pool
    FAIL = "fail"  # the preload failed, or may not be tried
    LOSE = "lose"  # it was Ready and is not any more
    WAIT = "wait"
    STOP = "stop"


class IllegalTransition(Exception):
    """A signal that the state does not know: a programming error."""


_NEXT: dict[tuple[ReplicaState, Signal], ReplicaState] = {
    (ReplicaState.UNLOADED, Signal.START): ReplicaState.PRELOADING,
    (ReplicaState.UNLOADED, Signal.FAIL): ReplicaState.UNREADY,
    (ReplicaState.PRELOADING, Signal.HEALTHY): ReplicaState.READY,
    (ReplicaState.PRELOADING, Signal.FAIL): ReplicaState.UNREADY,
    (ReplicaState.READY, Signal.LOSE): ReplicaState.UNREADY,
    (ReplicaState.UNREADY, Signal.HEALTHY): ReplicaState.READY,
    (ReplicaState.UNREADY, Signal.WAIT): ReplicaState.BACKOFF,
    (ReplicaState.BACKOFF, Signal.START): ReplicaState.PRELOADING,
    **{
        (state, Signal.STOP): ReplicaState.STOPPED
        for state in ReplicaState
        if state is not ReplicaState.STOPPED
    },
}


def transition(state: ReplicaState, signal: Signal) -> ReplicaState:
    """The state after `signal`. Raises `IllegalTransition` for a pair the diagram lacks."""
    try:
        return _NEXT[state, signal]
    except KeyError:
        raise IllegalTransition(f"a replica that is {state} cannot {signal}") from None
