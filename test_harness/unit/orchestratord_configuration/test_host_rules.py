"""What a configuration asks of this host: adapters, model files and devices."""

from __future__ import annotations

import pytest

from harness_kit.small_configuration import ENVIRONMENT, KEYS, POOL
from orchestratord.configuration import ConfigError, Host, parse_config

pytestmark = pytest.mark.req(
    "ORCH-3030", "OC-CONFIG-6001", partial="all but one rule of the configuration"
)


def no_such_file(model: str) -> str | None:
    return f"model file {model} does not exist" if "missing" in model else None


def no_such_device(device: str) -> str | None:
    return "no such device; this host has 0 (GPU-a)" if device == "7" else None


HERE = Host(
    frozenset({"llamacpp"}), no_such_file, no_such_device, lambda *names: {*names} == {"0", "GPU-a"}
)


def test_an_engine_without_an_adapter_is_warned_of_with_those_that_are_there() -> None:
    text = KEYS + POOL.replace("llamacpp", "vllm")

    (warning,) = parse_config(text, environ=ENVIRONMENT, host=HERE).warnings

    assert 'pools[0].engine = "vllm": no adapter for it is installed' in warning
    assert "there are: llamacpp" in warning
    assert parse_config(text, environ=ENVIRONMENT).warnings == ()


@pytest.mark.parametrize(
    ("launch", "is_refused"),
    [
        ("launch: {}", True),
        ('launch: { command: [serve, "--model={model}"] }', True),
        ('launch: { command: [serve], args: ["{model}"] }', True),
        ("launch: { command: [serve] }", False),
        ('replicas: [ { id: r, url: "http://127.0.0.1:1" } ]', False),
    ],
)
def test_a_model_that_an_engine_of_ours_would_open_must_be_here(
    launch: str, is_refused: bool
) -> None:
    head = POOL[: POOL.index("    replicas")].replace("builtin:smollm2", "file:/missing")
    text = f"{KEYS}{head}    devices: [0]\n    {launch}\n"

    if not is_refused:
        assert parse_config(text, environ=ENVIRONMENT, host=HERE).warnings == ()
        return
    with pytest.raises(ConfigError) as caught:
        parse_config(text, environ=ENVIRONMENT, host=HERE)
    (problem,) = caught.value.problems
    assert (problem.key, problem.value, problem.line) == ("pools[0].model", '"file:/missing"', 7)
    assert problem.rule == "model file file:/missing does not exist"


@pytest.mark.req("OC-POOL-3020", partial="what the engine is given")
def test_a_device_that_this_host_does_not_have_is_refused_for_engines_of_ours() -> None:
    external = POOL + "    devices: [0, 7]\n"
    text = KEYS + external + "    homogeneous: true\n    launch: {}\n"

    with pytest.raises(ConfigError) as caught:
        parse_config(text, environ=ENVIRONMENT, host=HERE)

    (problem,) = caught.value.problems
    assert (problem.key, problem.value) == ("pools[0].devices[1]", "7")
    assert problem.rule == "no such device; this host has 0 (GPU-a)"
    assert parse_config(KEYS + external, environ=ENVIRONMENT, host=HERE).config.pools[0].devices


@pytest.mark.req("ORCH-3011")
def test_pools_that_name_one_device_in_two_ways_share_it_only_where_both_say_so() -> None:
    def problems(*pools: str) -> list[tuple[str, str]]:
        heads = [POOL[: POOL.index("    replicas")] for _ in pools]
        second = heads[-1][heads[-1].index("  - id") :].replace("id: p0", "id: p1")
        texts = [heads[0] + pools[0], *(second + pool for pool in pools[1:])]
        try:
            parse_config(KEYS + "".join(texts), environ=ENVIRONMENT, host=HERE)
        except ConfigError as error:
            return [(problem.key, problem.rule) for problem in error.problems]
        return []

    mask = "    launch: {{}}\n    homogeneous: true\n    devices: {}\n"
    shared = "    shared_devices: true\n"
    by_index, by_uuid = mask.format("[0]"), mask.format("[GPU-a]")

    assert problems(by_index, by_uuid + shared) == [
        (
            "pools[1].devices[0]",
            "is 0 of pool p0, which launches engines on it too; where that is meant, set "
            "shared_devices: true in p0",
        )
    ]
    assert problems(by_index + shared, by_uuid + shared) == []
    assert problems(by_index, mask.format("[GPU-b]")) == []
    assert problems(mask.format("[0, GPU-a]")) == [
        ("pools[0].devices[1]", "is the device that 0 names too")
    ]
