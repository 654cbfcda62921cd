"""`DatasetJob`: everything that encoding one data set needs; the longest row that is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.chat_template.rendering.renderer import TODAY
from impruver_core.cli.console import log_info
from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import read_json
from impruver_core.io.model_files import get_context_length
from impruver_core.recipe.paths import find_or_download
from impruver_core.recipe.sections import ModelSection

from impruver_compose.converters.conversion import Conversation
from impruver_compose.converters.detection import DatasetConverter, find_converter
from impruver_compose.encoding.text_encoder import GigatokenEncoder, TokenizersEncoder
from impruver_compose.sections import DatasetSection, DedupSection
from impruver_compose.sources.loading import load_dataset
from impruver_compose.sources.row_table import RowTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNLIMITED = 10**9  # transformers writes 10**30 for a tokenizer that knows no limit


@dataclass(frozen=True)
class DatasetJob:
    """A data set, opened, with its converter and what encoding it needs."""

    name: str
    index: int
    section: DatasetSection
    dedup: DedupSection
    rows: RowTable
    inputs: list[dict]  # what the manifest says of the data
    key: list  # of JSON types, equal for the same rows
    converter: DatasetConverter
    tokenizer: PreTrainedTokenizerFast | None = None  # None: rows are only converted
    max_length: int | None = None  # tokens of the longest row that is allowed
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    control_text: str = "text"  # what becomes of text of the data that is a special token's
    own_tokens: Sequence[str] = ()  # special tokens that the recipe adds for its data
    encoder: TokenizersEncoder | GigatokenEncoder | None = None  # of rendered texts and documents
    day: str | None = None  # for a template that asks for the date, as 2026-11-22; None: today

    def build_encode_options(self) -> dict[str, Any]:
        """Builds the options of core's `encode_chats`."""
        return {
            "only_target_loss": self.section.only_target_loss,
            "add_bos": self.section.add_global_bos,
            "add_eos": self.section.add_global_eos,
            "control_text": self.control_text,
            "own_tokens": self.own_tokens,
        }

    def build_template_kwargs(self, conversation: Conversation) -> dict[str, Any]:
        """Builds the template's arguments for a conversation."""
        day = {TODAY: self.day} if self.day else {}
        return {**self.template_kwargs, **(conversation.chat_template_kwargs or {}), **day}

    def explain_missing_eos(self) -> str | None:
        """Says why no EOS is added to a row that no end-of-turn token ends; None if one is."""
        if not self.section.add_global_eos:
            return "add_global_eos is off"
        return "the tokenizer has no EOS" if self.tokenizer.eos_token_id is None else None


def open_job(
    index: int, section: DatasetSection, dedup: DedupSection, where: str, recipe_dir: Path, outputs: Sequence[Path]
) -> DatasetJob:
    """Opens a data set, which must hold none of the run's `outputs`, and finds its converter; no tokenizer yet."""
    data = load_dataset(section, where, recipe_dir, outputs)
    rows = data.rows
    if not len(rows):
        raise ImpruverError(f"{where}: {section.name} has no rows in split {section.split}")
    converter = find_converter(section, rows.columns, rows.read(0, 1)[0], where, recipe_dir)
    log_info(f"data set {index}: {section.name}, {len(rows)} rows, converter {converter.name}")
    return DatasetJob(section.name, index, section, dedup, rows, data.inputs, data.key, converter)


def resolve_max_length(
    wanted: int | None, tokenizer: PreTrainedTokenizerFast, model: ModelSection, recipe_dir: Path
) -> int | None:
    """Returns the number `wanted`, else the smaller of the tokenizer's and the model's limit; None if none is known."""
    if wanted is not None:
        return wanted
    config = _load_config(model.name, recipe_dir) if model.name else model.config
    limits = (tokenizer.model_max_length, get_context_length(config))
    known = [limit for limit in limits if limit and limit < UNLIMITED]
    if not known:
        log_info("neither tokenizer nor model tells a longest row: none is dropped for its length")
    return min(known, default=None)


def _load_config(name: str, recipe_dir: Path) -> dict[str, Any]:
    """Loads the config.json of a folder or hub id; {} if it can't be had, since a limit is no reason to stop."""
    try:
        return read_json(find_or_download(name, recipe_dir, ["config.json"]) / "config.json")
    except Exception as error:  # offline, gated, misspelt, broken: whoever loads the model reports it
        log_info(f"the longest row of {name} is not known ({type(error).__name__}): the tokenizer's limit counts")
        return {}
