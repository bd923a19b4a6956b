"""Topology: between replicas that are equally good, the one with the quieter neighbourhood.

On a task's path: the tie-break after the score, before the smaller id. The invariant: it only
orders equals. Replicas that share a NUMA node share memory bandwidth, those behind one PCIe root
share its lanes; labels `numa` and `pcie` say which do, within one `node`. Requirements: ORCH-3013.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator_core.replicas import Replica

# The closest contention first.
DOMAIN_LABELS = ("numa", "pcie")


def is_known(replicas: Sequence[Replica]) -> bool:
    """Whether any replica's place in its machine is known."""
    return any(replica.label(label) for replica in replicas for label in DOMAIN_LABELS)


def quietest(equals: Sequence[Replica], neighbours: Sequence[Replica]) -> Replica:
    """Of `equals` (not empty) the first whose domains have the fewest leased slots.

    Args:
        neighbours: all replicas that may share a domain with one of them, itself included.
    """
    return min(
        equals,
        key=lambda replica: [_leased_around(replica, label, neighbours) for label in DOMAIN_LABELS],
    )


def _leased_around(replica: Replica, label: str, neighbours: Sequence[Replica]) -> int:
    """Leased slots of the replica's domain; its own only where the domain is not known."""
    if not (domain := replica.label(label)):
        return replica.leased
    node = replica.label("node")
    return sum(n.leased for n in neighbours if n.label(label) == domain and n.label("node") == node)
