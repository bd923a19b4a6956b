"""What differs between two configurations, and what it takes to apply it.

Used by the hot reload and by its dry run: nothing is applied here. The invariant: every key that
differs is named once, and a key that no rule below knows needs a restart, so a new key is never
taken for one that is in force at once. Requirements: ORCH-3030, ORCH-3031.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

import orch_config


class Effect(StrEnum):
    """What applying a difference takes."""

    LIVE = "live"  # in force at once, nothing is disturbed
    REPLACE = "replace"  # the pool's engines are drained and replaced
    ADD = "add"  # a pool comes
    REMOVE = "remove"  # a pool is drained and goes
    RESTART = "restart"  # cannot be applied to a running service


class _Absent:
    """Stands for a key that one of the two does not have; None is a value of many keys."""


ABSENT = _Absent()


@dataclass(frozen=True, slots=True)
class Difference:
    """One key; an entry of a list is named by its id. `before` or `after` may be `ABSENT`."""

    key: str
    before: Any
    after: Any
    effect: Effect


class _Rule(NamedTuple):
    prefix: tuple[str, ...]
    effect: Effect


# The longest prefix decides; `*` stands for any pool.
_RULES = (
    _Rule(("server", "max_body_bytes"), Effect.LIVE),
    _Rule(("server", "metrics_public"), Effect.LIVE),
    _Rule(("server", "shutdown_ms"), Effect.LIVE),
    _Rule(("server", "config_mode"), Effect.LIVE),
    _Rule(("auth", "keys"), Effect.LIVE),
    _Rule(("streams",), Effect.LIVE),
    _Rule(("streams", "metrics_ms"), Effect.RESTART),
    _Rule(("sessions",), Effect.LIVE),
    _Rule(("sampler_profiles",), Effect.LIVE),
    _Rule(("slos",), Effect.LIVE),
    _Rule(("slos", "window_s"), Effect.RESTART),
    _Rule(("pools", "*"), Effect.REPLACE),
    _Rule(("pools", "*", "queue"), Effect.LIVE),
    _Rule(("pools", "*", "admission"), Effect.LIVE),
    _Rule(("pools", "*", "preemption"), Effect.LIVE),
    _Rule(("pools", "*", "timeouts"), Effect.LIVE),
    _Rule(("pools", "*", "timeouts", "preload_ms"), Effect.REPLACE),
    _Rule(("pools", "*", "placement"), Effect.LIVE),
)
# What names an entry of a list of sections.
_NAMES = ("id", "name")


def differences(before: orch_config.Config, after: orch_config.Config) -> tuple[Difference, ...]:
    """Every key in which the two differ, in the order of the schema; pools in that of the file."""
    found = _below((), msgspec.to_builtins(before), msgspec.to_builtins(after))
    return tuple(
        Difference(_text(path), old, new, _effect(path, old, new)) for path, old, new in found
    )


def _below(path: tuple[str, ...], old: Any, new: Any) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if old == new:
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*new, *(key for key in old if key not in new)]:
            yield from _below((*path, key), old.get(key, ABSENT), new.get(key, ABSENT))
        return
    named_old, named_new = _by_name(old), _by_name(new)
    if named_old is None or named_new is None:
        yield path, old, new
        return
    if list(named_old) != list(named_new) and named_old == named_new:
        yield path, list(named_old), list(named_new)  # the order alone
    yield from _below(path, named_old, named_new)


def _by_name(value: Any) -> dict[str, Any] | None:
    """A list of sections by their names, in brackets; None for anything else."""
    if not isinstance(value, list | tuple):
        return None
    named: dict[str, Any] = {}
    for entry in value:
        name = next(
            (entry[key] for key in _NAMES if isinstance(entry, dict) and key in entry), None
        )
        if name is None or f"[{name}]" in named:
            return None
        named[f"[{name}]"] = entry
    return named


def _effect(path: tuple[str, ...], old: Any, new: Any) -> Effect:
    if path[0] == "pools" and len(path) == 2:
        if old is ABSENT:
            return Effect.ADD
        if new is ABSENT:
            return Effect.REMOVE
    if path == ("pools",):  # their order means nothing
        return Effect.LIVE
    general = tuple("*" if place == 1 and path[0] == "pools" else p for place, p in enumerate(path))
    fitting = [rule for rule in _RULES if general[: len(rule.prefix)] == rule.prefix]
    if not fitting:
        return Effect.RESTART
    return max(fitting, key=lambda rule: len(rule.prefix)).effect


def _text(path: tuple[str, ...]) -> str:
    """`pools[gpu0].queue.capacity`."""
    return "".join(part if part.startswith("[") else f".{part}" for part in path).lstrip(".")
