"""Throttles and isolates wandb, TensorBoard and other trackers."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from impruver_core.cli.console import warn

from impruver_train.training.callbacks.metrics_logger import MetricsLoggerCallback

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

CLOSING_SECONDS = 60


def throttle_trackers(trainer: Trainer, metrics: MetricsLoggerCallback) -> None:
    """Has `trainer`'s trackers log at the recipe's pace, which `metrics` knows, the mean loss of the steps between.

    Its printing of every log goes: our own callback says what is to be said.
    """
    from transformers import PrinterCallback
    from transformers.integrations import get_reporting_integration_callbacks

    trainer.remove_callback(PrinterCallback)
    trackers = tuple(get_reporting_integration_callbacks(trainer.args.report_to))
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, trackers):
            callback.on_log = _throttle(callback.on_log, metrics)
            isolate_tracker_errors(callback)


def isolate_tracker_errors(tracker: TrainerCallback) -> None:
    """Has `tracker` go silent, with one warning, at the first error that it raises: it never ends a training."""
    silent: list[bool] = []

    def isolate(event: Callable) -> Callable:
        @functools.wraps(event)
        def call(*args, **kwargs):
            if silent:
                return None
            try:
                return event(*args, **kwargs)
            except Exception as error:
                silent.append(True)
                warn(f"{type(tracker).__name__} failed and gets no more logs; training goes on: {error!s:.300}")
                return None

        return call

    for name in dir(tracker):
        if name.startswith("on_"):
            setattr(tracker, name, isolate(getattr(tracker, name)))


def close_trackers() -> None:
    """Ends wandb's run here: at the end of the process it would print its summary on stdout.

    A server that is away gets a minute; by then all that matters is written.
    """
    if "wandb" not in sys.modules or sys.modules["wandb"].run is None:
        return

    def finish() -> None:
        with suppress(Exception):
            sys.modules["wandb"].finish()

    closing = threading.Thread(target=finish, daemon=True)
    closing.start()
    closing.join(CLOSING_SECONDS)
    if closing.is_alive():
        warn("wandb did not finish sending; what it has not sent stays in its own folder")


def _throttle(on_log: Callable, metrics: MetricsLoggerCallback) -> Callable:
    """`on_log` that gets a step's log only when it is due, with the mean loss since the last one that was."""
    losses: list[float] = []

    @functools.wraps(on_log)
    def log_if_due(args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            losses.append(logs["loss"])
            if not metrics.due:
                return None
            logs = {**logs, "loss": sum(losses) / len(losses)}
            losses.clear()
        return on_log(args, state, control, logs=logs, **kwargs)

    return log_if_due
