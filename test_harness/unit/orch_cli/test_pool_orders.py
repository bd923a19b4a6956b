"""When `--wait` is over, and how it went."""

from __future__ import annotations

import msgspec
import pytest

from orch_cli.pool_orders import settled
from orchcontrol_v1.types import PoolHealth


def health(**replicas: str) -> PoolHealth:
    entries = [{"id": name, "state": state} for name, state in replicas.items()]
    return msgspec.convert({"replicas": entries}, PoolHealth)


@pytest.mark.parametrize(
    ("replicas", "replica_id", "state", "outcome"),
    [
        ({"a": "Draining", "b": "Stopped"}, None, "Stopped", None),
        ({"a": "Stopped", "b": "Stopped"}, None, "Stopped", True),
        ({"a": "Ready", "b": "Stopped"}, "b", "Stopped", True),
        ({"a": "Ready"}, "b", "Stopped", False),
        ({"a": "Backoff", "b": "Ready"}, None, "Ready", None),
        ({"a": "Broken", "b": "Ready"}, None, "Ready", False),
        ({"a": "Broken", "b": "Ready"}, "b", "Ready", True),
        ({"a": "Broken"}, None, "Stopped", None),
    ],
)
def test_a_wait_ends_when_it_is_done_or_will_not_be(
    replicas: dict[str, str], replica_id: str | None, state: str, outcome: bool | None
) -> None:
    assert settled(health(**replicas), replica_id, state) is outcome
