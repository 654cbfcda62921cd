"""Callbacks: a row of metrics.jsonl for each optimizer step, trackers at the recipe's pace, a progress bar."""

import functools
import json
import math
import sys
from pathlib import Path
from typing import Any

from impruver_core.cli.console import progress, say
from impruver_core.errors import CheckFailed

COLUMNS = ("loss", "epoch", "learning_rate", "grad_norm")


def step_callback(path: Path) -> Any:
    """Trainer's callback that writes a row for each step into `path` and shows progress."""
    from transformers import TrainerCallback

    class EachStep(TrainerCallback):
        """Has Trainer log every step, whatever `logging_steps` says, and writes what it logs."""

        def __init__(self) -> None:
            self.due = False  # whether the recipe's own pace asks trackers to log this step
            self.bar = None

        def on_train_begin(self, args, state, control, **_):
            if state.is_world_process_zero:
                path.write_text("", encoding="utf-8")
                self.bar = progress(None, state.max_steps, "training")

        def on_step_end(self, args, state, control, **_):
            # Runs after Trainer's own flow callback: what it decided is what the recipe asked for.
            self.due = control.should_log or (args.logging_strategy == "epoch" and state.epoch == int(state.epoch))
            control.should_log = True
            if self.bar is not None:
                self.bar.update(1)

        def on_log(self, args, state, control, logs=None, **_):
            row = metrics_row(state.global_step, logs or {})
            if row is None:
                return
            if state.is_world_process_zero:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row, allow_nan=False) + "\n")
                if self.due or "eval_loss" in row:
                    say(told(row, state.max_steps))
            if not math.isfinite((logs or {}).get("loss", 0.0)):
                raise CheckFailed(
                    f"the loss is {logs['loss']} at step {state.global_step}: training stopped; a lower "
                    "trainer.learning_rate, or model.dtype: fp32, is what helps most often"
                )

        def on_train_end(self, args, state, control, **_):
            if self.bar is not None:
                self.bar.close()

    return EachStep()


def metrics_row(step: int, logs: dict[str, Any]) -> dict[str, Any] | None:
    """What metrics.jsonl keeps of one of Trainer's logs; None for a log that is neither a step nor an evaluation.

    A number that is not finite becomes null: the file is strict JSON.
    """
    if "eval_loss" in logs:
        return {"step": step, "eval_loss": finite(logs["eval_loss"])}
    if "loss" in logs:
        return {"step": step} | {name: finite(logs[name]) for name in COLUMNS if name in logs}
    return None


def told(row: dict[str, Any], steps: int) -> str:
    """A row of metrics.jsonl as a line for the terminal."""
    numbers = {name.replace("_", " "): value for name, value in row.items() if name not in ("step", "epoch")}
    shown = (f"{name} {'not finite' if value is None else f'{value:.4g}'}" for name, value in numbers.items())
    return f"step {row['step']}/{steps}: {', '.join(shown)}"


def finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def pace_trackers(trainer: Any) -> None:
    """Makes `trainer`'s trackers (wandb, tensorboard…) log at the recipe's pace, the mean loss of the steps between.

    Its printing of every log goes: what is to be told, our own callback tells.
    """
    from transformers import PrinterCallback
    from transformers.integrations import get_reporting_integration_callbacks

    trainer.remove_callback(PrinterCallback)

    each_step = next(
        callback for callback in trainer.callback_handler.callbacks if type(callback).__name__ == "EachStep"
    )
    trackers = tuple(get_reporting_integration_callbacks(trainer.args.report_to))
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, trackers):
            callback.on_log = paced(callback.on_log, each_step)


def close_trackers() -> None:
    """Ends wandb's run here: at the end of the process it would print its last words on stdout."""
    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        sys.modules["wandb"].finish()


def paced(on_log: Any, each_step: Any) -> Any:
    """`on_log` that gets a step's log only when it is due, with the mean loss since the last one that was."""
    losses: list[float] = []

    @functools.wraps(on_log)
    def at_pace(args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            losses.append(logs["loss"])
            if not each_step.due:
                return None
            logs = {**logs, "loss": sum(losses) / len(losses)}
            losses.clear()
        return on_log(args, state, control, logs=logs, **kwargs)

    return at_pace
