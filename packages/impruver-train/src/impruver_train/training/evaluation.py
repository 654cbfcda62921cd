"""Evaluation losses that are the mean over all target tokens, whatever the batch size and the number of processes.

transformers averages over batches the mean of each batch's loss, so that a token in a batch of few target tokens counts
more than one among many, and counts the rows twice that fill up the last batches of several processes:

    targets of four rows     1   9   5   5        losses per token   4   2   2   2
    batches of 1             mean(4, 2, 2, 2)                = 2.5
    batches of 2             mean((4 + 9 * 2) / 10, 2)       = 2.1
    here                     (4 + (9 + 5 + 5) * 2) / 20      = 2.1    for every batch size
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from impruver_core.labels import IGNORE_INDEX

from impruver_train.modeling.chunked_loss import get_base

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel, Trainer, TrainingArguments
    from transformers.trainer_utils import EvalLoopOutput

COMPUTES_LOSS = ("compute_loss", "prediction_step", "evaluation_loop")  # what of a Trainer makes an evaluation's loss
PREFIX = "eval"  # of the metrics


@dataclass
class TargetLoss:
    """The summed loss of target tokens, and their number."""

    loss: float = 0.0
    targets: int = 0

    def add_batch(self, mean: Tensor, labels: Tensor) -> None:
        """Adds a batch of these `labels`, (batch, sequence), whose mean loss is `mean`."""
        targets = int((labels[..., 1:] != IGNORE_INDEX).sum())
        if targets:  # the mean of none is no number
            self.loss += float(mean) * targets
            self.targets += targets

    def compute_mean(self, trainer: Trainer) -> float:
        """The mean over the target tokens of all processes."""
        import torch

        if trainer.args.world_size > 1:
            sums = torch.tensor([[self.loss, self.targets]], dtype=torch.float64, device=trainer.args.device)
            self.loss, self.targets = trainer.accelerator.gather(sums).sum(0).tolist()
        return self.loss / self.targets if self.targets else float("nan")


def fill_batches(rows: Dataset, arguments: TrainingArguments) -> Dataset:
    """`rows` and as many without targets behind them as fill the last batch of each process.

    accelerate would fill them with the first rows, which would count twice; `dataloader_drop_last` would drop them.
    """
    from datasets import Dataset, concatenate_datasets

    missing = -len(rows) % (arguments.eval_batch_size * arguments.world_size)
    if not missing or (arguments.world_size == 1 and not arguments.dataloader_drop_last):
        return rows
    empty = {"input_ids": rows[0]["input_ids"][:1], "labels": [IGNORE_INDEX], "attention_mask": [1]}
    return concatenate_datasets([rows, Dataset.from_list([empty] * missing, features=rows.features)])


def weigh_evaluation(trainer: Trainer) -> None:
    """Has `trainer` report losses of evaluations as means over target tokens.

    A Trainer of one's own that computes the loss, or evaluates, in its own way goes on doing so.
    """
    from transformers import Trainer

    own = any(getattr(type(trainer), name) is not getattr(Trainer, name) for name in COMPUTES_LOSS)
    if own or trainer.compute_loss_func is not None:
        return
    total, predict, loop = TargetLoss(), trainer.prediction_step, trainer.evaluation_loop

    def prediction_step(model: PreTrainedModel, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> tuple:
        labels = inputs["labels"]
        losses = predict(model, inputs, *args, **kwargs)
        total.add_batch(losses[0], labels)
        return losses

    def evaluation_loop(
        loader: DataLoader, *args: Any, metric_key_prefix: str = PREFIX, **kwargs: Any
    ) -> EvalLoopOutput:
        total.loss, total.targets = 0.0, 0
        with averaging_own_batch(trainer), ignoring_router_loss(trainer.model):
            output = loop(loader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics[f"{metric_key_prefix}_loss"] = total.compute_mean(trainer)
        return output

    trainer.prediction_step, trainer.evaluation_loop = prediction_step, evaluation_loop


def add_evaluations(trainer: Trainer, first: str, others: Mapping[str, Dataset]) -> None:
    """Has `trainer` evaluate on the rows of `others`, too, and log them as `eval_NAME_loss` with its own `eval_loss`.

    That one is logged by the name `first` as well.
    """
    loop = trainer.evaluation_loop

    def evaluation_loop(
        loader: DataLoader, *args: Any, metric_key_prefix: str = PREFIX, **kwargs: Any
    ) -> EvalLoopOutput:
        output = loop(loader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if metric_key_prefix == PREFIX:
            output.metrics[f"{PREFIX}_{first}_loss"] = output.metrics[f"{PREFIX}_loss"]
            for name in others:
                prefix, loader = f"{PREFIX}_{name}", load_by_name(trainer, others, name)
                more = loop(loader, *args, metric_key_prefix=prefix, **kwargs)
                output.metrics[f"{prefix}_loss"] = more.metrics[f"{prefix}_loss"]
        return output

    trainer.evaluation_loop = evaluation_loop


def load_by_name(trainer: Trainer, rows: Mapping[str, Dataset], name: str) -> DataLoader:
    """The loader of `rows[name]`, by the name under which Trainer holds on to its workers where they persist."""
    own, trainer.eval_dataset = trainer.eval_dataset, dict(rows)
    try:
        return trainer.get_eval_dataloader(name)
    finally:
        trainer.eval_dataset = own


@contextmanager
def averaging_own_batch(trainer: Trainer) -> Iterator[None]:
    """Has a step of an evaluation give the mean over its own target tokens.

    In training, and in newer versions of transformers here as well, it is a part of the mean over those of all
    processes.
    """
    count = trainer._get_num_items_in_batch
    if trainer.args.n_gpu <= 1:  # DataParallel needs the count: its replicas have different numbers of target tokens
        trainer._get_num_items_in_batch = lambda *_: None
    try:
        yield
    finally:
        trainer._get_num_items_in_batch = count


@contextmanager
def ignoring_router_loss(model: PreTrainedModel) -> Iterator[None]:
    """Leaves the loss that balances experts out: it is of a batch as a whole, not of its tokens."""
    config = get_base(model).config.get_text_config()
    routes = getattr(config, "output_router_logits", False)
    if routes:
        config.output_router_logits = False
    try:
        yield
    finally:
        if routes:
            config.output_router_logits = True
