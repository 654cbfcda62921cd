"""Where a run starts: anew, at the last complete checkpoint, or at the one that the recipe names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from impruver_core.cli.console import log_info, warn
from impruver_core.errors import ImpruverError
from impruver_core.io.manifest import FORMAT

from impruver_train.checkpointing import checkpoints
from impruver_train.checkpointing.output_dir import find_changes, find_identity, is_train_output
from impruver_train.checkpointing.pickles.checks import check_pickles
from impruver_train.checkpointing.trainer_state import read_trainer_state

if TYPE_CHECKING:
    from transformers import TrainingArguments

NEEDED = (checkpoints.STATE, "optimizer.pt", "scheduler.pt", "rng_state.pth")
# A checkpoint of another one of these can't be loaded, or would be continued as what it is not.
SHAPING = ("lora", "model", "tokenizer", "base", "adapter")
SHAPING += ("trainer.optim:", "trainer.optim_target_modules", "ddp.optim:")


class AlreadyTrainedError(Exception):
    """The checkpoint to resume from is the last step's: nothing is left to train."""


class ResumePoint(NamedTuple):
    """Where a run starts: None for the first two is anew.

    `best`: the best checkpoint until then, None where there is none or `lost_best`: it is damaged.
    """

    checkpoint: Path | None
    origin: Path | None  # the checkpoint named by a recipe that this run began at
    best: Path | None = None
    lost_best: bool = False

    @property
    def is_named(self) -> bool:
        """Whether the recipe names that checkpoint: it may be of a run with other settings."""
        return self.checkpoint is not None and self.checkpoint == self.origin


def build_run_identity(
    recipe: dict[str, Any], digests: dict[str, str], processes: int, origin: Path | None = None
) -> dict[str, Any]:
    """What identifies a run; it stands beside recipe.yaml until the manifest does, and in each checkpoint.

    `origin`: the checkpoint named by the recipe that it began at.
    """
    inputs = [{"role": role, "sha256": digest} for role, digest in digests.items()]
    identity = {"impruver": FORMAT, "recipe": recipe, "inputs": inputs, "processes": processes}
    return identity | ({"start": str(origin)} if origin else {})


def find_start(
    output_dir: Path, named: Any, recipe: dict[str, Any], digests: dict[str, str], unfinished: bool, overwrite: bool
) -> ResumePoint:
    """Where a run of `recipe` starts.

    `named` is trainer.resume_from_checkpoint; a run that began at it and was stopped resumes from its own last one.
    """
    named = Path(named).expanduser().absolute() if named and named is not True else None
    if named is not None:
        check_checkpoint(named, output_dir, recipe, digests)
        if overwrite and named.parent == output_dir.absolute():
            raise ImpruverError(f"trainer.resume_from_checkpoint: --overwrite would remove {named}; leave one of both")
    identity = find_identity(output_dir) if unfinished else {}
    origin = Path(identity["start"]) if identity.get("start") else None
    if named is not None and named != origin:
        return ResumePoint(named, named)
    own = find_last_checkpoint(output_dir, origin) if unfinished else None
    if own is not None:
        return ResumePoint(own, origin)
    if origin is not None and named is None:
        check_checkpoint(origin, output_dir, recipe, digests)
    return ResumePoint(origin, origin)


def find_last_checkpoint(output_dir: Path, origin: Path | None) -> Path | None:
    """The last checkpoint to resume from that is as it was written; warns by name of those after it that are not."""
    damaged = False
    for path in reversed(checkpoints.list_checkpoints(output_dir)):
        if not os.path.lexists(path / checkpoints.MARKER):
            continue  # cut off by a kill
        marker = checkpoints.read_marker(path)
        if marker is not None and not marker.get("complete"):
            continue  # a model alone
        damage = f"its {checkpoints.MARKER} is broken" if marker is None else checkpoints.find_damage(path, marker)
        if damage is None:
            return path
        warn(f"{path} is damaged ({damage}) and not resumed from")
        damaged = True
    if damaged:
        where = f"at {origin}" if origin else "from the beginning"
        warn(f"{output_dir}: no whole checkpoint is left, and the run starts {where}")
    return None


def check_checkpoint(path: Path, output_dir: Path, recipe: dict[str, Any], digests: dict[str, str]) -> None:
    """ImpruverError unless a run of `recipe` can resume from `path`; warns where it is another run's."""
    key = f"trainer.resume_from_checkpoint: {path}"
    if not path.is_dir():
        raise ImpruverError(
            f"{key} is not there; {format_checkpoints(output_dir)}. Left out, training resumes by itself or begins"
        )
    marker, others = checkpoints.read_run_identity(path / checkpoints.MARKER), format_checkpoints(output_dir)
    if marker is None:
        absent = [name for name in NEEDED if not (path / name).is_file()]
        weights = "adapter_model" if recipe.get("lora") is not None else "model"
        absent += [] if any(path.glob(f"{weights}*.safetensors")) else [f"{weights}.safetensors"]
    else:
        absent = [] if marker.get("complete") else ["optimizer.pt (trainer.save_only_model: true)"]
        damage = checkpoints.find_damage(path, marker)
        if damage:
            raise ImpruverError(f"{key} is damaged: {damage}; {others}")
    if is_train_output(path) and not checkpoints.NAME.fullmatch(path.name):
        raise ImpruverError(f"{key} is an output_dir, not one of its checkpoints; {format_checkpoints(path)}")
    if absent:
        raise ImpruverError(f"{key} is no checkpoint to resume from: {', '.join(absent)} missing; {others}")
    if marker is None and (path.parent / "recipe.yaml").exists():
        raise ImpruverError(f"{key} was not written to its end; {others}")
    if marker is None:
        warn(f"{key} is not of impruver-train: whether it is whole and of these data can't be checked")
        return
    changes = find_changes(marker, recipe, digests)
    if [line for line in changes if line.startswith(SHAPING)]:
        raise ImpruverError(f"{key} is of another run:\n  " + "\n  ".join(changes))
    for line in changes:
        warn(f"{key} is of another run: {line}")


def check_content(start: ResumePoint) -> None:
    """ImpruverError where what Trainer would load of a checkpoint could run code, or is broken.

    That is the checkpoint to start at, and the best one so far.
    """
    folder = start.checkpoint
    if folder is None:
        return
    if start.is_named:
        key, advice = "trainer.resume_from_checkpoint", "resume from another checkpoint"
    else:
        key, advice = "output_dir", f"remove {folder}, or --overwrite starts anew"
    marker = checkpoints.read_marker(folder)
    check_pickles(folder, advice, key, marked=marker is not None)
    best = start.best
    if best is None or best.absolute() == folder.absolute():
        return
    if not checkpoints.NAME.fullmatch(best.name):
        raise ImpruverError(f"{key}: {folder / checkpoints.STATE} names {best}, which is no checkpoint; {advice}")
    check_pickles(best, advice, key)


def list_best_checkpoints(folder: Path) -> list[Path]:
    """Where the best checkpoint until then may be: beside `folder` by its marker's word, and by Trainer's state."""
    own = (checkpoints.read_marker(folder) or {}).get("best")
    named = read_trainer_state(folder).get("best_model_checkpoint")
    return [*([folder.parent / own] if own else ()), *([Path(named)] if named else ())]


def find_best(start: ResumePoint) -> ResumePoint:
    """`start` with the best checkpoint until then; warns of one that is gone or damaged, which is forgotten."""
    places = list_best_checkpoints(start.checkpoint) if start.checkpoint is not None else []
    if not places:
        return start
    best = next((path for path in places if path.is_dir()), places[0])
    damage = None if best.absolute() == start.checkpoint.absolute() else find_best_damage(best)
    if damage is None:
        return start._replace(best=best)
    warn(
        f"{best}, the best checkpoint so far, is damaged ({damage}) and forgotten: evaluations from now on decide "
        "which is the best"
    )
    return start._replace(lost_best=True)


def find_best_damage(best: Path) -> str | None:
    """What is wrong with the best checkpoint; None for one that is as it was written, or not of impruver-train."""
    if not best.is_dir():
        return "it is gone"
    if not os.path.lexists(best / checkpoints.MARKER):
        return None
    marker = checkpoints.read_marker(best)
    return f"its {checkpoints.MARKER} is broken" if marker is None else checkpoints.find_damage(best, marker)


def check_best(best: Path) -> None:
    """ImpruverError where the best checkpoint is damaged, before its weights become the result."""
    damage = find_best_damage(best)
    if damage:
        raise ImpruverError(
            f"{best}, whose weights trainer.load_best_model_at_end is to leave, is damaged ({damage}): no model was "
            f"written; {format_checkpoints(best.parent)}. The same command again resumes from the last of them and "
            "leaves the best of what it then evaluates, else the last weights; one that evaluated well can also be "
            "copied away and used as it is"
        )


def format_checkpoints(output_dir: Path) -> str:
    """The checkpoints that there are to resume from, for a message."""
    there = checkpoints.list_complete_checkpoints(output_dir, resumable=True)
    return f"there are {', '.join(map(str, there))}" if there else f"{output_dir} holds none"


def log_start(
    start: Path | None, arguments: TrainingArguments, digests: dict[str, str], steps: tuple[int, int, int] | None
) -> None:
    """Logs what is resumed from, and what makes the run differ; ImpruverError where it is beyond the run's last step.

    `steps`: an epoch's optimizer steps, the run's, an epoch's batches; None where the rows are not there yet.
    """
    if arguments.ignore_data_skip:
        warn("trainer.ignore_data_skip: true: a run that was stopped sees other rows than one that never was")
    if start is None:
        return
    step, processes = read_trainer_state(start)["global_step"], arguments.world_size
    if steps is not None and step > steps[1]:
        raise ImpruverError(
            f"trainer.resume_from_checkpoint: {start} is after step {step}, and this run has {steps[1]}; set a higher "
            "trainer.max_steps or trainer.num_train_epochs"
        )
    log_info(f"resumes from {start}, after step {step}")
    marker = checkpoints.read_marker(start) or {}
    before = marker.get("processes", processes)
    if before != processes:
        warn(f"{before} processes then, {processes} now: what follows differs from a run that was never stopped")
    trained_on = {entry["role"]: entry["sha256"] for entry in marker.get("inputs") or []}.get("train")
    if steps is not None and step < steps[1] and (arguments.ignore_data_skip or trained_on != digests.get("train")):
        log_info(describe_position(step, *steps, arguments.gradient_accumulation_steps, arguments.ignore_data_skip))


def describe_position(step: int, epoch: int, total: int, batches: int, accumulated: int, from_first: bool) -> str:
    """Where in the rows and in the schedule a run of `epoch` steps an epoch goes on after `step`, as Trainer does.

    `accumulated`: batches of a step. `from_first`: no batches are skipped.
    """
    number, done = step // epoch + 1, step % epoch * accumulated
    if from_first:
        where = f"no batch is skipped: epoch {number} begins at its first of {batches:,}"
    elif done:
        where = f"the first {done:,} of {batches:,} batches of epoch {number} are skipped"
    else:
        where = f"epoch {number} begins at its first of {batches:,} batches"
    return f"{where}; the learning rate goes on at step {step:,} of {total:,}"
