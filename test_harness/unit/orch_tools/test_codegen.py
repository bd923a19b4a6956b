"""What regeneration writes, what it leaves alone and what a check reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from orch_tools.codegen import CodegenError, Generator, collect, differences, stale_files, write


def generator(**files: str) -> Generator:
    """A generator of one text file for each keyword, below generated/."""
    return lambda root: {f"generated/{name}.txt": content for name, content in files.items()}


@pytest.mark.req("OC-CONFIG-6010")
def test_writing_twice_changes_nothing_the_second_time(tmp_path: Path) -> None:
    files = collect(tmp_path, [generator(b="two", a="one")])

    first, second = write(tmp_path, files), write(tmp_path, files)

    assert first == ["missing: generated/a.txt", "missing: generated/b.txt"]
    assert second == []
    assert (tmp_path / "generated/a.txt").read_bytes() == b"one"


def test_a_check_names_missing_different_and_stale_files_and_touches_none(tmp_path: Path) -> None:
    write(tmp_path, collect(tmp_path, [generator(same="s", changed="old", gone="g")]))
    wanted = collect(tmp_path, [generator(same="s", changed="new", added="a")])

    found = differences(tmp_path, wanted)

    assert found == [
        "missing: generated/added.txt",
        "differs: generated/changed.txt",
        "stale: generated/gone.txt",
    ]
    assert (tmp_path / "generated/changed.txt").read_text() == "old"
    assert (tmp_path / "generated/gone.txt").exists()


def test_writing_removes_what_nothing_generates_any_more(tmp_path: Path) -> None:
    write(tmp_path, collect(tmp_path, [generator(kept="k", gone="g")]))

    write(tmp_path, collect(tmp_path, [generator(kept="k")]))

    assert [path.name for path in (tmp_path / "generated").iterdir()] == ["kept.txt"]


def test_an_equal_file_keeps_its_time(tmp_path: Path) -> None:
    files = collect(tmp_path, [generator(a="one")])
    write(tmp_path, files)
    before = (tmp_path / "generated/a.txt").stat().st_mtime_ns

    write(tmp_path, files)

    assert (tmp_path / "generated/a.txt").stat().st_mtime_ns == before


def test_bytecode_and_hand_written_files_elsewhere_are_not_stale(tmp_path: Path) -> None:
    for name in ("generated/pkg/__pycache__/m.pyc", "contracts/metrics.yaml", "generated/left.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    found = stale_files(tmp_path, {})

    assert found == ["generated/left.py"]


def test_two_generators_of_one_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CodegenError, match=r"generated/a\.txt comes from two generators"):
        collect(tmp_path, [generator(a="one"), generator(a="two")])


def test_python_is_formatted_and_broken_python_is_refused(tmp_path: Path) -> None:
    files = collect(tmp_path, [lambda root: {"generated/m.py": "x = {'a':1}"}])

    assert files == {"generated/m.py": b'x = {"a": 1}\n'}
    with pytest.raises(CodegenError, match=r"generated/m\.py"):
        collect(tmp_path, [lambda root: {"generated/m.py": "def"}])
