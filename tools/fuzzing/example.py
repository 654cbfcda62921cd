"""An example: what a stranger left in a folder, and the command that meets it there.

It is complete: saved as a file, it can be run again whatever the strategies have become meanwhile.
"""

import base64
import bz2
import gzip
import json
import lzma
import os
import shutil
import zlib
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import zstandard

HOME = b"@HOME@"  # in a file: the path of the home folder that no command may touch
PACKERS = {
    "": lambda data: data,
    "gz": lambda data: gzip.compress(data, 9, mtime=0),
    "bz2": bz2.compress,
    "xz": lambda data: lzma.compress(data, preset=1),
    "zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


@dataclass(frozen=True)
class Repeated:
    """A large file in a few words: head, a unit many times over, tail; packed."""

    head: bytes
    unit: bytes
    count: int
    tail: bytes = b""
    packing: str = ""


@dataclass(frozen=True)
class Special:
    """What is no ordinary file: a `link` to a target, a `pipe`, a `folder`."""

    kind: str
    target: str = ""


Content = bytes | Repeated | Special


@dataclass(frozen=True)
class Example:
    """Files by their paths, and a command that is run beside them.

    `attack` says in a few words what was done. `copies`: folder → the sample (see samples.py) that is copied there
    first. Files stand in place of those of the samples.
    """

    kind: str
    attack: str
    command: tuple[str, ...]
    copies: dict[str, str]
    files: dict[str, Content]


def place(example: Example, folder: Path, samples: Path, home: Path) -> None:
    """Makes `folder` anew with what the example holds."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, sample in example.copies.items():
        source, target = samples / sample, folder / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)
    for name, content in example.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if not isinstance(content, Special):
            path.write_bytes(render(content).replace(HOME, os.fsencode(home)))
        elif content.kind == "link":
            path.symlink_to(content.target)
        else:
            {"pipe": os.mkfifo, "folder": os.mkdir}[content.kind](path)


def render(content: bytes | Repeated) -> bytes:
    """The bytes of a file."""
    if isinstance(content, bytes):
        return content
    return pack(content) if content.packing else content.head + content.unit * content.count + content.tail


@cache
def pack(content: Repeated) -> bytes:
    """The bytes of a packed file: few, and slow to make."""
    return PACKERS[content.packing](render(replace(content, packing="")))


def save(example: Example, path: Path, **more: Any) -> None:
    """Writes an example as JSON; `more`: what was found with it."""
    files = {name: _to_json(content) for name, content in example.files.items()}
    content = asdict(example) | {"files": files} | more
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def load(path: Path) -> Example:
    """Reads an example that `save` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    files = {name: _from_json(each) for name, each in content["files"].items()}
    return Example(content["kind"], content["attack"], tuple(content["command"]), content["copies"], files)


def _to_json(content: Content) -> dict[str, Any]:
    if isinstance(content, Special):
        return {"special": content.kind, "target": content.target}
    if isinstance(content, Repeated):
        parts = {name: getattr(content, name).decode("latin-1") for name in ("head", "unit", "tail")}
        return {"repeated": parts, "count": content.count, "packing": content.packing}
    try:
        return {"text": content.decode("utf-8")}
    except UnicodeDecodeError:
        return {"zlib": base64.b64encode(zlib.compress(content)).decode("ascii")}


def _from_json(content: dict[str, Any]) -> Content:
    if "special" in content:
        return Special(content["special"], content["target"])
    if "repeated" in content:
        parts = {name: part.encode("latin-1") for name, part in content["repeated"].items()}
        return Repeated(**parts, count=content["count"], packing=content["packing"])
    return content["text"].encode() if "text" in content else zlib.decompress(base64.b64decode(content["zlib"]))
