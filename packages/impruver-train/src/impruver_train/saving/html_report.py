"""The report: how the loss went, how fast, with how much memory."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from impruver_core.cli.console import format_duration
from impruver_core.io.atomic import atomic_write, format_size
from impruver_core.reporting import charts, html

from impruver_train.training.callbacks.throughput import NAME as SPEED

REPORT = "report.html"
SHOWN = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps", "optim")


def write_report(output_dir: Path, recipe: dict[str, Any], counts: dict[str, Any]) -> None:
    """Writes report.html of what metrics.jsonl and speed.jsonl tell; `counts` are the manifest's."""
    metrics, speed = (_read_rows(output_dir / name) for name in ("metrics.jsonl", SPEED))
    evaluated = list(dict.fromkeys(name for row in metrics for name in row if name.startswith("eval_")))
    rates = [row | {"tokens a second": row["tokens"] / row["seconds"]} for row in speed if row["seconds"]]
    held = [row | {"memory, MB": row["memory"] / 1e6} for row in speed]
    sections = [
        html.build_section("", "", html.build_facts(_build_summary(metrics, speed))),
        html.build_section(
            "Loss", "Of each optimizer step, and of each evaluation.", _render_line(metrics, "loss", *evaluated)
        ),
        html.build_section("Learning rate", "", _render_line(metrics, "learning_rate")),
        html.build_section("Gradient norm", "Before it is clipped.", _render_line(metrics, "grad_norm")),
        html.build_section(
            "Speed", "Tokens a second in each step, padding aside.", _render_line(rates, "tokens a second")
        ),
        html.build_section(
            "Memory", "In MB: of a GPU the most so far, else what the process holds.", _render_line(held, "memory, MB")
        ),
        *_build_samples(metrics),
        html.build_section("Run", "", html.build_table(["", ""], _build_run_table(recipe, counts))),
    ]
    with atomic_write(output_dir / REPORT) as file:
        file.write(html.render_page(output_dir.name, "How training went.", sections))


def _read_rows(path: Path) -> list[dict[str, Any]]:
    # Not splitlines: a sample may hold other characters that it takes for ends of lines.
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines if line]


def _list_points(rows: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def _render_line(rows: list[dict[str, Any]], *names: str) -> dict | None:
    series = {name.replace("_", " "): _list_points(rows, name) for name in names}
    return charts.render_lines(", ".join(series), series)


def _build_samples(metrics: list[dict[str, Any]]) -> list[dict]:
    """A section of what the last evaluation's samples are, beside what the rows have; none without samples."""
    sampled = [row for row in metrics if row.get("samples")]
    if not sampled:
        return []
    items = [
        (sample["prompt"], ("expected", [(sample["expected"], "")]), (f"step {row['step']}", [(sample["answer"], "")]))
        for row in sampled[-1:]
        for sample in row["samples"]
    ]
    note = "Held-out prompts, answered greedily at the last evaluation; metrics.jsonl has those of all."
    return [html.build_section("Samples", note, html.build_pairs(items))]


def _build_summary(metrics: list[dict[str, Any]], speed: list[dict[str, Any]]) -> dict[str, Any]:
    losses, evaluated = _list_points(metrics, "loss"), _list_points(metrics, "eval_loss")
    last = losses[-max(1, len(losses) // 10) :]
    facts: dict[str, Any] = {"steps": losses[-1][0] if losses else 0}
    if last:
        facts["loss, mean of the last tenth"] = sum(loss for _, loss in last) / len(last)
    if evaluated:
        facts["lowest eval loss"] = min(loss for _, loss in evaluated)
    if speed:
        rates = [row["tokens"] / row["seconds"] for row in speed if row["seconds"]]
        facts["tokens a second"] = round(median(rates)) if rates else None
        facts["time in steps"] = format_duration(sum(row["seconds"] for row in speed))
        facts["most memory"] = format_size(max(row["memory"] for row in speed))
    return facts


def _build_run_table(recipe: dict[str, Any], counts: dict[str, Any]) -> list[list[Any]]:
    model, trainer = recipe.get("model") or {}, recipe.get("trainer") or {}
    rows = [["model", model.get("name") or model.get("config_class")], ["dtype", model.get("dtype")]]
    rows += [[name.replace("_", " "), trainer[name]] for name in SHOWN if name in trainer]
    if recipe.get("lora"):
        rows.append(["lora", {name: value for name, value in recipe["lora"].items() if value is not None}])
    names = {"learned_tokens": "target tokens"}
    return rows + [[names.get(name, name.replace("_", " ")), value] for name, value in counts.items()]
