"""Whether a rendering holds every text of the conversation."""

import re
from collections.abc import Iterable, Mapping, Sequence

from impruver_core.chat_template.rendering.renderer import REASONING_FIELDS
from impruver_core.chat_template.rendering.text_spans import MessageSpan, find_source_range
from impruver_core.chat_template.rendering.traced_string import TextRun, TextSource, find_sources, get_runs
from impruver_core.errors import RefusedError

TAG = re.compile(r"</?\w+>")
Ranges = list[tuple[int, int]]  # of characters


def check_completeness(
    text: str, runs: Sequence[TextRun], messages: Sequence[dict], last_turn: int, spans: Mapping[int, MessageSpan]
) -> None:
    """RefusedError("template_lost_text") where the rendering lost text of a message.

    Blanks at a text's ends may be lost, reasoning of turns before `last_turn`, and tags that the template writes itself
    between the texts before and behind the message.
    """
    covered = _find_covered(runs)
    for number, message in enumerate(messages):
        for source in _list_required_texts(message, number == last_turn):
            for missing in _find_missing(source, covered.get(source, [])):
                written = _get_template_text(text, runs, spans[number]) if number in spans else ""
                if not (
                    (number < last_turn and _is_reasoning(missing))
                    or (missing in written and len(missing) < len(source.text.strip()))
                    or (source.path.endswith("function.name") and _is_named_by_id(message, missing, covered))
                ):
                    raise _build_refusal(text, source, message, missing, source in covered)


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


def _build_refusal(text: str, source: TextSource, message: dict, missing: str, in_part: bool) -> RefusedError:
    where = f"{source.path} of message {source.message} ({message['role']})"
    if source.path.startswith("content") and missing in text and not in_part:
        if isinstance(message["content"], list):  # the template prints it as Python does
            return RefusedError("template_refused", f"{where}: this template takes no list as content; give it as text")
        return RefusedError("mask_refused", f"{where} can't be followed through the template")
    return RefusedError("template_lost_text", f"{where}: {truncate_text(missing)}")


def _list_required_texts(message: dict, with_reasoning: bool) -> list[TextSource]:
    """The texts of a message that a rendering must hold."""
    fields = ("content", "tool_calls", *(REASONING_FIELDS if with_reasoning else ()))
    sources = [source for field in fields for source in find_sources(message.get(field))]
    return [s for s in sources if not s.path.startswith("tool_calls") or s.path.startswith("tool_calls.function.")]


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
