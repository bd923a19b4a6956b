"""A reload as a decision: what is taken, what is refused, what is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

import orch_config
from orchestratord.configuration import ConfigError, LoadedConfig, Problem, ReloadRefused
from orchestratord.configuration.differences import Difference
from orchestratord.hot_reload import HotReload

pytestmark = pytest.mark.req("ORCH-3031", partial="that the running service follows")


def loaded(**sections: Any) -> LoadedConfig:
    return LoadedConfig(msgspec.convert(sections, orch_config.Config), ())


class Applied:
    """Remembers what took hold; `busy` refuses."""

    def __init__(self) -> None:
        self.configs: list[orch_config.Config] = []
        self.busy: str | None = None

    def conflict(self, changes: Sequence[Difference]) -> str | None:
        return self.busy

    def apply(self, config: orch_config.Config, changes: Sequence[Difference]) -> None:
        self.configs.append(config)


class Setting:
    """A reload of `file`, which a test changes."""

    def __init__(self, file: LoadedConfig) -> None:
        self.file: LoadedConfig | ConfigError = file
        self.applied = Applied()
        self.counted: list[str] = []
        self.reload = HotReload(file, self.read, self.applied, self.counted.append)

    def read(self) -> LoadedConfig:
        if isinstance(self.file, ConfigError):
            raise self.file
        return self.file

    def order(self, **arguments: Any) -> dict[str, Any]:
        return asyncio.run(self.reload.reload(**arguments))


def test_an_equal_file_changes_nothing() -> None:
    setting = Setting(loaded(sessions={"max_turns": 3}))

    change = setting.order()

    assert (change["applied"], change["revision"], change["changes"]) == (False, 1, [])
    assert (setting.applied.configs, setting.counted) == ([], ["unchanged"])


def test_a_live_key_is_applied_counted_and_told() -> None:
    setting = Setting(loaded())
    setting.file = after = loaded(sessions={"max_turns": 3})

    change = setting.order()

    assert change["changes"] == [
        {"key": "sessions.max_turns", "effect": "live", "before": 8, "after": 3}
    ]
    assert (change["applied"], change["revision"]) == (True, 2)
    assert (setting.applied.configs, setting.counted) == ([after.config], ["applied"])


def test_a_dry_run_tells_the_same_and_does_nothing() -> None:
    setting = Setting(loaded())
    setting.file = loaded(sessions={"max_turns": 3}, journal={"sync": "off"})

    change = setting.order(dry_run=True)

    assert [entry["effect"] for entry in change["changes"]] == ["restart", "live"]
    assert (change["applied"], change["revision"]) == (False, 1)
    assert (setting.applied.configs, setting.counted) == ([], [])


def test_one_key_that_needs_a_restart_refuses_the_rest_too() -> None:
    setting = Setting(loaded())
    setting.file = loaded(sessions={"max_turns": 3}, journal={"sync": "off"})

    with pytest.raises(ReloadRefused, match=r"journal\.sync: needs a restart") as refused:
        setting.order()

    assert not refused.value.invalid
    assert (setting.applied.configs, setting.counted) == ([], ["rejected"])


def test_findings_in_the_file_refuse_it() -> None:
    setting = Setting(loaded())
    setting.file = ConfigError([Problem("pools", "x", "is wrong")], "file.yaml")

    with pytest.raises(ReloadRefused, match="pools") as refused:
        setting.order()

    assert refused.value.invalid
    assert setting.reload.state()["revision"] == 1


def test_a_pool_that_is_busy_refuses() -> None:
    setting = Setting(loaded())
    setting.file = loaded(sessions={"max_turns": 3})
    setting.applied.busy = "pools[p]: the last change is still under way"

    with pytest.raises(ReloadRefused, match="still under way"):
        setting.order()

    assert setting.applied.configs == []


def test_a_dry_run_says_what_would_hinder_it() -> None:
    setting = Setting(loaded())
    setting.file = loaded(sessions={"max_turns": 3})
    setting.applied.busy = "pools[p]: the last change is still under way"

    change = setting.order(dry_run=True)

    assert change["warnings"] == [
        "it would be refused: pools[p]: the last change is still under way"
    ]
    assert setting.counted == []


def test_what_could_not_be_applied_is_not_in_force() -> None:
    setting = Setting(loaded())
    setting.file = loaded(sessions={"max_turns": 3})

    def fail(config: orch_config.Config, changes: Sequence[Difference]) -> None:
        raise ValueError("half way")

    setting.applied.apply = fail  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="half way"):
        setting.order()

    assert setting.reload.state()["revision"] == 1


def test_a_revert_goes_back_once_and_forth_again() -> None:
    before, after = loaded(), loaded(sessions={"max_turns": 3})
    setting = Setting(before)
    setting.file = after
    setting.order()

    asyncio.run(setting.reload.revert())
    asyncio.run(setting.reload.revert())

    assert setting.applied.configs == [after.config, before.config, after.config]
    assert setting.counted == ["applied", "reverted", "reverted"]
    assert setting.reload.state()["revision"] == 4


@pytest.mark.req("OC-CTRL-2041", partial="logs, errors and metrics")
def test_no_secret_is_shown() -> None:
    secret = "v1:6b2f:" + "ab" * 32
    key = {"id": "k", "tenant": "t", "roles": ["data"], "key_hmac": secret}
    pool = {
        "id": "p",
        "engine": "vllm",
        "model": "repo:m",
        "ctx": 64,
        "launch": {"env": {"HF_TOKEN": "hunter2-and-more"}},
    }
    setting = Setting(loaded(cluster={"url": "nats://user:pass@127.0.0.1:4222"}))
    setting.file = loaded(
        auth={"keys": [key]}, pools=[pool], cluster={"url": "nats://user:pass@127.0.0.1:4222"}
    )

    change = setting.order()
    changed = loaded(
        auth={"keys": [key | {"key_hmac": secret.replace("ab", "cd")}]},
        pools=[pool | {"launch": {"env": {"HF_TOKEN": "other-and-more"}}}],
        cluster={"url": "nats://user:pass@127.0.0.1:4222"},
    )
    setting.file = changed
    again = setting.order()
    told = f"{change} {again} {setting.reload.state()}"

    for hidden in (secret, "cdcd", "hunter2", "other-and-more", "user:pass"):
        assert hidden not in told
    assert "HF_TOKEN" in told
    assert [entry["key"] for entry in again["changes"]] == [
        "auth.keys[k].key_hmac",
        "pools[p].launch.env.HF_TOKEN",
    ]
