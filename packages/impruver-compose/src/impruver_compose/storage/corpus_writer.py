"""Write selected rows in order, one shard after another (`write_lines`)."""

import os
from typing import BinaryIO

import numpy as np

from impruver_compose.storage.corpus import Corpus
from impruver_compose.storage.shard_file import make_bytes_getter


def write_token_rows(file: BinaryIO, corpus: Corpus, order: np.ndarray, with_extra: bool = False) -> None:
    """Writes these lines in this order, `with_extra` as rows of val.jsonl.

    Shard after shard is read once, and each line put at its place: read in order, all shards would have to be open.
    """
    sizes = compute_row_sizes(corpus, order, with_extra)
    places = (np.cumsum(sizes) - sizes).tolist()
    by_line = np.argsort(order, kind="stable")
    ends = np.searchsorted(order, corpus.line_starts[1:], sorter=by_line)
    start = 0
    for (first, shard), end in zip(corpus.open_shards(), ends, strict=True):
        content, extra = (
            make_bytes_getter(shard.read_row_column("content")),
            make_bytes_getter(shard.read_row_column("extra")),
        )
        for at in by_line[start:end].tolist():
            number = int(order[at]) - first
            line = content(number)
            if with_extra:  # two JSON objects become one
                line = line[:-1] + b"," + extra(number)[1:]
            os.pwrite(file.fileno(), line + b"\n", places[at])
        start = end


def compute_row_sizes(corpus: Corpus, lines: np.ndarray, with_extra: bool) -> np.ndarray:
    """Bytes of each line in its file."""
    return corpus.size[lines] + 1 + (corpus.extra_size[lines] - 1 if with_extra else 0)
