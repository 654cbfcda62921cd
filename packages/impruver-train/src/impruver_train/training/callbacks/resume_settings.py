"""Apply changed optimizer settings after resume."""

from typing import Any

from impruver_core.cli.console import warn

from impruver_train.training.callbacks.base import as_callback


def take_settings(trainer: Any) -> None:
    """Has `trainer` go on from a given checkpoint with the recipe's learning rate, weight decay and so on.

    Trainer loads those of the checkpoint with the optimizer's state.
    """
    asked: list[dict[str, Any]] = []
    create = trainer.create_optimizer

    def created(*args, **kwargs):
        optimizer = create(*args, **kwargs)
        groups = trainer.optimizer.param_groups
        asked[:] = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        return optimizer

    trainer.create_optimizer = created
    trainer.add_callback(as_callback(Settings, asked))


class Settings:
    """Callback that puts the `asked` settings of the optimizer's groups in place once the checkpoint is loaded."""

    def __init__(self, asked: list[dict[str, Any]]) -> None:
        self.asked = asked

    def on_train_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **_):
        groups, schedule = optimizer.param_groups, getattr(lr_scheduler, "scheduler", lr_scheduler)
        for group, wanted in zip(groups, self.asked, strict=True):
            group.update(wanted | {"initial_lr": wanted["lr"], "lr": group["lr"]})
        if not hasattr(schedule, "lr_lambdas"):
            warn("trainer.lr_scheduler_type: the learning rate goes on from the checkpoint's, not the recipe's")
            return
        schedule.base_lrs = [wanted["lr"] for wanted in self.asked]
        for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = base * factor(schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in groups]
