"""`analyze_template`: what a chat template puts around the texts of a conversation, found by all probes once.

The rendering up to a text, with the generation prompt and without, gives the rest of that text's turn and the prompt.
Renderings with an answer behind it show how much of the prompt the answer's turn shares. What follows an answer at the
end of a conversation, or stands before the next header, ends an assistant's turn.
"""

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache, lru_cache, partial
from itertools import product

from impruver_core.chat_template.analysis.prober import (
    AGAIN,
    ANSWER,
    ARGUMENTS,
    FUNCTION_CALL,
    FUNCTION_RESPONSE,
    LAST,
    SYSTEM,
    THOUGHT,
    USER,
    TemplateProber,
    build_tool_call,
    build_tool_result,
    build_tool_schema,
)
from impruver_core.chat_template.analysis.template_format import SpecialTokens, TemplateFormat, TurnBoundary
from impruver_core.chat_template.rendering.limits import count_timeout
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.errors import RefusedError
from impruver_core.time_limit import TimeLimitError, limit_cpu_time

SECONDS = 3  # of CPU time, for all probes
PRINTED_PART = re.compile(r"""["']text["']: ?["']probe """)  # as Python or JSON
DEVELOPER = {**SYSTEM, "role": "developer"}
NAMES_DEVELOPER = re.compile(r"""(["'])developer\1""")


def analyze_template(
    template: str, variables: Mapping, specials: Iterable[str], with_tools: bool = False
) -> TemplateFormat:
    """What probes find out of `template` with these variables and special tokens; cached by its arguments.

    RefusedError where they take too long.
    """
    key = json.dumps(dict(variables), sort_keys=True, ensure_ascii=False, default=str)
    try:
        with limit_cpu_time(SECONDS, f"the template takes more than {SECONDS} seconds for a few short conversations"):
            return _analyze_template(template, key, tuple(specials), with_tools)
    except TimeLimitError as error:
        count_timeout(template, renderings=2)
        raise RefusedError("template_refused", str(error)) from None


@lru_cache(maxsize=256)
def _analyze_template(template: str, variables: str, specials: tuple[str, ...], with_tools: bool) -> TemplateFormat:
    values = json.loads(variables)
    fmt = TemplateFormat(SpecialTokens(specials), values.get("eos_token"))
    probe = TemplateProber(template, values, fmt.specials, with_tools)
    _find_message_format(probe, fmt)
    _find_turn_boundaries(probe, fmt)
    _find_turn_endings(probe, fmt)
    return fmt


def _find_message_format(probe: TemplateProber, fmt: TemplateFormat) -> None:
    """Sets which roles and which forms of a tool call the template renders, arguments as objects or as JSON text."""
    fmt.renders_function_roles = probe(USER, FUNCTION_CALL, FUNCTION_RESPONSE, ANSWER) is not None
    for named_ids, as_text in product((False, True), repeat=2):
        call, result = build_tool_call(as_text, named_ids=named_ids), build_tool_result(named_ids)
        rendering = probe(USER, call, result, ANSWER)
        if rendering is None:
            continue
        written = rendering.text[rendering.spans[1][0] : rendering.spans[2][0]]
        broken = '\\"' in written if as_text else str(ARGUMENTS) in written
        if "probe_tool" in written and "probe value" in written and not broken:
            fmt.renders_calls, fmt.arguments_as_text, fmt.ids_hold_names = True, as_text, named_ids
            break
    with suppress(RefusedError):
        with_tools = render_template(probe.template, [USER], [build_tool_schema()], variables=probe.variables)
        fmt.renders_tools = "probe_tool" in with_tools
    # One that passes any role through knows none of them.
    fmt.renders_developer = NAMES_DEVELOPER.search(probe.template) is not None and probe(DEVELOPER, USER) is not None
    fmt.probe_parts = cache(partial(_takes_parts, probe, fmt))


def _build_call(fmt: TemplateFormat, times: int = 1) -> dict:
    """The probe's call in the form that the template renders."""
    return build_tool_call(fmt.arguments_as_text, times, fmt.ids_hold_names)


def _takes_parts(probe: TemplateProber, fmt: TemplateFormat, role: str, count: int) -> bool:
    """Whether a message of this role may have a list of one text part or several (`count` 2) as its content."""
    history, message = {"user": ((), USER), "system": ((), SYSTEM), "assistant": ((USER,), ANSWER)}.get(
        role, ((USER, _build_call(fmt)), {**build_tool_result(fmt.ids_hold_names), "role": role})
    )
    text = message["content"]
    border = text.rindex(" ") if count > 1 else len(text)
    texts = [piece for piece in (text[:border], text[border:]) if piece]
    rendering = probe(*history, {**message, "content": [{"type": "text", "text": piece} for piece in texts]})
    if rendering is None or PRINTED_PART.search(rendering.text):
        return False
    start, end = rendering.spans[-1]
    if any(piece.strip() not in rendering.text[start:end] for piece in texts):
        return False
    joined = probe(*history, message)  # one that is refused where it stands first is taken behind another alone
    return joined is None or joined.opened or not rendering.opened


def _find_turn_boundaries(probe: TemplateProber, fmt: TemplateFormat) -> None:
    """Sets, for each role that may stand before an answer, what stands between its text and the answer's."""
    tool_call, result = _build_call(fmt), build_tool_result(fmt.ids_hold_names)
    histories = {
        "user": ([USER], [USER, ANSWER, AGAIN]),
        "tool": ([USER, tool_call, result],) if fmt.renders_calls else (),
        "function_response": ([USER, FUNCTION_CALL, FUNCTION_RESPONSE],) if fmt.renders_function_roles else (),
        "system": ([SYSTEM], [USER, ANSWER, SYSTEM]),
        "assistant": ([USER, ANSWER], [USER, THOUGHT]),
    }
    answers = [ANSWER, THOUGHT, *([tool_call] if fmt.renders_calls else [])]
    for role, conversations in histories.items():
        boundaries = [each for history in conversations for each in _find_boundaries(probe, history, answers)]
        if role == "tool" and any(boundary.prompt for boundary in fmt.boundaries["user"]):
            # Without a prompt here, but elsewhere, the model itself writes a header that follows results.
            boundaries = [replace(boundary, header="") if not boundary.prompt else boundary for boundary in boundaries]
        fmt.boundaries[role] = list(dict.fromkeys(boundaries))
    closed, open_ = probe(USER), probe(USER, prompt=True)
    if closed and open_:
        fmt.trailing.append(closed.text[: closed.spans[0][0]])
        fmt.trailing += [closed.text[closed.spans[0][1] :]] if closed.text == open_.text else []


def _find_boundaries(probe: TemplateProber, history: list[dict], answers: list[dict]) -> list[TurnBoundary]:
    """What stands between a history and answers; several where answers and calls share unlike parts of a prompt.

    DeepSeek-R1's results end in a token that an answer stands behind, and a call without it.
    """
    closed, open_ = probe(*history), probe(*history, prompt=True)
    if closed is None or open_ is None or open_.spans[-1] != max(open_.spans):
        return []
    end, number = open_.spans[-1][1], len(history)
    border = max(end, probe.specials.compute_shared_length(closed.text, open_.text))
    tail, prompt = open_.text[end:border], open_.text[border:]
    lengths, header, always, fuller = [], "", False, []
    for answer, *later in [[answer, *after] for answer in answers for after in ([], [AGAIN, LAST])]:
        rendering = probe(*history, answer, *later)
        if rendering is None:
            continue
        start, first = rendering.spans[number - 1][1], rendering.spans[number][0]
        gap, rest = rendering.text[start:first], rendering.text[start:]
        if not prompt and not gap.startswith(tail):  # a prompt that is always there and differs from the answer's
            fuller += [TurnBoundary(tail, "", "", header)] if lengths and "tool_calls" in answer else []
            tail = tail[: probe.specials.compute_shared_length(rest, tail)]
            always = tail not in _get_gap_before_user(probe)  # else it is no prompt, but an end or a header
        length = _find_shared_length(probe, gap, rest, tail, prompt)
        if length is not None:
            lengths.append(length)
            if answer is ANSWER and not later and not prompt:
                header = gap[len(tail) :]
    if not lengths:
        return []
    header = header if header.strip() and not always else ""
    return [*fuller, TurnBoundary(tail, prompt, prompt[: min(lengths)], header)]


def _get_gap_before_user(probe: TemplateProber) -> str:
    """What stands between an answer and the next user's text."""
    rendering = probe(USER, ANSWER, AGAIN)
    return rendering.text[rendering.spans[1][1] : rendering.spans[2][0]] if rendering else ""


def _find_shared_length(probe: TemplateProber, gap: str, rest: str, tail: str, prompt: str) -> int | None:
    """How much of `prompt` the turn in `rest` starts with; None where its header is another one."""
    if not prompt:
        return 0 if gap.startswith(tail) else None
    shared = probe.specials.compute_shared_length(rest[len(tail) :], prompt) if gap.startswith(tail) else 0
    if shared:
        return shared
    for length in range(len(prompt), 0, -1):  # the turn's tail differs: blanks, or a token that only one of them has
        piece = prompt[:length]
        cuts_no_token = probe.specials.find_token_across(prompt, length)[0] == length
        if cuts_no_token and gap.count(piece) == 1 and (length == len(prompt) or probe.specials.has_any(piece)):
            return length
    return 0 if gap.startswith(tail) and not gap[len(tail) :].strip() else None


def _find_turn_endings(probe: TemplateProber, fmt: TemplateFormat) -> None:
    """Sets the literals that end an assistant's turn (by what it ends in, and whether it is the last) and the stops."""
    tails = [boundary.tail for boundary in fmt.boundaries["user"] if boundary.tail]
    result = build_tool_result(fmt.ids_hold_names)
    kinds = [
        ("answer", ANSWER, [AGAIN]),
        *([("calls", _build_call(fmt), [result, ANSWER])] if fmt.renders_calls else []),
    ]
    turns = [THOUGHT, *([_build_call(fmt, 2)] if fmt.renders_calls else [])]
    renderings = [rendering for turn in turns if (rendering := probe(USER, turn)) is not None]
    # Between reasoning and answer, and between two calls: a token in it ends no turn.
    fmt.repeated = "\n".join(rendering.text[slice(*rendering.spans[1])] for rendering in renderings)
    for kind, turn, after in kinds:
        last, middle = probe(USER, turn), probe(USER, turn, *after)
        closing = last.text[last.spans[1][1] :] if last else None
        if middle is not None:
            between = middle.text[middle.spans[1][1] : middle.spans[2][0]]
            header = middle.text[: middle.spans[0][0]]
            stop = fmt.ends.get(("answer", False), "") if kind == "calls" else ""
            rest = _cut_header(probe, between, header, closing, tails, stop, kind)
            token = _get_stop(probe, stop)
            if token and token not in probe.specials.tokens and token in rest:  # as an answer, by what is no token
                end = rest[: rest.index(token) + len(token)]
            else:
                end = probe.specials.cut_after_last_token(rest)
            if kind == "calls":
                first, stop_in_end, behind = end.partition(token) if token else (end, "", "")
                end = first + stop_in_end if fmt.opens_turn(behind) else end  # an empty answer behind the calls
                end = _add_handover(probe, fmt, between, end, token)
                fmt.result_header = between.removeprefix(end)
            fmt.ends[kind, False] = end
        if closing is not None:
            fmt.ends[kind, True] = fmt.find_last_ending(closing, kind).literal
    ends = [(stop, kind) for (kind, _), end in fmt.ends.items() if (stop := _get_stop(probe, end))]
    stops = [stop for stop, kind in ends if kind == "answer" or stop in probe.specials.tokens]
    fmt.set_stops(stop for stop in stops if stop not in fmt.repeated)


def _add_handover(probe: TemplateProber, fmt: TemplateFormat, between: str, end: str, stop: str) -> str:
    """`end`, which ends a turn of calls, through the token that hands over to the tool, where no token stops before.

    That is the token behind the call that opens results alone (GLM: <|observation|>): there the model generates it.
    Or it is `stop`, which ends an answer, where the template omits it at the end of a conversation.
    """
    if (stop and stop in end) or any(token in end and token not in fmt.repeated for token in probe.specials.tokens):
        return end
    behind = between[len(end) :].lstrip()
    token = probe.specials.find_prefix(behind)
    headers = [literal for boundaries in fmt.boundaries.values() for b in boundaries for literal in (b.tail, b.prompt)]
    if token is None or (token != stop and any(token in text for text in (fmt.repeated, *headers, *fmt.trailing))):
        return end
    return between[: len(between) - len(behind) + len(token)]


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
