"""impruver-train, step by step: check, count, build, train, finish."""

import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from impruver_core.chat_template.selection import get_end_of_turn
from impruver_core.cli.console import log_info, print_result
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import hash_file
from impruver_core.recipe.loading import Recipe, resolve_recipe, save_recipe
from impruver_core.recipe.paths import find_local

from impruver_train import distributed as sharding
from impruver_train import memory as room
from impruver_train import signals
from impruver_train.checkpointing import checkpoints, disk_space, resume
from impruver_train.checkpointing import output_dir as place
from impruver_train.data import token_dataset as data
from impruver_train.data import validation
from impruver_train.data.packing import Layout
from impruver_train.distributed import part
from impruver_train.modeling import building as build
from impruver_train.planning import run_estimate as estimate
from impruver_train.planning.plan import Plan, find_inputs, plan_model, read_rows
from impruver_train.saving import artifacts as finish
from impruver_train.saving import html_report as page
from impruver_train.training import failures
from impruver_train.training.callbacks import checkpointer as stopping
from impruver_train.training.callbacks import nan_guard, trackers
from impruver_train.training.callbacks.base import as_callback
from impruver_train.training.callbacks.throughput import NAME as SPEED
from impruver_train.training.callbacks.throughput import Speed
from impruver_train.training.trainer import make_trainer, run, try_out


def train(recipe: Recipe, dry_run: bool = False, overwrite: bool = False, trial_steps: int = 0) -> None:
    """Trains as `recipe` says and leaves the model in its output_dir; `dry_run` ends before weights.

    `trial_steps`: only so many steps are made and timed, and nothing is written.
    """
    if trial_steps < 0:
        raise ImpruverError(f"--trial_steps: {trial_steps} is below 0")
    if not recipe.output_dir:
        raise ImpruverError(f"{recipe.path}: output_dir is not set")
    output_dir = Path(recipe.output_dir).expanduser()
    inputs = find_inputs(recipe.train_path, recipe.val_path, recipe.path, dry_run)
    build.check_method(recipe.model, recipe.lora)
    digests = {name: hash_file(path) for name, path in inputs.items()} | place.base_digest(recipe.model.name)
    whole = resolve_recipe(recipe, absolute=True)
    place.check_apart(output_dir, find_local(recipe.model.name, recipe.base_dir) if recipe.model.name else None)
    found = place.look(output_dir, whole, digests, overwrite or trial_steps > 0)  # a trial writes nothing there
    if found == place.DONE:
        checkpoints.discard_stopped(output_dir)
        print_result(f"{output_dir} holds this very run, finished: nothing to do (--overwrite trains anew)")
        return
    given, unfinished = recipe.trainer.get("resume_from_checkpoint"), found == place.GOES_ON
    start, began = resume.find_start(output_dir, given, whole, digests, unfinished, overwrite)
    with redirect_stdout(sys.stderr), signals.ending_at_once():  # what libraries print is no result of ours
        quiet_libraries()
        ready = prepare(recipe, whole, output_dir, inputs, digests, start, began, dry_run)
    tell(ready, dry_run)
    if dry_run:
        return
    if trial_steps:
        for line in try_out(recipe, ready.plan, ready.rows["train"], ready.layout.sizes, trial_steps):
            print_result(line)
        return
    with redirect_stdout(sys.stderr), signals.ending_at_once():
        fit(ready, overwrite)
    if ready.plan.arguments.process_index == 0:
        print_result(finish.last_line(output_dir, recipe.lora is not None))


@dataclass(frozen=True)
class Ready:
    """What is known and checked once weights may be loaded; `whole` is the resolved recipe.

    `layout` is None in a dry run whose rows are yet to be made.
    """

    recipe: Recipe
    whole: dict[str, Any]
    output_dir: Path
    inputs: dict[str, Path]
    digests: dict[str, str]
    facts: dict[str, data.Facts]
    rows: dict[str, Any]
    layout: Layout | None
    plan: Plan
    data_manifest: dict[str, Any]
    ends: list[str]
    start: Path | None
    began: Path | None


def prepare(
    recipe: Recipe,
    whole: dict[str, Any],
    output_dir: Path,
    inputs: dict[str, Path],
    digests: dict[str, str],
    start: Path | None,
    began: Path | None,
    dry_run: bool,
) -> Ready:
    """Makes all checks that need no weights."""
    plan = plan_model(recipe, output_dir)
    token_rows = recipe.lora is not None and (plan.new_ids or recipe.lora.get("trainable_token_indices"))
    sharding.check(plan.arguments, bool(token_rows), dry_run)
    data_manifest = validation.check_data_manifest(inputs.get("train"), plan.tokenizer)
    facts, rows, layout = read_rows(recipe, inputs, digests, plan, map_rows=not dry_run)
    ends = list(data_manifest.get("end_of_turn") or get_end_of_turn(plan.tokenizer))
    return Ready(
        recipe, whole, output_dir, inputs, digests, facts, rows, layout, plan, data_manifest, ends, start, began
    )


def tell(ready: Ready, dry_run: bool) -> None:
    """Says what the run amounts to and where it starts; ImpruverError where the disk has no room for it."""
    plan, model, layout = ready.plan, ready.recipe.model, ready.layout
    bits = build.bits_of(model)
    text = plan.config.get_text_config()
    facts = ready.facts.get("train")
    lines = estimate.lines(plan.size, text, facts, layout, plan.arguments, plan.precision, bits)
    for line in [*lines, plan.logits_note]:
        (print_result if dry_run else log_info)(line)
    steps = estimate.steps(len(layout.sizes), plan.arguments) if layout is not None else None
    resume.tell_start(ready.start, plan.arguments.world_size, plan.arguments, steps[1] if steps else None)
    if steps is not None:
        disk_space.check_disk(ready.output_dir, plan, steps, ready.start)


def fit(ready: Ready, overwrite: bool) -> None:
    """Loads, trains and writes, with what keeps the work in between: the folder held, signals and failures caught."""
    plan, output_dir = ready.plan, ready.output_dir
    writes = plan.arguments.process_index == 0  # of several processes one alone writes
    about = resume.about_run(ready.whole, ready.digests, plan.arguments.world_size)
    places = estimate.busiest(ready.facts["train"], ready.layout, plan.size.logits)
    advice = partial(room.memory_advice, plan, places, build.bits_of(ready.recipe.model))
    with (
        place.held(output_dir) if writes else nullcontext(),
        failures.told(output_dir, advice),
        signals.noting() as noted,
    ):
        finite = as_callback(nan_guard.Finite, output_dir, ready.inputs["train"])
        saving = as_callback(stopping.Saving, output_dir, noted, about, ready.start)
        speed = as_callback(Speed, output_dir / SPEED)
        trainer = make_trainer(ready.recipe, plan, ready.rows, ready.ends, [finite, saving, speed])
        if writes:
            place.take(output_dir, overwrite)
            checkpoints.discard_after(output_dir, ready.start)
            resume.note_start(output_dir, about, ready.began)  # first of all: it tells the folder as ours
            save_recipe(ready.recipe, output_dir / place.RECIPE)
        finite.batches = speed.batches = nan_guard.remember_batches(trainer)
        model = run(trainer, ready.start, given=ready.start is not None and ready.start == ready.began)
        weights = sharding.whole_weights(trainer)
        if writes:
            leave(ready, model, weights, trainer.state.global_step)
        trackers.close_trackers()
        part()


def leave(ready: Ready, model: Any, weights: dict[str, Any] | None, steps: int) -> None:
    """What a finished run leaves in its output_dir, the manifest last; what only an unfinished one needs goes."""
    recipe, plan, output_dir = ready.recipe, ready.plan, ready.output_dir
    finish.save_model(model, weights, output_dir, plan.config, plan.vocabulary, plan.new_ids)
    finish.save_tokenizer(plan.tokenizer, recipe.tokenizer.name or recipe.model.name, output_dir)
    finish.save_held_out(ready.inputs.get("val"), output_dir)
    more = {"counts": estimate.counts(plan.size, ready.facts["train"], steps), "end_of_turn": ready.ends}
    page.write_report(output_dir, ready.whole, more["counts"])
    described = finish.describe_inputs(ready.inputs, ready.facts, ready.digests, recipe.model.name)
    finish.write_manifest(output_dir, ready.whole, plan.tokenizer, described, ready.data_manifest, more)
    (output_dir / place.UNFINISHED).unlink(missing_ok=True)
    checkpoints.discard_stopped(output_dir)


def quiet_libraries() -> None:
    """No progress bars but ours, and none of the warnings that libraries have for each other."""
    import logging
    import warnings

    import datasets
    from transformers.utils.logging import disable_progress_bar

    datasets.disable_progress_bars()
    disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # transformers' word on its own default, for each class that is not called …ForCausalLM, such as GPT-2's
    logging.getLogger("transformers.modeling_utils").addFilter(lambda told: "loss_type=None" not in told.getMessage())
    warnings.filterwarnings("ignore", category=FutureWarning, module="(transformers|peft|torch|accelerate)")
