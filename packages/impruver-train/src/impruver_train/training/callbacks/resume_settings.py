"""The recipe's optimizer settings after a checkpoint that it names is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from impruver_core.cli.console import warn

if TYPE_CHECKING:
    from transformers import Trainer


def record_settings(trainer: Trainer, settings: list[dict[str, Any]]) -> None:
    """Has `settings` hold those of the optimizer's groups as `trainer` creates it, before a checkpoint's are loaded."""
    create = trainer.create_optimizer

    def create_and_record(*args, **kwargs):
        optimizer = create(*args, **kwargs)
        groups = trainer.optimizer.param_groups
        settings[:] = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        return optimizer

    trainer.create_optimizer = create_and_record


class ResumeSettingsCallback:
    """Callback that puts the recipe's learning rate, weight decay and so on in place of a loaded checkpoint's.

    `settings`: those of the optimizer's groups, as `record_settings` fills them in.
    """

    def __init__(self, settings: list[dict[str, Any]]) -> None:
        self.settings = settings

    def on_train_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **_):
        groups, schedule = optimizer.param_groups, getattr(lr_scheduler, "scheduler", lr_scheduler)
        for group, wanted in zip(groups, self.settings, strict=True):
            group.update(wanted | {"initial_lr": wanted["lr"], "lr": group["lr"]})
        if not hasattr(schedule, "lr_lambdas"):
            warn("trainer.lr_scheduler_type: the learning rate resumes from the checkpoint's, not the recipe's")
            return
        schedule.base_lrs = [wanted["lr"] for wanted in self.settings]
        for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = base * factor(schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in groups]
