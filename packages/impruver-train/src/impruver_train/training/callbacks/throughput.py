"""How fast training goes: seconds, tokens and memory of each step, in speed.jsonl beside metrics.jsonl."""

import time
from pathlib import Path

from impruver_core.io.jsonl import format_row
from impruver_core.system import get_process_memory

from impruver_train.training.callbacks.metrics_logger import truncate_after_step
from impruver_train.training.callbacks.nan_guard import Batch

NAME = "speed.jsonl"


class ThroughputCallback:
    """Callback that writes a row for each step into `path`, tokens without padding where it is masked.

    `memory` is in bytes: the most so far on a GPU, else now. `batches`: the step's, as `record_batches` fills them in.
    """

    def __init__(self, path: Path, batches: list[Batch]) -> None:
        self.path, self.batches = path, batches
        self.start = 0.0
        self.recent = [0, 0.0]  # tokens and seconds since the last reading

    def on_train_begin(self, args, state, control, **_):
        if state.is_world_process_zero:
            truncate_after_step(self.path, state.global_step)

    def on_step_begin(self, args, state, control, **_):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        import torch

        if not state.is_world_process_zero:
            return
        seconds = round(time.perf_counter() - self.start, 4)
        masks = (batch.get("attention_mask", batch["input_ids"] >= 0) for batch in self.batches)
        tokens = sum(int(mask.sum()) for mask in masks)
        memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else get_process_memory()
        row = {"step": state.global_step, "seconds": seconds, "tokens": args.world_size * tokens, "memory": memory}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(format_row(row) + "\n")
        self.recent = [self.recent[0] + row["tokens"], self.recent[1] + seconds]

    def compute_recent_rate(self) -> float | None:
        """Tokens a second of the steps since this was called last; None where there was none."""
        (tokens, seconds), self.recent = self.recent, [0, 0.0]
        return tokens / seconds if seconds else None
