"""Types of OrchControl v1 1.0.0. Generated from contracts/openapi/control.yaml; do not edit."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, UnsetType
from orchcontrol_v1.strict import Open, Strict

Engine: TypeAlias = Annotated[
    Literal["llamacpp", "vllm", "tgi", "triton"],
    Meta(description="The closed list of engines."),
]


Workload: TypeAlias = Annotated[
    Literal["completion", "embedding", "rerank"],
    Meta(description="What is asked of the model."),
]


ErrorCode: TypeAlias = Annotated[
    Literal[
        "ADMISSION_REJECT",
        "QUEUE_FULL_DROP_LRU",
        "INVALID_PARAMS",
        "POOL_UNREADY",
        "POOL_UNAVAILABLE",
        "REPLICA_EXHAUSTED",
        "DECODE_TIMEOUT",
        "WORKER_RESET",
        "INTERNAL",
        "DEADLINE_UNMET",
        "MODEL_DEPRECATED",
        "UNTRUSTED_ARTIFACT",
    ],
    Meta(description="Stable error codes; new ones come with a new API version only."),
]


ModelId: TypeAlias = Annotated[
    str,
    Meta(
        description="The name of a model in the catalog.",
        max_length=128,
        min_length=1,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*\Z",
    ),
]


PoolId: TypeAlias = Annotated[
    str,
    Meta(
        description="The name of a pool in the configuration.",
        max_length=63,
        min_length=1,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z",
    ),
]


ArtifactId: TypeAlias = Annotated[
    str,
    Meta(
        description="The name of an artifact, given by the service.",
        max_length=128,
        min_length=1,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*\Z",
    ),
]


Digest: TypeAlias = Annotated[
    str,
    Meta(
        description="An immutable content digest.",
        max_length=71,
        min_length=71,
        pattern=r"^sha256:[0-9a-f]{64}\Z",
    ),
]


Tag: TypeAlias = Annotated[str, Meta(max_length=128, min_length=1)]


Tags: TypeAlias = Annotated[list[Tag], Meta(description="Labels to find things by.", max_length=64)]
"""
Labels to find things by.
"""


class ErrorEnvelope(Open):
    """
    Every error of every operation.
    """

    code: ErrorCode
    message: Annotated[str, Meta(description="For people; names the field where one is at fault.")]
    engine: Engine | UnsetType = UNSET
    pool_id: Annotated[str, Meta(description="The pool that was involved.")] | UnsetType = UNSET
    retriable: (
        Annotated[bool, Meta(description="Whether the same request may succeed later.")] | UnsetType
    ) = UNSET
    retry_after_ms: (
        Annotated[
            int,
            Meta(
                description="Milliseconds until another try makes sense; present where it is retriable.",
                ge=0,
            ),
        ]
        | UnsetType
    ) = UNSET
    policy_label: (
        Annotated[
            str,
            Meta(
                description="The policy that decided, where one did.",
                pattern=r"^[a-z][a-z0-9-]*\Z",
            ),
        ]
        | UnsetType
    ) = UNSET


PoolState: TypeAlias = Annotated[
    Literal["Unloaded", "Preloading", "Ready", "Draining", "Unready"],
    Meta(description="Where a pool stands."),
]


class LastError(Open):
    """
    The cause of the last failure.
    """

    code: Annotated[str, Meta(description="What kind of failure.")]
    message: Annotated[str, Meta(description="For people.")]
    at_ms: Annotated[int, Meta(description="When; milliseconds since 1970 UTC.", ge=0)]


ReplicaState: TypeAlias = Annotated[
    Literal[
        "Unloaded",
        "Preloading",
        "SelfTest",
        "Ready",
        "Draining",
        "Unready",
        "Backoff",
        "Broken",
        "Stopped",
    ],
    Meta(description="Where a replica stands."),
]


class ReplicaHealth(Open):
    """
    How a replica is.
    """

    id: Annotated[str, Meta(description="Its id within the pool.")]
    state: ReplicaState
    cordoned: Annotated[bool, Meta(description="It gets no new work.")] | UnsetType = UNSET
    model_ref: Annotated[str, Meta(description="What it serves.")] | UnsetType = UNSET
    model_digest: Annotated[str, Meta(description="As its engine reported it.")] | UnsetType = UNSET
    engine_version: Annotated[str, Meta(description="As its engine reported it.")] | UnsetType = (
        UNSET
    )
    restarts: (
        Annotated[int, Meta(description="Starts of its engine after the first.", ge=0)] | UnsetType
    ) = UNSET
    failovers: (
        Annotated[int, Meta(description="Tasks that it took over from a lost worker.", ge=0)]
        | UnsetType
    ) = UNSET
    mismatches: (
        Annotated[
            int,
            Meta(
                description="Tasks that it decoded to other bytes than the worker before it.",
                ge=0,
            ),
        ]
        | UnsetType
    ) = UNSET
    last_error: LastError | UnsetType = UNSET


PoolManagerId: TypeAlias = Annotated[
    str,
    Meta(
        description="The name of a pool manager.",
        max_length=63,
        min_length=1,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z",
    ),
]


class ReportedError(Strict):
    """
    Why a replica was not Ready last.
    """

    code: Annotated[str, Meta(description="What kind of failure.", max_length=64, min_length=1)]
    message: Annotated[str, Meta(description="For people.", max_length=1024)]
    at_ms: Annotated[
        int,
        Meta(description="When; milliseconds since 1970 UTC.", ge=0, le=9007199254740991),
    ]


LabelsAdditionalProperty: TypeAlias = Annotated[str, Meta(max_length=253)]


class ReportedReplica(Strict):
    """
    One engine of a pool manager.
    """

    pool_id: PoolId
    id: Annotated[
        str,
        Meta(
            description="Its id with the manager; here it is called MANAGER.ID.",
            max_length=128,
            min_length=1,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z",
        ),
    ]
    url: Annotated[
        str,
        Meta(
            description="Where it listens; empty while it has not started. One that cannot be used leaves the replica Unready here.",
            max_length=2048,
        ),
    ]
    state: ReplicaState
    labels: (
        Annotated[
            dict[str, LabelsAdditionalProperty],
            Meta(
                description="Node, zone and whatever else is known of it.",
                max_length=64,
            ),
        ]
        | UnsetType
    ) = UNSET
    engine_version: (
        Annotated[str, Meta(description="As the engine reported it.", max_length=256)] | UnsetType
    ) = UNSET
    model_digest: (
        Annotated[str, Meta(description="As the engine reported it.", max_length=128)] | UnsetType
    ) = UNSET
    restarts: (
        Annotated[
            int,
            Meta(description="Starts of its engine after the first.", ge=0, le=2147483647),
        ]
        | UnsetType
    ) = UNSET
    last_error: ReportedError | UnsetType = UNSET


class PoolManagerReport(Strict):
    """
    What a pool manager runs.
    """

    lease_ms: Annotated[
        int,
        Meta(
            description="How long the report holds without another one.",
            ge=1000,
            le=600000,
        ),
    ]
    epoch: Annotated[
        str,
        Meta(
            description="Random at each start of the manager.",
            max_length=64,
            min_length=1,
        ),
    ]
    replicas: Annotated[list[ReportedReplica], Meta(description="All of them.", max_length=1024)]


class PoolManagerLease(Open):
    """
    What a registered manager is told.
    """

    lease_ms: Annotated[int, Meta(description="As asked for.", ge=1000, le=600000)]
    pools: Annotated[
        list[str],
        Meta(description="Pools whose engines come from managers (`managed`), ordered by name."),
    ]
    unknown_pools: (
        Annotated[
            list[str],
            Meta(description="Reported pools that are not among them; their replicas are ignored."),
        ]
        | UnsetType
    ) = UNSET


class PoolManager(Open):
    """
    A registered pool manager.
    """

    id: Annotated[str, Meta(description="Its name.")]
    lease_ms_remaining: Annotated[int, Meta(description="0 where it is going.", ge=0)]
    replicas: Annotated[int, Meta(description="Replicas of it that are in service or drain.", ge=0)]


class ReloadStatus(Open):
    """
    The last reload of the pool.
    """

    phase: Annotated[
        Literal[
            "idle",
            "preloading",
            "canary",
            "switching",
            "done",
            "rolling_back",
            "rolled_back",
            "failed",
        ],
        Meta(description="Where it stands."),
    ]
    old_model_ref: Annotated[str, Meta(description="What was served before.")] | UnsetType = UNSET
    new_model_ref: Annotated[str, Meta(description="What is to be served.")] | UnsetType = UNSET
    canary_percent: (
        Annotated[
            int,
            Meta(description="Share of the tasks that the new model gets.", ge=0, le=100),
        ]
        | UnsetType
    ) = UNSET
    message: (
        Annotated[str, Meta(description="For people; why it failed or was rolled back.")]
        | UnsetType
    ) = UNSET
    at_ms: (
        Annotated[
            int,
            Meta(description="When it came there; milliseconds since 1970 UTC.", ge=0),
        ]
        | UnsetType
    ) = UNSET


class Replica(Open):
    """
    A worker process of a set.
    """

    id: Annotated[str, Meta(description="Its id within the pool.")]
    pool_id: PoolId
    state: ReplicaState
    slots_total: (
        Annotated[int, Meta(description="Tasks it can decode at once.", ge=0)] | UnsetType
    ) = UNSET
    slots_free: (
        Annotated[
            int,
            Meta(
                description="Slots that a task may have now: those without one of ours that the engine does not show busy.",
                ge=0,
            ),
        ]
        | UnsetType
    ) = UNSET
    labels: (
        Annotated[
            dict[str, str],
            Meta(description="Node, zone and whatever else the configuration says of it."),
        ]
        | UnsetType
    ) = UNSET


class ReplicaSet(Open):
    """
    Replicas that give the same bytes for the same input.
    """

    id: Annotated[
        str,
        Meta(description="Stable as long as what identifies the set stays the same."),
    ]
    engine: Engine
    load: (
        Annotated[
            float,
            Meta(
                description="Busy slots over all slots; above 1 when tasks wait.",
                ge=0.0,
            ),
        ]
        | UnsetType
    ) = UNSET
    slots_total: (
        Annotated[int, Meta(description="Slots of all Ready replicas.", ge=0)] | UnsetType
    ) = UNSET
    slots_free: (
        Annotated[
            int,
            Meta(
                description="Slots that a task may have now: those without one of ours that the engine does not show busy.",
                ge=0,
            ),
        ]
        | UnsetType
    ) = UNSET
    slo: (
        Annotated[
            dict[str, float],
            Meta(
                description="What was measured lately (`slos.window_s`) in the pools that its replicas are in. `interactive.first_token_p95_ms`, `interactive.tokens_64_p95_ms`, `interactive.error_ratio`, `batch.throughput_ratio` and `batch.error_ratio` are in the unit that the name says; with `_attainment_ratio` behind it each is the share that met its objective, 0 to 1, once there are 20 samples. What was not measured is absent."
            ),
        ]
        | UnsetType
    ) = UNSET
    engine_version: Annotated[str, Meta(description="As the engines report it.")] | UnsetType = (
        UNSET
    )
    model_digest: (
        Annotated[
            str,
            Meta(description="As the engines report it; unknown where nobody can tell."),
        ]
        | UnsetType
    ) = UNSET
    replicas: (
        Annotated[list[Replica], Meta(description="The members, ordered by id.")] | UnsetType
    ) = UNSET


class DrainRequest(Strict):
    """
    How long running work may take.
    """

    deadline_ms: Annotated[
        int, Meta(description="From now, at most seven days.", ge=1, le=604800000)
    ]
    replica_id: (
        Annotated[
            str,
            Meta(
                description="Only this replica; absent for the whole pool.",
                max_length=192,
                min_length=1,
            ),
        ]
        | UnsetType
    ) = UNSET


class CordonRequest(Strict):
    """
    What it is about.
    """

    replica_id: (
        Annotated[
            str,
            Meta(
                description="Only this replica; absent for the whole pool.",
                max_length=192,
                min_length=1,
            ),
        ]
        | UnsetType
    ) = UNSET


class ConfigReloadRequest(Strict):
    """
    How to read the configuration again.
    """

    dry_run: Annotated[bool, Meta(description="Only say what would change.")] | UnsetType = UNSET


class ConfigState(Open):
    """
    The configuration that is in force.
    """

    revision: Annotated[int, Meta(description="Counts what was applied since the start.", ge=1)]
    config: Annotated[dict[str, Any], Meta(description="All keys of the configuration schema.")]
    digest: Digest | UnsetType = UNSET


class ConfigDifference(Open):
    """
    One key that changes.
    """

    key: Annotated[
        str,
        Meta(
            description="Where, such as pools[gpu0].queue.capacity; an entry of a list is named by its id."
        ),
    ]
    effect: Annotated[
        Literal["live", "replace", "add", "remove", "restart"],
        Meta(
            description="live: in force at once. replace: the pool's engines are drained and replaced. add, remove: of a pool. restart: needs a restart of the service, so the reload is refused."
        ),
    ]
    before: (
        Annotated[
            Any,
            Meta(description="The value that is in force; absent where the key is new."),
        ]
        | UnsetType
    ) = UNSET
    after: (
        Annotated[
            Any,
            Meta(description="The value in the file; absent where the key is gone."),
        ]
        | UnsetType
    ) = UNSET


class ConfigChange(Open):
    """
    What a reload did or would do.
    """

    applied: Annotated[bool, Meta(description="Whether it is in force now.")]
    revision: Annotated[int, Meta(description="The revision that is in force.", ge=1)]
    changes: Annotated[
        list[ConfigDifference],
        Meta(description="Every key that differs, in the order of the file."),
    ]
    warnings: (
        Annotated[list[str], Meta(description="Advice that the validation gave.")] | UnsetType
    ) = UNSET


class DeviceProcess(Open):
    """
    An engine's share of a GPU.
    """

    pool_id: PoolId
    replica_id: Annotated[str, Meta(description="Its replica.")]
    memory_used_bytes: Annotated[int, Meta(description="What it takes.", ge=0)] | UnsetType = UNSET


CanaryTenant: TypeAlias = Annotated[str, Meta(max_length=64, min_length=1)]


class ReloadRequest(Strict):
    """
    What to serve instead.
    """

    new_model_ref: Annotated[
        str,
        Meta(
            description="A digest, catalog name, file: or repo: reference.",
            max_length=512,
            min_length=1,
        ),
    ]
    deadline_ms: (
        Annotated[
            int,
            Meta(
                description="How long tasks on the old model may take to end after the switch; what is left then moves or ends. The default is 60 s.",
                ge=1,
                le=604800000,
            ),
        ]
        | UnsetType
    ) = UNSET
    canary_percent: (
        Annotated[
            int,
            Meta(
                description="Give the new model this share of the tasks and wait for promote or rollback; absent switches at once.",
                ge=1,
                le=99,
            ),
        ]
        | UnsetType
    ) = UNSET
    canary_tenants: (
        Annotated[
            list[CanaryTenant],
            Meta(
                description="Give the new model the tasks of these tenants and wait; with canary_percent also that share of the others' tasks.",
                max_length=64,
                min_length=1,
            ),
        ]
        | UnsetType
    ) = UNSET


class EngineCapabilities(Open):
    """
    What one engine offers here.
    """

    engine: Engine
    ctx_max: Annotated[int, Meta(description="The largest context of any of its pools.", ge=0)]
    supported_workloads: (
        Annotated[list[Workload], Meta(description="What can be asked.")] | UnsetType
    ) = UNSET
    rate_limits: (
        Annotated[
            dict[str, float],
            Meta(
                description="Tasks per second and client, by class; absent where there is no limit."
            ),
        ]
        | UnsetType
    ) = UNSET
    features: (
        Annotated[
            list[str],
            Meta(
                description="Names such as chat_template, embeddings, rerank, interruptible_decode."
            ),
        ]
        | UnsetType
    ) = UNSET
    model_refs: (
        Annotated[list[str], Meta(description="What a task's model_ref may name.")] | UnsetType
    ) = UNSET


class Capabilities(Open):
    """
    What this deployment offers.
    """

    api_version: Annotated[str, Meta(description="The version of this contract.")]
    engines: Annotated[
        list[EngineCapabilities],
        Meta(description="Every engine with a pool, ordered by name."),
    ]
    cpu_carve_out: (
        Annotated[
            bool,
            Meta(
                description="True where workers run without a GPU, which is for demos and CI only."
            ),
        ]
        | UnsetType
    ) = UNSET


class Manifest(Strict):
    """
    One file of a model.
    """

    digest: Digest
    size_bytes: (
        Annotated[int, Meta(description="Size of the file.", ge=0, le=9223372036854775807)]
        | UnsetType
    ) = UNSET


class Signature(Strict):
    """
    Who vouches for a model.
    """

    signer: Annotated[str, Meta(description="Who signed.", max_length=512)] | UnsetType = UNSET
    algo: Annotated[str, Meta(description="How.", max_length=64)] | UnsetType = UNSET
    verified: (
        Annotated[bool, Meta(description="What verification said; set by the service.")] | UnsetType
    ) = UNSET
    timestamp_ms: (
        Annotated[
            int,
            Meta(
                description="When; milliseconds since 1970 UTC.",
                ge=0,
                le=9223372036854775807,
            ),
        ]
        | UnsetType
    ) = UNSET


class Sbom(Strict):
    """
    Where the bill of materials is.
    """

    uri: Annotated[str, Meta(description="Its address.", max_length=2048)] | UnsetType = UNSET
    digest: Digest | UnsetType = UNSET


AllowedRegistry: TypeAlias = Annotated[str, Meta(max_length=512, min_length=1)]


CaRoot: TypeAlias = Annotated[str, Meta(max_length=65536, min_length=1)]


class TrustPolicy(Strict):
    """
    What a model has to bring along; the deployment's own policy cannot be weakened by it.
    """

    mode: (
        Annotated[
            Literal["strict", "permissive"],
            Meta(description="Strict refuses what cannot be verified."),
        ]
        | UnsetType
    ) = UNSET
    allowed_registries: (
        Annotated[
            list[AllowedRegistry],
            Meta(description="Where models may come from.", max_length=256),
        ]
        | UnsetType
    ) = UNSET
    require_signature: (
        Annotated[bool, Meta(description="At least one verified signature.")] | UnsetType
    ) = UNSET
    require_sbom: (
        Annotated[bool, Meta(description="An SBOM whose digest is right.")] | UnsetType
    ) = UNSET
    ca_roots: (
        Annotated[list[CaRoot], Meta(description="Who is trusted to sign.", max_length=256)]
        | UnsetType
    ) = UNSET


ModelState: TypeAlias = Annotated[
    Literal["Draft", "Active", "Canary", "Deprecated", "Retired"],
    Meta(description="Where a model stands in its life."),
]


class CatalogModel(Strict):
    """
    A model of the catalog.
    """

    id: ModelId
    digest: Digest
    source_url: (
        Annotated[str, Meta(description="Where it came from.", max_length=2048)] | UnsetType
    ) = UNSET
    version: Annotated[str, Meta(description="Its own version.", max_length=128)] | UnsetType = (
        UNSET
    )
    tags: Tags | UnsetType = UNSET
    manifests: (
        Annotated[list[Manifest], Meta(description="Its files.", max_length=4096)] | UnsetType
    ) = UNSET
    signatures: (
        Annotated[list[Signature], Meta(description="Who vouches for it.", max_length=64)]
        | UnsetType
    ) = UNSET
    sbom: Sbom | UnsetType = UNSET
    trust_policy: TrustPolicy | UnsetType = UNSET
    state: ModelState | UnsetType = UNSET


class ModelStateRequest(Strict):
    """
    Where the model shall go.
    """

    state: ModelState
    deadline_ms: (
        Annotated[int, Meta(description="How long its pools may drain.", ge=1, le=604800000)]
        | UnsetType
    ) = UNSET


ArtifactKind: TypeAlias = Annotated[
    Literal["plan", "summary", "diff", "trace", "other"],
    Meta(description="What it is."),
]


class Artifact(Strict):
    """
    Something a client keeps with the service.
    """

    kind: ArtifactKind
    content: Annotated[dict[str, Any], Meta(description="The thing itself.")]
    tags: Tags | UnsetType = UNSET
    parent: (
        Annotated[ArtifactId, Meta(description="The artifact it was made from.")] | UnsetType
    ) = UNSET
    metadata: (
        Annotated[dict[str, Any], Meta(description="Whatever the client wants to remember.")]
        | UnsetType
    ) = UNSET


class ArtifactRef(Open):
    """
    How to find an artifact again.
    """

    id: ArtifactId
    kind: ArtifactKind
    digest: Digest | UnsetType = UNSET
    created_ms: (
        Annotated[int, Meta(description="When; milliseconds since 1970 UTC.", ge=0)] | UnsetType
    ) = UNSET
    tags: Tags | UnsetType = UNSET


class PoolHealth(Open):
    """
    How a pool is.
    """

    live: (
        Annotated[bool, Meta(description="Its manager is alive and looks after it.")] | UnsetType
    ) = UNSET
    ready: (
        Annotated[bool, Meta(description="It takes work; at least one replica is Ready.")]
        | UnsetType
    ) = UNSET
    draining: (
        Annotated[bool, Meta(description="It finishes what runs and takes no more.")] | UnsetType
    ) = UNSET
    metrics: (
        Annotated[
            dict[str, float],
            Meta(description="A snapshot of its figures under the names of the metrics contract."),
        ]
        | UnsetType
    ) = UNSET
    last_error: LastError | UnsetType = UNSET
    state: PoolState | UnsetType = UNSET
    model_ref: (
        Annotated[str, Meta(description="What it serves to those that ask for its model.")]
        | UnsetType
    ) = UNSET
    replicas: (
        Annotated[list[ReplicaHealth], Meta(description="Its replicas, ordered by id.")] | UnsetType
    ) = UNSET
    reload: ReloadStatus | UnsetType = UNSET


class Device(Open):
    """
    One GPU.
    """

    index: Annotated[int, Meta(description="In the order of the PCI bus.", ge=0)]
    uuid: Annotated[str, Meta(description="Of the GPU or of the MIG instance.")] | UnsetType = UNSET
    name: Annotated[str, Meta(description="What it is.")] | UnsetType = UNSET
    lost: Annotated[bool, Meta(description="It does not answer.")] | UnsetType = UNSET
    memory_total_bytes: Annotated[int, Meta(description="All of its memory.", ge=0)] | UnsetType = (
        UNSET
    )
    memory_used_bytes: Annotated[int, Meta(description="In use by anybody.", ge=0)] | UnsetType = (
        UNSET
    )
    utilization_percent: (
        Annotated[int, Meta(description="Share of time in which it worked.", ge=0, le=100)]
        | UnsetType
    ) = UNSET
    temperature_celsius: Annotated[int, Meta(description="Its temperature.")] | UnsetType = UNSET
    power_watts: Annotated[float, Meta(description="What it draws.", ge=0.0)] | UnsetType = UNSET
    sm_clock_mhz: (
        Annotated[int, Meta(description="Clock of its multiprocessors.", ge=0)] | UnsetType
    ) = UNSET
    throttle_reasons: (
        Annotated[list[str], Meta(description="Why it is slowed down; empty where it is not.")]
        | UnsetType
    ) = UNSET
    ecc_errors: (
        Annotated[int, Meta(description="Uncorrected since the driver was loaded.", ge=0)]
        | UnsetType
    ) = UNSET
    mig: Annotated[bool, Meta(description="It is divided into MIG instances.")] | UnsetType = UNSET
    numa_node: Annotated[int, Meta(description="The node that it hangs on.")] | UnsetType = UNSET
    processes: (
        Annotated[list[DeviceProcess], Meta(description="Engines of ours on it.")] | UnsetType
    ) = UNSET


class Devices(Open):
    """
    All GPUs of this host.
    """

    devices: Annotated[list[Device], Meta(description="Ordered by index.")]
    driver_version: Annotated[str, Meta(description="Of the NVIDIA driver.")] | UnsetType = UNSET
    message: Annotated[str, Meta(description="Why there is nothing to be seen.")] | UnsetType = (
        UNSET
    )
