"""Token rows: one checked, streaming read of the JSONL into an Arrow file, which training then maps into memory.

The Arrow file stands in the cache under the hash of the JSONL's bytes, unpacked and of all parts, so that rows are read
and checked once however they are cut into files. Ids, labels: int32.
Beside it a record has what was counted and the Arrow file's checksum: both are verified whenever they are used.
What can be said of a file only with tokenizer and model is checked here as well.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from impruver_core.cli.console import log_info
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import get_cache_dir, make_folder, remove_path, sync_folder
from impruver_core.io.integrity import (
    DamagedError,
    FileState,
    checking_unchanged,
    describe_content,
    find_damage,
    read_file_states,
    read_record,
    write_record,
)
from impruver_core.io.locks import lock_folders
from impruver_core.labels import IGNORE_INDEX, count_target_tokens

from impruver_train.data.token_files import TokenFiles, format_line, hash_content, read_token_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy import ndarray

INT32 = range(2**31)
BATCH_ROWS = 1000
FORMAT = 6  # of a cache entry; raised where what stands in it changes
ROWS, RECORD = "rows.arrow", "facts.json"  # what an entry of the cache consists of
HELD_OUT = 64  # rows that a finished run keeps

FileStates = Mapping[Path, FileState]  # of the JSONL when it was hashed


class TokenRow(NamedTuple):
    """A checked row: three lists of one length."""

    input_ids: list[int]
    labels: list[int]
    attention_mask: list[int]


@dataclass
class TokenFileStats:
    """What the checked read of token files counts; lines, from 1, go over all parts; `tokens`, `targets` are sums."""

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


def read_stats(files: TokenFiles, digest: str, states: FileStates) -> tuple[TokenFileStats, ndarray]:
    """The stats of `files` and the lengths of their rows with targets (an int32 array), writing nothing."""
    import numpy as np
    from datasets import Dataset

    folder = _get_cache_folder(digest)
    try:
        stats = _read_entry(folder)
    except DamagedError as damage:
        log_info(f"note: {folder} is damaged ({damage}) and not used")
        stats = None
    if stats is not None:
        return stats, get_row_lengths(Dataset.from_file(str(folder / ROWS)))
    stats = TokenFileStats()
    with checking_unchanged(states):
        lengths = array("i", (len(row.input_ids) for row in read_target_rows(files, stats)))
    return stats, np.frombuffer(lengths, dtype=np.int32)


def get_row_lengths(rows: Dataset) -> ndarray:
    """Tokens of each row, an int32 array, from the offsets alone: no token is read."""
    import numpy as np
    import pyarrow.compute as pc

    chunks = rows.data.column("input_ids").chunks
    return np.concatenate([np.empty(0, np.int32), *(pc.list_value_length(chunk).to_numpy() for chunk in chunks)])


def _get_cache_folder(digest: str) -> Path:
    return get_cache_dir() / "tokens" / f"{digest}-{FORMAT}"


def load_token_dataset(
    files: TokenFiles, digest: str | None = None, states: FileStates | None = None
) -> tuple[TokenFileStats, Dataset]:
    """The stats of `files` and their rows with targets, memory-mapped; read and checked only once.

    `digest`, `states`: of `files`, their hash and what the system knew of them before; found here if not given.
    """
    from datasets import Dataset

    if digest is None:
        states = read_file_states(files.parts)
        digest = hash_content(files).sha256
    folder = _get_cache_folder(digest)
    stats = None if _has_leftovers(folder) else _read_whole_entry(folder)
    if stats is None:
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            folder.unlink()
        make_folder(folder)
        with lock_folders([folder]):  # of several processes the first makes it
            stats = _make_entry(files, folder, states or {})
    return stats, Dataset.from_file(str(folder / ROWS))


def _make_entry(files: TokenFiles, folder: Path, states: FileStates) -> TokenFileStats:
    """Writes an entry of the cache where no whole one is there, the only process at work in `folder`."""
    try:
        stats, damage = _read_entry(folder), None
    except DamagedError as error:
        stats, damage = None, error
    for left in folder.iterdir():  # by a process that was killed, or damaged
        if stats is None or left.name not in (ROWS, RECORD):
            remove_path(left)
    if stats is not None:
        return stats
    if damage:
        log_info(f"note: {folder} is damaged ({damage}) and is made again")
    return _write_entry(files, folder, states)


def _has_leftovers(folder: Path) -> bool:
    """Whether more than an entry is in a folder of the cache: what was being written when a process was killed."""
    return folder.is_dir() and any(path.name not in (ROWS, RECORD) for path in folder.iterdir())


def _read_whole_entry(folder: Path) -> TokenFileStats | None:
    """The stats of an entry of the cache; None where none is there, or a damaged one."""
    try:
        return _read_entry(folder)
    except DamagedError:
        return None


def _read_entry(folder: Path) -> TokenFileStats | None:
    """The stats of an entry of the cache, whose rows are read for it; None where none is there.

    Raises:
        DamagedError: for one that is not as it was written.
    """
    record, rows = folder / RECORD, folder / ROWS
    try:
        content = read_record(record)
    except DamagedError as error:
        raise DamagedError(f"{RECORD}: {error}") from None
    if content is None:
        if os.path.lexists(rows):
            raise DamagedError(f"{RECORD}: it is gone")
        return None
    try:
        stats, described, name = TokenFileStats(**content["stats"]), content["rows"], content["entry"]
        damage = find_damage(rows, described)
    except (KeyError, TypeError):
        raise DamagedError(f"{RECORD}: it is of another kind") from None
    if name != folder.name:
        raise DamagedError(f"{RECORD}: it is of another file, {name}")
    if damage:
        raise DamagedError(f"{ROWS}: {damage}")
    return stats


def _write_entry(files: TokenFiles, folder: Path, states: FileStates) -> TokenFileStats:
    """Writes the rows that have targets, an Arrow stream, then the record, whose presence means that it is complete."""
    import pyarrow as pa

    columns = {"input_ids": pa.int32(), "labels": pa.int32(), "attention_mask": pa.int8()}
    schema = pa.schema([(name, pa.list_(kind)) for name, kind in columns.items()])
    stats = TokenFileStats()
    rows = read_target_rows(files, stats)
    staged = folder / f"{ROWS}.{os.getpid()}"
    try:
        with checking_unchanged(states), open(staged, "wb") as file:
            with pa.ipc.new_stream(file, schema) as writer:
                while batch := list(islice(rows, BATCH_ROWS)):
                    writer.write_batch(
                        pa.record_batch(dict(zip(columns, zip(*batch, strict=True), strict=True)), schema)
                    )
            file.flush()
            os.fsync(file.fileno())
        content = describe_content(staged)
        os.replace(staged, folder / ROWS)
    finally:
        staged.unlink(missing_ok=True)
    sync_folder(folder)
    write_record(folder / RECORD, {"entry": folder.name, "stats": asdict(stats), "rows": content})
    return stats


def read_held_out_rows(files: TokenFiles, states: FileStates) -> list[dict[str, Any]]:
    """The first rows of `files` that carry their messages or text, for impruver-gguf and impruver-chat to try."""
    with checking_unchanged(states):
        rows = (numbered.row for numbered in read_token_rows(files))
        return list(islice((row for row in rows if "messages" in row or "text" in row), HELD_OUT))


def read_target_rows(files: TokenFiles, stats: TokenFileStats) -> Iterator[TokenRow]:
    """Checked rows of `files`, less those without targets; counts all in `stats`."""
    for part, line, overall, row in read_token_rows(files):
        checked = check_row(row, part, line)
        if stats.add_row(overall, checked):
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


def check_rows(stats: TokenFileStats, files: TokenFiles, vocabulary: int, positions: int | None) -> list[str]:
    """Refuses no targets, ids that the model has no row for, rows longer than its `positions`; returns notes."""
    if not stats.rows:
        raise ImpruverError(f"{files}: no rows; impruver-compose makes them")
    if stats.targetless_rows == stats.rows:
        raise ImpruverError(
            f"{files}: nothing to train on in any of {stats.rows} rows: their labels are -100 behind the first token, "
            "or attention_mask hides every token; impruver-compose makes rows with labels"
        )
    if stats.largest_id >= vocabulary:
        raise ImpruverError(
            f"{format_line(files, stats.largest_id_line)}: id {stats.largest_id} is beyond the vocabulary of "
            f"{vocabulary}; these rows were made with another tokenizer, or model.config.vocab_size is too small"
        )
    if positions is not None and stats.longest > positions:
        raise ImpruverError(
            f"{format_line(files, stats.longest_line)}: a row of {stats.longest} tokens, and the model has {positions} "
            "positions; set tokenizer.max_tokens_count and run impruver-compose again"
        )
    if not stats.targetless_rows:
        return []
    first = format_line(files, stats.targetless_line).removeprefix(f"{files}, ")
    return [f"{files}: {stats.targetless_rows} rows have no target tokens and are left out (the first is {first})"]
