"""Logits where something is learned and nowhere else: a prompt's places take no time and memory of the vocabulary's."""

import inspect
from typing import Any

from impruver_train.collate import IGNORED


def can_choose(model: Any) -> bool:
    """Whether `model` of transformers computes logits at chosen places of each row and the usual loss over them."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    source = inspect.getsource(inspect.unwrap(type(model).forward))
    asks = "slice_logits_to_keep(" in source and "self.loss_function(" in source
    return asks and getattr(model, "loss_function", None) is ForCausalLMLoss


def may_choose(arguments: Any, own_trainer: bool) -> bool:
    """Whether nothing but the model's loss looks at logits or at the labels' shape in a run of these arguments.

    Smoothed labels, a Trainer of one's own and Liger's loss do; compiled code wants shapes that don't change, and
    DataParallel splits a batch by rows.
    """
    others = (arguments.label_smoothing_factor, arguments.use_liger_kernel, arguments.torch_compile, own_trainer)
    return not any(others) and arguments.n_gpu <= 1 and getattr(arguments, "parallelism_config", None) is None


def choose_learned(batch: dict[str, Any]) -> dict[str, Any]:
    """`batch` with `logits_to_keep`, a bool for each place, and `shift_labels`, the labels that follow such places."""
    from torch.nn.functional import pad

    following = pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    chosen = following != IGNORED
    return {**batch, "logits_to_keep": chosen, "shift_labels": following[chosen]}
