"""Which characters of a rendered conversation are trained on."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from impruver_core.chat_template.analysis.template_format import TemplateFormat, TurnBoundary
from impruver_core.chat_template.masking.completeness import check_completeness, truncate_text
from impruver_core.chat_template.rendering.text_spans import MessageSpan, find_message_spans
from impruver_core.chat_template.rendering.traced_string import get_runs
from impruver_core.errors import RefusedError
from impruver_core.labels import TRAINED_ROLES

WORD = re.compile(r"[^\W\d_]{2,}")
MOST_WORDS = 12  # around a turn's text; markers have few, the instructions of a judge's template have many


class TrainedTurn(NamedTuple):
    """A turn that is trained on: the number of its message, its characters, whether an end of turn stands in them."""

    message: int
    span: tuple[int, int]
    ended: bool


@dataclass
class LossSpans:
    """The turns that are trained on, and where the texts of each message but the system's stand.

    `open_end`: the rendering ends in a turn without an end-of-turn token.
    """

    texts: list[tuple[int, tuple[int, int]]] = field(default_factory=list)
    turns: list[TrainedTurn] = field(default_factory=list)
    open_end: bool = False


def find_loss_spans(text: str, messages: Sequence[dict], fmt: TemplateFormat) -> LossSpans:
    """The characters to train on in `text`, rendered from the traced `messages`.

    RefusedError: `template_lost_text` where text of a message is missing, `mask_refused` where a border can't be found.
    """
    runs, text = get_runs(text), str.__str__(text)
    spans = find_message_spans(runs, len(text))
    last_turn = max((n for n, message in enumerate(messages) if message["role"] in TRAINED_ROLES), default=-1)
    check_completeness(text, runs, messages, last_turn, spans)
    spoken = [n for n, message in enumerate(messages) if message["role"] != "system" and n in spans]
    result = LossSpans([(number, (spans[number].start, spans[number].end)) for number in spoken])
    for number, message in enumerate(messages):
        if message["role"] not in TRAINED_ROLES or number not in spans:
            continue
        span = spans[number]
        if span.mixed:
            raise RefusedError("mask_refused", f"the template mixes the text of message {number} with another's")
        start = _find_start(text, number, span, messages, fmt)
        is_last = span.next_start == len(text)
        end, closed = _find_end(text, span, is_last, fmt)
        _check_no_prose(number, text[start : span.start])
        if not span.path.startswith("tool_calls"):  # whose arguments may be no text
            _check_no_prose(number, text[span.end : end])
        result.turns.append(TrainedTurn(number, (start, end), bool(text[span.end : end].strip())))
        if is_last and not closed and number == len(messages) - 1:
            result.open_end = True
    return result


def _check_no_prose(number: int, literal: str) -> None:
    """RefusedError where the template says more around a turn's text than markers."""
    if len(WORD.findall(literal)) > MOST_WORDS:
        raise RefusedError("mask_refused", f"the template adds prose to message {number}: {truncate_text(literal)}")


def _find_start(text: str, number: int, span: MessageSpan, messages: Sequence[dict], fmt: TemplateFormat) -> int:
    """Where the trained part of a turn begins: behind what it shares with the generation prompt."""
    gap, role = text[span.previous_end : span.start], messages[number]["role"]
    previous = messages[span.previous_message]["role"] if span.previous_message is not None else ""
    own = fmt.boundaries.get("assistant" if previous == "function_call" else previous, [])
    others = [b for boundaries in fmt.boundaries.values() for b in boundaries if b.shared and b not in own]
    for boundaries in (own, others):
        for boundary in boundaries:
            if role != "assistant" and boundary in own and not boundary.prompt:  # a prompt that is always there
                return span.previous_end + fmt.specials.compute_shared_length(gap, boundary.tail)
            if gap.startswith(boundary.tail):
                start = _find_shared_end(text, span.previous_end + len(boundary.tail), role, boundary, fmt)
                if start is not None:
                    return start
        for boundary in boundaries:  # an unusual tail (tools, a date): the prompt may still stand there, once
            if boundary.shared.strip() and gap.count(boundary.shared) == 1:
                return _find_shared_end(text, span.previous_end + gap.index(boundary.shared), role, boundary, fmt)
    raise RefusedError("mask_refused", f"no header of an answer found before message {number}: {truncate_text(gap)}")


def _find_shared_end(text: str, start: int, role: str, boundary: TurnBoundary, fmt: TemplateFormat) -> int | None:
    """Where what a turn shares with the prompt ends, from `start` on; None where it shares less than it must."""
    opening = boundary.prompt or boundary.header
    shared = fmt.specials.compute_shared_length(text[start : start + len(opening) + 64], opening) if opening else 0
    needed = len(boundary.shared) if boundary.prompt else len(boundary.header)
    return start + shared if role != "assistant" or shared >= needed else None


def _find_end(text: str, span: MessageSpan, is_last: bool, fmt: TemplateFormat) -> tuple[int, bool]:
    """Where the trained part of a turn ends, and whether a special token ends it."""
    gap = text[span.end : span.next_start]
    kind = "calls" if span.path.startswith("tool_calls") else "answer"
    known = fmt.ends.get((kind, is_last))
    if is_last:  # nothing follows: all that is there belongs to the turn
        literal, closed = fmt.find_last_ending(gap, kind)
        return span.end + len(literal), closed
    if known is not None and gap.startswith(known):
        return span.end + len(known), bool(known)  # empty: the turn ends only by the next header
    if known and known in gap:  # behind arguments that are no text: numbers, lists
        return span.end + gap.index(known) + len(known), True
    stops = [(gap.find(stop), stop) for stop in fmt.stops if stop in gap]
    if stops:
        position, stop = min(stops)
        return span.end + position + len(stop), True
    raise RefusedError("mask_refused", f"no end of turn found behind {text[max(0, span.end - 40) : span.end]!r}")
