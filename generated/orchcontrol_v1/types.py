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


class Replica(Open):
    """
    A worker process of a set.
    """

    id: Annotated[str, Meta(description="Its id within the pool.")]
    pool_id: PoolId
    state: PoolState
    slots_total: (
        Annotated[int, Meta(description="Tasks it can decode at once.", ge=0)] | UnsetType
    ) = UNSET
    slots_free: Annotated[int, Meta(description="Slots without a task.", ge=0)] | UnsetType = UNSET
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
    slots_free: Annotated[int, Meta(description="Slots without a task.", ge=0)] | UnsetType = UNSET
    slo: (
        Annotated[
            dict[str, float],
            Meta(description="What was measured lately, by name of the objective."),
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
