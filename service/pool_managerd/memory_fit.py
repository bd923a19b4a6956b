"""What to launch with the memory that is there: as configured, smaller, or not at all.

Pure. First fewer slots, which costs throughput, then less context, which costs tasks; both only
down to the configured minima (ORCH-3039). Invariant: what is said to fit, fits. Both searches are
by halving, because less of either never needs more memory. Requirements: ORCH-3003, ORCH-3039,
OC-POOL-3002.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator_core.units import counted
from pool_managerd.memory_estimate import EstimatedLaunch, MemoryEstimate, Room, Shortage

CTX_STEP_TOKENS = 256  # llama.cpp rounds contexts up to this


@dataclass(frozen=True, slots=True)
class Available:
    """Free memory as it is now; a device that is not in `devices` and a host that is None are
    unknown, and unknown memory is not checked."""

    devices: Mapping[str, Room]
    host: Room | None
    headroom_ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Slots and context of a launch, and what they may shrink to."""

    slots: int
    ctx: int
    slots_min: int | None = None
    ctx_min: int | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """Launch it so; `reduced` where that is less than what is configured."""

    estimate: MemoryEstimate
    reduced: bool = False


@dataclass(frozen=True, slots=True)
class Shortfall:
    """It does not fit. `slots` and `ctx` are each the most that would, with the other one as
    configured; None where nothing would."""

    estimate: MemoryEstimate
    shortages: tuple[Shortage, ...]
    slots: int | None
    ctx: int | None

    def __str__(self) -> str:
        lacks = "; ".join(map(str, self.shortages))
        ways = []
        if self.slots is not None:
            ways.append(f"{counted(self.slots, 'slot')} instead of {self.estimate.slots}")
        if self.ctx is not None:
            ways.append(f"ctx {self.ctx} instead of {self.estimate.ctx}")
        if not ways:
            return f"{lacks}; it would not fit with fewer slots or less context either"
        return f"{lacks}; it would fit with {' or '.join(ways)}"


def fit(launch: EstimatedLaunch, wanted: Wanted, available: Available) -> Fit | Shortfall:
    """The largest launch between what is wanted and its minima that fits."""

    def fits(slots: int, ctx: int) -> bool:
        return not _shortages(launch.estimate(slots, ctx), available)

    estimate = launch.estimate(wanted.slots, wanted.ctx)
    shortages = _shortages(estimate, available)
    if not shortages:
        return Fit(estimate)
    slots = _most(lambda count: fits(count, wanted.ctx), 1, wanted.slots)
    slots_min = min(wanted.slots_min or wanted.slots, wanted.slots)
    if slots is not None and slots >= slots_min:
        return Fit(launch.estimate(slots, wanted.ctx), reduced=True)
    if wanted.ctx_min is not None and wanted.ctx_min < wanted.ctx:
        ctx = _most_ctx(lambda tokens: fits(slots_min, tokens), wanted.ctx_min, wanted.ctx)
        if ctx is not None:
            return Fit(launch.estimate(slots_min, ctx), reduced=True)
    # A context of a few tokens would be no advice.
    ctx = _most_ctx(lambda tokens: fits(wanted.slots, tokens), CTX_STEP_TOKENS, wanted.ctx)
    return Shortfall(estimate, shortages, slots, ctx)


def _shortages(estimate: MemoryEstimate, available: Available) -> tuple[Shortage, ...]:
    return estimate.shortages(available.devices, available.host, available.headroom_ratio)


def _most_ctx(holds: Callable[[int], bool], least: int, limit: int) -> int | None:
    """As `_most`, rounded down to whole steps where that is not below `least`."""
    found = _most(holds, least, limit)
    return None if found is None else max(least, found // CTX_STEP_TOKENS * CTX_STEP_TOKENS)


def _most(holds: Callable[[int], bool], least: int, limit: int) -> int | None:
    """The largest number from `least` up to below `limit` for which `holds`; None where even
    `least` does not."""
    if least >= limit or not holds(least):
        return None
    low, high = least, limit  # holds at low, not at high
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
