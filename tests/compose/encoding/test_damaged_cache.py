"""Whatever happens to files of the cache, the outputs are the same, and what was made again is told."""

import os
import shutil
import time
from pathlib import Path

import pytest
from impruver_compose.encoding.cache import KEPT_DAYS
from impruver_compose.sources import loading
from impruver_core.io.locks import share_folder
from support.damage import DAMAGES

OUTPUTS = ("train.jsonl", "val.jsonl", "train.dropped.jsonl", "train.report.html", "train.jsonl.manifest.json")


OTHER_JSON = '{"xxh3": 1, "value": [2]}'
FILES = {"shard": "compose/**/*.arrow", "rows": "datasets/**/*.arrow", "columns": "datasets/**/columns-0.json"}
FILES |= {"content": "datasets/**/content.json"}
EACH = [("shard", damage) for damage in DAMAGES if damage != "gone"]
EACH += [
    ("rows", "a flipped bit"),
    ("rows", "cut off"),
    ("columns", "a flipped bit"),
    ("columns", "a pipe"),
    ("columns", "other json"),
]
EACH += [("content", "garbage"), ("rows", "empty"), ("rows", "a folder")]


@pytest.fixture
def written(composed, files):
    """A first run's outputs, in bytes."""
    files.write("data.jsonl", [*files.unlike(40), *files.unlike(3)])
    composed()
    return {name: (Path("out") / name).read_bytes() for name in OUTPUTS}


@pytest.mark.parametrize(("file", "damage"), EACH)
def test_a_damaged_file_is_made_again(file, damage, written, composed):
    (path,) = Path("cache").glob(FILES[file])
    path.write_text(OTHER_JSON) if damage == "other json" else DAMAGES[damage](path)
    shutil.rmtree("out")
    err = composed().err
    assert {name: (Path("out") / name).read_bytes() for name in OUTPUTS} == written
    assert err.count("note: ") == 1
    assert "damaged" in err
    shutil.rmtree("out")
    assert "damaged" not in composed().err


def test_the_shard_of_another_file_is_none(composed, files):
    """Whole as it is, its rows are not those of the file whose place it has."""
    for name, start in (("a", 0), ("b", 40)):
        files.write("data.jsonl", files.unlike(40, start=start))
        composed(train_path=f"{name}/train.jsonl", val_path=f"{name}/val.jsonl")
    written = {name: Path("b", name).read_bytes() for name in ("train.jsonl", "val.jsonl")}
    shards = sorted(Path("cache").glob(FILES["shard"]), key=lambda path: path.stat().st_mtime)
    shutil.copy(shards[0], shards[1])
    shutil.rmtree("b")
    err = composed(train_path="b/train.jsonl", val_path="b/val.jsonl").err
    assert "or those of another shard" in err
    assert {name: Path("b", name).read_bytes() for name in written} == written


def test_a_file_that_is_rewritten_meanwhile_is_refused(refused, composed, files, tokenizer, monkeypatch):
    files.write("data.jsonl", files.unlike(5))
    load = loading._load_files

    def load_and_rewrite(*arguments):
        table = load(*arguments)
        before = os.stat("data.jsonl")
        files.write("data.jsonl", files.unlike(5, start=5))
        os.utime("data.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))  # as it was, as far as one can say
        return table

    with monkeypatch.context() as patch:
        patch.setattr(loading, "_load_files", load_and_rewrite)
        assert "data.jsonl was changed while it was read" in refused()
    files.write("data.jsonl", files.unlike(5))  # of which the cache must hold nothing else
    assert {tokenizer.decode(row["input_ids"]).count("question 5") for row in composed().train} == {0}


def test_an_entry_in_use_is_not_removed(written, composed, files):
    (entry,) = Path("cache/compose").iterdir()
    old = time.time() - (KEPT_DAYS + 1) * 86400
    os.utime(entry, (old, old))
    files.write("data.jsonl", files.unlike(5))
    with share_folder(entry):
        composed()
        assert entry.exists()
    os.utime(entry, (old, old))
    composed()
    assert not entry.exists()


def test_what_a_killed_run_was_writing_goes(written, composed):
    (shard,) = Path("cache").glob(FILES["shard"])
    parts = [shard.with_name(f".{shard.name}.99.part"), Path("out/.train.jsonl.manifest.json.99.part")]
    own = Path("out/.mine.99.part")
    for path in (*parts, own):
        path.write_text("x")
    composed()
    assert [path.exists() for path in (*parts, own)] == [False, False, True]
