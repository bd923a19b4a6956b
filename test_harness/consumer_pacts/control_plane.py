"""What a client of OrchControl v1 relies on: orders to pools, the configuration, what there is."""

from __future__ import annotations

from typing import Any

from pact import match

from consumer_pacts.interaction import Interaction, envelope
from harness_kit.service_process import CONTROL_KEY, DATA_KEY, model_of

READY = "the service is ready"
WORD = match.regex("Ready", regex=r"^[A-Za-z]+$")
DIGEST = "sha256:" + "0" * 64
REPLICA = {"id": match.like("r0"), "state": WORD, "cordoned": match.bool(False)}

# Operations that a later release serves, with a request that it would take.
NOT_SERVED: dict[str, tuple[str | None, dict[str, Any] | None]] = {
    "register_model": (None, {"id": "m", "digest": DIGEST}),
    "get_model": ("m", None),
    "verify_model": ("m", None),
    "set_model_state": ("m", {"state": "Active"}),
    "create_artifact": (None, {"kind": "plan", "content": {"steps": 1}}),
    "get_artifact": ("a", None),
}
# A request that each operation with a body takes; also what the refusals are sent.
BODIES: dict[str, dict[str, Any]] = {
    "drain_pool": {"deadline_ms": 60_000, "replica_id": "r0"},
    "cordon_pool": {"replica_id": "r0"},
    "resume_pool": {"replica_id": "r0"},
    "reload_pool": {"new_model_ref": model_of("next")},
    "register_pool_manager": {"lease_ms": 60_000, "epoch": "first", "replicas": []},
    "reload_config": {"dry_run": True},
    **{operation: body for operation, (_, body) in NOT_SERVED.items() if body is not None},
}


def health(**fields: Any) -> dict[str, Any]:
    """A pool's health with at least these fields."""
    return {
        "live": match.bool(True),
        "ready": match.bool(True),
        "draining": match.bool(False),
        "state": WORD,
        "metrics": match.like({}),
        "replicas": match.each_like(REPLICA),
    } | fields


def order(operation: str, given: str, pool: str, answer: Any, status: int = 202) -> Interaction:
    return Interaction(
        operation,
        f"{operation} for {pool}, {status}",
        given,
        status,
        answer,
        key=CONTROL_KEY,
        path_id=pool,
        body=BODIES.get(operation),
    )


def _not_served() -> tuple[Interaction, ...]:
    return tuple(
        Interaction(
            operation,
            f"{operation}, which a later release serves",
            READY,
            501,
            envelope("INTERNAL", f"{operation}: not served by this version"),
            key=DATA_KEY if operation.endswith("artifact") else CONTROL_KEY,
            path_id=path_id,
            body=body,
        )
        for operation, (path_id, body) in NOT_SERVED.items()
    )


def _orders() -> tuple[Interaction, ...]:
    ready, canary = "the pool is ready", "a canary of the pool waits for a decision"
    foreign = envelope("INVALID_PARAMS", "its engines are run by somebody else")
    preloading = {"phase": match.like("preloading"), "new_model_ref": model_of("next")}
    return (
        order("cordon_pool", ready, "orders", health(draining=False)),
        order("resume_pool", "a replica of the pool is cordoned", "orders", health(ready=True)),
        order("drain_pool", ready, "orders", health()),
        order("reload_pool", ready, "launched", health(reload=preloading)),
        order("reload_pool", ready, "orders", foreign, 409),
        order("promote_pool", canary, "launched", health(reload=preloading)),
        order("rollback_pool", canary, "launched", health(reload=preloading)),
        order("promote_pool", ready, "orders", foreign, 409),
        order("pool_health", ready, "open", health(ready=True, state="Ready"), 200),
        order(
            "pool_health",
            "the last engine of the pool lost is gone",
            "lost",
            health(
                ready=False,
                state="Unready",
                last_error={
                    "code": match.like("reset"),
                    "message": match.like("gone"),
                    "at_ms": match.int(1),
                },
            ),
            200,
        ),
    )


def _managers() -> tuple[Interaction, ...]:
    registered = "the pool manager is registered"
    view = {"id": "gpu-7", "lease_ms_remaining": match.int(59_000), "replicas": 0}
    lease = {"lease_ms": 60_000, "pools": ["managed"]}
    return (
        order("register_pool_manager", READY, "gpu-7", lease, 200),
        Interaction(
            "list_pool_managers",
            "all pool managers",
            registered,
            200,
            match.each_like(view),
            key=CONTROL_KEY,
            about="gpu-7",
        ),
        order("deregister_pool_manager", registered, "gpu-7", view),
    )


def _overviews() -> tuple[Interaction, ...]:
    replica = {"id": match.like("r0"), "pool_id": match.like("open"), "state": WORD}
    replica_set = {
        "id": match.like("0123456789abcdef"),
        "engine": match.regex("llamacpp", regex=r"^(llamacpp|vllm|tgi|triton)$"),
        "load": match.number(0.0),
        "slots_total": match.int(2),
        "slots_free": match.int(2),
        "slo": match.like({}),
        "replicas": match.each_like(replica),
    }
    engine = {
        "engine": "llamacpp",
        "ctx_max": match.int(8192),
        "supported_workloads": match.each_like("completion"),
        "features": match.type([]),
        "model_refs": match.each_like("file:/models/open.gguf"),
    }
    capabilities = {"api_version": "1.0.0", "engines": [engine], "cpu_carve_out": True}
    return (
        Interaction(
            "list_replicasets", "all replica sets", READY, 200, match.each_like(replica_set)
        ),
        Interaction("get_capabilities", "what is offered", READY, 200, capabilities),
        Interaction("list_devices", "all GPUs", READY, 200, {"devices": match.type([])}),
    )


def _configuration() -> tuple[Interaction, ...]:
    nothing = {"applied": match.bool(False), "revision": match.int(1), "changes": match.type([])}
    change = {
        "key": "streams.retain_s",
        "before": match.int(600),
        "after": match.int(700),
        "effect": match.regex("live", regex=r"^(live|replace|add|remove|restart)$"),
    }
    state = {
        "revision": match.int(1),
        "config": match.like({"streams": match.like({"retain_s": match.int(600)})}),
    }
    return (
        Interaction("get_config", "the configuration", READY, 200, state, key=CONTROL_KEY),
        Interaction(
            "reload_config",
            "what the unchanged file would change",
            READY,
            200,
            nothing,
            body={"dry_run": True},
            key=CONTROL_KEY,
        ),
        Interaction(
            "reload_config",
            "what the changed file would change",
            "the configuration file has another streams.retain_s",
            200,
            {"applied": False, "revision": match.int(1), "changes": [change]},
            body={"dry_run": True},
            key=CONTROL_KEY,
        ),
        Interaction(
            "reload_config",
            "a broken file",
            "the configuration file has a key that does not exist",
            400,
            envelope("INVALID_PARAMS", "streams.retain: unknown key"),
            body={},
            key=CONTROL_KEY,
        ),
        Interaction(
            "revert_config",
            "the configuration before the first one",
            READY,
            409,
            envelope("INVALID_PARAMS", "nothing was reloaded"),
            key=CONTROL_KEY,
        ),
        Interaction(
            "revert_config",
            "the configuration before a reload",
            "another streams.retain_s was reloaded",
            200,
            {"applied": True, "revision": match.int(3), "changes": [change]},
            key=CONTROL_KEY,
        ),
    )


CONTROL_PLANE = (*_not_served(), *_orders(), *_managers(), *_overviews(), *_configuration())
