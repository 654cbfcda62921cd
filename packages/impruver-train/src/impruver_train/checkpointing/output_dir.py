"""output_dir before training: whose work is in it, whether this very run is done, what --overwrite may remove."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError
from impruver_core.io import integrity
from impruver_core.io.atomic import check_folder, remove_stale_parts
from impruver_core.io.manifest import read_manifest
from impruver_core.io.model_files import read_safetensors_header

from impruver_train.checkpointing import checkpoints
from impruver_train.config.hub_target import HUB_FIELDS

MANIFEST = "impruver.json"
UNFINISHED = "impruver.json.unfinished"  # identifies a run while there is no manifest
RECIPE = "recipe.yaml"
IMATRIX = "imatrix.safetensors"  # what may come to a finished run later
MIB = 1 << 20
SAMPLE = 32 << 10  # bytes of the start and of the end of each tensor of a base

# Names of what training writes into output_dir: --overwrite removes these, and nothing else.
OUTPUTS = re.compile(
    r"recipe\.yaml|impruver\.json(\.unfinished|\.pending)?|(metrics|speed|heldout)\.jsonl|report\.html"
    r"|(adapter_model|model)(-\d+-of-\d+)?\.safetensors|(adapter_model|model)\.safetensors\.index\.json"
    r"|(adapter_config|config|generation_config|tokenizer|tokenizer_config)\.json"
    r"|imatrix\.safetensors|chat_template\.jinja|additional_chat_templates|tokenizer\.model|tekken\.json"
)
TEMPLATES = "additional_chat_templates"  # a folder
ADAPTER = ".adapter."  # begins the name of the folder by way of which an adapter is saved
ADAPTER_FOLDER = re.compile(rf"{re.escape(ADAPTER)}[a-z0-9_]{{8}}")
MATTERS = ("tokenizer", "model", "lora", "trainer", "ddp")  # sections whose change makes another model
# Arguments of `trainer` that change nothing of what is trained; those of saving do where the best one is looked for.
REPORTING = (
    "samples",
    "imatrix_rows",
    "report_to",
    "run_name",
    "project",
    "logging_steps",
    "logging_strategy",
    "logging_first_step",
)
SAVING = ("save_steps", "save_strategy", "save_total_limit", "save_only_model")


class OutputState(Enum):
    """What an output_dir is to a run."""

    NEW = "new"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


def hash_base(name: str | None, role: str = "base") -> dict[str, str]:
    """{role: a digest} of a local base or adapter: of each weights file its header, and of each tensor both ends.

    {} for a hub id or none.
    """
    if not name or not Path(name).is_dir():
        return {}
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(name).glob("*.safetensors") if path.name != IMATRIX):
        if not path.is_file():  # a pipe, at which a reader would wait for ever: who loads it has the words for that
            continue
        size, ranges = path.stat().st_size, _list_samples(path)
        digest.update(f"{path.name} {size}".encode())
        number = os.open(path, os.O_RDONLY)
        try:
            for start, stop in ranges:
                digest.update(os.pread(number, stop - start, start))
        finally:
            os.close(number)
    return {role: digest.hexdigest()}


def _list_samples(path: Path) -> list[tuple[int, int]]:
    """The bytes of a weights file that stand for all, from and to: its header, 32 KiB of both ends of each tensor.

    Of a file that is broken, which is told where it is loaded, its ends.
    """
    size = path.stat().st_size
    try:
        tensors = sorted((entry.start, entry.stop) for entry in read_safetensors_header(path).values())
    except ImpruverError:
        return [(0, min(MIB, size)), (max(0, size - MIB), size)]
    samples = [(0, min((start for start, _ in tensors), default=size))]
    for start, stop in tensors:
        samples += [(start, stop)] if stop - start <= 2 * SAMPLE else [(start, start + SAMPLE), (stop - SAMPLE, stop)]
    return samples


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
        changes, run = find_changes(manifest, recipe, digests), "another run"
        if not changes:
            changes, run = find_changed_outputs(output_dir, manifest), "this very run, finished, and not as it was left"
    else:
        _check_writable(output_dir)
        if not has_work(output_dir):
            return OutputState.NEW
        changes, run = find_changes(find_identity(output_dir), recipe, digests), "an unfinished run"
        ways_out += "; with another one, trainer.resume_from_checkpoint resumes from this one's work"
    if not changes:
        return OutputState.UNFINISHED if manifest is None else OutputState.FINISHED
    lines = "\n  ".join([f"output_dir: {output_dir} holds {run}:", *changes])
    raise ImpruverError(f"{lines}\n{ways_out}")


def _check_writable(output_dir: Path) -> None:
    """ImpruverError where a folder or a pipe stands at the name of a file that training writes, maybe hours later."""
    for path in list_outputs(output_dir):
        as_it_should = path.is_file() or path.name in (UNFINISHED, TEMPLATES) or checkpoints.NAME.fullmatch(path.name)
        if not as_it_should:
            raise ImpruverError(
                f"output_dir: {path} is no file, and training would write one: remove it, or set another output_dir"
            )


def find_identity(output_dir: Path) -> dict[str, Any]:
    """What identifies the unfinished run in `output_dir`: a file of its own, else a checkpoint's marker."""
    broken = None
    try:
        identity = checkpoints.read_run_identity(output_dir / UNFINISHED)
    except ImpruverError as error:
        identity, broken = None, error
    markers = map(checkpoints.read_marker, reversed(checkpoints.list_checkpoints(output_dir)))
    identity = identity or next(filter(None, markers), None)
    if identity is None:
        why = f" ({broken})" if broken else ""
        raise ImpruverError(
            f"output_dir: {output_dir} holds an unfinished run, and nothing there tells which{why}; --overwrite starts "
            "anew, or set another output_dir"
        )
    if broken:
        warn(f"{broken}: the run is known by its checkpoints")
    return identity


def is_train_output(output_dir: Path) -> bool:
    """Whether a training of ours began here: only it writes these two, or a checkpoint with our marker."""
    named = any(os.path.lexists(output_dir / name) for name in (MANIFEST, UNFINISHED))
    return named or any(map(checkpoints.read_marker, checkpoints.list_checkpoints(output_dir)))


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
    """Whether an unfinished run got as far as to write anything: a step's row, a marked checkpoint, weights."""
    metrics = output_dir / "metrics.jsonl"
    rows = metrics.exists() and metrics.stat().st_size > 0
    marked = any(os.path.lexists(path / checkpoints.MARKER) for path in checkpoints.list_checkpoints(output_dir))
    return rows or marked or any(output_dir.glob("*.safetensors"))


def claim_output_dir(output_dir: Path, overwrite: bool) -> None:
    """Makes `output_dir`, less what a killed run was writing; `overwrite` removes what an earlier one wrote there."""
    output_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output_dir)
    if not overwrite:
        return
    # What identifies the folder as training's own goes last, should this be cut off.
    for path in sorted(list_outputs(output_dir), key=lambda path: (path.name in (MANIFEST, UNFINISHED), path.name)):
        checkpoints.remove_checkpoint(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def remove_leftovers(output_dir: Path) -> None:
    """Removes what a killed run was writing: staged files, an adapter on its way, checkpoints without a marker."""
    remove_stale_parts(output_dir, OUTPUTS.fullmatch)
    for path in output_dir.glob(f"{ADAPTER}*"):
        if ADAPTER_FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
    checkpoints.remove_unmarked_checkpoints(output_dir)


def tidy_finished_run(output_dir: Path) -> None:
    """Removes from a finished run's folder what only an unfinished one needs, where a kill came before that."""
    remove_leftovers(output_dir)
    if (output_dir / UNFINISHED).is_file():
        (output_dir / UNFINISHED).unlink(missing_ok=True)
    checkpoints.remove_stopped_checkpoints(output_dir)


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
    """Outputs that are not as a manifest describes them; they are read where it has checksums."""
    changes = []
    for entry in manifest.get("outputs") or []:
        path = output_dir / Path(entry["path"]).name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            changes.append(f"{path.name}: gone or changed since")
        elif "xxh3" in entry and (damage := integrity.find_damage(path, entry)):
            changes.append(f"{path.name}: {damage}")
    return changes


def _flatten(recipe: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Key paths and values of the sections that matter to the model, less reporting and how often is saved."""
    left_out = ("resume_from_checkpoint", *REPORTING, *HUB_FIELDS) if before == "trainer." else ()
    if left_out and not recipe.get("load_best_model_at_end"):
        left_out += SAVING
    for name, value in recipe.items():
        if (not before and name not in MATTERS) or name in left_out:
            continue
        if isinstance(value, dict):
            yield from _flatten(value, f"{before}{name}.")
        else:
            yield before + name, value
