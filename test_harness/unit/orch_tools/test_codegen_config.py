"""The configuration types, and the schemas that the generator refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

import orch_config
from orch_tools.codegen_config import ConfigSchemaError, annotation, generate, literal

POOL = {"id": "p", "engine": "llamacpp", "model": "builtin:smollm2", "ctx": 2048}


def convert(data: dict[str, Any]) -> orch_config.Config:
    return msgspec.convert(data, orch_config.Config)


def test_an_empty_configuration_has_every_default() -> None:
    config = convert({})

    assert (config.server.host, config.server.port) == ("127.0.0.1", 8080)
    assert config.server.max_body_bytes == 4 * 1024 * 1024
    assert (config.streams.retain_s, config.streams.retain_bytes) == (600, 256 * 1024 * 1024)
    assert (config.sessions.ttl_ms, config.sessions.max_turns) == (600_000, 8)
    assert config.sampler_profiles["v1"].temperature == 0.0
    assert config.journal.sync == "full"
    assert not config.platform.cpu_carve_out
    assert config.pools == ()


def test_a_pool_of_four_keys_is_complete() -> None:
    (pool,) = convert({"pools": [POOL]}).pools

    assert (pool.queue.capacity, pool.queue.full_policy) == (256, "reject")
    assert [(each.name, each.weight) for each in pool.admission.priorities] == [
        ("interactive", 8),
        ("batch", 1),
    ]
    assert pool.preemption.hard_requirements.protect_priorities == ("interactive",)
    assert (pool.timeouts.wall_ms, pool.timeouts.idle_ms) == (60_000, 5_000)
    assert (pool.launch, pool.replicas, pool.preload) == (None, (), True)


def test_devices_are_indices_or_names_and_whole_numbers_serve_as_rates() -> None:
    tenant = {"id": "acme", "rps": 5}
    pool = {**POOL, "devices": [0, "GPU-a"], "admission": {"fairness": {"tenants": [tenant]}}}

    (found,) = convert({"pools": [pool]}).pools

    assert found.devices == (0, "GPU-a")
    assert found.admission.fairness.tenants[0].rps == 5.0


def test_defaults_are_not_shared_between_configurations() -> None:
    first = convert({})
    first.sampler_profiles["mine"] = orch_config.SamplerProfile()

    assert set(convert({}).sampler_profiles) == {"v1"}


@pytest.mark.parametrize(
    "data",
    [
        {"server": {"port": 65536}},
        {"server": {"config_mode": "loose"}},
        {"pools": [{**POOL, "engine": "mock"}]},
        {"pools": [{**POOL, "id": "p\n"}]},
        {"pools": [{key: value for key, value in POOL.items() if key != "model"}]},
    ],
)
def test_the_types_refuse_what_the_schema_refuses(data: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        convert(data)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "integer", "minimum": 0, "maximum": 9}, "Annotated[int, Meta(ge=0, le=9)]"),
        ({"type": ["string", "null"], "default": None}, "str | None"),
        ({"$ref": "#/$defs/Queue"}, "Queue"),
        ({"enum": ["a", "b"], "type": "string"}, "Literal['a', 'b']"),
        ({"type": "array", "items": {"type": "boolean"}}, "tuple[bool, ...]"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "dict[str, str]"),
        ({"anyOf": [{"$ref": "#/$defs/Q"}, {"type": "null"}]}, "Q | None"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "int | str"),
        ({"type": "string", "pattern": "^a$"}, r"Annotated[str, Meta(pattern='^a\\Z')]"),
    ],
)
def test_a_schema_becomes_a_type(schema: dict[str, Any], expected: str) -> None:
    assert annotation(schema, "place") == expected


@pytest.mark.parametrize(
    ("schema", "word"),
    [({"type": "integer", "multipleOf": 2}, "multipleOf"), ({"type": "tuple"}, "tuple")],
)
def test_a_word_the_generator_does_not_know_is_refused_by_name(
    schema: dict[str, Any], word: str
) -> None:
    with pytest.raises(ConfigSchemaError, match=f"place: no support for .*{word}"):
        annotation(schema, "place")


def test_a_default_is_written_in_the_type_of_its_field() -> None:
    definitions = {"P": {"properties": {"share": {"type": "number"}}}}
    items = {"type": "array", "items": {"$ref": "#/$defs/P"}}

    assert literal([{"share": 1}], items, definitions) == "(P(share=1.0),)"
    assert literal([], items, definitions) == "()"


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"a": {"description": "d", "type": "string"}}, "neither required nor with a default"),
        ({}, "nothing refers to Unused"),
    ],
)
def test_a_schema_with_a_hole_is_refused(
    tmp_path: Path, properties: dict[str, Any], message: str
) -> None:
    schema = {"title": "Config", "description": "d", "properties": properties, "$defs": {}}
    if not properties:
        schema["$defs"] = {"Unused": {"description": "d", "properties": {}}}
    path = tmp_path / "contracts/schemas/config.schema.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(schema))

    with pytest.raises(ConfigSchemaError, match=message):
        generate(tmp_path)
