"""Whatever is imported, used, cut, damaged and evicted: names stay digests, quotas and uses hold.

Hypothesis plays two processes' views of one store's folder; the model is a table of contents.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pool_managerd.model_files import ModelMissing
from pool_managerd.model_import import import_file
from pool_managerd.model_store import ModelStore, ModelUse
from pool_managerd.model_store_errors import QuotaExceeded

QUOTA_BYTES = 100
CONTENTS = [
    bytes([letter]) * size for letter, size in zip(b"abcdef", (7, 20, 33, 50, 60, 101), strict=True)
]
DIGESTS = [hashlib.sha256(content).hexdigest() for content in CONTENTS]
MODELS = st.sampled_from(range(len(CONTENTS)))


class _Killed(BaseException):
    """As SIGKILL: nothing of the import runs any more."""


class ModelStoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self._now_ns = 10**18
        self.stores = [ModelStore(folder / "s", QUOTA_BYTES, self._clock_ns) for _ in range(2)]
        self.sources = [folder / f"{number}.gguf" for number in range(len(CONTENTS))]
        for source, content in zip(self.sources, CONTENTS, strict=True):
            source.write_bytes(content)
        self.uses: list[tuple[int, ModelUse]] = []
        self.last_used: dict[int, int] = {}
        self.tick = 0

    def teardown(self) -> None:
        for _, use in self.uses:
            use.release()
        self._folder.cleanup()

    def _clock_ns(self) -> int:
        self._now_ns += 10**9
        return self._now_ns

    def _there(self) -> set[int]:
        return {DIGESTS.index(model.digest) for model in self.stores[0].models()}

    def _used_now(self, model: int) -> None:
        self.tick += 1
        self.last_used[model] = self.tick

    @rule(model=MODELS, view=st.integers(0, 1))
    def is_imported(self, model: int, view: int) -> None:
        before = self._there()
        held = {number for number, _ in self.uses}
        held_bytes = sum(len(CONTENTS[number]) for number in held - {model})
        fits = len(CONTENTS[model]) + held_bytes <= QUOTA_BYTES
        if model in before:
            fits = True
            import_file(self.stores[view], self.sources[model], DIGESTS[model])
        elif fits:
            import_file(self.stores[view], self.sources[model])
        else:
            with pytest.raises(QuotaExceeded):
                import_file(self.stores[view], self.sources[model])
            assert self._there() == before, "evicted in vain"
            return
        self._used_now(model)
        after = self._there()
        evicted = before - after
        idle = (before & after) - held - {model}
        assert all(self.last_used[e] < self.last_used[k] for e in evicted for k in idle)
        assert model in after

    @rule(model=MODELS)
    def an_import_is_killed(self, model: int) -> None:
        def killed(done_bytes: int, total_bytes: int | None) -> None:
            raise _Killed

        held = {number for number, _ in self.uses}
        before = self._there()
        with contextlib.suppress(_Killed, QuotaExceeded):
            import_file(self.stores[0], self.sources[model], progress=killed)
        assert model in before or model not in self._there()
        assert held <= self._there()

    @rule(model=MODELS, view=st.integers(0, 1))
    def is_used(self, model: int, view: int) -> None:
        if model not in self._there():
            with pytest.raises(ModelMissing):
                self.stores[view].use(DIGESTS[model])
            return
        self.uses.append((model, self.stores[view].use(DIGESTS[model])))
        self.stores[view].used(DIGESTS[model])
        self._used_now(model)

    @precondition(lambda self: self.uses)
    @rule(data=st.data())
    def is_released(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.uses) - 1))
        self.uses.pop(number)[1].release()

    @invariant()
    def names_are_digests(self) -> None:
        for model in self.stores[0].models():
            assert hashlib.sha256(model.path.read_bytes()).hexdigest() == model.digest

    @invariant()
    def the_quota_holds(self) -> None:
        assert sum(m.size_bytes for m in self.stores[0].models()) <= QUOTA_BYTES

    @invariant()
    def what_is_used_is_there(self) -> None:
        assert {number for number, _ in self.uses} <= self._there()


TestModelStore = pytest.mark.req("ORCH-3042")(ModelStoreMachine.TestCase)
TestModelStore.settings = settings(max_examples=20, stateful_step_count=12, deadline=None)
