"""impruver-train, step by step: check, count, build, train, finish."""

import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from impruver_core.cli.console import result, say
from impruver_core.errors import ImpruverError
from impruver_core.recipe.load import Recipe, resolved, save_recipe
from impruver_core.recipe.lookup import recipes_root

from impruver_train import build, checks, estimate, finish, metrics, packing, place, trial
from impruver_train.collate import make_collator
from impruver_train.plan import Plan, find_inputs, hash_inputs, plan_model, read_rows


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
    digests = hash_inputs(inputs) | place.base_digest(recipe.model.name)
    if not trial_steps and place.is_done(output_dir, resolved(recipe, absolute=True), digests, overwrite):
        result(f"{output_dir} holds this very run, finished: nothing to do (--overwrite trains anew)")
        return
    with redirect_stdout(sys.stderr):  # what libraries print is no result of ours
        quiet_libraries()
        plan = plan_model(
            recipe.model,
            recipe.tokenizer,
            recipe.lora,
            recipe.trainer | recipe.ddp,
            run_name=recipe_name(recipe),
            output_dir=output_dir,
            recipe_dir=recipe.base_dir,
        )
        data_manifest = checks.check_data_manifest(inputs.get("train"), plan.tokenizer)
        val_is_to_come = bool(recipe.val_path) and "val" not in inputs
        room = recipe.tokenizer.max_tokens_count
        facts, rows, layout = read_rows(inputs, digests, plan, map_rows=not dry_run, room=room, to_come=val_is_to_come)
    bits = 4 if recipe.model.load_in_4bit else 8 if recipe.model.load_in_8bit else None
    text = build.text_config(plan.config)
    for line in estimate.lines(plan.size, text, facts.get("train"), layout, plan.arguments, plan.precision, bits):
        (result if dry_run else say)(line)
    if dry_run:
        return
    if trial_steps:
        for line in try_out(recipe, plan, rows["train"], layout.sizes, trial_steps):
            result(line)
        return
    with redirect_stdout(sys.stderr):
        ends = finish.turn_ends(plan.tokenizer, data_manifest)
        trainer = make_trainer(recipe, plan, rows, ends)
        writes = trainer.is_world_process_zero()
        if writes:
            place.take(output_dir, overwrite)
            save_recipe(recipe, output_dir / place.RECIPE)  # first of all: without a manifest it marks unfinished work
        model = run(trainer)
        if not writes:  # of several processes one alone writes
            return
        finish.save_model(model, output_dir, plan.config, plan.vocabulary, plan.new_ids)
        finish.save_tokenizer(plan.tokenizer, recipe.tokenizer.name or recipe.model.name, output_dir)
        finish.save_held_out(inputs.get("val"), output_dir)
        more = {"counts": estimate.counts(plan.size, facts["train"], trainer.state.global_step), "end_of_turn": ends}
        described = finish.describe_inputs(inputs, facts, digests, recipe.model.name)
        finish.write_manifest(
            output_dir, resolved(recipe, absolute=True), plan.tokenizer, described, data_manifest, more
        )
    result(f"wrote {'the model' if recipe.lora is None else 'the adapter'} to {output_dir}")


def quiet_libraries() -> None:
    """No progress bars but ours, and none of the warnings that libraries have for each other."""
    import warnings

    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="(transformers|peft|torch|accelerate)")


def recipe_name(recipe: Recipe) -> str:
    """`family/name` of an installed recipe, the file's name of another."""
    path = Path(recipe.path).absolute()
    return str(path.relative_to(recipes_root()).with_suffix("")) if recipes_root() in path.parents else path.stem


def make_trainer(recipe: Recipe, plan: Plan, rows: dict[str, Any], ends: list[str]) -> Any:
    """Loads or makes the model and puts the recipe's Trainer around it."""
    model = make_model(recipe, plan)
    finish.set_generation(model, plan.tokenizer, ends)
    val = rows.get("val") if plan.arguments.eval_strategy != "no" else None
    callback = metrics.step_callback(Path(plan.arguments.output_dir) / "metrics.jsonl")
    return put_trainer(recipe, plan.tokenizer, model, plan.arguments, rows["train"], val, callback)


def make_model(recipe: Recipe, plan: Plan) -> Any:
    """Loads or makes the model."""
    model = build.build_model(
        recipe.model,
        plan.config,
        plan.precision,
        plan.arguments,
        vocabulary=plan.vocabulary,
        lora=recipe.lora,
        new_ids=plan.new_ids,
        recipe_dir=recipe.base_dir,
    )
    if plan.packing:
        packing.require_apart(model)
    return model


def put_trainer(recipe: Recipe, tokenizer: Any, model: Any, arguments: Any, rows: Any, val: Any, callback: Any) -> Any:
    """The recipe's Trainer around `model`."""
    return build.build_trainer(
        recipe.trainer.get("class", "transformers.Trainer"),
        recipe.base_dir,
        model=model,
        args=arguments,
        data_collator=make_collator(tokenizer, packing.is_flash(model)),
        train_dataset=rows,
        eval_dataset=val,
        processing_class=tokenizer,
        callbacks=[callback],
    )


def try_out(recipe: Recipe, plan: Plan, rows: Any, sizes: Any, steps: int) -> list[str]:
    """Makes `steps` steps, in a folder of their own; what they took and the whole run will."""
    from torch.utils.data import Subset

    with redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        peak, watch = trial.Peak(), []
        items = trial.choose(sizes, plan.arguments, steps)
        arguments = trial.trial_arguments(plan.arguments, steps, folder)
        model = make_model(recipe, plan)
        part = Subset(rows, items)
        trainer = put_trainer(recipe, plan.tokenizer, model, arguments, part, None, trial.stopwatch(watch))
        peak.start()
        trial.run(trainer)
        return trial.report(watch, items, sizes, plan.arguments, peak.taken())


def run(trainer: Any) -> Any:
    """Trains; the model, with the best checkpoint's weights where the recipe asks for that."""
    metrics.pace_trackers(trainer)
    trainer.train()
    metrics.close_trackers()
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.config.use_cache = True  # Trainer turns it off for training; who loads the model wants it
    return model
