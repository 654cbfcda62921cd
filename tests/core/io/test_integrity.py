"""Checksums find any damage; states find any change."""

import os
import shutil

import pytest
from impruver_core.errors import ImpruverError
from impruver_core.io.integrity import (
    DamagedError,
    check_unchanged,
    compute_checksum,
    describe_content,
    find_damage,
    read_file_states,
    read_record,
    write_record,
)
from support.damage import DAMAGES

VALUE = {"rows": 3, "columns": ["a", "б"], "half": "\ud800"}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 70)
    return path


def test_a_checksum_is_xxh3(tmp_path):
    """The vector for no input at all, from xxHash's own documentation of XXH3 (128 bits)."""
    path = tmp_path / "empty"
    path.touch()
    assert compute_checksum(path) == "99aa06d3014798d86001c324468d497f"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_and_its_damage(damage, file):
    content = describe_content(file)
    assert find_damage(file, content) is None
    DAMAGES[damage](file)
    assert find_damage(file, content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_record_and_its_damage(damage, tmp_path):
    path = tmp_path / "record"
    write_record(path, VALUE)
    assert read_record(path) == VALUE
    DAMAGES[damage](path)
    if damage == "gone":
        assert read_record(path) is None
    elif damage == "longer":  # by a line end: it says the same
        assert read_record(path) == VALUE
    else:
        with pytest.raises(DamagedError):
            read_record(path)


def rewrite_in_place(path):
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path):
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


CHANGES = {
    "rewritten": rewrite_in_place,
    "replaced by an equal one": replace,
    "removed": lambda path: path.unlink(),
    "appended to": lambda path: path.open("a").write("x"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_is_seen(change, file):
    states = read_file_states([file])
    file.read_bytes()
    check_unchanged(states)
    CHANGES[change](file)
    with pytest.raises(ImpruverError, match=r"file was changed while it was read.*run this command again"):
        check_unchanged(states)
