"""Throttles and isolates wandb, TensorBoard and other trackers: whatever one does, training goes on."""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from impruver_core.cli.console import warn
from impruver_core.cli.stop_signals import TerminationSignal
from impruver_core.errors import ImpruverError, describe_error

from impruver_train.config.trackers import list_tracker_names, make_tracker
from impruver_train.training.callbacks.metrics_logger import MetricsLoggerCallback

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback, TrainingArguments

CLOSING_SECONDS = 60.0  # in which trackers may send what is left, unless CLOSING_VARIABLE says otherwise
CLOSING_VARIABLE = "IMPRUVER_TRACKER_SECONDS"

_closing: list[tuple[str, Callable]] = []  # what ends a tracker's run, once all that matters is written
_state = {"used": False}


def build_trackers(arguments: TrainingArguments) -> list[TrainerCallback]:
    """The trackers of `report_to`, isolated from their first event on; one that can't be made is a warning."""
    _closing.clear()  # of a run that failed
    trackers = []
    for name in list_tracker_names(arguments.report_to):
        try:
            tracker = make_tracker(name)
        except ImpruverError as error:
            warn(f"{error}; training goes on without it")
            continue
        isolate_tracker_errors(tracker)
        trackers.append(tracker)
    return trackers


@contextmanager
def reporting_nowhere(arguments: TrainingArguments) -> Iterator[None]:
    """Has a Trainer that is made within make no trackers of its own: `build_trackers` did."""
    report_to, arguments.report_to = arguments.report_to, []
    try:
        yield
    finally:
        arguments.report_to = report_to


def throttle_trackers(trainer: Trainer, metrics: MetricsLoggerCallback) -> None:
    """Has `trainer`'s trackers log at the recipe's pace, which `metrics` knows, the mean loss of the steps between.

    Trackers that a Trainer of the recipe's own made are isolated here. Its printing of every log goes: our own callback
    says what is to be said.
    """
    from transformers import PrinterCallback
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    trainer.remove_callback(PrinterCallback)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, tuple(INTEGRATION_TO_CALLBACK.values())):
            callback.on_log = _throttle(callback.on_log, metrics)
            if not getattr(callback, "is_isolated", False):
                isolate_tracker_errors(callback)


def isolate_tracker_errors(tracker: TrainerCallback) -> None:
    """Has `tracker` go silent, with one warning, at the first error that it raises: it never ends a training.

    An attempt to end the process counts as one. Its events change nothing of how training goes on. What it does when
    training ends waits for `close_trackers`: an upload that hangs must not keep the model from being saved.
    """
    silent: list[bool] = []
    name = type(tracker).__name__

    def isolate(event: Callable) -> Callable:
        @functools.wraps(event)
        def call(*args, **kwargs) -> None:
            if silent:
                return
            try:
                event(*args, **kwargs)
            except (KeyboardInterrupt, TerminationSignal):  # the user's
                raise
            except BaseException as error:
                silent.append(True)
                words = describe_error(error) if isinstance(error, Exception) else repr(error)
                warn(f"{name} failed and gets no more logs; training goes on: {words:.300}")

        return call

    for event in dir(tracker):
        if event.startswith("on_"):
            setattr(tracker, event, isolate(getattr(tracker, event)))
    end = tracker.on_train_end
    tracker.on_train_end = lambda *args, **kwargs: _closing.append((name, functools.partial(end, *args, **kwargs)))
    tracker.is_isolated = _state["used"] = True


def close_trackers() -> None:
    """Ends the trackers' runs: each in a thread of its own, all within CLOSING_SECONDS.

    By now all that matters is written. wandb's own end would come with the process's, and print on stdout.
    """
    ends: dict[str, list[Callable]] = {}
    for name, end in _closing:
        ends.setdefault(name, []).append(end)
    _closing.clear()
    if "wandb" in sys.modules and getattr(sys.modules["wandb"], "run", None) is not None:
        ends.setdefault("WandbCallback", []).append(sys.modules["wandb"].finish)
    threads = {name: threading.Thread(target=_call_all, args=(each,), daemon=True) for name, each in ends.items()}
    for thread in threads.values():
        thread.start()
    seconds = read_closing_seconds()
    deadline = time.monotonic() + seconds
    for name, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            warn(
                f"{name} did not finish sending within {seconds:g} s, and is left behind (more time: "
                f"{CLOSING_VARIABLE}); what it has not sent stays in its own folder"
            )


def limit_exit(code: int) -> None:
    """Has this process end with `code` even where a tracker's threads or exit hooks never do; for one that ends now."""
    if not _state["used"]:
        return

    def end_in_time() -> None:
        time.sleep(read_closing_seconds())
        with suppress(Exception):
            warn(f"a tracker is still at work; the process ends without it (more time: {CLOSING_VARIABLE})")
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)

    threading.Thread(target=end_in_time, daemon=True).start()


def read_closing_seconds() -> float:
    """How long trackers may take to close: the variable's number, else CLOSING_SECONDS."""
    try:
        return max(0.0, float(os.environ.get(CLOSING_VARIABLE, CLOSING_SECONDS)))
    except ValueError:
        return CLOSING_SECONDS


def _call_all(ends: list[Callable]) -> None:
    for end in ends:
        with suppress(BaseException):  # of a thread nobody waits for the reason; the events warn themselves
            end()


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
