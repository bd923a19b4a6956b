"""The contracts themselves: valid, complete, bounded, and equal to what was generated from them.

Expected operations, fields and metrics are written out here by hand, from the frozen core of v1, so
that a change of the contract that would break a client fails here first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from jsonschema.exceptions import best_match
from openapi_schema_validator import OAS30Validator
from openapi_spec_validator import validate

import orch_config
import orchcontrol_v1
import orchqueue_v1
from orch_tools import codegen, codegen_config, codegen_metrics, codegen_routes, codegen_types
from orch_tools.requirements import load_catalog
from orchestrator_core.errors import Code

ROOT = Path(__file__).resolve().parents[2]
PLANES = tuple(codegen_types.PLANES)
CONTRACTS = {path: codegen_types.load_contract(ROOT, path) for path in PLANES}
DATA, CONTROL = (CONTRACTS[path] for path in PLANES)
CONFIG_SCHEMA = json.loads((ROOT / codegen_config.SCHEMA_PATH).read_text())
METRICS = yaml.safe_load((ROOT / codegen_metrics.SOURCE_PATH).read_text())
METRICS_SPEC = (ROOT / "contracts/spec/95-metrics-contract.md").read_text()
EXAMPLES = sorted((ROOT / "contracts/examples").glob("*.yaml"))
GENERATORS = (
    *(codegen_types.generate, codegen_routes.generate),
    *(codegen_config.generate, codegen_metrics.generate),
)

MESSAGE = {"role": "user", "content": "x"}

OPERATIONS = {
    ("POST", "/v1/tasks"): ("submit_task", 202, ["data"]),
    ("GET", "/v1/tasks/{id}/stream"): ("stream_task", 200, ["data"]),
    ("POST", "/v1/tasks/{id}/cancel"): ("cancel_task", 204, ["data"]),
    ("GET", "/v1/tasks/{id}/determinism"): ("get_determinism", 200, ["data"]),
    ("GET", "/v1/tasks/{id}/explanation"): ("explain_task", 200, ["data", "control"]),
    ("GET", "/v1/sessions/{id}"): ("get_session", 200, ["data"]),
    ("DELETE", "/v1/sessions/{id}"): ("delete_session", 204, ["data"]),
    ("POST", "/v1/catalog/models"): ("register_model", 201, ["control"]),
    ("GET", "/v1/catalog/models/{id}"): ("get_model", 200, ["control"]),
    ("POST", "/v1/catalog/models/{id}/verify"): ("verify_model", 202, ["control"]),
    ("POST", "/v1/catalog/models/{id}/state"): ("set_model_state", 202, ["control"]),
    ("POST", "/v1/pools/{id}/drain"): ("drain_pool", 202, ["control"]),
    ("POST", "/v1/pools/{id}/reload"): ("reload_pool", 202, ["control"]),
    ("POST", "/v1/pools/{id}/cordon"): ("cordon_pool", 202, ["control"]),
    ("POST", "/v1/pools/{id}/resume"): ("resume_pool", 202, ["control"]),
    ("POST", "/v1/pools/{id}/promote"): ("promote_pool", 202, ["control"]),
    ("POST", "/v1/pools/{id}/rollback"): ("rollback_pool", 202, ["control"]),
    ("GET", "/v1/pool-managers"): ("list_pool_managers", 200, ["control"]),
    ("PUT", "/v1/pool-managers/{id}"): ("register_pool_manager", 200, ["control"]),
    ("DELETE", "/v1/pool-managers/{id}"): ("deregister_pool_manager", 202, ["control"]),
    ("GET", "/v1/config"): ("get_config", 200, ["control"]),
    ("POST", "/v1/config/reload"): ("reload_config", 200, ["control"]),
    ("POST", "/v1/config/revert"): ("revert_config", 200, ["control"]),
    ("GET", "/v1/devices"): ("list_devices", 200, ["data", "control"]),
    ("GET", "/v1/pools/{id}/health"): ("pool_health", 200, ["data", "control"]),
    ("GET", "/v1/replicasets"): ("list_replicasets", 200, ["data", "control"]),
    ("GET", "/v1/capabilities"): ("get_capabilities", 200, ["data", "control"]),
    ("POST", "/v1/artifacts"): ("create_artifact", 201, ["data"]),
    ("GET", "/v1/artifacts/{id}"): ("get_artifact", 200, ["data"]),
}

# Frozen: required fields, then all fields of v1.0.0; only optional ones may be added.
FROZEN = {
    "TaskRequest": (
        "task_id session_id workload model_ref engine ctx priority max_tokens deadline_ms",
        "seed determinism sampler_profile_version prompt inputs expected_tokens kv_hint",
    ),
    "AdmissionResponse": ("task_id queue_position predicted_start_ms backoff_ms", ""),
    "ErrorEnvelope": (
        "code message",
        "engine pool_id retriable retry_after_ms policy_label",
    ),
    "SessionInfo": (
        "",
        "ttl_ms_remaining turns kv_bytes kv_warmth tokens_budget_remaining"
        " time_budget_remaining_ms cost_budget_remaining",
    ),
    "StreamStarted": ("queue_position predicted_start_ms", ""),
    "StreamToken": ("t i", ""),
    "StreamMetrics": ("", "on_time_probability queue_depth kv_warmth"),
    "StreamEnd": ("tokens_out decode_ms", "canceled result"),
    "StreamError": ("code message engine", ""),
    "PoolHealth": ("", "live ready draining metrics last_error state"),
    "ReplicaSet": (
        "id engine",
        "load slots_total slots_free slo engine_version model_digest replicas",
    ),
    "DrainRequest": ("deadline_ms", ""),
    "ReloadRequest": ("new_model_ref", ""),
    "Capabilities": ("api_version engines", ""),
    "EngineCapabilities": ("engine ctx_max", "supported_workloads rate_limits features"),
    "CatalogModel": (
        "id digest",
        "source_url version tags manifests signatures sbom trust_policy state",
    ),
    "Artifact": ("kind content", "tags parent metadata"),
    "ArtifactRef": ("id kind", "digest created_ms tags"),
}


def operations(contract: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in contract["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def resolved(contract: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        target: Any = contract
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    return node


def examples(contract: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """(where, schema, value) of every request and response example."""
    for _, _, operation in operations(contract):
        bodies = [operation["requestBody"]] if "requestBody" in operation else []
        bodies += [resolved(contract, response) for response in operation["responses"].values()]
        for body in bodies:
            for media in body.get("content", {}).values():
                for name, example in media.get("examples", {}).items():
                    where = f"{operation['operationId']}: {name}"
                    yield where, media["schema"], example["value"]


def subschemas(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "type" in node or "$ref" in node or "enum" in node:
            yield node
        for key, value in node.items():
            if key not in ("default", "examples", "enum"):
                yield from subschemas(value)
    elif isinstance(node, list):
        for item in node:
            yield from subschemas(item)


@pytest.mark.parametrize("path", PLANES)
def test_the_openapi_document_is_valid(path: str) -> None:
    validate(CONTRACTS[path])

    assert CONTRACTS[path]["openapi"] == "3.0.3"


@pytest.mark.req("ORCH-3044")
def test_both_planes_have_exactly_the_operations_of_version_1() -> None:
    found = {
        (method, path): (
            operation["operationId"],
            next(int(status) for status in operation["responses"] if status < "300"),
            operation["x-roles"],
        )
        for contract in (DATA, CONTROL)
        for method, path, operation in operations(contract)
    }

    assert found == OPERATIONS
    assert (DATA["info"]["version"], CONTROL["info"]["version"]) == ("1.0.0", "1.0.0")


@pytest.mark.parametrize("path", PLANES)
def test_every_operation_names_known_requirements(path: str) -> None:
    catalog = load_catalog(ROOT)

    for _, _, operation in operations(CONTRACTS[path]):
        named = operation["x-req-id"]
        assert named
        assert not [problem for each in named if (problem := catalog.problem(each))]
        assert len(set(named)) == len(named)


@pytest.mark.req(
    "ORCH-2006",
    "ORCH-2007",
    "ORCH-2009",
    partial="the answers of the service",
)
@pytest.mark.parametrize("path", PLANES)
def test_every_answer_has_its_headers_and_every_error_the_envelope(path: str) -> None:
    contract = CONTRACTS[path]
    for _, _, operation in operations(contract):
        for status, reference in operation["responses"].items():
            response = resolved(contract, reference)
            where = f"{operation['operationId']} {status}"
            required = {
                name
                for name, header in response["headers"].items()
                if resolved(contract, header).get("required")
            }
            assert "X-Correlation-Id" in required, where
            if status in ("429", "503"):
                assert {"Retry-After", "X-Backoff-Ms"} <= required, where
            if status == "405":
                assert "Allow" in required, where
            if status >= "400":
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorEnvelope"}, where


@pytest.mark.req("OC-CTRL-2040")
@pytest.mark.parametrize("path", PLANES)
def test_every_operation_needs_a_key_and_can_refuse_it(path: str) -> None:
    contract = CONTRACTS[path]

    assert contract["security"] == [{"apiKey": []}, {"bearer": []}]
    for _, _, operation in operations(contract):
        assert "security" not in operation
        assert {"401", "403", "405", "500"} <= set(operation["responses"])
        has_id = "{id}" in next(
            route for method, route, found in operations(contract) if found is operation
        )
        assert ("404" in operation["responses"]) == has_id
        has_body = "requestBody" in operation
        assert has_body <= ({"400", "413", "415"} <= set(operation["responses"]))


@pytest.mark.parametrize("path", PLANES)
def test_every_example_obeys_its_schema(path: str) -> None:
    contract = CONTRACTS[path]
    found = list(examples(contract))

    assert len(found) >= 10
    for where, schema, value in found:
        whole = {"components": contract["components"], "allOf": [schema]}
        errors = [error.message for error in OAS30Validator(whole).iter_errors(value)]
        assert errors == [], where


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        ({"prompt": "x"}, True),
        ({"messages": [MESSAGE]}, True),
        ({}, False),
        ({"prompt": "x", "messages": [MESSAGE]}, False),
        ({"inputs": ["x"]}, False),
        ({"prompt": "x", "inputs": ["x"]}, False),
        ({"workload": "embedding", "inputs": ["x"]}, True),
        ({"workload": "embedding", "prompt": "x"}, False),
        ({"workload": "embedding", "inputs": ["x"], "messages": [MESSAGE]}, False),
        ({"workload": "rerank", "prompt": "q", "inputs": ["x"]}, True),
        ({"workload": "rerank", "inputs": ["q", "x"]}, True),
        ({"workload": "rerank", "inputs": ["q"]}, False),
        ({"workload": "rerank", "prompt": "q"}, False),
    ],
)
def test_each_workload_needs_its_input(change: dict[str, Any], accepted: bool) -> None:
    schemas = DATA["components"]["schemas"]
    body = DATA["paths"]["/v1/tasks"]["post"]["requestBody"]["content"]["application/json"]
    task = {**body["examples"]["completion"]["value"], **change}
    if "prompt" not in change:
        del task["prompt"]
    whole = {"components": {"schemas": schemas}, "allOf": [schemas["TaskRequest"]]}

    assert OAS30Validator(whole).is_valid(task) == accepted


@pytest.mark.req("ORCH-3044")
@pytest.mark.parametrize("name", sorted(FROZEN))
def test_the_frozen_core_is_kept(name: str) -> None:
    schema = {**DATA["components"]["schemas"], **CONTROL["components"]["schemas"]}[name]
    required, optional = (set(fields.split()) for fields in FROZEN[name])

    assert set(schema.get("required", ())) == required
    assert required | optional <= set(schema["properties"])


@pytest.mark.req("ORCH-2008")
@pytest.mark.req("ORCH-2006", partial="all but the lists of codes and engines")
@pytest.mark.parametrize("path", PLANES)
def test_codes_and_engines_are_the_closed_lists_of_the_core(path: str) -> None:
    schemas = CONTRACTS[path]["components"]["schemas"]

    assert schemas["ErrorCode"]["enum"] == [str(code) for code in Code]
    assert schemas["Engine"]["enum"] == ["llamacpp", "vllm", "tgi", "triton"]
    assert (
        CONFIG_SCHEMA["$defs"]["Pool"]["properties"]["engine"]["enum"]
        == (schemas["Engine"]["enum"])
    )


def test_schemas_that_both_planes_use_are_equal() -> None:
    data, control = DATA["components"]["schemas"], CONTROL["components"]["schemas"]
    # The data plane knows more labels to describe; everything a program sees must agree.
    for name in sorted(set(data) & set(control)):
        assert without_descriptions(data[name]) == without_descriptions(control[name]), name


# What is written for people, in the words of each plane.
PROSE = ("description", "x-catalog")


def without_descriptions(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: without_descriptions(value) for key, value in node.items() if key not in PROSE}
    return [without_descriptions(item) for item in node] if isinstance(node, list) else node


@pytest.mark.parametrize("path", PLANES)
def test_everything_a_client_sends_is_bounded_and_described(path: str) -> None:
    schemas = CONTRACTS[path]["components"]["schemas"]
    requests = {
        name: schema for name, schema in schemas.items() if "additionalProperties" in schema
    }

    for name, schema in requests.items():
        if schema["additionalProperties"] is not False:
            continue
        for node in subschemas(schema["properties"]):
            if node.get("type") == "string":
                assert "maxLength" in node or "enum" in node, (name, node)
            if node.get("type") == "array":
                assert "maxItems" in node, (name, node)
            if node.get("type") in ("integer", "number"):
                assert "maximum" in node, (name, node)
                assert "minimum" in node, (name, node)
        for field, node in schema["properties"].items():
            assert resolved(CONTRACTS[path], node).get("description"), (name, field)


@pytest.mark.req("OC-CONFIG-6002")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_configuration_validates(path: Path) -> None:
    data = yaml.safe_load(path.read_text())

    errors = [error.message for error in config_validator().iter_errors(data)]

    assert errors == []
    assert msgspec.convert(data, orch_config.Config).pools


def test_the_examples_are_the_promised_ones() -> None:
    assert [path.stem for path in EXAMPLES] == ["demo", "external", "two_pools"]


def config_validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(CONFIG_SCHEMA)


@pytest.mark.req(
    "ORCH-3030",
    partial="how the service starts, which is tested with the configuration",
)
@pytest.mark.req("OC-CONFIG-6001", partial="compat mode, which is tested with the configuration")
@pytest.mark.parametrize(
    ("place", "key"),
    [
        ((), "sever"),
        (("server",), "prot"),
        (("auth", "keys", 0), "secret"),
        (("sessions", "budgets"), "token"),
        (("sampler_profiles", "v1"), "heat"),
        (("catalog", "trust_policy"), "modus"),
        (("pools", 0), "model_path"),
        (("pools", 0, "admission", "fairness", "tenants", 0), "burst"),
        (("pools", 0, "preemption", "hard_requirements"), "x"),
        (("pools", 0, "replicas", 0), "weight"),
    ],
)
def test_an_unknown_key_is_refused_at_every_depth(place: tuple[str | int, ...], key: str) -> None:
    data = yaml.safe_load((ROOT / "contracts/examples/external.yaml").read_text())
    target = data
    for part in place:
        target = target[part]
    target[key] = 1

    error = best_match(config_validator().iter_errors(data))

    assert error is not None
    assert error.validator == "additionalProperties"
    assert key in error.message


@pytest.mark.parametrize(
    ("sources", "accepted"),
    [
        ({"key_env": "A"}, True),
        ({"key_hmac": "0" * 64}, True),
        ({"key_env": "A", "key_hmac": None}, True),
        ({}, False),
        ({"key_env": None}, False),
        ({"key_env": "A", "key_hmac": "0" * 64}, False),
    ],
)
def test_a_key_has_exactly_one_source(sources: dict[str, Any], accepted: bool) -> None:
    key = {"id": "k", "tenant": "t", "roles": ["data"], **sources}

    assert config_validator().is_valid({"auth": {"keys": [key]}}) == accepted


def test_the_configuration_schema_is_valid_closed_and_described() -> None:
    jsonschema.Draft202012Validator.check_schema(CONFIG_SCHEMA)

    for name, schema in [("Config", CONFIG_SCHEMA), *CONFIG_SCHEMA["$defs"].items()]:
        assert schema["additionalProperties"] is False, name
        for key, node in schema["properties"].items():
            target = node if "description" in node else resolved(CONFIG_SCHEMA, node)
            assert target["description"], (name, key)
            assert ("default" in node) != (key in schema.get("required", ())), (name, key)


def with_defaults(data: Any, schema: dict[str, Any]) -> Any:
    """What the schema's `default`s make of `data`: an oracle beside the generated types."""
    if "anyOf" in schema:
        if data is None or not any("$ref" in each for each in schema["anyOf"]):
            return data
        schema = next(each for each in schema["anyOf"] if "$ref" in each)
    schema = resolved(CONFIG_SCHEMA, schema)
    if isinstance(data, list):
        return [with_defaults(item, schema["items"]) for item in data]
    if isinstance(data, dict) and "properties" in schema:
        return {
            key: with_defaults(data.get(key, node.get("default")), node)
            for key, node in schema["properties"].items()
        }
    if isinstance(data, dict):
        return {
            key: with_defaults(value, schema["additionalProperties"]) for key, value in data.items()
        }
    return data


@pytest.mark.parametrize("path", [None, *EXAMPLES], ids=lambda path: path.stem if path else "empty")
def test_the_types_fill_in_exactly_the_schema_s_defaults(path: Path | None) -> None:
    data = yaml.safe_load(path.read_text()) if path else {}

    config = msgspec.convert(data, orch_config.Config)

    found = json.loads(msgspec.json.encode(config))
    assert found == with_defaults(data, CONFIG_SCHEMA)
    assert config_validator().is_valid(found)


def spec_table() -> dict[str, tuple[str, list[str]]]:
    """Metric -> (type, labels) of the specification's table."""
    rows = re.findall(r"^\| ([a-z_]+) \| (\w+)[^|]* \| ([^|]+) \|$", METRICS_SPEC, re.MULTILINE)
    return {
        name: (kind, [label.strip() for label in labels.split(",")])
        for name, kind, labels in rows
        if name != "metric"
    }


@pytest.mark.req("OC-METRICS-7101")
def test_the_metrics_of_the_specification_have_their_names_types_and_labels() -> None:
    contract = {each["name"]: (each["type"], each["labels"]) for each in METRICS["metrics"]}
    wanted = spec_table()

    assert len(wanted) == 19
    assert {name: contract.get(name) for name in wanted} == wanted


@pytest.mark.req("OC-METRICS-7102")
def test_label_budgets_are_those_of_the_specification() -> None:
    sentence = METRICS_SPEC.split("Label budgets: ", 1)[1].split(".", 1)[0]
    wanted = {name: int(number) for name, number in map(str.split, sentence.split(", "))}

    assert len(wanted) == 11
    assert {name: METRICS["labels"][name]["budget"] for name in wanted} == wanted


def test_metrics_name_known_requirements() -> None:
    catalog = load_catalog(ROOT)

    named = [each for metric in METRICS["metrics"] for each in metric["req"]]

    assert not [problem for each in named if (problem := catalog.problem(each))]


@pytest.mark.parametrize("package", [orchqueue_v1, orchcontrol_v1])
def test_the_packages_carry_their_contract_word_for_word(package: Any) -> None:
    path = next(path for path, name in codegen_types.PLANES.items() if name == package.__name__)

    assert package.contract_text() == (ROOT / path).read_text()
    assert CONTRACTS[path]["info"]["version"] == package.VERSION
    assert json.loads(orch_config.schema_text()) == CONFIG_SCHEMA


@pytest.mark.req("OC-CONFIG-6010")
def test_regeneration_gives_the_same_bytes_in_any_process() -> None:
    here = codegen.collect(ROOT, GENERATORS)
    program = (
        "import hashlib, sys; from pathlib import Path; from orch_tools import codegen as c;"
        "from orch_tools import codegen_config, codegen_metrics, codegen_routes, codegen_types;"
        "files = c.collect(Path(sys.argv[1]), [codegen_types.generate, codegen_routes.generate,"
        " codegen_config.generate, codegen_metrics.generate]);"
        "print(hashlib.sha256(repr(files).encode()).hexdigest())"
    )
    # Another hash seed orders sets differently, which is how non-determinism creeps in.
    environment = {**os.environ, "PYTHONHASHSEED": "4242", "PYTHONPATH": os.pathsep.join(sys.path)}

    there = subprocess.run(
        [sys.executable, "-c", program, str(ROOT)],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()

    assert there == hashlib.sha256(repr(here).encode()).hexdigest()
    assert {name: (ROOT / name).read_bytes() for name in here} == here
