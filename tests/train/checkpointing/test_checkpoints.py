"""What training must not take along: files of others in output_dir, settings that were given, processes that go on."""

import json
import os
import shutil

import pytest
from support.attacks import Payload
from support.jsonl import read_jsonl, write_jsonl

FOREIGN = (
    *("README.md", "model-merged.safetensors", "vocab.json", "merges.txt", "checkpoint-keep.txt"),
    *("checkpoint-best/model.safetensors", "runs/mine/events", ".recipe.yaml.part"),
)


def test_overwrite_takes_nothing_of_others(recipe, impruver_train, tmp_path):
    out = tmp_path / "out"
    assert impruver_train(recipe())[0] == 0
    for name in FOREIGN:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine", encoding="utf-8")
    staged = out / ".metrics.jsonl.123.part"  # of a run that was killed
    staged.write_text("half", encoding="utf-8")
    assert impruver_train(recipe(seed=7), "--overwrite")[0] == 0
    assert {name for name in FOREIGN if (out / name).read_text(encoding="utf-8") == "mine"} == set(FOREIGN)
    assert not staged.exists()
    assert json.loads((out / "impruver.json").read_text(encoding="utf-8"))["recipe"]["seed"] == 7


def test_a_recipe_of_the_user_in_output_dir_stays(recipe, impruver_train, tmp_path):
    (tmp_path / "out").mkdir()
    mine = recipe("out/recipe.yaml")
    before = mine.read_bytes()
    code, _, err = impruver_train(mine, "--overwrite")
    assert code == 2
    assert "holds recipe.yaml, which impruver-train did not make" in err
    assert mine.read_bytes() == before


def test_a_base_within_output_dir_is_refused(recipe, impruver_train, tmp_path):
    assert impruver_train(recipe(lora=None))[0] == 0
    code, _, err = impruver_train(recipe(model={"name": str(tmp_path / "out")}), "--overwrite")
    assert code == 2
    assert "holds the base" in err
    assert (tmp_path / "out/model.safetensors").exists()


def test_workers_that_are_kept_end_with_the_run(recipe, as_process):
    trainer = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "max_steps": 14}
    run = as_process("--config", recipe(trainer=trainer))
    assert run.returncode == 0, run.stderr


@pytest.fixture
def checkpoint(recipe, impruver_train, tmp_path):
    """checkpoint-2 of a run of 4 steps at a learning rate of 0.01."""
    assert impruver_train(recipe(trainer={"save_strategy": "steps", "save_steps": 2}))[0] == 0
    return tmp_path / "out/checkpoint-2"


def goes_on(recipe, impruver_train, checkpoint, tmp_path, **trainer):
    keys = {"save_strategy": "steps", "save_steps": 2, "resume_from_checkpoint": str(checkpoint)} | trainer
    name = "-".join(map(str, trainer)) or "same"
    return impruver_train(recipe(output_dir=str(tmp_path / name), trainer=keys)), tmp_path / name


def test_a_given_checkpoint_resumes_with_the_recipes_settings(recipe, impruver_train, checkpoint, tmp_path, tiny):
    def rows(**trainer):
        (code, _, err), out = goes_on(recipe, impruver_train, checkpoint, tmp_path, **trainer)
        assert code == 0, err
        return read_jsonl(out / "metrics.jsonl")

    same = rows()
    assert [row["learning_rate"] for row in same] == pytest.approx([0.005, 0.0025])
    assert same == read_jsonl(tmp_path / "out/metrics.jsonl")[2:]
    faster = rows(learning_rate=0.1)
    assert [row["learning_rate"] for row in faster] == pytest.approx([0.05, 0.025])
    assert rows(weight_decay=0.9)[-1]["loss"] != same[-1]["loss"]


def test_other_rows_tell_where_in_them_and_in_the_schedule_a_run_goes_on(
    recipe, impruver_train, checkpoint, parts, tmp_path
):
    other = write_jsonl(tmp_path / "other.jsonl", read_jsonl(parts / "train.jsonl")[:-5])

    def told(*flags, path=other, **trainer):
        trainer |= {"resume_from_checkpoint": str(checkpoint), "gradient_accumulation_steps": 2, "max_steps": 20}
        keys = {"train_path": str(path), "output_dir": str(tmp_path / "second"), "trainer": trainer}
        code, _, err = impruver_train(recipe("second.yaml", **keys), "--dry_run")
        assert code == 0, err
        assert f"resumes from {checkpoint}, after step 2" in err
        return [line for line in err.splitlines() if "the learning rate goes on" in line]

    schedule = "; the learning rate goes on at step 2 of 20"
    assert told() == [f"the first 4 of 11 batches of epoch 1 are skipped{schedule}"]
    assert told(ignore_data_skip=True) == [f"no batch is skipped: epoch 1 begins at its first of 11{schedule}"]
    assert told(per_device_train_batch_size=22) == [f"epoch 3 begins at its first of 2 batches{schedule}"]
    assert told(path=parts / "train.jsonl") == []
    assert len(told(path=parts / "train.jsonl", ignore_data_skip=True)) == 1


def test_what_can_not_go_on_is_refused(recipe, impruver_train, checkpoint, tmp_path):
    (code, _, err), _ = goes_on(recipe, impruver_train, checkpoint, tmp_path, optim="sgd")
    assert (code, "trainer.optim: not set then, sgd now" in err) == (2, True), err
    (code, _, err), _ = goes_on(recipe, impruver_train, checkpoint, tmp_path, max_steps=1)
    assert (code, "after step 2, and this run has 1" in err) == (2, True), err
    (code, _, err), _ = goes_on(recipe, impruver_train, checkpoint.parent, tmp_path, max_steps=9)
    assert (code, f"is an output_dir, not one of its checkpoints; there are {checkpoint}" in err) == (2, True), err
    (checkpoint / "scheduler.pt").unlink()
    (code, _, err), _ = goes_on(recipe, impruver_train, checkpoint, tmp_path, seed=1)
    assert (code, "damaged: scheduler.pt gone" in err) == (2, True), err


def test_a_damaged_checkpoint_is_passed_over(recipe, impruver_train, checkpoint, tmp_path, tiny):
    out = tmp_path / "out"
    whole = (out / "adapter_model.safetensors").read_bytes()
    (out / "impruver.json").rename(out / "impruver.json.unfinished")
    optimizer = out / "checkpoint-4/optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:100])
    code, _, err = impruver_train(recipe(trainer={"save_strategy": "steps", "save_steps": 2}))
    assert code == 0, err
    assert "checkpoint-4 is damaged (optimizer.pt gone or of another size) and not resumed from" in err
    assert f"resumes from {checkpoint}" in err
    assert (out / "adapter_model.safetensors").read_bytes() == whole


def plant(path, ran):
    """Puts a pickle that makes the file `ran` in place of another, with its checksum in the checkpoint's marker."""
    import torch
    from impruver_core.io.integrity import describe_content
    from impruver_train.checkpointing.checkpoints import read_marker, write_run_identity

    torch.save({"state": Payload(f"touch {ran}")}, path)
    marker = read_marker(path.parent)
    if marker:
        marker["files"][path.name] = describe_content(path)
        write_run_identity(path.parent / "impruver.json", marker)


def test_a_pickle_that_runs_code_is_refused_first_of_all(recipe, impruver_train, checkpoint, tmp_path, parts):
    ran, out = tmp_path / "ran", tmp_path / "out"
    unread = tmp_path / "base"  # weights that can't be loaded: it does not come to that
    shutil.copytree(parts / "base", unread)
    (unread / "model.safetensors").write_bytes(b"")
    foreign = tmp_path / "theirs/checkpoint-2"
    shutil.copytree(checkpoint, foreign)
    (foreign / "impruver.json").unlink()
    keys = {"trainer": {"resume_from_checkpoint": str(foreign)}, "output_dir": str(tmp_path / "mine")}
    for name, flags in (("optimizer.pt", ()), ("optimizer.pt", ("--dry_run",)), ("training_args.bin", ())):
        plant(foreign / name, ran)
        code, _, err = impruver_train(recipe(model={"name": str(unread)}, **keys), *flags)
        said = f"trainer.resume_from_checkpoint: {foreign / name} would import posix.system when it is loaded"
        assert (code, said in err.splitlines()[-1]) == (2, True), err
        shutil.copy(checkpoint / name, foreign)
    (out / "impruver.json").rename(out / "impruver.json.unfinished")
    plant(out / "checkpoint-4/rng_state.pth", ran)
    for flags in ((), ("--dry_run",)):
        code, _, err = impruver_train(recipe(trainer={"save_strategy": "steps", "save_steps": 2}), *flags)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert f"output_dir: {out}/checkpoint-4/rng_state.pth would import posix.system when it is loaded" in err
        assert f"remove {out}/checkpoint-4, or --overwrite starts anew" in err
    assert not ran.exists()


def test_a_checkpoint_that_says_nonsense_is_refused(recipe, impruver_train, checkpoint, tmp_path):
    import torch

    def refuse(name, **fields):
        content = json.loads((checkpoint / name).read_text(encoding="utf-8"))
        (checkpoint / name).write_text(json.dumps(content | fields), encoding="utf-8")
        (code, _, err), _ = goes_on(recipe, impruver_train, checkpoint, tmp_path)
        (checkpoint / name).write_text(json.dumps(content), encoding="utf-8")
        assert code == 2
        assert len(err.splitlines()) == 1, err
        return err

    marker = {"files": {}}
    for fields in (
        {"files": []},
        {"files": {"optimizer.pt": "large"}},
        {"inputs": [{"role": "train"}]},
        {"processes": []},
    ):
        assert f"{checkpoint}/impruver.json: {next(iter(fields))} must be" in refuse("impruver.json", **fields)
    assert "best must be a checkpoint's name" in refuse("impruver.json", best="../../elsewhere", **marker)
    content = json.loads((checkpoint / "impruver.json").read_text(encoding="utf-8"))
    del content["checksum"]  # as a stranger's is, who writes what they like
    (checkpoint / "impruver.json").write_text(json.dumps(content | marker), encoding="utf-8")
    assert "global_step: '2' is not of type int" in refuse("trainer_state.json", global_step="2")
    assert "which is no checkpoint" in refuse("trainer_state.json", best_model_checkpoint=str(tmp_path))
    best = tmp_path / "theirs/checkpoint-1"
    best.mkdir(parents=True)
    plant(best / "scheduler.pt", tmp_path / "ran")
    assert f"{best}/scheduler.pt would import" in refuse("trainer_state.json", best_model_checkpoint=str(best))
    torch.save({"state": {}, "param_groups": []}, checkpoint / "optimizer.pt")
    (code, _, err), _ = goes_on(recipe, impruver_train, checkpoint, tmp_path)
    assert (code, f"{checkpoint} can't be loaded into this run: loaded state dict has a different" in err) == (2, True)
    (checkpoint / "trainer_state.json").unlink()
    os.mkfifo(checkpoint / "trainer_state.json")
    (code, _, err), _ = goes_on(recipe, impruver_train, checkpoint, tmp_path)
    assert (code, "no ordinary file" in err) == (2, True), err
