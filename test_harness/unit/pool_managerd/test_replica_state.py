"""The replica's state machine: every pair of state and signal."""

from __future__ import annotations

import pytest

from pool_managerd.replica_state import IllegalTransition, ReplicaState, Signal, transition

# By hand from the diagram: state, signal, next state. Everything else is illegal.
LEGAL = {
    ("Unloaded", "start"): "Preloading",
    ("Unloaded", "fail"): "Unready",
    ("Preloading", "healthy"): "Ready",
    ("Preloading", "fail"): "Unready",
    ("Ready", "lose"): "Unready",
    ("Unready", "healthy"): "Ready",
    ("Unready", "wait"): "Backoff",
    ("Backoff", "start"): "Preloading",
    ("Unloaded", "stop"): "Stopped",
    ("Preloading", "stop"): "Stopped",
    ("Ready", "stop"): "Stopped",
    ("Unready", "stop"): "Stopped",
    ("Backoff", "stop"): "Stopped",
}


@pytest.mark.parametrize(("state", "signal"), sorted(LEGAL))
def test_a_legal_signal_leads_where_the_diagram_says(state: str, signal: str) -> None:
    assert transition(ReplicaState(state), Signal(signal)) == LEGAL[state, signal]


@pytest.mark.parametrize(
    ("state", "signal"),
    sorted({(s.value, g.value) for s in ReplicaState for g in Signal} - set(LEGAL)),
)
def test_any_other_signal_is_refused_by_name(state: str, signal: str) -> None:
    with pytest.raises(IllegalTransition, match=f"{state} cannot {signal}"):
        transition(ReplicaState(state), Signal(signal))


@pytest.mark.req("ORCH-3002", partial="the start of the service")
@pytest.mark.req("OC-POOL-3001", partial="the start of the service")
def test_nothing_becomes_ready_without_having_been_found_healthy() -> None:
    ways = {
        signal
        for state in ReplicaState
        for signal in Signal
        if (state.value, signal.value) in LEGAL and transition(state, signal) is ReplicaState.READY
    }

    assert ways == {Signal.HEALTHY}
