"""A configuration file: its defaults, and every mistake by key, value, rule and line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from harness_kit.small_configuration import KEYS, POOL, accept, reject
from orchestratord.api.keys import hash_key
from orchestratord.configuration import ConfigError, effective_quotas, load_config
from orchestratord.configuration.document import parse_document

pytestmark = pytest.mark.req(
    "ORCH-3030", "OC-CONFIG-6001", partial="all but one rule of the configuration"
)

EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "contracts/examples").glob("*.yaml"))


def test_a_small_configuration_gets_the_documented_defaults() -> None:
    config = accept(KEYS + POOL).config

    assert (config.server.host, config.server.port) == ("127.0.0.1", 8080)
    assert config.journal.sync == "full"
    assert config.pools[0].queue.capacity == 256
    assert config.pools[0].replicas[0].url == "http://127.0.0.1:9001"
    assert accept(KEYS + POOL).warnings == ()


@pytest.mark.req("ORCH-3030", "OC-CONFIG-6001")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            KEYS + POOL.replace("ctx: 2048", "ctxx: 2048\n    ctx: 2048"),
            ("pools[0].ctxx", "2048", "unknown key; did you mean `ctx`?", 8),
        ),
        (
            KEYS + POOL.replace("ctx: 2048", "ctx: 0"),
            ("pools[0].ctx", "0", "must be at least 1", 8),
        ),
        (
            KEYS + POOL.replace("ctx: 2048", 'ctx: "2048"'),
            ("pools[0].ctx", '"2048"', "must be a whole number", 8),
        ),
        (
            KEYS + POOL.replace("ctx: 2048", "ctx: true"),
            ("pools[0].ctx", "true", "must be a whole number", 8),
        ),
        (
            KEYS + POOL.replace("llamacpp", "ollama"),
            ("pools[0].engine", '"ollama"', "must be one of llamacpp, vllm, tgi, triton", 6),
        ),
        (
            KEYS + POOL.replace("    model: builtin:smollm2\n", ""),
            ("pools[0].model", "", "required, but missing", 5),
        ),
        (
            KEYS + POOL + "    launch: { cuont: 2 }\n",
            ("pools[0].launch.cuont", "2", "unknown key; did you mean `count`?", 11),
        ),
        (
            KEYS + POOL + "    launch: 2\n",
            ("pools[0].launch", "2", "must be a mapping or null", 11),
        ),
        (
            "journal: { sync: sometimes }\n" + KEYS + POOL,
            ("journal.sync", '"sometimes"', "must be one of full, normal, off", 1),
        ),
        (
            KEYS + POOL + "    sampler_profile_version: v2\n",
            ("pools[0].sampler_profile_version", '"v2"', "no such sampler profile", 11),
        ),
        (
            "sampler_profiles: { warm-1: {} }\n"
            + KEYS
            + POOL
            + "    sampler_profile_version: warm1\n",
            ("pools[0].sampler_profile_version", '"warm1"', "did you mean `warm-1`?", 12),
        ),
        (
            KEYS + POOL[: POOL.index("    replicas")],
            ("pools[0]", "", "needs replicas (engines that run already) or launch", 5),
        ),
        (
            KEYS + POOL + "    devices: [0, 1]\n    tensor_split: [1]\n",
            ("pools[0].tensor_split", "[…]", "1 ratios, 2 devices", 12),
        ),
        (
            KEYS + POOL + '      - { id: r0, url: "http://127.0.0.1:9002" }\n',
            ("pools[0].replicas[1].id", '"r0"', "already used by pools[0].replicas[0].id", 11),
        ),
        (
            KEYS + POOL + '      - { id: r1, url: "http://127.0.0.1:9001" }\n',
            ("pools[0].replicas[1].url", '"http://127.0.0.1:9001"', "already used", 11),
        ),
        (
            KEYS + POOL + POOL.removeprefix("pools:\n"),
            ("pools[1].id", '"p0"', "already used by pools[0].id", 11),
        ),
        (
            KEYS + POOL + "    admission: { priorities: [ { name: batch }, { name: batch } ] }\n",
            ("pools[0].admission.priorities[1].name", '"batch"', "already used", 11),
        ),
        (
            KEYS + POOL.replace("id: r0", "id: p0-1") + "    launch: { count: 2 }\n",
            ("pools[0].replicas[0].id", '"p0-1"', "an engine that pools[0].launch starts", 10),
        ),
        (
            "server: { control_port: 8080 }\n" + KEYS + POOL,
            ("server.control_port", "8080", "differ", 1),
        ),
        ("auth: { keys: [] }\n" + POOL, ("auth.keys", "", "add a key", 1)),
        (POOL, ("auth.keys", "", "add a key", 1)),
    ],
)
def test_a_mistake_is_told_by_key_value_rule_and_line(
    text: str, expected: tuple[str, str, str, int]
) -> None:
    ((key, value, rule, line),) = reject(text)

    assert (key, value, line) == (expected[0], expected[1], expected[3])
    assert expected[2] in rule


def test_all_mistakes_are_told_at_once_in_file_order() -> None:
    text = "servre: {}\n" + KEYS + POOL.replace("ctx: 2048", "ctx: 0\n    preload: 1")

    assert [(key, line) for key, _, _, line in reject(text)] == [
        ("servre", 1),
        ("pools[0].ctx", 9),
        ("pools[0].preload", 10),
    ]


@pytest.mark.req("ORCH-3030", "OC-CONFIG-6001")
def test_compat_mode_ignores_unknown_keys_with_a_warning_each() -> None:
    text = (
        "server: { config_mode: compat, prot: 1 }\nfuture: { deep: { deeper: 1 } }\n"
        + KEYS
        + POOL
        + "    launch: { cuont: 2 }\n"
    )

    loaded = accept(text)

    assert loaded.config.pools[0].launch is not None
    assert loaded.config.pools[0].launch.count == 1
    ignored = [warning for warning in loaded.warnings if "compat" in warning]
    assert [warning.split(": ")[1].split(" = ")[0] for warning in ignored] == [
        "server.prot",
        "future",
        "pools[0].launch.cuont",
    ]
    assert any("did you mean `port`?" in warning for warning in ignored)


@pytest.mark.req("ORCH-3030", "OC-CONFIG-6001")
def test_compat_mode_still_refuses_wrong_values() -> None:
    text = "server: { config_mode: compat }\n" + KEYS + POOL.replace("ctx: 2048", "ctx: 0")

    assert [key for key, *_ in reject(text)] == ["pools[0].ctx"]


def test_a_key_that_stands_twice_is_refused_with_both_lines() -> None:
    ((key, _, rule, line),) = reject(KEYS + POOL.replace("ctx: 2048", "ctx: 2048\n    ctx: 4096"))

    assert (key, line) == ("pools[0].ctx", 9)
    assert "line 8" in rule


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("off", "off"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("010", 10),
        ("0x1f", 31),
        ("1e3", 1000.0),
        ("-3", -3),
        ("~", None),
        ("", None),
        ("True", True),
        ("false", False),
        ('"1"', "1"),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(scalar: str, value: Any) -> None:
    data = parse_document(f"a: {scalar}\n", "t").data

    assert data == {"a": value}
    assert type(data["a"]) is type(value)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- a\n", "must be a mapping"),
        ("a: [1\n", "not valid YAML"),
        ("a: 1\n--- \nb: 2\n", "not valid YAML"),
        ("a: !!python/object:os.system x\n", "not valid YAML"),
        ("a: &x [*x]\n", "contain itself"),
        ("1: a\n", "plain text"),
        ("[" * 5000, "nested more than 50 levels deep"),
        ("a: " + "{a: " * 60 + "1" + "}" * 60, "nested more than 50 levels deep"),
    ],
)
def test_what_is_no_configuration_document_is_refused(text: str, rule: str) -> None:
    ((_, _, found, _),) = reject(text)

    assert rule in found


def test_journal_sync_off_is_the_word_and_not_false() -> None:
    assert accept("journal: { sync: off }\n" + KEYS + POOL).config.journal.sync == "off"


def test_a_launch_section_of_defaults_alone_is_a_launch() -> None:
    text = KEYS + POOL[: POOL.index("    replicas")] + "    launch: {}\n    devices: [0]\n"

    loaded = accept(text)

    assert loaded.warnings == ()
    assert loaded.config.pools[0].launch is not None


@pytest.mark.req("OC-CLI-8003")
@pytest.mark.req("ORCH-3075", partial="all but its configuration")
def test_effective_quotas_fill_in_what_was_left_out() -> None:
    text = (
        KEYS
        + POOL
        + "    queue: { capacity: 1000 }\n"
        + "    admission:\n"
        + "      priorities: [ { name: batch, queue_capacity: 30, rate_limit_rps: 5 } ]\n"
        + "      fairness: { tenants: [ { id: globex, weight: 3, max_concurrent: 8, rps: 50,\n"
        + "        tokens_per_minute: 9000, kv_bytes: 1000000 } ] }\n"
    )

    priorities, tenants = effective_quotas(accept(text).config)

    assert [(q.priority, q.weight, q.queue_capacity, q.rate_limit_rps) for q in priorities] == [
        ("interactive", 8, 1000, None),
        ("batch", 1, 30, 5),
    ]
    assert [round(q.share_ratio, 4) for q in priorities] == [0.8889, 0.1111]
    assert [(q.tenant, q.share_ratio, q.max_concurrent, q.rps) for q in tenants] == [
        ("acme", 0.25, None, None),
        ("globex", 0.75, 8, 50),
    ]
    assert [(q.tokens_per_minute, q.kv_bytes) for q in tenants] == [(None, None), (9000, 1000000)]


@pytest.mark.req("ORCH-3035", partial="all but its configuration")
def test_a_hashed_key_is_accepted_as_it_was_printed_and_not_otherwise() -> None:
    printed = hash_key(b"sesame-open")
    text = KEYS.replace("key_env: ACME_KEY", f'key_hmac: "{printed}"') + POOL

    assert accept(text, environ={}).config.auth.keys[0].key_hmac == printed
    ((key, value, rule, _),) = reject(text.replace("v1:", "v2:"), environ={})
    assert (key, value) == ("auth.keys[0].key_hmac", "(hidden)")
    assert "keys hash" in rule


@pytest.mark.req("OC-CONFIG-6002")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_valid_configuration(path: Path) -> None:
    variables = re.findall(r"key_env: (\w+)", path.read_text("utf-8"))

    loaded = load_config(path, environ=dict.fromkeys(variables, "k"))

    assert loaded.config.pools


@pytest.mark.req("OC-CONFIG-6002")
def test_the_configuration_in_the_readme_is_valid() -> None:
    text = (EXAMPLES[0].parents[2] / "README.md").read_text("utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)

    assert accept(example).config.pools[0].id == "small"


def test_there_are_examples_to_check() -> None:
    assert len(EXAMPLES) >= 3


def test_a_file_that_cannot_be_read_is_a_problem_and_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.yaml", environ={})


def test_a_file_that_is_not_utf8_is_a_problem_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")

    with pytest.raises(ConfigError) as caught:
        load_config(path, environ={})

    assert caught.value.problems[0].line == 2


def test_a_pool_whose_engines_come_from_managers_needs_none_of_its_own() -> None:
    loaded = accept(KEYS + POOL[: POOL.index("    replicas")] + "    managed: true\n")

    assert loaded.config.pools[0].managed
    assert loaded.config.pools[0].replicas == ()
