"""Optimizers: refused before weights are loaded where they can't be used, exact where a run is resumed."""

import json
import shutil

import pytest
from support.jsonl import read_jsonl

MUON = {"optim": "muon"}
OWN = """
import torch
from transformers import Trainer

class OwnTrainer(Trainer):
    def create_optimizer(self):
        self.optimizer = torch.optim.SGD([each for each in self.model.parameters() if each.requires_grad], lr=0.1)
        return self.optimizer
"""
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
# Those that claim that a resumed run equals one that was never stopped, and what their state holds of a weight;
# torch's AdamW has tests of its own.
EXACT = {
    "adafactor": ({"trainer": {"optim": "adafactor"}}, "exp_avg_sq_row"),
    "rmsprop": ({"trainer": {"optim": "rmsprop"}}, "square_avg"),
    "adagrad": ({"trainer": {"optim": "adagrad"}}, "sum"),
    "8-bit AdamW": ({"trainer": {"optim": "adamw_8bit"}}, "__bnb_optimizer_quant_state__"),
    "Lion": ({"trainer": {"optim": "lion_32bit"}}, "__bnb_optimizer_quant_state__"),
    "schedule-free": ({"trainer": {"optim": "schedule_free_radam"}}, "z"),
    "Muon": ({"trainer": {"optim": "muon", "optim_args": "momentum=0.9, ns_steps=3"}, "lora": None}, "momentum_buffer"),
    "Muon under LoRA": ({"trainer": {"optim": "muon", "weight_decay": 0.1}}, "momentum_buffer"),
    "LoRA+": ({"lora": LORA | {"loraplus_lr_ratio": 16}}, "exp_avg"),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_resumed_run_equals_one_that_was_never_stopped(name, recipe, impruver_train, tmp_path):
    import torch

    trainer = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.003}
    keys, held = EXACT[name]
    keys = keys | {"trainer": trainer | keys.get("trainer", {})}
    code, _, err = impruver_train(recipe(**keys))
    assert code == 0, err
    out, straight = tmp_path / "out", tmp_path / "straight"
    saved = torch.load(out / "checkpoint-4/optimizer.pt", weights_only=True)
    assert held in saved["state"][0]
    assert name != "LoRA+" or {group["initial_lr"] for group in saved["param_groups"]} >= {0.003, 0.048}
    shutil.copytree(out, straight)
    for path in (*out.glob("*.safetensors"), out / "report.html", out / "checkpoint-4"):  # a kill after step 3
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    marker = json.loads((out / "checkpoint-2/impruver.json").read_text())
    (out / "impruver.json").unlink()
    kept = ("impruver", "recipe", "inputs", "processes")
    (out / "impruver.json.unfinished").write_text(json.dumps({key: marker[key] for key in kept}))
    code, _, err = impruver_train(recipe(**keys))
    assert code == 0, err
    assert f"resumes from {out / 'checkpoint-2'}, after step 2" in err
    weights = "model.safetensors" if keys.get("lora", LORA) is None else "adapter_model.safetensors"
    assert (out / weights).read_bytes() == (straight / weights).read_bytes()
    assert read_jsonl(out / "metrics.jsonl") == read_jsonl(straight / "metrics.jsonl")


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (MUON | {"optim_args": "ns_steps=200"}, "trainer.optim: muon: Number of steps must be"),
        (MUON | {"optim_args": "pace=2"}, "trainer.optim: muon: Muon.__init__() got an unexpected"),
        (MUON | {"optim_args": "fast"}, "trainer.optim_args: 'fast' is not of the form name=value"),
        (MUON | {"optim_args": "weight_decay=1"}, "trainer.optim_args: weight_decay is set by trainer.weight_decay"),
        (MUON | {"optim_args": "nesterov=no"}, "trainer.optim_args: nesterov is True or False, not no"),
        ({"optim": "muom"}, "there is no muom; did you mean muon"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler"),
    ],
)
def test_what_can_not_be_used_is_refused_before_weights_are_loaded(trainer, message, recipe, impruver_train):
    code, out, err = impruver_train(recipe(trainer=trainer), "--dry_run")
    assert (code, out) == (2, ""), err
    assert message in err


def test_a_ratio_of_learning_rates_that_is_none_is_refused(recipe, impruver_train):
    code, _, err = impruver_train(recipe(lora={"loraplus_lr_ratio": 0.5}), "--dry_run")
    assert code == 2
    assert "loraplus_lr_ratio: 0.5 is no number from 1 on" in err


def test_muon_has_the_hidden_matrices_and_adamw_the_rest(parts):
    """With an output of its own, so that it can be seen to be AdamW's."""
    from impruver_train.optimization.optimizers import build_muon
    from transformers import AutoModelForCausalLM, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(parts / "base", tie_word_embeddings=False)
    arguments = TrainingArguments(output_dir="unused", use_cpu=True, learning_rate=0.01, report_to="none")
    optimizer = build_muon(model, arguments, {name for name, _ in model.named_parameters() if "norm" not in name})
    names = {id(weight): name for name, weight in model.named_parameters()}
    muon, adamw = ({names[id(w)] for group in part.param_groups for w in group["params"]} for part in optimizer.parts)
    assert muon == {name for name in names.values() if "proj" in name}
    assert adamw == {
        "model.embed_tokens.weight",
        "lm_head.weight",
        *(name for name in names.values() if "norm" in name),
    }


def test_a_checkpoint_of_a_schedule_free_run_holds_the_averaged_weights(recipe, impruver_train, tmp_path):
    """Evaluated as it is, the checkpoint has the loss that the run had: of the average, not of where it steps."""
    import torch
    from safetensors.torch import load_file

    trainer = {"optim": "schedule_free_radam", "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 4}
    code, _, err = impruver_train(recipe(trainer=trainer))
    assert code == 0, err
    files = [folder / "adapter_model.safetensors" for folder in (tmp_path / "out/checkpoint-4", tmp_path / "out")]
    saved, left = map(load_file, files)
    assert all(saved[name].equal(left[name]) for name in left)
    state = torch.load(tmp_path / "out/checkpoint-4/optimizer.pt", weights_only=True)
    assert not any(group["train_mode"] for group in state["param_groups"])


def test_an_optimizer_whose_state_no_checkpoint_holds_is_told_of():
    import torch
    from impruver_train.optimization.optimizer_check import find_state_loss
    from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

    plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    layerwise = LayerWiseDummyOptimizer(optimizer_dict={}, lr=0.1)
    assert find_state_loss(plain, plain.state_dict()) is None
    assert "a run that is stopped and resumed begins with a fresh one" in find_state_loss(layerwise, {})
    assert "a stopped run can't be resumed" in find_state_loss(plain, {"state": {0: {"projector": object()}}})


def test_an_optimizer_of_ones_own_is_built_as_transformers_builds_it(recipe, impruver_train, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    trainer = {"class": "own.OwnTrainer", "max_steps": 1}
    code, _, err = impruver_train(recipe(trainer=trainer))
    assert code == 0, err
    code, _, err = impruver_train(recipe(trainer=trainer | MUON), "--dry_run", "--overwrite")
    assert code == 2
    assert "trainer.optim: muon: OwnTrainer builds an optimizer of its own; take one of both out" in err
