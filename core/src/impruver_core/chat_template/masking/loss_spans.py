"""Which characters of a rendered conversation are trained on, and whether it holds every text of the conversation."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from impruver_core.chat_template.analysis.template_format import TemplateFormat, TurnBoundary
from impruver_core.chat_template.rendering.renderer import REASONING_FIELDS
from impruver_core.chat_template.rendering.traced_string import (
    MessageSpan,
    TextRun,
    TextSource,
    find_message_spans,
    find_source_range,
    find_sources,
    get_runs,
)
from impruver_core.errors import RefusedError
from impruver_core.labels import TRAINED_ROLES

TAG = re.compile(r"</?\w+>")
MARKUP = re.compile(r"<[^<>\s]+>")
Ranges = list[tuple[int, int]]  # of characters
VALUE = re.compile(r"\b(?:true|false|null|True|False|None)\b")  # of an argument that is no text
WORD = re.compile(r"[^\W\d_]{2,}")
MOST_WORDS = 12  # around a turn's text; markers have few, the instructions of a judge's template have many
CHECKED = ("content", "tool_calls")  # fields of a message whose texts must not be lost,
CHECKED_IN_LAST_TURN = (*CHECKED, *REASONING_FIELDS)  # and those of the last assistant's
FEW_CHARACTERS = 2 * MOST_WORDS  # which have no more words than that


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
    roles = [message["role"] for message in messages]
    turns = [number for number, role in enumerate(roles) if role in TRAINED_ROLES]
    check_completeness(text, runs, messages, turns[-1] if turns else -1, spans, fmt)
    spoken = [number for number, role in enumerate(roles) if role != "system" and number in spans]
    result = LossSpans([(number, (spans[number].start, spans[number].end)) for number in spoken])
    for number in turns:
        if number not in spans:
            continue
        try:
            turn, is_open = _find_turn(text, number, spans[number], messages, fmt)
        except RefusedError as error:
            lost = (n for n in (number - 1, number + 1) if 0 <= n < len(messages) and n not in spans)
            blank = next((n for n in lost if messages[n]["role"] != "system"), None)  # with text it is complete
            if error.reason != "mask_refused" or blank is None:
                raise
            what = f"the template leaves no trace of the blank message {blank} ({messages[blank]['role']})"
            raise RefusedError("mask_refused", f"{what} beside message {number}: give it text") from None
        result.turns.append(turn)
        result.open_end |= is_open
    return result


def _find_turn(
    text: str, number: int, span: MessageSpan, messages: Sequence[dict], fmt: TemplateFormat
) -> tuple[TrainedTurn, bool]:
    """The turn of message `number`, and whether the rendering ends in it without an end-of-turn token."""
    if span.mixed:
        raise RefusedError("mask_refused", f"the template mixes the text of message {number} with another's")
    start = _find_start(text, number, span, messages, fmt)
    behind = messages[number + 1]["role"] if number + 1 < len(messages) else None
    is_last, end, closed = _find_end(text, span, behind, fmt)
    calls = span.path.startswith("tool_calls")
    for literal in (text[start : span.start], text[span.end : end]):
        if len(literal) > FEW_CHARACTERS:
            _check_no_prose(number, literal, calls, fmt)
    turn = TrainedTurn(number, (start, end), bool(text[span.end : end].strip()))
    return turn, is_last and not closed and number == len(messages) - 1


def _check_no_prose(number: int, literal: str, calls: bool, fmt: TemplateFormat) -> None:
    """RefusedError where the template says more around a turn's text than markers; those of `calls` are longer."""
    if len(WORD.findall(literal)) > MOST_WORDS and calls:
        literal = VALUE.sub(" ", MARKUP.sub(" ", fmt.specials.remove_all(literal)))
    if len(WORD.findall(literal)) > MOST_WORDS:
        raise RefusedError("mask_refused", f"the template adds prose to message {number}: {truncate_text(literal)}")


def _find_start(text: str, number: int, span: MessageSpan, messages: Sequence[dict], fmt: TemplateFormat) -> int:
    """Where the trained part of a turn begins: behind what it shares with the generation prompt."""
    gap, role = text[span.previous_end : span.start], messages[number]["role"]
    previous = messages[span.previous_message]["role"] if span.previous_message is not None else ""
    own = fmt.boundaries.get("assistant" if previous == "function_call" else previous, [])
    for is_own in (True, False):
        boundaries = own if is_own else _list_other_boundaries(own, fmt)
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
    if span.previous_message == number - 1:
        for tail in (boundary.tail for boundary in own if not boundary.prompt and not boundary.header):
            if fmt.specials.has_any(tail) and gap.count(tail) == 1:  # behind an empty text, without a prompt
                return span.previous_end + gap.index(tail) + len(tail)
    raise RefusedError("mask_refused", f"no header of an answer found before message {number}: {truncate_text(gap)}")


def _list_other_boundaries(own: Sequence[TurnBoundary], fmt: TemplateFormat) -> list[TurnBoundary]:
    return [b for boundaries in fmt.boundaries.values() for b in boundaries if b.shared and b not in own]


def _find_shared_end(text: str, start: int, role: str, boundary: TurnBoundary, fmt: TemplateFormat) -> int | None:
    """Where what a turn shares with the prompt ends, from `start` on; None where it shares less than it must."""
    opening = boundary.prompt or boundary.header
    shared = fmt.specials.compute_shared_length(text[start : start + len(opening) + 64], opening) if opening else 0
    needed = len(boundary.shared) if boundary.prompt else len(boundary.header)
    return start + shared if role != "assistant" or shared >= needed else None


def _find_end(text: str, span: MessageSpan, behind: str | None, fmt: TemplateFormat) -> tuple[bool, int, bool]:
    """Whether nothing follows a turn, where its trained part ends, and whether a special token ends it.

    `behind` is the next role.
    """
    kind = "calls" if span.path.startswith("tool_calls") else "answer"
    for start, stop in span.gaps:
        gap = text[start:stop]
        if stop == len(text):  # nothing follows: all that is there belongs to the turn
            literal, closed = fmt.find_last_ending(gap, kind)
            return True, start + len(literal), closed
        length, closed = _find_length(gap, kind, behind, fmt)
        if length is not None:
            return False, start + length, closed
    raise RefusedError("mask_refused", f"no end of turn found behind {text[max(0, span.end - 40) : span.end]!r}")


def _find_length(gap: str, kind: str, behind: str | None, fmt: TemplateFormat) -> tuple[int | None, bool]:
    """How much of what stands behind a turn's text belongs to the turn, and whether a special token ends it."""
    known, header = fmt.ends.get((kind, False)), fmt.result_header
    if known is not None and gap.startswith(known):
        return len(known), bool(known)  # empty: the turn ends only by the next header
    if known and known in gap:  # behind arguments that are no text: numbers, lists
        return gap.index(known) + len(known), True
    stops = [(gap.find(stop), stop) for stop in fmt.stops if stop in gap]
    if stops:
        position, stop = min(stops)
        return position + len(stop), True
    if kind == "calls" and behind == "tool" and header.strip() and gap.endswith(header):
        return len(gap) - len(header), False
    return None, False


def check_completeness(
    text: str,
    runs: Sequence[TextRun],
    messages: Sequence[dict],
    last_turn: int,
    spans: Mapping[int, MessageSpan],
    fmt: TemplateFormat,
) -> None:
    """RefusedError("template_lost_text") where the rendering lost text of a message.

    Blanks at a text's ends may be lost, reasoning of turns before `last_turn`, and tags that the template writes itself
    between the texts before and behind the message.
    """
    covered = _find_covered(runs)
    for number, message in enumerate(messages):
        fields = CHECKED_IN_LAST_TURN if number == last_turn else CHECKED
        values = [message[name] for name in fields if message.get(name)]
        for source in chain.from_iterable(map(find_sources, values)):
            if covered.get(source) == [(0, len(source.text))]:
                continue  # as nearly all are
            if source.path.startswith("tool_calls") and not source.path.startswith("tool_calls.function."):
                continue
            for missing in _find_missing(source, covered.get(source, [])):
                written = _get_template_text(text, runs, spans[number]) if number in spans else ""
                if not (
                    (number < last_turn and _is_reasoning(missing))
                    or (missing in written and len(missing) < len(source.text.strip()))
                    or (source.path.endswith("function.name") and _is_named_by_id(message, missing, covered))
                ):
                    raise _build_refusal(text, source, message, missing, source in covered, fmt.ids_hold_names)


def strips_reasoning(runs: Sequence[TextRun], messages: Sequence[dict], last_turn: int) -> bool:
    """Whether the rendering lacks reasoning of an assistant's message before `last_turn`: a field, or tagged text."""
    covered = _find_covered(runs)
    earlier = [message for message in messages[:last_turn] if message["role"] == "assistant"]
    fields = [source for m in earlier for key in REASONING_FIELDS for source in find_sources(m.get(key))]
    contents = [source for message in earlier for source in find_sources(message.get("content"))]
    return any(_find_missing(source, covered.get(source, [])) for source in fields) or any(
        _is_reasoning(gap) and TAG.sub("", gap).strip()  # tags alone are written by the template itself
        for source in contents
        for gap in _find_missing(source, covered.get(source, []))
    )


def _find_covered(runs: Iterable[TextRun]) -> dict[TextSource, Ranges]:
    """Which characters of each source are in a rendering with these runs."""
    covered: dict[TextSource, Ranges] = {}
    for run in runs:
        covered.setdefault(run.source, []).append(find_source_range(run))
    return covered


def _build_refusal(
    text: str, source: TextSource, message: dict, missing: str, in_part: bool, names_by_id: bool
) -> RefusedError:
    where = f"{source.path} of message {source.message} ({message['role']})"
    if source.path.endswith("function.name") and source.text == missing and names_by_id:
        detail = f"{missing!r}; the template names a call by its id, which has to be like functions.{missing}:0"
        return RefusedError("template_lost_text", f"{where}: {detail}")
    if source.path.startswith("content") and missing in text and not in_part:
        if isinstance(message["content"], list):  # the template prints it as Python does
            return RefusedError("template_refused", f"{where}: this template takes no list as content; give it as text")
        return RefusedError("mask_refused", f"{where} can't be followed through the template")
    return RefusedError("template_lost_text", f"{where}: {truncate_text(missing)}")


def _find_missing(source: TextSource, covered: Ranges) -> list[str]:
    """The stretches of a source's text that no range covers, blanks at their ends cut off."""
    missing, position = [], 0
    for start, end in [*sorted(covered), (len(source.text), len(source.text))]:
        if start > position and (gap := source.text[position:start].strip()):
            missing.append(gap)
        position = max(position, end)
    return missing


def _is_named_by_id(message: dict, name: str, covered: Mapping[TextSource, Ranges]) -> bool:
    """Whether a rendered id of a call holds the function's name (Kimi: `functions.name:0`)."""
    return any(
        name in call["id"] and run.source in covered
        for call in message["tool_calls"]
        for run in get_runs(call.get("id", ""))
    )


def _is_reasoning(fragment: str) -> bool:
    return fragment.endswith("</think>") or re.fullmatch(r"<(\w+)>.*</\1>", fragment, re.DOTALL) is not None


def _get_template_text(text: str, runs: Sequence[TextRun], span: MessageSpan) -> str:
    """What the template wrote itself between the texts before and behind a message, a line for each piece."""
    position, pieces = span.previous_end, []
    for run in runs:
        if span.previous_end <= run.start < span.next_start:
            pieces.append(text[position : run.start])
            position = max(position, run.end)
    return "\n".join([*pieces, text[position : span.next_start]])


def truncate_text(text: str) -> str:
    """A text for a message, shortened to 60 characters."""
    return repr(text if len(text) <= 60 else text[:57] + "…")
