"""impruver-train, step by step: check, plan, build, train, save."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from impruver_core.cli.console import log_info, print_result, warn
from impruver_core.errors import ImpruverError
from impruver_core.io.integrity import read_file_states
from impruver_core.io.locks import lock_folder_alone
from impruver_core.io.model_files import get_context_length
from impruver_core.library_logging import quiet_libraries
from impruver_core.recipe.loading import Recipe, resolve_recipe, save_recipe
from impruver_core.recipe.paths import find_local

from impruver_train import distributed
from impruver_train.checkpointing import checkpoints, resume
from impruver_train.checkpointing import output_dir as output
from impruver_train.config.hub_target import HubTarget, read_hub_target
from impruver_train.data.token_files import (
    VAL,
    check_parts_as_written,
    find_token_files,
    hash_content,
    read_part_descriptions,
)
from impruver_train.modeling.checks import check_method
from impruver_train.modeling.continued_adapter import (
    ContinuedAdapter,
    apply_to_recipe,
    find_continued_adapter,
    name_base,
)
from impruver_train.planning import run_estimate
from impruver_train.planning.memory import list_memory_advice
from impruver_train.planning.plan import RunInputs, TrainingData, TrainingPlan, load_data, plan_training
from impruver_train.saving.artifacts import (
    add_imatrix_to_outputs,
    format_next_commands,
    read_vocabulary_files,
    write_outputs,
)
from impruver_train.saving.html_report import REPORT
from impruver_train.saving.hub_upload import (
    describe_upload,
    prepare_repository,
    upload_finished_run,
    upload_model,
)
from impruver_train.saving.imatrix import IMATRIX_ROWS
from impruver_train.signals import StopSignal, capture_stop_signals, ending_at_once
from impruver_train.training.callbacks.loss_warnings import list_loss_warnings
from impruver_train.training.callbacks.metrics_logger import METRICS
from impruver_train.training.callbacks.run_callbacks import build_callbacks, build_samples
from impruver_train.training.callbacks.trackers import close_trackers
from impruver_train.training.failures import translate_resource_errors
from impruver_train.training.trainer import build_run_trainer, load_finished_model, run_trial, train_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer


def train(
    recipe: Recipe,
    dry_run: bool = False,
    overwrite: bool = False,
    trial_steps: int = 0,
    imatrix_only: bool = False,
) -> None:
    """Trains as `recipe` says and leaves the model in its output_dir; `dry_run` ends before weights.

    `trial_steps`: only so many steps are made and timed, and nothing is written. `imatrix_only`: of a finished run the
    importance matrix is collected, and nothing else happens.
    """
    hub = read_hub_target(recipe.trainer | recipe.ddp, recipe.locate("trainer"))
    adapter = find_continued_adapter(recipe.model.name, recipe.base_dir)
    recipe = apply_to_recipe(recipe, adapter)
    if imatrix_only:
        add_imatrix(recipe, adapter, dry_run)
        return
    inputs = check(recipe, adapter, dry_run, overwrite, trial_steps)
    if inputs is None:
        upload_again(recipe, hub, dry_run)
        return
    with printing_to_stderr():
        plan = plan_run(recipe, inputs)
        data = load_data(plan, inputs, recipe.tokenizer.max_tokens_count, dry_run)
    print_run_summary(inputs, plan, data, dry_run)
    if hub is not None:
        (print_result if dry_run else log_info)(describe_upload(hub, len(data.held_out)))
    if dry_run:
        return
    if trial_steps:
        print_result("\n".join(run_trial(plan, data, trial_steps)))
        return
    if hub is not None and plan.arguments.process_index == 0:
        hub = prepare_repository(hub)
    with printing_to_stderr(), guarding_work(inputs, plan, data) as stop:
        vocabulary_files = read_vocabulary_files(recipe.tokenizer.name or plan.model.name)
        trainer = build(recipe, inputs, plan, data, stop, overwrite)
        model = train_model(trainer, inputs.start)
        save(inputs, plan, data, trainer, model, vocabulary_files)
    if trainer.args.process_index == 0:
        print_last_lines(inputs.output_dir, trainer)
        print_result(format_next_commands(inputs.output_dir, plan.lora is not None))
        if hub is not None:
            upload(recipe, hub, upload_model)


def check(
    recipe: Recipe,
    adapter: ContinuedAdapter | None,
    dry_run: bool,
    overwrite: bool,
    trial_steps: int,
    finished: bool = False,
) -> RunInputs | None:
    """Step 1: the inputs and where the run starts, from paths and hashes; None where this very run is finished.

    `finished`: it must be.
    """
    if trial_steps < 0:
        raise ImpruverError(f"--trial_steps: {trial_steps} is below 0")
    if not recipe.output_dir:
        raise ImpruverError(f"{recipe.path}: output_dir is not set")
    output_dir = Path(recipe.output_dir).expanduser()
    files = find_token_files(recipe.train_path, recipe.val_paths, recipe.path, dry_run)
    check_method(recipe.model, recipe.lora)
    states = read_file_states(part for each in files.values() for part in each.parts)
    described = read_part_descriptions(files)
    contents = {name: hash_content(each, described) for name, each in files.items()}
    for content in contents.values():
        check_parts_as_written(described, content.parts)
    digests = {name: content.sha256 for name, content in contents.items()}
    sizes = {name: content.size for name, content in contents.items()}
    digests |= output.hash_base(recipe.model.name if adapter is None else adapter.base)
    digests |= output.hash_base(str(adapter.folder), "adapter") if adapter is not None else {}
    resolved = resolve_recipe(recipe, absolute=True)
    output.check_base_outside(output_dir, find_local(recipe.model.name, recipe.base_dir) if recipe.model.name else None)
    anew = overwrite or trial_steps > 0  # a trial writes nothing there
    state = output.inspect_output_dir(output_dir, resolved, digests, anew)
    if finished and state is not output.OutputState.FINISHED:
        raise ImpruverError(f"--imatrix_only: {output_dir} holds no finished run of this recipe; train it first")
    if state is output.OutputState.FINISHED and not finished:
        if not dry_run:
            output.tidy_finished_run(output_dir)
        print_result(f"{output_dir} holds this very run, finished: nothing to do (--overwrite trains anew)")
        return None
    named, unfinished = recipe.trainer.get("resume_from_checkpoint"), state is output.OutputState.UNFINISHED
    anew = overwrite or finished  # of a finished run nothing is resumed
    start = resume.find_best(resume.find_start(output_dir, named, resolved, digests, unfinished, anew))
    resume.check_content(start)
    val_name = next(iter(list_val_names(recipe)), "")
    return RunInputs(output_dir, resolved, files, sizes, states, digests, start, val_name, adapter)


def add_imatrix(recipe: Recipe, adapter: ContinuedAdapter | None, dry_run: bool) -> None:
    """Collects the importance matrix of the finished model in output_dir, by one process; it is an output, too."""
    if not distributed.is_first_of_all():
        return
    inputs = check(recipe, adapter, dry_run, overwrite=False, trial_steps=0, finished=True)
    count = recipe.trainer.get("imatrix_rows") or IMATRIX_ROWS
    if dry_run:
        print_result(f"{count:,} training rows at most would be run through the model in {inputs.output_dir}")
        return
    with printing_to_stderr(), lock_folder_alone(inputs.output_dir, format_busy(inputs.output_dir)):
        plan = plan_run(recipe, inputs)
        data = load_data(plan, inputs, recipe.tokenizer.max_tokens_count, dry_run)
        written = add_imatrix_to_outputs(inputs, plan, data, load_finished_model(plan, inputs.output_dir), count)
    if written:
        print_result(
            f"wrote {inputs.output_dir / output.IMATRIX}; next: impruver-gguf --output_dir {inputs.output_dir}"
        )


def list_val_names(recipe: Recipe) -> list[str]:
    """The names by which losses of evaluations are logged: none for a single path."""
    return [] if isinstance(recipe.val_path, str) else list(recipe.val_paths)


def plan_run(recipe: Recipe, inputs: RunInputs) -> TrainingPlan:
    """Step 2: all that is known before weights are loaded."""
    quiet_libraries("datasets", "transformers")
    sections = (*name_base(recipe.model, recipe.tokenizer, inputs.adapter), recipe.lora, recipe.trainer | recipe.ddp)
    folders = (Path(recipe.path), recipe.base_dir, inputs.output_dir)
    return plan_training(*sections, *folders, list_val_names(recipe), inputs.adapter)


def print_run_summary(inputs: RunInputs, plan: TrainingPlan, data: TrainingData, dry_run: bool) -> None:
    """Says what the run amounts to and where it starts; ImpruverError where the disk has no room for it."""
    for line in run_estimate.format_summary(plan, data):
        (print_result if dry_run else log_info)(line)
    steps = run_estimate.count_steps(len(data.batches.sizes), plan.arguments) if data.batches is not None else None
    resume.log_start(inputs.start.checkpoint, plan.arguments, inputs.digests, steps)
    if steps is not None:
        run_estimate.check_disk_space(inputs.output_dir, plan, steps, inputs.start.checkpoint)


def build(
    recipe: Recipe, inputs: RunInputs, plan: TrainingPlan, data: TrainingData, stop: StopSignal, overwrite: bool
) -> Trainer:
    """Step 3: the model and its Trainer; then the folder becomes the run's."""
    output_dir, start, processes = inputs.output_dir, inputs.start, plan.arguments.world_size
    identity = resume.build_run_identity(inputs.recipe, inputs.digests, processes, start.origin)
    patience, count = (recipe.trainer.get(name) for name in ("early_stopping_patience", "samples"))
    val, positions = data.datasets.get(VAL, []), get_context_length(plan.config)
    callbacks = build_callbacks(
        *(output_dir, inputs.files["train"], stop, identity, start, inputs.states),
        *(patience, build_samples(count, val, output_dir / METRICS, positions)),
    )
    trainer = build_run_trainer(plan, data, callbacks)
    if plan.arguments.process_index == 0:  # of several processes one alone writes
        output.claim_output_dir(output_dir, overwrite)
        checkpoints.remove_later_checkpoints(output_dir, start.checkpoint)
        checkpoints.write_run_identity(output_dir / output.UNFINISHED, identity)  # first: it marks the folder as ours
        save_recipe(recipe, output_dir / output.RECIPE)
    return trainer


def save(
    inputs: RunInputs,
    plan: TrainingPlan,
    data: TrainingData,
    trainer: Trainer,
    model: PreTrainedModel,
    vocabulary_files: dict[str, bytes],
) -> None:
    """Step 5: the outputs, by the process that writes; all processes end together."""
    weights = distributed.gather_full_weights(trainer)
    if plan.arguments.process_index == 0:
        write_outputs(inputs, plan, data, model, weights, vocabulary_files, trainer.state.global_step)
    close_trackers()
    distributed.destroy_process_group()


def print_last_lines(output_dir: Path, trainer: Trainer) -> None:
    """Says again what was warned of, and where the run is to be seen."""
    for line in list_loss_warnings(trainer):
        warn(line)
    log_info(f"report: {output_dir / REPORT}")


def upload(recipe: Recipe, hub: HubTarget, send: Callable[[Path, Path, HubTarget], str]) -> None:
    """Step 6, for a recipe that asks for it, by one process: `send` uploads what is finished in output_dir."""
    folder = Path(recipe.output_dir).expanduser()
    with redirect_stdout(sys.stderr), lock_folder_alone(folder, format_busy(folder)):
        address = send(folder, recipe.base_dir, hub)
    print_result(f"uploaded to {address}")


def upload_again(recipe: Recipe, hub: HubTarget | None, dry_run: bool) -> None:
    """Step 6 for a run that is finished already: what the hub has of it is not sent again."""
    if hub is None or not distributed.is_first_of_all():
        return
    if dry_run:
        print_result(describe_upload(hub, None))
    else:
        upload(recipe, hub, upload_finished_run)


@contextmanager
def printing_to_stderr() -> Iterator[None]:
    """What libraries print is no result of ours; a signal ends the process where it is."""
    with redirect_stdout(sys.stderr), ending_at_once():
        yield


def format_busy(folder: Path) -> str:
    """The message for an output_dir that another process has locked."""
    return f"output_dir: another impruver-train is at work in {folder}, or an export of it"


@contextmanager
def guarding_work(inputs: RunInputs, plan: TrainingPlan, data: TrainingData) -> Iterator[StopSignal]:
    """What keeps the work while it runs: the folder locked, signals and a lack of memory or disk space caught."""
    shape = run_estimate.find_largest_batch_shape(data.stats["train"], data.batches, plan.size.logits)
    advice = partial(list_memory_advice, plan, shape)
    folder, writes = inputs.output_dir, plan.arguments.process_index == 0
    lock = lock_folder_alone(folder, format_busy(folder)) if writes else nullcontext()
    with lock, translate_resource_errors(inputs.output_dir, advice), capture_stop_signals() as stop:
        yield stop
