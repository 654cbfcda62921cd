"""Logits where something is learned and nowhere else, and their loss in pieces.

The vocabulary is most of what a small model takes: places of prompts and padding pay nothing for it, and of the rest
only a piece's logits are there at a time.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from functools import cache
from typing import Any

from impruver_train import distributed as sharding
from impruver_train.data.collator import IGNORED

# The statements of a known forward, from the learned places on: the head and what is done to its output (scaled, capped
# by tanh, in fp32), the usual loss, the output. Nothing else looks at logits, labels or the places to keep.
SLICED = re.compile(r" *hidden_states = slice_logits_to_keep\([\w.\[\]]+, logits_to_keep\)")


HEAD = re.compile(
    r"logits = self\.(\w+)\(hidden_states(\.to\((dtype=)?self\.\w+\.weight\.dtype\))?\)"
    r"( [*/] self[\w.]+)?(\.float\(\))?"
)


STEP = re.compile(
    r"logits = logits(\.float\(\))? [*/] (self|\w*config|final_logit_softcapping)\b[\w.]*"
    r"|logits = torch\.tanh\(logits\)"
)


LOSS = re.compile(
    r"loss = self\.loss_function\((logits=)?logits, (labels=)?labels, (vocab_size=)?self[\w.()]+(, \*\*\w+)?\)"
)


PASSED = re.compile(r"\b(labels=labels|logits_to_keep=logits_to_keep)(?=[,)])|^if labels is not None:$")


OUTPUT = re.compile(r"(?<=^return )(\w+\(.*)\blogits=logits(?=[,)])|(?<=^output = )\(logits,\)")


LOOKS = re.compile(r"\b(logits|labels|logits_to_keep)\b|^with ")  # what is done under a context is not told apart


KNOWN = {"torch", "transformers", "peft", "bitsandbytes"}  # whose modules make a place's logits of that place


def can_choose(model: Any) -> bool:
    """Whether `model` of transformers computes logits at chosen places of each row and the usual loss over them.

    Each statement of its forward must be known: others might look at places that are not there.
    """
    from transformers.loss.loss_utils import ForCausalLMLoss

    head = getattr(model, head_name(model) or "", None)
    if head is None or getattr(model, "loss_function", None) is not ForCausalLMLoss:
        return False
    parts = [model, *head.modules()]
    if any(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in parts):
        return False
    return all(type(part).__module__.partition(".")[0] in KNOWN for part in head.modules())


def plain_head(model: Any) -> Any:
    """The output matrix of `model`, which `can_choose`; None where it is wrapped or its weights are not its own."""
    from torch import nn

    base = getattr(model, "get_base_model", lambda: model)()
    head = base.get_output_embeddings()
    plain = type(head) is nn.Linear and set(head._parameters) == {"weight", "bias"}
    return head if plain and getattr(base, head_name(base) or "", None) is head else None


def head_name(model: Any) -> str | None:
    """The attribute of `model` that makes its logits, if nothing unknown is done with them."""
    lines = statements(type(model).forward)
    start = next((at for at, line in enumerate(lines) if SLICED.fullmatch(line)), len(lines))
    made = HEAD.fullmatch(lines[start + 1]) if start + 1 < len(lines) else None
    lines = [line.strip() for line in lines]
    end = next((at for at, line in enumerate(lines) if LOSS.fullmatch(line)), None)
    if made is None or end is None:
        return None
    steps = [line for line in lines[start + 2 : end] if not STEP.fullmatch(line)]
    others = lines[:start] + steps + [OUTPUT.sub(r"\1", line, count=1) for line in lines[end + 1 :]]
    return None if any(LOOKS.search(PASSED.sub("", line)) for line in others) else made[1]


def statements(forward: Any) -> list[str]:
    """The lines of a forward, each a whole statement without comments.

    There are none without source, or where what wraps it is not transformers' own.
    """
    while hasattr(forward, "__wrapped__"):
        if not getattr(forward, "__globals__", {}).get("__name__", "").startswith("transformers."):
            return []
        forward = forward.__wrapped__
    try:
        made = ast.parse(textwrap.dedent(inspect.getsource(forward))).body[0]
    except (OSError, TypeError, SyntaxError):  # made while the program runs, or no function
        return []
    if not isinstance(made, ast.FunctionDef):
        return []
    body = made.body[1:] if ast.get_docstring(made) else made.body
    return ast.unparse(ast.Module(body, [])).splitlines()


PIECE = 256  # places


SCALE = 1024  # of gradients in forward: fp16 holds small ones of a sum as well as those of a scaled loss


def may_choose(arguments: Any, own_trainer: bool) -> bool:
    """Whether nothing but the model's loss looks at logits or at the labels' shape in a run of these arguments.

    Smoothed labels, a Trainer of one's own and Liger's loss do; compiled code wants shapes that don't change, and
    DataParallel splits a batch by rows.
    """
    others = (arguments.label_smoothing_factor, arguments.use_liger_kernel, arguments.torch_compile, own_trainer)
    return not any(others) and arguments.n_gpu <= 1 and getattr(arguments, "parallelism_config", None) is None


def may_fuse(arguments: Any, trains_head: bool) -> bool:
    """Whether the output matrix may be applied in pieces: its weights are whole, and fp16 can hold their gradient."""
    return not (sharding.by_fsdp(arguments) or sharding.stage(arguments) == 3 or (arguments.fp16 and trains_head))


def choose_learned(batch: dict[str, Any]) -> dict[str, Any]:
    """`batch` with `logits_to_keep`, a bool for each place."""
    return {**batch, "logits_to_keep": next_labels(batch["labels"]) != IGNORED}


def next_labels(labels: Any) -> Any:
    """The label that follows each place, of labels (rows, places)."""
    from torch.nn.functional import pad

    return pad(labels[:, 1:], (0, 1), value=IGNORED)


def take_loss_in_pieces(model: Any, fuse: bool) -> None:
    """Has `model`, whose loss is transformers' of causal models, compute it by `loss_in_pieces`.

    `fuse`: its `plain_head` is applied to pieces of the chosen places too.
    """
    getattr(model, "get_base_model", lambda: model)().loss_function = loss_in_pieces
    head = plain_head(model) if fuse else None
    if head is not None:
        whole = head.forward

        def forward(hidden: Any) -> Any:
            if hidden.dim() > 2:  # chosen places have lost their rows: two dimensions
                return whole(hidden)
            return Unmade(hidden, whole, [weight for weight in head.parameters() if weight.requires_grad])

        head.forward = forward


class Unmade:
    """Logits (places, vocabulary) that are yet to be made from `given`, by the head and what a forward does to them.

    No tuple nor dataclass, whose tensors those who wrap a model look for.
    """

    def __init__(self, given: Any, make: Callable[[Any], Any], trained: list[Any]):
        self.given, self.make, self.trained = given, make, trained

    def then(self, step: Callable[[Any], Any], factor: Any = 1.0) -> Any:
        if not isinstance(factor, int | float):  # a tensor may be trained: it gets its gradient of logits that are made
            return step(self.make(self.given))
        return Unmade(self.given, lambda part: step(self.make(part)), self.trained)

    def float(self) -> "Unmade":
        return self.then(lambda logits: logits.float())

    def __mul__(self, factor: Any) -> Any:
        return self.then(lambda logits: logits * factor, factor)

    def __truediv__(self, factor: Any) -> Any:
        return self.then(lambda logits: logits / factor, factor)

    @classmethod
    def __torch_function__(cls, function: Callable, types: Any, given: tuple, named: Any = None) -> "Unmade":
        return given[0].then(function)


def loss_in_pieces(logits: Any, labels: Any, vocab_size: int, **given: Any) -> Any:
    """transformers' ForCausalLMLoss of chosen logits (places, vocabulary), made or not, of which little is in fp32.

    Where all logits were asked for it is ForCausalLMLoss itself.
    """
    import torch
    from transformers.loss.loss_utils import ForCausalLMLoss

    if not isinstance(logits, Unmade):
        if logits.dim() > 2:
            return ForCausalLMLoss(logits, labels, vocab_size, **given)
        logits = Unmade(logits, lambda part: part, [])
    following, count = next_labels(labels), given.get("num_items_in_batch")
    following = following[following != IGNORED].to(logits.given.device)
    count = torch.as_tensor(len(following) if count is None else count, device=following.device)
    return piecewise().apply(logits.given, following, count, logits.make, torch.is_grad_enabled(), *logits.trained)


@cache
def piecewise() -> Any:
    """The autograd function: summed cross entropy of the logits that `make` makes of `given`'s places, over `count`.

    Gradients of `given` and of the weights that `make` trains are made as the loss is (as in Liger-Kernel and other
    fused losses). They are those of the sum: its count, and the scale of fp16's loss, come in backward.
    """
    import torch
    from torch.autograd.function import once_differentiable

    class Piecewise(torch.autograd.Function):
        @staticmethod
        def forward(ctx, given, following, count, make, learns, *trained):
            # A weight's is a sum over pieces: in fp32, of which autograd makes the weight's own dtype.
            sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in trained]
            gradients = [torch.zeros_like(given), *sums] if learns else []
            total = torch.zeros((), device=given.device)
            for at in range(0, len(given), PIECE):
                part = given[at : at + PIECE].detach().requires_grad_(learns)
                loss, made = loss_and_gradients(part, following[at : at + PIECE, None], make, trained)
                total += loss
                if learns:
                    gradients[0][at : at + PIECE] = made[0]
                    for gradient, more in zip(gradients[1:], made[1:], strict=True):
                        gradient += more
            ctx.save_for_backward(count, *gradients)
            return total / count

        @staticmethod
        @once_differentiable
        def backward(ctx, outer):
            count, given, *trained = ctx.saved_tensors
            given, *trained = (gradient.mul_(outer / (SCALE * count)) for gradient in (given, *trained))
            return given, None, None, None, None, *trained

    return Piecewise


def loss_and_gradients(part: Any, label: Any, make: Callable, trained: tuple) -> tuple[Any, tuple]:
    """A piece's summed loss, and where `part` asks for gradients SCALE times its and those of the `trained` weights."""
    import torch

    with torch.set_grad_enabled(part.requires_grad):
        logits = make(part)
    logs = torch.log_softmax(logits.detach().float(), -1)
    loss = -logs.gather(1, label).sum()
    if not part.requires_grad:
        return loss, ()
    outer = logs.exp_().scatter_add_(1, label, -torch.ones_like(label, dtype=logs.dtype)).mul_(SCALE)
    return loss, torch.autograd.grad(logits, (part, *trained), outer.to(logits.dtype))  # softmax less one at the label
