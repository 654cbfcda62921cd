"""Throttle and isolate wandb, TensorBoard…."""

import functools
import sys
import threading
from contextlib import suppress
from typing import Any

from impruver_core.cli.console import warn

from impruver_train.training.callbacks.metrics_logger import EachStep

CLOSING_SECONDS = 60


def pace_trackers(trainer: Any) -> None:
    """Makes `trainer`'s trackers (wandb, tensorboard…) log at the recipe's pace, the mean loss of the steps between.

    Its printing of every log goes: what is to be told, our own callback tells.
    """
    from transformers import PrinterCallback
    from transformers.integrations import get_reporting_integration_callbacks

    trainer.remove_callback(PrinterCallback)

    each_step = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, EachStep))
    trackers = tuple(get_reporting_integration_callbacks(trainer.args.report_to))
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, trackers):
            callback.on_log = paced(callback.on_log, each_step)
            never_stopping(callback)


def never_stopping(tracker: Any) -> None:
    """Has `tracker` go silent, with one warning, at the first error that it raises: it never ends a training."""
    silent: list[bool] = []

    def kept_alive(event: Any) -> Any:
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
            setattr(tracker, name, kept_alive(getattr(tracker, name)))


def close_trackers() -> None:
    """Ends wandb's run here: at the end of the process it would print its last words on stdout.

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
