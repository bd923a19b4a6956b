"""What a replica is taken to hold of prompts, within its bound."""

from __future__ import annotations

import pytest

from orchestrator_core.placement.prefix_tree import BLOCK_TOKENS, MAX_NODES, PrefixTree, nodes_for

# Chain hashes as admission makes them: equal numbers stand for equal beginnings.
SYSTEM = (1, 2, 3)
QUESTION_A = (*SYSTEM, 10, 11)
QUESTION_B = (*SYSTEM, 20)


@pytest.mark.req("ORCH-3205")
class TestHeld:
    def test_nothing_is_held_of_what_was_never_read(self) -> None:
        tree = PrefixTree(8)
        tree.remember(QUESTION_A)

        assert tree.held((99, 2, 3)) == 0
        assert tree.held(()) == 0

    def test_what_two_prompts_share_is_held_and_no_more(self) -> None:
        tree = PrefixTree(8)
        tree.remember(QUESTION_A)

        assert tree.held(QUESTION_B) == 3
        assert tree.held(QUESTION_A) == 5
        assert tree.held((*QUESTION_A, 12, 13)) == 5

    def test_a_shared_beginning_is_stored_once(self) -> None:
        tree = PrefixTree(8)
        tree.remember(QUESTION_A)
        tree.remember(QUESTION_B)

        assert len(tree) == 6


@pytest.mark.req("ORCH-3205")
@pytest.mark.req("ORCH-3022", partial="the account of sessions")
class TestBound:
    def test_the_end_of_what_was_used_longest_ago_goes_first(self) -> None:
        tree = PrefixTree(6)
        tree.remember(QUESTION_A)
        tree.remember(QUESTION_B)

        tree.remember((30, 31))

        # 11 and then 10 had been used before all others; their parents are QUESTION_B's too.
        assert tree.held(QUESTION_A) == 3
        assert tree.held(QUESTION_B) == 4
        assert tree.held((30, 31)) == 2

    def test_use_keeps_a_prefix(self) -> None:
        tree = PrefixTree(4)
        tree.remember((1, 2))
        tree.remember((10, 11))
        tree.remember((1, 2))

        tree.remember((20,))

        assert tree.held((1, 2)) == 2
        assert tree.held((10, 11)) == 1

    def test_of_a_prompt_longer_than_the_bound_the_beginning_is_kept(self) -> None:
        tree = PrefixTree(3)
        tree.remember(QUESTION_A)

        assert len(tree) == 3
        assert tree.held(QUESTION_A) == 3

    @pytest.mark.parametrize(
        ("kv_tokens", "nodes"),
        [(0, 1), (BLOCK_TOKENS, 1), (10 * BLOCK_TOKENS + 1, 10), (10**9, MAX_NODES)],
    )
    def test_a_tree_is_as_large_as_the_engines_kv_within_a_bound(
        self, kv_tokens: int, nodes: int
    ) -> None:
        assert nodes_for(kv_tokens) == nodes
