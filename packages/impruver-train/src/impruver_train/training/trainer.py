"""The model and the recipe's Trainer around it: for the run, and for a few steps on trial."""

from __future__ import annotations

import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError
from impruver_core.io.model_files import get_context_length
from impruver_core.modeling.loading import load_adapter, load_model

from impruver_train import signals
from impruver_train.checkpointing.resume import AlreadyTrainedError, ResumePoint
from impruver_train.config.training_arguments import load_trainer_class
from impruver_train.data.collator import make_collator
from impruver_train.distributed import get_zero_stage, uses_fsdp
from impruver_train.modeling import packed_attention
from impruver_train.modeling.building import build_model, set_generation_config
from impruver_train.modeling.chunked_loss import LogitsPath, add_logits_to_keep, enable_chunked_loss
from impruver_train.modeling.logits_path import find_logits_path
from impruver_train.optimization.optimizers import set_optimizer, set_optimizer_mode
from impruver_train.planning import trial
from impruver_train.planning.plan import VAL, TrainingData, TrainingPlan
from impruver_train.planning.run_estimate import count_steps
from impruver_train.training.callbacks.run_callbacks import RunCallbacks, as_callback
from impruver_train.training.callbacks.trackers import build_trackers, reporting_nowhere
from impruver_train.training.evaluation import add_evaluations, fill_batches, weigh_evaluation
from impruver_train.training.failures import check_best_before_loading, translate_loading_errors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainingArguments


def build_run_trainer(plan: TrainingPlan, data: TrainingData, callbacks: RunCallbacks) -> Trainer:
    """Loads or makes the model and puts the recipe's Trainer around it."""
    model = load_trained_model(plan)
    set_generation_config(model, plan.tokenizer, data.end_of_turn)
    val = {}
    if plan.arguments.eval_strategy != "no":
        val = {role: fill_batches(rows, plan.arguments) for role, rows in data.datasets.items() if role != "train"}
    train, first, trackers = data.datasets["train"], val.pop(VAL, None), build_trackers(plan.arguments)
    with reporting_nowhere(plan.arguments):
        each = [*trackers, *callbacks.callbacks]
        trainer = build_trainer(plan, model, plan.arguments, train, first, each)
    weigh_evaluation(trainer)
    if data.val_name:
        add_evaluations(trainer, data.val_name, {role.partition(".")[2]: rows for role, rows in val.items()})
    callbacks.attach(trainer)
    return trainer


def load_trained_model(plan: TrainingPlan) -> PreTrainedModel:
    """Loads or makes the model; with packing, two packed rows are tried."""
    arguments, stage = plan.arguments, get_zero_stage(plan.arguments)
    sections = (plan.model, plan.lora, plan.recipe_dir)
    model = build_model(*sections, plan.config, plan.precision, arguments, plan.vocabulary, plan.new_ids, plan.adapter)
    if plan.packing and arguments.device.type == "cpu":
        packed_attention.enable_rowwise_attention(model)
    if not (uses_fsdp(arguments) or arguments.deepspeed or plan.bits):
        model.to(arguments.device)  # as Trainer will; flash attention runs nowhere else
    if plan.packing and stage == 3:
        warn("trainer.packing: two packed rows can't be tried on weights that ZeRO 3 has spread")
    elif plan.packing:
        packed_attention.require_row_isolation(model, plan.precision.autocast_dtype)
    return model


def load_finished_model(plan: TrainingPlan, output_dir: Path) -> PreTrainedModel:
    """Loads the model that a finished run left in `output_dir`."""
    dtype = plan.precision.trained if plan.lora is None else plan.precision.frozen
    section = replace(plan.model, name=str(output_dir)) if plan.lora is None else plan.model
    model = load_model(section, dtype, device=str(plan.arguments.device), search_dir=plan.recipe_dir)
    return model if plan.lora is None else load_adapter(model, output_dir, plan.vocabulary)


def build_trainer(
    plan: TrainingPlan, model: PreTrainedModel, arguments: TrainingArguments, rows: Any, val: Any, callbacks: list
) -> Trainer:
    """The Trainer that `trainer.class` names around `model`; what it refuses is an ImpruverError.

    `arguments`: the plan's, or those of a trial.
    """
    path = settle_logits_path(model, plan)
    if path is not LogitsPath.ALL:
        enable_chunked_loss(model, path)
    finish = dict if path is LogitsPath.ALL else add_logits_to_keep
    flat = "flash" in str(model.config.get_text_config()._attn_implementation)  # packs in one sequence
    collator = make_collator(plan.tokenizer, flat, finish, get_context_length(plan.config))
    trainer_class = load_trainer_class(plan.trainer_class, plan.recipe_dir)
    try:
        trainer = trainer_class(
            model=model,
            args=arguments,
            data_collator=signals.ignore_signals_in_workers(collator),
            train_dataset=rows,
            eval_dataset=val,
            processing_class=plan.tokenizer,
            callbacks=callbacks,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise ImpruverError(f"trainer: {error}") from error
    except Exception as error:
        if plan.trainer_class is None:
            raise
        raise ImpruverError(f"trainer.class: {plan.trainer_class}: {type(error).__name__}: {error}") from error
    set_optimizer(trainer, plan.optimizer, plan.loraplus_lr_ratio)
    return trainer


def settle_logits_path(model: PreTrainedModel, plan: TrainingPlan) -> LogitsPath:
    """Which logits the loaded `model` computes: those planned, if it or (weights are spread) a small model passes."""
    planned = plan.size.logits
    spread = uses_fsdp(plan.arguments) or get_zero_stage(plan.arguments) == 3
    path = planned if spread or not planned else find_logits_path(model, planned, plan.precision.autocast_dtype)
    if (spread or path is None) and not plan.size.logits_tested:
        path = LogitsPath.ALL
    path = planned if path is None else path
    if path < planned:
        which = "all positions" if path is LogitsPath.ALL else "target positions, held as a whole"
        warn(f"logits: of {which}, as this model fails the test of less; that takes more memory than estimated")
    return path


def train_model(trainer: Trainer, start: ResumePoint) -> PreTrainedModel:
    """Trains from `start` on; the model, with the best checkpoint's weights where that is asked for."""
    if hasattr(trainer.model, "peft_config"):  # peft would turn the pure bf16 of a checkpoint's adapter into fp32
        trainer.model.load_adapter = partial(trainer.model.load_adapter, autocast_adapter_dtype=False)
    if start.checkpoint is not None:
        translate_loading_errors(trainer, start.checkpoint)
    check_best_before_loading(trainer)
    try:
        trainer.train(resume_from_checkpoint=None if start.checkpoint is None else str(start.checkpoint))
    except AlreadyTrainedError:  # cut off after the last step: what Trainer does between that and its end
        if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
            trainer._load_best_model()
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    set_optimizer_mode(trainer, "eval")
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.config.use_cache = True  # Trainer turns it off for training; who loads the model wants it
    return model


def run_trial(plan: TrainingPlan, data: TrainingData, steps: int) -> list[str]:
    """Makes `steps` steps, in a folder of their own; lines of what they took and the whole run will."""
    from torch.utils.data import Subset
    from transformers import PrinterCallback

    sizes = data.batches.sizes
    with redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        peak, seconds = trial.PeakMemory(), []
        steps = min(steps, count_steps(len(sizes), plan.arguments).total)
        items = trial.choose_items(sizes, plan.arguments, steps)
        arguments = trial.build_trial_arguments(plan.arguments, steps, folder)
        model = load_trained_model(plan)
        rows = Subset(data.datasets["train"], items)
        trainer = build_trainer(plan, model, arguments, rows, None, [as_callback(trial.StopwatchCallback, seconds)])
        peak.start()
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trial.format_trial(seconds, items, sizes, plan.arguments, peak.read())
