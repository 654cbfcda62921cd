"""What compose leaves behind: train, val, ledger, report and manifest, and what it says of them."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from impruver_core.cli.console import result, say, table
from impruver_core.errors import ImpruverError
from impruver_core.files.jsonl import write_rows
from impruver_core.files.manifest import describe, new_manifest, pending_path, publish, read_manifest
from impruver_core.files.safe import room_for, staged, synced
from impruver_core.templating.template import ends_of
from impruver_core.templating.tokenizer import template_fingerprint

from impruver_compose.corpus import Corpus
from impruver_compose.datafiles import COMPRESSED
from impruver_compose.ledger import Counts, Ledger
from impruver_compose.shards import bytes_of
from impruver_compose.tables import brought, dropped, share


class Paths(NamedTuple):
    """Where everything goes: ledger, report and manifest beside train."""

    train: Path
    val: Path
    ledger: Path
    report: Path
    manifest: Path

    @classmethod
    def of(cls, recipe) -> "Paths":
        """Of a recipe; ImpruverError where a path is missing or both are one."""
        missing = [name for name in ("train_path", "val_path") if not getattr(recipe, name)]
        if missing:
            raise ImpruverError(f"{recipe.path}: {' and '.join(missing)} missing: say where the rows go")
        for name in ("train_path", "val_path"):
            if getattr(recipe, name).lower().endswith(COMPRESSED):  # it would be read as what it is not
                raise ImpruverError(f"{recipe.where(name)}: rows are written as they are: name no compressed file")
        train, val = Path(recipe.train_path).expanduser(), Path(recipe.val_path).expanduser()
        beside = (f"{train.stem}.dropped.jsonl", f"{train.stem}.report.html", f"{train.name}.manifest.json")
        paths = cls(train, val, *map(train.with_name, beside))
        for name in ("train", "ledger", "report", "manifest"):
            if os.path.realpath(getattr(paths, name)) == os.path.realpath(val):
                what = "train_path" if name == "train" else f"the {name}"
                raise ImpruverError(f"{recipe.where('val_path')}: {val} is where {what} goes: name another file")
        return paths

    def folders(self) -> list[Path]:
        """Where they stand."""
        return [self.train.parent, self.val.parent]

    def outputs(self) -> list[Path]:
        """All that a run replaces."""
        return [self.train, self.val, self.ledger, self.report]


def manifest(recipe: dict, tokenizer, fingerprint: str, facts: dict) -> dict:
    """The manifest but for its outputs; `fingerprint` is the tokenizer's."""
    return new_manifest("impruver-compose", recipe) | {
        "tokenizer": {"fingerprint": fingerprint, "vocab_size": len(tokenizer)},
        "template": {"fingerprint": template_fingerprint(tokenizer)},
        "end_of_turn": ends_of(tokenizer),
        **facts,
    }


def write(
    paths: Paths, corpus: Corpus, ledger: Ledger, train: np.ndarray, val: np.ndarray, page: str, manifest: dict
) -> None:
    """Writes all files beside their places, then puts them there with the manifest last.

    `train` and `val` are numbers of lines, in the order in which they go into the file.
    """
    for_val = int(_sizes(corpus, val, True).sum())
    needed = int(_sizes(corpus, train, False).sum()) + len(page) + (for_val if _beside(paths.val, paths) else 0)
    places = {path: staged(path) for path in paths.outputs()}
    rows = {paths.train: len(train), paths.val: len(val), paths.ledger: len(ledger.lines)}
    try:
        with room_for(paths.train.parent, needed):
            with synced(places[paths.train], "wb") as file:
                write_lines(file, corpus, train)
            with room_for(paths.val.parent, for_val), synced(places[paths.val], "wb") as file:
                write_lines(file, corpus, val, with_extra=True)
            with synced(places[paths.ledger]) as file:
                write_rows(file, ledger.sorted_lines())
            with synced(places[paths.report]) as file:
                file.write(page)
        outputs = [
            describe(place, rows.get(path), digest=True)
            | {"path": str(path.name if _beside(path, paths) else path.absolute())}
            for path, place in places.items()
        ]
        publish(paths.manifest, places, manifest | {"outputs": outputs})
    finally:
        if not pending_path(paths.manifest).exists():  # else a start that finds it finishes
            for place in places.values():
                place.unlink(missing_ok=True)


def stand(paths: Paths, manifest: dict) -> bool:
    """Whether the outputs are there and were made just so: what a manifest describes was not touched since."""
    before = read_manifest(paths.manifest) or {}
    before.pop("outputs", None)
    return before == json.loads(json.dumps(manifest)) and all(path.exists() for path in paths.outputs())


def write_lines(file: BinaryIO, corpus: Corpus, order: np.ndarray, with_extra: bool = False) -> None:
    """Writes these lines in this order, `with_extra` as rows of val.jsonl.

    Shard after shard is read once, and each line put at its place: read in order, all shards would have to be open.
    """
    sizes = _sizes(corpus, order, with_extra)
    places = (np.cumsum(sizes) - sizes).tolist()
    by_line = np.argsort(order, kind="stable")
    ends = np.searchsorted(order, corpus.line_starts[1:], sorter=by_line)
    start = 0
    for (first, shard), end in zip(corpus.shards(), ends, strict=True):
        content, extra = bytes_of(shard.of_lines("content")), bytes_of(shard.of_lines("extra"))
        for at in by_line[start:end].tolist():
            number = int(order[at]) - first
            line = content(number)
            if with_extra:  # two JSON objects become one
                line = line[:-1] + b"," + extra(number)[1:]
            os.pwrite(file.fileno(), line + b"\n", places[at])
        start = end


def _sizes(corpus: Corpus, lines: np.ndarray, with_extra: bool) -> np.ndarray:
    """Bytes of each line in its file."""
    return corpus.size[lines] + 1 + (corpus.extra_size[lines] - 1 if with_extra else 0)


def _beside(path: Path, paths: Paths) -> bool:
    return path.absolute().parent == paths.manifest.absolute().parent


def report(paths: Paths, jobs, counts: Sequence[Counts], ledger: Ledger) -> None:
    """The tables, and the last line: what was written, and what comes next."""
    say(table(*brought(jobs, counts)))
    train, val = (sum(getattr(each, name) for each in counts) for name in ("train_rows", "val_rows"))
    if ledger.lines:
        say(table(*dropped(jobs, counts)))
    result(
        f"{paths.train}: {train} rows; {paths.val}: {val}; {len(ledger.lines)} dropped, see {paths.ledger}; "
        f"to look at: {paths.report}. Next: impruver-train with the same --config"
    )


def report_estimate(jobs, counts: Sequence[Counts]) -> None:
    """What the first rows tell of the whole."""
    rows = []
    for job, each in zip(jobs, counts, strict=True):
        times = len(job.rows) / max(1, each.rows)
        usable = each.conversations - each.dropped.total()
        learned = share(each.learned, each.tokens)
        rows.append([job.index, job.name, len(job.rows), round(usable * times), round(each.tokens * times), learned])
    say(table(["#", "data set", "rows", "about usable", "about tokens", "learned"], rows))
    if any(each.dropped or each.rows_dropped for each in counts):
        say(table(*dropped(jobs, counts)))
    if not any(each.conversations - each.dropped.total() for each in counts):
        raise ImpruverError("none of the first rows is usable")
    result("the data can be composed; nothing was written")
