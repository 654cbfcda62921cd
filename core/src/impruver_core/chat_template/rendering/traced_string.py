"""Strings that know where they came from.

A chat template copies, trims, splits and joins the texts of a conversation. A `TracedStr` keeps through all that which
of its characters came from which text. Its characters are those of an ordinary string, so a template can't tell the
difference. After one rendering each character is known to be a message's or the template's own. An example:

    messages            0: user "Hi"                  1: assistant " Yes! "
    template            <|user|>{{ m.content }}<|end|>  <|bot|>{{ m.content | trim }}<|end|>

    rendering           <|user|>Hi<|end|><|bot|>Yes!<|end|>
    source              ........00..............1111.......    (. is the template's own)
    runs                (8, 10, message 0, offset 0)  (24, 28, message 1, offset 1)

The offset 1 says that the template trimmed a blank: "Yes!" are the characters from 1 on of the answer " Yes! ".
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from impruver_core.errors import RefusedError

ARGUMENTS, KEYS = "tool_calls.function.arguments", "tool_calls.keys"  # paths of what a call passes, and of its names


@dataclass(eq=False, slots=True)
class TextSource:
    """A text of a conversation: `path` names the field of message number `message` that holds it."""

    message: int
    path: str
    text: str


class TextRun(NamedTuple):
    """Characters `start` to `end` of a string: those of the source's text from `offset` on.

    An offset of -1 stands for the whole source in another form (JSON, another case). An empty run says where an empty
    text stands.
    """

    start: int
    end: int
    source: TextSource
    offset: int


def _make_recasting(method: Callable[[str], str]) -> Callable[["TracedStr"], str]:
    return lambda self: self._recast(method(self))


class TracedStr(str):
    """A string with the runs of its characters that came from the texts of a conversation, in their order."""

    __slots__ = ("_runs",)

    def __new__(cls, text: str, runs: Iterable[TextRun] = ()) -> "TracedStr":
        self = str.__new__(cls, text)
        self._runs = tuple(runs)
        return self

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        if not isinstance(other, str):
            return NotImplemented
        further = other._runs if isinstance(other, TracedStr) else ()
        runs = (*self._runs, *_shift_runs(further, len(self))) if further else self._runs
        return TracedStr(str.__add__(self, other), runs)

    def __radd__(self, other: str) -> str:
        return TracedStr(str.__add__(other, self), _shift_runs(self._runs, len(other)))

    def __getitem__(self, key: int | slice) -> str:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self._cut(start, max(start, stop)) if step == 1 else str.__getitem__(self, key)
        str.__getitem__(self, key)  # raises IndexError
        start = key if key >= 0 else len(self) + key
        return self._cut(start, start + 1)

    def __iter__(self) -> Iterator[str]:
        return (self._cut(i, i + 1) for i in range(len(self)))

    def _cut(self, start: int, stop: int) -> "TracedStr":
        """Characters `start` to `stop` with their runs."""
        runs: list[TextRun] = []
        for run_start, run_end, source, offset in self._runs:
            first, last = max(run_start, start), min(run_end, stop)
            if first < last or (run_start == run_end and start <= run_start <= stop):
                offset = offset + first - run_start if offset >= 0 else -1
                runs.append(TextRun(first - start, last - start, source, offset))
        if start == stop and not runs and self._runs:  # all of it trimmed away: an empty text keeps its position
            runs = [TextRun(0, 0, self._runs[0].source, 0)]
        return type(self)(str.__getitem__(self, slice(start, stop)), runs)

    def _trace_parts(self, parts: list[str], gap: int) -> list[str]:
        """The parts that a method of `str` split this into, with their runs; `gap` characters stood between two."""
        traced, position = [], 0
        for part in parts:
            traced.append(self._cut(position, position + len(part)))
            position += len(part) + gap
        return traced

    def strip(self, chars: str | None = None, /) -> str:
        start = len(self) - len(str.lstrip(self, chars))
        return self._cut(start, max(start, len(str.rstrip(self, chars))))

    def lstrip(self, chars: str | None = None, /) -> str:
        return self._cut(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._cut(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str, /) -> str:
        return self._cut(len(prefix) if prefix and self.startswith(prefix) else 0, len(self))

    def removesuffix(self, suffix: str, /) -> str:
        return self._cut(0, len(self) - (len(suffix) if suffix and self.endswith(suffix) else 0))

    def split(self, sep: str | None = None, maxsplit: int = -1) -> list[str]:
        parts = str.split(self, sep, maxsplit)
        if sep is not None:
            return self._trace_parts(parts, len(sep))
        traced, position = [], 0
        for part in parts:  # a part starts at the first character that is not blank
            position = self.index(part, position)
            traced.append(self._cut(position, position + len(part)))
            position += len(part)
        return traced

    def rsplit(self, sep: str | None = None, maxsplit: int = -1) -> list[str]:
        return self.split() if sep is None else self._trace_parts(str.rsplit(self, sep, maxsplit), len(sep))

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines = self._trace_parts(str.splitlines(self, keepends=True), 0)
        return lines if keepends else [line._cut(0, len(str.splitlines(line)[0])) for line in lines]

    def partition(self, sep: str, /) -> tuple[str, ...]:
        return tuple(self._trace_parts(list(str.partition(self, sep)), 0))

    def rpartition(self, sep: str, /) -> tuple[str, ...]:
        return tuple(self._trace_parts(list(str.rpartition(self, sep)), 0))

    def replace(self, old: str, new: str, count: int = -1, /) -> str:
        return join_traced(self.split(old, count), new) if old else self._recast(str.replace(self, old, new, count))

    def join(self, parts: Iterable[str], /) -> str:
        return join_traced(parts, self)

    def _recast(self, text: str) -> str:
        """`text`, a form of this string: with the same runs where it has the same length, else traced as a whole."""
        if len(text) == len(self):
            return type(self)(text, self._runs)
        return type(self)(text, [TextRun(0, len(text), run.source, -1) for run in self._runs])

    upper, lower, capitalize, title = map(_make_recasting, (str.upper, str.lower, str.capitalize, str.title))


def _shift_runs(runs: Iterable[TextRun], by: int) -> Iterable[TextRun]:
    if not by:
        return runs
    return [TextRun(start + by, end + by, source, offset) for start, end, source, offset in runs]


def join_traced(parts: Iterable[str], separator: str = "") -> str:
    """The parts as one string with all their runs; an ordinary string where none of them has any."""
    parts = [part if isinstance(part, str) else str(part) for part in parts]
    if separator:
        parts = [piece for part in parts for piece in (separator, part)][1:]
    text = "".join(parts)
    runs: list[TextRun] = []
    position = 0
    for part in parts:
        if type(part) is not str and isinstance(part, TracedStr):
            runs += _shift_runs(part._runs, position)
        position += len(part)
    return TracedStr(text, runs) if runs else text


def trace_transformed(text: str, value) -> str:
    """`text`, a form of `value` whose characters can't be followed one by one, as one run of each text in it."""
    sources = list(dict.fromkeys(find_sources(value)))
    return TracedStr(text, [TextRun(0, len(text), source, -1) for source in sources]) if sources else text


def trace_printed(value) -> str:
    """`str(value)` of a list or mapping, as one run of each text in it, for a template that prints arguments so.

    Parts of a content stay untraced: what prints them as Python does takes no list.
    """
    sources = [source for source in dict.fromkeys(find_sources(value)) if source.path.partition(".")[0] != "content"]
    return TracedStr(text := str(value), [TextRun(0, len(text), source, -1) for source in sources])


def trace_formatted(form: Callable[..., str], arguments: Sequence, named: Mapping) -> str:
    """The text that `form` makes of arguments, with the runs of those that it puts in as they are."""
    text, traced = form(*arguments, **named), []

    def mark(value):
        value = trace_printed(value) if isinstance(value, (list, tuple, dict)) else value
        if not get_runs(value):
            return value
        traced.append(value)
        return f"\ue000{len(traced) - 1}\ue001"

    marked = [mark(value) for value in arguments], {name: mark(value) for name, value in named.items()}
    if not traced:
        return text
    pieces = re.split("\ue000(\\d+)\ue001", str.__str__(form(*marked[0], **marked[1])))
    followed = join_traced(traced[int(piece)] if index % 2 else piece for index, piece in enumerate(pieces))
    return followed if followed == text else text  # else padded, cut or quoted


def find_sources(value) -> Iterator[TextSource]:
    """The texts that are in a value of plain JSON types."""
    if isinstance(value, TracedStr):
        for run in value._runs:
            yield run.source
    elif isinstance(value, (dict, list, tuple)):
        for item in value.items() if isinstance(value, dict) else value:
            yield from find_sources(item)


def trace_messages(messages: Iterable[dict]) -> list[dict]:
    """The messages, each text in them traced back to its message and field.

    Raises RefusedError("bad_row") for values that are nested too deep.
    """
    try:
        return [
            {key: value if key == "role" else trace_value(value, number, key) for key, value in message.items()}
            for number, message in enumerate(messages)
        ]
    except RecursionError:
        raise RefusedError("bad_row", "a message has lists or objects in it that are nested too deep") from None


def trace_value(value, message: int, path: str):
    """A copy of a message's `value` of plain JSON types, each text in it traced back to `message` and `path`.

    Roles and types stay ordinary strings: templates compare them, and where they are printed they are header. So do
    keys, but for those of a call's arguments.
    """
    if isinstance(value, str):
        text = str.__str__(value)
        return TracedStr(text, [TextRun(0, len(text), TextSource(message, path, text), 0)])
    if isinstance(value, dict) and path.startswith(ARGUMENTS):
        return {
            trace_value(key, message, KEYS): trace_value(item, message, f"{path}.{key}") for key, item in value.items()
        }
    if isinstance(value, dict):
        return {
            key: item
            if key in ("role", "type") and isinstance(item, str)
            else trace_value(item, message, f"{path}.{key}")
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [trace_value(item, message, path) for item in value]
    return value


def get_runs(text: str) -> tuple[TextRun, ...]:
    """The runs of a rendered text, in its order; () for an ordinary string."""
    return text._runs if isinstance(text, TracedStr) else ()


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
    gaps: list[tuple[int, int]] = field(default_factory=list)  # behind it, up to its own text again or another's
    previous_message: int | None = None  # message of the text before
    mixed: bool = False  # texts of other messages stand in between

    @property
    def next_start(self) -> int:
        return self.gaps[0][1]


def find_message_spans(runs: Sequence[TextRun], length: int) -> dict[int, MessageSpan]:
    """The span of each message that has text in a rendering of `length` characters, by the message's number."""
    if _stand_in_order(runs):
        return _find_ordered_spans(runs, length)
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
        span.gaps = list(_find_gaps(runs[span.last_run + 1 :], number, span.end, length))
        span.mixed = any(run.source.message != number for run in runs[span.first_run : span.last_run])
    return spans


def _stand_in_order(runs: Sequence[TextRun]) -> bool:
    """Whether each run is the only one of its message, behind the one before, as in most renderings."""
    ends = [run.end for run in runs]
    return len({run.source.message for run in runs}) == len(runs) and ends == sorted(ends)


def _find_ordered_spans(runs: Sequence[TextRun], length: int) -> dict[int, MessageSpan]:
    spans: dict[int, MessageSpan] = {}
    previous_end, previous_message = 0, None
    next_starts = [*(run.start for run in runs[1:]), length]
    for index, (start, end, source, _) in enumerate(runs):
        gaps, number = [(end, next_starts[index])], source.message
        spans[number] = MessageSpan(start, end, source.path, index, index, previous_end, gaps, previous_message)
        previous_end, previous_message = end, number
    return spans


def _find_gaps(behind: Iterable[TextRun], number: int, end: int, length: int) -> Iterator[tuple[int, int]]:
    """What stands between the end of a message's text, what repeats it (a name in a closing tag), and other texts."""
    for run in behind:
        if run.start < run.end or run.source.message != number:  # an empty argument ends nothing
            yield end, run.start
            if run.source.message != number:
                return
            end = run.end
    yield end, length
