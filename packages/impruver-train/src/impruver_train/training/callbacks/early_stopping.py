"""Stops a training that no longer gets better, also where it was interrupted on the way."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from impruver_train.checkpointing.resume import AlreadyTrainedError

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

NAME = "trainer.early_stopping_patience"


@cache
def load_early_stopping() -> type[TrainerCallback]:
    """The callback class: transformers, and with it its base, takes seconds to import."""
    from transformers import EarlyStoppingCallback

    class PatientStoppingCallback(EarlyStoppingCallback):
        """Callback that ends a training after `early_stopping_patience` evaluations without a better metric."""

        def on_train_begin(self, args, state, control, **kwargs):
            if self.early_stopping_patience_counter >= self.early_stopping_patience:
                raise AlreadyTrainedError  # it was saved by the step that ended it

    return PatientStoppingCallback


def restore_callback_states(trainer: Trainer) -> None:
    """Gives callbacks the state that a checkpoint has of them: values of attributes that they have, of the same type.

    transformers makes new callbacks instead, with the checkpoint's arguments in place of the recipe's, and only where
    it is asked to.
    """
    for name, stored in trainer.state.stateful_callbacks.items():
        callbacks = [each for each in trainer.callback_handler.callbacks if type(each).__name__ == name]
        for callback, state in zip(callbacks, stored if isinstance(stored, list) else [stored], strict=False):
            attributes = state.get("attributes") if isinstance(state, dict) else None
            for attribute, value in (attributes if isinstance(attributes, dict) else {}).items():
                if type(vars(callback).get(attribute)) is type(value):
                    setattr(callback, attribute, value)
