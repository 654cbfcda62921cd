"""What a template puts between a text and the answer that follows it: end of turn, generation prompt.

The rendering up to a text, with the generation prompt and without, gives the rest of that text's turn and the prompt.
Renderings with an answer behind it show how much of the prompt the answer's turn shares.
"""

from impruver_core.chat_template.analysis.prober import (
    AGAIN,
    ANSWER,
    FUNCTION_CALL,
    FUNCTION_RESPONSE,
    LAST,
    SYSTEM,
    THOUGHT,
    TOOL,
    USER,
    TemplateProber,
    build_tool_call,
)
from impruver_core.chat_template.analysis.template_format import TemplateFormat, TurnBoundary


def find_turn_boundaries(probe: TemplateProber, fmt: TemplateFormat) -> None:
    """Sets, for each role that may stand before an answer, what stands between its text and the answer's."""
    tool_call = build_tool_call(fmt.arguments_as_text)
    histories = {
        "user": ([USER], [USER, ANSWER, AGAIN]),
        "tool": ([USER, tool_call, TOOL],) if fmt.renders_calls else (),
        "function_response": ([USER, FUNCTION_CALL, FUNCTION_RESPONSE],) if fmt.renders_function_roles else (),
        "system": ([SYSTEM], [USER, ANSWER, SYSTEM]),
        "assistant": ([USER, ANSWER], [USER, THOUGHT]),
    }
    answers = [ANSWER, THOUGHT, *([tool_call] if fmt.renders_calls else [])]
    for role, conversations in histories.items():
        boundaries = [_find_boundary(probe, history, answers) for history in conversations]
        fmt.boundaries[role] = list(dict.fromkeys(filter(None, boundaries)))
    closed, open_ = probe(USER), probe(USER, prompt=True)
    if closed and open_:
        fmt.trailing.append(closed.text[: closed.spans[0][0]])
        fmt.trailing += [closed.text[closed.spans[0][1] :]] if closed.text == open_.text else []


def _find_boundary(probe: TemplateProber, history: list[dict], answers: list[dict]) -> TurnBoundary | None:
    closed, open_ = probe(*history), probe(*history, prompt=True)
    if closed is None or open_ is None or open_.spans[-1] != max(open_.spans):
        return None
    end, number = open_.spans[-1][1], len(history)
    border = max(end, probe.specials.compute_shared_length(closed.text, open_.text))
    tail, prompt = open_.text[end:border], open_.text[border:]
    lengths, header, always = [], "", False
    for answer, *later in [[answer, *after] for answer in answers for after in ([], [AGAIN, LAST])]:
        rendering = probe(*history, answer, *later)
        if rendering is None:
            continue
        start, first = rendering.spans[number - 1][1], rendering.spans[number][0]
        gap, rest = rendering.text[start:first], rendering.text[start:]
        if not prompt and not gap.startswith(tail):  # a prompt that is always there and differs from the answer's
            tail = tail[: probe.specials.compute_shared_length(rest, tail)]
            always = tail not in _get_gap_before_user(probe)  # else it is no prompt, but an end or a header
        length = _find_shared_length(probe, gap, rest, tail, prompt)
        if length is not None:
            lengths.append(length)
            if answer is ANSWER and not later and not prompt:
                header = gap[len(tail) :]
    if not lengths:
        return None
    return TurnBoundary(tail, prompt, prompt[: min(lengths)], header if header.strip() and not always else "")


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
