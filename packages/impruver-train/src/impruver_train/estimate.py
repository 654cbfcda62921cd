"""What a run will amount to, said before it: parameters, rows, tokens, steps."""

import math
from typing import Any

from impruver_core.model import DTYPES

from impruver_train.build import Size
from impruver_train.data import Facts


def steps(rows: int, arguments: Any) -> tuple[int, int]:
    """Optimizer steps of an epoch and of the whole run over `rows` rows, as Trainer counts them."""
    batch = arguments.train_batch_size * arguments.world_size
    batches = rows // batch if arguments.dataloader_drop_last else math.ceil(rows / batch)
    epoch = max(1, math.ceil(batches / arguments.gradient_accumulation_steps))
    return epoch, arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * epoch)


def lines(size: Size, facts: Facts | None, arguments: Any, precision: Any, bits: int | None) -> list[str]:
    """What the run amounts to, line by line; tokens are one epoch's.

    `facts` is None where the rows are yet to be made, `bits` 4 or 8 for a quantized base.
    """
    share = size.trainable / size.total
    frozen = f", frozen in {f'{bits} bit' if bits else short(precision.frozen)}" if share < 1 else ""
    held = f"trained in {short(precision.trained)}{frozen}"
    told = [
        f"parameters: {size.total:,} in all, {size.trainable:,} trained ({share:.2%}); {held}, "
        f"computed in {short(precision.compute)}"
    ]
    if facts is None:
        return told
    rows, learned = facts.rows - facts.unlearned_rows, facts.learned
    epoch, whole = steps(rows, arguments)
    return [
        *told,
        f"rows: {rows:,}; tokens an epoch: {facts.tokens:,}, {learned:,} learned ({learned / facts.tokens:.0%})",
        f"steps: {epoch:,} an epoch, {whole:,} in all",
    ]


def counts(size: Size, facts: Facts, steps_done: int) -> dict[str, int]:
    """The manifest's counts; tokens are one epoch's."""
    return {
        "rows": facts.rows - facts.unlearned_rows,
        "tokens": facts.tokens,
        "learned_tokens": facts.learned,
        "longest_row": facts.longest,
        "steps": steps_done,
        "parameters": size.total,
        "trained_parameters": size.trainable,
    }


def short(dtype: Any) -> str:
    """`bf16` of torch.bfloat16."""
    return next(name for name, long in DTYPES.items() if str(dtype) == f"torch.{long}")
