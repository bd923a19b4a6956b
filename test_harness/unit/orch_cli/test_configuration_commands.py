"""`config`, `keys`, `profiles` and `serve`, as far as they need no service."""

from __future__ import annotations

import json
import socket
import stat
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import orchestratord.app
from harness_kit.scripted_cli import run
from orch_cli.exit_codes import CliError
from orch_cli.profiles import choose
from orchestratord.api.keys import verify
from orchestratord.configuration import ConfigError, Problem
from orchestratord.installation import InstalledAdapters, this_host
from orchestratord.ports.coordinator import LeaseHeld

GOOD = """\
auth: { keys: [ { id: dev, tenant: acme, roles: [data], key_env: ACME_KEY } ] }
pools:
  - { id: p0, engine: llamacpp, model: "builtin:smollm2", ctx: 2048, launch: {} , devices: [0] }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(GOOD, "utf-8")
    return path


@pytest.mark.req("OC-CLI-8003")
def test_a_valid_configuration_shows_the_quotas_that_will_hold(file: Path) -> None:
    result = run("config", "validate", str(file), ACME_KEY="k")

    assert result.exit_code == 0, result.output
    assert "p0\tinteractive\t8\t89%\t256\tunlimited\n" in result.stdout
    assert "p0\tacme\t1\t100%\tunlimited\tunlimited\tunlimited\tunlimited\n" in result.stdout
    assert "valid, 1 pool" in result.stderr


@pytest.mark.req("ORCH-3030")
@pytest.mark.req("OC-CLI-8003", partial="all but validation")
def test_an_invalid_one_names_key_value_rule_and_line_and_exits_2(file: Path) -> None:
    file.write_text(GOOD.replace("ctx: 2048", "ctx: 0, quantt: q4"), "utf-8")

    result = run("config", "validate", str(file), ACME_KEY="k")

    assert result.exit_code == 2
    assert "2 problems" in result.stderr
    assert "line 3: pools[0].ctx = 0: must be at least 1" in result.stderr
    assert "pools[0].quantt" in result.stderr
    assert "did you mean `quant`?" in result.stderr


def test_as_json_both_outcomes_are_one_document(file: Path) -> None:
    good = json.loads(run("config", "validate", str(file), "--json", ACME_KEY="k").stdout)
    result = run("config", "validate", str(file), "--json", ACME_KEY="")
    bad = json.loads(result.stdout)

    assert (good["valid"], good["quotas"]["tenants"][0]["tenant"]) == (True, "acme")
    assert (bad["valid"], bad["problems"][0]["key"]) == (False, "auth.keys[0].key_env")
    assert result.exit_code == 2


def test_a_file_can_be_checked_away_from_its_secrets(file: Path) -> None:
    assert run("config", "validate", str(file), "--no-env", ACME_KEY="").exit_code == 0


def test_the_configuration_may_be_named_by_the_environment(file: Path) -> None:
    result = run("config", "validate", LLAMA_ORCH_CONFIG=str(file), ACME_KEY="k")

    assert result.exit_code == 0


def test_the_printed_schema_is_a_schema_and_knows_a_good_configuration() -> None:
    schema = json.loads(run("config", "schema").stdout)

    Draft202012Validator.check_schema(schema)
    pool = {"id": "p", "engine": "vllm", "model": "m", "ctx": 1}
    assert Draft202012Validator(schema).is_valid({"pools": [pool]})
    assert not Draft202012Validator(schema).is_valid({"pools": [pool | {"x": 1}]})


@pytest.mark.req("ORCH-3035", partial="all but the command line's side")
def test_a_hashed_key_verifies_and_is_never_shown() -> None:
    from_stdin = run("keys", "hash", stdin="s3cret-key\n")
    from_env = run("keys", "hash", "--env", "K", K="s3cret-key")

    for result in (from_stdin, from_env):
        assert verify(b"s3cret-key", result.stdout.strip())
        assert not verify(b"s3cret-kex", result.stdout.strip())
        assert "s3cret" not in result.output


@pytest.mark.req("ORCH-3035", partial="all but the command line's side")
def test_a_generated_key_is_shown_once_and_matches_its_hash() -> None:
    first, second = (json.loads(run("keys", "hash", "--generate", "--json").stdout) for _ in "ab")

    assert verify(first["key"].encode(), first["key_hmac"])
    assert first["key"] != second["key"]
    assert len(first["key"]) >= 43


@pytest.mark.parametrize("stdin", ["", "\n", "two words\n", "ümlaut\n"])
def test_a_key_that_no_header_can_carry_is_refused(stdin: str) -> None:
    result = run("keys", "hash", stdin=stdin)

    assert result.exit_code == 2
    assert "visible ASCII" in result.stderr


def test_no_command_takes_a_key_as_an_argument() -> None:
    assert run("keys", "hash", "s3cret").exit_code == 2
    assert run("capabilities", "--api-key", "s3cret").exit_code == 2


def test_serve_passes_its_options_on_and_returns_the_status(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Path, str | None, int | None]] = []

    def serve(config_path: Path, host: str | None = None, port: int | None = None) -> int:
        calls.append((config_path, host, port))
        return 0

    monkeypatch.setattr(orchestratord.app, "serve", serve)
    result = run("serve", "--config", str(file), "--host", "::1", "--port", "0")
    by_environment = run("serve", LLAMA_ORCH_CONFIG=str(file))

    assert (result.exit_code, by_environment.exit_code) == (0, 0)
    assert calls == [(file, "::1", 0), (file, None, None)]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (
            ConfigError([Problem("a.b", "1", "must be 2", 7)], "c.yaml"),
            "line 7: a.b = 1: must be 2",
        ),
        (OSError(28, "No space left on device"), "cannot start: No space left on device"),
        (PermissionError(13, "Permission denied", "state"), "state: Permission denied"),
        (LeaseHeld("state-dir is held by pid 7"), "another service runs on this server.state_dir"),
    ],
)
def test_serve_tells_why_it_cannot_start(
    file: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, words: str
) -> None:
    def serve(*_arguments: object) -> int:
        raise failure

    monkeypatch.setattr(orchestratord.app, "serve", serve)
    result = run("serve", "--config", str(file))

    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("key", "value", "arguments", "words"),
    [
        ("server.port", 8080, [], "server.port = 8080: taken"),
        ("server.port", 81, ["--port", "81"], "--port = 81: taken"),
        ("server.control_port", 81, ["--port", "8"], "server.control_port = 81: taken"),
        ("server.host", "10.1.1.1", [], "server.host = 10.1.1.1: taken"),
        ("server.host", "h", ["--host", "h"], "--host = h: taken"),
    ],
)
def test_serve_names_the_setting_that_it_cannot_listen_on(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    value: str | int,
    arguments: list[str],
    words: str,
) -> None:
    def serve(*_arguments: object) -> int:
        raise orchestratord.app.CannotListen(key, value, "taken")

    monkeypatch.setattr(orchestratord.app, "serve", serve)
    result = run("serve", "--config", str(file), *arguments)

    assert result.exit_code == 2
    assert f"cannot listen: {words}" in result.stderr


@pytest.mark.parametrize(
    ("host", "cause"),
    [
        ("203.0.113.7", "Cannot assign requested address"),
        ("é" * 70, "is not the name or address of a host"),
    ],
    ids=["address", "name"],
)
def test_a_host_that_is_not_of_this_machine_is_told_as_the_host(host: str, cause: str) -> None:
    with pytest.raises(orchestratord.app.CannotListen) as caught:
        orchestratord.app._listen(host, 0, "server.port")

    assert (caught.value.key, caught.value.value) == ("server.host", host)
    assert caught.value.cause == cause


def test_a_taken_port_is_told_as_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(orchestratord.app.CannotListen) as caught:
            orchestratord.app._listen("127.0.0.1", port, "server.control_port")

    assert (caught.value.key, caught.value.value) == ("server.control_port", port)


def test_the_adapters_that_are_there_are_told_and_not_only_the_configured_ones() -> None:
    adapters = InstalledAdapters()

    assert "llamacpp" in this_host().engines
    assert set(adapters) == this_host().engines
    assert "mock" not in adapters  # no configuration can name it
    assert adapters.get("triton-of-tomorrow") is None
    assert callable(adapters["llamacpp"].connect)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (
            "builtin:smollm3",
            "there is no model 'builtin:smollm3': use builtin:smollm2 or file:PATH",
        ),
        ("file:/nowhere/at/all.gguf", "model file /nowhere/at/all.gguf does not exist"),
        ("repo:org/name", None),
    ],
)
def test_a_model_that_can_never_load_here_is_told_before_the_start(
    model: str, problem: str | None
) -> None:
    assert this_host().model_problem(model) == problem


def test_validate_looks_at_this_machine_unless_told_not_to(file: Path) -> None:
    text = GOOD.replace("builtin:smollm2", "file:/nowhere").replace("llamacpp", "triton")
    file.write_text(text, "utf-8")

    here = run("config", "validate", str(file), ACME_KEY="k" * 16)
    away = run("config", "validate", str(file), "--no-env")

    assert here.exit_code == 2
    assert 'line 3: pools[0].model = "file:/nowhere": model file' in here.stderr
    assert away.exit_code == 0
    assert "warning" not in away.stderr


def test_a_simulation_needs_no_secret_and_judges_none(file: Path) -> None:
    command = ["simulate", "--config", str(file), "--poisson", "--tasks", "3"]

    result = run(*command, ACME_KEY="")

    assert result.exit_code == 0, result.output
    assert "ACME_KEY" not in result.output


PROFILES = """\
default: dev
profiles:
  dev:  { url: "http://127.0.0.1:1", api_key: dev-key }
  prod: { url: "http://127.0.0.1:2/", api_key_env: PROD_KEY }
  file: { url: "http://127.0.0.1:3", api_key_file: KEY_FILE }
"""


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "config" / "llama-orch"
    folder.mkdir(parents=True)
    (tmp_path / "key").write_text("key-of-file\n", "utf-8")
    text = PROFILES.replace("KEY_FILE", str(tmp_path / "key"))
    path = folder / "profiles.yaml"
    path.write_text(text, "utf-8")
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "PROD_KEY": "prod-key"}


@pytest.mark.req("OC-CLI-8004")
@pytest.mark.parametrize(
    ("url", "profile", "environment", "expected"),
    [
        (None, None, {}, ("http://127.0.0.1:1", "dev-key")),
        (None, "prod", {}, ("http://127.0.0.1:2/", "prod-key")),
        (None, "file", {}, ("http://127.0.0.1:3", "key-of-file")),
        (None, None, {"LLAMA_ORCH_URL": "http://127.0.0.1:9"}, ("http://127.0.0.1:9", None)),
        (None, None, {"LLAMA_ORCH_API_KEY": "own"}, ("http://127.0.0.1:1", "own")),
        ("http://127.0.0.1:8", None, {"LLAMA_ORCH_API_KEY": "own"}, ("http://127.0.0.1:8", "own")),
        # A profile's key never goes to another address than the profile's.
        ("http://127.0.0.1:8", "prod", {}, ("http://127.0.0.1:8", None)),
        ("http://127.0.0.1:2", "prod", {}, ("http://127.0.0.1:2", "prod-key")),
    ],
)
def test_option_beats_environment_beats_profile(
    home: dict[str, str],
    url: str | None,
    profile: str | None,
    environment: dict[str, str],
    expected: tuple[str, str | None],
) -> None:
    connection = choose(url, profile, home | environment)

    assert (connection.url, connection.api_key) == expected
    assert "key" not in repr(connection)


@pytest.mark.parametrize(
    ("url", "environment", "blamed"),
    [
        (None, {"LLAMA_ORCH_API_KEY": "schlüssel"}, "LLAMA_ORCH_API_KEY: the API key"),
        ("http://127.0.0.1:8", {"LLAMA_ORCH_API_KEY": "a b"}, "LLAMA_ORCH_API_KEY: the API key"),
        ("host:8", {"LLAMA_ORCH_API_KEY": "a b"}, "--url: the service's URL"),
        (None, {"PROD_KEY": "schlüssel"}, "profile prod: the API key"),
    ],
)
def test_a_key_that_no_header_carries_is_blamed_on_where_it_came_from(
    home: dict[str, str], url: str | None, environment: dict[str, str], blamed: str
) -> None:
    with pytest.raises(CliError) as caught:
        choose(url, None if url else "prod", home | environment)

    assert caught.value.message.startswith(blamed)
    assert "schl" not in caught.value.message


def test_profiles_that_are_nested_too_deeply_are_told(home: dict[str, str]) -> None:
    Path(home["XDG_CONFIG_HOME"], "llama-orch", "profiles.yaml").write_text("[" * 5000, "utf-8")

    with pytest.raises(CliError, match="nested too deeply"):
        choose(None, None, home)


def test_without_anything_the_local_service_is_meant(tmp_path: Path) -> None:
    connection = choose(None, None, {"HOME": str(tmp_path)})

    assert (connection.url, connection.api_key) == ("http://127.0.0.1:8080", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("profiles: { a: { url: http://h, api_key: s3cret, api_keey: x } }", "api_keey"),
        ("profiles: { a: { url: http://h, api_key: [s3cret] } }", "api_key"),
        ("profiles: { a: { url: http://h, api_key: s3cret, api_key_env: B } }", "only one of"),
        ("profiles: { a: { url: http://h, api_key_env: UNSET_KEY } }", "UNSET_KEY is not set"),
        ("profiles: [", "not valid YAML in line"),
        ("profiles: { b: { url: http://h } }", "no profile 'a'"),
    ],
)
def test_a_wrong_profile_is_told_without_its_key(
    home: dict[str, str], text: str, words: str
) -> None:
    Path(home["XDG_CONFIG_HOME"], "llama-orch", "profiles.yaml").write_text(text, "utf-8")

    with pytest.raises(CliError) as caught:
        choose(None, "a", home)

    told = f"{caught.value.message} {caught.value.hint}"
    assert words in told
    assert "s3cret" not in told


def test_profiles_are_listed_without_their_keys(home: dict[str, str]) -> None:
    result = run("profiles", **home)

    assert "dev\thttp://127.0.0.1:1\tinline\tyes\n" in result.stdout
    assert "prod\thttp://127.0.0.1:2/\tenv PROD_KEY\t\n" in result.stdout
    assert "dev-key" not in result.output
    assert "chmod" not in result.output


def test_a_key_that_others_may_read_is_warned_of(home: dict[str, str]) -> None:
    Path(home["XDG_CONFIG_HOME"], "llama-orch", "profiles.yaml").chmod(0o644)

    assert "chmod 600" in run("profiles", **home).stderr
