"""Every help has an example that can be pasted."""

from __future__ import annotations

import pytest

from harness_kit.scripted_cli import every_command, run


@pytest.mark.parametrize(
    "command", tuple(every_command()), ids=lambda words: " ".join(words) or "root"
)
def test_every_help_has_an_example_and_the_exit_statuses(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")

    assert result.exit_code == 0
    assert "llama-orch " in result.stdout
    assert "Exit status: 0 done" in result.stdout


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        (
            ["submit"],
            [
                'git diff | llama-orch submit - --system "Summarise this change." --stream '
                "--retry 5",
            ],
        ),
        (
            ["profiles"],
            [
                "default: dev",
                "profiles:",
                '  dev:  { url: "http://127.0.0.1:8080", api_key_env: ACME_KEY }',
                '  prod: { url: "https://llm.example.com", api_key_file: ~/.keys/llm }',
            ],
        ),
        ([], ['llama-orch submit "The capital of France is" --stream']),
        (["keys", "hash"], ["pass show llm/acme | llama-orch keys hash"]),
    ],
)
def test_examples_in_help_can_be_pasted_whatever_the_width(
    command: list[str], lines: list[str]
) -> None:
    shown = run(*command, "--help", COLUMNS="50").stdout.splitlines()

    first = next(number for number, line in enumerate(shown) if line.strip() == lines[0])
    indent = shown[first].index(lines[0][0])
    assert [line[indent:] for line in shown[first : first + len(lines)]] == lines
