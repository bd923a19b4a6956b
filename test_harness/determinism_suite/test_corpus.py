"""The corpus is a stable file of 64 seeds; ORCH_SEED_DEFAULT moves the seeds and nothing else."""

from __future__ import annotations

import hashlib

import pytest

from determinism_suite.corpus import SEEDS_FILE, load_corpus

# Recorded streams of other releases are of these seeds: a change of the file is a new corpus.
PINNED_SHA256 = "e25637015b99f5bc2609f804482f94a3777cdf125cd3876047aa9b7c5653f20a"


@pytest.mark.req("OC-TEST-7003")
def test_the_file_of_seeds_has_not_changed() -> None:
    digest = hashlib.sha256(SEEDS_FILE.read_bytes()).hexdigest()

    assert digest == PINNED_SHA256


@pytest.mark.req("OC-TEST-7003")
def test_there_are_64_different_seeds_of_at_least_32_tokens() -> None:
    entries = load_corpus({})

    assert len({entry.seed for entry in entries}) == len(entries) == 64
    assert min(entry.tokens for entry in entries) == 32
    # What a signed or an unsigned number of 32 bits would fold is among them.
    assert {0, 2**31 - 1, 2**31, 2**32 - 2, 2**63 - 1} <= {entry.seed for entry in entries}


def test_the_default_seed_of_the_environment_is_the_first_of_64_in_a_row() -> None:
    moved = load_corpus({"ORCH_SEED_DEFAULT": "1000"})

    assert [entry.seed for entry in moved] == list(range(1000, 1064))
    assert [entry.prompt for entry in moved] == [entry.prompt for entry in load_corpus({})]


@pytest.mark.parametrize("text", ["x", "-1", "1.5", str(2**63 - 64)])
def test_a_default_seed_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=f"ORCH_SEED_DEFAULT={text}: it must be a number"):
        load_corpus({"ORCH_SEED_DEFAULT": text})
