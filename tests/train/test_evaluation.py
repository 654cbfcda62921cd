"""Losses of evaluations: of target tokens, whatever the batches and processes."""

import pytest
from support.jsonl import read_jsonl


def compute_own_loss(base, rows):
    """The mean loss of all target tokens of `rows`, one row at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base).eval()
    loss = targets = 0
    for row in rows:
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        count = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            loss += model(input_ids=ids, labels=labels).loss.item() * count
        targets += count
    return loss / targets


def test_eval_loss_is_of_target_tokens_for_any_batch_size_and_accumulation(
    recipe, impruver_train, uneven, parts, tmp_path
):
    losses = {}
    for batch, accumulation, evaluated, dropped in (
        (1, 4, 1, False),
        (2, 2, 5, False),
        (4, 1, 8, False),
        (4, 1, 3, True),
    ):
        name = f"{batch}x{accumulation}-{evaluated}"
        trainer = {
            "max_steps": 2,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "per_device_eval_batch_size": evaluated,
            "dataloader_drop_last": dropped,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "eval_on_start": True,
        }
        keys = {"val_path": str(uneven), "trainer": trainer, "lora": {"lora_dropout": 0.0}}
        code, _, err = impruver_train(recipe(f"{name}.yaml", output_dir=str(tmp_path / name), **keys))
        assert code == 0, err
        rows = read_jsonl(tmp_path / name / "metrics.jsonl")
        losses[name] = [[row[key] for row in rows if key in row] for key in ("eval_loss", "loss")]
    first = losses.pop("1x4-1")
    assert first[0][0] == pytest.approx(compute_own_loss(parts / "base", read_jsonl(uneven)), abs=1e-5)
    assert [len(each) for each in first] == [3, 2]
    for name, (evaluated, trained) in losses.items():
        assert evaluated == pytest.approx(first[0], abs=1e-5), name
        assert trained == pytest.approx(first[1], abs=1e-5), name
