"""What evaluations bring besides losses: early stopping, also across an interruption, and samples of answers."""

import json
import shutil

import pytest
from support.jsonl import read_jsonl, write_jsonl
from support.trainers import put_beside_recipe

STOPPING = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "max_steps": 9,
    "early_stopping_patience": 3,
    "metric_for_best_model": "loss",
    "learning_rate": 0.5,
}


@pytest.fixture(scope="module")
def evaluations():
    return lambda folder: [row["step"] for row in read_jsonl(folder / "metrics.jsonl") if "eval_loss" in row]


def test_early_stopping_counts_on_after_a_stop(recipe, impruver_train, parts, evaluations, tmp_path, monkeypatch):
    """At this learning rate the loss grows from the first step on: the fourth evaluation is the third without gain."""
    put_beside_recipe("stopper", tmp_path)
    trainer = STOPPING | {"class": "stopper.StopTrainer"}

    def run(name, patience=3):
        keys = {"val_path": str(parts / "val.jsonl"), "trainer": trainer | {"early_stopping_patience": patience}}
        return impruver_train(recipe(f"{name}.yaml", output_dir=str(tmp_path / name), **keys))

    assert run("straight")[0] == 0
    straight = tmp_path / "straight"
    assert evaluations(straight) == [1, 2, 3, 4]
    for step in (3, 4):  # amid the count, and in the step that ends it
        monkeypatch.setenv("STOP", str(step))
        name = f"stopped-{step}"
        assert run(name)[0] == 143
        monkeypatch.delenv("STOP")
        code, _, err = run(name)
        assert code == 0, err
        assert evaluations(tmp_path / name) == [1, 2, 3, 4]
        weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (straight, tmp_path / name)]
        assert weights[0] == weights[1]
    assert json.loads((straight / "impruver.json").read_text())["counts"]["steps"] == 4


@pytest.mark.parametrize("key", [{"early_stopping_patience": 2}, {"samples": 2}])
def test_what_needs_evaluations_is_refused_without(key, recipe, impruver_train):
    code, out, err = impruver_train(recipe(trainer=key), "--dry_run")
    assert (code, out) == (2, "")
    assert f"trainer.{next(iter(key))}: nothing is evaluated; set trainer.eval_strategy: steps" in err


def test_samples_are_greedy_and_any_characters_are_written(recipe, impruver_train, parts, tmp_path):
    """The base asks for penalties and several answers, the weights are of two dtypes, a row holds an odd line break."""
    from transformers import AutoTokenizer

    base = shutil.copytree(parts / "base", tmp_path / "base")
    own = {"return_dict_in_generate": True, "repetition_penalty": 9.0, "num_return_sequences": 2, "do_sample": True}
    (base / "generation_config.json").write_text(json.dumps(own | {"eos_token_id": 2}))
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("red\u2028is \x85", "green\u2028")]
    row = {"input_ids": ids[0] + ids[1], "labels": [-100] * len(ids[0]) + ids[1]}
    val = write_jsonl(tmp_path / "val.jsonl", [row])
    trainer = {"eval_strategy": "steps", "eval_steps": 2, "samples": 3}
    keys = {"model": {"name": str(base), "dtype": "bf16"}, "lora": {"modules_to_save": ["lm_head"]}, "trainer": trainer}
    code, _, err = impruver_train(recipe(val_path=str(val), **keys))
    assert code == 0, err
    assert "answers no prompt" not in err
    lines = (tmp_path / "out/metrics.jsonl").read_text(encoding="utf-8").split("\n")
    samples = [json.loads(line)["samples"] for line in lines if "samples" in line]
    assert [(each["prompt"], each["expected"]) for [each] in samples] == [("red\u2028is \x85", "green\u2028")] * 2
    assert (tmp_path / "out/impruver.json").exists()


@pytest.mark.parametrize("packing", [False, True])
def test_samples_are_in_metrics_report_and_trackers_and_change_nothing(
    packing, recipe, impruver_train, parts, tmp_path, monkeypatch
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = tmp_path / "logs"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(logs))
    trainer = {"eval_strategy": "steps", "eval_steps": 2, "packing": packing, "report_to": "tensorboard"}
    rows = {}
    for name, more in (("without", {"report_to": "none"}), ("with", {"samples": 2})):
        keys = {"val_path": str(parts / "val.jsonl"), "trainer": trainer | more, "lora": {"lora_dropout": 0.2}}
        code, _, err = impruver_train(recipe(f"{name}.yaml", output_dir=str(tmp_path / name), **keys))
        assert code == 0, err
        rows[name] = read_jsonl(tmp_path / name / "metrics.jsonl")
    samples = [row for row in rows["with"] if "samples" in row]
    assert [row for row in rows["with"] if "samples" not in row] == rows["without"]
    assert [row["step"] for row in samples] == [2, 4]
    first = samples[0]["samples"]
    assert [sample["prompt"] for sample in first] == [
        f"<|user|>the colour of thing number {number}<|end|><|assistant|>" for number in (48, 49)
    ]
    assert [sample["expected"] for sample in first] == ["black", "white"]
    assert all(isinstance(sample["answer"], str) for sample in first)
    report = (tmp_path / "with/report.html").read_text(encoding="utf-8")
    assert "the colour of thing number 48" in report
    seen = EventAccumulator(str(logs)).Reload()
    assert {"samples/0/text_summary", "samples/1/text_summary"} <= {*seen.Tags()["tensors"]}
