"""The callbacks of a run, listed in one place.

They are classes of their own until a run needs them: transformers, and with it their base, takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from impruver_core.io.integrity import FileState

from impruver_train.checkpointing.resume import ResumePoint
from impruver_train.data.token_files import TokenFiles
from impruver_train.signals import StopSignal
from impruver_train.training.callbacks.checkpointer import CheckpointCallback
from impruver_train.training.callbacks.early_stopping import load_early_stopping, restore_callback_states
from impruver_train.training.callbacks.loss_warnings import LossWarningCallback
from impruver_train.training.callbacks.metrics_logger import METRICS, MetricsLoggerCallback
from impruver_train.training.callbacks.nan_guard import NonFiniteGuardCallback, record_batches
from impruver_train.training.callbacks.resume_settings import ResumeSettingsCallback, record_settings
from impruver_train.training.callbacks.samples import SamplesCallback, split_prompt
from impruver_train.training.callbacks.throughput import NAME, ThroughputCallback
from impruver_train.training.callbacks.trackers import throttle_trackers

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback


def as_callback(kind: type, *arguments: Any) -> TrainerCallback:
    """A `kind` of these arguments that is a transformers.TrainerCallback too."""
    from transformers import TrainerCallback

    return type(kind.__name__, (kind, TrainerCallback), {})(*arguments)


class RunCallbacks(NamedTuple):
    """The callbacks, and what those lists hold that `attach` has the Trainer fill: the step's batches, the settings."""

    callbacks: list[TrainerCallback]
    batches: list[dict[str, Any]]
    settings: list[dict[str, Any]] | None

    def attach(self, trainer: Trainer) -> None:
        """Has `trainer`, made with these callbacks, tell them what they need."""
        record_batches(trainer, self.batches)
        trainer._load_callback_state = partial(restore_callback_states, trainer)
        if self.settings is not None:
            record_settings(trainer, self.settings)
        throttle_trackers(trainer, self.callbacks[0])
        everything = trainer.callback_handler.callbacks
        for samples in (each for each in everything if isinstance(each, SamplesCallback)):
            samples.trackers = [each for each in everything if getattr(each, "is_isolated", False)]


def build_samples(count: int | None, rows: Sequence[Any], path: Path, positions: int | None) -> SamplesCallback | None:
    """The callback that has the first `count` of `rows` answered at each evaluation; None where none is asked for."""
    prompts = [split_prompt(rows[number]) for number in range(min(count or 0, len(rows)))]
    return as_callback(SamplesCallback, path, prompts, positions) if prompts else None


def build_callbacks(
    output_dir: Path,
    train_files: TokenFiles,
    signal: StopSignal,
    identity: dict[str, Any],
    start: ResumePoint,
    states: dict[Path, FileState] | None = None,
    early_stopping_patience: int | None = None,
    samples: SamplesCallback | None = None,
) -> RunCallbacks:
    """All callbacks of a run; `identity` goes into the marker of each checkpoint.

    `states`: of the token files, by which one that was changed meanwhile is recognized. `early_stopping_patience`:
    evaluations without a better metric that end the training. `samples`: the callback that answers prompts.
    """
    batches: list[dict[str, Any]] = []
    settings: list[dict[str, Any]] | None = [] if start.is_named else None
    speed = as_callback(ThroughputCallback, output_dir / NAME, batches)
    callbacks = [
        as_callback(MetricsLoggerCallback, output_dir / METRICS, speed.compute_recent_rate),
        as_callback(NonFiniteGuardCallback, output_dir, train_files, batches, start.checkpoint, states or {}),
        as_callback(CheckpointCallback, output_dir, signal, identity, start),
        speed,
        as_callback(LossWarningCallback),
    ]
    if settings is not None:
        callbacks.append(as_callback(ResumeSettingsCallback, settings))
    if samples is not None:
        callbacks.append(samples)
    if early_stopping_patience is not None:
        callbacks.append(load_early_stopping()(early_stopping_patience))
    return RunCallbacks(callbacks, batches, settings)
