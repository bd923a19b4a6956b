"""From the checked configuration to the values each part takes; the only reader of `orch_config`
beside `configuration` and `app`. Nothing is validated here: `configuration` has done it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orch_config import Config
from orch_config.types import Catalog, Pool, SamplerProfile, Tracing
from orchestrator_core.admission.circuit_breaker import BreakerPolicy
from orchestrator_core.limits import Limits
from orchestrator_core.pool import (
    FullPolicy,
    PoolSpec,
    PreemptionMode,
    PreemptionPolicy,
    TenantPolicy,
)
from orchestrator_core.task import Determinism, Priority
from orchestratord.api.keys import KeyRing, Principal, hash_key
from orchestratord.configuration.otlp_headers import otlp_headers
from orchestratord.configuration.quotas import granted_classes
from orchestratord.services.replicas import PoolTraits
from orchestratord.services.slo import ERRORS, FIRST_TOKEN, THROUGHPUT, TOKENS_64, Objective
from pool_managerd.model_store import ModelStore
from pool_managerd.settings import (
    ExternalReplica,
    LaunchSettings,
    MemorySettings,
    PoolSettings,
    RestartSettings,
)
from worker_adapters.adapter_api.types import Sampling

if TYPE_CHECKING:
    from orchestratord.infra.tracing import TaskTraces

# A shorter value of an engine's environment is a number or a switch, which logs are full of.
SECRET_CHARS_MIN = 8


def limits(config: Config) -> Limits:
    sessions = config.sessions
    return Limits(
        session_ttl_ms=sessions.ttl_ms,
        session_max_turns=sessions.max_turns,
        budget_tokens=sessions.budgets.tokens,
        budget_time_ms=sessions.budgets.time_ms,
        budget_cost=sessions.budgets.cost,
    )


def has_budget(config: Config) -> bool:
    """Whether sessions have any budget: then tokens are counted by the engine."""
    budgets = config.sessions.budgets
    return any(b is not None for b in (budgets.tokens, budgets.time_ms, budgets.cost))


def log_fields(pool: Pool) -> dict[str, Any]:
    """What every log line of the pool's tasks carries."""
    return {"quant": pool.quant, "ctx": pool.ctx, "tensor_split": pool.tensor_split}


def _prefix_reuse(pool: Pool) -> frozenset[Determinism]:
    """Whose tasks may be given a warm prefix: strict ones only where that changes no byte."""
    if not pool.placement.prefix_reuse:
        return frozenset()
    if pool.deterministic_prefix_cache:
        return frozenset(Determinism)
    return frozenset({Determinism.BEST_EFFORT})


def _preemption(pool: Pool) -> PreemptionPolicy:
    hard = pool.preemption.hard_requirements
    return PreemptionPolicy(
        mode=PreemptionMode(pool.preemption.mode),
        max_per_min=hard.max_preemptions_per_min,
        protected=frozenset(map(Priority, hard.protect_priorities)),
    )


def _breaker(pool: Pool) -> BreakerPolicy | None:
    breaker = pool.admission.circuit_breaker
    if not breaker.enabled:
        return None
    return BreakerPolicy(breaker.open_after_s * 1000, breaker.close_after_s * 1000)


def slo_objectives(config: Config) -> list[Objective]:
    """Every objective that is not null."""
    interactive, batch = config.slos.interactive, config.slos.batch
    goals = [
        (Priority.INTERACTIVE, FIRST_TOKEN, interactive.first_token_p95_ms),
        (Priority.INTERACTIVE, TOKENS_64, interactive.tokens_64_p95_ms),
        (Priority.INTERACTIVE, ERRORS, interactive.error_ratio),
        (Priority.BATCH, THROUGHPUT, batch.throughput_ratio),
        (Priority.BATCH, ERRORS, batch.error_ratio),
    ]
    return [Objective(priority, name, goal) for priority, name, goal in goals if goal is not None]


def slo_notice_s(config: Config) -> float | None:
    """How soon the end of a violation has to be noticed: in half the time that the quickest circuit
    breaker waits, so that none refuses more for what is over. None without a breaker."""
    breakers = [pool.admission.circuit_breaker for pool in config.pools]
    return min((each.open_after_s / 2 for each in breakers if each.enabled), default=None)


def pool_traits(config: Config, pool: Pool) -> PoolTraits:
    """What scheduling and dispatch need of a pool."""
    spec = PoolSpec(
        id=pool.id,
        engine=pool.engine,
        model_refs=frozenset({pool.model}),
        ctx=pool.ctx,
        quant=pool.quant,
        sampler_profile_version=pool.sampler_profile_version,
        devices=tuple(str(device) for device in pool.devices),
        queue_capacity=pool.queue.capacity,
        full_policy=FullPolicy(pool.queue.full_policy),
        priorities=granted_classes(pool),
        tenants=tuple(
            TenantPolicy(t.id, t.weight, t.max_concurrent, t.rps, t.tokens_per_minute, t.kv_bytes)
            for t in pool.admission.fairness.tenants
        ),
        same_engine_version=pool.require_same_engine_version,
        anti_affinity=tuple(pool.placement.anti_affinity),
        prefix_reuse=_prefix_reuse(pool),
        preemption=_preemption(pool),
    )
    return PoolTraits(
        spec=spec,
        model=pool.model,
        wall_ms=pool.timeouts.wall_ms,
        idle_ms=pool.timeouts.idle_ms,
        deterministic_prefix_cache=pool.deterministic_prefix_cache,
        breaker=_breaker(pool),
        managed=pool.managed,
    )


def pool_settings(pool: Pool) -> PoolSettings:
    """What the pool host needs to keep its replicas alive."""
    launch = pool.launch
    return PoolSettings(
        id=pool.id,
        engine=pool.engine,
        model=pool.model,
        quant=pool.quant,
        ctx=pool.ctx,
        devices=tuple(str(device) for device in pool.devices),
        sampler_profile_version=pool.sampler_profile_version,
        same_engine_version=pool.require_same_engine_version,
        deterministic_prefix_cache=pool.deterministic_prefix_cache,
        preload=pool.preload,
        external=tuple(
            ExternalReplica(r.id, r.url, r.model_digest, tuple(sorted(r.labels.items())))
            for r in pool.replicas
        ),
        launch=None
        if launch is None
        else LaunchSettings(
            count=launch.count,
            command=None if launch.command is None else tuple(launch.command),
            args=tuple(launch.args),
            env=tuple(sorted(launch.env.items())),
            program=launch.program,
            slots=launch.slots,
            draft_model=launch.draft_model,
            prefix_cache_bytes=launch.prefix_cache_bytes,
        ),
        tensor_split=pool.tensor_split,
        homogeneous=pool.homogeneous,
        shared_devices=pool.shared_devices,
        self_test=pool.self_test,
        memory=MemorySettings(
            check=pool.memory.check,
            headroom_ratio=pool.memory.headroom_ratio,
            slots_min=pool.memory.slots_min,
            ctx_min=pool.memory.ctx_min,
        ),
        restarts=RestartSettings(
            max_failures=pool.restarts.max_failures,
            window_s=pool.restarts.window_s,
            broken_s=pool.restarts.broken_s,
        ),
        preload_ms=pool.timeouts.preload_ms,
    )


def model_store(config: Config) -> ModelStore:
    """The store that this configuration describes; without a catalog it has its defaults."""
    store = (config.catalog or Catalog()).store
    path = Path(config.server.state_dir) / "models" if store.path is None else Path(store.path)
    return ModelStore(path, store.quota_bytes)


def sampler_profiles(config: Config) -> Mapping[str, Sampling]:
    return {name: _sampling(profile) for name, profile in config.sampler_profiles.items()}


def _sampling(profile: SamplerProfile) -> Sampling:
    return Sampling(
        temperature=profile.temperature,
        top_p=profile.top_p,
        top_k=profile.top_k,
        min_p=profile.min_p,
        repeat_penalty=profile.repeat_penalty,
        stop=tuple(profile.stop),
    )


def key_ring(config: Config) -> KeyRing | None:
    """The configured keys; None where `auth.enabled` is false."""
    if not config.auth.enabled:
        return None
    stored = []
    for key in config.auth.keys:
        principal = Principal(key.id, key.tenant, frozenset(key.roles))
        key_hmac = key.key_hmac
        if key_hmac is None:
            assert key.key_env is not None, "the schema wants exactly one of key_env, key_hmac"
            key_hmac = hash_key(os.environ[key.key_env].encode())
        stored.append((key_hmac, principal))
    return KeyRing(stored)


def task_traces(tracing: Tracing) -> TaskTraces | None:
    """The traces of tasks, None where no collector is configured."""
    if tracing.endpoint is None:
        return None
    from orchestratord.infra import tracing as otel  # its packages are an extra

    headers = otlp_headers(os.environ[tracing.headers_env]) if tracing.headers_env else {}
    exporter = otel.otlp_exporter(tracing.endpoint, headers)
    return otel.TaskTraces(exporter, tracing.sample_ratio, version("llama-orch"))


def secret_values(config: Config) -> list[str]:
    """Texts that must never reach a log: keys, and what engines are given in their environment
    (a hub's token, say) as far as it is long enough to be a secret."""
    keys = [
        os.environ[key.key_env]
        for key in config.auth.keys
        if key.key_env is not None and key.key_env in os.environ
    ]
    given = {
        value
        for pool in config.pools
        if pool.launch is not None
        for value in pool.launch.env.values()
        if len(value) >= SECRET_CHARS_MIN
    }
    headers = config.tracing.headers_env
    if headers is not None and headers in os.environ:
        given.update(otlp_headers(os.environ[headers]).values())
    return keys + sorted(given)
