"""Types of OrchQueue v1 1.0.0. Generated from contracts/openapi/data.yaml; do not edit."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, UnsetType
from orchqueue_v1.strict import Open, Strict

Uuid: TypeAlias = Annotated[
    str,
    Meta(
        description="A UUID in its 36-character form (RFC 9562). Letter case is not significant; answers have it in lower case.",
        max_length=36,
        min_length=36,
        pattern=r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\Z",
    ),
]


Engine: TypeAlias = Annotated[
    Literal["llamacpp", "vllm", "tgi", "triton"],
    Meta(description="The closed list of engines."),
]


Workload: TypeAlias = Annotated[
    Literal["completion", "embedding", "rerank"],
    Meta(description="What is asked of the model."),
]


Priority: TypeAlias = Annotated[
    Literal["interactive", "batch"],
    Meta(
        description="The admission class; interactive goes before batch by weight, and neither starves."
    ),
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


class Message(Strict):
    """
    One message of a conversation.
    """

    role: Annotated[Literal["system", "user", "assistant"], Meta(description="Who speaks.")]
    content: Annotated[str, Meta(description="What is said.", max_length=67108864)]


StopItem: TypeAlias = Annotated[str, Meta(max_length=256, min_length=1)]


class SamplingParams(Strict):
    """
    Overrides the sampler profile field by field; what is absent comes from the profile.
    """

    temperature: (
        Annotated[
            float,
            Meta(description="0 always takes the likeliest token.", ge=0.0, le=2.0),
        ]
        | UnsetType
    ) = UNSET
    top_p: (
        Annotated[float, Meta(description="Nucleus sampling; 1 is off.", ge=0.0, le=1.0)]
        | UnsetType
    ) = UNSET
    top_k: (
        Annotated[
            int,
            Meta(description="Keep the k likeliest tokens; 0 is off.", ge=0, le=1000000),
        ]
        | UnsetType
    ) = UNSET
    min_p: (
        Annotated[
            float,
            Meta(
                description="Drop tokens below this share of the likeliest; 0 is off.",
                ge=0.0,
                le=1.0,
            ),
        ]
        | UnsetType
    ) = UNSET
    repeat_penalty: (
        Annotated[
            float,
            Meta(
                description="Above 1 discourages repetition; 1 is off.",
                ge=0.01,
                le=10.0,
            ),
        ]
        | UnsetType
    ) = UNSET
    stop: (
        Annotated[
            list[StopItem],
            Meta(
                description="Decoding ends before the first of these texts.",
                max_length=16,
            ),
        ]
        | UnsetType
    ) = UNSET


Input: TypeAlias = Annotated[str, Meta(max_length=67108864, min_length=1)]


class TaskRequest(Strict):
    """
    A task to be admitted.
    """

    task_id: Annotated[
        Uuid,
        Meta(
            description="Chosen by the client and unique per tenant; makes a repeated submission harmless."
        ),
    ]
    session_id: Annotated[
        Uuid,
        Meta(
            description="Tasks of one session share KV and budgets; an unknown id begins a session."
        ),
    ]
    workload: Workload
    model_ref: Annotated[
        str,
        Meta(
            description="A pool's model, or the digest or catalog name it resolves to.",
            max_length=512,
            min_length=1,
        ),
    ]
    engine: Engine
    ctx: Annotated[
        int,
        Meta(
            description="Tokens of context that the task needs, prompt and answer together.",
            ge=1,
            le=2147483647,
        ),
    ]
    priority: Priority
    max_tokens: Annotated[
        int,
        Meta(description="At most this many tokens are decoded.", ge=1, le=2147483647),
    ]
    deadline_ms: Annotated[
        int,
        Meta(
            description="Milliseconds from admission to the last token, at most seven days.",
            ge=1,
            le=604800000,
        ),
    ]
    seed: (
        Annotated[
            int,
            Meta(
                description="Makes sampling reproducible; derived from the task id when absent.",
                ge=0,
                le=9223372036854775807,
            ),
        ]
        | UnsetType
    ) = UNSET
    determinism: (
        Annotated[
            Literal["strict", "best_effort"],
            Meta(
                description="strict gives the same bytes for the same input within a replica set, also over a failover; best_effort may reuse a warm prefix and is restarted only while nothing was sent."
            ),
        ]
        | UnsetType
    ) = "strict"
    sampler_profile_version: (
        Annotated[
            str,
            Meta(
                description="The sampler profile; the pool's own when absent.",
                max_length=64,
                min_length=1,
            ),
        ]
        | UnsetType
    ) = UNSET
    prompt: (
        Annotated[
            str,
            Meta(
                description="Given to the engine as it is (completion), or the query (rerank).",
                max_length=67108864,
                min_length=1,
            ),
        ]
        | UnsetType
    ) = UNSET
    inputs: (
        Annotated[
            list[Input],
            Meta(
                description="Texts to embed, or documents to rank.",
                max_length=4096,
                min_length=1,
            ),
        ]
        | UnsetType
    ) = UNSET
    messages: (
        Annotated[
            list[Message],
            Meta(
                description="A conversation instead of a prompt.",
                max_length=4096,
                min_length=1,
            ),
        ]
        | UnsetType
    ) = UNSET
    sampling: SamplingParams | UnsetType = UNSET
    expected_tokens: (
        Annotated[
            int,
            Meta(
                description="What the client expects to be decoded; fairness and the predicted start count this instead of max_tokens.",
                ge=0,
                le=2147483647,
            ),
        ]
        | UnsetType
    ) = UNSET
    kv_hint: (
        Annotated[
            Literal["reuse", "cold"],
            Meta(
                description="Whether reuse of the session's KV is wanted; a strict task is decoded cold unless its pool proves otherwise."
            ),
        ]
        | UnsetType
    ) = UNSET


class AdmissionResponse(Open):
    """
    The promise made at admission.
    """

    task_id: Uuid
    queue_position: Annotated[
        int,
        Meta(description="Tasks that go first; 0 is next, or decoding already.", ge=0),
    ]
    predicted_start_ms: Annotated[
        int,
        Meta(description="Milliseconds until decoding is predicted to begin.", ge=0),
    ]
    backoff_ms: Annotated[
        int,
        Meta(
            description="How long to wait before the next submission; 0 when there is room.",
            ge=0,
        ),
    ]


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
                description="The policy that decided: reject, drop-lru or shed-low-priority at a full queue, otherwise rate-limit, quota, budget, circuit-breaker or another name of the same kind.",
                pattern=r"^[a-z][a-z0-9-]*\Z",
            ),
        ]
        | UnsetType
    ) = UNSET


class Share(Open):
    """
    What its tenant and priority got lately against what their weights promise, 0 to 1.
    """

    observed: (
        Annotated[float, Meta(description="Share of the decoded cost lately.", ge=0.0, le=1.0)]
        | UnsetType
    ) = UNSET
    entitled: (
        Annotated[
            float,
            Meta(
                description="What its weight is of all weights with work.",
                ge=0.0,
                le=1.0,
            ),
        ]
        | UnsetType
    ) = UNSET


class TaskDecision(Open):
    """
    One decision and what it was taken from.
    """

    at_ms: Annotated[int, Meta(description="When; milliseconds since 1970 UTC.", ge=0)]
    decision: Annotated[
        Literal[
            "admitted",
            "refused",
            "dispatched",
            "preempted",
            "resumed",
            "moved",
            "evicted",
            "canceled",
            "ended",
        ],
        Meta(description="What was decided."),
    ]
    reason: Annotated[
        str,
        Meta(
            description="Why, in one word or two, such as fair-turn, free-slot, deadline, rate-limit."
        ),
    ]
    values: Annotated[
        dict[str, Any],
        Meta(
            description="The values that decided, such as score, share, slack_ms, tokens, weight; names carry their units."
        ),
    ]


class DeterminismReport(Open):
    """
    What a strict stream can be decoded again and compared with.
    """

    task_id: Uuid
    key: Annotated[
        str,
        Meta(
            description="Digest of prompt, parameters, seed, sampler profile, engine version and model digest."
        ),
    ]
    seed: Annotated[int, Meta(description="The seed that was decoded with.", ge=0)]
    engine_version: Annotated[str, Meta(description="Of the engine that decoded it.")]
    model_digest: Annotated[str, Meta(description="Of the model that decoded it.")]
    sha256: Annotated[
        str, Meta(description="Of the whole text in UTF-8.", pattern=r"^[0-9a-f]{64}\Z")
    ]
    tokens_out: Annotated[int, Meta(description="Tokens of the stream.", ge=0)]
    request: TaskRequest
    sampler_profile_version: (
        Annotated[str, Meta(description="The sampler profile.")] | UnsetType
    ) = UNSET


class SessionInfo(Open):
    """
    What is left of a session. A budget's field is absent where none is set.
    """

    ttl_ms_remaining: (
        Annotated[
            int,
            Meta(description="Milliseconds until the session ends by itself.", ge=0),
        ]
        | UnsetType
    ) = UNSET
    turns: Annotated[int, Meta(description="Tasks admitted so far.", ge=0)] | UnsetType = UNSET
    kv_bytes: (
        Annotated[int, Meta(description="Memory that the session's KV takes.", ge=0)] | UnsetType
    ) = UNSET
    kv_warmth: (
        Annotated[bool, Meta(description="Whether the next task can reuse KV.")] | UnsetType
    ) = UNSET
    tokens_budget_remaining: Annotated[int, Meta(description="Tokens left.", ge=0)] | UnsetType = (
        UNSET
    )
    time_budget_remaining_ms: (
        Annotated[int, Meta(description="Decode milliseconds left.", ge=0)] | UnsetType
    ) = UNSET
    cost_budget_remaining: Annotated[float, Meta(description="Cost left.", ge=0.0)] | UnsetType = (
        UNSET
    )


class StreamEvent(Open):
    """
    One server-sent event. `data` is one line of JSON: StreamStarted, StreamToken, StreamMetrics, StreamEnd or
    StreamError, as `event` says.

    """

    event: Annotated[
        Literal["started", "token", "metrics", "end", "error"],
        Meta(description="The kind of event."),
    ]
    data: Annotated[str, Meta(description="JSON, without a line break.")]
    id: (
        Annotated[
            str,
            Meta(
                description="The place in the stream: started 1, token i i+2, end and error tokens_out+2; absent on metrics.",
                pattern=r"^[1-9][0-9]{0,18}\Z",
            ),
        ]
        | UnsetType
    ) = UNSET


class StreamStarted(Open):
    """
    Decoding begins; repeats the numbers of the 202.
    """

    queue_position: Annotated[int, Meta(description="As promised at admission.", ge=0)]
    predicted_start_ms: Annotated[int, Meta(description="As promised at admission.", ge=0)]


class StreamToken(Open):
    """
    One token; a Unicode character is never cut in two.
    """

    t: Annotated[str, Meta(description="The text of the token.", min_length=1)]
    i: Annotated[int, Meta(description="Its place, counted from 0.", ge=0)]


class StreamMetrics(Open):
    """
    How the task is doing. Ephemeral; fields may be added, and each is present only where it is known.
    """

    on_time_probability: (
        Annotated[float, Meta(description="That the deadline is met.", ge=0.0, le=1.0)] | UnsetType
    ) = UNSET
    queue_depth: (
        Annotated[int, Meta(description="Tasks that wait in the pool.", ge=0)] | UnsetType
    ) = UNSET
    kv_warmth: (
        Annotated[
            bool,
            Meta(description="Whether a prefix was reused; false after a failover."),
        ]
        | UnsetType
    ) = UNSET
    kv_migrated: (
        Annotated[bool, Meta(description="Always false; KV never moves between workers.")]
        | UnsetType
    ) = UNSET
    failovers: (
        Annotated[int, Meta(description="How often the task changed its replica.", ge=0)]
        | UnsetType
    ) = UNSET
    preempted: (
        Annotated[
            bool,
            Meta(description="Whether the task is interrupted for a more urgent one."),
        ]
        | UnsetType
    ) = UNSET
    resumable: (
        Annotated[
            bool,
            Meta(description="Beside preempted: true; the task goes on where its stream ends."),
        ]
        | UnsetType
    ) = UNSET
    tokens_out: Annotated[int, Meta(description="Tokens sent so far.", ge=0)] | UnsetType = UNSET
    engine_version: Annotated[str, Meta(description="The engine that decodes.")] | UnsetType = UNSET
    model_digest: Annotated[str, Meta(description="The model that decodes.")] | UnsetType = UNSET
    replica_id: Annotated[str, Meta(description="The replica that decodes.")] | UnsetType = UNSET
    tokens_budget_remaining: (
        Annotated[int, Meta(description="Tokens left to the session.", ge=0)] | UnsetType
    ) = UNSET
    time_budget_remaining_ms: (
        Annotated[int, Meta(description="Decode time left to the session.", ge=0)] | UnsetType
    ) = UNSET
    cost_budget_remaining: (
        Annotated[float, Meta(description="Cost left to the session.", ge=0.0)] | UnsetType
    ) = UNSET


class TaskResult(Open):
    """
    What an embedding or a rerank gives; completions have none.
    """

    embeddings: (
        Annotated[list[list[float]], Meta(description="One vector for each input, in order.")]
        | UnsetType
    ) = UNSET
    scores: (
        Annotated[list[float], Meta(description="One score for each document, in order.")]
        | UnsetType
    ) = UNSET


class StreamEnd(Open):
    """
    The task is done, or was cancelled.
    """

    tokens_out: Annotated[int, Meta(description="Tokens that were sent.", ge=0)]
    decode_ms: Annotated[int, Meta(description="From the start of decoding to its end.", ge=0)]
    canceled: (
        Annotated[bool, Meta(description="True when a cancel ended the task.")] | UnsetType
    ) = UNSET
    result: TaskResult | UnsetType = UNSET


class StreamError(Open):
    """
    The task failed; nothing follows.
    """

    code: ErrorCode
    message: Annotated[str, Meta(description="For people.")]
    engine: Engine
    pool_id: Annotated[str, Meta(description="The pool that was involved.")] | UnsetType = UNSET
    retriable: (
        Annotated[
            bool,
            Meta(description="Whether the same request under a new task id may succeed later."),
        ]
        | UnsetType
    ) = UNSET
    retry_after_ms: (
        Annotated[int, Meta(description="Milliseconds until another try makes sense.", ge=0)]
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


class TaskExplanation(Open):
    """
    Why a task is where it is.
    """

    task_id: Uuid
    state: Annotated[
        Literal["waiting", "running", "ended", "refused"],
        Meta(description="Where it is now."),
    ]
    summary: Annotated[
        str,
        Meta(description="One or two sentences for people, with the figures that decided."),
    ]
    decisions: Annotated[
        list[TaskDecision], Meta(description="In the order in which they were taken.")
    ]
    tenant: Annotated[str, Meta(description="Whose it is.")] | UnsetType = UNSET
    priority: Annotated[str, Meta(description="Its class.")] | UnsetType = UNSET
    pool_id: Annotated[str, Meta(description="Where it was admitted.")] | UnsetType = UNSET
    replica_id: Annotated[str, Meta(description="Where it runs or ran last.")] | UnsetType = UNSET
    queue_position: (
        Annotated[
            int,
            Meta(description="Tasks before it now; absent where it does not wait.", ge=0),
        ]
        | UnsetType
    ) = UNSET
    predicted_start_ms: (
        Annotated[int, Meta(description="From now; absent where it does not wait.", ge=0)]
        | UnsetType
    ) = UNSET
    slack_ms: (
        Annotated[
            int,
            Meta(
                description="Until its deadline after the expected end; negative where it will be late. Absent while the speed is not known."
            ),
        ]
        | UnsetType
    ) = UNSET
    on_time_probability: (
        Annotated[float, Meta(description="That it ends before its deadline.", ge=0.0, le=1.0)]
        | UnsetType
    ) = UNSET
    share: (
        Annotated[
            Share,
            Meta(
                description="What its tenant and priority got lately against what their weights promise, 0 to 1."
            ),
        ]
        | UnsetType
    ) = UNSET
