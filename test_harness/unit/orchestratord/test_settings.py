"""What a configuration means in the words of the core and of the pool manager."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orch_config import Config
from orchestrator_core.limits import Limits
from orchestrator_core.pool import FullPolicy, PriorityPolicy, TenantPolicy
from orchestrator_core.task import Determinism, Priority
from orchestratord import settings
from orchestratord.api.keys import hash_key
from pool_managerd.settings import ExternalReplica, LaunchSettings
from worker_adapters.adapter_api.types import Sampling

POOL: dict[str, Any] = {"id": "p", "engine": "llamacpp", "model": "repo:small", "ctx": 4096}


def config(pool: dict[str, Any] | None = None, **rest: Any) -> Config:
    return msgspec.convert({"pools": [{**POOL, **(pool or {})}], **rest}, Config)


def traits_of(**pool: Any) -> Any:
    whole = config(pool)
    return settings.pool_traits(whole, whole.pools[0])


@pytest.mark.req("ORCH-3075", partial="all but the defaults")
def test_a_pool_that_says_little_gets_the_defaults_of_the_spec() -> None:
    traits = traits_of()

    assert traits.spec.priorities == (
        PriorityPolicy(Priority.INTERACTIVE, 8, 256, None),
        PriorityPolicy(Priority.BATCH, 1, 256, None),
    )
    assert traits.spec.queue_capacity == 256
    assert traits.spec.full_policy is FullPolicy.REJECT
    assert traits.spec.model_refs == frozenset({"repo:small"})
    assert traits.spec.same_engine_version
    assert (traits.model, traits.wall_ms, traits.idle_ms) == ("repo:small", 60_000, 5_000)
    assert not traits.deterministic_prefix_cache


@pytest.mark.req("ORCH-3075", "ORCH-3077", partial="all but the settings")
def test_what_a_pool_says_arrives_and_a_class_it_leaves_out_is_bounded_by_the_pool() -> None:
    traits = traits_of(
        quant="q4_k_m",
        devices=[0, "MIG-1"],
        deterministic_prefix_cache=True,
        require_same_engine_version=False,
        sampler_profile_version="v2",
        queue={"capacity": 9, "full_policy": "drop-lru"},
        timeouts={"wall_ms": 7000, "idle_ms": 300},
        admission={
            "priorities": [
                {"name": "batch", "queue_capacity": 4, "rate_limit_rps": 2.5, "weight": 3}
            ],
            "fairness": {
                "kind": "wfq",
                "tenants": [
                    {
                        "id": "acme",
                        "weight": 2,
                        "max_concurrent": 1,
                        "rps": 50,
                        "tokens_per_minute": 9000,
                        "kv_bytes": 1000000,
                    }
                ],
            },
        },
    )

    spec = traits.spec
    assert spec.priorities == (
        PriorityPolicy(Priority.INTERACTIVE, 8, 9, None),
        PriorityPolicy(Priority.BATCH, 3, 4, 2.5),
    )
    assert spec.tenants == (
        TenantPolicy("acme", 2, 1, 50, tokens_per_minute=9000, kv_bytes=1000000),
    )
    assert (spec.queue_capacity, spec.full_policy) == (9, FullPolicy.DROP_LRU)
    assert (spec.id, spec.engine, spec.ctx, spec.quant) == ("p", "llamacpp", 4096, "q4_k_m")
    assert spec.devices == ("0", "MIG-1")
    assert spec.sampler_profile_version == "v2"
    assert not spec.same_engine_version
    assert (traits.wall_ms, traits.idle_ms) == (7000, 300)
    assert traits.deterministic_prefix_cache


def test_sessions_and_their_budgets_become_limits() -> None:
    whole = config(
        sessions={
            "ttl_ms": 5000,
            "max_turns": 2,
            "budgets": {"tokens": 10, "time_ms": 20, "cost": 0.5},
        }
    )

    assert settings.limits(whole) == Limits(
        session_ttl_ms=5000,
        session_max_turns=2,
        budget_tokens=10,
        budget_time_ms=20,
        budget_cost=0.5,
    )
    assert settings.limits(config()) == Limits()


def test_sampler_profiles_arrive_whole() -> None:
    profile = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "repeat_penalty": 1.1,
        "stop": ["\n"],
    }

    profiles = settings.sampler_profiles(config(sampler_profiles={"v1": {}, "v2": profile}))

    assert profiles["v1"] == Sampling()
    assert profiles["v2"] == Sampling(0.7, 0.9, 40, 0.05, 1.1, ("\n",))


def test_the_pool_host_gets_both_kinds_of_replicas() -> None:
    replica = {"id": "r0", "url": "http://127.0.0.1:9001", "labels": {"zone": "z", "node": "a"}}
    launch = {"count": 2, "command": ["engine", "--port", "{port}"], "env": {"B": "2", "A": "1"}}
    whole = config({"replicas": [replica], "launch": launch, "devices": [1]})

    pool = settings.pool_settings(whole.pools[0])

    labels = (("node", "a"), ("zone", "z"))
    assert pool.external == (ExternalReplica("r0", "http://127.0.0.1:9001", None, labels),)
    command, env = ("engine", "--port", "{port}"), (("A", "1"), ("B", "2"))
    assert pool.launch == LaunchSettings(count=2, command=command, args=(), env=env)
    assert (pool.devices, pool.ctx, pool.preload) == (("1",), 4096, True)
    assert settings.pool_settings(config().pools[0]).launch is None


KEYS = [
    {"id": "e", "tenant": "acme", "roles": ["data"], "key_env": "TEST_KEY"},
    {"id": "h", "tenant": "umbra", "roles": ["control"], "key_hmac": hash_key(b"hashed-key")},
]


class TestKeys:
    @pytest.mark.req("ORCH-3035", partial="all but the settings")
    def test_a_key_comes_from_the_environment_or_as_its_hash(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TEST_KEY", "plain-key")

        ring = settings.key_ring(config(auth={"keys": KEYS}))

        assert ring is not None
        found = [ring.find(key) for key in (b"plain-key", b"hashed-key", b"other")]
        assert [p and (p.id, p.tenant, sorted(p.roles)) for p in found] == [
            ("e", "acme", ["data"]),
            ("h", "umbra", ["control"]),
            None,
        ]

    @pytest.mark.req("OC-CTRL-2041", partial="all but which texts are secret")
    def test_keys_from_the_environment_are_secrets_of_the_log(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TEST_KEY", "plain-key")

        assert settings.secret_values(config(auth={"keys": KEYS})) == ["plain-key"]

    def test_without_authentication_there_is_no_ring(self) -> None:
        assert settings.key_ring(config(auth={"enabled": False})) is None


@pytest.mark.req("ORCH-3205", "ORCH-3008", partial="all but the settings")
@pytest.mark.parametrize(
    ("pool", "reusing"),
    [
        ({}, {Determinism.BEST_EFFORT}),
        ({"deterministic_prefix_cache": True}, {Determinism.BEST_EFFORT, Determinism.STRICT}),
        ({"deterministic_prefix_cache": True, "placement": {"prefix_reuse": False}}, set()),
    ],
    ids=["default", "deterministic", "off"],
)
def test_strict_tasks_are_placed_by_prefix_only_where_a_warm_one_changes_no_byte(
    pool: dict[str, Any], reusing: set[Determinism]
) -> None:
    assert traits_of(**pool).spec.prefix_reuse == reusing


@pytest.mark.req("ORCH-3008", partial="all but the settings")
def test_anti_affinity_keeps_the_order_of_its_labels_and_is_off_by_default() -> None:
    assert traits_of().spec.anti_affinity == ()
    named = traits_of(placement={"anti_affinity": ["zone", "node"]})
    assert named.spec.anti_affinity == ("zone", "node")


@pytest.mark.req("OC-CTRL-2041", partial="which texts are secret")
def test_what_engines_are_given_in_their_environment_is_secret_from_eight_characters_on() -> None:
    launch = {"count": 1, "env": {"HF_TOKEN": "hf_12345", "THREADS": "4", "ALSO": "hf_12345"}}

    assert settings.secret_values(config({"launch": launch})) == ["hf_12345"]
