"""Token rows: one checked, streaming read of the JSONL into an Arrow file, which training then maps into memory.

The Arrow file stands in the cache under the JSONL's own hash, so a file is read and checked once. Ids, labels: int32.
"""

import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write, get_cache_dir, hash_file, lock_folders
from impruver_core.io.json_schema import read_json
from impruver_core.io.jsonl import read_numbered_rows
from impruver_core.labels import IGNORE_INDEX, count_target_tokens

INT32 = range(2**31)
BATCH_ROWS = 1000
FORMAT = 3  # of the cached file; raised where what stands in it changes


@dataclass
class Facts:
    """What the checked read of a token file found; lines count from 1, `tokens` and `learned` are sums over rows."""

    rows: int = 0
    tokens: int = 0
    learned: int = 0
    longest: int = 0
    longest_line: int = 0
    most_learned: int = 0  # labels of a row
    largest_id: int = 0
    largest_id_line: int = 0
    unlearned_rows: int = 0
    unlearned_line: int = 0  # the first of them, 0 where there is none
    masked_line: int = 0  # the first row whose attention_mask hides a token, 0 where there is none

    def add(self, line: int, ids: list[int], labels: list[int], mask: list[int]) -> bool:
        """Counts a row; False if a causal model learns nothing of it (the first label is never a target)."""
        learned = count_target_tokens(labels) if any(mask) else 0
        largest = max(max(ids), max(labels))
        self.rows += 1
        if len(ids) > self.longest:
            self.longest, self.longest_line = len(ids), line
        if largest > self.largest_id:
            self.largest_id, self.largest_id_line = largest, line
        if not all(mask):
            self.masked_line = self.masked_line or line
        if not learned:
            self.unlearned_rows += 1
            self.unlearned_line = self.unlearned_line or line
            return False
        self.tokens += len(ids)
        self.most_learned = max(self.most_learned, learned)
        self.learned += learned
        return True


def read_facts(path: Path, digest: str | None = None) -> tuple[Facts, Any]:
    """The facts of `path` and the lengths of its learnable rows (an int32 array), writing nothing.

    ImpruverError with file and line at the first bad row.
    """
    import numpy as np

    if (cached(path, digest) / "facts.json").exists():
        facts, rows = prepare(path, digest)
        return facts, row_lengths(rows)
    facts = Facts()
    lengths = array("i", (len(ids) for ids, _, _ in learnable(path, facts)))
    return facts, np.frombuffer(lengths, dtype=np.int32)


def row_lengths(rows: Any) -> Any:
    """Tokens of each row, an int32 array, from the offsets alone: no token is read."""
    import numpy as np
    import pyarrow.compute as pc

    chunks = rows.data.column("input_ids").chunks
    return np.concatenate([np.empty(0, np.int32), *(pc.list_value_length(chunk).to_numpy() for chunk in chunks)])


def cached(path: Path, digest: str | None) -> Path:
    """Where the checked rows of `path` stand, or will."""
    return get_cache_dir() / "tokens" / f"{digest or hash_file(path)}-{FORMAT}"


def prepare(path: Path, digest: str | None = None) -> tuple[Facts, Any]:
    """The facts of `path` and its learnable rows, memory-mapped as a `datasets.Dataset`; read and checked only once."""
    from datasets import Dataset

    folder = cached(path, digest)
    noted = folder / "facts.json"
    if not noted.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folders([folder]):  # of several processes the first makes it
            if not noted.exists():
                build(path, folder / "rows.arrow", noted)
    facts = Facts(**read_json(noted))
    return facts, Dataset.from_file(str(folder / "rows.arrow"))


def build(path: Path, rows: Path, noted: Path) -> None:
    """Writes the rows, then the facts, whose presence means that the rows are whole."""
    for left in rows.parent.glob(f"{rows.name}.*"):  # by a process that was killed: this one is alone here
        left.unlink()
    facts = write_arrow(path, rows)
    with atomic_write(noted) as file:
        json.dump(asdict(facts), file)


def write_arrow(path: Path, target: Path) -> Facts:
    """Writes those rows of `path` that teach something into `target`, an Arrow stream; returns the facts of all."""
    import pyarrow as pa

    columns = {"input_ids": pa.int32(), "labels": pa.int32(), "attention_mask": pa.int8()}
    schema = pa.schema([(name, pa.list_(kind)) for name, kind in columns.items()])
    facts = Facts()
    rows = learnable(path, facts)
    staged = target.with_name(f"{target.name}.{os.getpid()}")
    with pa.OSFile(str(staged), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        while batch := list(islice(rows, BATCH_ROWS)):
            writer.write_batch(pa.record_batch(dict(zip(columns, zip(*batch, strict=True), strict=True)), schema))
    os.replace(staged, target)
    return facts


def learnable(path: Path, facts: Facts) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Checked rows of `path`, less those with nothing to learn; counts all in `facts`."""
    for line, row in read_numbered_rows(path):
        values = checked(row, path, line)
        if facts.add(line, *values):
            yield values


def checked(row: dict[str, Any], path: Path, line: int) -> tuple[list[int], list[int], list[int]]:
    """Ids, labels and attention mask of a token row, of one length; else ImpruverError with file and line."""

    def bad(what: str) -> ImpruverError:
        return ImpruverError(f"{path}, line {line}: {what}")

    for key in ("input_ids", "labels"):
        if key not in row:
            raise bad(f"no {key!r} in this row; impruver-compose makes token rows of data")
    ids, labels = row["input_ids"], row["labels"]
    mask = row.get("attention_mask")
    if mask is None:
        mask = [1] * len(ids) if isinstance(ids, list) else []
    for key, values in (("input_ids", ids), ("labels", labels), ("attention_mask", mask)):
        if not isinstance(values, list) or not set(map(type, values)) <= {int}:
            raise bad(f"{key!r} is no list of whole numbers")
    if not ids:
        raise bad("'input_ids' is empty")
    if not len(ids) == len(labels) == len(mask):
        raise bad(f"{len(ids)} input_ids, {len(labels)} labels and {len(mask)} attention_mask differ in length")
    wrong = [value for value in {*ids, *labels} - {IGNORE_INDEX} if value not in INT32]
    if wrong or min(ids) < 0:
        raise bad(f"{min(wrong, default=IGNORE_INDEX)} is no id of any vocabulary")
    if min(mask) < 0 or max(mask) > 1:
        raise bad("'attention_mask' holds more than 0 and 1")
    return ids, labels, mask
