"""A job for each data set of a recipe: its rows opened, its converter found, its settings gathered."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impruver_core.chat_template.rendering.renderer import TODAY
from impruver_core.cli.console import log_info
from impruver_core.errors import ImpruverError

from impruver_compose.converters.conversation import Conversation
from impruver_compose.converters.registry import find_converter
from impruver_compose.sources.loading import LoadedDataset, load_dataset
from impruver_compose.sources.row_table import RowTable


@dataclass(frozen=True)
class DatasetJob:
    """All that encoding a data set needs."""

    name: str
    index: int
    key: list  # what tells its data from any other
    rows: RowTable
    converter: Callable
    mapping: dict
    tokenizer: Any
    limit: int | None  # tokens of a line
    options: dict  # of encode_chats: only_target_loss, add_bos, add_eos
    template_kwargs: dict = field(default_factory=dict)
    turns: str = "all"
    trim: bool = False  # on_overflow: trim_turns
    prompts_only: bool = False  # dedup.on: prompt
    num_perm: int = 128
    day: str | None = None  # told to a template that asks for the date

    def get_template_kwargs(self, chat: Conversation) -> dict:
        """The template's arguments for a conversation."""
        day = {TODAY: self.day} if self.day else {}
        return {**self.template_kwargs, **(chat.chat_template_kwargs or {}), **day}

    @property
    def no_eos_reason(self) -> str | None:
        """Why no EOS is put behind a row that no end-of-turn token ends; None where one is."""
        if not self.options["add_eos"]:
            return "add_global_eos is off"
        return "the tokenizer has no EOS" if self.tokenizer.eos_token_id is None else None


def open_jobs(recipe, tokenizer, limit: int | None, written: list[Path]) -> tuple[list[DatasetJob], list[dict]]:
    """(jobs, inputs for the manifest): all data sets opened before any is worked on; none may hold what is `written`.

    `limit`: tokens of the longest row, where a data set says nothing else.
    """
    if not recipe.datasets:
        raise ImpruverError(f"{recipe.path}: datasets is missing: name at least one data set")
    jobs, inputs = [], []
    for index, section in enumerate(recipe.datasets):
        where = recipe.locate(f"datasets.{index}")
        source = load_dataset(section, where, recipe.base_dir, written)
        if not len(source.rows):
            raise ImpruverError(f"{where}: {section.name} has no rows in split {section.split}")
        name, converter, mapping = find_converter(
            section, source.rows.columns, source.rows.read(0, 1)[0], where, recipe.base_dir
        )
        log_info(f"data set {index}: {section.name}, {len(source.rows)} rows, converter {name}")
        jobs.append(_build_job(recipe, index, source, converter, mapping, tokenizer, limit))
        inputs += source.inputs
    return jobs, inputs


def _build_job(
    recipe, index: int, source: LoadedDataset, converter, mapping: dict, tokenizer, limit: int | None
) -> DatasetJob:
    section = recipe.datasets[index]
    return DatasetJob(
        name=section.name,
        index=index,
        key=source.key,
        rows=source.rows,
        converter=converter,
        mapping=mapping,
        tokenizer=tokenizer,
        limit=section.max_tokens_count or limit,
        options={
            "only_target_loss": section.only_target_loss,
            "add_bos": section.add_global_bos,
            "add_eos": section.add_global_eos,
        },
        template_kwargs=recipe.tokenizer.chat_template_kwargs or {},
        turns=section.turns,
        trim=section.on_overflow == "trim_turns",
        prompts_only=recipe.dedup.on == "prompt",
        num_perm=recipe.dedup.num_perm,
    )
