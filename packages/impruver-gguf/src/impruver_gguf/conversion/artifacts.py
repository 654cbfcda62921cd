"""Make the files of an export under temporary names, and reuse those of earlier runs."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from impruver_core.cli.console import log_info, warn
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import get_staged_path, hash_file, make_folder, remove_path, remove_stale_parts
from impruver_core.io.gguf_file import read_gguf_header
from impruver_core.io.manifest import describe_file, get_pending_path, read_manifest

from impruver_gguf.conversion.plan import SCRATCH, ConversionPlan
from impruver_gguf.quantization.quant_types import NOT_QUANTIZED, QUANT_TYPES, estimate_bytes
from impruver_gguf.quantization.quantize import get_quantizer_name, quantize

QUALITY_FILE = "quality.jsonl"
Staged = dict[Path, Path]  # final path → where the file is now
Entries = dict[Path, dict[str, Any]]  # final path → what the manifest says of the file


@dataclass(frozen=True)
class ArtifactPlan:
    """Which files an export makes, and how."""

    files: Mapping[str, Path]  # level → file, the unquantized one first
    modelfiles: Mapping[Path, str]  # Modelfile → its text
    conversion: ConversionPlan
    quantizer: str | None  # a llama-quantize; None: cyllama's library
    previous: Sequence[dict[str, Any]]  # the manifest's entries of an earlier run's files
    done: Collection[Path] = ()  # the files of levels that stay as they are

    @property
    def source(self) -> Path:
        """The unquantized file."""
        return next(iter(self.files.values()))

    @property
    def levels(self) -> dict[str, Path]:
        """The files that are quantized from it."""
        return dict([*self.files.items()][1:])

    def estimate_sizes(self) -> dict[Path, int]:
        """Estimate the bytes of each GGUF file that is to be made."""
        conversion = self.conversion
        sizes = {} if conversion.exists else {self.source: conversion.file_bytes}
        for level, path in self.levels.items():
            sizes[path] = conversion.header_bytes + estimate_bytes(level, conversion.shapes)
        return {path: size for path, size in sizes.items() if path not in self.done}


def list_possible_outputs(folder: Path) -> list[Path]:
    """List all files that an export may put into `folder`, whatever its recipe."""
    levels = (*NOT_QUANTIZED, *QUANT_TYPES)
    return [folder / name for level in levels for name in (f"model-{level}.gguf", f"Modelfile.{level}")] + [
        folder / QUALITY_FILE
    ]


def remove_leftovers(manifest_path: Path) -> None:
    """Remove what killed runs left beside the outputs: merged models, manifests that were being written."""
    remove_stale_parts(manifest_path.parent, {manifest_path.name, get_pending_path(manifest_path).name}.__contains__)
    # A link among them is removed, and not what it leads to.
    for folder in manifest_path.parent.glob(f"{SCRATCH}*"):
        remove_path(folder)


def read_previous_outputs(manifest_path: Path, overwrite: bool) -> list[dict[str, Any]]:
    """Read what an earlier run's manifest says of its files; its quality.jsonl is of none of those to come."""
    try:
        outputs = (read_manifest(manifest_path) or {}).get("outputs") or []
        return [entry for entry in outputs if entry["path"] != QUALITY_FILE]
    except ImpruverError:
        if not overwrite:
            raise
        warn(f"{manifest_path}: can't be read, and is replaced")
        return []


def reuse_outputs(plan: ArtifactPlan) -> ArtifactPlan:
    """Leave out what an earlier run made alike: the same unquantized file, and the levels made from it.

    That these files are as the manifest describes them was checked before they could be replaced.
    """
    source, conversion = plan.source, plan.conversion
    known = source.name in {entry["path"] for entry in plan.previous} and source.is_file()
    if known and not conversion.exists and conversion.is_same(source):
        log_info(f"{source.name}: there already, the same byte for byte, and kept")
        conversion = replace(conversion, exists=True)
    if not conversion.exists:
        return plan
    conversion = replace(conversion, digest=hash_file(source))
    origin = {"source": conversion.digest, "quantizer": get_quantizer_name(plan.quantizer)}
    alike = {entry["path"] for entry in plan.previous if origin.items() <= entry.items()}
    done = {level: path for level, path in plan.levels.items() if path.name in alike and path.is_file()}
    for path in done.values():
        read_gguf_header(path)  # the manifest that describes them may have come with them
    if done:
        log_info(f"{', '.join(done)}: there already, made from the same file, and kept")
    return replace(plan, conversion=conversion, done=set(done.values()))


@contextmanager
def staged_outputs(plan: ArtifactPlan) -> Iterator[Staged]:
    """Yield temporary paths of the files that are to be made; they are removed where a step fails."""
    make_folder(plan.source.parent)
    source = [] if plan.conversion.exists else [plan.source]
    levels = [path for path in plan.levels.values() if path not in plan.done]
    staged = {path: get_staged_path(path) for path in (*source, *levels, *plan.modelfiles)}
    _remove(staged)  # a killed run's: whoever still writes into one writes nowhere
    try:
        for path in staged.values():
            path.touch(exist_ok=False)  # no symbolic link can stand there when a library opens it
        yield staged
    except BaseException as error:
        _remove(staged)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(plan.source.parent)  # a write knows no name
        raise


def convert(plan: ArtifactPlan, staged: Staged) -> None:
    """Write the unquantized file, unless it is there."""
    if not plan.conversion.exists:
        plan.conversion.write(staged[plan.source])


def quantize_levels(plan: ArtifactPlan, staged: Staged) -> Entries:
    """Make the levels that are not done from the unquantized file; describe what is whole while the next is made."""
    targets = {level: staged[path] for level, path in plan.levels.items() if path in staged}
    entries: Entries = {}
    with closing(quantize(staged.get(plan.source, plan.source), targets, plan.quantizer)) as levels:
        for level in levels:
            for final in {plan.source, plan.levels[level]} & (staged.keys() - entries.keys()):
                entries[final] = _describe_staged(staged[final])
    return entries


def write_modelfiles(plan: ArtifactPlan, staged: Staged) -> None:
    """Write the Modelfiles."""
    for path, text in plan.modelfiles.items():
        staged[path].write_text(text, encoding="utf-8", newline="\n")


def describe_outputs(plan: ArtifactPlan, staged: Staged, entries: Entries) -> list[dict[str, Any]]:
    """Describe what was made for the manifest, after what stays of earlier runs; `entries` are there already."""
    entries = {final: entries.get(final) or _describe_staged(path) for final, path in staged.items()}
    digest = plan.conversion.digest or entries.get(plan.source, {}).get("sha256") or hash_file(plan.source)
    origin = {"source": digest, "quantizer": get_quantizer_name(plan.quantizer)}
    folder, levels = plan.source.parent, set(plan.levels.values())
    present = {path.name for path in folder.iterdir() if path.is_file()} - {path.name for path in staged}
    staying = [entry for entry in plan.previous if entry["path"] in present]
    stale = [entry["path"] for entry in staying if entry.get("source", digest) != digest]
    if stale:
        warn(f"{', '.join(stale)} in {folder}: of an earlier run, not made anew")
    new = [entry | {"path": final.name} | (origin if final in levels else {}) for final, entry in entries.items()]
    return [*staying, *new]


def _describe_staged(path: Path) -> dict[str, Any]:
    """Sync a file to the disk and describe it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return describe_file(path, digest=True, checksum=True)


def _remove(staged: Staged) -> None:
    for path in staged.values():
        path.unlink(missing_ok=True)
