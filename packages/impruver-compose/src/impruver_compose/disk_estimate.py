"""What a run will take on the disks, told before it from the first rows of each data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from impruver_core.cli.console import log_info, warn
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import check_free_space, format_size

from impruver_compose.dedup.near_duplicates import compute_stage_bytes
from impruver_compose.encoding.job import DatasetJob
from impruver_compose.output import OutputPaths
from impruver_compose.row_files import RowFormat, compute_space
from impruver_compose.sections import SplitSection
from impruver_compose.storage import EncodedShard


class RowSizes(NamedTuple):
    """Bytes of token rows: as lines of train, what val adds to these, and as the cache keeps them."""

    train: int
    extra: int
    cached: int


class DiskEstimate(NamedTuple):
    """Bytes that are needed while a run writes: for train and val, where nothing is cached, and by later stages."""

    train: int
    val: int
    cached: int
    stages: int


def estimate_space(
    jobs: Sequence[DatasetJob], shards: Sequence[EncodedShard], split: SplitSection, paths: OutputPaths
) -> DiskEstimate:
    """Estimates what all rows take; `shards`: the first rows of each data set, encoded."""
    train = val = cached = stages = conversations = 0.0
    for job, shard in zip(jobs, shards, strict=True):
        factor = len(job.rows) / max(1, shard.counts["rows"])
        sizes = measure_rows(shard, job.dedup.num_perm)
        train += sizes.train * factor * job.section.weight
        val += (sizes.train + sizes.extra) * factor
        cached += sizes.cached * factor
        conversations += len(shard.conversations) * factor
        if job.dedup.method == "minhash":
            stages += compute_stage_bytes(len(shard.conversations) * factor, job.dedup)
    val_share = split.val_ratio if split.val_rows is None else min(1.0, split.val_rows / max(1.0, conversations))
    spaces = (
        _compute_space(train * (1 - val_share), paths.train_format),
        _compute_space(val * val_share, paths.val_format),
    )
    return DiskEstimate(*spaces, int(cached), int(stages))


def measure_rows(shard: EncodedShard, num_perm: int) -> RowSizes:
    """Measures the token rows of an encoded shard, whose conversations have signatures of `num_perm` numbers."""
    rows = [row for each in shard.conversations for row in each.token_rows]
    train, extra = (sum(len(getattr(row, name)) + 1 for row in rows) for name in ("content", "extra"))
    compared = sum(len(each.compared_ids) + num_perm for each in shard.conversations)
    return RowSizes(train, extra, train + extra + compared * np.dtype(np.uint32).itemsize)


def _compute_space(size: float, row_format: RowFormat) -> int:
    whole, rest = divmod(int(size), row_format.part_bytes or max(1, int(size)))
    return compute_space([row_format.part_bytes or int(size)] * whole + [rest], row_format.compressed)


def print_space(estimate: DiskEstimate, paths: OutputPaths, root: Path) -> None:
    """Prints what is needed, with `root` for encoded rows and stages, and warns where a disk has less free."""
    folder, kept = paths.train.absolute().parent, estimate.cached + estimate.stages
    outputs = estimate.train + estimate.val
    log_info(
        f"disk: about {format_size(outputs)} in {paths.train.parent} for train and val, about "
        f"{format_size(estimate.cached)} in {root} for encoded rows that are not there yet, and about "
        f"{format_size(estimate.stages)} there while duplicates are looked for"
    )
    together = _find_device(folder) == _find_device(root)
    for path, needed in ((folder, outputs + kept * together), (root, kept * (not together))):
        try:
            check_free_space(path, needed)
        except ImpruverError as error:
            warn(str(error))


def _find_device(path: Path) -> int:
    """The disk that a folder is on, or will be."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir()).stat().st_dev
