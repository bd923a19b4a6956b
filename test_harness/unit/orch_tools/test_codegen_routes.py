"""The generated lookup of an operation, and the contracts it refuses to be generated from."""

from __future__ import annotations

import pytest

import orchcontrol_v1.routes
import orchqueue_v1.routes
from orch_tools.codegen_routes import RouteError, check_distinct, split_path
from orchqueue_v1.routes import ROUTES, match
from orchqueue_v1.types import TaskRequest


@pytest.mark.parametrize(
    ("method", "path", "operation", "value"),
    [
        ("POST", "/v1/tasks", "submit_task", None),
        ("GET", "/v1/tasks/a/stream", "stream_task", "a"),
        ("POST", "/v1/tasks/a/cancel", "cancel_task", "a"),
        ("GET", "/v1/tasks/a/explanation", "explain_task", "a"),
        ("GET", "/v1/sessions/s", "get_session", "s"),
        ("DELETE", "/v1/sessions/s", "delete_session", "s"),
        ("GET", "/v1/tasks/stream/stream", "stream_task", "stream"),
    ],
)
def test_a_path_finds_its_operation_and_the_text_of_its_id(
    method: str, path: str, operation: str, value: str | None
) -> None:
    found = match(method, path)

    assert isinstance(found, tuple)
    assert (found[0].operation_id, found[1]) == (operation, value)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/tasks", frozenset({"POST"})),
        ("HEAD", "/v1/tasks/a/stream", frozenset({"GET"})),
        ("PUT", "/v1/sessions/s", frozenset({"GET", "DELETE"})),
        ("post", "/v1/tasks", frozenset({"POST"})),
    ],
)
def test_a_known_path_with_another_method_gives_the_allowed_ones(
    method: str, path: str, allowed: frozenset[str]
) -> None:
    assert match(method, path) == allowed


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/v1", "/v1/tasks/", "/v1/tasks/a", "/v1/tasks/stream", "/v1/tasks//stream"),
        *("/v1/tasks/a/b/stream", "/v1/tasks/a/stream/", "/v1/sessions/", "/v1/sessions/a/b"),
        *("/v2/tasks", "/v1/Tasks", "//v1/tasks"),
    ],
)
def test_any_other_path_is_unknown(path: str) -> None:
    assert match("GET", path) is None


@pytest.mark.req("ORCH-3035", partial="that the roles of the generated table are asked for")
def test_routes_carry_request_type_status_and_roles() -> None:
    submit = next(route for route in ROUTES if route.operation_id == "submit_task")

    assert (submit.request, submit.success, submit.roles) == (TaskRequest, 202, ("data",))
    assert submit.id_parameter is None
    explained = {route.operation_id for route in ROUTES if route.roles == ("data", "control")}
    assert explained == {"explain_task"}
    assert {route.roles for route in ROUTES} == {("data",), ("data", "control")}


def test_the_control_plane_has_the_same_lookup() -> None:
    found = orchcontrol_v1.routes.match("POST", "/v1/catalog/models/m1/verify")

    assert isinstance(found, tuple)
    assert (found[0].operation_id, found[1], found[0].roles) == ("verify_model", "m1", ("control",))
    assert orchcontrol_v1.routes.match("GET", "/v1/catalog/models") == frozenset({"POST"})


def test_no_path_belongs_to_both_planes() -> None:
    for route in orchcontrol_v1.routes.ROUTES:
        assert orchqueue_v1.routes.match(route.method, route.path.replace("{id}", "x")) is None


def test_a_parameter_splits_a_path_in_two() -> None:
    assert split_path("/v1/tasks") is None
    assert split_path("/v1/tasks/{id}/stream") == ("/v1/tasks/", "id", "/stream")


@pytest.mark.parametrize("path", ["/v1/{a}/{b}", "/v1/x-{a}", "/v1/{a}.json"])
def test_a_path_the_lookup_cannot_serve_is_refused(path: str) -> None:
    with pytest.raises(RouteError, match="whole segment"):
        split_path(path)


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [
        ("/v1/a/{id}", "/v1/a/new", True),
        ("/v1/{kind}/x", "/v1/a/{id}", True),
        ("/v1/a/{id}", "/v1/b/{id}", False),
        ("/v1/a/{id}", "/v1/a/{id}/x", False),
        ("/v1/a/{id}/x", "/v1/a/{id}/y", False),
    ],
)
def test_paths_that_could_both_match_are_refused(first: str, second: str, overlap: bool) -> None:
    if overlap:
        with pytest.raises(RouteError, match="overlap"):
            check_distinct([first, second])
    else:
        check_distinct([first, second])
