"""What strangers put into folders that people download."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path


def forge_journals(manifest: Path, output: str, victim: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """(what it tries, a function that places it): records of a `publish` that would replace or remove `victim`.

    `output`: the bare name of a file that the tool writes beside the manifest.
    """
    pending, folder = Path(f"{manifest}.pending"), manifest.parent
    digest = hashlib.sha256(b"evil").hexdigest()
    same = hashlib.sha256(victim.read_bytes()).hexdigest()
    staged = folder / f".{output}.staged"
    relative = os.path.relpath(victim, folder)

    def place(files, manifest=None, **more):
        def write():
            staged.write_bytes(b"evil")
            pending.write_text(json.dumps({"files": files, "manifest": manifest or {"impruver": 1}} | more))

        return write

    def raw(content):
        return lambda: pending.write_bytes(content)

    def names(path, **more):
        return place([{"path": path, "sha256": digest} | more])

    def good_and(path):
        return place([{"path": output, "sha256": digest}, {"path": path, "sha256": digest}])

    def link():
        target = folder.parent / "target.json"
        target.write_text(json.dumps({"files": [], "manifest": {"impruver": 1}}))
        pending.symlink_to(target)

    yield "an absolute path", names(str(victim))
    yield "an absolute path with an absolute staged file", names(str(victim), staged=str(staged))
    yield "an absolute path in its own folder", names(str(folder / output), staged=str(staged))
    yield "a path upwards", names(relative)
    yield "a path down and upwards", names(f"x/../{relative}")
    yield "a path from the home folder", names(f"~/{victim.name}")
    yield "a second file besides a good one", good_and(str(victim))
    yield "a file that this tool does not write", names(".bashrc")
    yield "the manifest itself", names(manifest.name)
    yield "another folder's file of that name", names(output, elsewhere=True)
    yield "a staged file elsewhere", names(output, staged=str(victim))
    yield (
        "a staged file elsewhere, to have it removed",
        place([{"path": "gone", "staged": str(victim), "sha256": same}]),
    )
    good = [{"path": output, "sha256": digest}]
    yield "a file to remove elsewhere", place(good, removed=[{"path": str(victim)}])
    yield "a file to remove upwards", place(good, removed=[{"path": relative}])
    yield "a file to remove that this tool does not write", place(good, removed=[{"path": ".bashrc"}])
    yield "a file to put in place and to remove", place(good, removed=[{"path": output}])
    yield "a text for files to remove", place(good, removed=output)
    yield "a name with a slash behind it", names(f"{output}/")
    yield "a name in other letters", names(output.upper())
    yield "a name with a null byte", names(f"{output}\0")
    yield "no name", names("")
    yield "its own folder", names(".")
    yield "a list for a name", names([output])
    yield "null for a name", names(None)
    yield "a number for a name", names(7)
    yield "texts for files", place([str(victim)])
    yield "a mapping for files", place({"path": str(victim)})
    yield "a list for the manifest", place([], ["x"])
    yield "no manifest", raw(b'{"files": []}')
    yield "a manifest that is none", place([], {"x": 1})
    yield "half a surrogate", place([], {"impruver": 1, "x": "\ud800"})
    yield "nesting", raw(b"[" * 100_000)
    yield "a number of many digits", raw(b'{"files": ' + b"9" * 10_000 + b"}")
    yield "bytes that are no text", raw(b"\xff\xfe")
    yield "a pipe", lambda: os.mkfifo(pending)
    yield "a folder", pending.mkdir
    yield "a link to another record", link
    yield "a link to nothing", lambda: pending.symlink_to(folder / "nothing")


def place_journals(folder: Path, manifest: str, output: str, victim: Path) -> Iterator[tuple[str, Path]]:
    """(what it tries, a folder with it) for each of `forge_journals`; all below `folder` must be the same after each.

    `manifest`, `output`: the bare names of what the tool writes there.
    """
    victim.parent.mkdir(exist_ok=True)
    for number in range(40):
        place = folder / str(number)
        place.mkdir()
        victim.write_text("mine")
        attacks = list(forge_journals(place / manifest, output, victim))
        if number == len(attacks):
            break
        what, forge = attacks[number]
        forge()
        before = list_tree(folder)
        yield what, place
        assert list_tree(folder) == before, what
    assert number >= 20


def list_tree(folder: Path) -> dict[str, object]:
    """What each entry below a folder is: a file's bytes, a link's target, else its type."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else path.stat().st_mode
        for path in sorted(folder.rglob("*"))
    }


class Payload:
    """An object whose pickle runs a command when it is loaded."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)
