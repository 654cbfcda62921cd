"""Stop on non-finite loss; name the rows."""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from impruver_core.errors import CheckFailedError
from impruver_core.io.jsonl import read_numbered_rows

from impruver_train.checkpointing import checkpoints


def remember_batches(trainer: Any) -> list[dict[str, Any]]:
    """A list that always holds the batches of the step that `trainer` is at."""
    kept: list[dict[str, Any]] = []
    take = trainer.get_batch_samples

    def taken(*args, **kwargs):
        batches, count = take(*args, **kwargs)
        kept[:] = batches
        return batches, count

    trainer.get_batch_samples = taken
    return kept


class Finite:
    """Callback that ends a training whose numbers are none any more, before that is saved as its work.

    `batches`: those of the step, as `remember_batches` gives them.
    """

    def __init__(self, output_dir: Path, train_path: Path) -> None:
        self.output_dir, self.train_path = output_dir, train_path
        self.batches: list[dict[str, Any]] = []

    def on_log(self, args, state, control, logs=None, **_):
        looked_at = {"loss": (logs or {}).get("loss", 0.0)}
        if not args.fp16:  # whose scaler skips a step with such a gradient
            looked_at["gradient's norm"] = (logs or {}).get("grad_norm", 0.0)
        for what, value in looked_at.items():
            if not math.isfinite(value):
                raise self.not_finite(f"the {what} is {value}", state.global_step)

    def on_save(self, args, state, control, model=None, **_):
        if not all(weight.isfinite().all() for weight in model.parameters() if weight.requires_grad):
            raise self.not_finite("a weight is no finite number", state.global_step)

    on_train_end = on_save

    def not_finite(self, what: str, step: int) -> CheckFailedError:
        lines = ", ".join(map(str, lines_of(self.train_path, self.batches)))
        good = checkpoints.whole(self.output_dir, to_go_on=True)
        return CheckFailedError(
            f"{what} after step {step}, on lines {lines} of {self.train_path}: training stopped, nothing of it was "
            f"saved; the last good checkpoint is {good[-1] if good else 'none'}. A lower trainer.learning_rate, a "
            "lower trainer.max_grad_norm, or model.dtype: fp32, is what helps most often"
        )


def lines_of(path: Path, batches: list[dict[str, Any]]) -> list[int]:
    """The lines of the JSONL at `path` whose rows are in `batches`; of equal rows the first."""
    wanted = {ids for batch in batches for ids in rows_of(batch)}
    found = []
    for line, row in read_numbered_rows(path):
        if not wanted:
            break
        ids = tuple(row["input_ids"])
        if ids in wanted:
            wanted.discard(ids)
            found.append(line)
    return found


def rows_of(batch: dict[str, Any]) -> Iterator[tuple[int, ...]]:
    """The ids of each row in a batch, without padding; packed rows one by one (their positions begin at 0)."""
    masks = batch.get("attention_mask")
    for number, ids in enumerate(batch["input_ids"]):
        if "position_ids" in batch:
            ends = [*(at for at, place in enumerate(batch["position_ids"][number].tolist()) if place == 0), len(ids)]
            yield from (tuple(ids[a:b].tolist()) for a, b in pairwise(ends))
        elif masks is not None:
            yield tuple(ids[: int(masks[number].nonzero()[-1]) + 1].tolist())
        else:
            yield tuple(ids.tolist())
