"""`--show` and `--explain`: print rows as they are trained on, and what became of a row in the last run."""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, zip_longest
from typing import NamedTuple

from impruver_core.cli.console import print_coloured, print_result, warn
from impruver_core.errors import ImpruverError, RefusedError
from impruver_core.io.jsonl import read_rows
from impruver_core.io.manifest import read_manifest
from impruver_core.labels import IGNORE_INDEX, decode_segments

from impruver_compose.converters.conversion import Conversation
from impruver_compose.decontamination.benchmarks import Benchmark
from impruver_compose.decontamination.words import locate_words
from impruver_compose.encoding.encoder import BATCH, convert_row_of, encode_rows
from impruver_compose.encoding.job import DatasetJob
from impruver_compose.output import OutputPaths
from impruver_compose.reporting.text_diff import compare_texts
from impruver_compose.storage import EncodedConversation, TokenRow

GREEN, RED, GREY = "32", "31", "90"
INVERSE = ";7"
LEFT, RIGHT = "⟦", "⟧"  # around text that is trained on where there are no colours
QUOTE, UNQUOTE = "⟪", "⟫"  # around text of the data that is a control token's
BLANKS = re.compile(r"  +|^ | $", re.MULTILINE)  # those that would be overlooked


def print_rows(jobs: Sequence[DatasetJob], count: int) -> None:
    """Prints the first `count` token rows of each data set, before duplicates are judged; writes nothing."""
    if count < 1:
        raise ImpruverError(f"--show must be at least 1, not {count}")
    trained, other = make_marker(GREEN, LEFT, RIGHT)("trained on"), make_marker(GREY)("not trained on")
    print_coloured(f"{trained}, {other if supports_colour() else 'all else is not'}")
    for job in jobs:
        reasons: Counter[str] = Counter()
        rows = list(islice(_encode_first_rows(job, count, reasons), count))
        for conversation, row in rows:
            where = f"data set {job.index} ({job.name}), row {conversation.row}, conversation {conversation.part}"
            title = f"{where}: {row.tokens} tokens, {row.target_tokens} trained on"
            print_result(f"\n{title}{_describe_control_text(job, row)}")
            print_coloured(_format_row(job, row).removesuffix("\n"))
        if len(rows) < count:
            dropped = "".join(f"; {number} {reason}" for reason, number in sorted(reasons.items()))
            print_result(f"\ndata set {job.index} ({job.name}) gives {len(rows)} rows{dropped}")


def _encode_first_rows(
    job: DatasetJob, count: int, reasons: Counter[str]
) -> Iterator[tuple[EncodedConversation, TokenRow]]:
    """Encodes a data set until it is not read on; counts in `reasons` what is dropped."""
    step = min(BATCH, max(count, 10))
    for start in range(0, len(job.rows), step):
        shard, _ = encode_rows(job, start, min(start + step, len(job.rows)))
        reasons.update(dropped.reason for dropped in shard.dropped)
        yield from ((conversation, row) for conversation in shard.conversations for row in conversation.token_rows)


def _describe_control_text(job: DatasetJob, row: TokenRow) -> str:
    """Says what control text a row holds; empty without any."""
    texts = Counter(each.token for each in row.control_text)
    listed = ", ".join(f"{token}{f' {count} times' if count > 1 else ''}" for token, count in texts.items())
    how = "as control tokens" if job.control_text == "keep" else "as ordinary text"
    return f"; {how}, marked{'' if supports_colour() else f' {QUOTE}{UNQUOTE}'}: {listed}" if texts else ""


def _format_row(job: DatasetJob, token_row: TokenRow) -> str:
    row, in_colour = json.loads(token_row.content), supports_colour()
    reserved = "" if in_colour else LEFT + RIGHT + QUOTE + UNQUOTE
    segments = decode_segments(job.tokenizer, row["input_ids"], row["labels"])
    quoted = [IGNORE_INDEX] * token_row.tokens
    for _, start, stop in token_row.control_text:
        quoted[start:stop] = row["input_ids"][start:stop]
    marks = decode_segments(job.tokenizer, row["input_ids"], quoted) if token_row.control_text else []
    formatted, position = [], 0
    for text, trained in segments:
        pieces = _cut_at_marks(text, position, marks) if marks else [(text, False)]
        position += len(text)
        if in_colour:
            markers = [make_marker((GREEN if trained else GREY) + invert) for invert in ("", INVERSE)]
            formatted += [markers[marked](format_visible(piece)) for piece, marked in pieces]
        else:
            shown = [(format_visible(piece, reserved), marked) for piece, marked in pieces]
            line = "".join(f"{QUOTE}{piece}{UNQUOTE}" if marked else piece for piece, marked in shown)
            formatted.append(f"{LEFT}{line}{RIGHT}" if trained else line)
    return "".join(formatted)


def _cut_at_marks(text: str, start: int, marks: Sequence[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
    """Cuts a text that begins at character `start` of a row into (piece, marked); `marks` are the whole row's."""
    position = 0
    for marked_text, marked in marks:
        first, last = max(position - start, 0), max(position + len(marked_text) - start, 0)
        if piece := text[first:last]:
            yield piece, marked
        position += len(marked_text)


def supports_colour() -> bool:
    """Tells whether stdout is a terminal that may show colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def make_marker(colour: str, left: str = "", right: str = "") -> Callable[[str], str]:
    """Makes a function that colours a text, line by line since pagers lose colours at a line's end, or brackets it."""
    if not supports_colour():
        return lambda text: f"{left}{text}{right}"
    return lambda text: "\n".join(f"\x1b[{colour}m{line}\x1b[0m" if line else line for line in text.split("\n"))


def format_visible(text: str, reserved: str = "") -> str:
    """Makes line ends, tabs and easily overlooked blanks visible; escapes unprintable and `reserved` characters."""
    text = BLANKS.sub(lambda match: "·" * len(match[0]), text)
    escapes = {"\n": "⏎\n", "\t": "→\t", **{character: ascii(character)[1:-1] for character in reserved}}
    return "".join(escapes.get(each) or (each if each.isprintable() else repr(each)[1:-1]) for each in text)


class RowReference(NamedTuple):
    """A row, or one conversation of it; all numbers from 0."""

    dataset_index: int
    row: int
    part: int | None

    def format(self, jobs: Sequence[DatasetJob]) -> str:
        """Formats the reference with the data set's name."""
        name = f" ({jobs[self.dataset_index].name})" if self.dataset_index < len(jobs) else ""
        return f"data set {self.dataset_index}{name}, row {self.row}, conversation {self.part}"


class PreviousRun(NamedTuple):
    """The manifest and the ledger of the last run."""

    manifest: dict
    ledger: dict[RowReference, dict]


def parse_reference(text: str) -> RowReference:
    """Parses `<dataset_index>:<row>[:<part>]`."""
    if not re.fullmatch(r"\d{1,15}:\d{1,15}(:\d{1,15})?", text, re.ASCII):
        raise ImpruverError(f"--explain {text}: not of the form <dataset_index>:<row>[:<part>], as in 0:17")
    index, row, *part = (int(number) for number in text.split(":"))
    return RowReference(index, row, part[0] if part else None)


def load_previous_run(paths: OutputPaths) -> PreviousRun:
    """Loads what the last run left beside train_path; ImpruverError if there was none."""
    manifest = read_manifest(paths.manifest)
    if manifest is None or not paths.ledger.is_file():
        missing = paths.manifest if manifest is None else paths.ledger
        raise ImpruverError(f"{missing} is not there: run impruver-compose with this recipe first")
    try:
        return PreviousRun(manifest, {_get_reference(line): line for line in read_rows(paths.ledger)})
    except KeyError as error:
        raise ImpruverError(f"{paths.ledger}: not a ledger of impruver-compose: no {error}") from None


def _get_reference(line: dict) -> RowReference:
    return RowReference(line["dataset_index"], line["row"], line["part"])


def print_explanation(
    jobs: Sequence[DatasetJob],
    previous: PreviousRun,
    reference: RowReference,
    open_benchmarks: Callable[[], Sequence[Benchmark]],
) -> None:
    """Prints what became of the row; ImpruverError if there is no such row. `open_benchmarks`: the recipe's."""
    job = _get_job(jobs, reference)
    if [entry for each in jobs for entry in each.inputs] != previous.manifest.get("inputs"):
        warn("the data is not that of the last run any more: its ledger may tell of other rows")
    try:
        parts = convert_row_of(job, reference.row)
    except RefusedError:
        parts = []
    numbers = range(max(1, len(parts)))
    if reference.part is not None and reference.part not in numbers:
        row = f"row {reference.row} of data set {job.index}"
        raise ImpruverError(f"{row} has {len(parts)} conversations, numbered from 0")
    for part in numbers if reference.part is None else [reference.part]:
        conversation = parts[part] if parts else None
        _print_outcome(jobs, previous, reference._replace(part=part), conversation)
        line = previous.ledger.get(reference._replace(part=part), {})
        if line.get("benchmark"):
            benchmarks = open_benchmarks()
            if [each["inputs"] for each in previous.manifest.get("decontaminate", ())] != [
                each.inputs for each in benchmarks
            ]:
                warn("the benchmarks are not those of the last run any more: its ledger may tell of other rows")
            _print_contamination(line, conversation, benchmarks)


def _get_job(jobs: Sequence[DatasetJob], reference: RowReference) -> DatasetJob:
    index, row, _ = reference
    if index >= len(jobs):
        raise ImpruverError(f"--explain: there are {len(jobs)} data sets, numbered from 0: no {index}")
    job = jobs[index]
    if row >= len(job.rows):
        name = f"data set {index} ({job.name})"
        raise ImpruverError(f"--explain: {name} has {len(job.rows)} rows, numbered from 0: no {row}")
    return job


def _print_outcome(
    jobs: Sequence[DatasetJob], previous: PreviousRun, reference: RowReference, conversation: Conversation | None
) -> None:
    line, name = previous.ledger.get(reference), reference.format(jobs)
    if line is None and conversation is None:
        print_result(f"{name}: gives no conversation, and the ledger does not tell of it")
    elif line is None:
        print_result(f"{name}: kept")
        for other in previous.ledger.values():
            if "kept" in other and _get_reference(other["kept"]) == reference:
                number = ":".join(map(str, _get_reference(other)))
                how = "has its prompt" if "similarity" not in other else f"repeats it, similarity {other['similarity']}"
                print_result(f"  {number} {how}")
    elif "kept" not in line:
        detail = f": {line['detail']}" if line["detail"] else ""
        print_result(f"{name}: dropped, {line['reason']}{detail}")
    else:
        kept = _get_reference(line["kept"])
        similarity = f", similarity {line['similarity']}" if "similarity" in line else ""
        print_result(f"{name}: dropped, {line['reason']}{similarity}")
        print_result(f"kept was {kept.format(jobs)}")
        try:
            _print_comparison(conversation, convert_row_of(_get_job(jobs, kept), kept.row)[kept.part])
        except (ImpruverError, IndexError):  # the data has changed
            _print_comparison(conversation, None)


def _print_contamination(line: dict, conversation: Conversation | None, benchmarks: Sequence[Benchmark]) -> None:
    """Prints the texts of the benchmark's row, and the conversation, with the words that both have marked."""
    index, row, words = line["benchmark"]["benchmark_index"], line["benchmark"]["row"], line["words"].split()
    if conversation is None or index >= len(benchmarks) or row >= len(benchmarks[index].rows):
        print_result("  the data no longer holds both")
        return
    mark = make_marker(RED, LEFT, RIGHT)
    texts = [
        (f"benchmark {benchmarks[index].section.name}, row {row}", text) for text in benchmarks[index].read_texts(row)
    ]
    for title, text in [*texts, *_list_texts(conversation)]:
        print_result(f"{title}:")
        place = locate_words(text, words, line["run"])
        pieces = [text] if place is None else [text[: place[0]], text[slice(*place)], text[place[1] :]]
        shown = [format_visible(piece, LEFT + RIGHT) for piece in pieces]
        print_coloured(_indent("".join(mark(piece) if n == 1 else piece for n, piece in enumerate(shown))))


def _print_comparison(dropped: Conversation | None, kept: Conversation | None) -> None:
    """Prints both role by role, with what differs marked: [-in the dropped one-], {+in the kept one+}."""
    if dropped is None or kept is None:
        print_result("  the data no longer holds both")
        return
    markers = make_marker(RED, "[-", "-]"), make_marker(GREEN, "{+", "+}")
    for pair in zip_longest(_list_texts(dropped), _list_texts(kept), fillvalue=("", "")):
        roles, texts = zip(*pair, strict=True)
        if pair[0] == pair[1]:
            print_result(f"{roles[0]}, both:\n{_indent(format_visible(texts[0]))}")
            continue
        pieces = list(compare_texts(*map(format_visible, texts)))
        for side, (mark, name) in enumerate(zip(markers, ("dropped", "kept"), strict=True)):
            marked = (each[side] if each[0] == each[1] or not each[side] else mark(each[side]) for each in pieces)
            print_result(f"{roles[side] or 'nothing'}, {name}:")
            print_coloured(_indent("".join(marked)))


def _list_texts(conversation: Conversation) -> Iterator[tuple[str, str]]:
    """Lists role and text of each message; what is no text as JSON."""
    if conversation.text is not None:
        yield "text", conversation.text
        return
    if conversation.tools:
        yield "tools", json.dumps(conversation.tools, ensure_ascii=False)
    for message in conversation.messages:
        content = message.get("content") or ""
        texts = [content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)]
        others = {key: value for key, value in message.items() if key not in ("role", "content")}
        if others:
            texts.append(json.dumps(others, ensure_ascii=False))
        yield str(message.get("role")), "\n".join(texts)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))
