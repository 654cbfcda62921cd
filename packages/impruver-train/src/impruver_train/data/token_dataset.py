"""Token rows: one checked, streaming read of the JSONL into an Arrow file, which training then maps into memory.

The Arrow file stands in the cache under the JSONL's own hash, so a file is read and checked once. Ids, labels: int32.
What can be said of a file only with tokenizer and model is checked here as well.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from impruver_core.cli.console import log_info
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write, get_cache_dir, hash_file, lock_folders
from impruver_core.io.json_schema import read_json
from impruver_core.io.jsonl import read_numbered_rows
from impruver_core.io.manifest import get_manifest_path, read_manifest
from impruver_core.labels import IGNORE_INDEX, count_target_tokens
from impruver_core.tokenizer import compute_fingerprint, compute_template_fingerprint

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy import ndarray
    from transformers import PreTrainedTokenizerBase

INT32 = range(2**31)
BATCH_ROWS = 1000
FORMAT = 4  # of the cached file; raised where what stands in it changes


class TokenRow(NamedTuple):
    """A checked row: three lists of one length."""

    input_ids: list[int]
    labels: list[int]
    attention_mask: list[int]


@dataclass
class TokenFileStats:
    """What the checked read of a token file counts; lines count from 1, `tokens` and `targets` are sums over rows."""

    rows: int = 0
    tokens: int = 0
    targets: int = 0
    longest: int = 0
    longest_line: int = 0
    most_targets: int = 0  # of a row
    largest_id: int = 0
    largest_id_line: int = 0
    targetless_rows: int = 0
    targetless_line: int = 0  # the first of them, 0 where there is none
    masked_line: int = 0  # the first row whose attention_mask hides a token, 0 where there is none

    def add_row(self, line: int, row: TokenRow) -> bool:
        """Counts a row; False if a causal model is trained on nothing of it."""
        ids, labels, mask = row
        targets = count_target_tokens(labels) if any(mask) else 0
        largest = max(max(ids), max(labels))
        self.rows += 1
        if len(ids) > self.longest:
            self.longest, self.longest_line = len(ids), line
        if largest > self.largest_id:
            self.largest_id, self.largest_id_line = largest, line
        if not all(mask):
            self.masked_line = self.masked_line or line
        if not targets:
            self.targetless_rows += 1
            self.targetless_line = self.targetless_line or line
            return False
        self.tokens += len(ids)
        self.most_targets = max(self.most_targets, targets)
        self.targets += targets
        return True


def read_stats(path: Path, digest: str | None = None) -> tuple[TokenFileStats, ndarray]:
    """The stats of `path` and the lengths of its rows with targets (an int32 array), writing nothing.

    ImpruverError with file and line at the first bad row.
    """
    import numpy as np

    if (_get_cache_folder(path, digest) / "facts.json").exists():
        stats, rows = load_token_dataset(path, digest)
        return stats, get_row_lengths(rows)
    stats = TokenFileStats()
    lengths = array("i", (len(row.input_ids) for row in read_target_rows(path, stats)))
    return stats, np.frombuffer(lengths, dtype=np.int32)


def get_row_lengths(rows: Dataset) -> ndarray:
    """Tokens of each row, an int32 array, from the offsets alone: no token is read."""
    import numpy as np
    import pyarrow.compute as pc

    chunks = rows.data.column("input_ids").chunks
    return np.concatenate([np.empty(0, np.int32), *(pc.list_value_length(chunk).to_numpy() for chunk in chunks)])


def _get_cache_folder(path: Path, digest: str | None) -> Path:
    return get_cache_dir() / "tokens" / f"{digest or hash_file(path)}-{FORMAT}"


def load_token_dataset(path: Path, digest: str | None = None) -> tuple[TokenFileStats, Dataset]:
    """The stats of `path` and its rows with targets, memory-mapped; read and checked only once."""
    from datasets import Dataset

    folder = _get_cache_folder(path, digest)
    stats_file = folder / "facts.json"
    if not stats_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folders([folder]):  # of several processes the first makes it
            if not stats_file.exists():
                _write_cache(path, folder / "rows.arrow", stats_file)
    return TokenFileStats(**read_json(stats_file)), Dataset.from_file(str(folder / "rows.arrow"))


def _write_cache(path: Path, rows: Path, stats_file: Path) -> None:
    """Writes the rows, then the stats, whose presence means that the rows are complete."""
    for left in rows.parent.glob(f"{rows.name}.*"):  # by a process that was killed: this one is alone here
        left.unlink()
    stats = write_arrow(path, rows)
    with atomic_write(stats_file) as file:
        json.dump(asdict(stats), file)


def write_arrow(path: Path, target: Path) -> TokenFileStats:
    """Writes the rows of `path` that have targets into `target`, an Arrow stream; returns the stats of all."""
    import pyarrow as pa

    columns = {"input_ids": pa.int32(), "labels": pa.int32(), "attention_mask": pa.int8()}
    schema = pa.schema([(name, pa.list_(kind)) for name, kind in columns.items()])
    stats = TokenFileStats()
    rows = read_target_rows(path, stats)
    staged = target.with_name(f"{target.name}.{os.getpid()}")
    with pa.OSFile(str(staged), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        while batch := list(islice(rows, BATCH_ROWS)):
            writer.write_batch(pa.record_batch(dict(zip(columns, zip(*batch, strict=True), strict=True)), schema))
    os.replace(staged, target)
    return stats


def read_target_rows(path: Path, stats: TokenFileStats) -> Iterator[TokenRow]:
    """Checked rows of `path`, less those without targets; counts all in `stats`."""
    for line, row in read_numbered_rows(path):
        checked = check_row(row, path, line)
        if stats.add_row(line, checked):
            yield checked


def check_row(row: dict[str, Any], path: Path, line: int) -> TokenRow:
    """Ids, labels and attention mask of a token row, of one length; else ImpruverError with file and line."""

    def make_error(what: str) -> ImpruverError:
        return ImpruverError(f"{path}, line {line}: {what}")

    for key in ("input_ids", "labels"):
        if key not in row:
            raise make_error(f"no {key!r} in this row; impruver-compose makes token rows of data")
    ids, labels = row["input_ids"], row["labels"]
    mask = row.get("attention_mask")
    if mask is None:
        mask = [1] * len(ids) if isinstance(ids, list) else []
    for key, values in (("input_ids", ids), ("labels", labels), ("attention_mask", mask)):
        if not isinstance(values, list) or not set(map(type, values)) <= {int}:
            raise make_error(f"{key!r} is no list of whole numbers")
    if not ids:
        raise make_error("'input_ids' is empty")
    if not len(ids) == len(labels) == len(mask):
        raise make_error(f"{len(ids)} input_ids, {len(labels)} labels and {len(mask)} attention_mask differ in length")
    wrong = [value for value in {*ids, *labels} - {IGNORE_INDEX} if value not in INT32]
    if wrong or min(ids) < 0:
        raise make_error(f"{min(wrong, default=IGNORE_INDEX)} is no id of any vocabulary")
    if min(mask) < 0 or max(mask) > 1:
        raise make_error("'attention_mask' holds more than 0 and 1")
    return TokenRow(ids, labels, mask)


def check_rows(stats: TokenFileStats, path: Path, vocabulary: int, positions: int | None) -> list[str]:
    """Refuses a file without targets, ids that the model has no row for and rows longer than its positions.

    `positions` is None where the model has no limit. Returns notes.
    """
    if not stats.rows:
        raise ImpruverError(f"{path}: no rows; impruver-compose makes them")
    if stats.targetless_rows == stats.rows:
        raise ImpruverError(
            f"{path}: nothing to train on in any of {stats.rows} rows: their labels are -100 behind the first token, "
            "or attention_mask hides every token; impruver-compose makes rows with labels"
        )
    if stats.largest_id >= vocabulary:
        raise ImpruverError(
            f"{path}, line {stats.largest_id_line}: id {stats.largest_id} is beyond the vocabulary of {vocabulary}; "
            "these rows were made with another tokenizer, or model.config.vocab_size is too small"
        )
    if positions is not None and stats.longest > positions:
        raise ImpruverError(
            f"{path}, line {stats.longest_line}: a row of {stats.longest} tokens, and the model has {positions} "
            "positions; set tokenizer.max_tokens_count and run impruver-compose again"
        )
    if not stats.targetless_rows:
        return []
    count, first = stats.targetless_rows, stats.targetless_line
    return [f"{path}: {count} rows have no target tokens and are left out (the first is line {first})"]


def check_data_manifest(path: Path | None, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The manifest of the rows in `path`, {} without one; another tokenizer or template is an ImpruverError."""
    manifest = read_manifest(get_manifest_path(path)) if path is not None else {}
    if manifest is None:
        log_info(f"note: {path} has no manifest: whether this tokenizer and template made its rows can't be checked")
        return {}
    ours = {"tokenizer": compute_fingerprint(tokenizer), "template": compute_template_fingerprint(tokenizer)}
    for key, name in (("tokenizer", "tokenizer"), ("template", "chat template")):
        fingerprint = (manifest.get(key) or {}).get("fingerprint")
        if fingerprint is not None and fingerprint != ours[key]:
            raise ImpruverError(
                f"{path} was made with another {name} than this recipe's; run impruver-compose with this recipe again, "
                f"or set the {name} that the rows were made with"
            )
    return manifest
