"""Which characters of a rendered conversation are learned."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from impruver_core.chat_template.analysis.template_format import TemplateFormat, TurnBoundary
from impruver_core.chat_template.masking.completeness import check_completeness, truncate_text
from impruver_core.chat_template.rendering.text_spans import MessageSpan, find_message_spans
from impruver_core.chat_template.rendering.traced_string import get_runs
from impruver_core.errors import RefusedError
from impruver_core.labels import TRAINED_ROLES

WORD = re.compile(r"[^\W\d_]{2,}")
MOST_WORDS = 12  # around a turn's text; markers have few, the instructions of a judge's template have many


@dataclass
class LossSpans:
    """(message, (start, end), whether an end of turn stands in it) of each learned turn.

    `open_end`: the text ends in a turn without an end token. `texts`: where the texts of each message stand, but for
    the system's.
    """

    texts: list[tuple[int, tuple[int, int]]] = field(default_factory=list)
    turns: list[tuple[int, tuple[int, int], bool]] = field(default_factory=list)
    open_end: bool = False


def find_loss_spans(text: str, messages: Sequence[dict], shape: TemplateFormat) -> LossSpans:
    """The characters to learn in `text`, rendered from the traced `messages`.

    RefusedError: `template_lost_text` where text of a message is missing, `mask_refused` where a border can't be told.
    """
    runs, text = get_runs(text), str.__str__(text)
    places = find_message_spans(runs, len(text))
    last_turn = max((n for n, message in enumerate(messages) if message["role"] in TRAINED_ROLES), default=-1)
    check_completeness(text, runs, messages, last_turn, {n: (place.after, place.before) for n, place in places.items()})
    spoken = [n for n, message in enumerate(messages) if message["role"] != "system" and n in places]
    spans = LossSpans([(number, (places[number].start, places[number].end)) for number in spoken])
    for number, message in enumerate(messages):
        if message["role"] not in TRAINED_ROLES or number not in places:
            continue
        place = places[number]
        if place.mixed:
            raise RefusedError("mask_refused", f"the template mixes the text of message {number} with another's")
        start = _start(text, number, place, messages, shape)
        is_last = place.before == len(text)
        end, closed = _end(text, place, is_last, shape)
        _require_markers(number, text[start : place.start])
        if not place.path.startswith("tool_calls"):  # whose arguments may be no text
            _require_markers(number, text[place.end : end])
        spans.turns.append((number, (start, end), bool(text[place.end : end].strip())))
        if is_last and not closed and number == len(messages) - 1:
            spans.open_end = True
    return spans


def _require_markers(number: int, literal: str) -> None:
    """RefusedError where the template says more around a turn's text than markers."""
    if len(WORD.findall(literal)) > MOST_WORDS:
        raise RefusedError("mask_refused", f"the template adds prose to message {number}: {truncate_text(literal)}")


def _start(text: str, number: int, place: MessageSpan, messages, shape: TemplateFormat) -> int:
    """Where a turn's learned part begins: behind what it shares with the generation prompt."""
    glue, role = text[place.after : place.start], messages[number]["role"]
    before = messages[place.neighbour]["role"] if place.neighbour is not None else ""
    own = shape.junctions.get("assistant" if before == "function_call" else before, [])
    others = [j for junctions in shape.junctions.values() for j in junctions if j.shared and j not in own]
    for junctions in (own, others):
        for junction in junctions:
            if role != "assistant" and junction in own and not junction.prompt:  # a prompt that is always there
                return place.after + shape.specials.compute_shared_length(glue, junction.tail)
            if glue.startswith(junction.tail):
                start = _shared_end(text, place.after + len(junction.tail), role, junction, shape)
                if start is not None:
                    return start
        for junction in junctions:  # an unusual tail (tools, a date): the prompt may still stand there, once
            if junction.shared.strip() and glue.count(junction.shared) == 1:
                return _shared_end(text, place.after + glue.index(junction.shared), role, junction, shape)
    raise RefusedError("mask_refused", f"no header of an answer found before message {number}: {truncate_text(glue)}")


def _shared_end(text: str, start: int, role: str, junction: TurnBoundary, shape: TemplateFormat) -> int | None:
    opening = junction.prompt or junction.header
    shared = shape.specials.compute_shared_length(text[start : start + len(opening) + 64], opening) if opening else 0
    needed = len(junction.shared) if junction.prompt else len(junction.header)
    return start + shared if role != "assistant" or shared >= needed else None


def _end(text: str, place: MessageSpan, is_last: bool, shape: TemplateFormat) -> tuple[int, bool]:
    """Where a turn's learned part ends, and whether a special token ends it."""
    glue = text[place.end : place.before]
    kind = "calls" if place.path.startswith("tool_calls") else "answer"
    known = shape.ends.get((kind, is_last))
    if is_last:  # nothing follows: all that is there belongs to the turn
        literal, closed = shape.find_last_ending(glue, kind)
        return place.end + len(literal), closed
    if known is not None and glue.startswith(known):
        return place.end + len(known), bool(known)  # empty: the turn ends only by the next header
    if known and known in glue:  # behind arguments that are no text: numbers, lists
        return place.end + glue.index(known) + len(known), True
    found = [(glue.find(stop), stop) for stop in shape.stops if stop in glue]
    if found:
        at, stop = min(found)
        return place.end + at + len(stop), True
    raise RefusedError("mask_refused", f"no end of turn found behind {text[max(0, place.end - 40) : place.end]!r}")
