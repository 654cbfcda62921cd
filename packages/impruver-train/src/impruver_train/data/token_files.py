"""The token files that a recipe names, read as one: a file, the parts of a folder, or what a glob matches."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from impruver_core.cli.console import log_info
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import hash_file
from impruver_core.io.compression import BROKEN, COMPRESSED, build_read_error, open_compressed
from impruver_core.io.jsonl import read_numbered_rows
from impruver_core.io.manifest import get_manifest_path, locate_output, normalize_path, read_manifest
from impruver_core.io.row_parts import PART, list_row_files, sort_parts
from impruver_core.recipe.paths import list_matches
from impruver_core.tokenizer import compute_fingerprint, compute_template_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VAL = "val"  # the role of the rows that `eval_loss` is of; others are val.NAME
BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class TokenFiles:
    """Token rows as a recipe names them, and the files that hold them, in order; lines are counted over all."""

    path: Path
    parts: tuple[Path, ...]

    def __str__(self) -> str:
        return str(self.path)


class ContentDigest(NamedTuple):
    """What the rows' bytes are, unpacked and put together: the same for one file, its parts, and these compressed."""

    sha256: str
    size: int
    parts: dict[Path, str]  # the sha256 of each part as it lies there, of those that were asked for


class NumberedRow(NamedTuple):
    """A row with its place, both lines from 1: in the part, and over all of them."""

    part: Path
    line: int
    overall: int
    row: dict[str, Any]


def find_token_files(
    train_path: str | None, val_paths: dict[str, str], recipe_path: Path, dry_run: bool
) -> dict[str, TokenFiles]:
    """The token files by role: "train", "val" for the first of `val_paths`, "val.NAME" for the others.

    In a dry run those that compose has yet to make may be missing: train's and the first of validation.
    """
    if not train_path:
        raise ImpruverError(f"{recipe_path}: train_path is not set")
    roles = [VAL if number == 0 else f"{VAL}.{name}" for number, name in enumerate(val_paths)]
    named = {"train": train_path} | dict(zip(roles, val_paths.values(), strict=True))
    files = {}
    for role, text in named.items():
        path = Path(text).expanduser()
        stem, _, name = role.partition(".")
        key = f"{stem}_path" + (f".{name}" if name else "")
        parts = _list_parts(path, key)
        if parts:
            files[role] = TokenFiles(path, tuple(parts))
            continue
        where = f"{path} is a folder without rows, no .jsonl in it" if path.is_dir() else f"{path} is not there"
        if name:
            raise ImpruverError(f"{key}: {where}, and impruver-compose makes the first file alone")
        absent = f"{key}: {where}; impruver-compose --config {recipe_path} makes it"
        if not dry_run:
            raise ImpruverError(absent)
        log_info(f"note: {absent}")
    return files


def _list_parts(path: Path, key: str) -> list[Path]:
    """The files that a path of the recipe names; [] where compose has yet to make them."""
    if path.is_file():
        return [path]
    if path.is_dir():
        parts = list_row_files(path)
    elif path.exists() or path.is_symlink():
        raise ImpruverError(f"{key}: {path} is no regular file" + " (a broken link)" * (not path.exists()))
    elif glob.has_magic(str(path)):
        parts = sort_parts(match for match in list_matches(path) if not match.is_dir())
        if not parts and set("*?") & set(str(path)):
            raise ImpruverError(f"{key}: no file matches {path}")
    else:
        return []
    for part in parts:
        if not part.is_file():
            raise ImpruverError(f"{key}: {part} is no regular file" + " (a broken link)" * (not part.exists()))
    return parts


def hash_content(files: TokenFiles, described: Collection[Path] = ()) -> ContentDigest:
    """The hash of the rows' bytes, and those of the `described` parts as they lie there; each is read once if plain."""
    whole, size, parts, ends = hashlib.sha256(), 0, {}, True
    for part in files.parts:
        if not ends:  # the next part begins on a line of its own
            whole.update(b"\n")
            size += 1
        own = hashlib.sha256() if part in described and not _is_compressed(part) else None
        try:
            with open_compressed(part) as file:
                while block := file.read(BLOCK):
                    whole.update(block)
                    size += len(block)
                    ends = block.endswith(b"\n")
                    if own is not None:
                        own.update(block)
        except BROKEN as error:
            raise build_read_error(str(part), error) from None
        if part in described:
            parts[part] = hash_file(part) if own is None else own.hexdigest()
    return ContentDigest(whole.hexdigest(), size, parts)


def _is_compressed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSED


def read_token_rows(files: TokenFiles) -> Iterator[NumberedRow]:
    """The rows of all parts in order, unchecked; ImpruverError with part and line for one that is no object."""
    before = 0
    for part in files.parts:
        with open_compressed(part) as file:
            lines = _LineCounter(file)
            for line, row in read_numbered_rows(part, lines):
                yield NumberedRow(part, line, before + line, row)
        before += lines.count


class _LineCounter:
    """A file whose lines are counted as they are read."""

    def __init__(self, file: BinaryIO):
        self.file, self.count = file, 0

    def readline(self, limit: int) -> bytes:
        line = self.file.readline(limit)
        self.count += bool(line)
        return line


def format_line(files: TokenFiles, overall: int) -> str:
    """`FILE, line 7` of a line that is counted over all parts."""
    line = overall
    for part in files.parts[:-1]:
        with open_compressed(part) as file:
            count = sum(1 for _ in file)
        if line <= count:
            return f"{part}, line {line}"
        line -= count
    return f"{files.parts[-1]}, line {line}"


def read_part_descriptions(files: Mapping[str, TokenFiles]) -> dict[Path, dict[str, Any]]:
    """The entry of each part by the manifest beside its folder, or beside train's.

    ImpruverError for a part that is described and not there, or the other way round, in a folder that is named as such.
    """
    described = {}
    for each in files.values():
        folders = dict.fromkeys(part.parent for part in each.parts) if each.parts != (each.path,) else ()
        for folder in folders:
            manifests = [get_manifest_path(folder), *_list_manifest_paths(files.get("train"))]
            entries = next(filter(None, (_read_entries(manifest, folder) for manifest in manifests)), {})
            own = {part: entries[normalize_path(part)] for part in each.parts if normalize_path(part) in entries}
            described |= own
            if not entries or each.path != folder:
                continue
            for path in sorted(entries.keys() - {normalize_path(part) for part in own}):
                raise ImpruverError(
                    f"{folder / path.name} is not there, and the manifest of {folder} names it: copy it again, or run "
                    "impruver-compose again"
                )
            for part in each.parts:
                if part not in own:
                    raise ImpruverError(
                        f"{part} is none of the parts that the manifest of {folder} names: move it away, or name the "
                        "files that are meant by a glob"
                    )
    return described


def _list_manifest_paths(files: TokenFiles | None) -> list[Path]:
    """Where manifests of token rows may be: beside file or folder, of a glob beside its files and their folders."""
    if files is None:
        return []
    if files.path.is_file() or files.path.is_dir():
        return [get_manifest_path(files.path)]
    places = (path for part in files.parts for path in (part, part.parent))
    return [get_manifest_path(path) for path in dict.fromkeys(places)]


def _read_entries(manifest: Path, folder: Path) -> dict[Path, dict[str, Any]]:
    """The manifest's entries of the parts in `folder`; {} where there is no manifest."""
    outputs = (read_manifest(manifest) or {}).get("outputs") or []
    located = {locate_output(manifest, entry["path"]): entry for entry in outputs}
    return {
        path: entry
        for path, entry in located.items()
        if path.parent == normalize_path(folder) and PART.fullmatch(path.name)
    }


def check_parts_as_written(described: Mapping[Path, dict[str, Any]], digests: Mapping[Path, str]) -> None:
    """ImpruverError for a part whose hash is another than the manifest's."""
    for part, digest in digests.items():
        if described[part].get("sha256", digest) != digest:
            raise ImpruverError(
                f"{part} was changed since impruver-compose made it, by the manifest of {part.parent}: copy it or make "
                "it again, or if you changed it on purpose, remove the manifest"
            )


def check_data_manifest(files: TokenFiles | None, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The manifest of token rows, {} without one; another tokenizer or template is an ImpruverError."""
    manifests = [manifest for path in _list_manifest_paths(files) if (manifest := read_manifest(path)) is not None]
    if files is not None and not manifests:
        log_info(f"note: {files} has no manifest: whether this tokenizer and template made its rows can't be checked")
    if not manifests:
        return {}
    ours = {"tokenizer": compute_fingerprint(tokenizer), "template": compute_template_fingerprint(tokenizer)}
    for manifest in manifests:
        for key, name in (("tokenizer", "tokenizer"), ("template", "chat template")):
            fingerprint = (manifest.get(key) or {}).get("fingerprint")
            if fingerprint is not None and fingerprint != ours[key]:
                raise ImpruverError(
                    f"{files} was made with another {name} than this recipe's; run impruver-compose with this recipe "
                    f"again, or set the {name} that the rows were made with"
                )
    return manifests[0]
