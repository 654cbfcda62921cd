"""Open benchmarks, and read what is asked in their rows and what is to be answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from impruver_core.cli.console import log_info
from impruver_core.errors import ImpruverError, RefusedError
from impruver_core.labels import TRAINED_ROLES
from impruver_core.recipe.paths import find_local
from impruver_core.suggestions import suggest

from impruver_compose.converters.conversion import convert_row
from impruver_compose.converters.detection import ANSWERS, QUESTIONS, DatasetConverter, find_converter
from impruver_compose.converters.turns import read_messages
from impruver_compose.decontamination.words import list_message_texts, list_texts
from impruver_compose.sections import BenchmarkSection
from impruver_compose.sources.loading import load_dataset
from impruver_compose.sources.row_table import FlawedRow, RowTable

BATCH = 500  # rows in memory at once
BY_COLUMNS = ("impruver.instruction_to_messages", "impruver.reasoning_to_messages")
ASKED = {"instruction": QUESTIONS, "input": ("input", "context"), "history": ("history",)}  # fields, and their columns
ANSWERED = {"output": ANSWERS, "reasoning": ("reasoning",)}
OTHERS = ("messages", "conversations", "dialogues")  # columns of other formats


class RowTexts(NamedTuple):
    """What a benchmark's row asks, and what is to be answered."""

    asked: list[str]
    answered: list[str]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, opened: `read` gives the texts of a row, RefusedError where it can't; `of` is what is compared."""

    index: int
    section: BenchmarkSection
    where: str
    rows: RowTable
    inputs: list[dict]  # what the manifest says of the data
    read: Callable[[dict], RowTexts]
    of: str

    def read_texts(self, row: int) -> list[str]:
        """Reads the texts of a row that are looked for."""
        return self._select_texts(row, self.rows.read(row, row + 1)[0])

    def read_all_texts(self) -> Iterator[list[str]]:
        """Reads the texts of each row that are looked for."""
        for start in range(0, len(self.rows), BATCH):
            stop = min(start + BATCH, len(self.rows))
            yield from (self._select_texts(*row) for row in enumerate(self.rows.read(start, stop), start))

    def _select_texts(self, number: int, row: dict) -> list[str]:
        try:
            if isinstance(row, FlawedRow):
                raise RefusedError("bad_row", row.flaw)
            texts = self.read(row)
        except RefusedError as error:
            raise ImpruverError(
                f"{self.where}: row {number} of {self.section.name} can't be read: {error.detail}: nothing of a "
                "benchmark is passed over; name a converter of yours, which may return None for it"
            ) from None
        on = self.section.on
        sides = [*(texts.asked if on != "answer" else ()), *(texts.answered if on != "question" else ())]
        return list(dict.fromkeys(sides))


def open_benchmark(
    index: int, section: BenchmarkSection, where: str, recipe_dir: Path, outputs: Sequence[Path]
) -> Benchmark:
    """Opens a benchmark as a data set is opened; of its columns, those of question and answer are enough."""
    local = find_local(section.name, recipe_dir)
    split = section.split or ("train" if local is not None and local.is_file() else "test")  # of a file alone: all
    data = load_dataset(replace(section, split=split), where, recipe_dir, outputs)
    if not len(data.rows):
        raise ImpruverError(f"{where}: {section.name} has no rows in split {split}")
    columns = data.rows.columns
    if section.converter in BY_COLUMNS or (section.converter is None and _is_told_by_columns(section, columns)):
        names = _choose_columns(section, columns, where)
        compared = list(dict.fromkeys([*names.asked, *names.answered]))
        of = f"columns {', '.join(compared)}"
        left = [name for name in columns if name not in compared and section.mapping.get(name) != "_"]

        def read(row: dict) -> RowTexts:
            texts = RowTexts(*([text for name in own for text in _list_cell_texts(row.get(name))] for own in names))
            cells = [row[name] for name in names.asked if isinstance(row.get(name), str) and row[name].strip()]
            if len(cells) > 1:  # instruction and input, as they are asked together
                texts.asked.append("\n".join(cells))
            return texts
    else:
        converter = find_converter(section, columns, data.rows.read(0, 1)[0], where, recipe_dir)
        converter, of, left = converter._replace(guarded=()), f"converter {converter.name}", []

        def read(row: dict) -> RowTexts:
            return _read_converted(row, converter)

    log_info(f"benchmark {index}: {section.name}, {len(data.rows)} rows, {of}, on {section.on}")
    if left:
        log_info(f"note: {where}: texts of these columns are not looked for: {', '.join(left)}; mapping names others")
    return Benchmark(index, section, where, data.rows, data.inputs, read, of)


def _is_told_by_columns(section: BenchmarkSection, columns: Sequence[str]) -> bool:
    if {"instruction", "output"} & section.mapping.keys():
        return True
    return not {*OTHERS} & {*columns} and bool({*QUESTIONS, *ANSWERS} & {*columns})


def _choose_columns(section: BenchmarkSection, columns: Sequence[str], where: str) -> RowTexts:
    """Chooses the columns of questions and of answers, by `mapping` or by their names."""
    fields = {**ASKED, **ANSWERED}
    for field, column in section.mapping.items():
        if field not in fields and not (column == "_" and field in columns):
            raise ImpruverError(f"{where}.mapping: a benchmark has no field {field}{suggest(field, fields)}")
        if column != "_" and column not in columns:
            raise ImpruverError(f"{where}.mapping: no such column ({field}: {column}); there are {', '.join(columns)}")
    left_out = {name for name, column in section.mapping.items() if column == "_"}
    asked, answered = (
        [
            name
            for field, names in side.items()
            for name in ([section.mapping[field]] if field in section.mapping else names)
            if name in columns and name not in left_out
        ]
        for side in (ASKED, ANSWERED)
    )
    for side, own, field in (("question", asked, "instruction"), ("answer", answered, "output")):
        if section.on == side and not own:
            raise ImpruverError(
                f"{where}: no column of {section.name} is known to hold the {side}: say which, as in mapping: "
                f"{{{field}: COLUMN}}; there are {', '.join(columns)}"
            )
    return RowTexts(asked, answered)


def _list_cell_texts(value: Any) -> list[str]:
    """Lists the texts of a cell, which may hold messages: those of the system are the same in all rows."""
    try:
        messages = read_messages(value)
    except ValueError:  # turns of somebody else
        messages = None
    if messages is None:
        return list(list_texts(value))
    return [text for message in messages if message["role"] != "system" for text in list_message_texts(message)]


def _read_converted(row: dict, converter: DatasetConverter) -> RowTexts:
    """Reads the texts of a row's conversations, system prompts aside; a document is both question and answer."""
    asked, answered = [], []
    for conversation in convert_row(row, converter):
        if conversation.text is not None:
            asked.append(conversation.text)
            answered.append(conversation.text)
        for message in conversation.messages or ():
            if not isinstance(message, dict):
                raise RefusedError("bad_row", "a message is no object")
            if message.get("role") != "system":
                side = answered if message.get("role") in TRAINED_ROLES else asked
                side.extend(list_message_texts(message))
    return RowTexts(asked, answered)
