"""output_dir before training: whose work is in it, whether this very run is done, what --overwrite may remove."""

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import check_folder
from impruver_core.io.manifest import read_manifest

from impruver_train.checkpointing import checkpoints
from impruver_train.checkpointing.checkpoints import list_complete_checkpoints

MANIFEST = "impruver.json"
UNFINISHED = "impruver.json.unfinished"  # identifies a run while there is no manifest
RECIPE = "recipe.yaml"
MIB = 1 << 20
WAITS = 16

# Names of what training writes into output_dir: --overwrite removes these, and nothing else.
OUTPUTS = re.compile(
    r"recipe\.yaml|impruver\.json(\.unfinished|\.pending)?|(metrics|speed|heldout)\.jsonl|report\.html"
    r"|(adapter_model|model)(-\d+-of-\d+)?\.safetensors|(adapter_model|model)\.safetensors\.index\.json"
    r"|(adapter_config|config|generation_config|tokenizer|tokenizer_config)\.json"
    r"|chat_template\.jinja|additional_chat_templates|tokenizer\.model|tekken\.json"
)
STAGED = re.compile(r"\.(.+)\.\d+\.part")  # what is being written, and stays where a kill comes in between
MATTERS = ("tokenizer", "model", "lora", "trainer", "ddp")  # sections whose change makes another model
# Arguments of `trainer` that change nothing of what is trained; those of saving do where the best one is looked for.
REPORTING = ("report_to", "run_name", "project", "logging_steps", "logging_strategy", "logging_first_step")
SAVING = ("save_steps", "save_strategy", "save_total_limit", "save_only_model")


class OutputState(Enum):
    """What an output_dir is to a run."""

    NEW = "new"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


def hash_base(name: str | None) -> dict[str, str]:
    """{"base": a digest} of a local base: each weights file's size, first and last MiB. {} for a hub id or none."""
    if not name or not Path(name).is_dir():
        return {}
    digest = hashlib.sha256()
    for path in sorted(Path(name).glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(MIB))
            file.seek(max(0, path.stat().st_size - MIB))
            digest.update(file.read())
    return {"base": digest.hexdigest()}


def inspect_output_dir(
    output_dir: Path, recipe: dict[str, Any], digests: dict[str, str], overwrite: bool
) -> OutputState:
    """What `output_dir` is to a run of `recipe` on inputs with these digests; ImpruverError where it can't be used.

    A run's own earlier work may be replaced with `overwrite`, files that training did not write never.
    """
    check_folder(output_dir, "output_dir")
    ours = is_train_output(output_dir)
    foreign = [] if ours else sorted(path.name for path in list_outputs(output_dir))
    if foreign:
        raise ImpruverError(
            f"output_dir: {output_dir} holds {', '.join(foreign[:3])}, which impruver-train did not make; set another "
            "output_dir"
        )
    if not ours or overwrite:
        return OutputState.NEW
    links = [path for path in list_outputs(output_dir) if path.is_symlink()]
    if links:
        raise ImpruverError(
            f"output_dir: {links[0]} is a symbolic link, and training would write to where it leads: remove it, or set "
            "another output_dir"
        )
    manifest, ways_out = read_manifest(output_dir / MANIFEST), "--overwrite starts anew, or set another output_dir"
    if manifest is not None:
        changes = find_changes(manifest, recipe, digests) + find_changed_outputs(output_dir, manifest)
        run = "another run"
    else:
        markers = (checkpoints.read_marker(path) for path in reversed(list_complete_checkpoints(output_dir)))
        unfinished, run = checkpoints.read_run_identity(output_dir / UNFINISHED), "an unfinished run"
        identity = unfinished or next(markers, None)
        if not has_work(output_dir):
            return OutputState.NEW
        changes = find_changes(identity, recipe, digests)
        ways_out += "; with another one, trainer.resume_from_checkpoint resumes from this one's work"
    if not changes:
        return OutputState.UNFINISHED if manifest is None else OutputState.FINISHED
    lines = "\n  ".join([f"output_dir: {output_dir} holds {run}:", *changes])
    raise ImpruverError(f"{lines}\n{ways_out}")


def is_train_output(output_dir: Path) -> bool:
    """Whether a training of ours began here: only it writes these two, or a checkpoint with our marker."""
    named = any((output_dir / name).exists() for name in (MANIFEST, UNFINISHED))
    return named or bool(list_complete_checkpoints(output_dir))


def list_outputs(output_dir: Path) -> list[Path]:
    """What stands in `output_dir` under the names of what training writes there, checkpoints included."""
    named = [path for path in output_dir.glob("*") if OUTPUTS.fullmatch(path.name)]
    return named + checkpoints.list_checkpoints(output_dir)


def check_base_outside(output_dir: Path, base: Path | None) -> None:
    """ImpruverError where the base's folder is the one that is written to, or within it."""
    folder, base = output_dir.resolve(), base.resolve() if base is not None else None
    if base is not None and (base == folder or folder in base.parents):
        raise ImpruverError(f"output_dir: {output_dir} holds the base (model.name: {base}); set another output_dir")


def has_work(output_dir: Path) -> bool:
    """Whether an unfinished run got as far as to write anything: a step's row, a complete checkpoint, weights."""
    metrics = output_dir / "metrics.jsonl"
    rows = metrics.exists() and metrics.stat().st_size > 0
    return rows or bool(list_complete_checkpoints(output_dir)) or any(output_dir.glob("*.safetensors"))


def claim_output_dir(output_dir: Path, overwrite: bool) -> None:
    """Makes `output_dir`, less what a killed run was writing; `overwrite` removes what an earlier one wrote there."""
    output_dir.mkdir(parents=True, exist_ok=True)
    for path in output_dir.glob(".*.part"):
        staged = STAGED.fullmatch(path.name)
        if staged and OUTPUTS.fullmatch(staged[1]):
            path.unlink()
    if not overwrite:
        return
    # What identifies the folder as training's own goes last, should this be cut off.
    for path in sorted(list_outputs(output_dir), key=lambda path: (path.name in (MANIFEST, UNFINISHED), path.name)):
        checkpoints.remove_checkpoint(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def lock_output_dir(output_dir: Path) -> Iterator[None]:
    """Makes `output_dir` this process's alone; ImpruverError where another trains in it for more than seconds."""
    output_dir.mkdir(parents=True, exist_ok=True)
    number = os.open(output_dir, os.O_RDONLY)
    try:
        for left in reversed(range(WAITS)):
            if _try_lock(number):
                break
            if not left:
                raise ImpruverError(f"output_dir: another impruver-train is at work in {output_dir}")
            time.sleep(0.5)
        yield
    finally:
        with suppress(OSError):  # nothing came of it
            output_dir.rmdir()
        os.close(number)


def _try_lock(number: int) -> bool:
    """Whether an open folder is now locked, or can't be on this system."""
    try:
        import fcntl

        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # not on every system, nor on every network's disk
        pass
    return True


def find_changes(identity: dict[str, Any], recipe: dict[str, Any], digests: dict[str, str]) -> list[str]:
    """What sets the run of a manifest, or of a checkpoint's marker, apart from `recipe` on these inputs."""
    now, then = dict(_flatten(recipe)), dict(_flatten(identity.get("recipe") or {}))
    changes = [
        f"{key}: {then.get(key, 'not set')} then, {now.get(key, 'not set')} now"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key)
    ]
    before = {entry["role"]: entry["sha256"] for entry in identity.get("inputs") or [] if "role" in entry}
    names = sorted(digests.keys() | before.keys())
    return changes + [f"{name}: another content" for name in names if digests.get(name) != before.get(name)]


def find_changed_outputs(output_dir: Path, manifest: dict[str, Any]) -> list[str]:
    """Outputs that a manifest describes and that are gone or have another size."""
    paths = [(output_dir / Path(entry["path"]).name, entry["bytes"]) for entry in manifest.get("outputs") or []]
    there = [(path, path.stat().st_size if path.exists() else -1, size) for path, size in paths]
    return [f"{path.name}: gone or changed since" for path, size, wanted in there if size != wanted]


def _flatten(recipe: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Key paths and values of the sections that matter to the model, less reporting and how often is saved."""
    left_out = ("resume_from_checkpoint", *REPORTING) if before == "trainer." else ()
    if left_out and not recipe.get("load_best_model_at_end"):
        left_out += SAVING
    for name, value in recipe.items():
        if (not before and name not in MATTERS) or name in left_out:
            continue
        if isinstance(value, dict):
            yield from _flatten(value, f"{before}{name}.")
        else:
            yield before + name, value
