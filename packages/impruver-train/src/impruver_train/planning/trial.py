"""`--trial_steps`: a few real steps on the longest and on drawn batches, timed, and from them the whole run."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING

import numpy as np
from impruver_core.cli.console import format_duration
from impruver_core.system import get_peak_memory, get_process_memory, reset_peak_memory

from impruver_train.planning.memory import MIB
from impruver_train.planning.run_estimate import compute_padding, count_steps, round_up_longest

if TYPE_CHECKING:
    from numpy import ndarray
    from transformers import TrainingArguments


def build_trial_arguments(arguments: TrainingArguments, steps: int, folder: str) -> TrainingArguments:
    """The run's training arguments for `steps` steps that write nothing but into `folder`."""
    quiet = copy.copy(arguments)
    values = {"max_steps": steps, "output_dir": folder, "report_to": [], "load_best_model_at_end": False}
    values |= {"train_sampling_strategy": "sequential", "push_to_hub": False, "dataloader_num_workers": 0}
    for name, value in values.items():
        setattr(quiet, name, value)
    for name in ("eval_strategy", "save_strategy"):
        setattr(quiet, name, type(getattr(quiet, name))("no"))
    return quiet


def choose_items(sizes: ndarray, arguments: TrainingArguments, steps: int) -> list[int]:
    """Items for `steps` steps: first the longest, which take the most memory, then drawn ones."""
    batch = arguments.train_batch_size * arguments.world_size
    longest = np.argsort(-np.asarray(sizes), kind="stable")[:batch]
    drawn = np.random.default_rng(arguments.seed).permutation(len(sizes))
    count = steps * batch * arguments.gradient_accumulation_steps
    return np.concatenate([longest, np.resize(drawn, max(0, count - len(longest)))]).tolist()


def _read_clock() -> float:
    """Seconds, once a GPU has done what it was given."""
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


class StopwatchCallback:
    """Callback that puts the seconds of each optimizer step into `seconds`."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = seconds

    def on_step_begin(self, args, state, control, **_):
        self.seconds.append(-_read_clock())

    def on_step_end(self, args, state, control, **_):
        self.seconds[-1] += _read_clock()


class PeakMemory:
    """The most memory held since `start`: of the GPU, else of this process above what it held when this was made."""

    def __init__(self) -> None:
        import bitsandbytes  # noqa: F401  # imported now, that it does not count
        import torch
        from transformers import Trainer  # noqa: F401

        self.gpu = torch.cuda if torch.cuda.is_available() else None
        self.before = get_process_memory()

    def start(self) -> None:
        """Forgets the peak of before: loading may take more for a moment than training does."""
        if self.gpu:
            self.gpu.reset_peak_memory_stats()
        reset_peak_memory()

    def read(self) -> int | None:
        """Bytes; None where this system has no such figure."""
        if self.gpu:
            return self.gpu.max_memory_allocated()
        peak = get_peak_memory()
        return None if peak is None else peak - self.before


def format_trial(
    seconds: list[float], items: list[int], sizes: ndarray, arguments: TrainingArguments, peak: int | None
) -> list[str]:
    """What the steps took, and the whole run from that: by positions, less the first step, which warms up."""
    batch = arguments.train_batch_size * arguments.world_size
    each = batch * arguments.gradient_accumulation_steps
    timed = range(1 if len(seconds) > 1 else 0, len(seconds))
    batches = [items[start : start + batch] for start in range(timed.start * each, timed.stop * each, batch)]
    positions = sum(round_up_longest(sizes[rows]) * len(rows) for rows in batches)
    total, width = count_steps(len(sizes), arguments).total, compute_padding(sizes, arguments).width
    whole_run = sum(seconds[step] for step in timed) / positions * width * min(each, len(sizes)) * total
    lines = [f"trial: {len(seconds)} steps took {', '.join(f'{each:.2f}' for each in seconds)} s (the first warms up)"]
    if peak is not None:
        lines.append(f"memory: {max(peak, 0) / MIB:,.0f} MiB at its peak, measured on the longest batch")
    return [
        *lines,
        f"the whole run: {total:,} steps, about {format_duration(whole_run)}, without evaluation and saving",
    ]
