"""The report of a run: its charts and figures, from what the run wrote."""

import re

from impruver_train.saving.html_report import write_report
from support.jsonl import read_jsonl, write_jsonl


def test_a_run_leaves_its_report(recipe, impruver_train, tmp_path, parts, tiny):
    trainer = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 3, "logging_steps": 1}
    code, _, err = impruver_train(recipe(val_path=str(parts / "val.jsonl"), trainer=trainer))
    assert code == 0, err
    out = tmp_path / "out"
    html = (out / "report.html").read_text(encoding="utf-8")
    for label in ("loss, eval loss", "learning rate", "grad norm", "tokens a second", "memory, MB"):
        assert f'aria-label="{label}"' in html
    assert "://" not in re.sub(r'xmlns="[^"]*"', "", html)
    speed = read_jsonl(out / "speed.jsonl")
    assert [row["step"] for row in speed] == [1, 2, 3, 4, 5, 6]
    rows = read_jsonl(parts / "train.jsonl")
    lengths = sorted(len(row["input_ids"]) for row in rows)
    for row in speed:  # four rows a step
        assert sum(lengths[:4]) <= row["tokens"] <= sum(lengths[-4:])
        assert row["seconds"] > 0
        assert row["memory"] > 10**6
    evaluated = [row["eval_loss"] for row in read_jsonl(out / "metrics.jsonl") if "eval_loss" in row]
    assert f"{min(evaluated):.4g}" in html


def test_a_report_of_odd_figures(tmp_path, tiny):
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 1, "loss": None}, {"step": 2, "loss": 0.5}])
    recipe = {"model": {"name": "<script>alert(1)</script>"}, "trainer": {"optim": "sgd"}}
    write_report(tmp_path, recipe, {"steps": 2})
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in html
    assert "sgd" in html
