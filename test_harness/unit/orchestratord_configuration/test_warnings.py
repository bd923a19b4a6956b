"""Keys and secrets of a configuration, and what is a warning but no mistake."""

from __future__ import annotations

import pytest

from harness_kit.small_configuration import KEYS, POOL, accept, reject
from orchestratord.configuration import ConfigError

pytestmark = pytest.mark.req(
    "ORCH-3030", "OC-CONFIG-6001", partial="all but one rule of the configuration"
)

SECRET = "hunter2-and-more"


@pytest.mark.parametrize(
    "text",
    [
        KEYS.replace("key_env: ACME_KEY", f"key: {SECRET}") + POOL,
        KEYS.replace("key_env: ACME_KEY", f"key_env: {SECRET}") + POOL,
        KEYS.replace("key_env: ACME_KEY", f"key_hmac: {SECRET}") + POOL,
        KEYS.replace("key_env: ACME_KEY", f"key_hmac: [{SECRET}]") + POOL,
        f"auth: {{ keys: [ {SECRET} ] }}\n" + POOL,
        f"auth: {{ enabled: true, secret: {SECRET} }}\n" + POOL,
        KEYS + POOL + f"    launch: {{ env: {{ TOKEN: [{SECRET}] }} }}\n",
        KEYS + POOL + f"    launch: {{ args: [--api-key, {{ a: {SECRET} }}] }}\n",
        KEYS + POOL.replace("127.0.0.1:9001", f"user:{SECRET}@127.0.0.1:9001/ x"),
        f"cluster: {{ url: http://u:{SECRET}@h }}\n" + KEYS + POOL,
        KEYS.replace("key_env: ACME_KEY }", f'key_hmac: "{SECRET}') + POOL,
        KEYS.replace("key_env: ACME_KEY", f"key_hmac: *{SECRET}") + POOL,
    ],
)
def test_no_message_shows_a_secret(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        accept(text)

    assert SECRET not in str(caught.value)
    assert "hunter2" not in repr(caught.value.problems)


def test_a_key_variable_that_is_not_set_is_refused_by_name() -> None:
    ((key, value, rule, line),) = reject(KEYS + POOL, environ={})

    assert (key, value, line) == ("auth.keys[0].key_env", '"ACME_KEY"', 3)
    assert "not set" in rule


@pytest.mark.parametrize("fields", ["", "key_env: A, key_hmac: " + "a" * 40])
def test_a_key_needs_exactly_one_source(fields: str) -> None:
    text = f"auth:\n  keys:\n    - {{ id: d, tenant: t, roles: [data], {fields} }}\n" + POOL

    ((key, _, rule, _),) = reject(text)

    assert (key, rule) == ("auth.keys[0]", "needs exactly one of key_env / key_hmac")


@pytest.mark.req("OC-CLI-8003")
@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("platform: { cpu_carve_out: true }\n" + KEYS + POOL, "platform.cpu_carve_out"),
        ("journal: { sync: normal }\n" + KEYS + POOL, "journal.sync"),
        ("sessions: { budgets: { tokens: 1000 } }\n" + KEYS + POOL, "sessions.budgets.tokens"),
        ("auth: { enabled: false }\n" + POOL, "auth.enabled"),
        (KEYS, "POOL_UNAVAILABLE"),
        (
            "slos: { interactive: { first_token_p95_ms: null, tokens_64_p95_ms: null, "
            "error_ratio: null } }\n"
            + KEYS
            + POOL
            + "    admission: { circuit_breaker: { enabled: true } }\n",
            "admission.circuit_breaker.enabled",
        ),
        (KEYS + POOL + "    timeouts: { wall_ms: 10, idle_ms: 20 }\n", "timeouts.idle_ms"),
        (KEYS + POOL + "    launch: { count: 2 }\n", "ORCH-1101"),
        (
            KEYS + POOL + "    queue: { capacity: 3 }\n"
            "    admission: { priorities: [ { name: batch, queue_capacity: 4 } ] }\n",
            "queue.capacity",
        ),
        (
            KEYS + POOL + "    admission: { fairness: { tenants: [ { id: nobody } ] } }\n",
            "no key in auth.keys belongs to this tenant",
        ),
    ],
)
def test_what_may_surprise_is_a_warning_and_no_refusal(text: str, part: str) -> None:
    warnings = accept(text).warnings

    assert len(warnings) == 1
    assert part in warnings[0]


@pytest.mark.req("OC-CLI-8003", partial="all but warnings of what is not done yet")
@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("catalog: { trust_policy: {} }\n", "catalog.trust_policy = {}: models are not verified"),
        (
            "catalog: { trust_policy: { mode: permissive, require_signature: true } }\n",
            "models are not verified yet",
        ),
        ("cluster: { url: nats://h:4222 }\n", 'cluster.url = "nats://h:4222": not connected yet'),
        ("policy: { plugins: [a.wasm] }\n", "policy.plugins = […]: policy plugins are not loaded"),
    ],
)
def test_what_this_version_does_not_do_yet_is_said_loudly(text: str, part: str) -> None:
    (warning,) = accept(text + KEYS + POOL).warnings

    assert warning.startswith("line 1: ")
    assert part in warning


@pytest.mark.parametrize(
    "text",
    [
        "catalog: { trust_policy: { mode: permissive } }\n",
        "catalog: { store: { quota_bytes: 1 }, trust_policy: { mode: permissive } }\n",
        "catalog: {}\ncluster: {}\npolicy: { plugins: [] }\n",
        "catalog: null\ncluster: { url: null }\n",
    ],
)
def test_what_asks_for_nothing_is_no_warning(text: str) -> None:
    assert accept(text + KEYS + POOL).warnings == ()


@pytest.mark.parametrize("mode", ["off", "soft", "hard"])
def test_no_mode_of_preemption_is_a_warning(mode: str) -> None:
    assert accept(KEYS + POOL + f'    preemption: {{ mode: "{mode}" }}\n').warnings == ()


def test_a_key_that_can_be_guessed_is_warned_of_and_never_shown() -> None:
    (warning,) = accept(KEYS + POOL, environ={"ACME_KEY": "fifteen-letters"}).warnings

    assert 'auth.keys[0].key_env = "ACME_KEY": the key in it has fewer than 16' in warning
    assert "fifteen-letters" not in warning
    assert accept(KEYS + POOL, environ={"ACME_KEY": "sixteen--letters"}).warnings == ()
