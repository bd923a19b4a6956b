"""Seeds that follow from ids, and the key under which bytes may be compared."""

from __future__ import annotations

from itertools import combinations

import pytest

from orchestrator_core.determinism import derive_seed, determinism_key

BASE = {
    "prompt": "hello",
    "params": {"temperature": 0.5, "stop": ["a", "b"], "max_tokens": 8},
    "seed": 7,
    "sampler_profile": "v1",
    "engine_version": "b1",
    "model_digest": "sha256:aa",
}


def key(**changes: object) -> str:
    return determinism_key(**(BASE | changes))  # type: ignore[arg-type]


@pytest.mark.req("ORCH-3045", partial="equal bytes are proved with real engines")
def test_a_seed_is_a_non_negative_int64_of_the_task_id_alone() -> None:
    ids = [f"00000000-0000-4000-8000-{n:012d}" for n in range(1000)]

    seeds = [derive_seed(task_id) for task_id in ids]

    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == 1000
    assert seeds == [derive_seed(task_id) for task_id in ids]


def test_the_seed_is_the_same_in_every_release() -> None:
    # A value of record: another one would break the replay of every stream so far.
    assert derive_seed("3f0c1b52-8f7d-4a55-9d0e-0123456789ab") == 631659432414452885


@pytest.mark.req("OC-CORE-1030", partial="all but one property of the key")
class TestDeterminismKey:
    @pytest.mark.req("OC-CORE-1030")
    def test_each_part_changes_the_key(self) -> None:
        keys = [
            key(),
            key(prompt="hello "),
            key(params={"temperature": 0.6, "stop": ["a", "b"], "max_tokens": 8}),
            key(seed=8),
            key(sampler_profile="v2"),
            key(engine_version="b2"),
            key(model_digest="sha256:ab"),
        ]

        assert len(set(keys)) == len(keys)

    def test_the_order_of_parameter_names_does_not_matter(self) -> None:
        turned = dict(reversed(list(BASE["params"].items())))  # type: ignore[attr-defined]

        assert key(params=turned) == key()

    def test_neighbouring_parts_cannot_run_into_each_other(self) -> None:
        values = [
            key(sampler_profile="v1b", engine_version="1"),
            key(sampler_profile="v1", engine_version="b1"),
            key(prompt=["ab", "c"]),
            key(prompt=["a", "bc"]),
            key(prompt="abc"),
            key(prompt=["a", "b", "c"]),
            key(prompt=["1:a"]),
        ]

        assert all(a != b for a, b in combinations(values, 2))

    def test_values_of_different_types_differ(self) -> None:
        values = [key(prompt=value) for value in (1, 1.0, "1", True, None, b"1", [1], {"1": 1})]

        assert len(set(values)) == len(values)

    def test_what_has_no_canonical_form_is_refused(self) -> None:
        with pytest.raises(TypeError, match="object"):
            key(prompt=object())
