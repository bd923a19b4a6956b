"""From options and a configuration to what the simulator takes: pools, limits, tenants, mixes.

Off every request's path. Invariant: what the configuration says holds as it would in the service
(the same reader, the same pool specifications); options replace it only where they are given.
(ORCH-3075)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from orch_cli.exit_codes import CliError
from orch_cli.serve import configuration_failure
from orch_simulator.simulation import FleetPool
from orch_simulator.workload import DeadlineRange
from orchestrator_core.limits import Limits
from orchestrator_core.pool import PoolSpec, PriorityPolicy
from orchestrator_core.task import Priority

# The pool of a run without a configuration: nothing but the classes' default weights holds there.
_PLAIN_POOL, _PLAIN_CTX_TOKENS = "simulated", 8192

# More than can ever wait.
_UNBOUNDED = 2**62


def fleet(
    config: Path | None, replicas: int | None, slots: int, queue_capacity: int | None
) -> tuple[list[FleetPool], Limits, tuple[str, ...]]:
    """Pools, limits and the warnings of the configuration.

    Args:
        replicas: of each pool; None is as many as the configuration names, at least one.
        queue_capacity: of each pool and each of its classes; None is as configured.

    Raises CliError for a configuration that the service would not start with.
    """
    warnings: tuple[str, ...] = ()
    if config is None:
        pools, limits = [FleetPool(_plain_pool(), replicas or 1, slots)], Limits()
    else:
        pools, limits, warnings = _configured(config, replicas, slots)
    if queue_capacity is not None:
        pools = [replace(pool, spec=_bounded(pool.spec, queue_capacity)) for pool in pools]
    return pools, limits, warnings


def tenant_names(pools: list[FleetPool], count: int | None) -> tuple[str, ...]:
    """Configured tenants first, in the file's order; `tenant-1` and so on fill up to `count`."""
    names = list(dict.fromkeys(tenant.id for pool in pools for tenant in pool.spec.tenants))
    wanted = (len(names) or 2) if count is None else count
    digits = len(str(wanted))
    known = set(names)
    generated = (f"tenant-{number:0{digits}}" for number in range(1, wanted + 1))
    names += [name for name in generated if name not in known]
    return tuple(names[:wanted])


def priority_mix(text: str) -> dict[Priority, float]:
    """`interactive=1,batch=4` as relative rates. Raises CliError for anything else."""
    mix = {
        priority: _number("--priority-mix", value)
        for priority, value in _pairs("--priority-mix", text)
    }
    if not sum(mix.values()) > 0:
        raise CliError(f"--priority-mix {text}: one rate at least must be above 0")
    return mix


def deadline_ranges(text: str) -> dict[Priority, DeadlineRange]:
    """`interactive=5:60,batch=60:3600`, in seconds. Raises CliError for anything else."""
    ranges = {}
    for priority, value in _pairs("--deadlines", text):
        least, _, most = value.partition(":")
        least_s, most_s = (_number("--deadlines", part) for part in (least, most or least))
        if not 0.001 <= least_s <= most_s:
            raise CliError(f"--deadlines {text}: {value!r} is no range of seconds, least:most")
        ranges[priority] = DeadlineRange(round(least_s * 1000), round(most_s * 1000))
    if missing := [priority.value for priority in Priority if priority not in ranges]:
        raise CliError(f"--deadlines {text}: {' and '.join(missing)} has no range")
    return ranges


def _plain_pool() -> PoolSpec:
    return PoolSpec(
        id=_PLAIN_POOL,
        engine="llamacpp",
        model_refs=frozenset({_PLAIN_POOL}),
        ctx=_PLAIN_CTX_TOKENS,
        queue_capacity=_UNBOUNDED,
        priorities=(
            PriorityPolicy(Priority.INTERACTIVE, 8, _UNBOUNDED),
            PriorityPolicy(Priority.BATCH, 1, _UNBOUNDED),
        ),
    )


def _configured(
    file: Path, replicas: int | None, slots: int
) -> tuple[list[FleetPool], Limits, tuple[str, ...]]:
    from orchestratord import settings
    from orchestratord.configuration import AnyEnvironment, ConfigError, load_config

    try:
        loaded = load_config(file, environ=AnyEnvironment())
    except ConfigError as error:
        raise configuration_failure(error.source, [str(p) for p in error.problems]) from None
    pools = []
    for pool in loaded.config.pools:
        traits = settings.pool_traits(loaded.config, pool)
        launched = 0 if pool.launch is None else pool.launch.count
        count = replicas or max(len(pool.replicas) + launched, 1)
        pools.append(FleetPool(traits.spec, count, slots, traits.wall_ms))
    return pools, settings.limits(loaded.config), tuple(loaded.warnings)


def _bounded(spec: PoolSpec, capacity: int) -> PoolSpec:
    policies = tuple(replace(policy, queue_capacity=capacity) for policy in spec.priorities)
    return replace(spec, queue_capacity=capacity, priorities=policies)


def _pairs(option: str, text: str) -> Iterator[tuple[Priority, str]]:
    known = {priority.value: priority for priority in Priority}
    for pair in text.split(","):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if name not in known or not equals:
            example = ",".join(f"{priority}=…" for priority in known)
            raise CliError(f"{option} {text}: {pair.strip()!r} is not of the form {example}")
        yield known[name], value


def _number(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise CliError(f"{option}: {text!r} is no number of 0 or more")
    return value
