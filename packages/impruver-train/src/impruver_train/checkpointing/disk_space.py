"""Space for checkpoints."""

import math
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.disk_space import check_free_space, format_size

from impruver_train.memory import STATE

TOKENIZER_BYTES = 100  # of tokenizer.json, for an entry of the vocabulary


def saves(arguments: Any, steps_of_epoch: int, steps: int) -> int:
    """How many checkpoints lie on the disk at once, at most: those kept, and the one that is being written."""
    paces = {"steps": arguments.save_steps, "epoch": steps_of_epoch, "no": math.inf}
    if arguments.save_strategy.value == "best":  # at each evaluation at most
        paces["best"] = paces["epoch"] if arguments.eval_strategy.value == "epoch" else arguments.eval_steps
    every = paces[arguments.save_strategy.value]
    every = math.ceil(every * steps) if every < 1 else every
    count = 0 if every == math.inf else math.ceil(steps / every)
    kept = min(count, max(2, arguments.save_total_limit)) if arguments.save_total_limit else count
    return kept + 1


def check_disk(output_dir: Path, plan: Any, steps: tuple[int, int], start: Path | None) -> None:
    """ImpruverError where the disk has no room for what the run will save.

    `steps`: of an epoch and of all; `start`: the checkpoint to go on from, which is there already with those before.
    """
    arguments, trained = plan.arguments, plan.size.trainable
    weights = trained * plan.precision.trained.itemsize + plan.vocabulary * TOKENIZER_BYTES
    checkpoint = weights + trained * STATE.get(arguments.optim.value, 8)
    count = saves(arguments, *steps)
    there = sum(path.stat().st_size for path in output_dir.glob("*-*/**/*") if path.is_file()) if start else 0
    try:
        check_free_space(output_dir, max(checkpoint, count * checkpoint - there) + weights)
    except ImpruverError as error:
        raise ImpruverError(
            f"{error}: {count} checkpoints of {format_size(checkpoint)} and the result. Make room, set "
            "trainer.save_total_limit: 1 or a larger trainer.save_steps, or name another output_dir"
        ) from None
