"""output_dir before training: whose work is in it, whether this very run is done, what --overwrite may remove."""

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import check_folder
from impruver_core.io.manifest import read_manifest

from impruver_train.checkpointing.checkpoints import discard, folders, marker_of, whole
from impruver_train.checkpointing.run_comparison import changes, touched

MANIFEST = "impruver.json"
UNFINISHED = "impruver.json.unfinished"  # tells a run apart while there is no manifest
RECIPE = "recipe.yaml"
NEW, GOES_ON, DONE = "new", "goes on", "done"
MIB = 1 << 20
WAITS = 16

# Names of what training leaves in output_dir: --overwrite removes these, and nothing else.
MADE = re.compile(
    r"recipe\.yaml|impruver\.json(\.unfinished|\.pending)?|(metrics|speed|heldout)\.jsonl|report\.html"
    r"|(adapter_model|model)(-\d+-of-\d+)?\.safetensors|(adapter_model|model)\.safetensors\.index\.json"
    r"|(adapter_config|config|generation_config|tokenizer|tokenizer_config)\.json"
    r"|chat_template\.jinja|additional_chat_templates|tokenizer\.model|tekken\.json"
)

STAGED = re.compile(r"\.(.+)\.\d+\.part")  # what is being written, and stays where a kill comes in between


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
    check_folder(output_dir, "output_dir")
    ours = is_ours(output_dir)
    foreign = [] if ours else sorted(path.name for path in made(output_dir))
    if foreign:
        raise ImpruverError(
            f"output_dir: {output_dir} holds {', '.join(foreign[:3])}, which impruver-train did not make; set another "
            "output_dir"
        )
    if not ours or overwrite:
        return NEW
    manifest, ways_out = read_manifest(output_dir / MANIFEST), "--overwrite starts anew, or set another output_dir"
    if manifest is not None:
        changed, what = changes(manifest, recipe, digests) + touched(output_dir, manifest), "another run"
    else:
        markers = (marker_of(path) for path in reversed(whole(output_dir)))
        known, what = read_manifest(output_dir / UNFINISHED) or next(markers, None), "an unfinished run"
        if not has_work(output_dir):
            return NEW
        changed = changes(known, recipe, digests)
        ways_out += "; with another one, trainer.resume_from_checkpoint goes on from this one's work"
    if not changed:
        return GOES_ON if manifest is None else DONE
    told = "\n  ".join([f"output_dir: {output_dir} holds {what}:", *changed])
    raise ImpruverError(f"{told}\n{ways_out}")


def is_ours(output_dir: Path) -> bool:
    """Whether a training of ours began here: only it writes these two, or a checkpoint with our marker."""
    return any((output_dir / name).exists() for name in (MANIFEST, UNFINISHED)) or bool(whole(output_dir))


def made(output_dir: Path) -> list[Path]:
    """What stands in `output_dir` under the names of what training leaves there, checkpoints included."""
    named = [path for path in output_dir.glob("*") if MADE.fullmatch(path.name)]
    return named + folders(output_dir)


def check_apart(output_dir: Path, base: Path | None) -> None:
    """ImpruverError where the base's folder is the one that is written to, or within it."""
    where, base = output_dir.resolve(), base.resolve() if base is not None else None
    if base is not None and (base == where or where in base.parents):
        raise ImpruverError(f"output_dir: {output_dir} holds the base (model.name: {base}); set another output_dir")


def has_work(output_dir: Path) -> bool:
    """Whether an unfinished run got as far as to leave anything: a step's row, a whole checkpoint, weights."""
    metrics = output_dir / "metrics.jsonl"
    rows = metrics.exists() and metrics.stat().st_size > 0
    return rows or bool(whole(output_dir)) or any(output_dir.glob("*.safetensors"))


def take(output_dir: Path, overwrite: bool) -> None:
    """Makes `output_dir`, less what a killed run was writing; with `overwrite` removes what an earlier one left there.

    What tells the folder as training's own goes last, should this be cut off.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    for path in output_dir.glob(".*.part"):
        staged = STAGED.fullmatch(path.name)
        if staged and MADE.fullmatch(staged[1]):
            path.unlink()
    if not overwrite:
        return
    for path in sorted(made(output_dir), key=lambda path: (path.name in (MANIFEST, UNFINISHED), path.name)):
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
