"""The files that token rows are written into: one, or the parts of a folder; plain or compressed."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np
from impruver_core.io.atomic import get_staged_path, make_folder, open_synced
from impruver_core.io.compression import compress_zst
from impruver_core.io.row_parts import get_part_path

from impruver_compose.corpus import Corpus

PART_BYTES = 10**9
OPEN_FILES = 128  # written at once, for each of which all shards are read once
OPEN_UNPACKED = 8  # likewise where each lies on the disk unpacked until it is compressed
ZST_SHARE = 0.5  # of numbers and commas, 12 characters: by their frequency alone 3.6 of 8 bits


class RowFormat(NamedTuple):
    """How rows are written: into one file, or with `part_bytes` into a folder; compressed as .zst or not."""

    part_bytes: int | None = None
    compressed: bool = False


class RowFile(NamedTuple):
    """A file that is to hold the rows start..stop of those that are written, `size` bytes before compression."""

    path: Path
    start: int
    stop: int
    size: int


def plan_row_files(path: Path, row_format: RowFormat, sizes: np.ndarray) -> list[RowFile]:
    """Plans which rows, of these sizes in bytes, go into which file; of no rows one empty file is made.

    A part takes rows as long as they fit, and at least one.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    if row_format.part_bytes is None:
        return [RowFile(path, 0, len(sizes), total)]
    planned, start, written = [], 0, 0
    while start < len(ends) or not planned:
        stop = int(np.searchsorted(ends, written + row_format.part_bytes, "right"))
        stop = min(max(stop, start + 1), len(ends))
        end = int(ends[stop - 1]) if stop else 0
        part = get_part_path(path, len(planned), row_format.compressed)
        planned.append(RowFile(part, start, stop, end - written))
        start, written = stop, end
    return planned


def compute_space(sizes: Sequence[int], compressed: bool) -> int:
    """Computes the bytes that files of these sizes take on the disk while they are written."""
    if not compressed:
        return sum(sizes)
    unpacked = max((sum(sizes[at : at + OPEN_UNPACKED]) for at in range(0, len(sizes), OPEN_UNPACKED)), default=0)
    return int(sum(sizes) * ZST_SHARE) + unpacked


def stage_row_files(
    corpus: Corpus, rows: np.ndarray, planned: Sequence[RowFile], compressed: bool, with_extra: bool = False
) -> None:
    """Writes token rows into the planned files, each beside its place; `with_extra` as rows of val."""
    at_once = OPEN_UNPACKED if compressed else OPEN_FILES
    for first in range(0, len(planned), at_once):
        files = planned[first : first + at_once]
        own = rows[files[0].start : files[-1].stop]
        counts = [file.stop - file.start for file in files]
        if not compressed:
            with ExitStack() as stack:
                opened = [stack.enter_context(open_synced(get_staged_path(file.path), "wb")) for file in files]
                corpus.write_token_rows(opened, counts, own, with_extra)
            continue
        make_folder(files[0].path.parent)
        with ExitStack() as stack:  # without a name: a process that is killed leaves nothing of them
            opened = [stack.enter_context(TemporaryFile(dir=file.path.parent)) for file in files]
            corpus.write_token_rows(opened, counts, own, with_extra)
            for file, unpacked in zip(files, opened, strict=True):
                unpacked.seek(0)
                with open_synced(get_staged_path(file.path), "wb") as target:
                    compress_zst(unpacked, target, file.size)
                unpacked.truncate(0)
