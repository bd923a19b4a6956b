"""The door of both planes: keys, correlation ids, pages and failures."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from harness_kit.service_world import ServiceWorld, run_world
from orchestratord.api.data_plane import DataPlane
from orchestratord.api.gate import Gate, correlation_id
from orchestratord.api.http_server import HttpConnection, HttpServer
from orchestratord.api.keys import KeyRing, Principal, hash_key
from orchestratord.api.public_pages import PublicPages
from orchestratord.services.determinism import DeterminismService

TASK = "00000000-0000-4000-8000-000000000001"
BODY = {
    "task_id": TASK,
    "session_id": TASK,
    "workload": "completion",
    "model_ref": "model",
    "engine": "llamacpp",
    "ctx": 512,
    "priority": "interactive",
    "max_tokens": 4,
    "deadline_ms": 60_000,
    "prompt": "Hello",
}
DATA = Principal("d", "acme", frozenset({"data"}))
OTHER = Principal("o", "umbra", frozenset({"data"}))
METRICS = Principal("m", "acme", frozenset({"metrics"}))
KEYS = {b"data-key": DATA, b"other-key": OTHER, b"metrics-key": METRICS}


class Wire(asyncio.Transport):
    """A client's socket: keeps what the service writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        """The client may send as it likes here."""

    def resume_reading(self) -> None:
        """As above."""


class Client:
    """Sends requests to a gate over one connection, without a network."""

    def __init__(
        self,
        world: ServiceWorld,
        *,
        metrics_public: bool = False,
        authenticated: bool = True,
        metrics: Callable[[], bytes] = lambda: b"figures",
    ) -> None:
        life = world.life
        ring = KeyRing([(hash_key(key, b"salt"), who) for key, who in KEYS.items()])
        data = DataPlane(
            life.jobs,
            life.admission,
            life.cancellation,
            life.sessions,
            life.hub,
            DeterminismService(life.journal),
            life.explanations,
        )
        pages = PublicPages(lambda: (False, "pool p: Preloading"), metrics)
        self.world = world
        self.telemetry = life.telemetry
        gate = Gate(
            data,
            None,
            pages,
            ring if authenticated else None,
            life.telemetry,
            1000,
            metrics_public,
        )
        server = HttpServer(gate, 1000, world.loop.time)
        self.wire = Wire()
        self.connection = HttpConnection(server)
        self.connection.connection_made(self.wire)

    async def send(
        self, method: str, path: str, body: bytes = b"", /, **headers: Any
    ) -> tuple[int, dict[str, str], bytes]:
        """One request, with the key of role data unless another one is given."""
        fields = {"host": "h", "x-api-key": "data-key"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        if body:
            fields |= {"content-length": str(len(body))}
            fields.setdefault("content-type", "application/json")
        head = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items() if v)]
        self.wire.written = b""
        self.connection.data_received("\r\n".join([*head, "", ""]).encode("latin-1") + body)
        await self.world.settle()
        answer, _, rest = self.wire.written.partition(b"\r\n\r\n")
        lines = answer.decode("latin-1").split("\r\n")
        found = dict(line.lower().split(": ", 1) for line in lines[1:])
        return int(lines[0].split()[1]), found, rest


def envelope(rest: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(rest)
    assert {"code", "message", "retriable"} <= found.keys()
    return found


class TestCorrelationIds:
    @pytest.mark.req("ORCH-2009", partial="all but the ids")
    @pytest.mark.parametrize("given", [b"a", b"!~", b"req-1/2=3", b"x" * 128])
    def test_up_to_128_visible_characters_are_kept(self, given: bytes) -> None:
        assert correlation_id(given) == given.decode()

    @pytest.mark.req("ORCH-2009", partial="all but the ids")
    @pytest.mark.parametrize(
        "given",
        [None, b"", b"x" * 129, b"a b", b" ", b"a\tb", b"a\x00", b"\x7f", b"\xc3\xa9", b"a\r"],
    )
    def test_anything_else_is_replaced(self, given: bytes | None) -> None:
        assert re.fullmatch("[0-9a-f]{32}", correlation_id(given))

    def test_minted_ids_never_repeat(self) -> None:
        assert len({correlation_id(None) for _ in range(1000)}) == 1000

    @pytest.mark.req("ORCH-2009")
    def test_every_answer_carries_it_and_the_log_line_too(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            client = Client(world)
            answers = [
                await client.send("POST", "/v1/tasks", json.dumps(BODY).encode(), **ID),
                await client.send("GET", f"/v1/tasks/{TASK}/stream", **ID),
            ]
            await world.advance(1.0)  # the stream ends, the connection is free again
            answers += [
                await client.send("GET", "/livez", **ID),
                await client.send("GET", "/nowhere", **ID),
                await client.send("GET", "/v1/sessions/x", **ID),
                await client.send("DELETE", "/v1/tasks", **ID),
                await client.send("GET", "/v1/sessions/x", **ID, x_api_key=""),
            ]

            assert [status for status, _, _ in answers] == [202, 200, 200, 404, 404, 405, 401]
            assert {headers["x-correlation-id"] for _, headers, _ in answers} == {"corr-1"}

        ID = {"x_correlation_id": "corr-1"}
        logs = run_world(scenario)

        lines = [line for line in logs if line["event"] in ("task.admitted", "task.ended")]
        assert [line["correlation_id"] for line in lines] == ["corr-1", "corr-1"]


class TestKeys:
    @pytest.mark.req("ORCH-3035", "OC-CTRL-2040")
    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"x_api_key": ""}, 401),
            ({"x_api_key": "", "authorization": "Basic data-key"}, 401),
            ({"x_api_key": "", "authorization": "Bearer "}, 401),
            ({"x_api_key": "", "authorization": "Bearer"}, 401),
            ({"x_api_key": "wrong"}, 403),
            ({"x_api_key": "", "authorization": "Bearer wrong"}, 403),
            ({"x_api_key": "metrics-key"}, 403),
            ({"x_api_key": "data-key"}, 404),
            ({"x_api_key": "", "authorization": "Bearer data-key"}, 404),
            ({"x_api_key": "", "authorization": "bearer   data-key"}, 404),
        ],
    )
    def test_a_missing_key_is_401_and_a_wrong_or_insufficient_one_403(
        self, headers: dict[str, str], status: int
    ) -> None:
        async def scenario(world: ServiceWorld) -> None:
            found, answered, rest = await Client(world).send(
                "GET", f"/v1/sessions/{TASK}", **headers
            )

            assert found == status
            expected = "INVALID_PARAMS" if status == 404 else "ADMISSION_REJECT"
            assert envelope(rest)["code"] == expected
            assert envelope(rest)["retriable"] is False
            assert ("www-authenticate" in answered) is (status == 401)

        run_world(scenario)

    @pytest.mark.req("ORCH-3035", "OC-CTRL-2040")
    def test_the_key_is_asked_for_before_the_body_is_looked_at(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            client = Client(world)

            assert (await client.send("POST", "/v1/tasks", b"{", x_api_key=""))[0] == 401
            assert (await client.send("POST", "/v1/tasks", b"x" * 2000, x_api_key="w"))[0] == 403
            assert (await client.send("POST", "/v1/tasks", b"x" * 2000))[0] == 413

        run_world(scenario)

    @pytest.mark.req("ORCH-3035")
    def test_what_belongs_to_another_tenant_does_not_exist(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            client = Client(world)
            await client.send("POST", "/v1/tasks", json.dumps(BODY).encode())
            theirs = {"x_api_key": "other-key"}

            for method, path in (
                ("GET", f"/v1/tasks/{TASK}/stream"),
                ("POST", f"/v1/tasks/{TASK}/cancel"),
                ("GET", f"/v1/sessions/{TASK}"),
                ("DELETE", f"/v1/sessions/{TASK}"),
            ):
                assert (await client.send(method, path, **theirs))[0] == 404
            assert (await client.send("GET", f"/v1/sessions/{TASK}"))[0] == 200

        run_world(scenario)

    def test_without_authentication_everybody_is_the_default_tenant(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            client = Client(world, authenticated=False)

            status, _, _ = await client.send(
                "POST", "/v1/tasks", json.dumps(BODY).encode(), x_api_key=""
            )

            assert status == 202
            assert world.life.jobs.get(f"default/{TASK}") is not None

        run_world(scenario)


class TestPages:
    @pytest.mark.parametrize(
        ("metrics_public", "key", "status"),
        [(False, "", 401), (False, "data-key", 403), (False, "metrics-key", 200), (True, "", 200)],
    )
    def test_metrics_need_their_role_unless_they_are_public(
        self, metrics_public: bool, key: str, status: int
    ) -> None:
        async def scenario(world: ServiceWorld) -> None:
            client = Client(world, metrics_public=metrics_public)

            found, _, rest = await client.send("GET", "/metrics", x_api_key=key)

            assert found == status
            assert (rest == b"figures") is (status == 200)

        run_world(scenario)

    def test_probes_are_open_and_readyz_says_what_is_missing(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            client = Client(world)

            assert (await client.send("GET", "/livez", x_api_key=""))[0] == 200
            status, headers, rest = await client.send("GET", "/readyz", x_api_key="")
            assert (status, headers["retry-after"]) == (503, "1")
            assert json.loads(rest) == {"ready": False, "why": "pool p: Preloading"}

        run_world(scenario)

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("POST", "/livez", "get, head"),
            ("DELETE", "/v1/tasks", "post"),
            ("PUT", f"/v1/sessions/{TASK}", "delete, get"),
        ],
    )
    def test_a_wrong_method_is_405_and_names_the_right_ones(
        self, method: str, path: str, allowed: str
    ) -> None:
        async def scenario(world: ServiceWorld) -> None:
            status, headers, rest = await Client(world).send(method, path)

            assert status == 405
            assert headers["allow"] == allowed
            assert envelope(rest)["message"].startswith(f"method: {method}")

        run_world(scenario)


class TestFailures:
    @pytest.mark.req("ORCH-2006", partial="all but one kind of error")
    @pytest.mark.req("OC-CTRL-2041", partial="all but one log line")
    def test_what_nobody_expected_is_an_envelope_without_details_and_a_log_line(self) -> None:
        def broken() -> bytes:
            raise RuntimeError("a secret path")

        async def scenario(world: ServiceWorld) -> None:
            client = Client(world, metrics=broken)
            status, headers, rest = await client.send("GET", "/metrics", x_api_key="metrics-key")

            assert status == 500
            assert envelope(rest)["code"] == "INTERNAL"
            assert b"secret" not in rest
            assert world.metric("errors_total", code="INTERNAL") == 1
            assert (await client.send("GET", "/livez"))[0] == 200
            seen.append(headers["x-correlation-id"])

        seen: list[str] = []
        logs = run_world(scenario)

        (line,) = (line for line in logs if line["event"] == "request.failed")
        assert line["correlation_id"] == seen[0]
        assert isinstance(line["exc_info"], RuntimeError)

    @pytest.mark.req("ORCH-2003", partial="all but the services' part")
    def test_a_cancel_that_could_not_be_written_is_answered_500(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            client = Client(world)
            await client.send("POST", "/v1/tasks", json.dumps(BODY).encode())
            world.life.journal.fail("disk full")

            status, _, rest = await client.send("POST", f"/v1/tasks/{TASK}/cancel")

            assert status == 500
            assert envelope(rest)["retriable"] is True
            assert envelope(rest)["retry_after_ms"] == 1000
            assert "disk full" not in envelope(rest)["message"]  # the log's, not the client's

        run_world(scenario)

    @pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
    def test_an_admission_that_could_not_be_written_is_answered_500_and_may_be_repeated(
        self,
    ) -> None:
        async def scenario(world: ServiceWorld) -> None:
            client = Client(world)
            world.life.journal.fail("disk full")
            status, _, rest = await client.send("POST", "/v1/tasks", json.dumps(BODY).encode())
            assert (status, envelope(rest)["code"]) == (500, "INTERNAL")
            assert envelope(rest)["retry_after_ms"] == 1000

            world.life.journal.fail(None)

            assert (await client.send("POST", "/v1/tasks", json.dumps(BODY).encode()))[0] == 202

        run_world(scenario)


class TestRequests:
    @pytest.mark.req("ORCH-2001", partial="that every check comes before the queue")
    @pytest.mark.req("ORCH-2003", partial="all but the services' part")
    @pytest.mark.req("ORCH-3024", partial="all but one case of a repeated id")
    def test_a_task_from_its_202_to_the_204_of_its_cancel(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            client = Client(world)
            data = json.dumps(BODY).encode()

            status, headers, rest = await client.send("POST", "/v1/tasks", data)
            again = await client.send("POST", "/v1/tasks", data)
            other = await client.send("POST", "/v1/tasks", data.replace(b"Hello", b"Hullo"))
            ended = [await client.send("POST", f"/v1/tasks/{TASK}/cancel") for _ in range(2)]

            assert status == 202
            assert json.loads(rest)["task_id"] == TASK
            assert headers["x-queue-position"] == "0"
            assert again[2] == rest
            assert other[0] == 409
            assert envelope(other[2])["message"].startswith("task_id: ")
            assert [answer[0] for answer in ended] == [204, 204]
            counted = {"operation": "submit_task"}
            assert world.metric("http_requests_total", **counted, status="202") == 2
            assert world.metric("http_requests_total", **counted, status="409") == 1

        run_world(scenario)

    @pytest.mark.parametrize(
        ("media_type", "status"),
        [
            ("text/plain", 415),
            ("", 415),
            ("application/json; charset=utf-8", 202),
            ("Application/JSON", 202),
        ],
    )
    def test_a_task_is_json(self, media_type: str, status: int) -> None:
        async def scenario(world: ServiceWorld) -> None:
            data = json.dumps(BODY).encode()

            found = await Client(world).send("POST", "/v1/tasks", data, content_type=media_type)

            assert found[0] == status

        run_world(scenario)

    def test_a_wrong_last_event_id_is_refused_by_name(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            client = Client(world)
            await client.send("POST", "/v1/tasks", json.dumps(BODY).encode())

            status, _, rest = await client.send(
                "GET", f"/v1/tasks/{TASK}/stream", last_event_id="x"
            )

            assert status == 400
            assert envelope(rest)["message"].startswith("Last-Event-ID: ")

        run_world(scenario)
