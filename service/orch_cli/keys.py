"""`llama-orch keys`: make what a configuration stores of an API key (ORCH-3035).

Invariant: a key is never an argument, where every user of the machine could read it, and a key
that was handed in is never printed.
"""

from __future__ import annotations

import getpass
import os
import secrets
import sys
from typing import Annotated

import typer

from orch_cli.exit_codes import EPILOG, CliError
from orch_cli.output import Output
from orch_cli.profiles import KEY_VARIABLE, JsonOption

# 32 random bytes: beyond guessing, and short enough to paste.
_GENERATED_BYTES = 32

group = typer.Typer(
    no_args_is_help=True, help="Make API keys.", epilog=EPILOG, rich_markup_mode=None
)


@group.callback()
def keys() -> None:
    """Make API keys."""


@group.command("hash", epilog=EPILOG)
def hash_(
    env: Annotated[
        str | None, typer.Option("--env", metavar="NAME", help="The variable that holds the key.")
    ] = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Make a new key and show it once on stderr.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the key_hmac of an API key for auth.keys in the configuration.

    The key comes from stdin, from the variable that --env names, or is asked for on a terminal. It
    is never an argument and never printed, except one that --generate has just made (on stderr,
    once).

    Examples:

    \b
        llama-orch keys hash --generate
        llama-orch keys hash --env ACME_KEY
        pass show llm/acme | llama-orch keys hash
    """
    from orchestratord.api.keys import hash_key

    output = Output.of_process(as_json=as_json)
    if generate and env:
        raise CliError("--generate and --env exclude each other")
    key = secrets.token_urlsafe(_GENERATED_BYTES) if generate else _read_key(env)
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise CliError("the key must be visible ASCII characters, without spaces, and not empty")
    key_hmac = hash_key(key.encode())
    if as_json:
        output.json({"key_hmac": key_hmac} | ({"key": key} if generate else {}))
        return
    if generate:
        output.note(f"key (shown once, for {KEY_VARIABLE}): {key}", "bold")
    output.raw(key_hmac + "\n")


def _read_key(env: str | None) -> str:
    if env is not None:
        if env not in os.environ:
            raise CliError(f"the variable {env} is not set")
        return os.environ[env]
    if sys.stdin.isatty():
        return getpass.getpass("API key: ")
    return sys.stdin.read().removesuffix("\n")


def register(app: typer.Typer) -> None:
    """Add `keys` to the command line."""
    app.add_typer(group, name="keys")
