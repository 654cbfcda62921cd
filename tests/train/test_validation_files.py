"""Several files of validation rows: losses of each by its name, the first one's as eval_loss."""

import json

import pytest
from support.jsonl import read_jsonl

EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 5}


def list_evaluations(folder):
    return [row for row in read_jsonl(folder / "metrics.jsonl") if "eval_loss" in row]


@pytest.mark.parametrize("kind", ["list", "mapping"])
def test_losses_carry_the_names_of_their_files(kind, recipe, impruver_train, parts, uneven, tmp_path):
    paths = [str(parts / "val.jsonl"), str(uneven)]
    named = paths if kind == "list" else dict(zip(("val", "uneven"), paths, strict=True))
    best = {"load_best_model_at_end": True, "metric_for_best_model": "uneven_loss", "save_strategy": "steps"}
    trainer = EVALUATED | best | {"save_steps": 2, "dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    code, _, err = impruver_train(recipe(output_dir=str(tmp_path / "both"), val_path=named, trainer=trainer))
    assert code == 0, err
    assert "step 4/4: eval loss 5." in err
    assert "eval uneven loss 5." in err
    both = list_evaluations(tmp_path / "both")
    assert [sorted(row) for row in both] == [["eval_loss", "eval_uneven_loss", "eval_val_loss", "step"]] * 2
    assert all(row["eval_loss"] == row["eval_val_loss"] for row in both)
    for name, path in zip(("val", "uneven"), paths, strict=True):
        keys = {"output_dir": str(tmp_path / name), "val_path": path, "trainer": EVALUATED}
        code, _, err = impruver_train(recipe(f"{name}.yaml", **keys))
        assert code == 0, err
        alone = list_evaluations(tmp_path / name)
        assert [row["eval_loss"] for row in alone] == pytest.approx([row[f"eval_{name}_loss"] for row in both])
        assert sorted(alone[0]) == ["eval_loss", "step"]
    inputs = json.loads((tmp_path / "both/impruver.json").read_text())["inputs"]
    assert [entry["role"] for entry in inputs] == ["train", "val", "val.uneven", "base"]
    assert "eval uneven loss" in (tmp_path / "both/report.html").read_text()


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a/val.jsonl", "b/val.jsonl"], "val_path: two files have the same name: write a mapping"),
        ({"a b": "val.jsonl"}, "val_path: 'a b': 'val.jsonl' is no name of letters, digits, _ - . with a file"),
        ({"mine": "val.jsonl", "gone": "gone.jsonl"}, "val_path.gone: gone.jsonl is not there"),
        ([1], "val_path"),
        ("", "there are no rows to evaluate on"),
        ({"mine": "VAL", "empty": "EMPTY"}, "empty.jsonl has no rows to evaluate on; take it out"),
    ],
)
def test_names_and_files_that_can_not_be_are_refused(paths, message, recipe, impruver_train, parts, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    if isinstance(paths, dict):
        there = {"VAL": str(parts / "val.jsonl"), "EMPTY": str(tmp_path / "empty.jsonl")}
        paths = {name: there.get(path, path) for name, path in paths.items()}
    code, out, err = impruver_train(recipe(val_path=paths, trainer=EVALUATED), "--dry_run")
    assert (code, out) == (2, "")
    assert message in err
