"""Warnings of a training that goes wrong and still has numbers: a loss that explodes, a gradient that is zero."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from impruver_core.cli.console import warn

if TYPE_CHECKING:
    from transformers import Trainer

WINDOW = 64  # steps of the running mean
ENOUGH = 32  # steps after which that mean says something, with batches of one row too
STREAK = 8  # steps in a row: one hard batch, or a few, are no explosion
LEAST_RISE, LARGEST_RISE = 1.0, 2.0  # nats
SKIPPED_STEPS = 32  # of fp16: as many as its scaler may skip while it looks for a scale, gradients left at zero


class LossWarningCallback:
    """Callback that warns at once, each kind once, and counts the steps on which it goes on.

    A loss explodes where STREAK steps in a row are above both limits of its past: the lowest running mean so far, and
    above that thrice, but at least LEAST_RISE and at most LARGEST_RISE more (thrice 0.01 is no loss to speak of, and
    thrice 4 more than a loss can be). Each of them, not their mean: the loss of single rows has a long tail. Before the
    running mean says something, the limit is what guessing among all tokens would have, or the first loss.
    """

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.lowest = self.guessing = math.inf
        self.streak = self.zeros = self.seen = 0
        self.counts: dict[str, int] = {}
        self.first: dict[str, int] = {}

    def on_train_begin(self, args, state, control, model=None, **_):
        config = getattr(model, "config", None)
        size = getattr(config.get_text_config(), "vocab_size", None) if config is not None else None
        self.guessing = math.log(size) if size else math.inf

    def on_log(self, args, state, control, logs=None, **_):
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        self.check_loss(logs["loss"], state.global_step)
        norm = logs.get("grad_norm")
        self.zeros = self.zeros + 1 if norm == 0 else 0
        if norm == 0 and (not args.fp16 or self.zeros > SKIPPED_STEPS):
            self.count("the gradient's norm is 0", state.global_step, "nothing is learned in such a step")

    def check_loss(self, loss: float, step: int) -> None:
        """Compares a step's loss with those before it."""
        if not math.isfinite(loss):  # which ends the training anyway
            return
        limit = self.compute_limit()
        self.streak = self.streak + 1 if loss > limit else 0
        if self.streak >= STREAK:
            what = f"{loss:.4g} after step {step}, above {limit:.4g} for {STREAK} steps"
            self.count("the loss explodes", step, f"{what}; a lower trainer.learning_rate helps most often")
        if not self.seen:
            self.guessing = max(self.guessing, loss)
        self.seen += 1
        self.losses.append(loss)
        if len(self.losses) >= ENOUGH:
            self.lowest = min(self.lowest, sum(self.losses) / len(self.losses))

    def compute_limit(self) -> float:
        """The loss above which a streak of steps is an explosion, from the steps so far."""
        if not self.seen:
            return math.inf
        rise = min(max(2 * self.lowest, LEAST_RISE), LARGEST_RISE)
        return min(self.lowest + rise, self.guessing + LARGEST_RISE)

    def count(self, kind: str, step: int, detail: str) -> None:
        """Warns of the first step of a kind, and counts it."""
        if kind not in self.counts:
            self.first[kind] = step
            warn(f"{kind}: {detail}; said once, counted from now on")
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def list_counts(self) -> list[str]:
        """A line for each kind that came, for the end."""
        counts = self.counts.items()
        return [f"{kind}: at {count:,} step{'s' * (count > 1)}, first {self.first[kind]:,}" for kind, count in counts]


def list_loss_warnings(trainer: Trainer) -> list[str]:
    """What the callback of `trainer` counted, as lines."""
    callbacks = (each for each in trainer.callback_handler.callbacks if isinstance(each, LossWarningCallback))
    return [line for callback in callbacks for line in callback.list_counts()]
