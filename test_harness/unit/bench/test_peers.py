"""The measured service is configured as one that somebody deploys."""

from __future__ import annotations

from pathlib import Path

import yaml

from bench.peers import KEY, KEY_VARIABLE, MODEL_REF, SLOTS, service_config
from bench.relay import PACED_STREAMS
from orchestratord.configuration import load_config


def test_the_configuration_is_valid_with_journal_auth_and_metrics_on(tmp_path: Path) -> None:
    file = tmp_path / "bench.yaml"
    file.write_text(yaml.safe_dump(service_config(4711, tmp_path)))

    loaded = load_config(file, environ={KEY_VARIABLE: KEY})

    config = loaded.config
    (pool,) = config.pools
    assert config.journal.sync == "full"
    assert config.auth.enabled
    assert set(config.auth.keys[0].roles) == {"data", "control", "metrics"}
    assert (pool.model, pool.replicas[0].url) == (MODEL_REF, "http://127.0.0.1:4711")


def test_no_stream_of_the_paced_phase_waits_for_a_slot() -> None:
    assert SLOTS >= PACED_STREAMS
