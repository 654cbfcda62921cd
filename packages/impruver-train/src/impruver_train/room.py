"""What a run needs of disk and memory: room for its checkpoints, and what to change where memory was not enough."""

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.files.safe import need_room, size_text

from impruver_train.memory import STATE, Places, checkpointed, estimate

TOKENIZER_BYTES = 100  # of tokenizer.json, for an entry of the vocabulary
WORTH = 0.01  # of the greatest effect
LORA_SHARE = 0.02  # of the weights that an adapter trains, more or less


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
        need_room(output_dir, max(checkpoint, count * checkpoint - there) + weights)
    except ImpruverError as error:
        raise ImpruverError(
            f"{error}: {count} checkpoints of {size_text(checkpoint)} and the result. Make room, set "
            "trainer.save_total_limit: 1 or a larger trainer.save_steps, or name another output_dir"
        ) from None


def memory_advice(plan: Any, places: Places, bits: int | None) -> list[str]:
    """What to set where memory was not enough, with what each saves of this run, the greatest effect first."""
    now = peak(plan, places, bits)
    options = [(now - left, text) for left, text in ways_out(plan, places, bits)] if now is not None else []
    options.sort(reverse=True)
    worth = [(saved, text) for saved, text in options if saved > WORTH * options[0][0]]
    told = [f"{text} (about {size_text(saved)} less)" for saved, text in worth]
    return told or ["smaller batches, trainer.gradient_checkpointing: true, shorter rows"]


def peak(plan: Any, places: Places, bits: int | None, size: Any = None, **arguments: Any) -> int | None:
    """The estimate's peak in bytes with other training `arguments`, or another `size`; None where it knows none."""
    changed = copy(plan.arguments)
    for name, value in arguments.items():
        setattr(changed, name, value)
    found = estimate(size or plan.size, plan.config.get_text_config(), changed, plan.precision, bits, places)
    return None if found is None else found.peak


def ways_out(plan: Any, places: Places, bits: int | None) -> Iterator[tuple[int, str]]:
    """(peak in bytes, what to set) for all that would take less."""
    arguments, size = plan.arguments, plan.size
    batch = arguments.per_device_train_batch_size
    if batch > 1:
        steps = batch * arguments.gradient_accumulation_steps
        text = f"trainer.per_device_train_batch_size: 1 with trainer.gradient_accumulation_steps: {steps}"
        smaller = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": steps}
        yield peak(plan, places, bits, **smaller), f"{text}, the same batch in smaller parts"
    if not checkpointed(arguments):
        text = "trainer.gradient_checkpointing: true, about a third slower"
        yield peak(plan, places, bits, gradient_checkpointing=True), text
    half = places._replace(longest=places.longest // 2)
    shorter = f"tokenizer.max_tokens_count: {half.longest} for rows of at most half the length (compose)"
    yield peak(plan, half, bits), shorter
    if size.trainable == size.total:
        small = replace(size, trainable=int(LORA_SHARE * size.total))
        yield peak(plan, places, bits, small), "a `lora` section: a small part of the weights is trained"
    elif not bits:
        yield peak(plan, places, 4), "model.load_in_4bit: true"
    if STATE.get(arguments.optim.value, 8) == 8 and find_spec("bitsandbytes"):
        yield peak(plan, places, bits, optim="adamw_bnb_8bit"), "trainer.optim: adamw_bnb_8bit"
