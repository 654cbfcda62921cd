"""Tells what the last run made of a row: kept, or dropped and why; of a duplicate both texts, side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from operator import itemgetter
from typing import NamedTuple

from impruver_core.cli.console import print_result, warn
from impruver_core.errors import ImpruverError, RefusedError
from impruver_core.io.jsonl import read_rows
from impruver_core.io.manifest import read_manifest

from impruver_compose.converters.conversation import Conversation
from impruver_compose.encoding.encoder import convert_row_at
from impruver_compose.encoding.job import DatasetJob
from impruver_compose.output import OutputPaths
from impruver_compose.reporting.terminal_text import GREEN, RED, format_visible, make_marker
from impruver_compose.reporting.text_diff import split_into_pieces

place_of = itemgetter("dataset_index", "row", "part")


class RowReference(NamedTuple):
    """A row, or one conversation of it; all numbers from 0."""

    dataset_index: int
    row: int
    part: int | None

    @classmethod
    def parse(cls, text: str) -> RowReference:
        """Of `<dataset_index>:<row>[:<part>]`."""
        if not re.fullmatch(r"\d{1,15}:\d{1,15}(:\d{1,15})?", text, re.ASCII):
            raise ImpruverError(f"--explain {text}: not of the form <dataset_index>:<row>[:<part>], as in 0:17")
        numbers = [int(number) for number in text.split(":")]
        return cls(*numbers) if len(numbers) == 3 else cls(*numbers, None)


@dataclass(frozen=True)
class PreviousRun:
    """What the last run left: its manifest, and the ledger by place."""

    manifest: dict
    ledger: dict[tuple[int, int, int], dict]

    @classmethod
    def load(cls, paths: OutputPaths) -> PreviousRun:
        """Beside train_path; ImpruverError where there is none."""
        manifest = read_manifest(paths.manifest)
        if manifest is None or not paths.ledger.is_file():
            missing = paths.manifest if manifest is None else paths.ledger
            raise ImpruverError(f"{missing} is not there: run impruver-compose with this recipe first")
        try:
            lines = {place_of(line): line for line in read_rows(paths.ledger)}
        except KeyError as error:
            raise ImpruverError(f"{paths.ledger}: not a ledger of impruver-compose: no {error}") from None
        return cls(manifest, lines)

    def find_repeats(self, place: tuple[int, int, int]) -> list[dict]:
        """The ledger's lines of what was dropped as a duplicate of this conversation."""
        return [line for line in self.ledger.values() if "kept" in line and place_of(line["kept"]) == place]


def print_explanation(jobs: Sequence[DatasetJob], inputs: list[dict], past: PreviousRun, place: RowReference) -> None:
    """Prints what became of the row; ImpruverError where there is no such row."""
    job = _get_job(jobs, place)
    if inputs != past.manifest.get("inputs"):
        warn("the data is not that of the last run any more: its ledger may tell of other rows")
    try:
        parts = convert_row_at(job, place.row)
    except RefusedError:
        parts = []
    numbers = range(max(1, len(parts)))
    if place.part is not None and place.part not in numbers:
        raise ImpruverError(f"row {place.row} of data set {job.index} has {len(parts)} conversations, numbered from 0")
    for part in numbers if place.part is None else [place.part]:
        _print_outcome(jobs, past, (job.index, place.row, part), parts[part] if parts else None)


def _get_job(jobs: Sequence[DatasetJob], place: RowReference) -> DatasetJob:
    if place.dataset_index >= len(jobs):
        raise ImpruverError(f"--explain: there are {len(jobs)} data sets, numbered from 0: no {place.dataset_index}")
    job = jobs[place.dataset_index]
    if place.row >= len(job.rows):
        raise ImpruverError(
            f"--explain: data set {job.index} ({job.name}) has {len(job.rows)} rows, numbered from 0: no {place.row}"
        )
    return job


def _print_outcome(
    jobs: Sequence[DatasetJob], past: PreviousRun, place: tuple[int, int, int], own: Conversation | None
) -> None:
    line = past.ledger.get(place)
    if line is None and own is None:
        print_result(f"{_format_reference(jobs, place)}: gives no conversation, and the ledger does not tell of it")
    elif line is None:
        print_result(f"{_format_reference(jobs, place)}: kept")
        for other in past.find_repeats(place):
            print_result(f"  {':'.join(map(str, place_of(other)))} repeats it, similarity {other['similarity']}")
    elif "kept" not in line:
        detail = f": {line['detail']}" if line["detail"] else ""
        print_result(f"{_format_reference(jobs, place)}: dropped, {line['reason']}{detail}")
    else:
        kept = place_of(line["kept"])
        print_result(f"{_format_reference(jobs, place)}: dropped, {line['reason']}, similarity {line['similarity']}")
        print_result(f"kept was {_format_reference(jobs, kept)}")
        _print_comparison(own, _find_conversation(jobs, kept))


def _format_reference(jobs: Sequence[DatasetJob], place: tuple[int, int, int]) -> str:
    index, row, part = place
    name = f" ({jobs[index].name})" if index < len(jobs) else ""
    return f"data set {index}{name}, row {row}, conversation {part}"


def _find_conversation(jobs: Sequence[DatasetJob], place: tuple[int, int, int]) -> Conversation | None:
    try:
        return convert_row_at(_get_job(jobs, RowReference(*place)), place[1])[place[2]]
    except (ImpruverError, IndexError):  # the data has changed
        return None


def _print_comparison(dropped: Conversation | None, kept: Conversation | None) -> None:
    """Prints both role by role, what differs marked: [-in the dropped one-], {+in the kept one+}."""
    if dropped is None or kept is None:
        print_result("  the data no longer holds both")
        return
    less, more = make_marker(RED, "[-", "-]"), make_marker(GREEN, "{+", "+}")
    for one, other in zip_longest(_list_texts(dropped), _list_texts(kept), fillvalue=("", "")):
        if one == other:
            print_result(f"{one[0]}, both:\n{_indent(format_visible(one[1]))}")
            continue
        found = list(split_into_pieces(format_visible(one[1]), format_visible(other[1])))
        for name, role, marked, side in (("dropped", one[0], less, 0), ("kept", other[0], more, 1)):
            texts = ((piece[side], piece[0] == piece[1]) for piece in found)
            text = "".join(text if same or not text else marked(text) for text, same in texts)
            print_result(f"{role or 'nothing'}, {name}:\n{_indent(text)}")


def _list_texts(conversation: Conversation) -> Iterator[tuple[str, str]]:
    """(role, text) of each message; what is no text as JSON."""
    if conversation.text is not None:
        yield "text", conversation.text
        return
    if conversation.tools:
        yield "tools", json.dumps(conversation.tools, ensure_ascii=False)
    for message in conversation.messages:
        content = message.get("content") or ""
        more = {key: value for key, value in message.items() if key not in ("role", "content")}
        texts = [content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)]
        yield str(message.get("role")), "\n".join([*texts, *([json.dumps(more, ensure_ascii=False)] if more else [])])


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))
