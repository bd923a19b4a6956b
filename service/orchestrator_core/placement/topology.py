"""Topology: between replicas that are equally good, the one with the quieter neighbourhood.

On a task's path: the tie-break after the score, before the smaller id. The invariant: it only
orders equals. Replicas that share a NUMA node share memory bandwidth, those behind one PCIe root
share its lanes; labels `numa` and `pcie` say which do, within one `node`. Requirements: ORCH-3013.
"""

from __future__ import annotations

from collections import Counter
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

    O(labels * replicas).
    """
    for label in DOMAIN_LABELS:
        leased: Counter[tuple[str, str]] = Counter()
        for neighbour in neighbours:
            if neighbour.leased and (domain := neighbour.label(label)):
                leased[neighbour.label("node"), domain] += neighbour.leased
        # Where its domain is not known, a replica stands for itself alone.
        noise = [
            leased[replica.label("node"), domain]
            if (domain := replica.label(label))
            else replica.leased
            for replica in equals
        ]
        least = min(noise)
        equals = [
            r for r, leased_around in zip(equals, noise, strict=True) if leased_around == least
        ]
    return equals[0]
