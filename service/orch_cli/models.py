"""`llama-orch models`: fill the model store of this machine and look after it.

Works on the store's folder, whether a service runs or not. Invariant: an import that ends early,
also by Ctrl-C, leaves what it has, says so, and the same command goes on. (ORCH-3042, ORCH-3037)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orch_cli.exit_codes import EPILOG, CliError, ExitCode
from orch_cli.output import Output
from orch_cli.profiles import JsonOption
from orch_cli.serve import configuration_failure

if TYPE_CHECKING:
    from pool_managerd.model_store import ModelStore, StoredModel

# A pipe gets a line about the progress at each such part of the whole, or after as many bytes.
LINE_PERCENT = 10
LINE_BYTES = 256 << 20

group = typer.Typer(
    no_args_is_help=True,
    help="Keep model files: import, list, verify and remove them.",
    epilog=EPILOG,
    rich_markup_mode=None,
)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="LLAMA_ORCH_CONFIG",
        metavar="FILE",
        help="The configuration whose store is meant (catalog.store). Else .llama-orch/models.",
    ),
]
StoreOption = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="A store's folder; then no quota evicts anything."),
]
DigestArgument = Annotated[
    str,
    typer.Argument(metavar="DIGEST", help="sha256:HEX, the beginning of HEX, or a name."),
]


@group.command("import", epilog=EPILOG)
def import_model(
    source: Annotated[str, typer.Argument(metavar="FILE|URL", help="A file, or http(s)://…")],
    sha256: Annotated[
        str | None,
        typer.Option("--sha256", metavar="HEX", help="What it must be; a URL needs it."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="N", help="A name to find it by.")
    ] = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a model into the store, from a file or from an HTTP(S) mirror.

    Its SHA-256 is its name there: a pool with model: sha256:HEX loads it. An import that was cut
    goes on where it ended when it is run again. What was used longest ago is evicted when the
    quota is reached, but never what an engine has loaded.

    Examples:

    \b
        llama-orch models import ~/qwen.gguf --config llama-orch.yaml
        llama-orch models import https://mirror.example/qwen.gguf --sha256 HEX --name qwen
    """
    from pool_managerd.model_import import import_file, import_url

    output = Output.of_process(as_json=as_json)
    with _failures():
        target = _store(config, store)
        if source.startswith(("http://", "https://")) and sha256 is None:
            hint = "--sha256 HEX: take it from whoever made the model, not from the mirror"
            raise CliError("a URL needs the digest of its file", hint=hint)
        with _progress(output) as progress:
            try:
                if source.startswith(("http://", "https://")):
                    assert sha256 is not None
                    model = import_url(target, source, sha256, name=name, progress=progress.count)
                else:
                    file = Path(source).expanduser()
                    model = import_file(target, file, sha256, name=name, progress=progress.count)
            except KeyboardInterrupt:
                progress.interrupted()
                raise typer.Exit(ExitCode.INTERRUPTED) from None
        if as_json:
            output.json({"event": "imported", **_document(target, model)})
        else:
            output.raw(f"sha256:{model.digest}\n")


@group.command("list", epilog=EPILOG)
def list_models(
    config: ConfigOption = None, store: StoreOption = None, as_json: JsonOption = False
) -> None:
    """List the models in the store, the one used last first.

    Example: llama-orch models list --config llama-orch.yaml
    """
    output = Output.of_process(as_json=as_json)
    with _failures():
        target = _store(config, store)
        rows = [_document(target, model) for model in target.models()]
        total_bytes = target.total_bytes()
    if as_json:
        for row in rows:
            output.json(row)
        return
    output.table(
        str(target.path),
        ["digest", "bytes", "names", "last used", "in use", "source"],
        [
            (
                row["digest"],
                row["size_bytes"],
                " ".join(row["names"]),
                _time(row["last_used_ms"]),
                "yes" if row["in_use"] else "",
                row["source"] or "",
            )
            for row in rows
        ],
    )
    quota = "no quota" if target.quota_bytes is None else f"quota {target.quota_bytes} bytes"
    output.note(f"{total_bytes} bytes with unfinished imports, {quota}")


@group.command("verify", epilog=EPILOG)
def verify(
    digest: Annotated[
        str | None,
        typer.Argument(metavar="[DIGEST]", help="One model; without it, all of them."),
    ] = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read models and prove that each is what its name says; exit status 1 where one is not.

    Example: llama-orch models verify --config llama-orch.yaml
    """
    from pool_managerd.model_store_errors import ModelStoreError

    output = Output.of_process(as_json=as_json)
    with _failures():
        target = _store(config, store)
        digests = (
            [model.digest for model in target.models()]
            if digest is None
            else [target.resolve(digest)]
        )
        failed = False
        for known in digests:
            problem = None
            try:
                target.verify(known)
            except ModelStoreError as error:
                problem, failed = str(error), True
            if as_json:
                output.json({"digest": f"sha256:{known}", "ok": not problem, "message": problem})
            else:
                output.raw(f"sha256:{known}\t{'FAILED' if problem else 'ok'}\n")
                if problem:
                    output.note(problem, "red")
    if failed:
        raise typer.Exit(ExitCode.TASK_FAILED)


@group.command("remove", epilog=EPILOG)
def remove(
    digest: DigestArgument,
    config: ConfigOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a model from the store; refused while an engine has it loaded.

    Example: llama-orch models remove sha256:b179c952 --config llama-orch.yaml
    """
    output = Output.of_process(as_json=as_json)
    with _failures():
        target = _store(config, store)
        known = target.resolve(digest)
        freed_bytes = target.remove(known)
    if as_json:
        output.json({"event": "removed", "digest": f"sha256:{known}", "freed_bytes": freed_bytes})
    else:
        output.note(f"removed sha256:{known}, {freed_bytes} bytes", "bold green")


@group.command("path", epilog=EPILOG)
def path(digest: DigestArgument, config: ConfigOption = None, store: StoreOption = None) -> None:
    """Print where a model's file is.

    Example: llama-server --model "$(llama-orch models path qwen --config llama-orch.yaml)"
    """
    with _failures():
        target = _store(config, store)
        Output.of_process().raw(f"{target.find(target.resolve(digest)).path}\n")


def _store(config: Path | None, folder: Path | None) -> ModelStore:
    """The store that the options name. Raises `CliError`."""
    from orch_config import Config
    from orchestratord.configuration import AnyEnvironment, ConfigError, load_config
    from orchestratord.settings import model_store
    from pool_managerd.model_store import ModelStore

    if folder is not None:
        # The quota of a configuration that we do not see: nothing shall be evicted by another.
        return ModelStore(folder.expanduser(), None)
    if config is None:
        return model_store(Config())
    try:
        return model_store(load_config(config, environ=AnyEnvironment()).config)
    except ConfigError as error:
        problems = [str(problem) for problem in error.problems]
        raise configuration_failure(error.source, problems) from None


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """What the store refuses becomes an exit status. Raises `CliError`."""
    from pool_managerd.model_files import ModelUnavailable
    from pool_managerd.model_import import ImportCut
    from pool_managerd.model_store_errors import (
        BadModelReference,
        DigestMismatch,
        ModelInUse,
        QuotaExceeded,
        StoreDiskFull,
    )

    codes = {
        BadModelReference: ExitCode.USAGE,
        DigestMismatch: ExitCode.TASK_FAILED,
        ImportCut: ExitCode.REFUSED_RETRIABLE,
        ModelInUse: ExitCode.REFUSED_RETRIABLE,
        QuotaExceeded: ExitCode.REFUSED,
        StoreDiskFull: ExitCode.REFUSED,
    }
    try:
        yield
    except ModelUnavailable as error:
        code = next((c for kind, c in codes.items() if isinstance(error, kind)), ExitCode.REFUSED)
        raise CliError(str(error), exit_code=code) from None


class _Lines:
    """Progress for a pipe: a line now and then, as text or JSON; tells of interruptions."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._done_bytes = 0
        self._total_bytes: int | None = None
        self._step = -1

    def count(self, done_bytes: int, total_bytes: int | None) -> None:
        self._done_bytes, self._total_bytes = done_bytes, total_bytes
        if total_bytes:
            step = done_bytes * 100 // total_bytes // LINE_PERCENT
        else:
            step = done_bytes // LINE_BYTES
        if step != self._step:
            self._step = step
            self._show()

    def interrupted(self) -> None:
        kept_bytes = self._done_bytes
        if self._output.as_json:
            self._output.json({"event": "interrupted", "bytes_kept": kept_bytes})
        self._output.note(
            f"interrupted: {kept_bytes} bytes are kept, run the same command again to go on",
            "yellow",
        )

    def _show(self) -> None:
        done, total = self._done_bytes, self._total_bytes
        if self._output.as_json:
            self._output.json({"event": "progress", "bytes_done": done, "bytes_total": total})
        elif total:
            self._output.note(f"{done} of {total} bytes ({done * 100 // total} %)")
        else:
            self._output.note(f"{done} bytes")


class _Bar(_Lines):
    """Progress for a person: a bar with bytes, rate and time left."""

    def __init__(self, output: Output) -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        super().__init__(output)
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=output.errors, transient=True)
        self._task = self.bar.add_task("import", total=None)

    def count(self, done_bytes: int, total_bytes: int | None) -> None:
        self._done_bytes = done_bytes
        self.bar.update(self._task, completed=done_bytes, total=total_bytes)


@contextlib.contextmanager
def _progress(output: Output) -> Iterator[_Lines]:
    if output.as_json or not output.errors.is_terminal:
        yield _Lines(output)
        return
    bar = _Bar(output)
    with bar.bar:
        yield bar


def _document(store: ModelStore, model: StoredModel) -> dict[str, Any]:
    return {
        "digest": f"sha256:{model.digest}",
        "path": str(model.path),
        "size_bytes": model.size_bytes,
        "names": model.names,
        "source": model.source,
        "last_used_ms": model.last_used_ms,
        "in_use": store.in_use(model.digest),
    }


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(sep=" ", timespec="seconds")


def register(app: typer.Typer) -> None:
    """Add `models` to the command line."""
    app.add_typer(group, name="models")
