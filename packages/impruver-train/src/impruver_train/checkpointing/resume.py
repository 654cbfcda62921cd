"""Where a run starts: anew, at the last whole checkpoint, or at the one that the recipe names."""

from functools import partial
from pathlib import Path
from typing import Any

from impruver_core.cli.console import log_info, warn
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write
from impruver_core.io.json_schema import read_json
from impruver_core.io.jsonl import format_row
from impruver_core.io.manifest import FORMAT, read_manifest

from impruver_train.checkpointing import checkpoints
from impruver_train.checkpointing.output_dir import UNFINISHED, is_ours
from impruver_train.checkpointing.run_comparison import changes

NEEDED = (checkpoints.STATE, "optimizer.pt", "scheduler.pt", "rng_state.pth")

# A checkpoint of another one of these can't be loaded, or lies.
SHAPING = ("lora", "model", "tokenizer", "base", "trainer.optim:", "trainer.optim_target_modules", "ddp.optim:")


class AlreadyTrained(Exception):
    """The checkpoint to go on from is the last step's: nothing is left to train."""


def about_run(recipe: dict[str, Any], digests: dict[str, str], processes: int) -> dict[str, Any]:
    """What a run is told apart by; it stands beside recipe.yaml until the manifest does, and in each checkpoint."""
    inputs = [{"role": role, "sha256": digest} for role, digest in digests.items()]
    return {"impruver": FORMAT, "recipe": recipe, "inputs": inputs, "processes": processes}


def note_start(output_dir: Path, about: dict[str, Any], start: Path | None) -> None:
    """Notes beside recipe.yaml which run it is, and the given checkpoint from outside or within that it began at."""
    with atomic_write(output_dir / UNFINISHED) as file:
        file.write(format_row(about | ({"start": str(start)} if start else {})) + "\n")


def find_start(
    output_dir: Path, given: Any, recipe: dict[str, Any], digests: dict[str, str], unfinished: bool, overwrite: bool
) -> tuple[Path | None, Path | None]:
    """(checkpoint to go on from, None for a start anew; the given one that this run began at, None without one).

    `given` is trainer.resume_from_checkpoint; a run that began at it and was stopped goes on from its own last one.
    """
    named = Path(given).expanduser().absolute() if given and given is not True else None
    if named is not None:
        check_checkpoint(named, output_dir, recipe, digests)
        if overwrite and named.parent == output_dir.absolute():
            raise ImpruverError(f"trainer.resume_from_checkpoint: --overwrite would remove {named}; leave one of both")
    known = (read_manifest(output_dir / UNFINISHED) or {}) if unfinished else {}
    began = Path(known["start"]) if known.get("start") else None
    if named is not None and named != began:
        return named, named
    own = checkpoints.whole(output_dir, to_go_on=True) if unfinished else []
    for path in checkpoints.folders(output_dir) if unfinished else []:
        harmed = checkpoints.damage(path, checkpoints.marker_of(path) or {})
        if harmed:
            warn(f"{path} is damaged ({', '.join(harmed)} gone or of another size) and not gone on from")
    if own:
        return own[-1], began
    if began is not None and named is None:
        check_checkpoint(began, output_dir, recipe, digests)
    return began, began


def check_checkpoint(path: Path, output_dir: Path, recipe: dict[str, Any], digests: dict[str, str]) -> None:
    """ImpruverError unless a run of `recipe` can go on from `path`; warns where it is another run's."""
    key = f"trainer.resume_from_checkpoint: {path}"
    if not path.is_dir():
        raise ImpruverError(f"{key} is not there; {shown(output_dir)}. Left out, training goes on by itself or begins")
    marker = checkpoints.marker_of(path)
    if marker is None:
        absent = [name for name in NEEDED if not (path / name).is_file()]
        weights = "adapter_model" if recipe.get("lora") is not None else "model"
        absent += [] if any(path.glob(f"{weights}*.safetensors")) else [f"{weights}.safetensors"]
    else:
        absent = [] if marker.get("complete") else ["optimizer.pt (trainer.save_only_model: true)"]
        harmed = checkpoints.damage(path, marker)
        if harmed:
            raise ImpruverError(f"{key} is damaged: {', '.join(harmed)} gone or of another size; {shown(output_dir)}")
    if is_ours(path) and not checkpoints.NAME.fullmatch(path.name):
        raise ImpruverError(f"{key} is an output_dir, not one of its checkpoints; {shown(path)}")
    if absent:
        raise ImpruverError(f"{key} is no checkpoint to go on from: {', '.join(absent)} missing; {shown(output_dir)}")
    if marker is None and (path.parent / "recipe.yaml").exists():
        raise ImpruverError(f"{key} was not written to its end; {shown(output_dir)}")
    if marker is None:
        warn(f"{key} is not of impruver-train: whether it is whole and of these data can't be checked")
        return
    changed = changes(marker, recipe, digests)
    if [line for line in changed if line.startswith(SHAPING)]:
        raise ImpruverError(f"{key} is of another run:\n  " + "\n  ".join(changed))
    for line in changed:
        warn(f"{key} is of another run: {line}")


def shown(output_dir: Path) -> str:
    """The checkpoints that there are to go on from, for a message."""
    there = checkpoints.whole(output_dir, to_go_on=True)
    return f"there are {', '.join(map(str, there))}" if there else f"{output_dir} holds none"


def tell_start(start: Path | None, processes: int, arguments: Any, steps: int | None) -> None:
    """Says what is gone on from, and what may make the run differ from one that was never stopped.

    ImpruverError where that is beyond the run's last of `steps`.
    """
    if arguments.ignore_data_skip:
        warn("trainer.ignore_data_skip: true: a run that was stopped sees other rows than one that never was")
    if start is None:
        return
    state = read_json(start / checkpoints.STATE)
    if steps is not None and state["global_step"] > steps:
        raise ImpruverError(
            f"trainer.resume_from_checkpoint: {start} is after step {state['global_step']}, and this run has {steps}; "
            "set a higher trainer.max_steps or trainer.num_train_epochs"
        )
    log_info(f"goes on from {start}, after step {state['global_step']}")
    before = (checkpoints.marker_of(start) or {}).get("processes", processes)
    if before != processes:
        warn(f"{before} processes then, {processes} now: what follows differs from a run that was never stopped")


def keep_adapter_dtype(model: Any) -> None:
    """Has `model` load a checkpoint's adapter in the dtype that it is held in: peft would turn pure bf16 into fp32."""
    if hasattr(model, "peft_config"):
        model.load_adapter = partial(model.load_adapter, autocast_adapter_dtype=False)


def end_training(trainer: Any) -> None:
    """What Trainer does after the last step, for a run that was cut off between that and its end."""
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
        trainer._load_best_model()
    trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
