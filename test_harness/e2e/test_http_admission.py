"""POST /v1/tasks: the 202, and every request that is refused before it enters a queue."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from harness_kit.contract_files import schema
from harness_kit.gated_engine import GatedEngine, words_by_seed
from harness_kit.http_probe import Answer, HttpProbe, task, text_of
from harness_kit.service_process import MODEL, ServiceProcess, external_pool

MAX_BODY_BYTES = 65_536
POOL_CTX = 4096  # below what the engine offers: the pool's own limit decides


@pytest.fixture(scope="module")
def engine() -> Iterator[GatedEngine]:
    with GatedEngine(slots=4, embeddings=True) as running:
        yield running


@pytest.fixture(scope="module")
def service(
    engine: GatedEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    directory = tmp_path_factory.mktemp("admission")
    pool = external_pool(engine.url, ctx=POOL_CTX)
    limits = {"max_body_bytes": MAX_BODY_BYTES}
    with ServiceProcess(directory, pool, server=limits) as running:
        yield running


@pytest.fixture
def probe(service: ServiceProcess) -> Iterator[HttpProbe]:
    with service.probe() as client:
        yield client


def assert_refused(answer: Answer, field: str, status: int = 400) -> dict[str, Any]:
    """INVALID_PARAMS whose message begins with the field."""
    envelope: dict[str, Any] = answer.json()
    assert (answer.status, envelope["code"]) == (status, "INVALID_PARAMS"), envelope
    assert envelope["message"].startswith(f"{field}: "), envelope["message"]
    assert envelope["retriable"] is False
    assert "retry-after" not in answer.headers
    return envelope


# --- the 202 ------------------------------------------------------------------------------------


@pytest.mark.req("ORCH-2001")
def test_a_task_is_answered_202_with_its_promise(probe: HttpProbe) -> None:
    document = task(MODEL)

    answer = probe.post("/v1/tasks", document)

    assert answer.status == 202
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-queue-position"] == "0"
    assert answer.headers["x-queue-eta-ms"] == "0"
    assert "x-budget-tokens-remaining" not in answer.headers
    assert answer.json() == {
        "task_id": document["task_id"],
        "queue_position": 0,
        "predicted_start_ms": 0,
        "backoff_ms": 0,
    }


@pytest.mark.req("ORCH-3024")
@pytest.mark.req("ORCH-2001", partial="that every check comes before the queue")
def test_the_same_body_again_gives_the_same_202_and_stays_one_task(
    probe: HttpProbe, engine: GatedEngine
) -> None:
    document = task(MODEL, prompt="sent three times")
    bodies = [
        json.dumps(document).encode(),
        json.dumps(document, indent=2).encode(),
        json.dumps(dict(reversed(document.items()))).encode(),
    ]
    fields = {"Content-Type": "application/json"}

    answers = [probe.request("POST", "/v1/tasks", body, fields) for body in bodies]
    probe.stream(document["task_id"]).rest()
    after_its_end = probe.post("/v1/tasks", document)

    assert {answer.status for answer in (*answers, after_its_end)} == {202}
    assert len({answer.body for answer in (*answers, after_its_end)}) == 1
    assert [d.body["prompt"] for d in engine.decodes].count("sent three times") == 1
    assert probe.get(f"/v1/sessions/{document['session_id']}").json()["turns"] == 1


@pytest.mark.req("ORCH-3024")
def test_the_same_task_from_many_connections_at_once_is_one_task(
    service: ServiceProcess, engine: GatedEngine
) -> None:
    document = task(MODEL, prompt="sent at once")
    together = threading.Barrier(8)
    answers: list[Answer] = []

    def submit() -> None:
        with service.probe() as client:
            client.get("/livez")
            together.wait(10)
            answers.append(client.post("/v1/tasks", document))

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    with service.probe() as client:
        client.stream(document["task_id"]).rest()

    assert [answer.status for answer in answers] == [202] * 8
    assert len({answer.body for answer in answers}) == 1
    assert [d.body["prompt"] for d in engine.decodes].count("sent at once") == 1


@pytest.mark.req("ORCH-3024", partial="all but one case of a repeated id")
def test_letter_case_of_an_id_makes_no_other_task(probe: HttpProbe) -> None:
    document = task(MODEL, task_id="ABCDEF00-1111-4222-8333-444455556666")

    assert probe.post("/v1/tasks", document).json()["task_id"] == document["task_id"].lower()
    events = probe.stream(document["task_id"].lower()).rest()
    as_written = probe.stream(document["task_id"]).rest()

    assert [event.raw for event in events if event.id] == [e.raw for e in as_written if e.id]


@pytest.mark.req("ORCH-3024")
@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize(
    "other", [{"prompt": "other"}, {"seed": 43}, {"max_tokens": 9}, {"sampling": {"top_k": 1}}]
)
def test_the_same_id_with_another_body_is_409(probe: HttpProbe, other: dict[str, Any]) -> None:
    document = task(MODEL)
    assert probe.post("/v1/tasks", document).status == 202

    answer = probe.post("/v1/tasks", document | other)

    assert_refused(answer, "task_id", status=409)


@pytest.mark.req("ORCH-3045", partial="what the engine answers")
def test_prompt_seed_and_sampling_reach_the_engine_as_they_are(
    probe: HttpProbe, engine: GatedEngine
) -> None:
    prompt = 'A "quoted" prompt\n\twith \\ and é and 🦙\u2028.'
    sampling = {"temperature": 0.5, "top_p": 0.25, "top_k": 7, "stop": ["\n\n"]}
    document = task(MODEL, prompt=prompt, seed=2**32 + 5, sampling=sampling)

    assert probe.post("/v1/tasks", document).status == 202
    probe.stream(document["task_id"]).rest()

    (asked,) = [d.body for d in engine.decodes if d.body["prompt"] == prompt]
    assert asked["seed"] == 5  # modulo 2**32
    assert asked["n_predict"] == 8
    assert {name: asked[name] for name in sampling} == sampling
    assert asked["cache_prompt"] is False  # a strict task is decoded cold


@pytest.mark.req("ORCH-3045", partial="what the engine answers")
def test_a_missing_seed_is_derived_from_the_task_id_alone(
    probe: HttpProbe, engine: GatedEngine
) -> None:
    seeds = []
    for prompt in ("seedless one", "seedless two"):
        document = task(MODEL, prompt=prompt, seed=None)
        assert probe.post("/v1/tasks", document).status == 202
        probe.stream(document["task_id"]).rest()
        seeds += [d.body["seed"] for d in engine.decodes if d.body["prompt"] == prompt]

    assert len(seeds) == 2
    assert seeds[0] != seeds[1]


@pytest.mark.req("ORCH-3058", partial="sampling")
def test_messages_go_through_the_engine_s_own_template(
    probe: HttpProbe, engine: GatedEngine
) -> None:
    messages = [{"role": "system", "content": "short"}, {"role": "user", "content": "hi there"}]
    document = task(MODEL, prompt=None, messages=messages)

    assert probe.post("/v1/tasks", document).status == 202
    events = probe.stream(document["task_id"]).rest()

    templated = "<system>short<user>hi there"
    assert templated in [d.body["prompt"] for d in engine.decodes]
    assert text_of(events) == "".join(words_by_seed(templated, 42, 8))


@pytest.mark.req("ORCH-2001", partial="that every check comes before the queue")
@pytest.mark.parametrize(
    ("fields", "result"),
    [
        (
            {"workload": "embedding", "inputs": ["four", "sixsix"]},
            {"embeddings": [[4.0, 1.0], [6.0, 1.0]]},
        ),
        (
            {"workload": "rerank", "prompt": "query", "inputs": ["a", "abc"]},
            {"scores": [1.0, 3.0]},
        ),
        ({"workload": "rerank", "inputs": ["query", "ab", "a"]}, {"scores": [2.0, 1.0]}),
    ],
    ids=["embedding", "rerank by prompt", "rerank by first input"],
)
def test_embedding_and_rerank_come_as_the_result_of_end(
    probe: HttpProbe, fields: dict[str, Any], result: dict[str, Any]
) -> None:
    document = task(MODEL, **({"prompt": None} | fields))

    assert probe.post("/v1/tasks", document).status == 202
    events = probe.stream(document["task_id"]).rest()

    names = [event.name for event in events if event.id is not None]
    assert names == ["started", "end"]
    assert events[-1].id == 2
    assert events[-1].data["result"] == result
    assert events[-1].data["tokens_out"] == 0


# --- bodies that are no task --------------------------------------------------------------------

_SCHEMA = schema("data", "TaskRequest")
_REQUIRED: list[str] = _SCHEMA["required"]
_PROPERTIES: dict[str, dict[str, Any]] = _SCHEMA["properties"]
_INTEGERS = sorted(n for n, p in _PROPERTIES.items() if p.get("type") == "integer")
_LISTS = sorted(n for n, p in _PROPERTIES.items() if p.get("type") == "array")
_OBJECTS = ["sampling"]
_TEXTS = sorted(set(_PROPERTIES) - set(_INTEGERS) - set(_LISTS) - set(_OBJECTS))


def wrong_values() -> Iterator[tuple[str, Any]]:
    """Every field with every JSON type that it is not."""
    for name in sorted(_PROPERTIES):
        values: list[Any] = [None, True, [1], {}]
        if name in _INTEGERS:
            values += ["1", 1.5, -1, 2**63, float(10**30)]
        elif name in _LISTS:
            values[2:3] = ["text", []]
        elif name in _OBJECTS:
            values[3:] = ["text", 3]
        else:
            values += [3, 1.5, ""]
        yield from ((name, value) for value in values)


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.req("OC-CTRL-2010", partial="all but one check")
@pytest.mark.parametrize(("field", "value"), list(wrong_values()), ids=lambda v: json.dumps(v)[:30])
def test_a_wrong_type_or_range_is_400_and_names_the_field(
    probe: HttpProbe, field: str, value: Any
) -> None:
    document = task(MODEL) | {field: value}

    answer = probe.post("/v1/tasks", document)

    assert_refused(answer, field)


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize("field", _REQUIRED)
def test_a_missing_field_is_400_and_is_named(probe: HttpProbe, field: str) -> None:
    answer = probe.post("/v1/tasks", task(MODEL, **{field: None}))

    assert_refused(answer, field)


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"temperature": 1.0}, "temperature"),
        ({"sampling": {"temprature": 1.0}}, "sampling.temprature"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0].name"),
    ],
)
def test_an_unknown_field_is_400_and_is_named(
    probe: HttpProbe, extra: dict[str, Any], named: str
) -> None:
    answer = probe.post("/v1/tasks", task(MODEL) | extra)

    envelope = answer.json()
    assert (answer.status, envelope["code"]) == (400, "INVALID_PARAMS")
    assert named.rpartition(".")[2] in envelope["message"]
    assert named.partition(".")[0].partition("[")[0] in envelope["message"]


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"ctx": 0}, "ctx"),
        ({"ctx": 2**31}, "ctx"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"deadline_ms": 604_800_001}, "deadline_ms"),
        ({"workload": "chat"}, "workload"),
        ({"priority": "urgent"}, "priority"),
        ({"engine": "sglang"}, "engine"),
        ({"determinism": "maybe"}, "determinism"),
        ({"kv_hint": "warm"}, "kv_hint"),
        ({"model_ref": "x" * 513}, "model_ref"),
        ({"task_id": "0" * 36}, "task_id"),
        ({"session_id": "not-a-uuid"}, "session_id"),
        ({"prompt": None, "messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"sampling": {"temperature": 2.1}}, "sampling.temperature"),
        ({"sampling": {"top_p": -0.1}}, "sampling.top_p"),
        ({"sampling": {"repeat_penalty": 0}}, "sampling.repeat_penalty"),
        ({"sampling": {"stop": [""]}}, "sampling.stop[0]"),
        ({"sampling": {"stop": ["x"] * 17}}, "sampling.stop"),
    ],
)
def test_a_value_out_of_its_range_is_400_and_named(
    probe: HttpProbe, fields: dict[str, Any], named: str
) -> None:
    answer = probe.post("/v1/tasks", task(MODEL, **fields))

    envelope = answer.json()
    assert (answer.status, envelope["code"]) == (400, "INVALID_PARAMS"), envelope
    assert envelope["message"].startswith(f"{named}: "), envelope["message"]


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.req("OC-CTRL-2010", partial="all but one check")
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": None}, "prompt"),
        ({"messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ({"inputs": ["x"]}, "inputs"),
        ({"workload": "embedding"}, "inputs"),
        ({"workload": "embedding", "prompt": None}, "inputs"),
        ({"workload": "rerank"}, "inputs"),
        ({"workload": "rerank", "prompt": None, "inputs": ["only a query"]}, "inputs"),
    ],
    ids=[
        "completion of nothing",
        "completion of both",
        "completion with inputs",
        "embedding of a prompt",
        "embedding of nothing",
        "rerank of nothing",
        "rerank without documents",
    ],
)
def test_a_workload_without_its_own_input_is_400(
    probe: HttpProbe, fields: dict[str, Any], named: str
) -> None:
    answer = probe.post("/v1/tasks", task(MODEL, **fields))

    assert_refused(answer, named)


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{}x",
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": NaN}',
        b"[" * 5000,
    ],
    ids=[
        "empty", "cut", "list", "null", "text", "trailing", "not UTF-8", "half a surrogate", "NaN",
        "deep",
    ],
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_400(probe: HttpProbe, body: bytes) -> None:
    answer = probe.request("POST", "/v1/tasks", body, {"Content-Type": "application/json"})

    envelope = answer.json()
    assert (answer.status, envelope["code"]) == (400, "INVALID_PARAMS")
    assert envelope["retriable"] is False


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "json"]
)
def test_another_media_type_is_415(probe: HttpProbe, media_type: str) -> None:
    body = json.dumps(task(MODEL)).encode()

    answer = probe.request("POST", "/v1/tasks", body, {"Content-Type": media_type})

    assert_refused(answer, "Content-Type", status=415)


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
def test_no_media_type_at_all_is_415(probe: HttpProbe) -> None:
    answer = probe.request("POST", "/v1/tasks", json.dumps(task(MODEL)).encode())

    assert_refused(answer, "Content-Type", status=415)


@pytest.mark.parametrize(
    "media_type", ["application/json; charset=utf-8", "Application/JSON", "application/json ;a=b"]
)
def test_parameters_and_letter_case_of_the_media_type_do_not_matter(
    probe: HttpProbe, media_type: str
) -> None:
    body = json.dumps(task(MODEL)).encode()

    answer = probe.request("POST", "/v1/tasks", body, {"Content-Type": media_type})

    assert answer.status == 202


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize("excess_bytes", [1, MAX_BODY_BYTES, 3 * MAX_BODY_BYTES])
def test_a_body_over_the_limit_is_read_and_answered_413(
    probe: HttpProbe, excess_bytes: int
) -> None:
    body = b" " * (MAX_BODY_BYTES + excess_bytes)

    answer = probe.request("POST", "/v1/tasks", body, {"Content-Type": "application/json"})
    next_one = probe.post("/v1/tasks", task(MODEL))

    assert_refused(answer, "body", status=413)
    assert next_one.status == 202
    assert probe.connections == 1


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
def test_a_body_of_exactly_the_limit_is_taken(probe: HttpProbe) -> None:
    body = json.dumps(task(MODEL)).encode().ljust(MAX_BODY_BYTES)

    answer = probe.request("POST", "/v1/tasks", body, {"Content-Type": "application/json"})

    assert answer.status == 202


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
def test_a_chunked_body_is_taken_and_bounded_as_well(probe: HttpProbe) -> None:
    def chunked(body: bytes) -> int:
        fields = "Transfer-Encoding: chunked\r\nContent-Type: application/json"
        head = f"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nX-API-Key: {probe.key}\r\n{fields}\r\n\r\n"
        pieces = [body[at : at + 9000] for at in range(0, len(body), 9000)]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        probe.send_raw(head.encode() + framed + b"0\r\n\r\n")
        return probe.read_answer().status

    small = chunked(json.dumps(task(MODEL)).encode())
    large = chunked(b" " * (MAX_BODY_BYTES + 1))
    again = chunked(json.dumps(task(MODEL)).encode())

    assert (small, large, again) == (202, 413, 202)


# --- what no pool can do ------------------------------------------------------------------------


@pytest.mark.req("ORCH-3014", "OC-CORE-1020")
def test_a_context_above_every_matching_pool_is_400(probe: HttpProbe) -> None:
    fits = probe.post("/v1/tasks", task(MODEL, ctx=POOL_CTX))
    answer = probe.post("/v1/tasks", task(MODEL, ctx=POOL_CTX + 1))

    assert fits.status == 202
    assert str(POOL_CTX) in assert_refused(answer, "ctx")["message"]


@pytest.mark.req("ORCH-3015", "OC-CORE-1021")
def test_prompt_and_answer_beyond_the_context_are_400(probe: HttpProbe) -> None:
    # The engine counts words: 60 of them, 240 bytes, so the bytes alone would not fit.
    prompt = "abc " * 60
    fits = probe.post("/v1/tasks", task(MODEL, prompt=prompt, ctx=100, max_tokens=40))
    answer = probe.post("/v1/tasks", task(MODEL, prompt=prompt, ctx=100, max_tokens=41))

    assert fits.status == 202
    envelope = answer.json()
    assert (answer.status, envelope["code"]) == (400, "INVALID_PARAMS")
    assert "max_tokens" in envelope["message"]
    assert "ctx" in envelope["message"]
    assert "60" in envelope["message"]


@pytest.mark.req("ORCH-3045", partial="all but which profiles exist")
def test_a_sampler_profile_that_no_pool_pins_is_400(probe: HttpProbe) -> None:
    answer = probe.post("/v1/tasks", task(MODEL, sampler_profile_version="v9"))

    assert_refused(answer, "sampler_profile_version")


@pytest.mark.req("ORCH-3018", partial="a pool whose engines are gone")
@pytest.mark.req("ORCH-2008", partial="the list itself, which is checked with the contract")
@pytest.mark.parametrize(
    "fields", [{"model_ref": "builtin:other"}, {"engine": "vllm"}], ids=["model", "engine"]
)
def test_no_pool_for_engine_and_model_is_503_with_a_retry_hint(
    probe: HttpProbe, fields: dict[str, Any]
) -> None:
    answer = probe.post("/v1/tasks", task(MODEL, **fields))

    envelope = answer.json()
    assert (answer.status, envelope["code"]) == (503, "POOL_UNAVAILABLE")
    assert envelope["retriable"] is True
    assert envelope["engine"] == fields.get("engine", "llamacpp")
    assert int(answer.headers["retry-after"]) >= 1
    assert int(answer.headers["x-backoff-ms"]) == envelope["retry_after_ms"]


@pytest.mark.req("ORCH-2001", "OC-CTRL-2010")
@pytest.mark.req("ORCH-3024", partial="all but one case of a repeated id")
def test_a_refused_task_leaves_nothing_behind(service: ServiceProcess, probe: HttpProbe) -> None:
    document = task(MODEL, ctx=POOL_CTX + 1)
    enqueued = service.metric("tasks_enqueued_total")

    assert probe.post("/v1/tasks", document).status == 400

    assert probe.stream(document["task_id"]).status == 404
    with service.probe() as fresh:
        assert fresh.get(f"/v1/sessions/{document['session_id']}").status == 404
        assert fresh.post("/v1/tasks", document | {"ctx": 100}).status == 202
    assert service.metric("tasks_enqueued_total") == enqueued + 1


@pytest.mark.req("ORCH-3079")
def test_a_deadline_shorter_than_the_task_itself_is_429_once_speed_is_known(
    service: ServiceProcess, probe: HttpProbe
) -> None:
    for _ in range(3):
        document = task(MODEL)
        assert probe.post("/v1/tasks", document).status == 202
        probe.stream(document["task_id"]).rest()

    # The engine says one millisecond a token: two thousand of them take two seconds.
    answer = probe.post("/v1/tasks", task(MODEL, ctx=4000, max_tokens=2000, deadline_ms=50))

    envelope = answer.json()
    assert (answer.status, envelope["code"]) == (429, "DEADLINE_UNMET")
    assert envelope["message"].startswith("deadline_ms: ")
    assert envelope["retriable"] is False
    assert int(answer.headers["retry-after"]) >= 1
    assert int(answer.headers["x-backoff-ms"]) >= 1
