"""Rows in parts train as the single file does: the same losses, the same bytes; parts are checked by their manifest."""

import json
import os
from pathlib import Path

import pytest
import zstandard
from impruver_core.io.manifest import build_manifest, describe_file
from impruver_train.data.token_files import TokenFiles, hash_content, read_token_rows
from support.jsonl import format_jsonl, read_jsonl
from support.models import edit_json
from support.trainers import put_beside_recipe

TRAINER = {"num_train_epochs": 2, "max_steps": -1, "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "no"}


def compress(content):
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def write_parts(folder, rows, size, suffix=".jsonl"):
    """Rows in parts of `size` rows; the folder."""
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(rows), size)):
        content = format_jsonl(rows[start : start + size]).encode()
        name = f"part-{number:05d}{suffix}"
        (folder / name).write_bytes(compress(content) if suffix.endswith(".zst") else content)
    return folder


def write_manifest(folder, *further):
    """A manifest beside the folder that describes its parts, and those of further folders; its path."""
    outputs = [
        describe_file(part, digest=True) | {"path": os.path.relpath(part, folder.parent)}
        for each in (folder, *further)
        for part in sorted(each.iterdir())
    ]
    path = folder.parent / f"{folder.name}.manifest.json"
    path.write_text(json.dumps(build_manifest("impruver-core", {}) | {"outputs": outputs}))
    return path


@pytest.fixture
def cut(parts, tmp_path):
    """The training rows in parts of 7, with a manifest; the folder."""
    folder = write_parts(tmp_path / "data/train", read_jsonl(parts / "train.jsonl"), 7)
    write_manifest(folder)
    return folder


@pytest.fixture
def trained(recipe, impruver_train, tmp_path, monkeypatch):
    """Trains with a cache of its own; losses, the weights' bytes and heldout.jsonl."""

    def run(name, train, val, stop=None, **trainer):
        monkeypatch.setenv("IMPRUVER_CACHE", str(tmp_path / "caches" / name))
        put_beside_recipe("stopper", tmp_path)
        keys = {"output_dir": str(tmp_path / name), "train_path": str(train), "val_path": str(val)}
        trainer = TRAINER | {"class": "stopper.StopTrainer"} | trainer
        config = recipe(f"{name}.yaml", **keys, lora={"lora_dropout": 0.2}, trainer=trainer)
        if stop is not None:
            monkeypatch.setenv("STOP", str(stop))
            assert impruver_train(config)[0] == 143
            monkeypatch.delenv("STOP")
        code, _, err = impruver_train(config)
        assert code == 0, err
        assert (stop is not None) == ("resumes from" in err)
        out = tmp_path / name
        weights = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
        return read_jsonl(out / "metrics.jsonl"), weights, (out / "heldout.jsonl").read_bytes()

    return run


@pytest.mark.parametrize("packing", [False, True])
def test_parts_train_as_the_single_file(packing, parts, tmp_path, trained):
    rows, val = read_jsonl(parts / "train.jsonl"), read_jsonl(parts / "val.jsonl")
    single = trained("single", parts / "train.jsonl", parts / "val.jsonl", packing=packing)
    data = tmp_path / "data"
    write_manifest(write_parts(data / "train", rows, 7), write_parts(data / "val", val, 5))
    assert trained("parts", f"{data}/train/", data / "val", packing=packing) == single
    write_parts(data / "packed", rows, 10, ".jsonl.zst")
    (data / "val.jsonl.zst").write_bytes(compress((parts / "val.jsonl").read_bytes()))
    again = trained("packed", data / "packed/*.zst", data / "val.jsonl.zst", stop=3, packing=packing)
    assert again == single
    described = [json.loads((tmp_path / name / "impruver.json").read_text())["inputs"] for name in ("single", "packed")]
    for one, other in zip(*described, strict=True):
        assert one | {"path": None} == other | {"path": None}


def test_a_run_that_was_stopped_resumes_on_the_same_rows_cut_otherwise(cut, parts, recipe, impruver_train, tmp_path):
    trainer = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    assert impruver_train(recipe(trainer=trainer))[0] == 0
    (tmp_path / "out/impruver.json").rename(tmp_path / "out/impruver.json.unfinished")
    code, _, err = impruver_train(recipe(train_path=str(cut), trainer=trainer))
    assert code == 0, err
    assert "resumes from" in err


def test_the_hash_is_that_of_the_single_file(cut, parts, tmp_path):
    train, content = parts / "train.jsonl", (parts / "train.jsonl").read_bytes()
    single = hash_content(TokenFiles(train, (train,)))
    assert single.size == len(content)
    files = TokenFiles(cut, tuple(sorted(cut.iterdir())))
    assert hash_content(files)[:2] == single[:2]
    for part in cut.iterdir():
        part.write_bytes(part.read_bytes().removesuffix(b"\n"))
    digest = hash_content(files)
    assert digest.size == len(content) - 1  # the last line alone lacks its end
    rows = list(read_token_rows(files))
    assert [row.row for row in rows] == read_jsonl(train)
    assert [row.overall for row in rows] == list(range(1, 49))
    assert (rows[7].part.name, rows[7].line) == ("part-00001.jsonl", 1)


def remove(folder):
    (folder / "part-00003.jsonl").unlink()


def change(folder):
    (folder / "part-00002.jsonl").write_text((folder / "part-00001.jsonl").read_text())


def add(folder):
    (folder / "mine.jsonl").write_text("")


def cut_off(folder):
    content = compress((folder / "part-00001.jsonl").read_bytes())
    write_manifest(folder).unlink()
    (folder / "part-00001.jsonl").unlink()
    (folder / "part-00001.jsonl.zst").write_bytes(content[:-9])


def break_row(folder):
    write_manifest(folder).unlink()
    with open(folder / "part-00001.jsonl", "a") as file:
        file.write("{\n")


def enlarge_id(folder):
    write_manifest(folder).unlink()
    with open(folder / "part-00002.jsonl", "a") as file:
        file.write('\n{"input_ids": [5, 7000], "labels": [5, 7000]}\n')


def empty(folder):
    for part in folder.iterdir():
        part.unlink()


def put_folder(folder):
    write_manifest(folder).unlink()
    (folder / "part-00009.jsonl").mkdir()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (remove, "{0}/part-00003.jsonl is not there, and the manifest of {0} names it: copy it again"),
        (change, "{0}/part-00002.jsonl was changed since impruver-compose made it, by the manifest of {0}"),
        (add, "{0}/mine.jsonl is none of the parts that the manifest of {0} names: move it away"),
        (cut_off, "{0}/part-00001.jsonl.zst: the compressed file is broken: it is cut off"),
        (break_row, "{0}/part-00001.jsonl, line 8, column 2: not JSON"),
        (enlarge_id, "{0}/part-00002.jsonl, line 9: id 7000 is beyond the vocabulary"),
        (empty, "train_path: {0} is a folder without rows, no .jsonl in it; impruver-compose --config"),
        (put_folder, "train_path: {0}/part-00009.jsonl is no regular file"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_parts_that_are_not_as_they_should_be(how, told, cut, recipe, impruver_train, tmp_path):
    how(cut)
    for flags in ((), ("--dry_run",)):
        code, _, err = impruver_train(recipe(train_path=f"{cut}/"), *flags)
        if flags and how is empty:  # compose may have yet to fill it
            assert code == 0
            assert "note: train_path: " in err
            continue
        assert (code, err.count("error:")) == (2, 1), err
        assert told.format(cut) in err
        assert not (tmp_path / "out").exists()


def test_validation_parts_are_checked_by_the_manifest_of_train(cut, parts, recipe, impruver_train, tmp_path):
    val = write_parts(cut.parent / "val", read_jsonl(parts / "val.jsonl"), 5)
    write_manifest(cut, val)
    (val / "part-00001.jsonl").unlink()
    code, _, err = impruver_train(recipe(train_path=str(cut), val_path=str(val)))
    assert code == 2
    assert f"{val}/part-00001.jsonl is not there, and the manifest of {val} names it" in err


def test_globs(cut, recipe, impruver_train, monkeypatch):
    def dry_run(path):
        code, out, err = impruver_train(recipe(train_path=str(path)), "--dry_run")
        return code, out + err

    assert "rows: 14;" in dry_run(cut / "part-0000[12].jsonl")[1]
    assert "rows: 48;" in dry_run(cut.parent / "**/*.jsonl")[1]
    code, told = dry_run(cut / "no-*.jsonl")
    assert (code, f"train_path: no file matches {cut}/no-*.jsonl" in told) == (2, True)
    assert "note: train_path: out[1]/train.jsonl is not there" in dry_run("out[1]/train.jsonl")[1]
    change(cut)
    code, told = dry_run(cut / "part-0000[12].jsonl")
    assert (code, "part-00002.jsonl was changed since impruver-compose made it" in told) == (2, True)


def test_parts_of_another_tokenizer_are_refused(cut, recipe, impruver_train):
    edit_json(Path(f"{cut}.manifest.json"), tokenizer={"fingerprint": "another"})
    for train in (f"{cut}/", cut / "*.jsonl"):
        code, _, err = impruver_train(recipe(train_path=str(train)), "--dry_run")
        assert code == 2
        assert f"{Path(train)} was made with another tokenizer than this recipe's" in err


def test_lines_that_end_a_training_are_named_with_their_part(cut, recipe, impruver_train, tmp_path):
    (tmp_path / "nan.py").write_text(
        "import torch\n"
        "from transformers import Trainer\n"
        "class NanTrainer(Trainer):\n"
        "    def training_step(self, model, *args, **kwargs):\n"
        "        next(p for p in model.parameters() if p.requires_grad).data.fill_(torch.nan)\n"
        "        return super().training_step(model, *args, **kwargs)\n"
    )
    code, _, err = impruver_train(recipe(train_path=str(cut), trainer={"class": "nan.NanTrainer"}))
    assert code == 3
    assert "lines " in err.partition("step 1, on ")[2][:6]
    assert " and lines " in err
    assert f"of {cut}/part-0000" in err
