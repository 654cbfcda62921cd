"""Makes the files under other names, whole, and describes them; what an earlier run made from the same is kept."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from impruver_core.cli.console import log_info, warn
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import get_staged_path, hash_file, make_folder
from impruver_core.io.manifest import describe_file, read_manifest

from impruver_gguf.conversion.plan import Conversion
from impruver_gguf.quantization import quantize
from impruver_gguf.verification.quality_report import QUALITY


def kept(
    conversion: Conversion, files: Mapping[str, Path], program: str | None, before: Sequence[dict[str, Any]]
) -> tuple[Conversion, set[Path]]:
    """What of `before`, the files of an earlier run, stays: (`conversion` without what it would write again, levels).

    That they are whole was checked before they could be replaced.
    """
    (_, source), *targets = files.items()
    known = source.name in {entry["path"] for entry in before} and source.is_file()
    if known and not conversion.there and conversion.same(source):
        log_info(f"{source.name}: there already, the same byte for byte, and kept")
        conversion = replace(conversion, there=True)
    if not conversion.there:
        return conversion, set()
    conversion = replace(conversion, digest=hash_file(source))
    how = {"source": conversion.digest, "quantizer": quantizer(program)}
    alike = {entry["path"] for entry in before if how.items() <= entry.items()}
    done = {level: path for level, path in targets if path.name in alike and path.is_file()}
    if done:
        log_info(f"{', '.join(done)}: there already, made from the same file, and kept")
    return conversion, set(done.values())


def make(
    conversion: Conversion,
    files: Mapping[str, Path],
    modelfiles: Mapping[Path, str],
    program: str | None,
    done: Collection[Path],
    before: Sequence[dict[str, Any]],
) -> tuple[dict[Path, Path], list[dict[str, Any]]]:
    """Makes `files` (level → path, the unquantized one first) under other names, but for those that are `done`.

    (final path → where the file is now, outputs for the manifest: `before` as far as it stays, and what was made).
    Nothing is left where that fails.
    """
    (_, source), *targets = files.items()
    make_folder(source.parent)
    levels = [path for _, path in targets]
    new = [*([] if conversion.there else [source]), *(path for path in levels if path not in done), *modelfiles]
    made = {path: get_staged_path(path) for path in new}
    _discard(made)  # a killed run's: whoever still writes into one writes nowhere
    try:
        if not conversion.there:
            conversion.write(made[source])
        now = made.get(source, source)
        how = {"source": conversion.digest or hash_file(now), "quantizer": quantizer(program)}
        quantize.quantize(now, {level: made[path] for level, path in targets if path in made}, program)
        for path, text in modelfiles.items():
            made[path].write_text(text, encoding="utf-8", newline="\n")
        for path in made.values():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        return made, _outputs(made, levels, how, before)
    except BaseException as error:
        _discard(made)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(source.parent)  # a write knows no name
        raise


def quantizer(program: str | None) -> str:
    """What makes the levels, as the manifest tells it."""
    return program or f"cyllama {version('cyllama')}"


def _discard(made: Mapping[Path, Path]) -> None:
    for path in made.values():
        path.unlink(missing_ok=True)


def earlier(path: Path, overwrite: bool) -> list[dict[str, Any]]:
    """The files that an earlier run's manifest describes; its proof is none of those to come."""
    try:
        outputs = (read_manifest(path) or {}).get("outputs") or []
        return [entry for entry in outputs if entry["path"] != QUALITY]
    except ImpruverError:
        if not overwrite:
            raise
        warn(f"{path}: can't be read, and is replaced")
        return []


def _outputs(
    made: Mapping[Path, Path], levels: Collection[Path], how: dict[str, str], before: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What stands in the folder: files of earlier runs that are still there, and what was made."""
    names = {path.name for path in made}
    folder = next(iter(made)).parent
    kept = [entry for entry in before if entry["path"] not in names and (folder / entry["path"]).is_file()]
    stale = [entry["path"] for entry in kept if entry.get("source", how["source"]) != how["source"]]
    if stale:
        warn(f"{', '.join(stale)} in {folder}: of an earlier run, not made anew")
    now = [
        describe_file(path, digest=True) | {"path": final.name} | (how if final in levels else {})
        for final, path in made.items()
    ]
    return [*kept, *now]
