"""What an operator is shown of a configuration holds none of its secrets."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import orch_config
from orchestrator_core.redaction import REDACTED
from orchestratord.configuration.public_view import public_value, public_view

pytestmark = pytest.mark.req("OC-CTRL-2041", partial="the HTTP part")

SECRET = "sk-4f1b2c"


def launched(**launch: Any) -> dict[str, Any]:
    """The launch section of a pool, as it is shown."""
    pool: dict[str, Any] = {"id": "p", "engine": "llamacpp", "model": "file:/m.gguf"}
    pool |= {"quant": "none", "ctx": 64, "launch": launch}
    config = msgspec.convert({"version": 1, "pools": [pool]}, orch_config.Config)
    shown: dict[str, Any] = public_view(config)["pools"][0]["launch"]
    return shown


@pytest.mark.parametrize("key", ["args", "command"])
@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--api-key", SECRET, "-c", "9"], ["--api-key", REDACTED, "-c", "9"]),
        ([f"--hf_token={SECRET} x", "--max-tokens", "9"],
         [f"--hf_token={REDACTED}", "--max-tokens", "9"]),
        (["env", f"ENGINE_API_KEY={SECRET}", "run"], ["env", f"ENGINE_API_KEY={REDACTED}", "run"]),
        (["sh", "-c", f"serve --password '{SECRET} x' -v"],
         ["sh", "-c", f"serve --password {REDACTED} -v"]),
        (["--from", f"http://me:{SECRET}@h/x?sig={SECRET}"], ["--from", "http://h/x"]),
        ([f"http://me:{SECRET}@h/x?token={SECRET}"], ["http://h/x"]),
        (["--api-key", "--secret", "7"], ["--api-key", REDACTED, "7"]),
    ],
)  # fmt: skip
def test_secret_words_of_a_command_line_are_hidden(
    key: str, given: list[str], shown: list[str]
) -> None:
    whole = launched(**{key: given})
    changed = public_value(f"pools[p].launch.{key}", given)

    assert whole[key] == shown
    assert changed == shown


def test_values_of_the_environment_are_hidden_and_its_names_shown() -> None:
    shown = launched(env={"HF_TOKEN": SECRET})
    changed = public_value("pools[p].launch.env.HF_TOKEN", SECRET)

    assert shown["env"] == {"HF_TOKEN": REDACTED}
    assert changed == REDACTED


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"http://h:1/a?token={SECRET}", "http://h:1/a"),
        (f"https://me:{SECRET}@h/a", "https://h/a"),
        (f"https://me:p@{SECRET}@h", "https://h"),
        (f"http://h?token={SECRET}", "http://h"),
        (f"http://h/a#token={SECRET}", "http://h/a"),
        ("http://h:1/a", "http://h:1/a"),
        ("what? no address", "what? no address"),
    ],
)
def test_addresses_lose_their_user_query_and_fragment(address: str, shown: str) -> None:
    value = public_value("pools[p].replicas", [{"id": "r", "url": address}])

    assert value == [{"id": "r", "url": shown}]


def test_a_pool_that_comes_with_a_reload_hides_the_same() -> None:
    pool = {"id": "p", "launch": {"args": ["--api-key", SECRET], "env": {"A": SECRET}}}

    value = public_value("pools[p]", pool)

    assert value["launch"] == {"args": ["--api-key", REDACTED], "env": {"A": REDACTED}}
