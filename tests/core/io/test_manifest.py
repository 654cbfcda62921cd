"""The manifest, and files put in place together: killed at any point, the next start finishes or undoes."""

import json
import os

import pytest
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import get_staged_path, hash_file, open_synced
from impruver_core.io.manifest import (
    FORMAT,
    build_manifest,
    check_replaceable,
    describe_file,
    find_unchanged,
    get_pending_path,
    publish,
    read_manifest,
    recover,
)
from support.attacks import list_tree, place_journals
from support.cli import run_python
from support.interruptions import DYING


@pytest.fixture
def place(tmp_path):
    """A folder with a whole first run of two files, and the second run's files staged."""
    folder = tmp_path / "out"
    (folder / "deeper").mkdir(parents=True)
    finals = [folder / "a.jsonl", folder / "deeper" / "b.jsonl"]
    run(folder, finals, "first")
    for final in finals:
        get_staged_path(final).write_text(f"second {final.name}")
    return folder, finals


def run(folder, finals, text):
    for final in finals:
        get_staged_path(final).write_text(f"{text} {final.name}")
    publish(folder / "m.json", finals, manifest(folder, finals, text))


def manifest(folder, finals, text):
    outputs = [
        describe_file(get_staged_path(final), digest=True) | {"path": str(final.relative_to(folder))}
        for final in finals
    ]
    return {"impruver": FORMAT, "text": text, "outputs": outputs}


def state(folder, finals):
    """What each file and the manifest say: "first" or "second"; and the names of all files."""
    said = [final.read_text().split()[0] for final in finals]
    said.append(json.loads((folder / "m.json").read_text())["text"])
    return said, sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


WHOLE = ["a.jsonl", "deeper/b.jsonl", "m.json"]


def test_publish_puts_all_in_place(place):
    folder, finals = place
    assert state(folder, finals)[0] == ["first"] * 3
    run(folder, finals, "second")
    assert state(folder, finals) == (["second"] * 3, WHOLE)
    recover(folder / "m.json", finals)
    assert state(folder, finals) == (["second"] * 3, WHOLE)
    check_replaceable(finals, folder / "m.json")


KILLED = f"""
import json, os, sys
from pathlib import Path
from impruver_core.io import manifest, atomic as safe
folder, at = Path(sys.argv[1]), int(sys.argv[2])
finals = [folder / "a.jsonl", folder / "deeper" / "b.jsonl"]
{DYING}
staged = {{f: safe.get_staged_path(f) for f in finals}}
outputs = [manifest.describe_file(staged[f], digest=True) | {{"path": str(f.relative_to(folder))}} for f in finals]
for name in ("replace", "unlink", "fsync"):
    setattr(os, name, dying(getattr(os, name)))
told = {{"impruver": 1, "text": "second", "outputs": outputs}}
manifest.publish(folder / "m.json", finals, told, obsolete=[folder / "c.jsonl"])
"""


def test_killed_at_any_point(place):
    """Before each fsync, rename and unlink of publish in turn, until one goes through; c.jsonl is obsolete there."""
    folder, finals = place
    seen, obsolete = set(), folder / "c.jsonl"
    for at in range(40):
        run(folder, [*finals, obsolete], "first")
        for final in finals:
            get_staged_path(final).write_text(f"second {final.name}")
        ended = run_python(KILLED, folder, at).returncode
        if ended == 0:
            break
        assert ended == 9
        recover(folder / "m.json", [*finals, obsolete])
        said, names = state(folder, finals)
        assert said in (["first"] * 3, ["second"] * 3), at
        seen.add(said[0])
        left = {name for name in names if not name.endswith(".part")}  # of a write that never ended
        if said[0] == "second":
            assert left == set(WHOLE)
        else:
            assert left == {
                *WHOLE,
                "c.jsonl",
                ".a.jsonl.staged",
                "deeper/.b.jsonl.staged",
            }  # the next run writes them anew
        check_replaceable([*finals, obsolete], folder / "m.json")
        for part in folder.rglob("*.part"):
            part.unlink()
    assert ended == 0
    assert at > 8
    assert seen == {"first", "second"}


def test_an_obsolete_file_is_removed_by_a_record_only_as_it_was_made(place):
    folder, finals = place
    obsolete, pending = folder / "c.jsonl", get_pending_path(folder / "m.json")
    run(folder, [*finals, obsolete], "first")
    assert find_unchanged([obsolete], folder / "m.json") == [obsolete]
    get_staged_path(finals[0]).write_text("second a.jsonl")
    files = [{"path": finals[0].name, "sha256": hash_file(get_staged_path(finals[0]))}]
    removed = [{"path": obsolete.name, "sha256": hash_file(obsolete)}]
    told = {"files": files, "removed": removed, "manifest": {"impruver": 1, "text": "second"}}
    obsolete.write_text("mine")
    assert find_unchanged([obsolete], folder / "m.json") == []
    pending.write_text(json.dumps(told))
    with pytest.raises(ImpruverError, match=r"it would remove c\.jsonl, which Impruver did not make\); remove it"):
        recover(folder / "m.json", [*finals, obsolete])
    assert obsolete.read_text() == "mine"
    obsolete.write_text("first c.jsonl")
    recover(folder / "m.json", [*finals, obsolete])
    assert not obsolete.exists()
    assert finals[0].read_text() == "second a.jsonl"


def test_staged_files_that_are_gone_are_undone(place):
    folder, finals = place
    entries = [{"path": final.name, "sha256": hash_file(get_staged_path(final))} for final in finals]
    entries[1]["elsewhere"] = True
    get_pending_path(folder / "m.json").write_text(json.dumps({"files": entries, "manifest": {"impruver": 1}}))
    get_staged_path(finals[0]).unlink()
    recover(folder / "m.json", finals)
    assert state(folder, finals) == (["first"] * 3, WHOLE)
    check_replaceable(finals, folder / "m.json")


def test_recover_without_a_pending_file_does_nothing(place, tmp_path):
    folder, finals = place
    before = state(folder, finals)
    recover(folder / "m.json", finals)
    recover(tmp_path / "nowhere" / "m.json", finals)
    assert state(folder, finals) == before


def test_a_pending_file_of_others_is_told(tmp_path):
    for content in ("{", "[]", '{"files": []}'):
        get_pending_path(tmp_path / "m.json").write_text(content)
        with pytest.raises(ImpruverError, match=r"m\.json\.pending: Impruver did not write this"):
            recover(tmp_path / "m.json", [])


def test_forged_records_are_refused_and_nothing_is_touched(tmp_path):
    victim = tmp_path / "home" / "profile"
    for _, folder in place_journals(tmp_path, "m.json", "a.jsonl", victim):
        with pytest.raises(ImpruverError, match=r"m\.json\.pending: Impruver did not write this.*; remove it"):
            recover(folder / "m.json", [folder / "a.jsonl", victim.with_name("b.jsonl")])


def test_a_staged_file_that_is_a_link_is_never_put_in_place_nor_written_through(place):
    folder, finals = place
    victim = folder.parent / "profile"
    victim.write_text("mine")
    staged = get_staged_path(finals[0])
    staged.unlink()
    staged.symlink_to(victim)
    entries = [{"path": finals[0].name, "sha256": hash_file(victim)}]
    get_pending_path(folder / "m.json").write_text(json.dumps({"files": entries, "manifest": {"impruver": 1}}))
    recover(folder / "m.json", finals)
    assert state(folder, finals)[0] == ["first"] * 3
    for link in (staged, folder / "new.jsonl"):
        link.symlink_to(victim)
        with open_synced(link) as file:
            file.write("other")
        assert not link.is_symlink()
    assert victim.read_text() == "mine"


def test_a_record_replaces_no_file_that_impruver_did_not_make(place):
    """A stranger knows the hash of what he staged, not that of the user's own file."""
    folder, finals = place
    path, pending = finals[0], get_pending_path(folder / "m.json")
    record = {"files": [{"path": path.name, "sha256": hash_file(get_staged_path(path))}], "manifest": {"impruver": 1}}
    for text, replaces in (("mine", None), ("mine", "0" * 64)):
        path.write_text(text)
        record["files"][0]["replaces"] = replaces
        pending.write_text(json.dumps(record))
        before = list_tree(folder)
        with pytest.raises(ImpruverError, match=r"it would replace a\.jsonl, which Impruver did not make\); remove it"):
            recover(folder / "m.json", finals)
        assert list_tree(folder) == before
    record["manifest"]["tool"] = "another"
    path.unlink()
    pending.write_text(json.dumps(record))
    with pytest.raises(ImpruverError, match=r"it would replace m\.json, which is another tool's"):
        recover(folder / "m.json", finals)
    (folder / "m.json").write_text("mine")
    with pytest.raises(ImpruverError, match=r"it would replace m\.json, which is no manifest"):
        recover(folder / "m.json", finals)


def test_a_publish_over_a_users_file_is_finished(place, monkeypatch):
    """With --overwrite: what `publish` saw there is in its record."""
    folder, finals = place
    (folder / "m.json").unlink()
    finals[0].write_text("mine")
    monkeypatch.setattr("impruver_core.io.manifest._move_staged", lambda *args: None)
    told = manifest(folder, finals, "second")
    publish(folder / "m.json", finals, told)
    monkeypatch.undo()
    recover(folder / "m.json", finals)
    assert state(folder, finals) == (["second"] * 3, WHOLE)


def test_publish_of_a_manifest_alone(tmp_path):
    publish(tmp_path / "m.json", {}, {"impruver": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]
    assert read_manifest(tmp_path / "m.json") == {"impruver": 1}


def test_own_untouched_files_are_replaceable(place):
    folder, finals = place
    check_replaceable(finals, folder / "m.json")
    os.utime(finals[0])
    check_replaceable(finals, folder / "m.json")
    check_replaceable([folder / "not there"], folder / "m.json")
    check_replaceable([folder / "not there"], folder / "no manifest")


def test_foreign_and_changed_files_are_not(place):
    folder, finals = place
    other = folder / "other.jsonl"
    other.write_text("x")
    with pytest.raises(ImpruverError, match=r"other\.jsonl is there and Impruver did not make it: .*--overwrite"):
        check_replaceable([*finals, other], folder / "m.json")
    finals[1].write_text("FIRST b.jsonl")  # of the same length
    with pytest.raises(ImpruverError, match=r"b\.jsonl was changed since Impruver made it: .*--overwrite"):
        check_replaceable(finals, folder / "m.json")
    finals[1].write_text("longer than before")
    with pytest.raises(ImpruverError, match=r"b\.jsonl was changed"):
        check_replaceable(finals, folder / "m.json")
    check_replaceable([*finals, other], folder / "m.json", overwrite=True)
    (folder / "m.json").unlink()
    with pytest.raises(ImpruverError, match=r"a\.jsonl is there and Impruver did not make it"):
        check_replaceable(finals, folder / "m.json")


def test_a_folder_is_never_replaceable(place):
    folder, _ = place
    for overwrite in (False, True):
        with pytest.raises(ImpruverError, match="deeper is a folder"):
            check_replaceable([folder / "deeper"], folder / "m.json", overwrite)


def test_what_is_no_ordinary_file_is_never_replaceable(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImpruverError, match="pipe is no ordinary file"):
        check_replaceable([tmp_path / "pipe"], tmp_path / "m.json", overwrite=True)


def test_read_manifest(tmp_path):
    path = tmp_path / "m.json"
    assert read_manifest(path) is None
    assert read_manifest(tmp_path / "no folder" / "m.json") is None
    path.write_text('{"impruver": 1, "unknown": true}')
    assert read_manifest(path) == {"impruver": 1, "unknown": True}
    path.write_text(f'{{"impruver": {FORMAT + 1}}}')
    with pytest.raises(ImpruverError, match=rf"m\.json: manifest format {FORMAT + 1} is newer"):
        read_manifest(path)
    broken = (b"", b"[]", b"{}", b'{"impruver": "one"}', b"\xff", b'{"impruver": null}', b"7", b"[" * 100_000)
    wrong = ('"tokenizer": "x"', '"template": ["x"]', '"recipe": 7', '"system_prompt": {"a": 1}', '"end_of_turn": "x"')
    broken += tuple(f'{{"impruver": 1, {field}}}'.encode() for field in wrong)
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(ImpruverError, match=r"m\.json: not a manifest of Impruver"):
            read_manifest(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ImpruverError, match=r"m\.json: a pipe or device, not a file"):
        read_manifest(path)


def test_new_manifest_and_describe(tmp_path):
    head = build_manifest("impruver-core", {"seed": 1})
    assert head["impruver"] == FORMAT
    assert head["tool"] == "impruver-core"
    assert head["version"].count(".") == 2
    assert head["recipe"] == {"seed": 1}
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert describe_file(path) == {"path": str(path), "bytes": 3}
    assert describe_file(path, rows=2, beside=tmp_path) == {"path": "file", "bytes": 3, "rows": 2}
    assert describe_file(path, digest=True, beside=tmp_path / "else")["sha256"] == hash_file(path)
