"""The model store: names that are digests, use, eviction."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pool_managerd.model_files import ModelMissing, find_model
from pool_managerd.model_import import import_file
from pool_managerd.model_store import ModelStore, StoredModel
from pool_managerd.model_store_errors import (
    BadModelReference,
    DigestMismatch,
    ModelInUse,
    ModelStoreError,
    QuotaExceeded,
    StoreDiskFull,
)
from pool_managerd.model_use import show_models, use_models
from pool_managerd.settings import LaunchSettings, PoolSettings
from pool_managerd.store_files import open_partial

# sha256 of "abc", FIPS 180-2 appendix B.1.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return store_of(tmp_path, 100)


def store_of(folder: Path, quota_bytes: int | None) -> ModelStore:
    ticks = iter(range(10**18, 2 * 10**18, 10**9))
    return ModelStore(folder / "store", quota_bytes, clock_ns=lambda: next(ticks))


@pytest.fixture
def put(tmp_path: Path, store: ModelStore) -> Callable[..., StoredModel]:
    def imported(
        content: bytes, *, sha256: str | None = None, name: str | None = None
    ) -> StoredModel:
        source = tmp_path / "model.gguf"
        source.write_bytes(content)
        return import_file(store, source, sha256, name=name)

    return imported


@pytest.mark.req("ORCH-3042")
def test_a_model_is_found_by_the_digest_of_its_content(
    store: ModelStore, put: Callable[..., StoredModel]
) -> None:
    model = put(b"abc", name="letters")

    found = find_model(f"sha256:{ABC.upper()}", store)
    assert model.digest == ABC
    assert (found.sha256, found.path.name, found.path.read_bytes()) == (ABC, ABC, b"abc")
    assert found.path.stat().st_mode & 0o777 == 0o444
    assert store.resolve("letters") == store.resolve("sha256:ba78") == ABC
    assert list(store.partials.iterdir()) == []


def test_a_model_that_is_not_there_says_how_to_import_it(store: ModelStore) -> None:
    with pytest.raises(ModelMissing, match=rf"llama-orch models import .* --sha256 {ABC}"):
        find_model(f"sha256:{ABC}", store)


@pytest.mark.parametrize("digest", ["sha256:", "sha256:../../etc/passwd", f"sha256:{ABC}0", "a/b"])
def test_what_is_no_digest_never_becomes_a_path(store: ModelStore, digest: str) -> None:
    with pytest.raises(BadModelReference, match="is no digest"):
        store.find(digest)


@pytest.mark.parametrize("name", ["", "../up", "a b", "\x1b[2J", ABC, "x" * 129])
def test_a_hostile_name_is_refused(put: Callable[..., StoredModel], name: str) -> None:
    with pytest.raises(BadModelReference, match="is no name for a model"):
        put(b"abc", name=name)


def test_a_link_under_a_digest_is_not_followed(store: ModelStore, tmp_path: Path) -> None:
    store.prepare()
    (store.path / "blobs" / "sha256" / ABC).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"abc")

    with pytest.raises(ModelMissing):
        store.use(ABC)


@pytest.mark.req("ORCH-3042")
def test_the_model_used_longest_ago_is_evicted_first(
    store: ModelStore, put: Callable[..., StoredModel]
) -> None:
    old, older = put(b"a" * 40), put(b"b" * 40)
    store.used(old.digest)

    new = put(b"c" * 50)

    assert {model.digest for model in store.models()} == {old.digest, new.digest}
    assert not older.path.exists()
    assert store.total_bytes() == 90


@pytest.mark.req("ORCH-3042")
def test_what_is_in_use_is_not_evicted_and_nothing_else_is_in_vain(
    store: ModelStore, put: Callable[..., StoredModel]
) -> None:
    loaded, idle = put(b"a" * 60), put(b"b" * 30)
    use = store.use(loaded.digest)

    with pytest.raises(QuotaExceeded) as refused:
        put(b"c" * 80)

    error = refused.value
    assert (error.needed_bytes, error.quota_bytes, error.in_use_bytes) == (80, 100, 60)
    assert store.in_use(loaded.digest)
    assert idle.path.exists()
    use.release()
    put(b"c" * 80)
    assert not loaded.path.exists()


def test_a_launch_that_is_called_off_lets_go_of_its_model(
    store: ModelStore, put: Callable[..., StoredModel]
) -> None:
    model = put(b"abc")
    use = store.use(model.digest)
    before = store.in_use(model.digest)

    del use

    assert (before, store.in_use(model.digest)) == (True, False)


def test_a_model_in_use_is_not_removed(store: ModelStore, put: Callable[..., StoredModel]) -> None:
    model = put(b"abc")
    use = store.use(model.digest)

    with pytest.raises(ModelInUse, match="stop the pools"):
        store.remove(model.digest)

    use.release()
    assert store.remove(model.digest) == 3
    assert store.models() == []


@pytest.mark.req("ORCH-3037", partial="the catalog's artifacts, which come later")
def test_a_damaged_model_is_not_loaded_and_an_import_replaces_it(
    store: ModelStore, put: Callable[..., StoredModel]
) -> None:
    model = put(b"abc")
    model.path.chmod(0o644)
    model.path.write_bytes(b"abd")
    pool, launch = PoolSettings("p", "llamacpp", f"sha256:{ABC}"), LaunchSettings()

    with pytest.raises(DigestMismatch, match=f"sha256 {hashlib.sha256(b'abd').hexdigest()}"):
        use_models(pool, launch, store)

    assert not store.in_use(ABC)
    assert put(b"abc").path.read_bytes() == b"abc"


def test_a_launch_sees_a_file_with_its_digest(
    store: ModelStore, put: Callable[..., StoredModel]
) -> None:
    model = put(b"abc")
    pool = PoolSettings("p", "llamacpp", f"sha256:{ABC}")
    launch = LaunchSettings(draft_model=f"sha256:{ABC}")

    used_pool, used_launch, uses = use_models(pool, launch, store)

    reference = f"file:{model.path}@sha256:{ABC}"
    assert (used_pool.model, used_launch.draft_model, len(uses)) == (reference, reference, 2)
    assert show_models(pool, launch, store) == (used_pool, used_launch)
    own = LaunchSettings(command=("engine", "--port", "{port}"))
    assert use_models(pool, own, store) == (pool, own, ())


def test_a_file_with_another_digest_than_said_is_not_imported(
    store: ModelStore, put: Callable[..., StoredModel]
) -> None:
    with pytest.raises(DigestMismatch, match=f"expected {ABC}: it is another file, or cut"):
        put(b"ab", sha256=ABC)

    assert store.total_bytes() == 0


@pytest.mark.req("ORCH-3042")
def test_only_content_that_was_verified_evicts(
    store: ModelStore, put: Callable[..., StoredModel]
) -> None:
    models = {put(b"a" * 40).digest, put(b"b" * 40).digest}
    during: list[int] = []
    new = store.path.with_name("new.gguf")
    new.write_bytes(b"c" * 50)

    with pytest.raises(DigestMismatch):
        import_file(store, new, ABC)
    after_mismatch = {model.digest for model in store.models()}
    import_file(store, new, progress=lambda done, _: during.append(len(store.models())))

    assert after_mismatch == models
    assert during == [2]  # both of them beside all that was written
    assert store.total_bytes() == 90


def test_what_is_no_regular_file_is_refused(store: ModelStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "sharded").mkdir()

    for name, why in [
        ("pipe", "no regular file"),
        ("empty", "is empty"),
        ("absent", "No such"),
        ("sharded", f"a pool names a folder by model: file:{tmp_path}/sharded"),
    ]:
        with pytest.raises(ModelStoreError, match=why):
            import_file(store, tmp_path / name)


def test_two_imports_of_one_model_do_not_mix(store: ModelStore, tmp_path: Path) -> None:
    store.prepare()
    with (
        open_partial(store.partials / ABC),
        pytest.raises(ModelInUse, match="another import"),
        open_partial(store.partials / ABC),
    ):
        raise AssertionError("both have it")


def test_an_import_without_room_on_the_disk_says_so_and_starts_nothing(tmp_path: Path) -> None:
    store = store_of(tmp_path, None)
    store.prepare()
    partial = store.partials / ABC

    with pytest.raises(StoreDiskFull, match=r"needs 1152921504606846976 more bytes"):
        store.prove_room(1 << 60, partial)


def test_damaged_sidecars_cost_names_only(
    store: ModelStore, put: Callable[..., StoredModel]
) -> None:
    put(b"abc", name="letters")
    (store.path / "about" / f"{ABC}.json").write_bytes(b'{"names": 3')

    (model,) = store.models()

    assert (model.digest, model.names, model.source) == (ABC, (), None)
