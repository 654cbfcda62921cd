"""A run that was stopped and resumed equals one that never was, number for number."""

import pytest
from support.jsonl import read_jsonl
from support.trainers import put_beside_recipe

EPOCHS = {"max_steps": -1, "num_train_epochs": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
DROPOUT = {"lora_dropout": 0.2}
EVAL = {"eval_strategy": "steps", "eval_steps": 2}
BEST = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "save_total_limit": 1}
BEST |= {"learning_rate": 1.0, "lr_scheduler_type": "constant"}  # it gets worse after a while
# name: recipe, steps at which it is stopped (an epoch has 6)
CASES = {
    "lora, dropout, accumulation, epochs": ({"lora": DROPOUT, "trainer": EPOCHS}, (4, 6, 18)),
    "full, attention dropout": (
        {
            "lora": None,
            "model": {
                "name": None,
                "class": "transformers.LlamaForCausalLM",
                "config_class": "transformers.LlamaConfig",
                "config": {"attention_dropout": 0.3},
            },
            "trainer": EPOCHS,
        },
        (5, 13),
    ),
    "evaluations in between, cosine": (
        {"lora": DROPOUT, "trainer": EPOCHS | EVAL | {"lr_scheduler_type": "cosine", "warmup_steps": 3}},
        (4, 7),
    ),
    "evaluations by epoch": ({"lora": DROPOUT, "trainer": EPOCHS | {"eval_strategy": "epoch"}}, (5, 6, 18)),
    "saved by epoch too": (
        {"lora": DROPOUT, "trainer": EPOCHS | {"eval_strategy": "epoch", "save_strategy": "epoch"}},
        (6, 9),
    ),
    "plateau": ({"lora": DROPOUT, "trainer": EPOCHS | EVAL | {"lr_scheduler_type": "reduce_lr_on_plateau"}}, (4, 9)),
    "the best one, saved seldom": (
        {"lora": None, "trainer": EPOCHS | BEST | {"save_strategy": "steps", "save_steps": 4}},
        ("best",),
    ),
    "the best one, saved when it is": (
        {"lora": None, "trainer": EPOCHS | BEST | {"save_strategy": "best"}},
        (3, 7),
    ),
    "only models saved": (
        {"trainer": EPOCHS | {"save_strategy": "steps", "save_steps": 3, "save_only_model": True}},
        (4, 9),
    ),
    "rows grouped by length": (
        {"lora": DROPOUT, "trainer": EPOCHS | {"train_sampling_strategy": "group_by_length"}},
        (4, 9),
    ),
    "batches balanced": ({"lora": DROPOUT, "trainer": EPOCHS | {"train_sampling_strategy": "batch_rebalance"}}, (4, 9)),
    "workers": ({"lora": DROPOUT, "trainer": EPOCHS | {"dataloader_num_workers": 1}}, (4,)),
    "pure bf16": ({"model": {"dtype": "bf16"}, "trainer": EPOCHS | {"bf16": False}}, (4,)),
    "adafactor, the last step": ({"trainer": {"optim": "adafactor", "max_steps": 5}}, (2, 5)),
}


@pytest.fixture
def ran(recipe, impruver_train, parts, tmp_path, monkeypatch, tiny):
    """Trains with a stop at each of some steps; metrics, the weights' bytes, the names of what is left."""
    put_beside_recipe("stopper", tmp_path)

    def run(name, keys, stops=()):
        if (keys.get("model") or {}).get("config"):
            keys = keys | {"tokenizer": {"name": str(parts / "base")}}
            keys["model"] = keys["model"] | {"config": tiny.llama | keys["model"]["config"]}
        trainer = {"class": "stopper.StopTrainer"} | keys["trainer"]
        config = recipe(
            **keys | {"trainer": trainer}, output_dir=str(tmp_path / name), val_path=str(parts / "val.jsonl")
        )
        for step in stops:
            monkeypatch.setenv("STOP", str(step))
            code, _, err = impruver_train(config)
            assert code == 143, err
            assert f"stopped by SIGTERM: saved after step {step} in" in err
        monkeypatch.delenv("STOP", raising=False)
        code, _, err = impruver_train(config)
        assert code == 0, err
        assert not stops or f"resumes from {tmp_path / name}" in err
        out = tmp_path / name
        weights = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
        return read_jsonl(out / "metrics.jsonl"), weights, {path.name for path in out.iterdir()}

    return run


@pytest.mark.parametrize("name", CASES)
def test_stopped_and_gone_on_with_equals_never_stopped(name, ran):
    keys, stops = CASES[name]
    rows, weights, files = ran("straight", keys)
    if "best" in stops:  # where no checkpoint is asked for: the one that a signal brought must not become the result
        losses = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
        best = min(losses, key=losses.get)
        if not best % 4:  # which step it is depends on how this machine rounds
            keys = keys | {"trainer": keys["trainer"] | {"save_steps": 5}}
            rows, weights, files = ran("straight, saved at others", keys)
        stops = (best, *stops[1:])
    again = ran("stopped", keys, stops)
    assert again[0] == rows
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == list(range(1, len(steps) + 1))
    assert again[1] == weights
    assert again[2] == files
