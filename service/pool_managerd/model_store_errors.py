"""What can go wrong with the model store, told in words that say what to do.

Raised by the store and by imports; shown in a pool's health and by the command line. Requirements:
ORCH-3042.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from pool_managerd.model_files import ModelUnavailable


class ModelStoreError(ModelUnavailable):
    """The store cannot do it; says what to do."""


class BadModelReference(ModelStoreError):
    """A digest, name, file or URL that is none."""


class QuotaExceeded(ModelStoreError):
    """It does not fit, whatever is evicted. Sizes in bytes."""

    def __init__(self, needed_bytes: int, quota_bytes: int, in_use_bytes: int) -> None:
        super().__init__(
            f"the model needs {needed_bytes} bytes of the store's {quota_bytes}, of which models "
            f"and imports in use hold {in_use_bytes} that cannot be evicted: raise "
            "catalog.store.quota_bytes, or stop what uses them"
        )
        self.needed_bytes = needed_bytes
        self.quota_bytes = quota_bytes
        self.in_use_bytes = in_use_bytes


class StoreDiskFull(ModelStoreError):
    """The disk is full before the quota is."""


class DigestMismatch(ModelStoreError):
    """The content is not what its name or the caller says."""

    def __init__(self, what: str, digest: str, expected: str, advice: str) -> None:
        super().__init__(f"{what} has sha256 {digest}, expected {expected}: {advice}")
        self.digest = digest
        self.expected = expected


class ModelInUse(ModelStoreError):
    """An engine has it loaded, or another import writes it, now."""


@contextlib.contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """File system errors become `ModelStoreError`, a full disk `StoreDiskFull`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreDiskFull(
                f"{path}: {error.strerror}: free some disk, then run the same command again; what "
                "was imported is kept"
            ) from error
        raise ModelStoreError(f"{error.filename or path}: {error.strerror or error}") from error
