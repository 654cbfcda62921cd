"""Logits where something is learned and nowhere else, and their loss in pieces.

The vocabulary is most of what a small model takes: places of prompts and padding pay nothing for it, and of the rest
only a piece at a time is in fp32.
"""

import inspect
from functools import cache
from typing import Any

from impruver_train.collate import IGNORED

PIECE = 256  # places


def can_choose(model: Any) -> bool:
    """Whether `model` of transformers computes logits at chosen places of each row and the usual loss over them."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    try:
        source = inspect.getsource(inspect.unwrap(type(model).forward))
    except (OSError, TypeError):  # made while the program runs, or no function
        return False
    asks = "slice_logits_to_keep(" in source and "self.loss_function(" in source
    asks = asks and "logits[:" not in source  # which wants rows of logits, as in Chameleon
    return asks and getattr(model, "loss_function", None) is ForCausalLMLoss


def may_choose(arguments: Any, own_trainer: bool) -> bool:
    """Whether nothing but the model's loss looks at logits or at the labels' shape in a run of these arguments.

    Smoothed labels, a Trainer of one's own and Liger's loss do; compiled code wants shapes that don't change, and
    DataParallel splits a batch by rows.
    """
    others = (arguments.label_smoothing_factor, arguments.use_liger_kernel, arguments.torch_compile, own_trainer)
    return not any(others) and arguments.n_gpu <= 1 and getattr(arguments, "parallelism_config", None) is None


def choose_learned(batch: dict[str, Any]) -> dict[str, Any]:
    """`batch` with `logits_to_keep`, a bool for each place."""
    return {**batch, "logits_to_keep": next_labels(batch["labels"]) != IGNORED}


def next_labels(labels: Any) -> Any:
    """The label that follows each place, of labels (rows, places)."""
    from torch.nn.functional import pad

    return pad(labels[:, 1:], (0, 1), value=IGNORED)


def take_loss_in_pieces(model: Any) -> None:
    """Has `model`, whose loss is transformers' of causal models, compute it by `loss_in_pieces`."""
    getattr(model, "get_base_model", lambda: model)().loss_function = loss_in_pieces


def loss_in_pieces(logits: Any, labels: Any, vocab_size: int, **given: Any) -> Any:
    """transformers' ForCausalLMLoss of chosen logits (places, vocabulary), of which little is in fp32 at once.

    Where all logits were asked for it is ForCausalLMLoss itself.
    """
    import torch
    from transformers.loss.loss_utils import ForCausalLMLoss

    if logits.dim() > 2:
        return ForCausalLMLoss(logits, labels, vocab_size, **given)
    following, count = next_labels(labels), given.get("num_items_in_batch")
    following = following[following != IGNORED]
    count = torch.as_tensor(len(following) if count is None else count, device=logits.device)
    return piecewise().apply(logits, following.to(logits.device), count)


@cache
def piecewise() -> Any:
    """The autograd function: summed cross entropy of logits (places, vocabulary) over `count`.

    The gradient, softmax less one at the label, is made as the loss is (as in Liger-Kernel and other fused losses), in
    the dtype of the logits; of fp16, whose loss is scaled only later, in fp32.
    """
    import torch
    from torch.autograd.function import once_differentiable

    class Piecewise(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits, following, count):
            learns = ctx.needs_input_grad[0]
            held = torch.float32 if logits.dtype == torch.float16 else logits.dtype
            gradient = torch.empty_like(logits, dtype=held) if learns else None
            total = torch.zeros((), device=logits.device)
            for at in range(0, len(logits), PIECE):
                logs = torch.log_softmax(logits[at : at + PIECE].float(), -1)
                label = following[at : at + PIECE, None]
                total -= logs.gather(1, label).sum()
                if learns:
                    logs.exp_().scatter_add_(1, label, -torch.ones_like(label, dtype=logs.dtype))
                    gradient[at : at + PIECE] = logs.div_(count)
            ctx.save_for_backward(gradient)
            ctx.dtype = logits.dtype
            return total / count

        @staticmethod
        @once_differentiable
        def backward(ctx, outer):
            (gradient,) = ctx.saved_tensors
            return gradient.mul_(outer).to(ctx.dtype), None, None

    return Piecewise
