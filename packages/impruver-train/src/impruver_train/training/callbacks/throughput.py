"""How fast training goes: seconds, tokens and memory of each step, in speed.jsonl beside metrics.jsonl."""

import time
from pathlib import Path
from typing import Any

from impruver_core.io.jsonl import format_row
from impruver_core.system import get_process_memory

from impruver_train.training.callbacks.metrics_logger import cut_after

NAME = "speed.jsonl"


class Speed:
    """Callback that writes a row for each step into `path`: `step`, `seconds`, `tokens`, `memory` (bytes).

    Its `batches` are to be those of the step, as `failures.remember_batches` gives them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.batches: list[dict[str, Any]] = []
        self.began = 0.0

    def on_train_begin(self, args, state, control, **_):
        if state.is_world_process_zero:
            cut_after(self.path, state.global_step)

    def on_step_begin(self, args, state, control, **_):
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        if not state.is_world_process_zero:
            return
        seconds = round(time.perf_counter() - self.began, 4)
        tokens = args.world_size * sum(map(tokens_of, self.batches))
        with self.path.open("a", encoding="utf-8") as file:
            row = {"step": state.global_step, "seconds": seconds, "tokens": tokens, "memory": memory()}
            file.write(format_row(row) + "\n")


def tokens_of(batch: dict[str, Any]) -> int:
    """Tokens in a batch, without those of padding where it tells them."""
    return int(batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel())


def memory() -> int:
    """Bytes that this process holds: the most so far on a GPU, else now."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return get_process_memory()
