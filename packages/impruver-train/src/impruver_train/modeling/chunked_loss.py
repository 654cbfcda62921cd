"""Logits of target positions alone, and their cross entropy a chunk at a time.

The vocabulary is most of what a small model computes. Positions of prompts and padding need no logits, and of those
that do only one chunk's logits exist at a time, together with their loss and gradients (as in Liger-Kernel):

    labels             -100  -100   A     B    -100   C   -100      (batch, sequence)
    logits_to_keep       .     x    x     .     x     .     .       the next position's label is a target
    hidden states              h1   h2          h4                  (targets, hidden)
    chunks of 2              [ h1   h2 ]      [ h4 ]                LazyLogits: the output matrix is not yet applied
    a chunk              logits = head(h1, h2)                      (chunk, vocabulary), freed before the next chunk
                         loss += -log softmax(logits)[A, B]
                         gradient of h1, h2 and of the head's weights, from softmax(logits) - onehot(A, B)

Whether a model may be trained so is tested by its behaviour: see `logits_path`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from impruver_core.labels import IGNORE_INDEX

from impruver_train.distributed import get_zero_stage, uses_fsdp

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, TrainingArguments

CHUNK = 256  # positions
SCALE = 1024  # of gradients in forward: fp16 holds small ones of a sum as well as those of a scaled loss


class LogitsPath(IntEnum):
    """Which logits a training step computes; a greater one needs less memory and time."""

    ALL = 0  # of every position, as transformers does
    TARGETS = 1  # of target positions, held as a whole
    CHUNKED = 2  # of target positions, a chunk at a time together with loss and gradients


def limit_logits_path(arguments: TrainingArguments, own_trainer: bool, trains_head: bool) -> LogitsPath:
    """The greatest path that a run of these arguments allows any model.

    Something besides the model's loss looks at all logits or at the labels' shape where labels are smoothed, with a
    Trainer of one's own and Liger's loss; compiled code wants shapes that don't change, and DataParallel splits a batch
    by rows. The output matrix is applied to chunks where its weights are whole and fp16 need not hold their gradient.
    """
    others = (arguments.label_smoothing_factor, arguments.use_liger_kernel, arguments.torch_compile, own_trainer)
    if any(others) or arguments.n_gpu > 1 or getattr(arguments, "parallelism_config", None) is not None:
        return LogitsPath.ALL
    spread = uses_fsdp(arguments) or get_zero_stage(arguments) == 3
    return LogitsPath.TARGETS if spread or (arguments.fp16 and trains_head) else LogitsPath.CHUNKED


def add_logits_to_keep(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """`batch` with `logits_to_keep`, a bool for each position of `labels`, (batch, sequence)."""
    return {**batch, "logits_to_keep": shift_labels(batch["labels"]) != IGNORE_INDEX}


def shift_labels(labels: Tensor) -> Tensor:
    """The label of the next position for each position of `labels`, (batch, sequence)."""
    from torch.nn.functional import pad

    return pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def get_plain_head(model: PreTrainedModel) -> nn.Linear | None:
    """The output matrix of `model` if it is a linear layer of its own weights, else None (wrapped by an adapter …)."""
    from torch import nn

    head = get_base(model).get_output_embeddings()
    plain = type(head) is nn.Linear and set(head._parameters) == {"weight", "bias"} and "forward" not in vars(head)
    return head if plain else None


def get_base(model: PreTrainedModel) -> PreTrainedModel:
    """The transformers model in an adapter's wrapper, or `model` itself."""
    return getattr(model, "get_base_model", lambda: model)()


def enable_chunked_loss(model: PreTrainedModel, path: LogitsPath, chunk: int = CHUNK) -> None:
    """Has `model`, whose loss is transformers' ForCausalLMLoss, compute it by `compute_chunked_loss`.

    With `LogitsPath.CHUNKED` its output matrix is applied to chunks of the target positions too.
    """
    get_base(model).loss_function = partial(compute_chunked_loss, chunk=chunk)
    head = get_plain_head(model) if path is LogitsPath.CHUNKED else None
    if head is not None:
        apply = head.forward

        def forward(hidden: Tensor) -> Tensor | LazyLogits:
            if hidden.dim() > 2:  # target positions have lost their rows: two dimensions
                return apply(hidden)
            return LazyLogits(hidden, apply, [weight for weight in head.parameters() if weight.requires_grad])

        head.forward = forward


class LazyLogits:
    """Logits (positions, vocabulary) that are yet to be made of `hidden`: by the head and what a forward does to them.

    It takes the steps that are known to concern each logit alone: any other operation is an error. No tuple nor
    dataclass, whose tensors those who wrap a model look for.
    """

    def __init__(self, hidden: Tensor, make: Callable[[Tensor], Tensor], trained: list[Tensor]) -> None:
        self.hidden, self.make, self.trained = hidden, make, trained

    def then(self, step: Callable[[Tensor], Tensor], factor: Any = 1.0) -> Tensor | LazyLogits:
        """These logits after `step`; made at once where its `factor` is a tensor, which may be trained."""
        if not isinstance(factor, int | float):
            return step(self.make(self.hidden))
        return LazyLogits(self.hidden, lambda chunk: step(self.make(chunk)), self.trained)

    def float(self) -> LazyLogits:
        return self.then(lambda logits: logits.float())

    def __mul__(self, factor: Any) -> Tensor | LazyLogits:
        return self.then(lambda logits: logits * factor, factor)

    def __truediv__(self, factor: Any) -> Tensor | LazyLogits:
        return self.then(lambda logits: logits / factor, factor)

    @classmethod
    def __torch_function__(cls, function: Callable, types: Any, args: tuple, kwargs: Any = None) -> Any:
        import torch

        return args[0].then(function) if function is torch.tanh and len(args) == 1 and not kwargs else NotImplemented


def is_sparse(logits: Tensor | LazyLogits) -> bool:
    """Whether logits are of target positions, (positions, vocabulary), and not (batch, sequence, vocabulary)."""
    return isinstance(logits, LazyLogits) or logits.dim() == 2


def compute_chunked_loss(
    logits: Tensor | LazyLogits, labels: Tensor, vocab_size: int, chunk: int = CHUNK, **more: Any
) -> Tensor:
    """transformers' ForCausalLMLoss of the logits of target positions, lazy or not; of all logits it is itself.

    Args:
        logits: (positions, vocabulary), or (batch, sequence, vocabulary).
        labels: (batch, sequence).
        more: what `forward` passes on: `num_items_in_batch`, by which the sum is divided.
    """
    import torch
    from transformers.loss.loss_utils import ForCausalLMLoss

    if not is_sparse(logits):
        return ForCausalLMLoss(logits, labels, vocab_size, **more)
    if more.get("shift_labels") is not None:
        raise TypeError("logits of target positions have no shift_labels")
    if not isinstance(logits, LazyLogits):
        logits = LazyLogits(logits, lambda part: part, [])
    targets, count = shift_labels(labels), more.get("num_items_in_batch")
    targets = targets[targets != IGNORE_INDEX].to(logits.hidden.device)
    if len(targets) != len(logits.hidden):
        raise ValueError(f"{len(logits.hidden)} positions have logits, and {len(targets)} a target")
    count = torch.as_tensor(len(targets) if count is None else count, device=targets.device)
    function, needs_grad = load_chunked_cross_entropy(), torch.is_grad_enabled()
    return function.apply(logits.hidden, targets, count, logits.make, chunk, needs_grad, *logits.trained)


@cache
def load_chunked_cross_entropy() -> type:
    """The autograd function ChunkedCrossEntropy: torch, and with it its base, takes seconds to import."""
    import torch
    from torch.autograd.function import once_differentiable

    class ChunkedCrossEntropy(torch.autograd.Function):
        """Summed cross entropy of the logits that `make` makes of `hidden`, (positions, size), over `count`.

        Gradients of `hidden` and of the weights that `make` trains are computed with the loss. They are those of the
        sum: its count, and the scale of fp16's loss, come in backward.
        """

        @staticmethod
        def forward(ctx, hidden, targets, count, make, chunk, needs_grad, *trained):
            # A weight's is a sum over chunks: in fp32, of which autograd makes the weight's own dtype.
            sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in trained]
            gradients = [torch.zeros_like(hidden), *sums] if needs_grad else []
            total = torch.zeros((), device=hidden.device)
            for start in range(0, len(hidden), chunk):
                part = hidden[start : start + chunk].detach().requires_grad_(needs_grad)
                loss, computed = compute_loss_and_gradients(part, targets[start : start + chunk, None], make, trained)
                total += loss
                if needs_grad:
                    gradients[0][start : start + chunk] = computed[0]
                    for gradient, more in zip(gradients[1:], computed[1:], strict=True):
                        gradient += more
            ctx.save_for_backward(count, *gradients)
            return total / count

        @staticmethod
        @once_differentiable
        def backward(ctx, outer):
            count, *gradients = ctx.saved_tensors
            hidden, *trained = (gradient.mul_(outer / (SCALE * count)) for gradient in gradients)
            return hidden, None, None, None, None, None, *trained

    return ChunkedCrossEntropy


def compute_loss_and_gradients(
    part: Tensor, target: Tensor, make: Callable, trained: tuple
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A chunk's summed loss, and where `part` asks for gradients SCALE times its and those of the `trained` weights."""
    import torch

    with torch.set_grad_enabled(part.requires_grad):
        logits = make(part)
    logs = torch.log_softmax(logits.detach().float(), -1)
    loss = -logs.gather(1, target).sum()
    if not part.requires_grad:
        return loss, ()
    outer = logs.exp_().scatter_add_(1, target, -torch.ones_like(target, dtype=logs.dtype)).mul_(SCALE)
    return loss, torch.autograd.grad(logits, (part, *trained), outer.to(logits.dtype))  # softmax less one at the target
