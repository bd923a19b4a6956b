"""What `llama-orch pool-managerd` refuses before it starts anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestratord.configuration import ConfigError
from orchestratord.manager_app import CannotManage, run_manager

EXTERNAL = {
    **{"id": "p", "engine": "llamacpp", "model": "builtin:smollm2", "ctx": 512},
    "replicas": [{"id": "r0", "url": "http://127.0.0.1:1"}],
}


def manage(directory: Path, manager_id: str, **pool: Any) -> None:
    """Run a manager; every one of these ends before it has made its folder."""
    file = directory / "c.json"
    state = str(directory / "state")
    document = {
        "server": {"state_dir": state},
        "auth": {"enabled": False},
        "pools": [EXTERNAL | pool],
    }
    file.write_text(json.dumps(document))
    try:
        run_manager(
            file,
            url="http://127.0.0.1:1",
            api_key=None,
            manager_id=manager_id,
            advertise_host="127.0.0.1",
            lease_ms=1000,
        )
    finally:
        assert not Path(state).exists()


@pytest.mark.parametrize("name", ["", "-a", "a/b", "a" * 64, "a b"])
def test_a_name_that_the_contract_does_not_know_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CannotManage, match="--id = "):
        manage(tmp_path, name)


def test_a_configuration_that_launches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotManage, match=r"c\.json: no pool has launch"):
        manage(tmp_path, "m0")


def test_a_wrong_configuration_is_refused_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pools\[0\]\.ctx"):
        manage(tmp_path, "m0", ctx=0)
