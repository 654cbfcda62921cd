"""A row of metrics.jsonl for each optimizer step, a progress bar, and at a terminal a line every few seconds."""

import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from impruver_core.cli.console import format_duration, log_info, open_progress
from impruver_core.io.atomic import atomic_write

METRICS = "metrics.jsonl"
COLUMNS = ("loss", "epoch", "learning_rate", "grad_norm")
LINE_SECONDS = 3.0  # at a terminal, whatever logging_steps says


class MetricsLoggerCallback:
    """Callback that has Trainer log every step, whatever `logging_steps` says, and writes what it logs into `path`.

    It shows progress as well. `compute_rate()`: tokens a second since it was called last.
    """

    def __init__(self, path: Path, compute_rate: Callable[[], float | None]) -> None:
        self.path, self.compute_rate = path, compute_rate
        self.due = False  # whether the recipe's own pace asks trackers to log this step
        self.bar = None
        self.at_terminal = sys.stderr.isatty()
        self.start = (0, 0.0)  # the step from which on is counted, and when that was
        self.line_time = 0.0

    def on_train_begin(self, args, state, control, **_):
        if state.is_world_process_zero:
            truncate_after_step(self.path, state.global_step)
            self.bar = open_progress(state.max_steps, "training")
            self.bar.update(state.global_step)
        self.line_time = time.monotonic()
        self.start = (state.global_step, self.line_time)

    def on_step_end(self, args, state, control, **_):
        # Runs after Trainer's own flow callback: what it decided is what the recipe asked for.
        self.due = control.should_log or (args.logging_strategy == "epoch" and state.epoch == int(state.epoch))
        control.should_log = True
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args, state, control, logs=None, **_):
        row = build_metrics_row(state.global_step, logs or {})
        if row is None:
            return
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
            waited = self.at_terminal and time.monotonic() - self.line_time >= LINE_SECONDS
            if self.due or waited or "eval_loss" in row:
                log_info(format_metrics(row, state.max_steps) + self.describe_pace(row, state.max_steps))

    def describe_pace(self, row: dict[str, Any], steps: int) -> str:
        """What a step's line says besides, at a terminal: tokens a second since the last line, and the time left."""
        if not self.at_terminal or "loss" not in row:
            return ""
        self.line_time, (first, begun) = time.monotonic(), self.start
        left = (self.line_time - begun) / max(1, row["step"] - first) * (steps - row["step"])
        rate = self.compute_rate()
        pace = f", {rate:,.0f} tokens/s" if rate is not None else ""
        return f"{pace}, {format_duration(left)} left"

    def on_train_end(self, args, state, control, **_):
        if self.bar is not None:
            self.bar.close()


def truncate_after_step(path: Path, step: int) -> None:
    """Keeps those rows of `path` that were written up to `step`, none for 0; a resumed run writes the others."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if step and path.is_file() else ():
        with suppress(ValueError, KeyError, TypeError, RecursionError):  # the last line, of a run that was cut off
            lines += [line] if json.loads(line)["step"] <= step else []
    with atomic_write(path) as file:
        file.writelines(f"{line}\n" for line in lines)


def build_metrics_row(step: int, logs: dict[str, Any]) -> dict[str, Any] | None:
    """What metrics.jsonl keeps of one of Trainer's logs; None for a log that is neither a step nor an evaluation.

    A number that is not finite becomes null: the file is strict JSON.
    """
    if "eval_loss" in logs:
        names = [name for name in logs if name.startswith("eval_") and name.endswith("_loss")]
        return {"step": step} | {name: _get_finite(logs[name]) for name in names}
    if "loss" in logs:
        return {"step": step} | {name: _get_finite(logs[name]) for name in COLUMNS if name in logs}
    return None


def format_metrics(row: dict[str, Any], steps: int) -> str:
    """A row of metrics.jsonl as a line for the terminal."""
    numbers = {name.replace("_", " "): value for name, value in row.items() if name not in ("step", "epoch")}
    parts = (f"{name} {'not finite' if value is None else f'{value:.4g}'}" for name, value in numbers.items())
    return f"step {row['step']}/{steps}: {', '.join(parts)}"


def _get_finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
