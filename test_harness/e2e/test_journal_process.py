"""The SQLite journal against SIGKILL, a full disk, and a second process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestratord.infra.sqlite_journal import SqliteJournal

APPENDS_UNTIL_KILLED = """
import asyncio, sys
from pathlib import Path
from orchestratord.infra.sqlite_journal import SqliteJournal

async def client(journal, name):
    number = 0
    while True:
        record = f"{name}-{number}"
        await journal.append(record.encode().ljust(600))
        sys.stdout.write(record + "\\n")
        sys.stdout.flush()
        number += 1

async def main():
    journal = SqliteJournal(Path(sys.argv[1]), sys.argv[2])
    await asyncio.gather(*[client(journal, f"{sys.argv[3]}.{n}") for n in range(8)])

asyncio.run(main())
"""

FILLS_THE_DISK = """
import asyncio, json, resource, sys
from pathlib import Path
from orchestratord.infra.sqlite_journal import SqliteJournal
from orchestratord.ports.journal import JournalError

async def main():
    path = Path(sys.argv[1])
    journal = SqliteJournal(path)
    await journal.append(b"before")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    failure = ""
    try:
        await journal.append(b"x" * 1_000_000)
    except JournalError as error:
        failure = str(error)
    assert journal.failing
    await journal.append(b"small enough")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await journal.append(b"after")
    assert not journal.failing
    failed = journal.stats().failed_commits
    await journal.close()
    journal = SqliteJournal(path)
    kept = [record.decode() for _, records in journal.replay() for record in records]
    await journal.close()
    print(json.dumps({"failure": failure, "kept": kept, "failed": failed}))

asyncio.run(main())
"""

HOLDS_THE_LEASE = """
import asyncio, sys
from pathlib import Path
from orchestratord.infra.local_coordinator import LocalCoordinator

async def main():
    lease = await LocalCoordinator(Path(sys.argv[1])).acquire("state", "first")
    print(lease.revision, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def replay(path: Path) -> list[str]:
    journal = SqliteJournal(path)
    records = [record.decode().strip() for _, group in journal.replay() for record in group]
    await journal.close()
    return records


def acknowledged_until_killed(path: Path, sync: str, life: int) -> list[str]:
    """What one process, killed in the midst of its commits, said was durable."""
    acknowledged: list[str] = []
    process = subprocess.Popen(
        [sys.executable, "-c", APPENDS_UNTIL_KILLED, str(path), sync, str(life)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            acknowledged.append(line.strip())
            if len(acknowledged) == 200:
                os.kill(process.pid, signal.SIGKILL)
                break
        acknowledged += process.stdout.read().split("\n")[:-1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    return acknowledged


@pytest.mark.req("ORCH-3203", partial="all but the journal")
@pytest.mark.parametrize("sync", ["full", "off"])
def test_every_acknowledged_record_survives_sigkill_in_order(tmp_path: Path, sync: str) -> None:
    path = tmp_path / "journal"
    lives = [acknowledged_until_killed(path, sync, life) for life in range(4)]

    kept = asyncio.run(replay(path))

    assert len(kept) == len(set(kept))
    for life, acknowledged in enumerate(lives):
        of_life = [record for record in kept if record.startswith(f"{life}.")]
        assert len(acknowledged) >= 200
        assert set(acknowledged) <= set(of_life)
        # What is kept beyond that was in the group under way: one record a client at most.
        assert len(of_life) - len(acknowledged) <= 8
        for client in range(8):
            own = [record for record in of_life if record.startswith(f"{life}.{client}-")]
            assert own == [f"{life}.{client}-{number}" for number in range(len(own))]


@pytest.mark.req("ORCH-3203", partial="all but the journal")
def test_a_full_disk_fails_that_group_with_file_and_reason_and_the_journal_goes_on(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal"
    finished = subprocess.run(
        [sys.executable, "-c", FILLS_THE_DISK, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    outcome = json.loads(finished.stdout.splitlines()[-1])

    assert outcome["failure"].startswith(f"cannot write to journal {path}: ")
    assert "disk" in outcome["failure"]
    assert outcome["kept"] == ["before", "small enough", "after"]
    assert outcome["failed"] == 1


@pytest.mark.req("ORCH-3203", partial="all but the journal")
def test_a_second_process_is_refused_and_gets_the_lease_after_a_sigkill(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS_THE_LEASE, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    try:
        first_revision = int(holder.stdout.readline())
        refused = subprocess.run(
            [sys.executable, "-c", HOLDS_THE_LEASE, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        holder.kill()
        holder.wait()
        heir = subprocess.Popen(
            [sys.executable, "-c", HOLDS_THE_LEASE, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert heir.stdout is not None
        second_revision = int(heir.stdout.readline())
        heir.kill()
        heir.wait()
        heir.stdout.close()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()

    assert refused.returncode == 1
    assert f"held by pid {holder.pid} (first)" in refused.stderr
    assert second_revision == first_revision + 1
