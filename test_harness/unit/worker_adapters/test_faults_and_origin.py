"""Engine addresses and failures, before they reach anyone."""

from __future__ import annotations

import pytest

from worker_adapters.adapter_api.faults import MESSAGE_MAX_CHARS, fault_of_status, one_line, reset
from worker_adapters.adapter_api.origin import Origin
from worker_adapters.adapter_api.types import EngineFault


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://10.0.0.1:9001", Origin("10.0.0.1", 9001, False, "")),
        ("http://gpu-1/llm/", Origin("gpu-1", 80, False, "/llm")),
        ("https://[::1]", Origin("::1", 443, True, "")),
    ],
)
def test_a_url_is_taken_apart(url: str, expected: Origin) -> None:
    assert Origin.of(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host",
        "host:80",
        "http://",
        "http://user:secret@host",
        "http://host/?q",
        "http://host:99999",
        "http://host/a b",
        "http://host/\u00e9",
    ],
)
def test_a_url_that_is_no_plain_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Origin.of(url)


def test_an_ipv6_address_is_bracketed_for_the_wire() -> None:
    assert Origin.of("http://[::1]:9001/x").base_url == "http://[::1]:9001/x"


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.2:1", True),
        ("http://localhost:1", True),
        ("http://[::1]:1", True),
        ("http://10.0.0.1:1", False),
        ("http://localhost.example:1", False),
    ],
)
def test_only_this_host_is_this_host(url: str, loopback: bool) -> None:
    assert Origin.of(url).is_loopback is loopback


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        (400, EngineFault.INVALID),
        (404, EngineFault.UNSUPPORTED),
        (429, EngineFault.UNAVAILABLE),
        (500, EngineFault.INTERNAL),
        (501, EngineFault.UNSUPPORTED),
        (503, EngineFault.UNAVAILABLE),
        (302, EngineFault.INTERNAL),
    ],
)
def test_a_status_has_one_fault(status: int, fault: EngineFault) -> None:
    assert fault_of_status(status) is fault


def test_a_message_is_one_short_printable_line() -> None:
    assert one_line("a\n\x00b\t c") == "a b c"
    assert len(one_line("x" * 10_000)) == MESSAGE_MAX_CHARS


def test_a_reset_does_not_name_the_engines_address() -> None:
    cause = ConnectionRefusedError(111, "Connect call failed ('10.0.0.1', 9001)")

    error = reset(cause)

    assert error.fault is EngineFault.RESET
    assert error.message == "connection to the engine: Connection refused"
