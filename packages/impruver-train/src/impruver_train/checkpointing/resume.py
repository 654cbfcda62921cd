"""Where a run starts: anew, at the last complete checkpoint, or at the one that the recipe names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from impruver_core.cli.console import log_info, warn
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write
from impruver_core.io.jsonl import format_row
from impruver_core.io.manifest import FORMAT

from impruver_train.checkpointing import checkpoints
from impruver_train.checkpointing.output_dir import UNFINISHED, find_changes, is_train_output
from impruver_train.checkpointing.pickles.checks import check_pickles
from impruver_train.checkpointing.trainer_state import read_trainer_state

if TYPE_CHECKING:
    from transformers import TrainingArguments

NEEDED = (checkpoints.STATE, "optimizer.pt", "scheduler.pt", "rng_state.pth")
# A checkpoint of another one of these can't be loaded, or would be continued as what it is not.
SHAPING = ("lora", "model", "tokenizer", "base", "trainer.optim:", "trainer.optim_target_modules", "ddp.optim:")


class AlreadyTrainedError(Exception):
    """The checkpoint to resume from is the last step's: nothing is left to train."""


class ResumePoint(NamedTuple):
    """Where a run starts: None for both is anew."""

    checkpoint: Path | None
    origin: Path | None  # the checkpoint named by a recipe that this run began at

    @property
    def is_named(self) -> bool:
        """Whether the recipe names that checkpoint: it may be of a run with other settings."""
        return self.checkpoint is not None and self.checkpoint == self.origin


def build_run_identity(recipe: dict[str, Any], digests: dict[str, str], processes: int) -> dict[str, Any]:
    """What identifies a run; it stands beside recipe.yaml until the manifest does, and in each checkpoint."""
    inputs = [{"role": role, "sha256": digest} for role, digest in digests.items()]
    return {"impruver": FORMAT, "recipe": recipe, "inputs": inputs, "processes": processes}


def write_run_identity(output_dir: Path, identity: dict[str, Any], origin: Path | None) -> None:
    """Writes beside recipe.yaml which run it is, and the checkpoint named by the recipe that it began at."""
    with atomic_write(output_dir / UNFINISHED) as file:
        file.write(format_row(identity | ({"start": str(origin)} if origin else {})) + "\n")


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
    identity = (checkpoints.read_run_identity(output_dir / UNFINISHED) or {}) if unfinished else {}
    origin = Path(identity["start"]) if identity.get("start") else None
    if named is not None and named != origin:
        return ResumePoint(named, named)
    own = checkpoints.list_complete_checkpoints(output_dir, resumable=True) if unfinished else []
    for path in checkpoints.list_checkpoints(output_dir) if unfinished else []:
        damaged = checkpoints.find_damaged_files(path, checkpoints.read_marker(path) or {})
        if damaged:
            warn(f"{path} is damaged ({', '.join(damaged)} gone or of another size) and not resumed from")
    if own:
        return ResumePoint(own[-1], origin)
    if origin is not None and named is None:
        check_checkpoint(origin, output_dir, recipe, digests)
    return ResumePoint(origin, origin)


def check_checkpoint(path: Path, output_dir: Path, recipe: dict[str, Any], digests: dict[str, str]) -> None:
    """ImpruverError unless a run of `recipe` can resume from `path`; warns where it is another run's."""
    key = f"trainer.resume_from_checkpoint: {path}"
    if not path.is_dir():
        raise ImpruverError(
            f"{key} is not there; {format_checkpoints(output_dir)}. Left out, training resumes by itself or begins"
        )
    marker, others = checkpoints.read_marker(path), format_checkpoints(output_dir)
    if marker is None:
        absent = [name for name in NEEDED if not (path / name).is_file()]
        weights = "adapter_model" if recipe.get("lora") is not None else "model"
        absent += [] if any(path.glob(f"{weights}*.safetensors")) else [f"{weights}.safetensors"]
    else:
        absent = [] if marker.get("complete") else ["optimizer.pt (trainer.save_only_model: true)"]
        damaged = checkpoints.find_damaged_files(path, marker)
        if damaged:
            raise ImpruverError(f"{key} is damaged: {', '.join(damaged)} gone or of another size; {others}")
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


def check_content(start: ResumePoint, output_dir: Path) -> None:
    """ImpruverError where what Trainer would load of a checkpoint could run code, or is broken.

    That is the checkpoint to start at, and the best one so far, where that is still there.
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
    named, own = read_trainer_state(folder).get("best_model_checkpoint"), (marker or {}).get("best")
    for best in [*([Path(named)] if named else ()), *([output_dir / own] if own else ())]:
        if not best.is_dir() or best.absolute() == folder.absolute():
            continue
        if not checkpoints.NAME.fullmatch(best.name):
            raise ImpruverError(f"{key}: {folder / checkpoints.STATE} names {best}, which is no checkpoint; {advice}")
        check_pickles(best, advice, key)


def format_checkpoints(output_dir: Path) -> str:
    """The checkpoints that there are to resume from, for a message."""
    there = checkpoints.list_complete_checkpoints(output_dir, resumable=True)
    return f"there are {', '.join(map(str, there))}" if there else f"{output_dir} holds none"


def log_start(start: Path | None, arguments: TrainingArguments, steps: int | None) -> None:
    """Logs what is resumed from and what makes the run differ; ImpruverError where it is beyond the last of `steps`."""
    if arguments.ignore_data_skip:
        warn("trainer.ignore_data_skip: true: a run that was stopped sees other rows than one that never was")
    if start is None:
        return
    step, processes = read_trainer_state(start)["global_step"], arguments.world_size
    if steps is not None and step > steps:
        raise ImpruverError(
            f"trainer.resume_from_checkpoint: {start} is after step {step}, and this run has {steps}; set a higher "
            "trainer.max_steps or trainer.num_train_epochs"
        )
    log_info(f"resumes from {start}, after step {step}")
    before = (checkpoints.read_marker(start) or {}).get("processes", processes)
    if before != processes:
        warn(f"{before} processes then, {processes} now: what follows differs from a run that was never stopped")
