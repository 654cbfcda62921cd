"""The recipe's Trainer around its model: for the run, and for a few steps on trial."""

import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError
from impruver_core.recipe.loading import Recipe

from impruver_train import distributed as sharding
from impruver_train import signals
from impruver_train.checkpointing import resume
from impruver_train.config.training_arguments import trainer_class
from impruver_train.data import packing
from impruver_train.data.collator import make_collator
from impruver_train.modeling import building as build
from impruver_train.modeling import generation_config
from impruver_train.modeling import packed_attention as attention
from impruver_train.modeling.chunked_loss import LogitsPath, add_logits_to_keep, enable_chunked_loss
from impruver_train.modeling.logits_path import find_logits_path
from impruver_train.planning import run_estimate as estimate
from impruver_train.planning import trial
from impruver_train.planning.plan import Plan
from impruver_train.training.callbacks import metrics_logger as metrics
from impruver_train.training.callbacks import resume_settings, trackers
from impruver_train.training.callbacks.base import as_callback


def make_trainer(recipe: Recipe, plan: Plan, rows: dict[str, Any], ends: list[str], callbacks: list[Any]) -> Any:
    """Loads or makes the model and puts the recipe's Trainer around it."""
    model = make_model(recipe, plan)
    generation_config.set_generation(model, plan.tokenizer, ends)
    val = rows.get("val") if plan.arguments.eval_strategy != "no" else None
    callbacks = [as_callback(metrics.EachStep, Path(plan.arguments.output_dir) / "metrics.jsonl"), *callbacks]
    return put_trainer(recipe, plan, model, plan.arguments, rows["train"], val, callbacks)


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
    if plan.packing and plan.arguments.device.type == "cpu":
        attention.go_by_row(model)
    if not (sharding.by_fsdp(plan.arguments) or plan.arguments.deepspeed or build.bits_of(recipe.model)):
        model.to(plan.arguments.device)  # as Trainer will; flash attention runs nowhere else
    if plan.packing and sharding.stage(plan.arguments) == 3:
        warn("trainer.packing: two packed rows can't be tried on weights that ZeRO 3 has spread")
    elif plan.packing:
        precision = plan.precision
        packing.require_apart(model, precision.compute if precision.autocast else None)
    return model


def put_trainer(recipe: Recipe, plan: Plan, model: Any, arguments: Any, rows: Any, val: Any, callbacks: list) -> Any:
    """The recipe's Trainer around `model`; `arguments`: the plan's, or those of a trial."""
    finish_batch = dict
    path = settle_logits_path(model, plan)
    if path is not LogitsPath.ALL:
        finish_batch = add_logits_to_keep
        enable_chunked_loss(model, path)
    positions = getattr(plan.config.get_text_config(), "max_position_embeddings", None)
    collator = make_collator(plan.tokenizer, packing.is_flash(model), finish_batch, positions)
    return build_trainer(
        recipe.trainer.get("class"),
        recipe.base_dir,
        model=model,
        args=arguments,
        data_collator=signals.shielded(collator),
        train_dataset=rows,
        eval_dataset=val,
        processing_class=plan.tokenizer,
        callbacks=callbacks,
    )


def settle_logits_path(model: Any, plan: Plan) -> LogitsPath:
    """Which logits the loaded `model` computes: those that were planned, if it passes the test of it.

    Where it can't be tested (weights spread over processes) a small model of its class has to have been.
    """
    planned = plan.size.logits
    spread = sharding.by_fsdp(plan.arguments) or sharding.stage(plan.arguments) == 3
    autocast = plan.precision.compute if plan.precision.autocast else None
    path = planned if spread or not planned else find_logits_path(model, planned, autocast)
    if (spread or path is None) and not plan.size.logits_tested:
        path = LogitsPath.ALL
    path = planned if path is None else path
    if path < planned:
        which = "all positions" if path is LogitsPath.ALL else "target positions, held as a whole"
        warn(f"logits: of {which}, as this model fails the test of less; that takes more memory than estimated")
    return path


def build_trainer(class_path: str | None, recipe_dir: Path | None, **parts: Any) -> Any:
    """The Trainer that `trainer.class` names over its parts; what it refuses is an ImpruverError."""
    kind = trainer_class(class_path, recipe_dir)
    try:
        return kind(**parts)
    except (ValueError, TypeError, ImportError) as error:
        raise ImpruverError(f"trainer: {error}") from error
    except Exception as error:
        if class_path is None:
            raise
        raise ImpruverError(f"trainer.class: {class_path}: {type(error).__name__}: {error}") from error


def try_out(recipe: Recipe, plan: Plan, rows: Any, sizes: Any, steps: int) -> list[str]:
    """Makes `steps` steps, in a folder of their own; what they took and the whole run will."""
    from torch.utils.data import Subset
    from transformers import PrinterCallback

    with redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        peak, watch = trial.Peak(), []
        steps = min(steps, estimate.steps(len(sizes), plan.arguments)[1])
        items = trial.choose(sizes, plan.arguments, steps)
        arguments = trial.trial_arguments(plan.arguments, steps, folder)
        model = make_model(recipe, plan)
        part = Subset(rows, items)
        trainer = put_trainer(recipe, plan, model, arguments, part, None, [as_callback(trial.Stopwatch, watch)])
        peak.start()
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trial.report(watch, items, sizes, plan.arguments, peak.taken())


def run(trainer: Any, start: Path | None, given: bool) -> Any:
    """Trains, from the checkpoint `start` on; the model, with the best checkpoint's weights where that is asked for.

    `given`: the recipe names that checkpoint, and may have other settings than it.
    """
    if given:
        resume_settings.take_settings(trainer)
    trackers.pace_trackers(trainer)
    resume.keep_adapter_dtype(trainer.model)
    try:
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
    except resume.AlreadyTrained:
        resume.end_training(trainer)
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.config.use_cache = True  # Trainer turns it off for training; who loads the model wants it
    return model
