"""llama.cpp's server behind `EngineClient`, over its native API only.

On a task's path: dispatch → **client** → connection. What probes ask (health, properties, slots,
metrics) goes over one session, work (tokenise, template, embed, rerank) over another: however many
slow calls run, a probe is answered. Invariants: the engine's OpenAI-compatible endpoints are never
called; every coroutine raises `EngineError` only; the model digest comes from the model file where
this host has it, from configuration otherwise. Requirements: ORCH-3054, ORCH-3058, ORCH-3032,
ORCH-2008, OC-ADAPT-5001, OC-ADAPT-5002, OC-ADAPT-5010, OC-ADAPT-5011.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from worker_adapters.adapter_api import metric_names
from worker_adapters.adapter_api.faults import malformed
from worker_adapters.adapter_api.http_control import (
    CALL_TIMEOUT_S,
    PROBE_CONNECTIONS_MAX,
    WORK_CONNECTIONS_MAX,
    ControlSession,
)
from worker_adapters.adapter_api.http_stream import UpstreamPool
from worker_adapters.adapter_api.origin import Origin
from worker_adapters.adapter_api.types import (
    UNKNOWN_DIGEST,
    Decode,
    DecodeRequest,
    EngineError,
    EngineFault,
    EngineProperties,
    Health,
    SlotState,
    TokenSink,
)
from worker_adapters.llamacpp_http.completion import (
    PINNED,
    SENT_PER_REQUEST,
    CompletionStream,
    completion_body,
    error_of,
)
from worker_adapters.llamacpp_http.model_file import ModelFile, ModelFiles
from worker_adapters.llamacpp_http.wire import (
    FlatEmbedding,
    IndexedEmbedding,
    Props,
    RerankAnswer,
    Slot,
    Templated,
    Tokens,
)

T = TypeVar("T")

WORK_TIMEOUT_S = 120.0  # embedding and reranking are work, not control; the watchdog is tighter

# Sent with each request (see `completion`), so a server's default for them changes nothing.
SENT_SETTINGS = (PINNED.keys() | SENT_PER_REQUEST) | {"max_tokens"}

METRICS = {
    "llamacpp:requests_processing": metric_names.REQUESTS_RUNNING,
    "llamacpp:requests_deferred": metric_names.REQUESTS_WAITING,
    "llamacpp:prompt_tokens_total": metric_names.PROMPT_TOKENS_TOTAL,
    "llamacpp:prompt_tokens_cached_total": metric_names.PROMPT_TOKENS_CACHED_TOTAL,
    "llamacpp:tokens_predicted_total": metric_names.GENERATED_TOKENS_TOTAL,
    "llamacpp:prompt_seconds_total": metric_names.PREFILL_SECONDS_TOTAL,
    "llamacpp:tokens_predicted_seconds_total": metric_names.DECODE_SECONDS_TOTAL,
    "llamacpp:prompt_tokens_seconds": metric_names.PREFILL_TOKENS_PER_S,
    "llamacpp:predicted_tokens_seconds": metric_names.DECODE_TOKENS_PER_S,
}


class LlamaCppAdapter:
    """The entry point `llamacpp`."""

    engine = "llamacpp"

    def __init__(self) -> None:
        self._files = ModelFiles()

    def connect(self, url: str, *, model_digest: str | None = None) -> LlamaCppClient:
        """A client for the server at `url`; opens no connection yet.

        Raises:
            ValueError: `url` is no usable http(s) URL.
        """
        return LlamaCppClient(Origin.of(url), self._files, model_digest)


class LlamaCppClient:
    """One llama.cpp server."""

    def __init__(self, origin: Origin, files: ModelFiles, model_digest: str | None) -> None:
        self._origin = origin
        self._files = files
        self._configured_digest = model_digest
        self._probing = ControlSession(origin, PROBE_CONNECTIONS_MAX)
        self._working = ControlSession(origin, WORK_CONNECTIONS_MAX)
        self._pool = UpstreamPool(origin)

    async def health(self, timeout_s: float) -> Health:
        """OK at 200, LOADING at 503, DOWN for every other answer or none within `timeout_s`."""
        try:
            status, _ = await self._probing.call("GET", "/health", timeout_s=timeout_s)
        except EngineError:
            return Health.DOWN
        if status == 200:
            return Health.OK
        return Health.LOADING if status == 503 else Health.DOWN

    async def properties(self) -> EngineProperties:
        """See `EngineProperties`; hashes the model file the first time it is seen."""
        props = await self._get("/props", Props)
        file = await self._model_file(props.model_path)
        features = {"interruptible_decode"}
        if props.chat_template:
            features.add("chat_template")
        if await self._offers("/embedding"):
            features.add("embeddings")
        if await self._offers("/rerank"):
            features.add("rerank")
        name, version, _ = split_alias(props.model_alias)
        return EngineProperties(
            engine_version=f"llama.cpp {version or props.build_info or 'unknown'}",
            model_digest=file.digest if file else self._configured_digest or UNKNOWN_DIGEST,
            model_name=name or props.model_path.rpartition("/")[2],
            slots_total=props.total_slots,
            ctx_max=props.default_generation_settings.n_ctx,
            kv_bytes_per_token=file.kv_bytes_per_token if file else 0,
            settings=settings_digest(props),
            features=frozenset(features),
        )

    async def count_tokens(self, text: str) -> int:
        """Tokens of `text` as a prompt: special tokens are read, and added as /completion does."""
        question = {"content": text, "add_special": True, "parse_special": True}
        return len((await self._post("/tokenize", question, Tokens)).tokens)

    async def apply_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt the model's own chat template makes of `messages`."""
        return (await self._post("/apply-template", {"messages": messages}, Templated)).prompt

    async def slots(self) -> list[SlotState]:
        """Every slot, in the engine's order."""
        return [
            SlotState(slot.id, slot.is_processing, slot.n_prompt_tokens)
            for slot in await self._get("/slots", list[Slot])
        ]

    async def metrics(self) -> dict[str, float]:
        """The server's figures under our names, and KV use computed from its slots."""
        status, body = await self._probing.call("GET", "/metrics")
        if status != 200:
            raise error_of(status, body)
        figures: dict[str, float] = {}
        try:
            for family in text_string_to_metric_families(body.decode()):
                for sample in family.samples:
                    name = METRICS.get(sample.name)
                    if name is not None:
                        figures[name] = sample.value
        except ValueError as error:
            raise malformed(f"metrics that cannot be read ({error})") from error
        slots = await self._get("/slots", list[Slot])
        cells = sum(slot.n_ctx for slot in slots)
        used = sum(slot.n_prompt_tokens for slot in slots)
        figures[metric_names.KV_CACHE_USAGE_RATIO] = min(1.0, used / cells) if cells else 0.0
        return figures

    async def embed(self, inputs: Sequence[str]) -> list[list[float]]:
        """One vector per input, in order.

        Raises:
            EngineError: UNSUPPORTED without embeddings, or when the server does not pool them.
        """
        question = msgspec.json.encode({"content": list(inputs)})
        status, body = await self._working.call(
            "POST", "/embedding", question, timeout_s=WORK_TIMEOUT_S
        )
        if status == 200 and body.lstrip().startswith(b"{"):
            rows = {0: [_read("/embedding", status, body, FlatEmbedding).embedding]}
        else:
            answer = _read("/embedding", status, body, list[IndexedEmbedding])
            rows = {row.index: row.embedding for row in answer}
        vectors: list[list[float]] = []
        for index in range(len(inputs)):
            row = rows.get(index)
            if not row:
                raise malformed(f"no embedding for input {index}")
            if len(row) > 1:
                raise EngineError(
                    EngineFault.UNSUPPORTED, "the engine does not pool embeddings (one per token)"
                )
            vectors.append(row[0])
        return vectors

    async def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        """One relevance score per document, in the order of `documents`."""
        question = {"query": query, "documents": list(documents)}
        answer = await self._post("/rerank", question, RerankAnswer, timeout_s=WORK_TIMEOUT_S)
        scores = {row.index: row.relevance_score for row in answer.results}
        if set(scores) != set(range(len(documents))):
            raise malformed("rerank scores that do not match the documents")
        return [scores[index] for index in range(len(documents))]

    def decode(self, request: DecodeRequest, sink: TokenSink) -> Decode:
        """Start a decode; `sink` is called later, never from in here."""
        stream = CompletionStream(request, sink)
        stream.carried_by(
            self._pool.post(
                "/completion",
                completion_body(request),
                stream,
                correlation_id=request.correlation_id,
                traceparent=request.traceparent,
            )
        )
        return stream

    async def close(self) -> None:
        """Close all connections; decodes that still run fail with RESET."""
        await self._pool.close()
        await self._probing.close()
        await self._working.close()

    async def _model_file(self, path: str) -> ModelFile | None:
        # Another host's path may exist here with other contents, so only our own host's counts.
        if self._origin.is_loopback and path.startswith("/"):
            return await self._files.inspect(path)
        return None

    async def _offers(self, path: str) -> bool:
        """Whether a workload is on: a body without input costs no work and is refused with 400
        where the endpoint works, with 501 or 404 where it does not."""
        status, _ = await self._probing.call("POST", path, b"{}")
        return status == 400

    async def _get(self, path: str, shape: type[T]) -> T:
        status, body = await self._probing.call("GET", path)
        return _read(path, status, body, shape)

    async def _post(
        self, path: str, question: object, shape: type[T], *, timeout_s: float = CALL_TIMEOUT_S
    ) -> T:
        status, body = await self._working.call(
            "POST", path, msgspec.json.encode(question), timeout_s=timeout_s
        )
        return _read(path, status, body, shape)


def _read(path: str, status: int, body: bytes, shape: type[T]) -> T:
    if status != 200:
        raise error_of(status, body)
    try:
        return msgspec.json.decode(body, type=shape)
    except ValueError as error:
        raise malformed(f"an answer to {path} that cannot be read ({error})") from error


def split_alias(alias: str) -> tuple[str, str, str]:
    """Name, version and settings of a model alias `NAME@VERSION+SETTINGS`; "" for what it lacks.

    llama.cpp from PyPI does not know its own version ("b0-unknown"), so our launcher puts it,
    and settings that change bytes but that /props does not show, into the alias.
    """
    name, _, rest = alias.partition("@")
    version, _, settings = rest.partition("+")
    return name, version, settings


def settings_digest(props: Props) -> str:
    """16 hex digits over what /props shows of settings that change output bytes."""
    defaults = props.default_generation_settings.params
    visible = {
        "params": {key: defaults[key] for key in defaults if key not in SENT_SETTINGS},
        "ftype": props.model_ftype,
        "template": props.chat_template,
        "bos": props.bos_token,
        "eos": props.eos_token,
        "launch": split_alias(props.model_alias)[2],
    }
    encoded = msgspec.json.encode(visible, order="deterministic")
    return hashlib.sha256(encoded).hexdigest()[:16]
