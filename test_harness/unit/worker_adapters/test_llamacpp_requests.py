"""What the llama.cpp adapter sends and how it reads names."""

from __future__ import annotations

import json

import pytest

from worker_adapters.adapter_api.types import DecodeRequest, EngineFault, Sampling
from worker_adapters.llamacpp_http.client import settings_digest, split_alias
from worker_adapters.llamacpp_http.completion import completion_body, engine_seed, error_of
from worker_adapters.llamacpp_http.wire import GenerationDefaults, Props


@pytest.mark.req("ORCH-3045", partial="all but the seed that an engine gets")
@pytest.mark.parametrize(
    ("seed", "sent"),
    [
        (0, 0),
        (7, 7),
        (2**32 + 7, 7),
        (2**32 - 2, 2**32 - 2),
        (2**32 - 1, 0),  # would be a random one
        (2**63 - 1, 0),
    ],
)
def test_a_seed_is_folded_into_32_bits_and_never_random(seed: int, sent: int) -> None:
    assert engine_seed(seed) == sent


@pytest.mark.req("OC-ADAPT-5010")
@pytest.mark.req("ORCH-3058", partial="all but prompts that are not cached")
def test_a_cold_decode_uses_no_cached_prompt() -> None:
    cold = DecodeRequest("p", 1, 1, Sampling(), True)
    warm = DecodeRequest("p", 1, 1, Sampling(), False)

    assert json.loads(completion_body(cold))["cache_prompt"] is False
    assert json.loads(completion_body(warm))["cache_prompt"] is True


@pytest.mark.req("OC-ADAPT-5011")
@pytest.mark.req("ORCH-3032", partial="all but the adapter's part")
@pytest.mark.parametrize(
    ("alias", "expected"),
    [
        ("m@xllamacpp-1+ubatch=1", ("m", "xllamacpp-1", "ubatch=1")),
        ("m@v2", ("m", "v2", "")),
        ("plain name", ("plain name", "", "")),
        ("", ("", "", "")),
    ],
)
def test_an_alias_is_name_version_and_settings(alias: str, expected: tuple[str, str, str]) -> None:
    assert split_alias(alias) == expected


def props(alias: str = "m@v1+a", **defaults: object) -> Props:
    return Props(4, GenerationDefaults(1024, defaults), model_alias=alias)


def test_settings_sent_with_each_request_do_not_count_others_do() -> None:
    base = settings_digest(props(typical_p=1.0, temperature=0.8))

    assert settings_digest(props(typical_p=1.0, temperature=0.1)) == base
    assert settings_digest(props(alias="other@v2+a", typical_p=1.0)) == base
    assert settings_digest(props(typical_p=0.9)) != base
    assert settings_digest(props(alias="m@v1+b", typical_p=1.0)) != base


def test_an_error_without_words_names_the_status() -> None:
    error = error_of(500, b'{"error":{"message":""}}')

    assert (error.fault, error.message) == (EngineFault.INTERNAL, "the engine answered 500")
