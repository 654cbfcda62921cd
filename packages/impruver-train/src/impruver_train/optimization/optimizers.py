"""Optimizers beside those of transformers: Muon with AdamW, LoRA+; and what some of them need to be saved right."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from impruver_core.errors import ImpruverError

from impruver_train.config.training_arguments import MUON
from impruver_train.distributed import uses_fsdp
from impruver_train.modeling.chunked_loss import get_base

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer
    from transformers import PreTrainedModel, Trainer, TrainingArguments

OF_TRAINER = {"lr": "learning_rate", "weight_decay": "weight_decay"}  # no arguments of optim_args
OF_TOKENS = ("lora_embedding_", "trainable_tokens_")  # in names of an adapter's weights for tokens


@cache
def load_muon_with_adamw() -> type[Optimizer]:
    """The optimizer MuonWithAdamW: torch, and with it its base, takes seconds to import."""
    import torch

    class MuonWithAdamW(torch.optim.Optimizer):
        """Muon for some parameter groups, AdamW for others, with one state that is saved and loaded as any optimizer's.

        Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) makes the momentum of a matrix orthogonal.
        Its step is scaled to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982), so that one learning rate and
        one weight decay fit both.
        """

        def __init__(self, hidden: list[dict], others: list[dict], muon: dict[str, Any], adamw: dict[str, Any]) -> None:
            self.parts = [torch.optim.Muon(hidden, **muon)]
            self.parts += [torch.optim.AdamW(others, **adamw)] if others else []
            super().__init__([group for part in self.parts for group in part.param_groups], {})
            self._share_state()

        def _share_state(self) -> None:
            """Has the parts work on the groups and the state that are this optimizer's own."""
            groups = iter(self.param_groups)
            for part in self.parts:
                part.param_groups = [next(groups) for _ in part.param_groups]
                part.state = self.state

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)  # it makes new groups and a new state
            self._share_state()

        def step(self, closure: Any = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            for part in self.parts:
                part.step()
            return loss

    return MuonWithAdamW


def build_muon(model: PreTrainedModel, arguments: TrainingArguments, decayed: set[str]) -> Optimizer:
    """Muon for the hidden matrices of `model` that are trained, AdamW for embeddings, output, norms and all others.

    `decayed`: names of the weights that are subject to weight decay.

    Raises:
        ImpruverError: where no hidden matrix is trained.
    """
    of_tokens = {id(weight) for weight in _list_token_weights(model)}
    groups: dict[tuple[bool, bool], list[Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            hidden = weight.ndim == 2 and id(weight) not in of_tokens and not any(part in name for part in OF_TOKENS)
            groups.setdefault((hidden, name in decayed), []).append(weight)
    hidden, others = (
        [
            {"params": weights, "weight_decay": arguments.weight_decay if decays else 0.0}
            for (is_hidden, decays), weights in groups.items()
            if is_hidden is wanted
        ]
        for wanted in (True, False)
    )
    if not hidden:
        raise ImpruverError("trainer.optim: muon is for hidden matrices, and none is trained; set adamw_torch")
    muon = {"lr": arguments.learning_rate, "adjust_lr_fn": "match_rms_adamw"} | parse_optim_args(arguments.optim_args)
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    adamw = {"lr": arguments.learning_rate, "betas": betas, "eps": arguments.adam_epsilon}
    return load_muon_with_adamw()(hidden, others, muon, adamw)


def _list_token_weights(model: PreTrainedModel) -> Iterator[Parameter]:
    """Weights of embeddings (of positions, too) and of the output matrix, with what an adapter adds to them."""
    from torch import nn

    ends = (model.get_input_embeddings(), get_base(model).get_output_embeddings())
    for module in (*ends, *(module for module in model.modules() if isinstance(module, nn.Embedding))):
        yield from module.parameters() if module is not None else ()


def parse_optim_args(text: str | None) -> dict[str, Any]:
    """`trainer.optim_args`, as in `momentum=0.9,nesterov=False`, by name; ImpruverError for another form."""
    if not isinstance(text, str | None):
        raise ImpruverError(f"trainer.optim_args: {text!r} is no text of the form name=value,name=value")
    values = {}
    for part in re.split(r",(?![^()]*\))", (text or "").replace(" ", "")) if text else ():
        name, equals, value = part.partition("=")
        if not equals:
            raise ImpruverError(f"trainer.optim_args: {part!r} is not of the form name=value")
        if name in OF_TRAINER:
            raise ImpruverError(f"trainer.optim_args: {name} is set by trainer.{OF_TRAINER[name]}")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
        if name == "nesterov" and not isinstance(values[name], bool):
            raise ImpruverError(f"trainer.optim_args: nesterov is True or False, not {value}")
    return values


def build_loraplus(model: PreTrainedModel, trainer: Trainer, ratio: float) -> Optimizer:
    """The recipe's optimizer with `ratio` times the learning rate for B matrices (LoRA+, arXiv:2402.12354)."""
    from peft.optimizers import create_loraplus_optimizer

    kind, keywords = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
    decay = {"loraplus_weight_decay": trainer.args.weight_decay}
    return create_loraplus_optimizer(model, kind, loraplus_lr_ratio=ratio, **(keywords | decay))


def set_optimizer(trainer: Trainer, name: str | None, loraplus_lr_ratio: float | None) -> None:
    """Has `trainer` build the optimizer of that name where it is none of transformers' own, or LoRA+ where asked."""

    def create_optimizer(model: PreTrainedModel | None = None) -> Optimizer:
        model = trainer.model if model is None else model
        if trainer.optimizer is None and name == MUON:
            decayed = {*trainer.get_decay_parameter_names(model)}
            trainer.optimizer = build_muon(model, trainer.args, decayed)
        elif trainer.optimizer is None:
            trainer.optimizer = build_loraplus(model, trainer, loraplus_lr_ratio)
        return trainer.optimizer

    if name == MUON or loraplus_lr_ratio is not None:
        trainer.create_optimizer = create_optimizer
    for method in ("_save_checkpoint", "_load_best_model"):
        setattr(trainer, method, partial(_call_averaged, trainer, getattr(trainer, method)))


def _call_averaged(trainer: Trainer, method: Any, *args: Any, **kwargs: Any) -> None:
    """Saves or loads with the weights that a schedule-free optimizer is for: the average, not where it steps."""
    set_optimizer_mode(trainer, "eval")
    method(*args, **kwargs)  # the next step sets its mode itself


def set_optimizer_mode(trainer: Trainer, mode: str) -> None:
    """Has a schedule-free optimizer hold the weights of that mode, `train` or `eval`; others have none."""
    change = getattr(trainer.optimizer, mode, None)
    if callable(change):
        change()


def check_optimizer_arguments(arguments: TrainingArguments, name: str | None) -> None:
    """ImpruverError for an optimizer that this run can't be done with: Muon on parts of matrices."""
    import torch

    if name != MUON:
        return
    if not hasattr(torch.optim, "Muon"):
        raise ImpruverError(f"trainer.optim: muon is in torch 2.9 and later; this is torch {torch.__version__}")
    if uses_fsdp(arguments) or arguments.deepspeed:
        raise ImpruverError("trainer.optim: muon needs whole matrices, which FSDP and DeepSpeed take apart")
