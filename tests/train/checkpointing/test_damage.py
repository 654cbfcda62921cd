"""Damaged checkpoints and outputs: found by checksum, told by name, never resumed from, never left as the result."""

import json
import shutil

import pytest
from support.damage import DAMAGES, flip, restore

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "per_device_train_batch_size": 2}


@pytest.fixture
def finished(recipe, impruver_train, tmp_path, tmp_path_factory):
    """The recipe of a finished run of 3 steps, each saved, and a copy of what it left, made once a worker."""
    copy = tmp_path_factory.getbasetemp() / "finished run"
    if not copy.exists():
        assert impruver_train(recipe(output_dir=str(copy), trainer=SAVING))[0] == 0
    shutil.copytree(copy, tmp_path / "out")
    shutil.copytree(copy, tmp_path / "straight")
    return recipe(trainer=SAVING)


@pytest.fixture
def unfinished(finished, tmp_path):
    """The recipe of that run, as if it had been killed after checkpoint-2; `whole` is a copy of what it left."""
    from impruver_train.checkpointing.checkpoints import read_marker, write_run_identity

    out = tmp_path / "out"
    shutil.rmtree(out / "checkpoint-3")
    (out / "impruver.json").unlink()
    (out / "adapter_model.safetensors").unlink()
    marker = read_marker(out / "checkpoint-2")
    own = {name: marker[name] for name in ("impruver", "recipe", "inputs", "processes")}
    write_run_identity(out / "impruver.json.unfinished", own)
    shutil.copytree(out, tmp_path / "whole")
    return finished


def test_a_damaged_file_of_a_checkpoint_is_passed_over(unfinished, impruver_train, tmp_path):
    out = tmp_path / "out"
    names = sorted(path.name for path in (out / "checkpoint-2").iterdir())
    assert {"optimizer.pt", "rng_state.pth", "epoch_random_0.pth", "adapter_model.safetensors"} < set(names)
    cases = [("adapter_model.safetensors", kind) for kind in DAMAGES] + [(name, "a flipped bit") for name in names]
    cases += [("impruver.json", kind) for kind in DAMAGES if kind not in ("longer", "gone")]
    for name, kind in cases:
        restore(out, tmp_path / "whole")
        DAMAGES[kind](out / "checkpoint-2" / name)
        code, _, err = impruver_train(unfinished, "--dry_run")
        assert (code, "Traceback" in err) == (0, False), (name, kind, err)
        told = [line for line in err.splitlines() if "is damaged" in line]
        assert len(told) == 1, (name, kind, err)
        assert told[0].startswith(f"warning: {out}/checkpoint-2 is damaged ("), told
        assert name in told[0]
        assert f"resumes from {out}/checkpoint-1, after step 1" in err
    restore(out, tmp_path / "whole")
    flip(out / "checkpoint-2/adapter_model.safetensors")
    assert impruver_train(unfinished)[0] == 0
    for name in ("metrics.jsonl", "adapter_model.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_what_identifies_the_run_is_known_by_its_checkpoints(unfinished, impruver_train, tmp_path):
    out = tmp_path / "out"
    for kind, damage in DAMAGES.items():
        restore(out, tmp_path / "whole")
        damage(out / "impruver.json.unfinished")
        code, _, err = impruver_train(unfinished, "--dry_run")
        assert (code, "Traceback" in err) == (0, False), (kind, err)
        assert f"resumes from {out}/checkpoint-2, after step 2" in err
        assert ("the run is known by its checkpoints" in err) == (kind not in ("gone", "longer")), (kind, err)
    swapped = out / "impruver.json.unfinished"
    assert swapped.exists()  # a pipe
    assert impruver_train(unfinished)[0] == 0
    assert not swapped.exists()


def test_a_folder_at_the_name_of_an_output_is_told_before_training(unfinished, impruver_train, tmp_path):
    path = tmp_path / "out/config.json"
    path.unlink()
    path.mkdir()
    code, _, err = impruver_train(unfinished)
    assert (code, f"error: output_dir: {path} is no file" in err, len(err.splitlines())) == (2, True, 1), err


def test_none_left_is_begun_again(unfinished, impruver_train, tmp_path):
    out = tmp_path / "out"
    for number in (1, 2):
        flip(out / f"checkpoint-{number}/optimizer.pt")
    code, _, err = impruver_train(unfinished)
    assert code == 0, err
    assert err.count("is damaged (optimizer.pt: it holds other bytes than were written)") == 2
    assert f"warning: {out}: no whole checkpoint is left, and the run starts from the beginning" in err
    assert (out / "metrics.jsonl").read_bytes() == (tmp_path / "straight/metrics.jsonl").read_bytes()
    restore(out, tmp_path / "whole")
    for path in out.glob("**/impruver.json*"):
        path.write_bytes(b"\0" * 100)
    code, stdout, err = impruver_train(unfinished)
    assert (code, stdout, len(err.splitlines())) == (2, "", 1), err
    assert "nothing there tells which" in err
    assert impruver_train(unfinished, "--overwrite", "--dry_run")[0] == 0


def test_a_damaged_checkpoint_that_the_recipe_names_is_refused(unfinished, recipe, impruver_train, tmp_path):
    named = tmp_path / "whole/checkpoint-2"
    keys = {"output_dir": str(tmp_path / "second"), "trainer": SAVING | {"resume_from_checkpoint": str(named)}}
    config = recipe("second.yaml", **keys)
    assert impruver_train(config, "--dry_run")[0] == 0
    for name in ("scheduler.pt", "impruver.json"):
        before = (named / name).read_bytes()
        flip(named / name)
        code, stdout, err = impruver_train(config)
        assert (code, stdout, len(err.splitlines())) == (2, "", 1), err
        assert f"{named}" in err
        assert name in err
        (named / name).write_bytes(before)


def test_a_marker_without_checksums_is_read_as_before(unfinished, impruver_train, tmp_path):
    out = tmp_path / "out"
    for path in out.glob("*/impruver.json"):
        marker = json.loads(path.read_text(encoding="utf-8"))
        del marker["checksum"]
        marker["files"] = {name: content["bytes"] for name, content in marker["files"].items()}
        path.write_text(json.dumps(marker), encoding="utf-8")
    assert f"resumes from {out}/checkpoint-2," in impruver_train(unfinished, "--dry_run")[2]
    (out / "checkpoint-2/optimizer.pt").write_bytes(b"")
    err = impruver_train(unfinished, "--dry_run")[2]
    assert "checkpoint-2 is damaged (optimizer.pt gone or of another size)" in err
    assert f"resumes from {out}/checkpoint-1," in err


BEST = SAVING | {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "max_steps": 4}
BEST |= {"class": "spoiler.SpoilTrainer"}
# The first checkpoint is the best, and is damaged at the end.
SPOILER = """
from pathlib import Path
from transformers import Trainer

class SpoilTrainer(Trainer):
    def evaluate(self, *args, **kwargs):
        if self.state.global_step == self.state.max_steps:
            path = Path(self.state.best_model_checkpoint) / "adapter_model.safetensors"
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        return super().evaluate(*args, **kwargs) | {"eval_loss": self.state.global_step}
"""


def test_the_best_checkpoint_is_verified(recipe, impruver_train, parts, tmp_path):
    (tmp_path / "spoiler.py").write_text(SPOILER, encoding="utf-8")
    config, out = recipe(val_path=str(parts / "val.jsonl"), trainer=BEST), tmp_path / "out"
    code, stdout, err = impruver_train(config)
    assert (code, stdout, err.count("impruver-train: error:")) == (2, "", 1), err
    assert f"{out}/checkpoint-1, whose weights trainer.load_best_model_at_end is to leave, is damaged" in err
    assert "no model was written; there are" in err
    assert not list(out.glob("*.safetensors"))
    code, _, err = impruver_train(config)
    assert code == 0, err
    assert f"warning: {out}/checkpoint-1, the best checkpoint so far, is damaged (adapter_model.safetensors" in err
    last = out / "checkpoint-4/adapter_model.safetensors"
    assert (out / "adapter_model.safetensors").read_bytes() == last.read_bytes()


def test_a_finished_run_says_which_output_is_damaged(finished, impruver_train, tmp_path):
    out = tmp_path / "out"
    manifest = json.loads((out / "impruver.json").read_text(encoding="utf-8"))
    assert {len(entry["xxh3"]) for entry in manifest["outputs"]} == {32}
    shutil.copytree(out, tmp_path / "whole")
    for name, kind in [("adapter_model.safetensors", kind) for kind in DAMAGES] + [("tokenizer.json", "zeros")]:
        restore(out, tmp_path / "whole")
        DAMAGES[kind](out / name)
        code, stdout, err = impruver_train(finished)
        assert (code, stdout) == (2, ""), (kind, err)
        assert f"holds this very run, finished, and not as it was left:\n  {name}: " in err, err
    restore(out, tmp_path / "whole")
    assert "nothing to do" in impruver_train(finished)[1]


def test_what_a_kill_left_is_gone_after_the_next_run(impruver_train, unfinished, tmp_path):
    out = tmp_path / "out"
    names = (".adapter.x1y2_z34/adapter_model.safetensors", ".metrics.jsonl.12.part", ".impruver.json.34.part")
    names += ("checkpoint-1/.impruver.json.12.part", "checkpoint-7/optimizer.pt", "stopped-9/optimizer.pt")
    mine = (".adapter.mine/notes.txt", ".notes.txt.12.part", "checkpoint-best/mine.txt")

    def leave():
        for name in names + mine:
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_text("half", encoding="utf-8")

    def left(some):
        return [name for name in some if (out / name).exists()]

    leave()
    assert impruver_train(unfinished)[0] == 0
    assert (left(names), left(mine)) == ([], list(mine))
    leave()  # a kill between the manifest and the end
    shutil.copy(tmp_path / "whole/impruver.json.unfinished", out)
    assert impruver_train(unfinished, "--dry_run")[0] == 0
    assert left(names) == list(names)
    assert "nothing to do" in impruver_train(unfinished)[1]
    assert (left(names), left(mine)) == ([], list(mine))
    assert not (out / "impruver.json.unfinished").exists()


def test_a_marker_that_leads_out_of_its_folder_is_broken(unfinished, impruver_train, tmp_path):
    from impruver_train.checkpointing.checkpoints import read_marker, write_run_identity

    folder = tmp_path / "out/checkpoint-2"
    marker = read_marker(folder)
    for name in ("/etc/passwd", "../checkpoint-1/optimizer.pt", "x" * 5000):
        write_run_identity(folder / "impruver.json", marker | {"files": {name: {"bytes": 1, "xxh3": "0"}}})
        code, _, err = impruver_train(unfinished, "--dry_run")
        assert (code, "checkpoint-2 is damaged (" in err) == (0, True), err
