"""A pool that loads its model from the store, with the real service and the real engine."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from harness_kit.http_probe import task, text_of
from harness_kit.service_process import CONTROL_KEY, POOL, ServiceProcess, launched_pool
from harness_kit.waiting import wait_until
from pool_managerd.model_files import SMOLLM2_SHA256, find_model
from pool_managerd.model_import import import_file
from pool_managerd.model_store import ModelStore
from pool_managerd.model_store_errors import ModelInUse

READY_S = 60.0


def health(service: ServiceProcess) -> dict[str, Any]:
    with service.probe(CONTROL_KEY) as probe:
        answer: dict[str, Any] = probe.get(f"/v1/pools/{POOL}/health").json()
    return answer


@pytest.mark.req("ORCH-3042")
@pytest.mark.req("ORCH-3037", partial="the catalog's artifacts, which come later")
def test_a_stored_model_serves_is_held_while_it_does_and_is_not_loaded_once_damaged(
    tmp_path: Path,
) -> None:
    service = ServiceProcess(tmp_path, launched_pool(1, model=f"sha256:{SMOLLM2_SHA256}"))
    store = ModelStore(service.state_dir / "models", None)
    imported = import_file(store, find_model("builtin:smollm2").path, SMOLLM2_SHA256)

    with service:
        before = store.models()[0].last_used_ms
        with pytest.raises(ModelInUse):
            store.remove(imported.digest)
        ready = health(service)
        stored_bytes = service.metric("model_store_bytes")
        with service.probe() as probe:
            document = task(f"sha256:{SMOLLM2_SHA256}", max_tokens=4)
            assert probe.post("/v1/tasks", document).status == 202
            said = probe.stream(document["task_id"]).rest()
        imported.path.chmod(0o644)
        with imported.path.open("r+b") as blob:
            blob.seek(-1, os.SEEK_END)
            last = blob.read(1)[0]
            blob.seek(-1, os.SEEK_END)
            blob.write(bytes([last ^ 1]))
        (pid,) = service.engine_pids().values()
        os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: health(service).get("last_error", {}).get("code") == "model",
            READY_S,
            "the refusal",
        )
        damaged = health(service)

    assert ready["replicas"][0]["model_digest"] == f"sha256:{SMOLLM2_SHA256}"
    assert before >= imported.last_used_ms
    assert stored_bytes == imported.size_bytes
    assert (said[-1].name, len(text_of(said)) > 0) == ("end", True)
    assert (damaged["ready"], damaged["state"]) == (False, "Unready")
    assert f"expected {SMOLLM2_SHA256}: damaged on disk" in damaged["last_error"]["message"]
    assert not store.in_use(imported.digest)
