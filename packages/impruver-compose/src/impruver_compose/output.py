"""Output paths, manifest, and publishing: all files are put in place together, or none is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from impruver_core.chat_template.selection import get_end_of_turn
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import (
    check_folder,
    get_staged_path,
    make_folder,
    open_synced,
    remove_stale_parts,
    reserve_space,
)
from impruver_core.io.compression import COMPRESSED, check_zstandard
from impruver_core.io.jsonl import write_rows
from impruver_core.io.locks import lock_folders
from impruver_core.io.manifest import (
    build_manifest,
    check_replaceable,
    describe_file,
    find_unchanged,
    get_manifest_path,
    get_pending_path,
    locate_output,
    name_output,
    normalize_path,
    publish,
    read_manifest,
    recover,
)
from impruver_core.io.row_parts import PART, get_part_path, is_row_file, list_row_files
from impruver_core.tokenizer import compute_template_fingerprint

from impruver_compose.corpus import Corpus
from impruver_compose.ledger import Ledger
from impruver_compose.row_files import PART_BYTES, RowFile, RowFormat, compute_space, plan_row_files, stage_row_files
from impruver_compose.sections import ComposeSection
from impruver_compose.selection import Selection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


BESIDE_TRAIN = ("dropped.jsonl", "report.html", "contaminated_eval.jsonl")  # behind the stem of train_path


class OutputPaths(NamedTuple):
    """Where the outputs go: all but val beside train; how rows are written.

    `contaminated` is written only where the recipe has benchmarks: `decontaminates`.
    """

    train: Path
    val: Path
    ledger: Path
    report: Path
    contaminated: Path
    manifest: Path
    decontaminates: bool = False
    train_format: RowFormat = RowFormat()
    val_format: RowFormat = RowFormat()

    @property
    def folders(self) -> list[Path]:
        """The folders of all outputs; those of parts stand in them."""
        return [self.train.parent, self.val.parent]

    @property
    def part_folders(self) -> list[Path]:
        """The outputs that are folders of parts."""
        rows = ((self.train, self.train_format), (self.val, self.val_format))
        return [path for path, row_format in rows if row_format.part_bytes is not None]

    @property
    def files(self) -> list[Path]:
        """The outputs of a run that are single files, but for the manifest."""
        parts = self.part_folders
        files = (self.train, self.val, self.ledger, self.report, *([self.contaminated] if self.decontaminates else []))
        return [path for path in files if path not in parts]

    @property
    def known_files(self) -> list[Path]:
        """The outputs of runs with any recipe of these paths that are single files, but for the manifest."""
        return [*self.files, *([] if self.decontaminates else [self.contaminated])]

    @property
    def examples(self) -> list[Path]:
        """All files that are written, of each folder of parts the first."""
        return [*self.files, *(get_part_path(folder, 0) for folder in self.part_folders), self.manifest]


def resolve_output_paths(
    train_path: str | None,
    val_path: str | None,
    recipe: Path,
    where: Callable,
    section: ComposeSection,
    decontaminates: bool = False,
) -> OutputPaths:
    """Resolves the paths of all outputs; ImpruverError, with `where` a key is, for one that can't be an output's."""
    values = {"train_path": train_path, "val_path": val_path}
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise ImpruverError(f"{recipe}: {' and '.join(missing)} missing: say where the rows go")
    formats = [_choose_format(value, where(name), section) for name, value in values.items()]
    train, val = Path(train_path).expanduser(), Path(val_path).expanduser()
    stem = train.name if formats[0].part_bytes is not None else Path(train.name.removesuffix(".zst")).stem
    beside = (train.with_name(f"{stem}.{name}") for name in BESIDE_TRAIN)
    paths = OutputPaths(train, val, *beside, get_manifest_path(train), decontaminates, *formats)
    real_val = os.path.realpath(val)
    for name in ("train", "ledger", "report", "contaminated", "manifest"):
        path = os.path.realpath(getattr(paths, name))
        if path == real_val or path.startswith(real_val + os.sep) or real_val.startswith(path + os.sep):
            what = {"train": "train_path", "contaminated": "the list of contaminated rows"}.get(name, f"the {name}")
            raise ImpruverError(f"{where('val_path')}: {val} is where {what} goes: name another file")
    return paths


def _choose_format(value: str, where: str, section: ComposeSection) -> RowFormat:
    """Chooses how rows are written at a path of the recipe: a folder is one that is there, or ends with a slash."""
    if Path(value).name in ("", "..", "~"):
        raise ImpruverError(f"{where}: {value} is a folder: name a file in it, or a folder in it for parts")
    if any(sign in Path(value).name for sign in "*?"):
        raise ImpruverError(f"{where}: {value} is a glob, which rows are read from: name a file, or a folder for parts")
    lower = value.lower()
    if value.endswith(("/", os.sep)) or (Path(value).expanduser().is_dir() and not is_row_file(Path(value).name)):
        row_format = RowFormat(section.part_bytes or PART_BYTES, section.part_compression == "zst")
    elif lower.endswith(COMPRESSED) and not lower.endswith(".zst"):  # it would be read as what it is not
        raise ImpruverError(f"{where}: rows are written as they are, or as .jsonl.zst: name no other compressed file")
    else:
        row_format = RowFormat(compressed=lower.endswith(".zst"))
    if row_format.compressed:
        check_zstandard(where)
    return row_format


def check_outputs(paths: OutputPaths, dry_run: bool, overwrite: bool) -> None:
    """Checks that the outputs can be written; what a killed run had begun to put in place is finished."""
    for folder in paths.folders:
        (check_folder if dry_run else make_folder)(folder)
    for folder in paths.part_folders:
        check_folder(folder)
    if not dry_run:
        with lock_outputs(paths, overwrite):
            pass
    elif not get_pending_path(paths.manifest).exists():  # else the next start finishes what a kill cut off
        _check_in_place(paths, overwrite)


@contextmanager
def lock_outputs(paths: OutputPaths, overwrite: bool) -> Iterator[None]:
    """Keeps other runs from the outputs' folders, and checks that what is there may be replaced."""
    with lock_folders(paths.folders):
        names = {path.name for path in (*paths.known_files, paths.manifest, get_pending_path(paths.manifest))}
        for folder in {*paths.folders}:
            remove_stale_parts(folder, names.__contains__)
        recover(paths.manifest, paths.known_files, paths.part_folders)
        for folder in paths.part_folders:  # what a killed run had staged there, whose next one may have fewer parts
            for place in folder.glob(".part-*.staged"):
                if PART.fullmatch(place.name[1:].removesuffix(".staged")):
                    place.unlink()
        _check_in_place(paths, overwrite)
        yield


def _check_in_place(paths: OutputPaths, overwrite: bool) -> None:
    """ImpruverError for a file in an output's place that is not to be replaced, or would be read as rows of ours."""
    parts = [part for folder in paths.part_folders for part in list_row_files(folder)]
    named = {*_list_described(paths.manifest)} if parts else ()
    for part in parts:
        if normalize_path(part) not in named:
            raise ImpruverError(
                f"{part} would be read as rows of {part.parent}, and Impruver did not make it: move it away, or name "
                "another folder"
            )
    check_replaceable([*paths.files, *parts], paths.manifest, overwrite)


def _list_described(manifest: Path) -> list[Path]:
    """Lists the outputs that the manifest names, if there is one."""
    outputs = (read_manifest(manifest) or {}).get("outputs") or []
    return [locate_output(manifest, entry["path"]) for entry in outputs]


def build_run_manifest(recipe: dict, tokenizer: PreTrainedTokenizerFast, fingerprint: str, **facts: Any) -> dict:
    """Builds the manifest without its outputs; `fingerprint` is the tokenizer's."""
    return build_manifest("impruver-compose", recipe) | {
        "tokenizer": {"fingerprint": fingerprint, "vocab_size": len(tokenizer)},
        "template": {"fingerprint": compute_template_fingerprint(tokenizer)},
        "end_of_turn": get_end_of_turn(tokenizer),
        **facts,
    }


def publish_outputs(
    paths: OutputPaths,
    corpus: Corpus,
    selection: Selection,
    ledger: Ledger,
    report: str,
    eval_rows: list[dict],
    manifest: dict,
) -> None:
    """Writes all files beside their places, then puts them there, the manifest last; removes what it made no more of.

    `eval_rows` are the benchmarks' rows whose text was found.
    """
    train = plan_row_files(paths.train, paths.train_format, corpus.compute_sizes(selection.train_rows))
    val = plan_row_files(paths.val, paths.val_format, corpus.compute_sizes(selection.val_rows, with_extra=True))
    rows = {file.path: file.stop - file.start for file in (*train, *val)} | {paths.ledger: ledger.count}
    own = [paths.contaminated] if paths.decontaminates else []
    staged = {path: get_staged_path(path) for path in (*rows, paths.report, *own)}
    rows[paths.contaminated] = len(eval_rows)
    for_val = _compute_space(val, paths.val_format)
    needed = _compute_space(train, paths.train_format) + len(report)
    try:
        together = needed + (for_val if _is_beside(paths.val, paths) else 0)
        with reserve_space(_get_folder(paths.train, paths), together):
            stage_row_files(corpus, selection.train_rows, train, paths.train_format.compressed)
            with reserve_space(_get_folder(paths.val, paths), for_val):
                stage_row_files(corpus, selection.val_rows, val, paths.val_format.compressed, with_extra=True)
            with open_synced(staged[paths.ledger]) as file:
                write_rows(file, ledger.lines)
            with open_synced(staged[paths.report]) as file:
                file.write(report)
            if paths.decontaminates:
                with open_synced(staged[paths.contaminated]) as file:
                    write_rows(file, eval_rows)
        outputs = [
            describe_file(place, rows.get(path), digest=True) | {"path": _name_in_manifest(path, paths)}
            for path, place in staged.items()
        ]
        obsolete = [] if paths.decontaminates else find_unchanged([paths.contaminated], paths.manifest)
        publish(paths.manifest, staged, manifest | {"outputs": outputs}, paths.part_folders, obsolete)
    finally:
        if not get_pending_path(paths.manifest).exists():  # else a start that finds it finishes
            for place in staged.values():
                place.unlink(missing_ok=True)


def _compute_space(planned: list[RowFile], row_format: RowFormat) -> int:
    return compute_space([file.size for file in planned], row_format.compressed)


def _get_folder(path: Path, paths: OutputPaths) -> Path:
    """The folder that rows are written into."""
    return path if path in paths.part_folders else path.parent


def _name_in_manifest(path: Path, paths: OutputPaths) -> str:
    """The path of an output for the manifest; of a part with its folder, so that both can be moved together."""
    if path.parent in paths.part_folders:
        return f"{name_output(path.parent, paths.manifest)}/{path.name}"
    return name_output(path, paths.manifest)


def outputs_up_to_date(paths: OutputPaths, manifest: dict) -> bool:
    """Tells whether all outputs are there and their manifest says the same."""
    before, described = read_manifest(paths.manifest) or {}, _list_described(paths.manifest)
    before.pop("outputs", None)
    same = before == json.loads(json.dumps(manifest))
    return same and all(path.exists() for path in (*paths.files, *described))


def _is_beside(path: Path, paths: OutputPaths) -> bool:
    return path.absolute().parent == paths.manifest.absolute().parent
