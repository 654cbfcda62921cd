"""output_dir before training: whose work is in it, whether this very run is done, what --overwrite may remove."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.files.manifest import read_manifest

MANIFEST = "impruver.json"
RECIPE = "recipe.yaml"
MATTERS = ("tokenizer", "model", "lora", "trainer", "ddp")  # sections whose change makes another model
REPORTING = ("report_to", "run_name", "project", "logging_steps", "logging_strategy", "logging_first_step")
MIB = 1 << 20

# What training leaves in output_dir: --overwrite removes this and nothing else.
MADE = (
    "recipe.yaml",
    "impruver.json*",
    "metrics.jsonl",
    "heldout.jsonl",
    "report.html",
    "adapter_config.json",
    "adapter_model*.safetensors",
    "model*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "tekken.json",
    "README.md",
    "training_args.bin",
    "checkpoint-*",
    "runs",
)


def differences(output_dir: Path, recipe: dict[str, Any], digests: dict[str, str]) -> list[str] | None:
    """What sets the finished work in `output_dir` apart from a run of `recipe` on inputs with these digests.

    None: there is no finished work. []: it is this very run's, whole.
    """
    manifest = read_manifest(output_dir / MANIFEST)
    if manifest is None:
        return None
    now, then = dict(flat(recipe)), dict(flat(manifest.get("recipe") or {}))
    changed = [
        f"{key}: {then.get(key, 'not set')} then, {now.get(key, 'not set')} now"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key)
    ]
    known = {part["role"]: part["sha256"] for part in manifest.get("inputs") or [] if "role" in part}
    names = sorted(digests.keys() | known.keys())
    changed += [f"{name}: another content" for name in names if digests.get(name) != known.get(name)]
    for part in manifest.get("outputs") or []:
        path = output_dir / Path(part["path"]).name
        if not path.exists() or path.stat().st_size != part["bytes"]:
            changed.append(f"{path.name}: gone or changed since")
    return changed


def flat(recipe: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Key paths and values of the sections that matter to the model, without where it is reported to."""
    for name, value in recipe.items():
        if (not before and name not in MATTERS) or (before == "trainer." and name in REPORTING):
            continue
        if isinstance(value, dict):
            yield from flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def base_digest(name: str | None) -> dict[str, str]:
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


def is_done(output_dir: Path, recipe: dict[str, Any], digests: dict[str, str], overwrite: bool) -> bool:
    """True if `output_dir` holds this very run, finished. ImpruverError where it can't be used; writes nothing.

    A run's own earlier work may be replaced with `overwrite`, files that training did not make never.
    """
    check_writable(output_dir)
    ours = (output_dir / RECIPE).exists()
    if not ours:
        foreign = sorted(path.name for pattern in MADE for path in output_dir.glob(pattern))
        if foreign:
            raise ImpruverError(
                f"output_dir: {output_dir} holds {', '.join(foreign[:3])}, which impruver-train did not make; set "
                "another output_dir"
            )
    if not ours or overwrite:
        return False
    changed = differences(output_dir, recipe, digests)
    if changed == []:
        return True
    what = "an unfinished run" if changed is None else "another run:\n  " + "\n  ".join(changed) + "\n "
    raise ImpruverError(f"output_dir: {output_dir} holds {what}; --overwrite starts anew, or set another output_dir")


def check_writable(folder: Path) -> None:
    """ImpruverError if `folder` can't be made or written."""
    for parent in (folder, *folder.absolute().parents):
        if parent.exists():
            if not parent.is_dir():
                raise ImpruverError(f"output_dir: {parent} is a file, not a folder")
            if not os.access(parent, os.W_OK | os.X_OK):
                raise ImpruverError(f"output_dir: {parent} is not writable")
            return


def take(output_dir: Path, overwrite: bool) -> None:
    """Makes `output_dir`; with `overwrite` removes what an earlier training left there, and nothing else."""
    output_dir.mkdir(parents=True, exist_ok=True)
    if not overwrite:
        return
    for pattern in MADE:
        for path in output_dir.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
