"""The splits that names of files and folders tell, by the patterns of `datasets`."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from impruver_core.errors import ImpruverError
from impruver_core.recipe.paths import match_parts

SHARD = re.compile(r"data/([^/]+)-\d{5}-of-\d{5}")


def find_named_splits(files: Mapping[str, Path]) -> dict[str, list[Path]]:
    """Finds the splits that names tell, by the patterns of `datasets`, upper case as lower; {} if they tell none.

    In this order: `data/{split}-00000-of-00001.*`, folders (`test/…`), file names (`dev.jsonl`, `my-test_1.csv`).
    """
    from datasets.data_files import DEFAULT_PATTERNS_ALL, SPLIT_PATTERN_SHARDED, _get_data_files_patterns

    if not files:
        return {}
    lowered = {name: name.lower() for name in files}
    try:
        patterns = _get_data_files_patterns(lambda pattern: match_names(pattern, lowered.values()))
    except ValueError:  # shards of a split's name with a dash, which `datasets` takes for none
        stems = {found[1] for name in lowered.values() if (found := SHARD.match(name))}
        patterns = {stem: [SPLIT_PATTERN_SHARDED.format(split=glob.escape(stem))] for stem in sorted(stems)}
    if patterns == DEFAULT_PATTERNS_ALL:
        return {}
    found = {}
    for split, own in patterns.items():
        matched = {name for pattern in own for name in match_names(pattern, lowered.values())}
        found[str(split)] = [file for name, file in files.items() if lowered[name] in matched]
    return found


def check_distinct_splits(splits: Mapping[str, Sequence[Path]], where: str) -> None:
    """ImpruverError for a file that belongs to two splits by its name."""
    owners: dict[Path, str] = {}
    for split, files in splits.items():
        for file in files:
            if owners.setdefault(file, split) != split:
                raise ImpruverError(
                    f"{where}: the name of {file} is of two splits ({owners[file]}, {split}): rename it, or name the "
                    "files one by one"
                )


def match_names(pattern: str, names: Iterable[str]) -> list[str]:
    """Lists the names that a pattern of `datasets` matches: `*` stands for no slash, `**` for any folders."""
    parts = pattern.split("/")
    return [name for name in names if match_parts(name.split("/"), parts)]


def find_synonym(split: str) -> str:
    """Finds the name that `datasets` has for a split: `validation` for dev, valid and val; others are their own."""
    from datasets.data_files import SPLIT_KEYWORDS

    return next((str(name) for name, words in SPLIT_KEYWORDS.items() if split in words), split)
