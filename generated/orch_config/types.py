"""Configuration types. Generated from contracts/schemas/config.schema.json; do not edit."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Server(msgspec.Struct, kw_only=True, frozen=True):
    """Where the service listens and keeps its state."""

    # Address to listen on.
    host: Annotated[str, Meta(min_length=1, max_length=255)] = "127.0.0.1"
    # Port of both planes; 0 picks a free one.
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    # A port of its own for the control plane; null serves both planes on `port`; 0 picks a free one.
    control_port: Annotated[int, Meta(ge=0, le=65535)] | None = None
    # Folder of the journal and of what the service launches; relative to the working directory.
    state_dir: Annotated[str, Meta(min_length=1, max_length=4096)] = ".llama-orch"
    # What an unknown key is: an error (strict) or a warning (compat).
    config_mode: Literal["strict", "compat"] = "strict"
    # Largest request body; a larger one gets 413.
    max_body_bytes: Annotated[int, Meta(ge=1024, le=67108864)] = 4194304
    # Whether /metrics answers without a key.
    metrics_public: bool = False
    # How long a SIGTERM lets running work finish before the process ends.
    shutdown_ms: Annotated[int, Meta(ge=0, le=600000)] = 10000


class Platform(msgspec.Struct, kw_only=True, frozen=True):
    """Exceptions from the rule that inference needs an NVIDIA GPU (ORCH-1101)."""

    # Workers may run without a GPU. For demos and CI; shown in logs, capabilities and metrics.
    cpu_carve_out: bool = False
    # Distance of looks at the GPUs (NVML), in milliseconds; 0 looks never.
    gpu_telemetry_ms: Annotated[int, Meta(ge=0, le=3600000)] = 1000


class ApiKey(msgspec.Struct, kw_only=True, frozen=True):
    """One API key: the key itself is in the environment, or only its keyed digest is here."""

    # Names the key in logs; not secret.
    id: Annotated[str, Meta(min_length=1, max_length=64, pattern="^[A-Za-z0-9][A-Za-z0-9._-]*\\Z")]
    # Whose tasks, sessions and artifacts the key reaches.
    tenant: Annotated[
        str, Meta(min_length=1, max_length=64, pattern="^[A-Za-z0-9][A-Za-z0-9._-]*\\Z")
    ]
    # data: tasks, sessions, artifacts. control: pools, catalog, configuration. metrics: /metrics.
    roles: Annotated[
        tuple[Literal["data", "control", "metrics"], ...], Meta(min_length=1, max_length=3)
    ]
    # The environment variable that holds the key.
    key_env: (
        Annotated[str, Meta(min_length=1, max_length=128, pattern="^[A-Za-z_][A-Za-z0-9_]*\\Z")]
        | None
    ) = None
    # What `llama-orch keys hash` printed for the key.
    key_hmac: (
        Annotated[str, Meta(min_length=32, max_length=512, pattern="^[A-Za-z0-9$:+/=._-]+\\Z")]
        | None
    ) = None


class Auth(msgspec.Struct, kw_only=True, frozen=True):
    """Who may do what (ORCH-3035)."""

    # False lets everybody do everything as tenant `default`; for a machine of one's own.
    enabled: bool = True
    # The keys that are known.
    keys: Annotated[tuple[ApiKey, ...], Meta(max_length=4096)] = ()


class Journal(msgspec.Struct, kw_only=True, frozen=True):
    """How durable a 202 is (ORCH-3203)."""

    # full: survives loss of power. normal: survives a crash of the service, not of the machine. off: survives nothing.
    sync: Literal["full", "normal", "off"] = "full"


class Streams(msgspec.Struct, kw_only=True, frozen=True):
    """How event streams are kept and sent (ORCH-3202)."""

    # How long a finished stream can be read again, in seconds.
    retain_s: Annotated[int, Meta(ge=0, le=604800)] = 600
    # Size of the finished streams that are kept; the oldest go first.
    retain_bytes: Annotated[int, Meta(ge=0, le=9223372036854775807)] = 268435456
    # Distance of `metrics` events, in milliseconds.
    metrics_ms: Annotated[int, Meta(ge=50, le=3600000)] = 1000
    # What happens to a task whose last reader leaves.
    on_disconnect: Literal["continue", "cancel"] = "continue"


class SessionBudgets(msgspec.Struct, kw_only=True, frozen=True):
    """What one session may use; null is unlimited."""

    # Prompt and decoded tokens.
    tokens: Annotated[int, Meta(ge=1, le=9223372036854775807)] | None = None
    # Milliseconds of decoding.
    time_ms: Annotated[int, Meta(ge=1, le=9223372036854775807)] | None = None
    # Cost, in the deployment's own unit.
    cost: Annotated[float, Meta(gt=0)] | None = None


class Sessions(msgspec.Struct, kw_only=True, frozen=True):
    """How long a session lives (ORCH-3021)."""

    # Milliseconds from its first task to its end.
    ttl_ms: Annotated[int, Meta(ge=1, le=604800000)] = 600000
    # Tasks per session.
    max_turns: Annotated[int, Meta(ge=1, le=2147483647)] = 8
    # What one session may use; null is unlimited.
    budgets: SessionBudgets = msgspec.field(default_factory=lambda: SessionBudgets())


class SamplerProfile(msgspec.Struct, kw_only=True, frozen=True):
    """Sampling that a task does not override."""

    # 0 always takes the likeliest token.
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    # Nucleus sampling; 1 is off.
    top_p: Annotated[float, Meta(ge=0, le=1)] = 1.0
    # Keep the k likeliest tokens; 0 is off.
    top_k: Annotated[int, Meta(ge=0, le=1000000)] = 0
    # Drop tokens below this share of the likeliest; 0 is off.
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    # Above 1 discourages repetition; 1 is off.
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=10)] = 1.0
    # Decoding ends before the first of these texts.
    stop: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=16)
    ] = ()


class TrustPolicy(msgspec.Struct, kw_only=True, frozen=True):
    """What a model must bring along (ORCH-3061, ORCH-3063)."""

    # strict refuses what cannot be verified; permissive serves it and says so.
    mode: Literal["strict", "permissive"] = "strict"
    # Where models may come from; empty allows local files only.
    allowed_registries: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=512)], ...], Meta(max_length=256)
    ] = ()
    # Where else the same files are.
    mirrors: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=512)], ...], Meta(max_length=256)
    ] = ()
    # At least one verified signature.
    require_signature: bool = True
    # An SBOM whose digest is right.
    require_sbom: bool = True
    # Files with the certificates that are trusted to sign.
    ca_roots: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=4096)], ...], Meta(max_length=256)
    ] = ()


class ModelStore(msgspec.Struct, kw_only=True, frozen=True):
    """Where model files are kept (ORCH-3042)."""

    # Folder of the store; null is `models` in server.state_dir.
    path: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    # Size at which the store evicts what was used longest ago.
    quota_bytes: Annotated[int, Meta(ge=0, le=9223372036854775807)] = 107374182400


class Catalog(msgspec.Struct, kw_only=True, frozen=True):
    """Models, and which of them are trusted."""

    # What a model must bring along (ORCH-3061, ORCH-3063).
    trust_policy: TrustPolicy = msgspec.field(default_factory=lambda: TrustPolicy())
    # Where model files are kept (ORCH-3042).
    store: ModelStore = msgspec.field(default_factory=lambda: ModelStore())


class Cluster(msgspec.Struct, kw_only=True, frozen=True):
    """Sharing state with other orchestrators (ORCH-3204)."""

    # The NATS servers, comma-separated; null is a deployment of one process.
    url: (
        Annotated[str, Meta(min_length=1, max_length=4096, pattern="^(nats|tls)://[^\\s]+\\Z")]
        | None
    ) = None


class Policy(msgspec.Struct, kw_only=True, frozen=True):
    """Policy plugins (ORCH-3048)."""

    # Paths of WASI modules, in the order in which they are asked.
    plugins: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=4096)], ...], Meta(max_length=16)
    ] = ()


class InteractiveSlo(msgspec.Struct, kw_only=True, frozen=True):
    """Objectives of interactive tasks; null is no objective."""

    # 95 % of the tasks have their first token so soon after their admission.
    first_token_p95_ms: Annotated[int, Meta(ge=1, le=3600000)] | None = 900
    # 95 % of the tasks have decoded 64 tokens (all of them, where they are fewer) so soon after their admission.
    tokens_64_p95_ms: Annotated[int, Meta(ge=1, le=3600000)] | None = 2500
    # At most this share of the tasks fails: a typed error that is neither the client's nor its deadline's.
    error_ratio: Annotated[float, Meta(ge=0, le=1)] | None = 0.005


class BatchSlo(msgspec.Struct, kw_only=True, frozen=True):
    """Objectives of batch tasks; null is no objective."""

    # Tokens per second of batch tasks against the most that the slots left to them could decode, while some wait.
    throughput_ratio: Annotated[float, Meta(ge=0, le=1)] | None = 0.8
    # At most this share of the tasks fails.
    error_ratio: Annotated[float, Meta(ge=0, le=1)] | None = 0.01


class Slos(msgspec.Struct, kw_only=True, frozen=True):
    """Service level objectives by priority, measured over a sliding window of every pool (ORCH-3041)."""

    # Length of the window, in seconds.
    window_s: Annotated[int, Meta(ge=10, le=86400)] = 300
    # Objectives of interactive tasks; null is no objective.
    interactive: InteractiveSlo = msgspec.field(default_factory=lambda: InteractiveSlo())
    # Objectives of batch tasks; null is no objective.
    batch: BatchSlo = msgspec.field(default_factory=lambda: BatchSlo())


class Tracing(msgspec.Struct, kw_only=True, frozen=True):
    """One OpenTelemetry trace per admitted task, from its submission to the engine, sent over OTLP (HTTP, protobuf). A `traceparent` header of the submission is continued, and the engine gets one. Needs the packages of the extra `tracing` (ORCH-2009)."""

    # Where traces are sent; without it there are none.
    endpoint: Annotated[str, Meta(pattern="^https?://[^\\s@]+\\Z")] | None = None
    # Share of the tasks that are traced where the submission does not decide it by its own traceparent.
    sample_ratio: Annotated[float, Meta(ge=0, le=1)] = 1.0
    # Environment variable with headers for the collector, as in `name=value,name=value`; a token belongs there.
    headers_env: Annotated[str, Meta(pattern="^[A-Za-z_][A-Za-z0-9_]*\\Z")] | None = None


class Memory(msgspec.Struct, kw_only=True, frozen=True):
    """What is checked before an engine is launched, and what may give when it does not fit (ORCH-3003, ORCH-3039)."""

    # Compare the estimate of the model's file with the free memory of GPUs and host; false launches and sees.
    check: bool = True
    # Share of the total memory that stays free beside the estimate.
    headroom_ratio: Annotated[float, Meta(ge=0, le=0.9)] = 0.05
    # With too little memory, down to so many slots may be launched; null keeps `launch.slots`.
    slots_min: Annotated[int, Meta(ge=1, le=4096)] | None = None
    # With too little memory, the context per task may shrink down to this; null keeps `ctx`.
    ctx_min: Annotated[int, Meta(ge=1, le=2147483647)] | None = None


class Restarts(msgspec.Struct, kw_only=True, frozen=True):
    """When an engine that fails again and again is left alone (ORCH-3053)."""

    # Failures within `window_s` after which the replica is Broken.
    max_failures: Annotated[int, Meta(ge=1, le=1000)] = 8
    # Seconds in which failures are counted.
    window_s: Annotated[int, Meta(ge=1, le=86400)] = 300
    # Seconds that a Broken replica rests before one more start is tried.
    broken_s: Annotated[int, Meta(ge=1, le=86400)] = 120


class Queue(msgspec.Struct, kw_only=True, frozen=True):
    """The pool's bounded queue (ORCH-3004, ORCH-3005)."""

    # Waiting tasks over all classes; running ones do not count.
    capacity: Annotated[int, Meta(ge=1, le=1000000)] = 256
    # What happens when it is full.
    full_policy: Literal["reject", "drop-lru", "shed-low-priority"] = "reject"


class PriorityClass(msgspec.Struct, kw_only=True, frozen=True):
    """One admission class (ORCH-3075)."""

    # The class.
    name: Literal["interactive", "batch"]
    # Waiting tasks of this class.
    queue_capacity: Annotated[int, Meta(ge=1, le=1000000)] = 256
    # Tasks per second and client, with a burst of max(1, rate); null is unlimited.
    rate_limit_rps: Annotated[float, Meta(le=1000000, gt=0)] | None = None
    # Its share against the other class; null is 8 for interactive and 1 for batch.
    weight: Annotated[int, Meta(ge=1, le=1000)] | None = None


class Tenant(msgspec.Struct, kw_only=True, frozen=True):
    """Weight and quotas of one tenant in this pool (ORCH-3036, ORCH-3077)."""

    # The tenant, as in auth.keys.
    id: Annotated[str, Meta(min_length=1, max_length=64, pattern="^[A-Za-z0-9][A-Za-z0-9._-]*\\Z")]
    # Its share against other tenants.
    weight: Annotated[int, Meta(ge=1, le=1000)] = 1
    # Running tasks; more wait. Null is unlimited.
    max_concurrent: Annotated[int, Meta(ge=1, le=1000000)] | None = None
    # Tasks per second, with a burst of max(1, rps); null is unlimited.
    rps: Annotated[float, Meta(le=1000000, gt=0)] | None = None
    # Prompt and decoded tokens per minute, with a burst of one minute's worth: reserved at admission (prompt + max_tokens), settled when the task ends. Null is unlimited.
    tokens_per_minute: Annotated[int, Meta(ge=1, le=9223372036854775807)] | None = None
    # KV cache that its running tasks may take in this pool (ctx of the task times the model's bytes per token, scratch included); more wait, and a task that alone is larger is refused. Has no effect where the engine does not tell its bytes per token. Null is unlimited.
    kv_bytes: Annotated[int, Meta(ge=1, le=9223372036854775807)] | None = None


class Fairness(msgspec.Struct, kw_only=True, frozen=True):
    """How tenants share the pool."""

    # Weighted fair queueing over tenants and classes.
    kind: Literal["wfq"] = "wfq"
    # Tenants with a weight or quota of their own; all others have weight 1 and no quota.
    tenants: Annotated[tuple[Tenant, ...], Meta(max_length=4096)] = ()


class CircuitBreaker(msgspec.Struct, kw_only=True, frozen=True):
    """Sheds the lowest priority first while an objective of a higher one stays violated, and closes again (ORCH-3040)."""

    # Whether it sheds at all.
    enabled: bool = False
    # An objective has to be violated for so long before the lowest priority that is still admitted is refused; after as long again the next one above it.
    open_after_s: Annotated[int, Meta(ge=1, le=86400)] = 30
    # Every objective has to hold for so long before the priority that was refused last is admitted again.
    close_after_s: Annotated[int, Meta(ge=1, le=86400)] = 60


class Admission(msgspec.Struct, kw_only=True, frozen=True):
    """Classes and fairness."""

    # Classes with settings of their own; a class that is not listed keeps its defaults.
    priorities: Annotated[tuple[PriorityClass, ...], Meta(max_length=2)] = (
        PriorityClass(name="interactive", weight=8),
        PriorityClass(name="batch", weight=1),
    )
    # How tenants share the pool.
    fairness: Fairness = msgspec.field(default_factory=lambda: Fairness())
    # Sheds the lowest priority first while an objective of a higher one stays violated, and closes again (ORCH-3040).
    circuit_breaker: CircuitBreaker = msgspec.field(default_factory=lambda: CircuitBreaker())


class HardPreemption(msgspec.Struct, kw_only=True, frozen=True):
    """When running work may be interrupted (ORCH-3086)."""

    # What the adapter must prove.
    engine_capability: Literal["interruptible_decode"] = "interruptible_decode"
    # Upper bound per pool.
    max_preemptions_per_min: Annotated[int, Meta(ge=0, le=100000)] = 6
    # Classes that are never interrupted.
    protect_priorities: Annotated[
        tuple[Literal["interactive", "batch"], ...], Meta(max_length=2)
    ] = ("interactive",)


class Preemption(msgspec.Struct, kw_only=True, frozen=True):
    """Who goes when something urgent comes (ORCH-3085)."""

    # off; soft removes waiting tasks only; hard may interrupt running ones as well.
    mode: Literal["off", "soft", "hard"] = "soft"
    # When running work may be interrupted (ORCH-3086).
    hard_requirements: HardPreemption = msgspec.field(default_factory=lambda: HardPreemption())


class Timeouts(msgspec.Struct, kw_only=True, frozen=True):
    """When a task is stuck (ORCH-3016)."""

    # Milliseconds from the start of decoding to its end.
    wall_ms: Annotated[int, Meta(ge=1, le=604800000)] = 60000
    # Milliseconds without a sign of progress while decoding.
    idle_ms: Annotated[int, Meta(ge=1, le=604800000)] = 5000
    # Milliseconds from the start of an engine to its being Ready; after that it is ended and started again.
    preload_ms: Annotated[int, Meta(ge=100, le=604800000)] = 120000


class Placement(msgspec.Struct, kw_only=True, frozen=True):
    """Which of a pool's replicas a task gets, beside load and its session's last good one."""

    # Labels of replicas, such as node or zone: a tenant's running tasks are spread over their values, the first label first. It goes before warm KV and never keeps a slot idle (ORCH-3008).
    anti_affinity: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=63)], ...], Meta(max_length=8)
    ] = ()
    # Prefer a replica that has read a prompt's beginning where the saved prefill outweighs its load. Holds for best_effort tasks, and for strict ones where deterministic_prefix_cache is set; all others are decoded cold (ORCH-3205).
    prefix_reuse: bool = True


class Replica(msgspec.Struct, kw_only=True, frozen=True):
    """An engine that someone else runs."""

    # Its name within the pool.
    id: Annotated[str, Meta(min_length=1, max_length=63, pattern="^[A-Za-z0-9][A-Za-z0-9._-]*\\Z")]
    # Where its native API is.
    url: Annotated[str, Meta(min_length=1, max_length=2048, pattern="^https?://[^\\s/]+[^\\s]*\\Z")]
    # Its model, where the engine cannot tell.
    model_digest: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    # Node, zone and the like, for anti-affinity and rollouts.
    labels: Annotated[dict[str, Annotated[str, Meta(max_length=255)]], Meta(max_length=32)] = (
        msgspec.field(default_factory=lambda: {})
    )


class Launch(msgspec.Struct, kw_only=True, frozen=True):
    """Engines that the pool manager runs."""

    # Processes; each is a replica.
    count: Annotated[int, Meta(ge=1, le=1024)] = 1
    # Program and arguments; `{model}`, `{host}`, `{port}` and `{ctx}` are filled in. Null is the engine adapter's own.
    command: (
        Annotated[
            tuple[Annotated[str, Meta(max_length=4096)], ...], Meta(min_length=1, max_length=256)
        ]
        | None
    ) = None
    # Program of the engine's own command, such as a llama-server built for CUDA; null is the CPU build of llama.cpp from its package, or `vllm`, `text-generation-launcher`, `tritonserver` from PATH.
    program: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    # Tasks that one engine decodes at once; null is 4 for llama.cpp and the engine's own default for the others.
    slots: Annotated[int, Meta(ge=1, le=4096)] | None = None
    # A small model for speculative decoding; its memory is counted (ORCH-3020). Null is none.
    draft_model: Annotated[str, Meta(min_length=1, max_length=512)] | None = None
    # Memory of the host that cached prefixes may take; it is counted (ORCH-3020).
    prefix_cache_bytes: Annotated[int, Meta(ge=0, le=9223372036854775807)] = 0
    # Arguments added to the command.
    args: Annotated[tuple[Annotated[str, Meta(max_length=4096)], ...], Meta(max_length=256)] = ()
    # Environment variables added for the process.
    env: Annotated[dict[str, Annotated[str, Meta(max_length=32768)]], Meta(max_length=256)] = (
        msgspec.field(default_factory=lambda: {})
    )


class Pool(msgspec.Struct, kw_only=True, frozen=True):
    """One engine, one model, one device mask, one queue. Its replicas are worker processes."""

    # Names the pool in addresses, logs and metrics.
    id: Annotated[str, Meta(min_length=1, max_length=63, pattern="^[A-Za-z0-9][A-Za-z0-9._-]*\\Z")]
    # What decodes.
    engine: Literal["llamacpp", "vllm", "tgi", "triton"]
    # sha256:…, repo:…, file:PATH, a catalog name, or builtin:smollm2 (a small real model from a package).
    model: Annotated[str, Meta(min_length=1, max_length=512)]
    # The model's quantisation; part of the replica set's identity.
    quant: Annotated[str, Meta(max_length=64)] = ""
    # Tokens of context per task.
    ctx: Annotated[int, Meta(ge=1, le=2147483647)]
    # The device mask: GPU index, UUID or MIG UUID. Work never leaves it (ORCH-3011).
    devices: Annotated[
        tuple[
            Annotated[int, Meta(ge=0, le=1023)]
            | Annotated[str, Meta(min_length=1, max_length=128)],
            ...,
        ],
        Meta(max_length=64),
    ] = ()
    # One ratio per device; null splits over homogeneous devices only (ORCH-3012).
    tensor_split: (
        Annotated[tuple[Annotated[float, Meta(gt=0)], ...], Meta(min_length=1, max_length=64)]
        | None
    ) = None
    # Its devices are alike: a model may be split evenly over them without ratios (ORCH-3012).
    homogeneous: bool = False
    # Other pools that say so too may launch engines on the same devices (ORCH-3011).
    shared_devices: bool = False
    # A decode, a cancel and a look at the figures before a replica is Ready (ORCH-3049); auto tests launched engines only.
    self_test: Literal["auto", "always", "never"] = "auto"
    # What is checked before an engine is launched, and what may give when it does not fit (ORCH-3003, ORCH-3039).
    memory: Memory = msgspec.field(default_factory=lambda: Memory())
    # When an engine that fails again and again is left alone (ORCH-3053).
    restarts: Restarts = msgspec.field(default_factory=lambda: Restarts())
    # Load the model when the service starts (ORCH-3002).
    preload: bool = True
    # Replicas of another engine version stay out of the set (ORCH-3046).
    require_same_engine_version: bool = True
    # The engine gives the same bytes from a warm prefix as from a cold one, so that strict tasks may reuse it.
    deterministic_prefix_cache: bool = False
    # The profile, a key of sampler_profiles.
    sampler_profile_version: Annotated[str, Meta(min_length=1, max_length=64)] = "v1"
    # The pool's bounded queue (ORCH-3004, ORCH-3005).
    queue: Queue = msgspec.field(default_factory=lambda: Queue())
    # Classes and fairness.
    admission: Admission = msgspec.field(default_factory=lambda: Admission())
    # Who goes when something urgent comes (ORCH-3085).
    preemption: Preemption = msgspec.field(default_factory=lambda: Preemption())
    # When a task is stuck (ORCH-3016).
    timeouts: Timeouts = msgspec.field(default_factory=lambda: Timeouts())
    # Which of a pool's replicas a task gets, beside load and its session's last good one.
    placement: Placement = msgspec.field(default_factory=lambda: Placement())
    # Engines that someone else runs.
    replicas: Annotated[tuple[Replica, ...], Meta(max_length=1024)] = ()
    # Its engines come from pool managers that register (`llama-orch pool-managerd`), beside `replicas` and `launch`.
    managed: bool = False
    # Engines that the pool manager runs; null is none.
    launch: Launch | None = None


class Config(msgspec.Struct, kw_only=True, frozen=True):
    """Configuration of llama-orch. Every key that is left out has the default that is given here."""

    # Where the service listens and keeps its state.
    server: Server = msgspec.field(default_factory=lambda: Server())
    # Exceptions from the rule that inference needs an NVIDIA GPU (ORCH-1101).
    platform: Platform = msgspec.field(default_factory=lambda: Platform())
    # Who may do what (ORCH-3035).
    auth: Auth = msgspec.field(default_factory=lambda: Auth())
    # How durable a 202 is (ORCH-3203).
    journal: Journal = msgspec.field(default_factory=lambda: Journal())
    # How event streams are kept and sent (ORCH-3202).
    streams: Streams = msgspec.field(default_factory=lambda: Streams())
    # How long a session lives (ORCH-3021).
    sessions: Sessions = msgspec.field(default_factory=lambda: Sessions())
    # Named sets of sampling settings; the name is part of a task's determinism key (ORCH-3045).
    sampler_profiles: Annotated[dict[str, SamplerProfile], Meta(min_length=1, max_length=256)] = (
        msgspec.field(default_factory=lambda: {"v1": SamplerProfile()})
    )
    # Null: no catalog; pools serve the models that they name, as under `mode: permissive`.
    catalog: Catalog | None = None
    # Sharing state with other orchestrators (ORCH-3204).
    cluster: Cluster = msgspec.field(default_factory=lambda: Cluster())
    # Policy plugins (ORCH-3048).
    policy: Policy = msgspec.field(default_factory=lambda: Policy())
    # Service level objectives by priority, measured over a sliding window of every pool (ORCH-3041).
    slos: Slos = msgspec.field(default_factory=lambda: Slos())
    # One OpenTelemetry trace per admitted task, from its submission to the engine, sent over OTLP (HTTP, protobuf). A `traceparent` header of the submission is continued, and the engine gets one. Needs the packages of the extra `tracing` (ORCH-2009).
    tracing: Tracing = msgspec.field(default_factory=lambda: Tracing())
    # What is served.
    pools: Annotated[tuple[Pool, ...], Meta(max_length=1024)] = ()
