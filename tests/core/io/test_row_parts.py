"""Folders of parts: their names, and that they are put in place, or made fewer, together with all other outputs."""

import json

import pytest
from impruver_core.errors import ImpruverError
from impruver_core.io import manifest
from impruver_core.io.atomic import get_staged_path, hash_file
from impruver_core.io.manifest import FORMAT, describe_file, get_pending_path, publish, recover
from impruver_core.io.row_parts import get_part_path, is_row_file, list_row_files
from support.attacks import list_tree
from support.cli import run_python
from support.interruptions import DYING


def stage(folder, text, train, val):
    """Stages so many parts of train and val, beside the manifest and elsewhere; their places and the manifest."""
    finals = [get_part_path(folder / "train", number) for number in range(train)]
    finals += [get_part_path(folder / "deeper/train", number) for number in range(val)] + [folder / "a.jsonl"]
    for final in finals:
        final.parent.mkdir(parents=True, exist_ok=True)
        get_staged_path(final).write_text(f"{text} {final.name}")
    outputs = [
        describe_file(get_staged_path(final), digest=True) | {"path": str(final.relative_to(folder))}
        for final in finals
    ]
    return finals, {"impruver": FORMAT, "text": text, "outputs": outputs}


def run(folder, *what):
    publish(folder / "m.json", *stage(folder, *what), [folder / "train", folder / "deeper/train"])


def read(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def finish(folder):
    recover(folder / "m.json", [folder / "a.jsonl"], [folder / "train", folder / "deeper/train"])


KILLED = f"""
import json, os, sys
from pathlib import Path
from impruver_core.io.manifest import publish
folder, at = Path(sys.argv[1]), int(sys.argv[2])

{DYING}

finals, manifest = json.loads(sys.argv[3])
for name in ("replace", "unlink"):
    setattr(os, name, dying(getattr(os, name)))
publish(folder / "m.json", map(Path, finals), manifest, [folder / "train", folder / "deeper/train"])
"""


def test_killed_at_any_point_all_parts_are_of_one_run(tmp_path):
    folder = tmp_path / "out"
    run(folder, "second", 1, 2)
    second = read(folder)
    run(folder, "first", 3, 1)
    first = read(folder)
    assert (len(second), len(first)) == (5, 6)
    seen = set()
    for at in range(30):
        for left in folder.rglob(".*"):
            left.unlink()
        run(folder, "first", 3, 1)
        assert read(folder) == first
        finals, told = stage(folder, "second", 1, 2)
        what = json.dumps([list(map(str, finals)), told])
        ended = run_python(KILLED, folder, at, what).returncode
        finish(folder)
        there = {name: text for name, text in read(folder).items() if "/." not in f"/{name}"}
        assert there in (first, second), at
        seen.add(there == second)
        if ended == 0:
            break
        assert ended == 9
    assert (ended, seen) == (0, {True, False})
    assert at > 6


def test_changed_parts_that_were_to_be_overwritten_are_after_a_kill_too(tmp_path, monkeypatch):
    run(tmp_path, "first", 2, 1)
    for number in (0, 1):
        get_part_path(tmp_path / "train", number).write_text("changed")
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "_move_staged", lambda *_: None)
        run(tmp_path, "second", 1, 1)
    finish(tmp_path)
    assert {text.split()[0] for name, text in read(tmp_path).items() if name != "m.json"} == {"second"}
    assert not get_part_path(tmp_path / "train", 1).exists()


def test_parts_that_nobody_made_are_not_removed(tmp_path):
    run(tmp_path, "first", 3, 1)
    (tmp_path / "train/part-00007.jsonl").write_text("mine")
    run(tmp_path, "second", 1, 1)
    assert {path.name for path in (tmp_path / "train").iterdir()} == {"part-00000.jsonl", "part-00007.jsonl"}


@pytest.mark.parametrize("key", ["files", "removed"])
@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("../a.jsonl", "train"),
        ("notes.jsonl", "train"),
        ("part-00000.jsonl\n", "train"),
        ("part-00000.jsonl", "deeper/train"),
        ("part-00000.jsonl", ".."),
        ("part-00000.jsonl", ["train"]),
        ("part-00000.jsonl", None),
        (7, "train"),
        ("part-00007.jsonl", "train"),
    ],
)
def test_forged_journals_name_no_other_files(key, path, folder, tmp_path):
    """The last one names a part that is there and was not made by us."""
    run(tmp_path, "first", 3, 1)
    for name in ("train/notes.jsonl", "train/part-00007.jsonl", "deeper/notes.jsonl"):
        (tmp_path / name).write_text("mine")
    if key == "files":
        get_staged_path(tmp_path / "train/part-00007.jsonl").write_text("evil")
        digest = hash_file(get_staged_path(tmp_path / "train/part-00007.jsonl"))
    else:
        digest = hash_file(tmp_path / "train/part-00007.jsonl")
    record = {"files": [], "manifest": json.loads((tmp_path / "m.json").read_text())}
    record[key] = [{"path": path, "part_of": folder, "sha256": digest}]
    get_pending_path(tmp_path / "m.json").write_text(json.dumps(record))
    before = list_tree(tmp_path)
    with pytest.raises(ImpruverError, match="Impruver did not write this"):
        finish(tmp_path)
    assert list_tree(tmp_path) == before


def test_row_files_are_found_in_the_order_of_their_numbers(tmp_path):
    names = ["part-00009.jsonl", "part-99999.jsonl.zst", "part-100000.jsonl", "x2.JSONL.gz", "x10.jsonl"]
    for name in [*reversed(names), ".hidden.jsonl", "~$lock.jsonl", "notes.txt", "a.json", ".part-00001.jsonl.staged"]:
        (tmp_path / name).touch()
    assert [path.name for path in list_row_files(tmp_path)] == names
    assert list_row_files(tmp_path / "nowhere") == []
    assert not is_row_file("train.json.zst")
