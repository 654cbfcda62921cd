"""What ends an assistant's turn: what follows it at the end of a conversation, or stands before the next header."""

from impruver_core.chat_template.analysis.prober import (
    AGAIN,
    ANSWER,
    THOUGHT,
    TOOL,
    USER,
    TemplateProber,
    build_tool_call,
)
from impruver_core.chat_template.analysis.template_format import TemplateFormat


def find_turn_endings(probe: TemplateProber, fmt: TemplateFormat) -> None:
    """Sets the literals that end an assistant's turn (by what it ends in, and whether it is the last) and the stops."""
    tails = [boundary.tail for boundary in fmt.boundaries["user"] if boundary.tail]
    kinds = [
        ("answer", ANSWER, [AGAIN]),
        *([("calls", build_tool_call(fmt.arguments_as_text), [TOOL, ANSWER])] if fmt.renders_calls else []),
    ]
    for kind, turn, after in kinds:
        last, middle = probe(USER, turn), probe(USER, turn, *after)
        closing = last.text[last.spans[1][1] :] if last else None
        if middle is not None:
            between = middle.text[middle.spans[1][1] : middle.spans[2][0]]
            header = middle.text[: middle.spans[0][0]]
            stop = fmt.ends.get(("answer", False), "") if kind == "calls" else ""
            rest = _cut_header(probe, between, header, closing, tails, stop, kind)
            fmt.ends[kind, False] = probe.specials.cut_after_last_token(rest)
        if closing is not None:
            fmt.ends[kind, True] = fmt.find_last_ending(closing, kind).literal
    ends = [(stop, kind) for (kind, _), end in fmt.ends.items() if (stop := _get_stop(probe, end))]
    stops = [stop for stop, kind in ends if kind == "answer" or stop in probe.specials.tokens]
    inner = _get_text_inside_turns(probe, fmt)
    fmt.stops = list(dict.fromkeys(stop for stop in stops if stop not in inner))


def _cut_header(
    probe: TemplateProber, between: str, header: str, last: str | None, tails: list[str], stop: str, kind: str
) -> str:
    """What stands between a turn's text and the next one, less that text's header."""
    cut = len(between)  # what also stands before the first user's text is header
    while cut and between[cut - 1 :] == header[-(len(between) - cut + 1) :]:
        cut -= 1
    less_suffix = between[: probe.specials.find_token_across(between, cut)[1]]
    headed = bool(between[len(less_suffix) :].strip())
    if last and last.strip() and between.startswith(last) and (between[len(last) :].strip() or not headed):
        return last
    if stop and (token := _get_stop(probe, stop)) in between:
        return between[: between.index(token) + len(token)]
    opening = probe.specials.find_prefix(header.removeprefix(probe.variables.get("bos_token") or ""))
    if kind == "answer" and opening and header.endswith(between[between.find(opening) :]) and opening in between:
        return between[: between.index(opening)]  # a header starts as the conversation does
    for tail in tails:
        if between.startswith(tail) and header.endswith(between[len(tail) :]):
            return tail
    less_prefix = last[: probe.specials.compute_shared_length(last, between)] if last else ""
    either = (less_suffix, less_prefix) if kind == "answer" else (less_prefix, less_suffix)
    return next((literal for literal in either if literal.strip()), "")


def _get_stop(probe: TemplateProber, end: str) -> str:
    return probe.specials.find_suffix(end) or end.strip()


def _get_text_inside_turns(probe: TemplateProber, fmt: TemplateFormat) -> str:
    """What stands inside a turn, between reasoning and answer and between two calls: a token in it ends no turn."""
    turns = [THOUGHT, *([build_tool_call(fmt.arguments_as_text, 2)] if fmt.renders_calls else [])]
    renderings = [rendering for turn in turns if (rendering := probe(USER, turn)) is not None]
    return "\n".join(rendering.text[slice(*rendering.spans[1])] for rendering in renderings)
