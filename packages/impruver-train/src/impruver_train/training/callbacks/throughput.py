"""How fast training goes: seconds, tokens and memory of each step, in speed.jsonl beside metrics.jsonl."""

from __future__ import annotations

import time
from pathlib import Path

from impruver_core.io.jsonl import format_row
from impruver_core.system import get_process_memory

from impruver_train.training.callbacks.metrics_logger import truncate_after_step
from impruver_train.training.callbacks.nan_guard import Batch

NAME = "speed.jsonl"


class ThroughputCallback:
    """Callback that writes a row for each step into `path`: `step`, `seconds`, `tokens`, `memory` (bytes).

    `batches`: those of the step, as `record_batches` fills them in.
    """

    def __init__(self, path: Path, batches: list[Batch]) -> None:
        self.path, self.batches = path, batches
        self.start = 0.0

    def on_train_begin(self, args, state, control, **_):
        if state.is_world_process_zero:
            truncate_after_step(self.path, state.global_step)

    def on_step_begin(self, args, state, control, **_):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        if not state.is_world_process_zero:
            return
        seconds = round(time.perf_counter() - self.start, 4)
        tokens = args.world_size * sum(map(count_tokens, self.batches))
        with self.path.open("a", encoding="utf-8") as file:
            row = {"step": state.global_step, "seconds": seconds, "tokens": tokens, "memory": get_memory()}
            file.write(format_row(row) + "\n")


def count_tokens(batch: Batch) -> int:
    """Tokens in a batch, without padding where it is masked."""
    return int(batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel())


def get_memory() -> int:
    """Bytes that this process holds: the most so far on a GPU, else now."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else get_process_memory()
