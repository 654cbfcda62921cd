"""Locks between processes."""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
from impruver_core.errors import ImpruverError
from impruver_core.io import locks
from impruver_core.io.atomic import atomic_write, remove_stale_parts

HOLDING = """
import sys
from pathlib import Path
from impruver_core.io import locks
with getattr(locks, sys.argv[1])(Path(sys.argv[2]), *sys.argv[3:]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(kind, path, *more):
    """Another process holds a lock; yields it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDING, kind, path, *more], **pipes, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.1)


@pytest.mark.parametrize(
    ("kind", "other"),
    [("lock_folder_alone", "share_folder"), ("share_folder", "lock_folder_alone"), *[("lock_folder_alone",) * 2]],
)
def test_a_folder_is_one_processs_or_shared(kind, other, tmp_path):
    with held(kind, tmp_path / "out", *(["busy"] if kind == "lock_folder_alone" else [])) as process:
        with pytest.raises(ImpruverError, match="at work"), getattr(locks, other)(tmp_path / "out", "at work"):
            pass
        process.kill()  # a lock ends with its process, however that ends
        process.wait()
        with getattr(locks, other)(tmp_path / "out", "at work"):
            pass


def test_a_shared_folder_is_not_unused(tmp_path):
    with held("share_folder", tmp_path / "entry"):
        with locks.lock_unused(tmp_path / "entry") as unused:
            assert not unused
        with locks.share_folder(tmp_path / "entry", "busy"):
            pass
    with locks.lock_unused(tmp_path / "entry") as unused:
        assert unused
    os.mkfifo(tmp_path / ".a.1.part")  # nobody will ever write into it
    remove_stale_parts(tmp_path)
    with locks.lock_unused(tmp_path / "nowhere") as unused:
        assert not unused


def test_outputs_of_one_folder_are_locked_by_themselves(tmp_path):
    with held("lock_output_alone", tmp_path / "a.jsonl", "busy"):
        with pytest.raises(ImpruverError, match="at work"), locks.lock_output_alone(tmp_path / "a.jsonl", "at work"):
            pass
        with locks.lock_output_alone(tmp_path / "b.jsonl", "at work"):
            pass
    assert [*tmp_path.iterdir()] == []


def test_a_link_in_place_of_a_lock_file_is_not_followed(tmp_path):
    (tmp_path / ".a.jsonl.lock").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic"), locks.lock_output_alone(tmp_path / "a.jsonl", "busy"):
        pass
    assert not (tmp_path / "other").exists()


def test_what_is_being_written_is_no_leftover(tmp_path):
    for name in (".mine.99.part", ".a.99.part", ".b.77.part"):
        (tmp_path / name).touch()
    with atomic_write(tmp_path / "a") as file:
        remove_stale_parts(tmp_path, {"a", "b"}.__contains__)
        assert len([*tmp_path.glob(".a.*.part")]) == 1
        file.write("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.99.part", "a"]
