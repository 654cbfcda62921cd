"""output_dir before training: whose work is in it, whether this very run is done, what --overwrite may remove."""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.files.manifest import read_manifest

from impruver_train.checkpoints import discard, marker_of, whole
from impruver_train.compare import changes, touched

MANIFEST = "impruver.json"
UNFINISHED = "impruver.json.unfinished"  # tells a run apart while there is no manifest
RECIPE = "recipe.yaml"
NEW, GOES_ON, DONE = "new", "goes on", "done"
MIB = 1 << 20
WAITS = 16

# What training leaves in output_dir: --overwrite removes this and nothing else.
MADE = (
    "recipe.yaml",
    "impruver.json*",
    "metrics.jsonl",
    "speed.jsonl",
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
    "stopped-*",
    "runs",
)


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


def look(output_dir: Path, recipe: dict[str, Any], digests: dict[str, str], overwrite: bool) -> str:
    """NEW, GOES_ON or DONE: what `output_dir` is to a run of `recipe` on inputs with these digests; writes nothing.

    ImpruverError where it can't be used. A run's own earlier work may be replaced with `overwrite`, files that training
    did not make never.
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
        return NEW
    manifest, ways_out = read_manifest(output_dir / MANIFEST), "--overwrite starts anew, or set another output_dir"
    if manifest is not None:
        changed, what = changes(manifest, recipe, digests) + touched(output_dir, manifest), "another run"
    else:
        markers = (marker_of(path) for path in reversed(whole(output_dir)))
        known, what = read_unfinished(output_dir) or next(markers, None), "an unfinished run"
        if not has_work(output_dir):
            return NEW
        if known is None:
            raise ImpruverError(f"output_dir: {output_dir} holds {what}, and nothing tells which; {ways_out}")
        changed = changes(known, recipe, digests)
        ways_out += "; with another one, trainer.resume_from_checkpoint goes on from this one's work"
    if not changed:
        return GOES_ON if manifest is None else DONE
    told = "\n  ".join([f"output_dir: {output_dir} holds {what}:", *changed])
    raise ImpruverError(f"{told}\n{ways_out}")


def read_unfinished(output_dir: Path) -> dict[str, Any] | None:
    """What the unfinished run in `output_dir` is told apart by; None without one."""
    return read_manifest(output_dir / UNFINISHED)


def has_work(output_dir: Path) -> bool:
    """Whether an unfinished run got as far as to leave anything: a step's row, a whole checkpoint, weights."""
    metrics = output_dir / "metrics.jsonl"
    rows = metrics.exists() and metrics.stat().st_size > 0
    return rows or bool(whole(output_dir)) or any(output_dir.glob("*.safetensors"))


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
    """Makes `output_dir`; with `overwrite` removes what an earlier training left there, and nothing else.

    The recipe goes last: cut off before, the folder is still known as training's own.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    if not overwrite:
        return
    found = {path for pattern in MADE for path in output_dir.glob(pattern)}
    for path in sorted(found, key=lambda path: (path.name == RECIPE, path.name)):
        discard(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def held(output_dir: Path) -> Iterator[None]:
    """Makes `output_dir` this process's alone; ImpruverError where another trains in it.

    It waits a little: what a killed run left running lets go within seconds.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    number = os.open(output_dir, os.O_RDONLY)
    try:
        for left in reversed(range(WAITS)):
            if locked(number):
                break
            if not left:
                raise ImpruverError(f"output_dir: another impruver-train is at work in {output_dir}")
            time.sleep(0.5)
        yield
    finally:
        with suppress(OSError):  # nothing came of it
            output_dir.rmdir()
        os.close(number)


def locked(number: int) -> bool:
    """Whether an open folder is now locked, or can't be on this system."""
    try:
        import fcntl

        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # not on every system, nor on every network's disk
        pass
    return True
