"""Where a replica stands, and the only ways it gets elsewhere.

                               ┌──── HEALTHY (not tested) ─────┐
                               │                               ▼
    Unloaded ── START ──► Preloading ── TEST ──► SelfTest ── HEALTHY ──► Ready ◄── LIFT ── Draining
       │                   ▲   │ FAIL               │ FAIL            ▲   │ └── DRAIN ──►    │
       │ FAIL              │   ▼                    ▼                 │   │ LOSE             │ LOSE
       └───────────────────┼─► Unready ◄────────────┴─────────────────┼───┴──────────────────┘
                           │   │ │ │ └── HEALTHY ─────────────────────┘
                           │   │ │ └──── TEST ──► SelfTest
                           │   │ └────── WAIT ──► Backoff ──┐
                           │   └──────── BREAK ─► Broken ───┤
                           └── START ◄──────────────────────┴── Stopped ◄── STOP ── any other state

A launched engine that failed waits in Backoff; one that failed too often in too short a time rests
in Broken (see `restart_breaker`) and then gets one more start. Draining takes no new work and
finishes what runs; it ends in Stopped, from where START takes the replica up again.

Invariant: Ready is reached through HEALTHY, so nothing is Ready that did not just answer, prove
what it is and pass its self-test where it has one; LIFT only gives back what DRAIN took.
Requirements: ORCH-3002, ORCH-3010, ORCH-3049, ORCH-3053, OC-POOL-3001, OC-POOL-3002, OC-POOL-3011.
"""

from __future__ import annotations

from enum import StrEnum


class ReplicaState(StrEnum):
    """The contract's `ReplicaState`."""

    UNLOADED = "Unloaded"  # not started yet
    PRELOADING = "Preloading"  # started; it loads its model
    SELF_TEST = "SelfTest"  # loaded; it has to show that it works
    READY = "Ready"  # takes work
    DRAINING = "Draining"  # finishes what runs, takes no more
    UNREADY = "Unready"  # takes no work; the last error says why
    BACKOFF = "Backoff"  # launched ones: waits before it is started again
    BROKEN = "Broken"  # launched ones: failed too often; a long rest before one more start
    STOPPED = "Stopped"  # drained, or the service stops


class Signal(StrEnum):
    """What happened to a replica."""

    START = "start"
    TEST = "test"  # healthy, and its properties fit the pool; its self-test begins
    HEALTHY = "healthy"  # all that has to be proved before it takes work is proved
    FAIL = "fail"  # the preload or the self-test failed, or the preload may not be tried
    LOSE = "lose"  # it served and does not any more
    DRAIN = "drain"
    LIFT = "lift"  # of a drain
    WAIT = "wait"
    BREAK = "break"  # the restart circuit opens
    STOP = "stop"


class IllegalTransition(Exception):
    """A signal that the state does not know: a programming error."""


_NEXT: dict[tuple[ReplicaState, Signal], ReplicaState] = {
    (ReplicaState.UNLOADED, Signal.START): ReplicaState.PRELOADING,
    (ReplicaState.UNLOADED, Signal.FAIL): ReplicaState.UNREADY,
    (ReplicaState.PRELOADING, Signal.TEST): ReplicaState.SELF_TEST,
    (ReplicaState.PRELOADING, Signal.HEALTHY): ReplicaState.READY,
    (ReplicaState.PRELOADING, Signal.FAIL): ReplicaState.UNREADY,
    (ReplicaState.SELF_TEST, Signal.HEALTHY): ReplicaState.READY,
    (ReplicaState.SELF_TEST, Signal.FAIL): ReplicaState.UNREADY,
    (ReplicaState.READY, Signal.DRAIN): ReplicaState.DRAINING,
    (ReplicaState.READY, Signal.LOSE): ReplicaState.UNREADY,
    (ReplicaState.DRAINING, Signal.LIFT): ReplicaState.READY,
    (ReplicaState.DRAINING, Signal.LOSE): ReplicaState.UNREADY,
    (ReplicaState.UNREADY, Signal.TEST): ReplicaState.SELF_TEST,
    (ReplicaState.UNREADY, Signal.HEALTHY): ReplicaState.READY,
    (ReplicaState.UNREADY, Signal.WAIT): ReplicaState.BACKOFF,
    (ReplicaState.UNREADY, Signal.BREAK): ReplicaState.BROKEN,
    (ReplicaState.BACKOFF, Signal.START): ReplicaState.PRELOADING,
    (ReplicaState.BROKEN, Signal.START): ReplicaState.PRELOADING,
    (ReplicaState.STOPPED, Signal.START): ReplicaState.PRELOADING,
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
