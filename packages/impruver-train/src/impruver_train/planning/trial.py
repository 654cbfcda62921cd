"""`--trial_steps`: a few real steps on the longest and on drawn batches, timed, and the whole run told from them."""

import copy
import time
from typing import Any

from impruver_core.cli.console import format_duration
from impruver_core.system import get_peak_memory, get_process_memory, reset_peak_memory

from impruver_train import memory
from impruver_train.planning import run_estimate as estimate


def trial_arguments(arguments: Any, steps: int, folder: str) -> Any:
    """The run's training arguments for `steps` steps that leave nothing behind but in `folder`."""
    quiet = copy.copy(arguments)
    values = {"max_steps": steps, "output_dir": folder, "report_to": [], "load_best_model_at_end": False}
    values |= {"train_sampling_strategy": "sequential", "push_to_hub": False, "dataloader_num_workers": 0}
    for name, value in values.items():
        setattr(quiet, name, value)
    for name in ("eval_strategy", "save_strategy"):
        setattr(quiet, name, type(getattr(quiet, name))("no"))
    return quiet


def choose(sizes: Any, arguments: Any, steps: int) -> list[int]:
    """Items for `steps` steps: first the longest, which take the most memory, then drawn ones."""
    import numpy as np

    batch = arguments.train_batch_size * arguments.world_size
    each = batch * arguments.gradient_accumulation_steps
    longest = np.argsort(-np.asarray(sizes), kind="stable")[:batch]
    drawn = np.random.default_rng(arguments.seed).permutation(len(sizes))
    items = np.concatenate([longest, np.resize(drawn, max(0, steps * each - len(longest)))])
    return items.tolist()


def places(sizes: Any, items: list[int], batch: int) -> int:
    """Places of these items in batches of `batch`, padding included."""
    batches = [items[at : at + batch] for at in range(0, len(items), batch)]
    return sum(estimate.longest(sizes[each]) * len(each) for each in batches)


def now() -> float:
    """Seconds, once a GPU has done what it was given."""
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


class Stopwatch:
    """Callback that puts the seconds of each optimizer step into `watch`."""

    def __init__(self, watch: list[float]) -> None:
        self.watch = watch

    def on_step_begin(self, args, state, control, **_):
        self.watch.append(-now())

    def on_step_end(self, args, state, control, **_):
        self.watch[-1] += now()


class Peak:
    """The most memory held since `start`: of the GPU, else of this process above what it held when this was made."""

    def __init__(self) -> None:
        import bitsandbytes  # noqa: F401  # imported now, that it does not count
        import torch
        from transformers import Trainer  # noqa: F401

        self.gpu = torch.cuda.is_available()
        self.before = get_process_memory()

    def start(self) -> None:
        """Forgets the peak of before: loading may take more for a moment than training does."""
        import torch

        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        reset_peak_memory()

    def taken(self) -> int | None:
        """Bytes; None where this system has no such figure."""
        import torch

        if self.gpu:
            return torch.cuda.max_memory_allocated()
        peak = get_peak_memory()
        return None if peak is None else peak - self.before


def report(watch: list[float], items: list[int], sizes: Any, arguments: Any, taken: int | None) -> list[str]:
    """What the steps took, and the whole run from that: by places, less the first step, which warms up."""
    batch = arguments.train_batch_size * arguments.world_size
    each = batch * arguments.gradient_accumulation_steps
    timed = range(1 if len(watch) > 1 else 0, len(watch))
    seconds = sum(watch[step] for step in timed)
    held = sum(places(sizes, items[step * each : (step + 1) * each], batch) for step in timed)
    _, whole = estimate.steps(len(sizes), arguments)
    _, width = estimate.padding(sizes, arguments)
    run = seconds / held * width * min(each, len(sizes)) * whole
    shown = ", ".join(f"{second:.2f}" for second in watch)
    lines = [f"trial: {len(watch)} steps took {shown} s (the first warms up)"]
    if taken is not None:
        lines.append(f"memory: {max(taken, 0) / memory.MIB:,.0f} MiB at its peak, measured on the longest batch")
    return [*lines, f"the whole run: {whole:,} steps, about {format_duration(run)}, without evaluation and saving"]
