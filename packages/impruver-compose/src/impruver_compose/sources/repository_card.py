"""The configs that the README of a data set's repository names in its front matter, and the files of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from impruver_core.cli.console import log_info
from impruver_core.errors import ImpruverError
from impruver_core.recipe.yaml_document import Document, parse_text

from impruver_compose.sources.split_names import match_names

LARGEST_CARD = 4 << 20  # bytes
MOST_FOLDERS = 3  # times `**` in a pattern: more could take for ever
CONFIGS_BLOCK = re.compile(r"^[\"']?configs[\"']?[ \t]*:.*(?:\n(?:[ \t#-].*)?)*", re.MULTILINE)
FORM = "configs is a list of config_name with data_files (a path, paths, or a list of split and path) or data_dir"


class RepositoryConfig(NamedTuple):
    """A config: patterns below `folder` by split, None where names tell the splits."""

    name: str
    patterns: dict[str, list[str]] | None
    folder: str = ""
    is_default: bool = False

    def match_files(self, files: Mapping[str, Path]) -> dict[str, list[Path]]:
        """The files of each split, by their names below the repository; none lies outside, whatever a pattern says."""
        prefix = f"{self.folder}/" if self.folder else ""
        return {
            split: [files[name] for pattern in own for name in match_names(prefix + pattern.removeprefix("./"), files)]
            for split, own in (self.patterns or {}).items()
        }


def read_configs(path: Path, where: str) -> list[RepositoryConfig]:
    """Reads the configs of a README.md, [] if there are none; ImpruverError for some that can't be understood."""
    text = _read_front_matter(path)
    if "configs" not in text:
        return []
    document = _parse_front_matter(text, path)
    blocks = list(CONFIGS_BLOCK.finditer(text))
    if document.faults and len(blocks) < 2 and not text.lstrip().startswith("{"):  # what is wrong may stand elsewhere
        lines_before = text.count("\n", 0, blocks[0].start()) if blocks else 0
        alone = _parse_front_matter("\n" * lines_before + blocks[0][0] if blocks else "", path)
        if not alone.faults:
            what = "of it only configs is read" if blocks else "it is left out"
            log_info(f"note: the front matter of {path} is no YAML, and {what} ({document.faults[0]})")
            document = alone
    if document.faults:
        raise ImpruverError(f"{where}: {document.faults[0]}")
    configs = document.data.get("configs") if isinstance(document.data, dict) else None
    try:
        return [_parse_config(config) for config in configs or []]
    except (ValueError, TypeError, KeyError):
        raise ImpruverError(f"{where}: {path}: its configs can't be read; {FORM}") from None


def _parse_front_matter(text: str, path: Path) -> Document:
    document = Document(str(path))
    parse_text(text, document, place=lambda line: f"{path}:{line + 1}")
    return document


def _read_front_matter(path: Path) -> str:
    """Reads what stands between the lines `---` at a file's start; "" if nothing does."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        lines = file.read(LARGEST_CARD).decode("utf-8-sig", errors="replace").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return ""
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), 0)
    return "\n".join(lines[1:end])


def _parse_config(config: Any) -> RepositoryConfig:
    """Parses an item of `configs`; ValueError, TypeError or KeyError for what is none."""
    from datasets.data_files import sanitize_patterns

    name, patterns, folder = str(config["config_name"]), config.get("data_files"), config.get("data_dir") or ""
    if not isinstance(folder, str):
        raise TypeError(folder)
    if patterns is not None:
        patterns = {str(split): own for split, own in sanitize_patterns(patterns).items()}
        if not all(
            isinstance(each, str) and each.count("**") <= MOST_FOLDERS for own in patterns.values() for each in own
        ):
            raise TypeError(patterns)
    folder = folder.removeprefix("./").strip("/")
    return RepositoryConfig(name, patterns, "" if folder == "." else folder, config.get("default") is True)


def find_config(configs: list[RepositoryConfig], subset: str | None, path: Path, where: str) -> RepositoryConfig:
    """Finds the config that `subset` names, else the default one; ImpruverError with the names there are."""
    names = ", ".join(config.name for config in configs)
    if subset is not None:
        found = next((config for config in configs if config.name == subset), None)
        if found is None:
            raise ImpruverError(f"{where}.subset: the README.md of {path} has no config {subset}; there are {names}")
        return found
    defaults = [config for config in configs if config.is_default or config.name == "default"]
    if len(configs) > 1 and len(defaults) != 1:
        raise ImpruverError(f"{where}: {path} has several configs: set subset to one of {names}")
    return (defaults or configs)[0]
