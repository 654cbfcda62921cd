"""What happens when output_dir already holds work, and what a dry run leaves."""

import json
import shutil

import pytest
from support.jsonl import read_jsonl, write_jsonl
from support.trainers import put_beside_recipe


def files(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_finished_and_unchanged_is_one_line(recipe, impruver_train, tmp_path):
    path = recipe()
    assert impruver_train(path)[0] == 0
    before = files(tmp_path / "out")
    code, stdout, err = impruver_train(path, "--report_to", "none")
    assert (code, err) == (0, "")
    assert stdout.count("\n") == 1
    assert "finished" in stdout
    assert files(tmp_path / "out") == before


def test_another_recipe_is_refused_and_overwrite_starts_anew(recipe, impruver_train, tmp_path):
    assert impruver_train(recipe())[0] == 0
    mine = tmp_path / "out" / "notes.txt"
    mine.write_text("mine")
    (tmp_path / "out" / "checkpoint-2").mkdir()
    path = recipe(lora={"r": 2})
    code, _, err = impruver_train(path)
    assert code == 2
    assert "lora.r: 4 then, 2 now" in err
    assert "--overwrite" in err
    assert impruver_train(path, "--overwrite")[0] == 0
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 2
    assert mine.read_text() == "mine"
    assert not (tmp_path / "out" / "checkpoint-2").exists()


def test_other_rows_are_another_run(recipe, impruver_train, parts, tmp_path, tiny):
    rows = read_jsonl(parts / "train.jsonl")
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    path = recipe(train_path=str(data))
    assert impruver_train(path)[0] == 0
    write_jsonl(data, rows[:-1])
    code, _, err = impruver_train(path)
    assert code == 2
    assert "train: another content" in err


def test_another_base_is_another_run_wherever_it_differs(recipe, impruver_train, parts, tmp_path):
    from impruver_core.io.model_files import read_safetensors_header
    from impruver_train.checkpointing.output_dir import hash_base

    base = shutil.copytree(parts / "base", tmp_path / "base")
    path = base / "model.safetensors"
    config = recipe(model={"name": str(base)}, trainer={"max_steps": 1})
    assert impruver_train(config)[0] == 0
    whole = path.read_bytes()
    for name, entry in read_safetensors_header(path).items():
        content = bytearray(whole)
        content[(entry.start + entry.stop) // 2] ^= 1
        path.write_bytes(bytes(content))
        assert hash_base(str(base)) != hash_base(str(parts / "base")), name
    code, _, err = impruver_train(config)
    assert (code, "base: another content" in err) == (2, True), err
    for broken in (b"", whole[:4], whole[:100], whole[:-1], b"\xff" * 200, b"\0" * len(whole)):
        path.write_bytes(broken)
        assert len(hash_base(str(base))["base"]) == 64
        code, _, err = impruver_train(recipe(model={"name": str(base)}, output_dir=str(tmp_path / "other")))
        assert (code, "Traceback" in err) == (2, False), err
        assert "impruver-train: error: model.name: " in err
    path.unlink()
    path.mkdir()
    (base / "pipe.safetensors").touch()
    assert hash_base(str(base)) != hash_base(str(parts / "base"))


@pytest.fixture
def unfinished(recipe, impruver_train, tmp_path, monkeypatch):
    """A run of four steps, checkpoints after each second one, stopped after the third; its keyword arguments."""
    put_beside_recipe("stopper", tmp_path)
    trainer = {"class": "stopper.StopTrainer", "save_strategy": "steps", "save_steps": 2}
    monkeypatch.setenv("STOP", "3")
    assert impruver_train(recipe(trainer=trainer))[0] == 143
    monkeypatch.delenv("STOP")
    assert {path.name for path in (tmp_path / "out").glob("*-*")} == {"checkpoint-2", "stopped-3"}
    return {"trainer": trainer}


def test_unfinished_work_of_another_run_is_refused(recipe, impruver_train, unfinished, parts, tmp_path, tiny):
    before = files(tmp_path / "out")
    data = write_jsonl(tmp_path / "data.jsonl", read_jsonl(parts / "train.jsonl")[1:])
    path = recipe(**unfinished, train_path=str(data), lora={"r": 2})
    code, _, err = impruver_train(path)
    assert code == 2
    assert "an unfinished run" in err
    assert "lora.r: 4 then, 2 now" in err
    assert "train: another content" in err
    assert "--overwrite" in err
    assert impruver_train(recipe(**unfinished), "--seed", "5")[0] == 2
    assert files(tmp_path / "out") == before
    assert impruver_train(path, "--overwrite")[0] == 0
    assert not (tmp_path / "out" / "stopped-3").exists()


def test_how_often_is_saved_may_change_in_between(recipe, impruver_train, unfinished, tmp_path):
    trainer = unfinished["trainer"] | {"save_steps": 1, "save_total_limit": 1, "logging_steps": 1}
    assert "resumes from" in impruver_train(recipe(trainer=trainer), "--dry_run")[2]
    assert impruver_train(recipe(trainer=trainer))[0] == 0
    assert {path.name for path in (tmp_path / "out").glob("*-*")} == {"checkpoint-4"}


def test_nothing_saved_yet_is_begun_again(recipe, impruver_train, unfinished, tmp_path, tiny):
    for path in (tmp_path / "out").glob("*-*"):
        (path / "impruver.json").unlink()  # as if it had been killed amid the first one
    assert impruver_train(recipe(lora={"r": 2}))[0] == 2  # steps were done, and are told of
    assert impruver_train(recipe(**unfinished))[0] == 0
    assert [row["step"] for row in read_jsonl(tmp_path / "out" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert {path.name for path in (tmp_path / "out").glob("*-*")} == {"checkpoint-2", "checkpoint-4"}


def test_a_run_without_a_step_is_no_work(recipe, impruver_train, unfinished, tmp_path):
    for path in (tmp_path / "out").glob("*-*"):
        shutil.rmtree(path)
    (tmp_path / "out" / "metrics.jsonl").write_text("")
    assert impruver_train(recipe(lora={"r": 2}))[0] == 0


def test_a_given_checkpoint(recipe, impruver_train, unfinished, tmp_path, tiny, monkeypatch):
    def given(path, *flags, **keys):
        trainer = unfinished["trainer"] | {"resume_from_checkpoint": str(path)}
        return impruver_train(recipe(**{"trainer": trainer} | keys), *flags)

    out = tmp_path / "out"
    other = {"output_dir": str(tmp_path / "other")}
    shutil.copytree(out / "checkpoint-2", out / "checkpoint-1")
    (out / "checkpoint-1" / "impruver.json").unlink()
    for path, flags, keys, wanted in (
        (tmp_path / "nowhere", [], {}, "nowhere is not there; there are"),
        (tmp_path, [], {}, "is no checkpoint to resume from: trainer_state.json"),
        (out / "checkpoint-1", [], {}, "was not written to its end"),
        (out / "checkpoint-2", ["--overwrite"], {}, "--overwrite would remove"),
        (out / "checkpoint-2", [], other | {"lora": {"r": 2}}, "lora.r: 4 then, 2 now"),
        (out / "checkpoint-2", [], other | {"lora": None}, "lora.r: 4 then, not set now"),
    ):
        code, _, err = given(path, *flags, **keys)
        assert (code, wanted in err) == (2, True), err
    code, _, err = given(out / "checkpoint-2", **other)
    assert code == 0
    assert "resumes from" in err
    assert [row["step"] for row in read_jsonl(tmp_path / "other" / "metrics.jsonl")] == [3, 4]
    monkeypatch.setenv("STOP", "3")
    for _ in range(2):  # what came after it is done again; the same command then resumes from what that left
        code, _, err = given(out / "checkpoint-2")
        assert code == (143 if "checkpoint-2, after" in err else 0), err
    assert "stopped-3, after step 3" in err
    same = [(folder / "adapter_model.safetensors").read_bytes() for folder in (out, tmp_path / "other")]
    assert same[0] == same[1]


def test_a_finished_run_whose_manifest_is_gone_is_finished_again(recipe, impruver_train, tmp_path):
    path = recipe(trainer={"save_strategy": "steps", "save_steps": 3})
    assert impruver_train(path)[0] == 0
    weights = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "out" / "impruver.json").unlink()
    code, _, err = impruver_train(path)
    assert code == 0, err
    assert "checkpoint-4, after step 4" in err
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == weights


def test_dry_run_counts_and_writes_nothing(recipe, impruver_train, tmp_path):
    code, stdout, err = impruver_train(recipe(), "--dry_run")
    assert code == 0, err
    assert "45,088 in all, 896 trained" in stdout
    assert "48; tokens an epoch: " in stdout
    assert "12 an epoch, 4 in all" in stdout
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml"}


def test_dry_run_agrees_with_the_run(recipe, impruver_train, tmp_path, tiny):
    trainer = {
        "max_steps": -1,
        "num_train_epochs": 1.5,
        "gradient_accumulation_steps": 5,
        "per_device_train_batch_size": 2,
    }
    stdout = impruver_train(recipe(trainer=trainer), "--dry_run")[1]
    assert impruver_train(recipe(trainer=trainer))[0] == 0
    counts = json.loads((tmp_path / "out" / "impruver.json").read_text())["counts"]
    assert f"{counts['steps']} in all" in stdout
    assert f"{counts['tokens']:,}, {counts['learned_tokens']:,} target tokens" in stdout
    assert len(read_jsonl(tmp_path / "out" / "metrics.jsonl")) == counts["steps"]


def test_dry_run_before_compose_is_a_note(recipe, impruver_train, tmp_path):
    code, stdout, err = impruver_train(recipe(train_path=str(tmp_path / "later.jsonl")), "--dry_run")
    assert code == 0
    assert "note: train_path" in err
    assert "45,088 in all" in stdout


def test_rows_without_targets_are_left_out_and_told(recipe, impruver_train, parts, tmp_path, tiny):
    rows = read_jsonl(parts / "train.jsonl")
    rows[3]["labels"] = [-100] * len(rows[3]["labels"])
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    code, _, err = impruver_train(recipe(train_path=str(data)))
    assert code == 0
    assert "1 rows have no target tokens and are left out (the first is line 4)" in err
    assert json.loads((tmp_path / "out" / "impruver.json").read_text())["counts"]["rows"] == 47


def test_names_in_lora_that_the_model_lacks_are_told(recipe, impruver_train):
    lora = {"target_modules": ["q_proj", "v_pro"], "modules_to_save": ["lm_hed"]}
    lora |= {
        "target_parameters": ["mlp.experts.up"],
        "alpha_pattern": {"q_proj": 4, "k_pro": 4, r"layers\.[0-9]\..*": 2},
    }
    code, _, err = impruver_train(recipe(lora=lora), "--dry_run")
    assert code == 0
    assert "warning: lora.target_modules: the model has no v_pro; not trained (the model has q_proj, v_proj" in err
    assert "warning: lora.modules_to_save: the model has no lm_hed; not trained (the model has lm_head" in err
    assert "warning: lora.target_parameters: the model has no weights mlp.experts.up; not trained" in err
    assert "warning: lora.alpha_pattern: the model has no k_pro; passed over" in err


def test_a_configuration_beside_a_base_is_told(recipe, impruver_train):
    code, _, err = impruver_train(recipe(model={"config": {"hidden_size": 8}}), "--dry_run")
    assert code == 0
    assert "note: model.config is left out" in err


def test_old_argument_names_are_translated_with_a_note(recipe, impruver_train, parts):
    old = {"evaluation_strategy": "steps", "eval_steps": 2, "warmup_ratio": 0.5, "group_by_length": True}
    gone = {"save_safetensors": False, "overwrite_output_dir": True, "remove_unused_columns": False}
    code, _, err = impruver_train(recipe(val_path=str(parts / "val.jsonl"), trainer=old | gone))
    assert code == 0, err
    for name in (*old, "save_safetensors", "overwrite_output_dir"):
        assert ("note: trainer." + name in err) == (name != "eval_steps")


def test_carried_from_the_data_manifest(recipe, impruver_train, parts, tmp_path, tiny):
    from impruver_core.tokenizer import compute_fingerprint, compute_template_fingerprint
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(parts / "base")
    data = write_jsonl(tmp_path / "train.jsonl", read_jsonl(parts / "train.jsonl"))
    made = {
        "impruver": 1,
        "tool": "impruver-compose",
        "tokenizer": {"fingerprint": compute_fingerprint(tokenizer)},
        "template": {"fingerprint": compute_template_fingerprint(tokenizer)},
        "end_of_turn": ["<|user|>"],
    }
    (tmp_path / "train.jsonl.manifest.json").write_text(json.dumps(made))
    code, _, err = impruver_train(recipe(train_path=str(data)))
    assert code == 0
    assert "no manifest" not in err
    assert json.loads((tmp_path / "out" / "impruver.json").read_text())["end_of_turn"] == ["<|user|>"]
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [3, 2]
