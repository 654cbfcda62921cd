"""Files that are there whole or not at all."""

import hashlib
import os
import shutil
import threading

import pytest
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import (
    atomic_write,
    check_free_space,
    get_staged_path,
    hash_file,
    make_folder,
    open_synced,
)
from impruver_core.io.locks import lock_folders


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_there_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as file:
        file.write("один\n")
        assert not path.exists()
    assert path.read_bytes() == "один\n".encode()
    with atomic_write(str(path), "wb") as file:
        file.write(b"\r\n\xff")
        assert path.read_bytes() == "один\n".encode()
    assert path.read_bytes() == b"\r\n\xff"
    assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_what_was_there(error, tmp_path):
    path = tmp_path / "file.txt"

    def fail():
        with atomic_write(path) as file:
            file.write("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == []
    path.write_text("before")
    with pytest.raises(error):
        fail()
    assert path.read_text() == "before"
    assert names(tmp_path) == ["file.txt"]


def test_synced_writes_in_place(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with open_synced(path) as file:
        file.write("x\n")
    assert path.read_bytes() == b"x\n"


def test_make_folder(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ImpruverError, match=f"{tmp_path / 'file'} is a file, not a folder"):
            make_folder(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_make_folder_without_the_right_to_write(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ImpruverError, match="no right to write"):
        make_folder(tmp_path / "closed")


def test_sha256_and_staged(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 300_000)
    assert hash_file(path) == hashlib.sha256(b"x" * 300_000).hexdigest()
    assert get_staged_path(path) == tmp_path / ".file.staged"


def test_need_room(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_free_space(tmp_path / "not" / "yet" / "there", 1000)
    with pytest.raises(ImpruverError, match=r"GB are needed, .* GB are free"):
        check_free_space(tmp_path / "not" / "yet", free * 2)


def test_one_at_a_time_in_a_folder(tmp_path):
    pytest.importorskip("fcntl")
    (tmp_path / "other").mkdir()
    reached = threading.Event()

    def enter(*folders):
        with lock_folders(folders):
            reached.set()

    with lock_folders([tmp_path, tmp_path / "other", tmp_path / "other/.."]):
        waiting = threading.Thread(target=enter, args=(tmp_path / "other",))
        waiting.start()
        assert not reached.wait(0.2)
    assert reached.wait(10)
    waiting.join()
