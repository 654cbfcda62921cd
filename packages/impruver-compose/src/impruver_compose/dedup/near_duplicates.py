"""Near-duplicates by stages on disk: signatures -> bands -> edges -> components -> candidates -> judged.

Each stage is a folder of files, and knows conversations by their rank: the place in the order in which they are judged.
Only conversations that share a bucket are compared, so that what becomes of one depends on nothing outside of the
connected component that buckets link it into: components are judged apart, and nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from impruver_core.cli.console import log_info
from impruver_core.io.atomic import format_size

from impruver_compose.corpus import Corpus
from impruver_compose.dedup.components import find_roots, join_edges
from impruver_compose.dedup.duplicates import Duplicates, build_duplicates
from impruver_compose.dedup.judging import JudgingRules, judge_candidates
from impruver_compose.dedup.shingles import PRIME, mix_hashes
from impruver_compose.dedup.signatures import choose_bands, compute_band_keys
from impruver_compose.sections import DedupSection
from impruver_compose.stages.column_files import ColumnFile, Columns, count_part, read_part, sort_by_key, write_columns
from impruver_compose.stages.workspace import KeyRange, Workspace
from impruver_compose.storage import ROWS, ShardReader, is_missing, make_own_folder

PAIR_BYTES = 12  # of a band's or bucket's key and a rank, in a file
SORTING_BYTES = 48  # of memory that sorting takes for such a pair
BLOCK_SHARDS, PART_PAIRS, JUDGED_PAIRS = 64, 1 << 21, 1 << 17  # the most that a file of bands, edges, judged is made of
UNRANKED = 0xFFFFFFFF
PAIR = ("number", "kept", "similarity")  # of a conversation that repeats another


class ShardBlock(NamedTuple):
    """Shards of encoded conversations, the first of which has number `first`."""

    paths: Sequence[Path]
    first: int


class BandRules(NamedTuple):
    """How signatures are cut into bands, and which conversations count: `ranks`, uint32 (conversations,)."""

    ranks: np.ndarray
    bands: int
    width: int


class EdgeFiles(NamedTuple):
    """What candidates are made of: the root of each rank's component, and each file's first bucket's number."""

    parents: np.ndarray
    first_bucket: dict[Path, int]


def find_near_duplicates(
    corpus: Corpus,
    order: np.ndarray,
    threshold: float,
    num_perm: int,
    workspace: Workspace,
    judged_from: int = 0,
    joins: bool = True,
) -> Duplicates:
    """Finds which of the conversations `order`, judged in this order, repeat others; the stages lie in `workspace`.

    Those before place `judged_from` are kept in any case; `joins`: the others are compared with one another, too.
    """
    result = workspace.folder / "judged.arrow"
    if is_missing(result):
        bands = BandRules(_rank(corpus, order, workspace), *choose_bands(threshold, num_perm))
        edges = _find_edges(corpus, bands, len(order), workspace)
        rules = JudgingRules(threshold, order, corpus.compared, workspace.arrays, judged_from, joins)
        found = [ColumnFile(path) for path in _judge(corpus, edges, rules, workspace)]
        columns = {name: np.concatenate([file.read(name) for file in found]) for name in PAIR}
        with workspace.reserve(sum(values.nbytes for values in columns.values())):
            write_columns(result, Columns(columns))
    workspace.remove_stages()
    file = ColumnFile(result)
    return build_duplicates(*(file.read(name) for name in PAIR), exact=False)


def compute_stage_bytes(count: float, dedup: DedupSection) -> float:
    """Computes about how many bytes the files of all stages take for so many conversations, the most at once."""
    bands, _ = choose_bands(dedup.threshold, dedup.num_perm)
    return 2 * count * bands * PAIR_BYTES


def _rank(corpus: Corpus, order: np.ndarray, workspace: Workspace) -> np.ndarray:
    """The rank of each conversation, uint32 (conversations,); UNRANKED for those that are not judged."""
    if len(order) >= UNRANKED:
        raise AssertionError(f"{len(order)} conversations can't be ranked by 32 bits")
    ranks = workspace.arrays.make(len(corpus), np.uint32)
    ranks[:] = UNRANKED
    ranks[order] = np.arange(len(order), dtype=np.uint32)
    return ranks


def _find_edges(corpus: Corpus, rules: BandRules, count: int, workspace: Workspace) -> list[Path]:
    """Finds the buckets that several conversations share: files of columns `bucket` and `rank`."""
    pairs = count * rules.bands
    row_bytes = rules.bands * SORTING_BYTES
    at_once = max(1, min(BLOCK_SHARDS, workspace.process_memory // (ROWS * row_bytes)))
    blocks = [ShardBlock(paths, first) for paths, first in corpus.list_blocks(at_once)]
    with workspace.reserve(2 * pairs * PAIR_BYTES):
        bands = workspace.each(f"bands-{at_once}", blocks, list_bands, rules, len(corpus), "rows")
        parts = _count_parts(pairs, PART_PAIRS, workspace)
        return workspace.grouped(f"edges-{parts}", bands, parts, find_shared_buckets, None, pairs, "bands")


def _count_parts(pairs: int, most: int, workspace: Workspace) -> int:
    """Into how many parts pairs are cut, so that each process can sort one in its share of memory."""
    return max(1, -(-pairs // max(1, min(most, workspace.process_memory // SORTING_BYTES))))


def _judge(corpus: Corpus, edges: Sequence[Path], rules: JudgingRules, workspace: Workspace) -> list[Path]:
    """Judges what shares buckets: files of columns `number`, `kept` and `similarity`."""
    files = {path: ColumnFile(path) for path in edges}
    pairs = sum(file.rows for file in files.values())
    buckets = np.cumsum([0, *(file.facts["buckets"] for file in files.values())]).tolist()
    if buckets[-1] >= UNRANKED:
        raise AssertionError(f"{buckets[-1]} buckets can't be numbered by 32 bits")
    with workspace.reserve(2 * pairs * PAIR_BYTES):
        parents = _link_components(edges, len(rules.order), workspace)
        shared = EdgeFiles(parents, dict(zip(edges, buckets, strict=False)))
        candidates = workspace.each(f"candidates-{len(edges)}", edges, list_candidates, shared, pairs, "bands")
        parts = _count_parts(pairs, JUDGED_PAIRS, workspace)
        _tell_large_components(corpus, candidates, parts, parents, rules.order, workspace)
        return workspace.grouped(
            f"judged-{len(edges)}-{parts}", candidates, parts, judge_candidates, rules, pairs, "bands"
        )


def _link_components(edges: Sequence[Path], count: int, workspace: Workspace) -> np.ndarray:
    """The root of each rank's component, uint32 (ranks,); that of one that shares no bucket is itself."""
    path = workspace.folder / "components" / "000000.arrow"
    make_own_folder(path.parent)
    if not is_missing(path):
        return ColumnFile(path).read("root")
    parents = workspace.arrays.make(count, np.uint32)
    parents[:] = np.arange(count, dtype=np.uint32)
    join_edges(parents, _iterate_edges(edges))
    step = max(1, workspace.process_memory // SORTING_BYTES)
    for start in range(0, count, step):  # each has its root at hand
        parents[start : start + step] = find_roots(parents, parents[start : start + step])
    write_columns(path, Columns({"root": parents}))
    return parents


def _iterate_edges(paths: Sequence[Path]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterates over each bucket's first rank and another one's, file by file."""
    for path in paths:
        file = ColumnFile(path)
        bucket, rank = file.read("bucket"), file.read("rank")
        begins = np.flatnonzero(np.diff(bucket, prepend=UNRANKED)) if len(bucket) else np.zeros(0, np.int64)
        yield np.repeat(rank[begins], np.diff(begins, append=len(bucket))), rank


def _tell_large_components(
    corpus: Corpus, candidates: Sequence[Path], parts: int, parents: np.ndarray, order: np.ndarray, workspace: Workspace
) -> None:
    """Notes the largest components that are judged from the disk, as memory is too small, with an example of each."""
    most = workspace.arrays.limit // np.dtype(np.uint64).itemsize
    for part in range(parts):
        if count_part(candidates, part, parts) <= most:
            continue
        roots = find_roots(parents, read_part(candidates, part, parts, ["rank"])["rank"])
        found, counts = np.unique(roots, return_counts=True)
        largest = int(np.argmax(counts))
        members = int(np.sum(parents == found[largest]))
        origin = corpus.get_origin(int(order[found[largest]]))
        log_info(
            f"note: {members:,} conversations are linked by text that they share, such as row {origin.row} of data set "
            f"{origin.dataset_index}: they are judged from {workspace.folder}, since {format_size(most * 8)} of memory "
            "is too little for them"
        )


def list_bands(rules: BandRules, block: ShardBlock) -> Columns:
    """Lists the bands of conversations that are judged: columns `key` (uint64), equal for equal bands, and `rank`."""
    keys, ranks, dropped, first = [], [], 0, block.first
    for path in block.paths:
        signatures = ShardReader(path).read_signatures()
        own = rules.ranks[first : first + len(signatures)]
        first += len(signatures)
        judged = own != UNRANKED
        dropped += len(own) - int(judged.sum())
        keys.append(compute_band_keys(signatures[judged], rules.bands, rules.width))
        ranks.append(own[judged])
    joined = np.concatenate(keys)
    joined = mix_hashes(joined * PRIME + np.arange(rules.bands, dtype=np.uint64))  # those of another band are others
    rank = np.repeat(np.concatenate(ranks), rules.bands)
    return Columns(sort_by_key({"key": joined.ravel(), "rank": rank}), dropped, per_row=rules.bands)


def find_shared_buckets(_: None, bands: KeyRange) -> Columns:
    """Finds the keys of several ranks: columns `bucket` (uint32, numbered from 0) and `rank`; single ones drop out."""
    found = sort_by_key(read_part(bands.files, bands.part, bands.parts, ["key", "rank"]))
    key, rank = found["key"], found["rank"]
    begins = np.flatnonzero(np.concatenate([np.ones(min(1, len(key)), bool), key[1:] != key[:-1]]))
    sizes = np.diff(begins, append=len(key))
    shared = sizes > 1
    bucket = np.repeat(np.arange(shared.sum(), dtype=np.uint32), sizes[shared])
    left = np.repeat(shared, sizes)
    return Columns({"bucket": bucket, "rank": rank[left]}, int(np.sum(~left)), {"buckets": int(shared.sum())})


def list_candidates(edges: EdgeFiles, path: Path) -> Columns:
    """Lists the ranks that share buckets by their component: columns `key` (uint64), `bucket` and `rank` (uint32)."""
    file = ColumnFile(path)
    rank = file.read("rank")
    key = mix_hashes(find_roots(edges.parents, rank).astype(np.uint64) + np.uint64(1))
    bucket = file.read("bucket") + np.uint32(edges.first_bucket[path])
    return Columns(sort_by_key({"key": key, "bucket": bucket, "rank": rank}))
