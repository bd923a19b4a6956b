"""The scanner finds a secret, and calls nothing else one."""

from __future__ import annotations

import json

import pytest

from harness_kit.secret_scan import SecretLeak, check, check_error, learn, learn_prompts
from harness_kit.service_process import SECRETS

pytestmark = pytest.mark.req("OC-CTRL-2041", partial="that the scanner would find one")

HIDDEN = [
    '{"api_key": "[redacted]", "key_env": "ACME_KEY"}',
    '{"tokens_out": 64, "password": null, "secret": ""}',
    "Authorization: Bearer [redacted]",
    "http://mirror.example/models?[redacted]",
    "llama_orch_tokens_out_total 12",
    "the key is unknown here, or lacks the role for this command",
]
SHOWN = {
    SECRETS[0]: "the secret data…",
    "-----BEGIN PRIVATE KEY-----": "a private key",
    "http://user:hunter22@mirror.example/": "credentials in an address",
    "Authorization: Bearer abcdef0123456789": "a bearer token",
    '{"api_key": "abcdef0123456789"}': "the value of a secret field",
    "--password=abcdef0123456789": "the value of a secret field",
}


@pytest.mark.parametrize("text", HIDDEN)
def test_what_is_hidden_or_no_secret_is_left_alone(text: str) -> None:
    check("example", text, "a log")


@pytest.mark.parametrize("secret", SHOWN)
def test_a_secret_is_found_in_the_middle_of_a_log_and_not_quoted(secret: str) -> None:
    with pytest.raises(SecretLeak, match="the log of p0 holds ") as leak:
        check("example", f'{{"event": "x"}}\nbefore {secret} after\n', "the log of p0")

    assert SHOWN[secret] in str(leak.value)
    assert secret not in str(leak.value)


def test_what_a_client_sent_as_a_name_may_come_back_to_it_and_nothing_else_may() -> None:
    check("example", f"no task {SECRETS[0]}", "an answer", sent=f"/v1/tasks/{SECRETS[0]}")

    with pytest.raises(SecretLeak, match=r"cont….*ever….*metr….*othe…"):
        check("example", " ".join(SECRETS), "an answer", sent=f"/v1/tasks/{SECRETS[0]}")


HEAD = b"POST /v1/tasks/t%201 HTTP/1.1\r\nAuthorization: Bearer not-a-known-key\r\n\r\n"
ASKED = {
    "model_ref": "a model",
    "prompt": 'what "nobody" sees',
    "inputs": ["first of two inputs"],
    "messages": [{"role": "assistant", "content": "said before"}],
}
REQUEST = HEAD + json.dumps(ASKED).encode()


@pytest.mark.parametrize("name", ["a model", "t 1", "assistant", "messages"])
def test_an_error_may_name_what_its_request_named(name: str) -> None:
    learn_prompts(REQUEST)

    check_error(json.dumps({"message": f"no {name}"}).encode(), "an error", REQUEST)


@pytest.mark.parametrize(
    ("secret", "request_"),
    [
        ("not-a-known-key", REQUEST),
        (SECRETS[1], REQUEST),
        ('what "nobody" sees', REQUEST),
        ("first of two inputs", b""),  # the error of a stream, which another request asked for
        ("said before", HEAD),
    ],
)
def test_an_error_shows_no_credential_and_nothing_that_was_asked(
    secret: str, request_: bytes
) -> None:
    learn_prompts(REQUEST)

    with pytest.raises(SecretLeak, match=f"an error holds the secret {secret[:4]}…"):
        check_error(json.dumps({"message": f"about {secret}!"}).encode(), "an error", request_)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="under 8"):
        learn(["abc"])
