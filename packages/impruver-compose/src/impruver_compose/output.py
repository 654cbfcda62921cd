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
from impruver_core.io.compression import COMPRESSED
from impruver_core.io.jsonl import write_rows
from impruver_core.io.locks import lock_folders
from impruver_core.io.manifest import (
    build_manifest,
    check_replaceable,
    describe_file,
    find_unchanged,
    get_manifest_path,
    get_pending_path,
    name_output,
    publish,
    read_manifest,
    recover,
)
from impruver_core.tokenizer import compute_template_fingerprint

from impruver_compose.selection import Selection
from impruver_compose.storage import Corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


BESIDE_TRAIN = ("dropped.jsonl", "report.html", "contaminated_eval.jsonl")  # behind the stem of train_path


class OutputPaths(NamedTuple):
    """Where the outputs go: all but val beside train; `contaminated` only where the recipe has benchmarks."""

    train: Path
    val: Path
    ledger: Path
    report: Path
    contaminated: Path
    manifest: Path
    decontaminates: bool = False

    @property
    def written(self) -> list[Path]:
        """What a run writes before its manifest, in the manifest's order."""
        return [self.train, self.val, self.ledger, self.report, *([self.contaminated] if self.decontaminates else [])]

    @property
    def all(self) -> list[Path]:
        """What runs with any recipe of these paths write."""
        return [self.train, self.val, self.ledger, self.report, self.contaminated, self.manifest]

    @property
    def folders(self) -> list[Path]:
        """The folders of all outputs."""
        return [self.train.parent, self.val.parent]


def resolve_output_paths(
    train_path: str | None, val_path: str | None, recipe: Path, where: Callable, decontaminates: bool = False
) -> OutputPaths:
    """Resolves the paths of all outputs; ImpruverError, with `where` a key is, for one that can't be an output's."""
    values = {"train_path": train_path, "val_path": val_path}
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise ImpruverError(f"{recipe}: {' and '.join(missing)} missing: say where the rows go")
    for name, value in values.items():
        if value.lower().endswith(COMPRESSED):  # it would be read as what it is not
            raise ImpruverError(f"{where(name)}: rows are written as they are: name no compressed file")
        if Path(value).name in ("", ".."):
            raise ImpruverError(f"{where(name)}: {value} is a folder: name a file in it")
    train, val = Path(train_path).expanduser(), Path(val_path).expanduser()
    ledger, report, contaminated = (train.with_name(f"{train.stem}.{name}") for name in BESIDE_TRAIN)
    paths = OutputPaths(train, val, ledger, report, contaminated, get_manifest_path(train), decontaminates)
    for name in ("train", "ledger", "report", "contaminated", "manifest"):
        if os.path.realpath(getattr(paths, name)) == os.path.realpath(val):
            what = {"train": "train_path", "contaminated": "the list of contaminated rows"}.get(name, f"the {name}")
            raise ImpruverError(f"{where('val_path')}: {val} is where {what} goes: name another file")
    return paths


def check_outputs(paths: OutputPaths, dry_run: bool, overwrite: bool) -> None:
    """Checks that the outputs can be written; what a killed run had begun to put in place is finished."""
    for folder in paths.folders:
        (check_folder if dry_run else make_folder)(folder)
    if not dry_run:
        with lock_outputs(paths, overwrite):
            pass
    elif not get_pending_path(paths.manifest).exists():  # else the next start finishes what a kill cut off
        check_replaceable(paths.written, paths.manifest, overwrite)


@contextmanager
def lock_outputs(paths: OutputPaths, overwrite: bool) -> Iterator[None]:
    """Keeps other runs from the outputs' folders, and checks that what is there may be replaced."""
    with lock_folders(paths.folders):
        names = {path.name for path in (*paths.all, get_pending_path(paths.manifest))}
        for folder in {*paths.folders}:
            remove_stale_parts(folder, names.__contains__)
        recover(paths.manifest, paths.all[:-1])
        check_replaceable(paths.written, paths.manifest, overwrite)
        yield


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
    ledger: list[dict],
    report: str,
    eval_rows: list[dict],
    manifest: dict,
) -> None:
    """Writes all files beside their places, then puts them there, the manifest last; removes what it made no more of.

    `eval_rows` are the benchmarks' rows whose text was found.
    """
    staged = {path: get_staged_path(path) for path in paths.written}
    rows = {paths.train: len(selection.train_rows), paths.val: len(selection.val_rows), paths.ledger: len(ledger)}
    rows[paths.contaminated] = len(eval_rows)
    for_val = int(corpus.compute_sizes(selection.val_rows, with_extra=True).sum())
    needed = int(corpus.compute_sizes(selection.train_rows).sum()) + len(report)
    try:
        with reserve_space(paths.train.parent, needed + (for_val if _is_beside(paths.val, paths) else 0)):
            with open_synced(staged[paths.train], "wb") as file:
                corpus.write_token_rows(file, selection.train_rows)
            with reserve_space(paths.val.parent, for_val), open_synced(staged[paths.val], "wb") as file:
                corpus.write_token_rows(file, selection.val_rows, with_extra=True)
            with open_synced(staged[paths.ledger]) as file:
                write_rows(file, ledger)
            with open_synced(staged[paths.report]) as file:
                file.write(report)
            if paths.decontaminates:
                with open_synced(staged[paths.contaminated]) as file:
                    write_rows(file, eval_rows)
        outputs = [
            describe_file(place, rows.get(path), digest=True) | {"path": name_output(path, paths.manifest)}
            for path, place in staged.items()
        ]
        obsolete = [] if paths.decontaminates else find_unchanged([paths.contaminated], paths.manifest)
        publish(paths.manifest, staged, manifest | {"outputs": outputs}, obsolete)
    finally:
        if not get_pending_path(paths.manifest).exists():  # else a start that finds it finishes
            for place in staged.values():
                place.unlink(missing_ok=True)


def outputs_up_to_date(paths: OutputPaths, manifest: dict) -> bool:
    """Tells whether all outputs are there and their manifest says the same."""
    before = read_manifest(paths.manifest) or {}
    before.pop("outputs", None)
    return before == json.loads(json.dumps(manifest)) and all(path.exists() for path in paths.written)


def _is_beside(path: Path, paths: OutputPaths) -> bool:
    return path.absolute().parent == paths.manifest.absolute().parent
