"""Which models of transformers make their logits of each place alone, as their forward's source says."""

import ast
import inspect
import re
import textwrap
from typing import Any

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
