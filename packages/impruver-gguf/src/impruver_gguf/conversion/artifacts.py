"""Make the files of an export under temporary names, and reuse those of earlier runs."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from impruver_gguf.quantization.imatrix_choice import IMATRIX_FILE, LevelChoice, MatrixPlan, get_candidate_path
from impruver_gguf.quantization.quant_types import NOT_QUANTIZED, QUANT_TYPES, WITH_IMATRIX, estimate_bytes
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
    matrix: MatrixPlan | None = None  # the importance matrix to quantize with
    done: Collection[Path] = ()  # the files of levels that stay as they are

    @property
    def source(self) -> Path:
        """The unquantized file."""
        return next(iter(self.files.values()))

    @property
    def levels(self) -> dict[str, Path]:
        """The files that are quantized from it."""
        return dict([*self.files.items()][1:])

    @property
    def candidates(self) -> dict[str, Path]:
        """The files that are quantized with the importance matrix, beside those without one; one of each two stays."""
        levels = {level: path for level, path in self.levels.items() if self.matrix and path not in self.done}
        return {level: get_candidate_path(path) for level, path in levels.items()}

    @property
    def origin(self) -> dict[str, Any]:
        """What a level's file is made with, for the manifest, beside the unquantized file."""
        return {"quantizer": get_quantizer_name(self.quantizer), "imatrix": self.matrix and self.matrix.identity}

    def estimate_sizes(self) -> dict[Path, int]:
        """Estimate the bytes of each GGUF file that is to be made."""
        conversion = self.conversion
        sizes = {} if conversion.exists else {self.source: conversion.file_bytes}
        for level, path in self.levels.items():
            sizes[path] = conversion.header_bytes + estimate_bytes(level, conversion.shapes)
        return {path: size for path, size in sizes.items() if path not in self.done}

    def estimate_candidates(self) -> int:
        """Estimate the bytes of the files that are made beside others, and of which one of each two goes again."""
        both = [level for level in self.candidates if level not in WITH_IMATRIX and self.matrix.compared]
        return sum(self.conversion.header_bytes + estimate_bytes(level, self.conversion.shapes) for level in both)


def list_possible_outputs(folder: Path) -> list[Path]:
    """List all files that an export may put into `folder`, whatever its recipe."""
    levels = (*NOT_QUANTIZED, *QUANT_TYPES)
    named = [folder / name for level in levels for name in (f"model-{level}.gguf", f"Modelfile.{level}")]
    return [*named, folder / QUALITY_FILE, folder / IMATRIX_FILE]


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
    origin = {"source": conversion.digest, **plan.origin}
    alike = {entry["path"] for entry in plan.previous if all(entry.get(key) == origin[key] for key in origin)}
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
    matrix = [plan.matrix.target] if plan.matrix and plan.candidates else []
    staged = {path: get_staged_path(path) for path in (*source, *levels, *matrix, *plan.modelfiles)}
    candidates = {path: get_staged_path(get_candidate_path(path)) for path in plan.levels.values()}
    _remove(staged)  # a killed run's: whoever still writes into one writes nowhere
    _remove(candidates)
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


def quantize_levels(
    plan: ArtifactPlan, staged: Staged, compare: Callable[[Path, Sequence[Path]], Sequence[float | None]] | None
) -> Entries:
    """Make the levels that are not done from the unquantized file; describe what is whole while the next is made.

    With an importance matrix a level is made with it and without, and the one stays that `compare` finds nearer to the
    unquantized file: it measures the KL divergence of each file. None: what is made with the matrix stays.
    """
    targets = {level: staged[path] for level, path in plan.levels.items() if path in staged}
    source, entries = staged.get(plan.source, plan.source), {}
    if plan.candidates:
        return _quantize_with_matrix(plan, staged, source, targets, compare)
    with closing(quantize(source, targets, plan.quantizer)) as levels:
        for level in levels:
            for final in {plan.source, plan.levels[level]} & (staged.keys() - entries.keys()):
                entries[final] = _describe_staged(staged[final])
    return entries


def _quantize_with_matrix(
    plan: ArtifactPlan,
    staged: Staged,
    source: Path,
    targets: Mapping[str, Path],
    compare: Callable[[Path, Sequence[Path]], Sequence[float | None]] | None,
) -> Entries:
    matrix = staged[plan.matrix.target]
    plan.matrix.write(matrix, source)
    candidates = {level: get_staged_path(path) for level, path in plan.candidates.items()}
    plain = {level: path for level, path in targets.items() if compare and level not in WITH_IMATRIX}
    try:
        for path in candidates.values():
            path.touch(exist_ok=False)  # no symbolic link can stand there, as for what is staged
        for files, used in ((plain, None), (candidates, matrix)):
            with closing(quantize(source, files, plan.quantizer, used)) as levels:
                for _ in levels:
                    pass
        rivals = [path for level in plain for path in (candidates[level], plain[level])]
        divergences = dict(zip(rivals, compare(source, rivals), strict=True)) if rivals else {}
        entries: Entries = {}
        for level, path in targets.items():
            choice = LevelChoice(level, divergences.get(candidates[level]), divergences.get(plain.get(level)))
            choice.log()
            if choice.with_matrix:
                candidates[level].replace(path)
            entries[plan.levels[level]] = _describe_staged(path) | {"with_imatrix": choice.with_matrix}
    finally:
        for path in candidates.values():
            path.unlink(missing_ok=True)
    return entries


def write_modelfiles(plan: ArtifactPlan, staged: Staged) -> None:
    """Write the Modelfiles."""
    for path, text in plan.modelfiles.items():
        staged[path].write_text(text, encoding="utf-8", newline="\n")


def describe_outputs(plan: ArtifactPlan, staged: Staged, entries: Entries) -> list[dict[str, Any]]:
    """Describe what was made for the manifest, after what stays of earlier runs; `entries` are there already."""
    entries = {final: entries.get(final) or _describe_staged(path) for final, path in staged.items()}
    digest = plan.conversion.digest or entries.get(plan.source, {}).get("sha256") or hash_file(plan.source)
    origin = {"source": digest} | {key: value for key, value in plan.origin.items() if value is not None}
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
