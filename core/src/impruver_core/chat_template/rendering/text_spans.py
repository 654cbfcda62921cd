"""Where each message's text stands in a rendering."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from impruver_core.chat_template.rendering.traced_string import TextRun, TextSource


def find_source_range(run: TextRun) -> tuple[int, int]:
    """Which characters of its source's text a run holds."""
    length = run.end - run.start
    return (run.offset, run.offset + length) if run.offset >= 0 else (0, len(run.source.text))


def find_first_runs(runs: Iterable[TextRun]) -> Iterator[tuple[int, TextRun]]:
    """(index, run) of the runs of a rendered text, but for what repeats characters that were rendered before."""
    covered: dict[TextSource, list[tuple[int, int]]] = {}
    for index, run in enumerate(runs):
        start, end = find_source_range(run)
        ranges = covered.setdefault(run.source, [])
        if ranges and start < ranges[-1][1] and any(start < b and a < end for a, b in ranges):
            continue
        if ranges and start == end:
            continue
        ranges.append((start, end))
        yield index, run


@dataclass
class MessageSpan:
    """Where the texts of one message stand in a rendering, and between which other texts."""

    start: int
    end: int
    path: str  # the field rendered last
    first_run: int
    last_run: int
    previous_end: int = 0  # end of the text before
    next_start: int = 0  # start of the text behind
    previous_message: int | None = None  # message of the text before
    mixed: bool = False  # texts of other messages stand in between


def find_message_spans(runs: Sequence[TextRun], length: int) -> dict[int, MessageSpan]:
    """The span of each message that has text in a rendering of `length` characters, by the message's number."""
    spans: dict[int, MessageSpan] = {}
    for index, run in find_first_runs(runs):
        number, path = run.source.message, run.source.path
        span = spans.get(number)
        if span is None or span.start == span.end:
            spans[number] = MessageSpan(run.start, run.end, path, index, index)
        elif run.start < run.end:  # an empty text beside others says nothing
            span.last_run = index
            if run.end >= span.end:
                span.end, span.path = run.end, path
    reached: list[tuple[int, int | None]] = [(0, None)]  # before each run: how far texts reach, and whose
    for run in runs:
        span = spans[run.source.message]
        counts = run.end >= reached[-1][0] and (run.start < run.end or span.start == span.end)
        reached.append((run.end, run.source.message) if counts else reached[-1])
    for number, span in spans.items():
        span.previous_end, span.previous_message = reached[span.first_run]
        span.next_start = runs[span.last_run + 1].start if span.last_run + 1 < len(runs) else length
        span.mixed = any(run.source.message != number for run in runs[span.first_run : span.last_run])
    return spans
