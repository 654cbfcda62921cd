"""Stops a training whose loss, gradient or weights are not finite, and names the rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from impruver_core.errors import CheckFailedError, ImpruverError
from impruver_core.io.integrity import FileState, check_unchanged

from impruver_train.checkpointing.checkpoints import list_complete_checkpoints
from impruver_train.data.token_files import TokenFiles, read_token_rows
from impruver_train.modeling.finite_weights import check_finite_checkpoint

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer

Batch = dict[str, "Tensor"]


def record_batches(trainer: Trainer, batches: list[Batch]) -> None:
    """Has `batches` always hold those of the step that `trainer` is at."""
    get = trainer.get_batch_samples

    def get_and_record(*args, **kwargs):
        samples, count = get(*args, **kwargs)
        batches[:] = samples
        return samples, count

    trainer.get_batch_samples = get_and_record


class NonFiniteGuardCallback:
    """Callback that ends a training whose numbers are none any more, before that is saved as its work.

    `batches`: those of the step, as `record_batches` fills them in. `start`: the checkpoint that is resumed from, whose
    weights are looked at first. `states`: of the files of rows when they were hashed.
    """

    def __init__(
        self,
        output_dir: Path,
        train_files: TokenFiles,
        batches: list[Batch],
        start: Path | None,
        states: Mapping[Path, FileState],
    ) -> None:
        self.output_dir, self.train_files, self.batches = output_dir, train_files, batches
        self.start, self.states = start, states

    def on_train_begin(self, args, state, control, model=None, **_):
        if self.start is not None:
            check_finite_checkpoint(model, self.start)

    def on_log(self, args, state, control, logs=None, **_):
        values = {"loss": (logs or {}).get("loss", 0.0)}
        if not args.fp16:  # whose scaler skips a step with such a gradient
            values["gradient's norm"] = (logs or {}).get("grad_norm", 0.0)
        for what, value in values.items():
            if not math.isfinite(value):
                raise self.make_error(f"the {what} is {value}", state.global_step)

    def on_save(self, args, state, control, model=None, **_):
        if not all(weight.isfinite().all() for weight in model.parameters() if weight.requires_grad):
            raise self.make_error("a weight is no finite number", state.global_step)

    on_train_end = on_save

    def make_error(self, what: str, step: int) -> CheckFailedError:
        """The error that names the step, its rows and the last good checkpoint."""
        good = list_complete_checkpoints(self.output_dir, resumable=True)
        return CheckFailedError(
            f"{what} after step {step}, on {self.describe_rows()}: training stopped, nothing of it was saved; the last "
            f"good checkpoint is {good[-1] if good else 'none'}. A lower trainer.learning_rate, a lower "
            "trainer.max_grad_norm, or model.dtype: fp32, is what helps most often"
        )

    def describe_rows(self) -> str:
        """The step's rows by their lines, unless the file was changed or removed since it was read."""
        try:
            check_unchanged({path: state for path, state in self.states.items() if path in self.train_files.parts})
            lines = find_lines(self.train_files, self.batches).items()
            return " and ".join(f"lines {', '.join(map(str, numbers))} of {part}" for part, numbers in lines)
        except (ImpruverError, OSError, LookupError, TypeError):
            return f"rows of {self.train_files}, which was changed since, so that their lines can't be told"


def find_lines(files: TokenFiles, batches: list[Batch]) -> dict[Path, list[int]]:
    """The lines of each part of `files` whose rows are in `batches`; of equal rows the first."""
    wanted = {ids for batch in batches for ids in _list_rows(batch)}
    lines: dict[Path, list[int]] = {}
    for part, line, _, row in read_token_rows(files):
        if not wanted:
            break
        ids = tuple(row["input_ids"])
        if ids in wanted:
            wanted.discard(ids)
            lines.setdefault(part, []).append(line)
    return lines


def _list_rows(batch: Batch) -> Iterator[tuple[int, ...]]:
    """The ids of each row in a batch, without padding; packed rows one by one (their positions begin at 0)."""
    masks = batch.get("attention_mask")
    for index, ids in enumerate(batch["input_ids"]):
        if "position_ids" in batch:
            ends = [
                *(end for end, position in enumerate(batch["position_ids"][index].tolist()) if position == 0),
                len(ids),
            ]
            yield from (tuple(ids[start:end].tolist()) for start, end in pairwise(ends))
        elif masks is not None:
            yield tuple(ids[: int(masks[index].nonzero()[-1]) + 1].tolist())
        else:
            yield tuple(ids.tolist())
