"""Rows in the parts of a folder, or compressed: the bytes of the single file, put in place together or not at all."""

import hashlib
import json
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard

BESIDE = {"train.dropped.jsonl", "train.report.html", "train.manifest.json"}
SPLIT = {"val_rows": 6}


def unpack(path):
    content = path.read_bytes()
    return zstandard.ZstdDecompressor().decompress(content) if path.suffix == ".zst" else content


def joined(folder):
    return b"".join(unpack(path) for path in sorted(folder.iterdir()))


def manifest_of(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def parted(composed, files, tmp_path):
    """Composes 30 rows into parts of so many bytes, for train and val; the folder of the outputs."""
    files.write("data.jsonl", files.unlike(30))

    def run(part_bytes=3000, *flags, compression=None, train="out/train/", val="out/val/", **keys):
        section = {"part_bytes": part_bytes} | ({"part_compression": compression} if compression else {})
        composed(*flags, train_path=train, val_path=val, split=SPLIT, compose=section, **keys)
        return tmp_path / "out"

    return run


def test_parts_are_the_single_file_cut_between_rows(parted, composed, tmp_path):
    out = parted(3000)
    single = composed(train_path="one/train.jsonl", val_path="one/val.jsonl", split=SPLIT)
    for name in ("train", "val"):
        whole = (tmp_path / f"one/{name}.jsonl").read_bytes()
        parts = sorted((out / name).iterdir())
        assert joined(out / name) == whole
        assert [path.name for path in parts] == [f"part-{number:05d}.jsonl" for number in range(len(parts))]
        sizes = [path.stat().st_size for path in parts]
        assert max(sizes) <= 3000
        firsts = [len(path.read_bytes().splitlines(keepends=True)[0]) for path in parts]
        assert all(size + first > 3000 for size, first in zip(sizes, firsts[1:], strict=False)), "a row more would fit"
    assert len(list((out / "train").iterdir())) > 4
    assert {path.name for path in out.iterdir()} == BESIDE | {"train", "val"}
    assert (out / "train.dropped.jsonl").read_bytes() == (tmp_path / "one/train.dropped.jsonl").read_bytes()
    manifest = manifest_of(out / "train.manifest.json")
    for entry in manifest["outputs"]:
        content = (out / entry["path"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert entry.get("rows") == (None if entry["path"].endswith(".html") else content.count(b"\n"))
    assert manifest["outputs"][0]["path"] == "train/part-00000.jsonl"
    assert manifest["counts"] == manifest_of(tmp_path / "one/train.jsonl.manifest.json")["counts"]
    assert manifest_of(tmp_path / "one/train.jsonl.manifest.json")["recipe"]["compose"] == {
        "encoder": "auto",
        "engine": "local",
    }
    assert "24 rows" in single.out


@pytest.mark.parametrize("part_bytes", [1, 10**6])
def test_a_row_larger_than_a_part_has_one_of_its_own(part_bytes, parted):
    out = parted(part_bytes)
    assert len(list((out / "train").iterdir())) == (24 if part_bytes == 1 else 1)


def test_compressed_parts_and_a_compressed_file(parted, composed, tmp_path):
    out = parted(3000, compression="zst")
    plain = parted(3000, train="plain/train/", val="plain/val/").with_name("plain")
    names = [path.name for path in sorted((out / "train").iterdir())]
    assert names == [f"{path.name}.zst" for path in sorted((plain / "train").iterdir())]
    assert joined(out / "train") == joined(plain / "train")
    composed(train_path="one/train.jsonl.zst", val_path="one/val.jsonl.zst", split=SPLIT)
    assert unpack(tmp_path / "one/train.jsonl.zst") == joined(out / "train")
    assert unpack(tmp_path / "one/val.jsonl.zst") == joined(out / "val")
    names = {"train.jsonl.zst", "val.jsonl.zst", "train.dropped.jsonl", "train.report.html"}
    assert {path.name for path in (tmp_path / "one").iterdir()} == names | {"train.jsonl.zst.manifest.json"}
    before = contents(tmp_path / "one") | contents(out)
    composed("--overwrite", train_path="one/train.jsonl.zst", val_path="one/val.jsonl.zst", split=SPLIT)
    parted(3000, "--overwrite", compression="zst")
    assert contents(tmp_path / "one") | contents(out) == before


def test_no_validation_rows_are_one_empty_part(composed, files, tmp_path):
    files.write("data.jsonl", files.unlike(3))
    composed(val_path="out/val/")
    assert contents(tmp_path / "out/val") == {"part-00000.jsonl": b""}


def test_a_folder_that_is_there_is_one_of_parts_and_a_path_may_be_absolute(composed, files, tmp_path):
    files.write("data.jsonl", files.unlike(3))
    (tmp_path / "out/rows").mkdir(parents=True)
    for _ in range(2):
        composed(train_path=str(tmp_path / "out/rows"))
    assert (tmp_path / "out/rows/part-00000.jsonl").is_file()
    assert manifest_of(tmp_path / "out/rows.manifest.json")["outputs"][0]["path"] == "rows/part-00000.jsonl"


def test_fewer_parts_remove_those_that_are_no_more(parted):
    out = parted(1000)
    many = len(list((out / "train").iterdir()))
    (out / "train/notes.txt").write_text("mine")
    parted(9000)
    assert len(list((out / "train").glob("part-*"))) < many
    kept = contents(out)
    assert kept["train/notes.txt"] == b"mine"
    parted(9000, compression="zst")
    assert {path.suffix for path in (out / "train").iterdir()} == {".zst", ".txt"}
    parted(9000)
    assert contents(out) == kept


def test_what_others_put_into_the_folder_is_never_touched(parted, compose, files):
    out = parted(3000)
    before = contents(out)
    keys = {"train_path": "out/train/", "val_path": "out/val/", "compose": {"part_bytes": 9000}, "split": SPLIT}
    for name in ("mine.jsonl", "part-00099.jsonl", "old.jsonl.gz"):
        (out / "train" / name).write_text("{}\n")
        for flags in ((), ("--overwrite",), ("--dry_run",)):
            done = compose(*flags, **keys)
            assert (done.code, done.err.count("error:")) == (2, 1)
            assert f"out/train/{name} would be read as rows of out/train, and Impruver did not make it" in done.err
        (out / "train" / name).unlink()
        assert contents(out) == before
    part = out / "train/part-00001.jsonl"
    part.write_bytes(part.read_bytes().replace(b"1", b"2"))
    done = compose(**keys)
    assert done.code == 2
    assert "out/train/part-00001.jsonl was changed since Impruver made it" in done.err
    part.unlink()
    parted(3000)
    assert contents(out) == before


@pytest.fixture
def stopping(tmp_path, monkeypatch):
    """Within it the process is stopped before rename or removal number `at` of a file of the outputs."""

    @contextmanager
    def stop(at):
        done = 0

        def counting(call):
            def counted(path, *args, **kwargs):
                nonlocal done
                if done == at:
                    os.kill(os.getpid(), signal.SIGTERM)
                done += os.path.abspath(path).startswith(str(tmp_path / "out"))
                return call(path, *args, **kwargs)

            return counted

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink"):
                patch.setattr(os, name, counting(getattr(os, name)))
            yield

    return stop


def test_stopped_at_any_rename_and_removal_the_same_command_gives_the_same(parted, compose, stopping):
    keys = {"train_path": "out/train/", "val_path": "out/val/", "compose": {"part_bytes": 6000}, "split": SPLIT}
    out = parted(6000)
    wanted = contents(out)
    for at in range(0, 99, 5):
        parted(2000)
        old = contents(out)
        with stopping(at):
            code = compose(**keys).code
        if code == 0:
            break
        assert code == 143
        if not list(out.glob("*.pending")):
            assert contents(out) in (old, wanted), at
        parted(6000)
        assert contents(out) == wanted, at
    assert code == 0
    assert at >= 10


def test_a_killed_run_leaves_no_staged_parts(parted):
    out = parted(3000)
    before = contents(out)
    for number in (0, 70):
        (out / f"train/.part-{number:05d}.jsonl.staged").write_text("half")
    parted(3000)
    assert contents(out) == before


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"compose": {"part_bytes": 0}}, "compose.part_bytes: must be at least 1 byte, not 0"),
        ({"compose": {"part_bytes": "500MB"}}, "compose.part_bytes: expected a whole number, found the text '500MB'"),
        ({"compose": {"part_compression": "gz"}}, "'gz' is none of zst"),
        ({"train_path": "out/part-*.jsonl"}, "is a glob, which rows are read from: name a file, or a folder for parts"),
        ({"val_path": "out/train/val.jsonl"}, "val_path: out/train/val.jsonl is where train_path goes"),
        ({"val_path": "out/"}, "val_path: out is where train_path goes"),
        ({"val_path": "out/train/"}, "val_path: out/train is where train_path goes"),
        ({"train_path": "./"}, "train_path: ./ is a folder: name a file in it, or a folder in it for parts"),
        ({"data": "out/train/*.jsonl"}, "out/train/*.jsonl is not there"),
    ],
)
def test_what_can_not_be_parts(keys, told, refused, files):
    files.write("data.jsonl", files.unlike(3))
    assert told in refused(**{"train_path": "out/train/"} | keys)


def test_data_in_the_folder_of_parts_is_refused(parted, compose):
    parted(3000)
    for name in ("out/train/*.jsonl", "out/train", "out"):
        done = compose(data=name, train_path="out/train/", val_path="out/val/")
        assert done.code == 2
        assert "which this run writes: name another path" in done.err


def test_without_zstandard_nothing_is_begun(refused, files, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    files.write("data.jsonl", files.unlike(3))
    told = "train_path: .zst needs a further package: pip install zstandard"
    assert told in refused(train_path="out/train.jsonl.zst")
    assert told in refused(train_path="out/train/", compose={"part_compression": "zst"})


def test_a_full_disk_leaves_nothing(refused, files, monkeypatch):
    import errno

    from impruver_compose import row_files

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    files.write("data.jsonl", files.unlike(3))
    monkeypatch.setattr(row_files, "compress_zst", full)
    message = refused(train_path="new/train/", val_path="new/val/", compose={"part_compression": "zst"})
    assert "the disk is full; about" in message
    assert not [path for path in Path("new").rglob("*") if path.is_file()]


def test_a_dry_run_tells_the_space(composed, files, tmp_path):
    files.write("data.jsonl", files.unlike(40))
    done = composed("--dry_run", train_path="out/train/", split={"val_rows": 4})
    (line,) = [line for line in done.err.splitlines() if line.startswith("disk: ")]
    about, cached, _ = (float(piece.split(" kB")[0]) for piece in line.split("about ")[1:])
    assert not (tmp_path / "out").exists()
    composed(train_path="out/train/", split={"val_rows": 4})
    written = sum(path.stat().st_size for path in (*Path("out/train").iterdir(), Path("out/val.jsonl")))
    assert about * 1000 == pytest.approx(written, rel=0.1)
    kept = sum(path.stat().st_size for path in (tmp_path / "cache/compose").rglob("*.arrow"))
    assert cached * 1000 == pytest.approx(kept, rel=0.25)
