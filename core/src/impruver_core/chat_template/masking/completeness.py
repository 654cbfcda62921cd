"""Whether a rendering holds all that was said."""

import re
from collections.abc import Mapping, Sequence

from impruver_core.chat_template.rendering.renderer import REASONING_FIELDS
from impruver_core.chat_template.rendering.text_spans import find_source_range
from impruver_core.chat_template.rendering.traced_string import TextRun, TextSource, find_sources, get_runs
from impruver_core.errors import RefusedError

TAG = re.compile(r"</?\w+>")


def check_completeness(
    text: str, runs: Sequence[TextRun], messages: Sequence[dict], last_turn: int, gaps: Mapping[int, tuple[int, int]]
) -> None:
    """RefusedError("template_lost_text") where the rendering lost text of a message.

    No loss are blanks at a text's ends, reasoning of turns before `last_turn`, and tags that the template writes
    itself between `gaps[message]`, the characters from the text before a message to the one behind.
    """
    covered = _covered(runs)
    for number, message in enumerate(messages):
        for source in _texts_of(message, number == last_turn):
            for missing in _missing(source, covered.get(source, [])):
                written = _literal(text, runs, *gaps[number]) if number in gaps else ""
                if not (
                    (number < last_turn and _is_reasoning(missing))
                    or (missing in written and len(missing) < len(source.text.strip()))
                    or (source.path.endswith("function.name") and _named_by_id(message, missing, covered))
                ):
                    raise _lost(text, source, message, missing, source in covered)


def strips_reasoning(runs: Sequence[TextRun], messages: Sequence[dict], last_turn: int) -> bool:
    """Whether the rendering lacks reasoning of an assistant's message before `last_turn`: a field, or tagged text."""
    covered = _covered(runs)
    earlier = [message for message in messages[:last_turn] if message["role"] == "assistant"]
    fields = [source for m in earlier for key in REASONING_FIELDS for source in find_sources(m.get(key))]
    contents = [source for message in earlier for source in find_sources(message.get("content"))]
    return any(_missing(source, covered.get(source, [])) for source in fields) or any(
        _is_reasoning(gap) and TAG.sub("", gap).strip()  # tags alone are written by the template itself
        for source in contents
        for gap in _missing(source, covered.get(source, []))
    )


def _covered(runs: Sequence[TextRun]) -> dict[TextSource, list[tuple[int, int]]]:
    covered: dict[TextSource, list[tuple[int, int]]] = {}
    for run in runs:
        covered.setdefault(run[2], []).append(find_source_range(run))
    return covered


def _lost(text: str, source: TextSource, message: dict, missing: str, in_part: bool) -> RefusedError:
    where = f"{source.path} of message {source.message} ({message['role']})"
    if source.path.startswith("content") and missing in text and not in_part:
        if isinstance(message["content"], list):  # the template prints it as Python does
            return RefusedError("template_refused", f"{where}: this template takes no list as content; give it as text")
        return RefusedError("mask_refused", f"{where} can't be followed through the template")
    return RefusedError("template_lost_text", f"{where}: {truncate_text(missing)}")


def _texts_of(message: dict, with_reasoning: bool) -> list[TextSource]:
    """The texts of a message that a rendering must hold."""
    kept = ("content", "tool_calls", *(REASONING_FIELDS if with_reasoning else ()))
    sources = [source for key in kept for source in find_sources(message.get(key))]
    return [s for s in sources if not s.path.startswith("tool_calls") or s.path.startswith("tool_calls.function.")]


def _missing(source: TextSource, covered: list[tuple[int, int]]) -> list[str]:
    missing, at = [], 0
    for start, end in [*sorted(covered), (len(source.text), len(source.text))]:
        if start > at and (gap := source.text[at:start].strip()):
            missing.append(gap)
        at = max(at, end)
    return missing


def _named_by_id(message: dict, name: str, covered: dict) -> bool:
    """Whether a rendered id of a call holds the function's name (Kimi: `functions.name:0`)."""
    return any(
        name in call["id"] and run[2] in covered
        for call in message["tool_calls"]
        for run in get_runs(call.get("id", ""))
    )


def _is_reasoning(fragment: str) -> bool:
    return fragment.endswith("</think>") or re.fullmatch(r"<(\w+)>.*</\1>", fragment, re.DOTALL) is not None


def _literal(text: str, runs: Sequence[TextRun], start: int, stop: int) -> str:
    """What the template wrote itself between two positions, a line for each piece."""
    at, pieces = start, []
    for run_start, run_end, _, _ in runs:
        if start <= run_start < stop:
            pieces.append(text[at:run_start])
            at = max(at, run_end)
    return "\n".join([*pieces, text[at:stop]])


def truncate_text(text: str) -> str:
    """A text for a message, shortened."""
    return repr(text if len(text) <= 60 else text[:57] + "…")
