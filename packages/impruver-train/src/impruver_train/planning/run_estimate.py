"""What a run will amount to, said before it: parameters, rows, tokens, steps."""

import math
from typing import Any

import numpy as np
from impruver_core.modeling.devices import DTYPES

from impruver_train import memory
from impruver_train.data.collator import MULTIPLE
from impruver_train.data.token_dataset import Facts
from impruver_train.memory import Places
from impruver_train.modeling.chunked_loss import LogitsPath
from impruver_train.modeling.model_size import Size


def longest(sizes: Any) -> int:
    """Places of the longest row or pack in a batch."""
    return -(-int(np.max(sizes)) // MULTIPLE) * MULTIPLE


def busiest(facts: Facts, layout: Any, logits: LogitsPath) -> Places:
    """What a row of the busiest batch takes, with those `logits` computed."""
    most = longest(layout.sizes)
    learned = facts.learned / facts.tokens if layout.order is not None else facts.most_learned / most
    return Places(most, learned if logits else 1.0)


def steps(rows: int, arguments: Any) -> tuple[int, int]:
    """Optimizer steps of an epoch and of the whole run over `rows` rows, as Trainer counts them."""
    batch = arguments.train_batch_size * arguments.world_size
    batches = rows // batch if arguments.dataloader_drop_last else math.ceil(rows / batch)
    epoch = max(1, math.ceil(batches / arguments.gradient_accumulation_steps))
    return epoch, arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * epoch)


def repeated(rows: int, arguments: Any) -> list[str]:
    """A line where some of `rows` rows (or packs) are seen twice an epoch, that every process have as many batches."""
    batch, processes = arguments.train_batch_size, arguments.world_size
    count = 0 if arguments.dataloader_drop_last or processes == 1 else -rows % (batch * processes)
    if not count:
        return []
    return [
        f"repeated: {count} of the {rows:,} are seen twice an epoch, as they are no multiple of {batch * processes} "
        f"({processes} processes by {batch}); trainer.dataloader_drop_last: true leaves the rest out instead"
    ]


def padding(sizes: Any, arguments: Any) -> tuple[float, float]:
    """Share of the places in an epoch's batches that hold padding, and the mean length of a batch; both exact.

    For length grouping, whose batches depend on the shuffle, the mean of a few epochs.
    """
    widths = -(-np.asarray(sizes, dtype=np.int64) // MULTIPLE) * MULTIPLE
    batch = arguments.train_batch_size
    strategy = str(getattr(arguments, "train_sampling_strategy", "random"))
    if strategy == "random":
        full, last = divmod(len(widths), batch)
        lasts = 0 if arguments.dataloader_drop_last else last
        places = full * batch * longest_of(widths, batch) + lasts * longest_of(widths, lasts)
        count = full + (lasts > 0)
        tokens = np.sum(sizes) * (full * batch + lasts) / len(widths)
    else:
        orders = epochs(sizes, strategy, batch * arguments.gradient_accumulation_steps)
        batches = [order[at : at + batch] for order in orders for at in range(0, len(order), batch)]
        if arguments.dataloader_drop_last:
            batches = [part for part in batches if len(part) == batch] or batches
        places = sum(int(widths[part].max()) * len(part) for part in batches)
        tokens, count = sum(int(sizes[part].sum()) for part in batches), len(batches)
    return 1 - tokens / places, places / count / min(batch, len(widths))


def longest_of(widths: Any, drawn: int) -> float:
    """The expected longest of `drawn` rows without replacement: each length by the chance that it is the longest."""
    if not 0 < drawn <= len(widths):
        return 0.0
    values, counts = np.unique(widths, return_counts=True)
    below = np.cumsum(counts)
    log = math.lgamma(len(widths) + 1) - math.lgamma(len(widths) - drawn + 1)
    chance = np.array(
        [
            math.exp(math.lgamma(count + 1) - math.lgamma(count - drawn + 1) - log) if count >= drawn else 0.0
            for count in below.tolist()
        ]
    )
    return float(np.sum(values * np.diff(chance, prepend=0.0)))


def epochs(sizes: Any, strategy: str, group: int) -> list[Any]:
    """Orders of the rows in a few epochs of a sampling strategy."""
    if strategy != "group_by_length":
        return [np.arange(len(sizes))]
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    lengths = np.asarray(sizes).tolist()
    draws = [torch.Generator().manual_seed(number) for number in range(4)]
    return [np.array(get_length_grouped_indices(lengths, group, generator=draw)) for draw in draws]


def lines(
    size: Size, config: Any, facts: Facts | None, layout: Any, arguments: Any, precision: Any, bits: int | None
) -> list[str]:
    """What the run amounts to, line by line; tokens are one epoch's.

    `facts` and `layout` are None where the rows are yet to be made, `bits` 4 or 8 for a quantized base.
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
    epoch, whole = steps(len(layout.sizes), arguments)
    waste, width = padding(layout.sizes, arguments)
    processes = arguments.world_size
    places = busiest(facts, layout, size.logits)
    return [
        *told,
        f"rows: {rows:,}; tokens an epoch: {facts.tokens:,}, {learned:,} learned ({learned / facts.tokens:.0%})",
        *([layout.note] if layout.note else []),
        f"padding: {waste:.1%} of a batch, which is {arguments.train_batch_size} by {width:,.0f} on average",
        f"steps: {epoch:,} an epoch, {whole:,} in all",
        *repeated(len(layout.sizes), arguments),
        memory.told(memory.estimate(size, config, arguments, precision, bits, places), processes),
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
