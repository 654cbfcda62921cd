"""Makes the files under other names, whole, and describes them; what an earlier run made from the same is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from impruver_core.cli.console import say, warn
from impruver_core.errors import ImpruverError
from impruver_core.files.manifest import describe, read_manifest
from impruver_core.files.safe import make_folder, sha256, staged, synced

from impruver_gguf import quantize
from impruver_gguf.convert import Conversion, sync


def make(
    conversion: Conversion,
    source: Path,
    targets: Mapping[str, Path],
    modelfiles: Mapping[Path, str],
    program: str | None,
    before: Iterable[dict[str, Any]],
) -> tuple[dict[Path, Path], str]:
    """(final path → where the file is now, sha256 of the unquantized file); nothing is left where something goes wrong.

    A level that `before`, the files of an earlier run, holds whole and made from the same file in the same way stays.
    """
    make_folder(source.parent)
    made = {path: staged(path) for path in [*([] if conversion.there else [source]), *targets.values(), *modelfiles]}
    try:
        if not conversion.there:
            conversion.write(made[source])
        origin = sha256(made.get(source, source))
        done = _done(targets, before, {"source": origin, "quantizer": quantizer(program)})
        made = {final: now for final, now in made.items() if final not in done}
        levels = {level: made[path] for level, path in targets.items() if path in made}
        quantize.quantize(made.get(source, source), levels, program)
        for path, text in modelfiles.items():
            with synced(made[path]) as file:
                file.write(text)
        for path in made.values():
            sync(path)
    except BaseException as error:
        discard(made)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(source.parent)  # a write knows no name
        raise
    return made, origin


def quantizer(program: str | None) -> str:
    """What makes the levels, as the manifest tells it."""
    return program or f"cyllama {version('cyllama')}"


def _done(targets: Mapping[str, Path], before: Iterable[dict[str, Any]], how: dict[str, str]) -> set[Path]:
    """The levels that are there already; that they are whole was checked before they could be replaced."""
    alike = {entry["path"] for entry in before if how.items() <= entry.items()}
    done = {level: path for level, path in targets.items() if path.name in alike and path.is_file()}
    if done:
        say(f"{', '.join(done)}: there already, made from the same file, and kept")
    return set(done.values())


def discard(made: Mapping[Path, Path]) -> None:
    """Removes what is not going to be put in place."""
    for path in made.values():
        path.unlink(missing_ok=True)


def earlier(path: Path, overwrite: bool) -> list[dict[str, Any]]:
    """The files that an earlier run's manifest describes."""
    try:
        return (read_manifest(path) or {}).get("outputs") or []
    except ImpruverError:
        if not overwrite:
            raise
        warn(f"{path}: can't be read, and is replaced")
        return []


def outputs(
    folder: Path,
    made: Mapping[Path, Path],
    levels: Sequence[Path],
    how: dict[str, str],
    before: Iterable[dict[str, Any]],
    there: bool,
) -> list[dict[str, Any]]:
    """What stands in the folder, for its manifest: files of earlier runs that are still there, and what was made.

    `how` tells of each of the `levels` what it was made from, and with what.
    """
    names = {path.name for path in made}
    kept = [entry for entry in before if entry["path"] not in names and (folder / entry["path"]).is_file()]
    wanted = {path.name for path in levels}
    stale = [entry["path"] for entry in kept if entry["path"].endswith(".gguf") and entry["path"] not in wanted]
    if stale and not there:
        warn(f"{', '.join(stale)} in {folder}: of an earlier run, not made anew")
    now = [
        describe(path, digest=True) | {"path": final.name} | (how if final in levels else {})
        for final, path in made.items()
    ]
    return [*kept, *now]
