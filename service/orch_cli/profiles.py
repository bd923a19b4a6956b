"""Which service a command talks to, and with which key (OC-CLI-8004).

From strong to weak: the option, the environment (LLAMA_ORCH_URL, LLAMA_ORCH_API_KEY), the profile,
the default. Invariant: a profile's key goes to that profile's URL only, never to one given beside
it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import yaml

from orch_cli.exit_codes import EPILOG, CliError
from orch_cli.output import Output
from orchcontrol_v1.client import OrchControlClient
from orchqueue_v1.client import OrchQueueClient
from orchqueue_v1.transport import Endpoint

DEFAULT_URL = "http://127.0.0.1:8080"
URL_VARIABLE, KEY_VARIABLE = "LLAMA_ORCH_URL", "LLAMA_ORCH_API_KEY"


class Profile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """One service: its URL and where its key is (at most one of the three)."""

    url: str
    api_key: str | None = None
    api_key_env: str | None = None
    api_key_file: str | None = None


class ProfileFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """The profiles file; `default` names the profile that holds without `--profile`."""

    profiles: dict[str, Profile] = {}
    default: str | None = None


@dataclass(frozen=True, slots=True)
class Connection:
    """The service that was chosen; the key never appears in a representation."""

    url: str
    api_key: str | None
    origin: str

    def __repr__(self) -> str:
        return f"Connection(url={self.url!r}, origin={self.origin!r})"

    def data(self) -> OrchQueueClient:
        """Return a client of the data plane."""
        return OrchQueueClient(self.url, self.api_key)

    def control(self) -> OrchControlClient:
        """Return a client of the control plane."""
        return OrchControlClient(self.url, self.api_key)


def profiles_path(environ: Mapping[str, str]) -> Path:
    """Return where the profiles file is (XDG base directory specification)."""
    base = environ.get("XDG_CONFIG_HOME") or str(
        Path(environ.get("HOME", "~")).expanduser() / ".config"
    )
    return Path(base) / "llama-orch" / "profiles.yaml"


def read_profiles(path: Path) -> ProfileFile:
    """Read the profiles file; one that does not exist is empty. Raises `CliError`."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return ProfileFile()
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{path} cannot be read: {type(error).__name__}") from None
    try:
        # msgspec's messages name the place and never the value, which may be a key.
        return msgspec.convert(yaml.safe_load(text) or {}, ProfileFile)
    except msgspec.ValidationError as error:
        raise CliError(f"{path}: {error}", hint="see `llama-orch profiles --help`") from None
    except RecursionError:
        raise CliError(f"{path}: nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise CliError(f"{path}: not valid YAML{place}") from None


def choose(
    url: str | None, profile_name: str | None, environ: Mapping[str, str] | None = None
) -> Connection:
    """Decide on service and key; the arguments are the options `--url` and `--profile`.

    Raises:
        CliError: no such profile, a profile that cannot be read, or a URL that is none.
    """
    environ = os.environ if environ is None else environ
    stated, origin = (url, "--url") if url else (environ.get(URL_VARIABLE), URL_VARIABLE)
    profile = None if stated and not profile_name else _profile(profile_name, environ)
    if stated:
        chosen = stated
    elif profile:
        chosen, origin = profile[1].url, f"profile {profile[0]}"
    else:
        chosen, origin = DEFAULT_URL, "default"
    key, key_origin = environ.get(KEY_VARIABLE) or None, KEY_VARIABLE
    if key is None and profile and profile[1].url.rstrip("/") == chosen.rstrip("/"):
        key, key_origin = _key_of(*profile, environ), f"profile {profile[0]}"
    # The address first and alone, so that each is blamed for its own mistakes.
    for given, blamed in ((None, origin), (key, key_origin)):
        try:
            Endpoint(chosen, given)
        except ValueError as error:
            raise CliError(f"{blamed}: {error}") from None
    return Connection(chosen, key, origin)


def _profile(name: str | None, environ: Mapping[str, str]) -> tuple[str, Profile] | None:
    path = profiles_path(environ)
    file = read_profiles(path)
    wanted = name or file.default
    if wanted is None:
        return None
    if wanted not in file.profiles:
        known = ", ".join(sorted(file.profiles)) or "none"
        raise CliError(f"no profile {wanted!r} in {path}", hint=f"known profiles: {known}")
    return wanted, file.profiles[wanted]


def _key_of(name: str, profile: Profile, environ: Mapping[str, str]) -> str | None:
    sources = [profile.api_key, profile.api_key_env, profile.api_key_file]
    if sum(source is not None for source in sources) > 1:
        raise CliError(f"profile {name}: only one of api_key, api_key_env, api_key_file")
    if profile.api_key_env:
        if not environ.get(profile.api_key_env):
            raise CliError(f"profile {name}: the variable {profile.api_key_env} is not set")
        return environ[profile.api_key_env]
    if profile.api_key_file:
        try:
            return Path(profile.api_key_file).expanduser().read_text("utf-8").strip() or None
        except (OSError, UnicodeDecodeError) as error:
            detail = type(error).__name__
            raise CliError(f"profile {name}: its api_key_file cannot be read: {detail}") from None
    return profile.api_key


UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help=f"The service. Else {URL_VARIABLE}, else the profile, else {DEFAULT_URL}.",
        rich_help_panel="Connection",
    ),
]
ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile", metavar="NAME", help="A profile of yours.", rich_help_panel="Connection"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON for programs, one object a line.")]


def list_profiles(as_json: JsonOption = False) -> None:
    """List the profiles: named services with their keys.

    They stand in ~/.config/llama-orch/profiles.yaml:

    \b
        default: dev
        profiles:
          dev:  { url: "http://127.0.0.1:8080", api_key_env: ACME_KEY }
          prod: { url: "https://llm.example.com", api_key_file: ~/.keys/llm }

    Example: llama-orch capabilities --profile prod
    """
    output = Output.of_process(as_json=as_json)
    path = profiles_path(os.environ)
    file = read_profiles(path)
    rows: list[dict[str, Any]] = []
    for name, profile in sorted(file.profiles.items()):
        source = (
            f"env {profile.api_key_env}"
            if profile.api_key_env
            else f"file {profile.api_key_file}"
            if profile.api_key_file
            else "inline"
            if profile.api_key
            else "none"
        )
        is_default = "yes" if name == file.default else ""
        rows.append({"name": name, "url": profile.url, "key": source, "default": is_default})
        if profile.api_key and path.stat().st_mode & 0o077:
            output.note(f"{path} holds a key and others may read it: chmod 600 it", "yellow")
    if as_json:
        output.json(rows)
    else:
        columns = ["name", "url", "key", "default"]
        output.table(str(path), columns, [[row[column] for column in columns] for row in rows])


def register(app: typer.Typer) -> None:
    """Add `profiles` to the command line."""
    app.command("profiles", epilog=EPILOG)(list_profiles)
