"""Where each message's text stands in a rendering."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from impruver_core.chat_template.rendering.traced_string import TextRun, TextSource


def find_source_range(run: TextRun) -> tuple[int, int]:
    """Which characters of its source a run holds."""
    start, end, source, offset = run
    return (offset, offset + end - start) if offset >= 0 else (0, len(source.text))


def find_first_runs(runs: Iterable[TextRun]) -> Iterator[tuple[int, TextRun]]:
    """(index, run) of the runs of a rendered text, but for what repeats characters that were rendered before."""
    seen: dict[TextSource, list[tuple[int, int]]] = {}
    for index, run in enumerate(runs):
        low, high = find_source_range(run)
        covered = seen.setdefault(run[2], [])
        if covered and low < covered[-1][1] and any(low < b and a < high for a, b in covered):
            continue
        if covered and low == high:
            continue
        covered.append((low, high))
        yield index, run


@dataclass
class MessageSpan:
    """Where the texts of one message stand, and between which other texts."""

    start: int
    end: int
    path: str  # the field rendered last
    first_run: int
    last_run: int
    after: int = 0  # end of the text before
    before: int = 0  # start of the text behind
    neighbour: int | None = None  # message of the text before
    mixed: bool = False  # texts of other messages stand in between


def find_message_spans(runs: Sequence[TextRun], length: int) -> dict[int, MessageSpan]:
    """The place of each message that has text in the rendering."""
    places: dict[int, MessageSpan] = {}
    for index, (start, end, source, _) in find_first_runs(runs):
        place = places.get(source.message)
        if place is None or place.start == place.end:
            places[source.message] = MessageSpan(start, end, source.path, index, index)
        elif start < end:  # an empty text beside others says nothing
            place.last_run = index
            if end >= place.end:
                place.end, place.path = end, source.path
    reached: list[tuple[int, int | None]] = [(0, None)]  # before each run: how far texts reach, and whose
    for start, end, source, _ in runs:
        place = places[source.message]
        counts = end >= reached[-1][0] and (start < end or place.start == place.end)
        reached.append((end, source.message) if counts else reached[-1])
    for number, place in places.items():
        place.after, place.neighbour = reached[place.first_run]
        place.before = runs[place.last_run + 1][0] if place.last_run + 1 < len(runs) else length
        place.mixed = any(run[2].message != number for run in runs[place.first_run : place.last_run])
    return places
