"""Logits where something is learned and nowhere else, and their loss in pieces.

The vocabulary is most of what a small model takes: places of prompts and padding pay nothing for it, and of the rest no
copy in fp32 is kept, since each piece of the loss is computed again in backward.
"""

import inspect
from typing import Any

from impruver_train.collate import IGNORED

PIECE = 1024  # places


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


def take_loss_in_pieces(model: Any) -> None:
    """Has `model`, whose loss is transformers' of causal models, compute it by `loss_in_pieces`."""
    getattr(model, "get_base_model", lambda: model)().loss_function = loss_in_pieces


def loss_in_pieces(logits: Any, labels: Any, vocab_size: int, **given: Any) -> Any:
    """transformers' ForCausalLMLoss of chosen logits (places, vocabulary), of which little is in fp32 at once.

    `given` holds `shift_labels` (places,), unless all logits were asked for: then it is ForCausalLMLoss itself.
    """
    import torch
    from torch.utils.checkpoint import checkpoint
    from transformers.loss.loss_utils import ForCausalLMLoss

    following, count = given.get("shift_labels"), given.get("num_items_in_batch")
    if following is None or logits.dim() > 2:
        return ForCausalLMLoss(logits, labels, vocab_size, **given)

    def piece(part: Any, following: Any) -> Any:
        return torch.nn.functional.cross_entropy(part.float(), following, reduction="sum")

    # Split, not sliced: the backward of one split is one concatenation.
    pieces = zip(logits.split(PIECE), following.to(logits.device).split(PIECE), strict=True)
    total = sum(checkpoint(piece, *each, use_reentrant=False, preserve_rng_state=False) for each in pieces)
    return total / (len(following) if count is None else torch.as_tensor(count, device=total.device))
