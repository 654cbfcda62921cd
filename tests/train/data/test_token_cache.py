"""The cache of token rows: damage is noticed and mended, and no entry stands under another content's hash."""

import os
import shutil
from pathlib import Path

import pytest
from impruver_train.data.token_files import TokenFiles
from support.damage import DAMAGES, restore
from support.jsonl import read_jsonl, write_jsonl


@pytest.fixture
def entry(parts, tmp_path):
    """The folder of the training rows in the cache, and how they are loaded."""
    from impruver_train.data.token_dataset import load_token_dataset

    train = parts / "train.jsonl"

    def load():
        stats, rows = load_token_dataset(TokenFiles(train, (train,)))
        return stats, rows[:]

    load()
    (folder,) = (tmp_path / "cache/tokens").iterdir()
    return folder, load


def test_a_damaged_entry_is_made_again(entry, tmp_path, capfd):
    folder, load = entry
    before = load()
    shutil.copytree(folder, tmp_path / "whole")
    assert capfd.readouterr().err == ""
    for name in ("facts.json", "rows.arrow"):
        for kind, damage in DAMAGES.items():
            damage(folder / name)
            assert load() == before, (name, kind)
            err = capfd.readouterr().err
            if (name, kind) == ("facts.json", "longer"):  # a line end more is the same record
                assert err == ""
                continue
            assert err.startswith(f"note: {folder} is damaged ({name}: "), (name, kind, err)
            assert err.endswith(" and is made again\n")
            assert {path.name for path in folder.iterdir()} == {"facts.json", "rows.arrow"}
            assert load() == before
            assert capfd.readouterr().err == ""
            restore(folder, tmp_path / "whole")
    shutil.rmtree(folder)
    folder.write_text("a file", encoding="utf-8")
    assert load() == before


def test_an_entry_of_another_file_is_made_again(entry, parts, tmp_path, capfd):
    from impruver_train.data.token_dataset import load_token_dataset

    folder, load = entry
    before = load()
    load_token_dataset(TokenFiles(parts / "val.jsonl", (parts / "val.jsonl",)))
    (other,) = {*(tmp_path / "cache/tokens").iterdir()} - {folder}
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    assert load() == before
    assert f"note: {folder} is damaged (facts.json: it is of another file, {other.name})" in capfd.readouterr().err


def test_a_dry_run_uses_no_damaged_entry_and_writes_nothing(entry, recipe, impruver_train, tmp_path):
    folder, _ = entry
    config = recipe()
    whole = impruver_train(config, "--dry_run")
    assert whole.code == 0, whole.err
    shutil.copytree(folder, tmp_path / "whole")
    for name, kind in (("rows.arrow", "zeros"), ("facts.json", "garbage"), ("rows.arrow", "gone")):
        restore(folder, tmp_path / "whole")
        DAMAGES[kind](folder / name)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        code, stdout, err = impruver_train(config, "--dry_run")
        assert (code, stdout) == (0, whole.out), err
        assert f"note: {folder} is damaged ({name}: " in err
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_a_kill_left_in_an_entry_goes(entry, capfd):
    folder, load = entry
    for name in ("rows.arrow.123", ".facts.json.123.part"):
        (folder / name).write_text("half", encoding="utf-8")
    load()
    assert {path.name for path in folder.iterdir()} == {"facts.json", "rows.arrow"}
    (folder / "facts.json").unlink()
    (folder / "rows.arrow").rename(folder / "rows.arrow.123")
    load()
    assert {path.name for path in folder.iterdir()} == {"facts.json", "rows.arrow"}
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("flags", [(), ("--dry_run",)], ids=["a run", "a dry run"])
@pytest.mark.parametrize("how", ["other rows", "no rows", "removed", "replaced"])
def test_rows_that_change_while_they_are_read_are_told(
    how, flags, recipe, impruver_train, parts, tmp_path, monkeypatch
):
    """The file changes right after it was hashed: the rows are those of another hash."""
    from impruver_train import run

    data = Path(shutil.copy(parts / "train.jsonl", tmp_path / "train.jsonl"))
    find_start = run.resume.find_start

    def change(*args):
        if how == "other rows":
            write_jsonl(data, read_jsonl(data)[1:])
        elif how == "no rows":
            data.write_text('{"input_ids": [5,', encoding="utf-8")
        elif how == "removed":
            data.unlink()
        else:
            shutil.copy(data, tmp_path / "next")
            os.replace(tmp_path / "next", data)
        return find_start(*args)

    monkeypatch.setattr(run.resume, "find_start", change)
    code, stdout, err = impruver_train(recipe(train_path=str(data)), *flags)
    assert (code, stdout) == (2, ""), err
    assert f"impruver-train: error: {data} was changed while it was read" in err
    assert not list((tmp_path / "cache").rglob("*.*"))
    assert not (tmp_path / "out").exists()


REMOVER = """
import os
import shutil
import torch
from pathlib import Path
from transformers import Trainer

class RemoveTrainer(Trainer):
    def training_step(self, model, *args, **kwargs):
        if self.state.global_step == 1:
            for name in os.environ["REMOVED"].split(":"):
                shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()
        if self.state.global_step == int(os.environ.get("NAN", 9)):
            next(p for p in model.parameters() if p.requires_grad).data.fill_(torch.nan)
        return super().training_step(model, *args, **kwargs)
"""


def test_what_is_gone_by_the_end_was_read_at_the_start(recipe, impruver_train, parts, tmp_path, monkeypatch):
    import json

    (tmp_path / "remover.py").write_text(REMOVER, encoding="utf-8")
    base = shutil.copytree(parts / "base", tmp_path / "base")
    (base / "tokenizer.model").write_bytes(b"a vocabulary")
    train, val = (Path(shutil.copy(parts / name, tmp_path)) for name in ("train.jsonl", "val.jsonl"))
    sizes = [path.stat().st_size for path in (train, val)]
    keys = {"model": {"name": str(base)}, "train_path": str(train), "val_path": str(val)}
    config = recipe(**keys, trainer={"class": "remover.RemoveTrainer"})
    monkeypatch.setenv("REMOVED", f"{train}:{val}:{base}")
    code, _, err = impruver_train(config)
    assert code == 0, err
    out = tmp_path / "out"
    assert read_jsonl(out / "heldout.jsonl") == read_jsonl(parts / "val.jsonl")
    assert (out / "tokenizer.model").read_bytes() == b"a vocabulary"
    manifest = json.loads((out / "impruver.json").read_text(encoding="utf-8"))
    assert [entry["bytes"] for entry in manifest["inputs"][:2]] == sizes
    shutil.copytree(parts / "base", base)
    for name in ("train.jsonl", "val.jsonl"):
        shutil.copy(parts / name, tmp_path)
    monkeypatch.setenv("NAN", "2")
    monkeypatch.setenv("REMOVED", str(train))
    code, _, err = impruver_train(config, "--overwrite")
    assert (code, err.count("impruver-train: error:"), "Traceback" in err) == (3, 1, False), err
    assert f"on rows of {train}, which was changed since" in err
