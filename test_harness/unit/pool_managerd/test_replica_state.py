"""The replica's state machine: every pair of state and signal."""

from __future__ import annotations

import pytest

from harness_kit.contract_files import contract
from pool_managerd.replica_state import IllegalTransition, ReplicaState, Signal, transition

# By hand from the diagram: state, signal, next state. Everything else is illegal.
LEGAL = {
    ("Unloaded", "start"): "Preloading",
    ("Unloaded", "fail"): "Unready",
    ("Unloaded", "stop"): "Stopped",
    ("Preloading", "test"): "SelfTest",
    ("Preloading", "healthy"): "Ready",
    ("Preloading", "fail"): "Unready",
    ("Preloading", "stop"): "Stopped",
    ("SelfTest", "healthy"): "Ready",
    ("SelfTest", "fail"): "Unready",
    ("SelfTest", "stop"): "Stopped",
    ("Ready", "drain"): "Draining",
    ("Ready", "lose"): "Unready",
    ("Ready", "stop"): "Stopped",
    ("Draining", "lift"): "Ready",
    ("Draining", "lose"): "Unready",
    ("Draining", "stop"): "Stopped",
    ("Unready", "test"): "SelfTest",
    ("Unready", "healthy"): "Ready",
    ("Unready", "wait"): "Backoff",
    ("Unready", "break"): "Broken",
    ("Unready", "stop"): "Stopped",
    ("Backoff", "start"): "Preloading",
    ("Backoff", "stop"): "Stopped",
    ("Broken", "start"): "Preloading",
    ("Broken", "stop"): "Stopped",
    ("Stopped", "start"): "Preloading",
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
        (state.value, signal)
        for state in ReplicaState
        for signal in Signal
        if (state.value, signal.value) in LEGAL and transition(state, signal) is ReplicaState.READY
    }

    assert {signal for _, signal in ways} == {Signal.HEALTHY, Signal.LIFT}
    # Lifting a drain gives back what it took: Draining is entered from Ready only.
    assert {state for state, signal in ways if signal is Signal.LIFT} == {"Draining"}
    assert [state for (state, _), after in LEGAL.items() if after == "Draining"] == ["Ready"]


def test_the_states_are_those_of_the_contract() -> None:
    states = contract("control")["components"]["schemas"]["ReplicaState"]["enum"]

    assert [state.value for state in ReplicaState] == states
