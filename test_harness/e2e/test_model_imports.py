"""Imports from HTTP mirrors and by the command line's own process."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from harness_kit.scripted_server import Answer, Received, ScriptedServer
from harness_kit.waiting import wait_until
from pool_managerd.model_import import ImportCut, import_url
from pool_managerd.model_store import ModelStore
from pool_managerd.model_store_errors import (
    BadModelReference,
    DigestMismatch,
    ModelStoreError,
    QuotaExceeded,
)

CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()
CUT = 300_000
ETAG = '"one"'


def answer(
    content: bytes = CONTENT,
    *,
    etag: str | None = ETAG,
    ranges: bool = True,
    cut: int | None = None,
    sized: bool = True,
) -> Answer:
    """A mirror as RFC 9110 has it; `cut` ends the connection after that many bytes of the body."""

    def answered(request: Received) -> Iterable[bytes]:
        told = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        same = request.headers.get("if-range") in (None, etag)
        start = int(told[1]) if told and ranges and same else 0
        lines = ["HTTP/1.1 206 X" if start else "HTTP/1.1 200 X", "Connection: close"]
        if start:
            lines.append(f"Content-Range: bytes {start}-{len(content) - 1}/{len(content)}")
        if sized:
            lines.append(f"Content-Length: {len(content) - start}")
        if etag is not None:
            lines.append(f"ETag: {etag}")
        yield ("\r\n".join(lines) + "\r\n\r\n").encode()
        yield content[start:] if cut is None else content[start : start + cut]

    return answered


def redirect(location: str) -> Answer:
    return lambda _: [f"HTTP/1.1 302 X\r\nLocation: {location}\r\n\r\n".encode()]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return ModelStore(tmp_path / "store", 3 * len(CONTENT))


@pytest.mark.req("ORCH-3042")
def test_an_import_that_was_cut_goes_on_where_it_ended(store: ModelStore) -> None:
    seen: list[int] = []
    with ScriptedServer(answer(cut=CUT), answer()) as mirror:
        with pytest.raises(ImportCut, match="run the same command again") as cut:
            import_url(store, f"{mirror.url}/m", DIGEST)
        model = import_url(
            store, f"{mirror.url}/m", DIGEST, progress=lambda done, _: seen.append(done)
        )

    assert cut.value.kept_bytes == CUT
    first, second = (request.headers for request in mirror.requests)
    assert "range" not in first
    assert (second["range"], second["if-range"]) == (f"bytes={CUT}-", ETAG)
    assert seen == sorted(seen)
    assert seen[-1] == len(CONTENT)
    assert model.path.read_bytes() == CONTENT
    assert list(store.partials.iterdir()) == []


@pytest.mark.parametrize(
    "second",
    [answer(ranges=False), answer(etag='"two"'), answer(etag=None, ranges=False, sized=False)],
    ids=["no ranges", "another file now", "no ranges, no size, no ETag"],
)
def test_a_mirror_that_cannot_go_on_starts_over(store: ModelStore, second: Answer) -> None:
    other = CONTENT[::-1]
    with ScriptedServer(answer(other, cut=CUT), second) as mirror:
        with pytest.raises(ImportCut):
            import_url(store, f"{mirror.url}/m", DIGEST)
        model = import_url(store, f"{mirror.url}/m", DIGEST)

    assert model.path.read_bytes() == CONTENT


def test_another_mirror_goes_on_with_what_the_first_one_gave(store: ModelStore) -> None:
    with ScriptedServer(answer(cut=CUT)) as first, ScriptedServer(answer(etag='"b"')) as second:
        with pytest.raises(ImportCut):
            import_url(store, f"{first.url}/m", DIGEST)
        model = import_url(store, f"{second.url}/m", DIGEST)

    assert second.requests[0].headers["range"] == f"bytes={CUT}-"
    assert "if-range" not in second.requests[0].headers
    assert model.path.read_bytes() == CONTENT


@pytest.mark.req("ORCH-3042")
def test_content_with_another_digest_is_deleted_and_the_next_import_starts_anew(
    store: ModelStore,
) -> None:
    with ScriptedServer(answer(CONTENT[::-1]), answer()) as mirror:
        with pytest.raises(DigestMismatch, match=f"expected {DIGEST}") as wrong:
            import_url(store, f"{mirror.url}/m?token=s3cret", DIGEST)
        model = import_url(store, f"{mirror.url}/m?token=s3cret", DIGEST)

    assert wrong.value.digest == hashlib.sha256(CONTENT[::-1]).hexdigest()
    assert "s3cret" not in f"{wrong.value} {model.source}"
    assert "range" not in mirror.requests[1].headers


def test_a_model_that_is_there_is_not_fetched_again(store: ModelStore) -> None:
    with ScriptedServer(answer()) as mirror:
        import_url(store, f"{mirror.url}/m", DIGEST, name="one")
        again = import_url(store, f"{mirror.url}/m", DIGEST, name="two")

    assert len(mirror.requests) == 1
    assert again.names == ("one", "two")


def test_redirects_are_followed_and_bounded(store: ModelStore) -> None:
    with ScriptedServer(redirect("/b"), redirect("c"), answer()) as mirror:
        import_url(store, f"{mirror.url}/a", DIGEST)
    with (
        ScriptedServer(*[redirect("/a")] * 7) as circle,
        pytest.raises(ModelStoreError, match="more than 5 redirects"),
    ):
        import_url(store, f"{circle.url}/a", "0" * 64)

    assert [request.path for request in mirror.requests] == ["/a", "/b", "/c"]
    assert len(circle.requests) == 6


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/m", "http://u:p@h/"])
def test_a_redirect_leads_to_no_other_scheme_and_no_password(
    store: ModelStore, location: str
) -> None:
    with (
        ScriptedServer(redirect(location)) as mirror,
        pytest.raises(ModelStoreError, match="redirects"),
    ):
        import_url(store, f"{mirror.url}/a", DIGEST)


@pytest.mark.parametrize("sized", [True, False])
def test_a_file_beyond_the_quota_is_not_fetched(tmp_path: Path, sized: bool) -> None:
    store = ModelStore(tmp_path, 1000)
    with (
        ScriptedServer(answer(sized=sized)) as mirror,
        pytest.raises(QuotaExceeded, match="quota_bytes"),
    ):
        import_url(store, f"{mirror.url}/m", DIGEST)

    assert store.total_bytes() <= 1000


@pytest.mark.parametrize(
    "url", ["https://", "http://u:s3cret@h/m", "http://h:99999/m", "http://h/a b", "ftp://h/m"]
)
def test_what_is_no_mirror_is_refused_before_a_connection(store: ModelStore, url: str) -> None:
    with pytest.raises(BadModelReference) as refused:
        import_url(store, url, DIGEST)

    assert "s3cret" not in str(refused.value)


def models(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "orch_cli.main", "models", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"no_proxy": "127.0.0.1"},
    )


@pytest.mark.req("ORCH-3042")
def test_ctrl_c_leaves_a_partial_and_the_same_command_goes_on(tmp_path: Path) -> None:
    release = threading.Event()

    def stalls(request: Received) -> Iterable[bytes]:
        head, body = answer()(request)
        yield head
        yield body[:CUT]
        release.wait(60.0)

    partial = tmp_path / "partial" / DIGEST
    with ScriptedServer(stalls, answer()) as mirror:
        words = ("import", f"{mirror.url}/m", "--sha256", DIGEST, "--store", str(tmp_path))
        first = models(*words)
        try:
            wait_until(
                lambda: partial.exists() and partial.stat().st_size == CUT, 60.0, "the partial"
            )
            first.send_signal(signal.SIGINT)
            _, said = first.communicate(timeout=60)
        finally:
            release.set()
            first.kill()
            first.wait()
        second = models(*words, "--json")
        out, errors = second.communicate(timeout=60)

    assert (first.returncode, second.returncode) == (130, 0), said + errors
    assert f"{CUT} bytes are kept, run the same command again" in said
    assert mirror.requests[1].headers["range"] == f"bytes={CUT}-"
    *progress, imported = (json.loads(line) for line in out.splitlines())
    assert {line["event"] for line in progress} == {"progress"}
    assert progress[-1]["bytes_done"] == progress[-1]["bytes_total"] == len(CONTENT)
    assert (imported["event"], imported["digest"]) == ("imported", f"sha256:{DIGEST}")


@pytest.mark.req("ORCH-3042")
def test_a_pipe_gets_lines_of_progress_and_the_digest(tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(CONTENT)
    where = ("--store", str(tmp_path / "store"))

    out, said = (imported := models("import", str(source), *where)).communicate(timeout=60)
    blob = tmp_path / "store" / "blobs" / "sha256" / DIGEST
    blob.chmod(0o644)
    blob.write_bytes(b"damaged")
    verdict, problem = (verified := models("verify", *where)).communicate(timeout=60)

    assert (imported.returncode, out) == (0, f"sha256:{DIGEST}\n")
    assert f"{len(CONTENT)} of {len(CONTENT)} bytes (100 %)" in said
    assert "\x1b" not in said
    assert (verified.returncode, verdict) == (1, f"sha256:{DIGEST}\tFAILED\n")
    assert f"expected {DIGEST}" in problem
