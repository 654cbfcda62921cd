"""What compose leaves behind: train, val, ledger, report and manifest, and what it says of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from impruver_core.chat_template.selection import get_end_of_turn
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import get_staged_path, open_synced
from impruver_core.io.disk_space import reserve_space
from impruver_core.io.jsonl import write_rows
from impruver_core.io.manifest import (
    build_manifest,
    describe_file,
    get_manifest_path,
    get_pending_path,
    publish,
    read_manifest,
)
from impruver_core.tokenizer import compute_template_fingerprint

from impruver_compose.ledger import Ledger
from impruver_compose.sources.file_formats import COMPRESSED
from impruver_compose.storage.corpus import Corpus
from impruver_compose.storage.corpus_writer import compute_row_sizes, write_token_rows


class OutputPaths(NamedTuple):
    """Where everything goes: ledger, report and manifest beside train."""

    train: Path
    val: Path
    ledger: Path
    report: Path
    manifest: Path

    @classmethod
    def resolve(cls, recipe) -> OutputPaths:
        """Of a recipe; ImpruverError where a path is missing or both are one."""
        missing = [name for name in ("train_path", "val_path") if not getattr(recipe, name)]
        if missing:
            raise ImpruverError(f"{recipe.path}: {' and '.join(missing)} missing: say where the rows go")
        for name in ("train_path", "val_path"):
            if getattr(recipe, name).lower().endswith(COMPRESSED):  # it would be read as what it is not
                raise ImpruverError(f"{recipe.locate(name)}: rows are written as they are: name no compressed file")
        train, val = Path(recipe.train_path).expanduser(), Path(recipe.val_path).expanduser()
        ledger, report = (train.with_name(f"{train.stem}.{name}") for name in ("dropped.jsonl", "report.html"))
        paths = cls(train, val, ledger, report, get_manifest_path(train))
        for name in ("train", "ledger", "report", "manifest"):
            if os.path.realpath(getattr(paths, name)) == os.path.realpath(val):
                what = "train_path" if name == "train" else f"the {name}"
                raise ImpruverError(f"{recipe.locate('val_path')}: {val} is where {what} goes: name another file")
        return paths

    def folders(self) -> list[Path]:
        """Where they stand."""
        return [self.train.parent, self.val.parent]

    def outputs(self) -> list[Path]:
        """All that a run replaces."""
        return [self.train, self.val, self.ledger, self.report]


def build_output_manifest(recipe: dict, tokenizer, fingerprint: str, facts: dict) -> dict:
    """The manifest but for its outputs; `fingerprint` is the tokenizer's."""
    return build_manifest("impruver-compose", recipe) | {
        "tokenizer": {"fingerprint": fingerprint, "vocab_size": len(tokenizer)},
        "template": {"fingerprint": compute_template_fingerprint(tokenizer)},
        "end_of_turn": get_end_of_turn(tokenizer),
        **facts,
    }


def write_outputs(
    paths: OutputPaths, corpus: Corpus, ledger: Ledger, train: np.ndarray, val: np.ndarray, page: str, manifest: dict
) -> None:
    """Writes all files beside their places, then puts them there with the manifest last.

    `train` and `val` are numbers of lines, in the order in which they go into the file.
    """
    for_val = int(compute_row_sizes(corpus, val, True).sum())
    needed = (
        int(compute_row_sizes(corpus, train, False).sum())
        + len(page)
        + (for_val if _is_beside(paths.val, paths) else 0)
    )
    places = {path: get_staged_path(path) for path in paths.outputs()}
    rows = {paths.train: len(train), paths.val: len(val), paths.ledger: len(ledger.lines)}
    try:
        with reserve_space(paths.train.parent, needed):
            with open_synced(places[paths.train], "wb") as file:
                write_token_rows(file, corpus, train)
            with reserve_space(paths.val.parent, for_val), open_synced(places[paths.val], "wb") as file:
                write_token_rows(file, corpus, val, with_extra=True)
            with open_synced(places[paths.ledger]) as file:
                write_rows(file, ledger.get_sorted_lines())
            with open_synced(places[paths.report]) as file:
                file.write(page)
        outputs = [
            describe_file(place, rows.get(path), digest=True)
            | {"path": str(path.name if _is_beside(path, paths) else path.absolute())}
            for path, place in places.items()
        ]
        publish(paths.manifest, places, manifest | {"outputs": outputs})
    finally:
        if not get_pending_path(paths.manifest).exists():  # else a start that finds it finishes
            for place in places.values():
                place.unlink(missing_ok=True)


def outputs_up_to_date(paths: OutputPaths, manifest: dict) -> bool:
    """Whether the outputs are there and were made just so: what a manifest describes was not touched since."""
    before = read_manifest(paths.manifest) or {}
    before.pop("outputs", None)
    return before == json.loads(json.dumps(manifest)) and all(path.exists() for path in paths.outputs())


def _is_beside(path: Path, paths: OutputPaths) -> bool:
    return path.absolute().parent == paths.manifest.absolute().parent
