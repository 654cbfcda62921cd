"""All that is pickled in a checkpoint's folder, checked before anything is loaded: a pickle may run code.

Trainer loads optimizer, scheduler and random states with weights_only, which ends in a traceback where a pickle wants
more. What DeepSpeed and FSDP keep in folders of their own is loaded without it, and runs what it names.
"""

import os
import re
import stat
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.model_files import PICKLED, check_no_lfs_pointer

from impruver_train.checkpointing.pickles import rules
from impruver_train.checkpointing.pickles.archives import MAGIC, parse_archive
from impruver_train.checkpointing.pickles.parsing import (
    LARGEST_PICKLE,
    Budget,
    PickleError,
    Storage,
    check_extent,
    parse_pickle,
)

SUFFIXES = tuple(pattern.removeprefix("*") for pattern in PICKLED)
SHARDS = ".distcp"
SHARDS_METADATA = re.compile(r"(__\d+)?\.metadata")  # of torch.distributed.checkpoint
WEIGHTS = re.compile(r"(pytorch|adapter)_model(-\d+-of-\d+)?\.bin(\.index\.json)?")
ARGUMENTS = "training_args.bin"
LATEST = "latest"  # the folder that DeepSpeed loads from
# What any checkpoint may take: steps (a tensor takes some 50) and bytes; how many bytes on the disk add a step, and how
# often each byte may be in a tensor.
STEPS, STEP_BYTES = 3_000_000, 256
TENSOR_BYTES, TENSOR_COPIES = 1 << 24, 4


def check_pickles(folder: Path, advice: str, key: str = "", marked: bool = False) -> None:
    """ImpruverError for a pickle in a checkpoint that no training leaves there, or that can't be read.

    Nothing of it is run, and no tensor is read. The message begins with the recipe's `key` and ends with `advice`.
    `marked`: whether a marker lists the checkpoint's files, none of which may be removed.
    """
    path = folder
    try:
        files = list_files(folder)
        budget = make_budget([status for path, status in files.items() if is_pickled(path) or path.suffix == SHARDS])
        for path in files:
            if WEIGHTS.fullmatch(path.name):
                raise PickleError("is for pickled weights, which are refused")
            if path == folder / LATEST:
                check_latest(path)
            elif SHARDS_METADATA.fullmatch(path.name):
                check_shards(path, budget)
            elif is_pickled(path):
                check_file(path, folder, budget)
    except PickleError as error:
        if path.name == ARGUMENTS and not marked:
            advice += ", or remove that file, which training does not need"
        raise ImpruverError(f"{key and f'{key}: '}{path} {error}; {advice}") from None
    except OSError as error:
        where = error.filename or path
        raise ImpruverError(f"{key and f'{key}: '}{where} can't be read: {error.strerror}; {advice}") from None


def is_pickled(path: Path) -> bool:
    """Whether a file's name is one that pickles have."""
    return path.suffix.lower() in SUFFIXES


def make_budget(files: list[os.stat_result]) -> Budget:
    """What the check of pickled files may take; holes in a file, which cost a stranger nothing, add no steps."""
    size = sum(status.st_size for status in files)
    on_disk = sum(getattr(status, "st_blocks", status.st_size // 512 + 1) * 512 for status in files)
    return Budget(STEPS + min(size, on_disk) // STEP_BYTES, TENSOR_BYTES + TENSOR_COPIES * size)


def list_files(folder: Path) -> dict[Path, os.stat_result]:
    """All files below a folder, sorted; PickleError for pipes and the like, and for links to other folders."""
    found = {}
    for parent, folders, names in os.walk(folder):
        linked = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        if linked:
            raise PickleError(f"has a link to another folder ({linked[0]})")
        for path in (Path(parent, name) for name in names):
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise PickleError(f"has {path.name}, which is no ordinary file")
            found[path] = status
    return dict(sorted(found.items()))


def check_file(path: Path, folder: Path, budget: Budget) -> None:
    """PickleError for a pickled file that holds what no training writes into a file of that name."""
    check_no_lfs_pointer(path)
    find_rule = choose_rules(path.relative_to(folder))
    with path.open("rb") as file:
        is_archive = file.read(len(MAGIC)) == MAGIC
        if is_archive:
            value = parse_archive(file, 0, os.fstat(file.fileno()).st_size, find_rule, budget)
        else:
            file.seek(0)
            value = parse_loose(file.read(LARGEST_PICKLE), find_rule, budget, path.suffix == ".pkl")
    if path.name != ARGUMENTS:  # which nothing loads
        check_extent(value, budget)


def choose_rules(path: Path) -> rules.FindRule:
    """What the file at `path`, relative to the checkpoint, may hold."""
    if path.name == ARGUMENTS:
        return rules.find_arguments_rule
    if path.parts[0].startswith("global_step"):
        return rules.find_deepspeed_rule
    return rules.find_random_rule if path.name.startswith("rng_state") else rules.find_state_rule


def parse_loose(content: bytes, find_rule: rules.FindRule, budget: Budget, alone: bool) -> Any:
    """The value of a pickle that is in no archive, which only a file of one alone may be; PickleError for others.

    torch before 1.6 wrote four pickles, with the numbers of the tensors behind them.
    """
    value, end = parse_pickle(content, find_rule, budget, protocol=5 if alone else 2)
    if alone:
        return value
    for _ in range(3):
        _, end = parse_pickle(content, find_rule, budget, lambda _: Storage(1, 1 << 62), end)
    raise PickleError("is of a torch before 1.6, and no longer read")


def check_latest(path: Path) -> None:
    """PickleError where the file that tells DeepSpeed which folder to load names one elsewhere."""
    with path.open("rb") as file:
        name = file.read(4096).decode(errors="replace").strip()
    if Path(name).name != name or name in ("", ".."):
        raise PickleError(f"names {name!r}, which is no folder of the checkpoint")


def check_shards(metadata: Path, budget: Budget) -> None:
    """PickleError for a checkpoint in shards that holds what no training writes, or reads from other folders."""
    places: list[dict[str, Any]] = []
    with metadata.open("rb") as file:
        content = file.read(LARGEST_PICKLE)
    check_extent(parse_pickle(content, rules.make_shards_rules(places), budget, protocol=5).value, budget)
    for place in places:
        name, start, size = place.get("relative_path"), place.get("offset"), place.get("length")
        known = type(name) is str and Path(name).name == name and type(start) is int and type(size) is int
        if not known or min(start, size) < 0 or place.get("transform_descriptors"):
            raise PickleError("names data that is not beside it, or no plain data")
        with (metadata.parent / name).open("rb") as file:
            if start + size > os.fstat(file.fileno()).st_size:
                raise PickleError(f"names data behind the end of {name}")
            check_extent(parse_archive(file, start, size, rules.find_state_rule, budget), budget)
