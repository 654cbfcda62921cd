"""What a disk, a copy or a kill does to a file, for tests."""

import os
import shutil
from pathlib import Path


def flip(path: Path, at: float = 0.5) -> None:
    """Turns one bit of a file over, at this part of its length; its size stays."""
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(bytes(content))


def zero(path: Path) -> None:
    content = path.read_bytes()
    start, stop = len(content) // 4, min(len(content) // 4 + 4096, len(content))
    path.write_bytes(content[:start] + bytes(stop - start) + content[stop:])


def swap_for_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x", encoding="utf-8")


def swap_for_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "a flipped bit": flip,
    "the first bit": lambda path: flip(path, 0),
    "the last bit": lambda path: flip(path, 1),
    "zeros": zero,
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "gone": Path.unlink,
    "a folder": swap_for_folder,
    "a pipe": swap_for_pipe,
}


def restore(folder: Path, copy: Path) -> None:
    """Puts a folder back as it was when it was copied."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(copy, folder)
