"""What a run needs of disk and memory: room for its checkpoints, and what to change where memory was not enough."""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.files.safe import need_room, size_text

from impruver_train.build import text_config
from impruver_train.memory import STATE

TOKENIZER_BYTES = 100  # of tokenizer.json, for an entry of the vocabulary
WORTH = 0.01  # of the greatest effect


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


def memory_advice(plan: Any, longest: int, quantized: bool) -> list[str]:
    """What to set where memory was not enough, with what each saves of this run, the greatest effect first."""
    options = [*activation_options(plan, longest), *weight_options(plan, quantized)]
    options.sort(reverse=True)
    worth = [(saved, text) for saved, text in options if saved > WORTH * options[0][0]]
    return [f"{text} (about {size_text(saved)} less)" for saved, text in worth]


def activation_options(plan: Any, longest: int) -> list[tuple[float, str]]:
    """(bytes saved, what to set) of what is kept for the backward pass of one batch."""
    arguments, config = plan.arguments, text_config(plan.config)
    batch, wide = arguments.per_device_train_batch_size, plan.precision.compute.itemsize
    tokens = batch * math.ceil(longest / 8) * 8
    hidden = getattr(config, "hidden_size", 0)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    blocks = tokens * getattr(config, "num_hidden_layers", 0) * wide * (10 * hidden + 3 * inner)
    inputs = tokens * getattr(config, "num_hidden_layers", 0) * wide * hidden
    on = bool(getattr(arguments, "activation_checkpointing", False) or arguments.gradient_checkpointing)
    whole = (inputs if on else blocks) + tokens * plan.vocabulary * (wide + 8)  # logits, as fp32 with their gradient
    options = []
    if batch > 1:
        steps = batch * arguments.gradient_accumulation_steps
        text = f"trainer.per_device_train_batch_size: 1 with trainer.gradient_accumulation_steps: {steps}"
        options.append((whole * (1 - 1 / batch), f"{text}, the same batch in smaller parts"))
    if not on:
        options.append((blocks - inputs, "trainer.gradient_checkpointing: true, about a third slower"))
    shorter = longest // 2
    options.append((whole / 2, f"tokenizer.max_tokens_count: {shorter} for rows of at most half the length (compose)"))
    return options


def weight_options(plan: Any, quantized: bool) -> list[tuple[float, str]]:
    """(bytes saved, what to set) of what weights, gradients and optimizer hold all the time."""
    size, state = plan.size, STATE.get(plan.arguments.optim.value, 8)
    frozen = size.total - size.trainable
    options = []
    if not frozen:
        options.append((size.total * (4 + state) * 0.98, "a `lora` section: a small part of the weights is trained"))
    elif not quantized:
        options.append((frozen * (plan.precision.frozen.itemsize - 0.56), "model.load_in_4bit: true"))
    if state == 8 and find_spec("bitsandbytes"):
        options.append((size.trainable * 6, "trainer.optim: adamw_bnb_8bit"))
    return options
