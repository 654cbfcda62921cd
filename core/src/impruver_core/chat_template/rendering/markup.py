"""Texts that a template marked as safe: jinja's Markup, which escapes what is joined to it, with the runs kept."""

from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import Any

import markupsafe

from impruver_core.chat_template.rendering.limits import ESCAPED, check_growth
from impruver_core.chat_template.rendering.traced_string import (
    TextRun,
    TracedStr,
    find_source_range,
    find_sources,
    get_runs,
    join_traced,
    trace_transformed,
)


class TracedMarkup(TracedStr):
    """A Markup that is a TracedStr. A template that only prints it sees no difference to an ordinary string."""

    __slots__ = ()

    def __html__(self) -> "TracedMarkup":
        return self

    def __add__(self, other: str) -> str:
        if not isinstance(other, str):
            return NotImplemented
        return mark_safe(join_traced((self, escape_traced(other))))

    def __radd__(self, other: str) -> str:
        return mark_safe(join_traced((escape_traced(other), self)))

    def __mod__(self, values: Any) -> str:
        text = mark_safe(str(markupsafe.Markup(str.__str__(self)) % values))
        return mark_safe(trace_transformed(text, [self, values])) if any(find_sources([self, values])) else text

    def join(self, parts: Iterable[str], /) -> str:
        return mark_safe(join_traced(map(escape_traced, parts), self))

    def replace(self, old: str, new: str, count: int = -1, /) -> str:
        return mark_safe(super().replace(old, escape_traced(new), count))


def mark_safe(value: Any) -> TracedMarkup:
    """`value` as jinja's filter `safe` makes of it."""
    text = value if isinstance(value, str) else str(value)
    return TracedMarkup(text, get_runs(text))


def escape_traced(value: Any) -> TracedMarkup:
    """`value` as jinja's filter `escape` makes of it: & < > ' \" become entities, in what is not marked as safe."""
    if hasattr(value, "__html__"):
        return mark_safe(value)
    plain = check_growth(str(value), ESCAPED)
    escaped = str.__str__(markupsafe.escape(plain))
    if len(escaped) == len(plain):
        return TracedMarkup(escaped, get_runs(plain))
    positions = sorted({position for run in get_runs(plain) for position in run[:2]})
    lengths = (len(markupsafe.escape(str.__str__(plain)[start:end])) for start, end in pairwise([0, *positions]))
    moved = dict(zip(positions, accumulate(lengths), strict=True))
    runs = []
    for run in get_runs(plain):
        start, end = moved[run.start], moved[run.end]
        if end - start == run.end - run.start:
            runs.append(TextRun(start, end, run.source, run.offset))
        elif find_source_range(run) == (0, len(run.source.text)):  # of a part that changes no character is followed
            runs.append(TextRun(start, end, run.source, -1))
    return TracedMarkup(escaped, runs)
