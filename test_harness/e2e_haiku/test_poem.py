"""What is asked for and what is taken for a poem."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime

import pytest

from e2e_haiku.poem import Assignment, minute_in_words

ASSIGNMENT = Assignment("forty-two", "ab3de9xq")


@pytest.mark.parametrize(
    ("minute", "words"),
    [(0, "zero"), (7, "seven"), (19, "nineteen"), (20, "twenty"), (42, "forty-two"), (50, "fifty")],
)
def test_minutes_have_english_names(minute: int, words: str) -> None:
    assert minute_in_words(minute) == words


@pytest.mark.req("OC-E2E-9001", partial="who writes the poem")
def test_the_assignment_is_the_minute_of_amsterdam_and_eight_random_characters() -> None:
    instant = datetime(2026, 7, 1, 23, 42, 59, tzinfo=UTC)

    drawn = [Assignment.at(instant, random.Random(seed)) for seed in range(100)]

    assert {one.minute for one in drawn} == {"forty-two"}
    assert len({one.nonce for one in drawn}) == 100
    assert all(re.fullmatch("([a-z][0-9]){4}", one.nonce) for one in drawn)


@pytest.mark.req("OC-E2E-9001", partial="who writes the poem")
@pytest.mark.parametrize("minute", range(60))
def test_only_the_last_message_holds_the_strings_and_it_asks_for_the_poem_alone(
    minute: int,
) -> None:
    assignment = Assignment(minute_in_words(minute), "ab3de9xq")

    *examples, request = assignment.messages(random.Random(minute))

    assert request.role == "user"
    assert f'"minute {assignment.minute}"' in request.content
    assert f'"{assignment.nonce}"' in request.content
    assert "haiku" in request.content
    assert "only the poem" in request.content
    for message in examples:
        assert assignment.nonce not in message.content
        assert not re.search(rf"(?<![\w-]){assignment.minute}(?![\w-])", message.content)


@pytest.mark.req("OC-E2E-9002", partial="the service around the text")
@pytest.mark.parametrize(
    "text",
    [
        "forty-two\na wolf howls at the moon\nab3de9xq",
        "\nForty winks at forty-two,\n\nthe moon says ab3de9xq\nand sleeps\nagain\n",
    ],
)
def test_three_lines_with_both_strings_are_the_poem(text: str) -> None:
    assert ASSIGNMENT.fault_of(text) is None


@pytest.mark.req("OC-E2E-9002", partial="the service around the text")
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("forty-two ab3de9xq\nthe moon", "2 lines"),
        ("forty-two\n  \n\nab3de9xq", "2 lines"),
        ("forty-one\nthe moon\nab3de9xq", "minute"),
        ("forty-two\nthe moon\nab3de9xQ", "nonce"),
        ("forty-two\nthe moon\nab3de9x q", "nonce"),
        ("", "0 lines"),
    ],
)
def test_anything_else_is_not(text: str, fault: str) -> None:
    assert fault in str(ASSIGNMENT.fault_of(text))


@pytest.mark.req("OC-E2E-9002", partial="the service around the text")
def test_a_minute_inside_another_one_does_not_count() -> None:
    assert "minute" in str(Assignment("two", "ab3de9xq").fault_of("forty-two\nmoon\nab3de9xq"))


@pytest.mark.req("OC-E2E-9001", partial="who writes the poem")
def test_the_request_repeated_is_not_the_poem_alone() -> None:
    request = ASSIGNMENT.messages(random.Random(1))[-1].content.replace(". ", ".\n")

    assert "poem alone" in str(ASSIGNMENT.fault_of(request))
