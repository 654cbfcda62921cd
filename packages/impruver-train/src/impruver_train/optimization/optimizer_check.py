"""Tries the recipe's optimizer and scheduler on shrunken weights before the real ones are loaded.

What an optimizer refuses (a value, a missing argument, this device) it refuses here, hours of download earlier.
"""

from __future__ import annotations

import copy
import io
import tempfile
from typing import TYPE_CHECKING

from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError

from impruver_train.distributed import uses_fsdp
from impruver_train.optimization.optimizers import check_optimizer_arguments, set_optimizer

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from transformers import PreTrainedModel, Trainer, TrainingArguments

LARGEST = 64  # of a shrunken weight's sizes: bitsandbytes holds less than 64 x 64 values in 32 bits all the same
STEPPED = 2  # weights of each group that a step is tried on
BUILDS = ("create_optimizer", "create_scheduler", "create_optimizer_and_scheduler", "get_optimizer_cls_and_kwargs")


def check_optimizer(
    model: PreTrainedModel,
    arguments: TrainingArguments,
    trainer_class: type[Trainer],
    name: str | None,
    loraplus_lr_ratio: float | None,
) -> None:
    """Builds optimizer and scheduler for `model`, makes a step, and reads the state back as a resumed run does.

    `model`: on torch's meta device, with its adapter; it is of no use afterwards. A Trainer that builds its own
    optimizer is not tried, nor are weights that FSDP or DeepSpeed spread.

    Raises:
        ImpruverError: in the words of what refuses.
    """
    from transformers import Trainer

    check_optimizer_arguments(arguments, name)
    own = any(getattr(trainer_class, method) is not getattr(Trainer, method) for method in BUILDS)
    asked = f"trainer.optim: {name}" if name is not None else "lora.loraplus_lr_ratio"
    if own and (name is not None or loraplus_lr_ratio is not None):
        raise ImpruverError(f"{asked}: {trainer_class.__name__} builds an optimizer of its own; take one of both out")
    if own or uses_fsdp(arguments) or arguments.deepspeed:
        return
    shrink_weights(model, arguments.device)
    alone = copy.copy(arguments)  # no tracker, no hub, no rows
    alone.report_to, alone.push_to_hub, alone.eval_strategy = [], False, type(arguments.eval_strategy)("no")
    alone.output_dir = tempfile.gettempdir()  # Trainer makes the folder, and a dry run must not
    what = name or str(arguments.optim.value)
    try:
        trainer = Trainer(model=model, args=alone)
        set_optimizer(trainer, name, loraplus_lr_ratio)
        trainer.create_optimizer_and_scheduler(num_training_steps=10)
        state = compute_state(trainer.optimizer)
    except ImpruverError:
        raise
    except Exception as error:
        raise ImpruverError(f"trainer.optim: {what}: {error or type(error).__name__}") from error
    loss = find_state_loss(trainer.optimizer, state)
    if loss:
        warn(f"trainer.optim: {what}: {loss}")


def shrink_weights(model: nn.Module, device: str) -> None:
    """Gives `model` weights and buffers of at most LARGEST values along each axis, zeros on `device`."""
    import torch

    small = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None and id(weight) not in small:  # tied ones stay so
                sizes = [min(size, LARGEST) for size in weight.shape] if weight.requires_grad else [1] * weight.ndim
                values = torch.zeros(sizes, dtype=weight.dtype, device=device)
                # The old weight stays alive with the new one: no other gets its id.
                small[id(weight)] = weight, torch.nn.Parameter(values, requires_grad=weight.requires_grad)
            if weight is not None:
                module._parameters[name] = small[id(weight)][1]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros([1] * buffer.ndim, dtype=buffer.dtype, device=device)


def compute_state(optimizer: Optimizer) -> dict:
    """The state of `optimizer` after a step on some of its weights."""
    import torch

    if hasattr(optimizer, "train"):  # a schedule-free one steps in that mode alone
        optimizer.train()
    if not hasattr(optimizer, "fused_backward"):  # that steps as gradients come
        for group in optimizer.param_groups:
            for weight in group["params"][:STEPPED]:
                weight.grad = torch.ones_like(weight) if weight.requires_grad else None
        optimizer.step()
    return optimizer.state_dict()


def find_state_loss(optimizer: Optimizer, state: dict) -> str | None:
    """What a run that is stopped and resumed loses of the optimizer's `state`; None where nothing is lost."""
    import torch
    from transformers.trainer_pt_utils import LayerWiseDummyOptimizer, safe_globals

    if isinstance(optimizer, LayerWiseDummyOptimizer) or hasattr(optimizer, "fused_backward"):
        return "checkpoints don't hold its state: a run that is stopped and resumed begins with a fresh one"
    file = io.BytesIO()
    try:
        torch.save(state, file)
        file.seek(0)
        with safe_globals():
            torch.load(file, weights_only=True)
    except Exception:  # objects of its own, which could run code
        return "its state can't be read back from a checkpoint, so that a stopped run can't be resumed"
    return None
