"""What a run will amount to, said before it: parameters, rows, tokens, steps, memory, disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import check_free_space, format_size
from impruver_core.modeling.loading import DTYPES

from impruver_train.data.collator import MULTIPLE
from impruver_train.data.packing import PackingPlan
from impruver_train.data.token_dataset import TokenFileStats
from impruver_train.modeling.building import ModelSize
from impruver_train.modeling.chunked_loss import LogitsPath
from impruver_train.planning.memory import OPTIMIZER_BYTES, BatchShape, estimate_memory, format_estimate
from impruver_train.planning.plan import TrainingData, TrainingPlan

if TYPE_CHECKING:
    import torch
    from numpy import ndarray
    from transformers import TrainingArguments

TOKENIZER_BYTES = 100  # of tokenizer.json, for an entry of the vocabulary


class StepCount(NamedTuple):
    """Optimizer steps of an epoch and of the whole run, and an epoch's batches in each process."""

    epoch: int
    total: int
    batches: int


class Padding(NamedTuple):
    """The share of the positions in an epoch's batches that hold padding, and the mean length of a batch."""

    share: float
    width: float


def round_up_longest(sizes: ndarray) -> int:
    """Positions of the longest row or pack in a batch."""
    return -(-int(np.max(sizes)) // MULTIPLE) * MULTIPLE


def find_largest_batch_shape(stats: TokenFileStats, batches: PackingPlan, logits: LogitsPath) -> BatchShape:
    """The shape of the largest batch, with those `logits` computed."""
    longest = round_up_longest(batches.sizes)
    targets = stats.targets / stats.tokens if batches.packs is not None else stats.most_targets / longest
    return BatchShape(longest, targets if logits else 1.0)


def count_steps(rows: int, arguments: TrainingArguments) -> StepCount:
    """Optimizer steps over `rows` rows or packs, as Trainer counts them."""
    batch = arguments.train_batch_size * arguments.world_size
    batches = rows // batch if arguments.dataloader_drop_last else math.ceil(rows / batch)
    epoch = max(1, math.ceil(batches / arguments.gradient_accumulation_steps))
    total = arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * epoch)
    return StepCount(epoch, total, batches)


def _describe_repeated_rows(rows: int, arguments: TrainingArguments) -> list[str]:
    """A line where some of `rows` rows (or packs) are seen twice an epoch, that every process have as many batches."""
    batch, processes = arguments.train_batch_size, arguments.world_size
    count = 0 if arguments.dataloader_drop_last or processes == 1 else -rows % (batch * processes)
    line = (
        f"repeated: {count} of the {rows:,} are seen twice an epoch, as they are no multiple of {batch * processes} "
        f"({processes} processes by {batch}); trainer.dataloader_drop_last: true leaves the rest out instead"
    )
    return [line] if count else []


def compute_padding(sizes: ndarray, arguments: TrainingArguments) -> Padding:
    """The padding of items of these sizes, both numbers exact.

    For length grouping, whose batches depend on the shuffle, the mean of a few epochs.
    """
    widths = -(-np.asarray(sizes, dtype=np.int64) // MULTIPLE) * MULTIPLE
    batch = arguments.train_batch_size
    strategy = str(getattr(arguments, "train_sampling_strategy", "random"))
    if strategy == "random":
        full, last = divmod(len(widths), batch)
        lasts = 0 if arguments.dataloader_drop_last else last
        positions = full * batch * _expect_longest(widths, batch) + lasts * _expect_longest(widths, lasts)
        count = full + (lasts > 0)
        tokens = np.sum(sizes) * (full * batch + lasts) / len(widths)
    else:
        orders = _draw_epochs(sizes, strategy, batch * arguments.gradient_accumulation_steps)
        batches = [order[start : start + batch] for order in orders for start in range(0, len(order), batch)]
        if arguments.dataloader_drop_last:
            batches = [items for items in batches if len(items) == batch] or batches
        positions = sum(int(widths[items].max()) * len(items) for items in batches)
        tokens, count = sum(int(sizes[items].sum()) for items in batches), len(batches)
    return Padding(1 - tokens / positions, positions / count / min(batch, len(widths)))


def _expect_longest(widths: ndarray, drawn: int) -> float:
    """The expected longest of `drawn` rows without replacement: each length by the chance that it is the longest."""
    if not 0 < drawn <= len(widths):
        return 0.0
    values, counts = np.unique(widths, return_counts=True)
    log = math.lgamma(len(widths) + 1) - math.lgamma(len(widths) - drawn + 1)
    chance = [
        math.exp(math.lgamma(count + 1) - math.lgamma(count - drawn + 1) - log) if count >= drawn else 0.0
        for count in np.cumsum(counts).tolist()
    ]
    return float(np.sum(values * np.diff(chance, prepend=0.0)))


def _draw_epochs(sizes: ndarray, strategy: str, group: int) -> list[ndarray]:
    """Orders of the rows in a few epochs of a sampling strategy."""
    if strategy != "group_by_length":
        return [np.arange(len(sizes))]
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    lengths = np.asarray(sizes).tolist()
    draws = [torch.Generator().manual_seed(number) for number in range(4)]
    return [np.array(get_length_grouped_indices(lengths, group, generator=draw)) for draw in draws]


def format_summary(plan: TrainingPlan, data: TrainingData) -> list[str]:
    """What the run amounts to, line by line; tokens are one epoch's. Without rows only what the model tells."""
    size, precision, arguments = plan.size, plan.precision, plan.arguments
    share = size.trainable / size.total
    frozen = f"{plan.bits} bit" if plan.bits else format_dtype(precision.frozen)
    kinds = f"trained in {format_dtype(precision.trained)}{f', frozen in {frozen}' if share < 1 else ''}"
    lines = [
        f"parameters: {size.total:,} in all, {size.trainable:,} trained ({share:.2%}); {kinds}, "
        f"computed in {format_dtype(precision.compute)}"
    ]
    if data.batches is None:
        return [*lines, plan.logits_note]
    stats, sizes = data.stats["train"], data.batches.sizes
    steps, padding = count_steps(len(sizes), arguments), compute_padding(sizes, arguments)
    shape = find_largest_batch_shape(stats, data.batches, size.logits)
    rows, targets = stats.rows - stats.targetless_rows, f"{stats.targets:,} target tokens"
    return [
        *lines,
        f"rows: {rows:,}; tokens an epoch: {stats.tokens:,}, {targets} ({stats.targets / stats.tokens:.0%})",
        *([data.batches.note] if data.batches.note else []),
        f"padding: {padding.share:.1%} of a batch, which is {arguments.train_batch_size} by {padding.width:,.0f} on "
        "average",
        f"steps: {steps.epoch:,} an epoch, {steps.total:,} in all",
        *_describe_repeated_rows(len(sizes), arguments),
        format_estimate(estimate_memory(plan, shape, plan.bits), arguments.world_size),
        plan.logits_note,
    ]


def build_counts(size: ModelSize, stats: TokenFileStats, steps: int) -> dict[str, int]:
    """The manifest's counts; tokens are one epoch's."""
    return {
        "rows": stats.rows - stats.targetless_rows,
        "tokens": stats.tokens,
        "learned_tokens": stats.targets,
        "longest_row": stats.longest,
        "steps": steps,
        "parameters": size.total,
        "trained_parameters": size.trainable,
    }


def format_dtype(dtype: torch.dtype) -> str:
    """`bf16` of torch.bfloat16."""
    return next(name for name, long in DTYPES.items() if str(dtype) == f"torch.{long}")


def check_disk_space(output_dir: Path, plan: TrainingPlan, steps: StepCount, start: Path | None) -> None:
    """ImpruverError where the disk has no room for what the run will save.

    `start`: the checkpoint to resume from, which is there already with those before.
    """
    arguments, trained = plan.arguments, plan.size.trainable
    weights = trained * plan.precision.trained.itemsize + plan.vocabulary * TOKENIZER_BYTES
    checkpoint = weights + trained * OPTIMIZER_BYTES.get(arguments.optim.value, 8)
    count = _count_checkpoints_on_disk(arguments, steps)
    there = sum(path.stat().st_size for path in output_dir.glob("*-*/**/*") if path.is_file()) if start else 0
    try:
        check_free_space(output_dir, max(checkpoint, count * checkpoint - there) + weights)
    except ImpruverError as error:
        raise ImpruverError(
            f"{error}: {count} checkpoints of {format_size(checkpoint)} and the result. Make room, set "
            "trainer.save_total_limit: 1 or a larger trainer.save_steps, or name another output_dir"
        ) from None


def _count_checkpoints_on_disk(arguments: TrainingArguments, steps: StepCount) -> int:
    """How many checkpoints lie on the disk at once, at most: those that stay, and the one that is being written."""
    paces = {"steps": arguments.save_steps, "epoch": steps.epoch, "no": math.inf}
    if arguments.save_strategy.value == "best":  # at each evaluation at most
        paces["best"] = paces["epoch"] if arguments.eval_strategy.value == "epoch" else arguments.eval_steps
    every = paces[arguments.save_strategy.value]
    every = math.ceil(every * steps.total) if every < 1 else every
    count = math.ceil(steps.total / every)
    return (min(count, max(2, arguments.save_total_limit)) if arguments.save_total_limit else count) + 1
