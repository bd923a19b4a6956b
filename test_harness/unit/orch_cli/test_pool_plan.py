"""`llama-orch pools plan`: nothing is started, everything is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness_kit.model_files import gguf_bytes, llama_metadata, llama_tensors
from harness_kit.scripted_cli import run


def configuration(folder: Path, *pools: dict[str, Any]) -> str:
    path = folder / "c.json"
    path.write_text(
        json.dumps(
            {
                "auth": {"enabled": False},
                "platform": {"cpu_carve_out": True},
                "pools": [
                    {"id": f"p{number}", "engine": "llamacpp", "model": "builtin:smollm2"}
                    | {"ctx": 512, "launch": {}}
                    | pool
                    for number, pool in enumerate(pools)
                ],
            }
        )
    )
    return str(path)


def plan(folder: Path, *pools: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and one document per engine."""
    result = run("pools", "plan", "--config", configuration(folder, *pools), "--json")
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.req("ORCH-3001", partial="the process itself")
@pytest.mark.req("ORCH-3003", partial="Unready and the backoff")
def test_every_engine_is_shown_with_command_memory_and_what_is_free(tmp_path: Path) -> None:
    code, (first, second) = plan(tmp_path, {"launch": {"count": 2, "slots": 2}})

    assert code == 0
    assert (first["pool_id"], first["replica_id"], first["starts"]) == ("p0", "p0-0", True)
    assert first["command"][1:] == [
        *("-P", "-m", "pool_managerd.llamacpp_launcher", "--model", "builtin:smollm2"),
        *("--host", "127.0.0.1", "--port", "0", "--ctx", "512", "--parallel", "2"),
    ]
    (host,) = first["memory"]
    # 2 x 512 tokens of 23040 bytes.
    assert (host["place"], host["kv_bytes"]) == ("host", 2 * 512 * 23040)
    assert second["memory"][0]["free_bytes"] < host["free_bytes"]


def test_what_does_not_fit_exits_1_and_says_what_would(tmp_path: Path) -> None:
    code, (fits, huge) = plan(tmp_path, {}, {"ctx": 2**31 - 1})

    assert code == 1
    assert (fits["starts"], huge["starts"]) == (True, False)
    assert "of host memory" in huge["message"]
    assert "it would fit with ctx" in huge["message"]


def test_a_model_that_is_not_there_would_not_start(tmp_path: Path) -> None:
    code, (shown,) = plan(tmp_path, {"model": "file:/nowhere/model.gguf"})

    assert (code, shown["starts"]) == (1, False)
    assert "/nowhere/model.gguf does not exist" in shown["message"]


def test_a_model_that_its_engine_cannot_load_would_not_start(tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(gguf_bytes(llama_metadata(), llama_tensors())[:-1])

    code, (cut, fetched) = plan(
        tmp_path, {"model": f"file:{tmp_path}/cut.gguf"}, {"model": "repo:org/model"}
    )

    assert code == 1
    assert (cut["starts"], fetched["starts"]) == (False, False)
    assert "cut.gguf: cut at byte" in cut["message"]
    assert "'repo:org/model' is not a file" in fetched["message"]


@pytest.mark.req("ORCH-3012", partial="the configuration's rules")
@pytest.mark.req("OC-POOL-3020", partial="what the engine is given")
def test_a_split_over_gpus_shows_its_mask_its_ratios_and_each_devices_share(
    tmp_path: Path,
) -> None:
    launch = {"program": "llama-server", "env": {"HF_TOKEN": "hf_secret", "CUDA_X": "1"}}
    pool = {"devices": [0, "GPU-7f3a0000"], "tensor_split": [3, 1], "launch": launch}

    _, (shown,) = plan(tmp_path, pool)

    assert shown["command"][-4:] == ["--split-mode", "layer", "--tensor-split", "3,1"]
    assert shown["environment"] == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "0,GPU-7f3a0000",
        "CUDA_X": None,
        "HF_TOKEN": None,
    }
    first, second, host = shown["memory"]
    # 24 and 6 of 30 layers, and 4 slots of 512 tokens.
    assert (first["place"], first["kv_bytes"]) == ("0", 24 * 768 * 4 * 512)
    assert (second["place"], second["kv_bytes"]) == ("GPU-7f3a0000", 6 * 768 * 4 * 512)
    assert (first["free_bytes"], host["place"]) == (None, "host")


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    launch = {
        "command": ["run", "--api-key", "k-1234", "--hf-token=h-1234", "--max-total-tokens", "9"],
        "env": {"HF_TOKEN": "e-1234"},
    }
    config = configuration(tmp_path, {"launch": launch})

    result = run("pools", "plan", "--config", config)
    _, (shown,) = plan(tmp_path, {"launch": launch})

    assert "1234" not in result.output + json.dumps(shown)
    assert shown["command"] == [
        *("run", "--api-key", "[redacted]", "--hf-token=[redacted]", "--max-total-tokens", "9")
    ]
    assert shown["message"].startswith("not checked: launch.command does not name {model}")


def test_a_program_that_is_not_here_is_noted_and_a_contradiction_is_refused(
    tmp_path: Path,
) -> None:
    missing = {"engine": "vllm", "model": "repo:org/model"}
    refused = {"engine": "triton", "model": "repo:org/model", "launch": {"slots": 2}}

    code, (noted, failed) = plan(tmp_path, missing, refused)

    assert code == 1
    assert noted["starts"] is True
    assert "the engine vllm is not installed here" in noted["message"]
    assert failed["starts"] is False
    assert "launch.slots of pool p1" in failed["message"]


def test_a_draft_model_and_a_prefix_cache_have_figures_of_their_own(tmp_path: Path) -> None:
    draft = tmp_path / "draft.gguf"
    draft.write_bytes(gguf_bytes(llama_metadata(), llama_tensors()))
    launch = {"draft_model": f"file:{draft}", "prefix_cache_bytes": 1 << 20}

    _, (shown,) = plan(tmp_path, {"launch": launch})

    assert shown["memory"][0]["draft_model_bytes"] > 0
    assert shown["memory"][0]["prefix_cache_bytes"] == 1 << 20


def test_the_plan_for_people_names_the_engine_and_the_verdict(tmp_path: Path) -> None:
    result = run("pools", "plan", "--config", configuration(tmp_path, {}, {"ctx": 2**31 - 1}))

    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[1:3] == ["engine\tp0-0", "starts\tyes"]
    assert "engine\tp1-0" in lines
    assert any(line.startswith("starts\tno: needs ") for line in lines)


def test_a_configuration_that_launches_nothing_is_said_to(tmp_path: Path) -> None:
    replicas = [{"id": "r", "url": "http://127.0.0.1:9"}]
    config = configuration(tmp_path, {"launch": None, "replicas": replicas})

    result = run("pools", "plan", "--config", config)

    assert result.exit_code == 0
    assert "no pool launches anything" in result.stderr


def test_a_configuration_that_is_wrong_exits_2_with_its_problems(tmp_path: Path) -> None:
    result = run("pools", "plan", "--config", configuration(tmp_path, {"ctx": 0}))

    assert result.exit_code == 2
    assert "pools[0].ctx" in result.stderr


@pytest.mark.parametrize("words", [["pools"], ["pools", "show"], ["pools", "p0"]])
def test_pools_without_a_command_shows_how_pools_are(words: list[str]) -> None:
    result = run(*words, "--url", "http://127.0.0.1:1")

    assert result.exit_code == 5
    assert "no answer from http://127.0.0.1:1" in result.stderr
