"""What stands between a text and the answer that follows it.

The rendering up to a text, with the generation prompt and without, gives the rest of that text's turn and the prompt;
renderings with an answer behind it tell how much of the prompt the answer's turn shares.
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


def find_turn_boundaries(probe: TemplateProber, shape: TemplateFormat) -> None:
    """For each role that may stand before an answer, what stands between its text and the answer's."""
    called = build_tool_call(shape.arguments_as_text)
    histories = {
        "user": ([USER], [USER, ANSWER, AGAIN]),
        "tool": ([USER, called, TOOL],) if shape.renders_calls else (),
        "function_response": ([USER, FUNCTION_CALL, FUNCTION_RESPONSE],) if shape.renders_function_roles else (),
        "system": ([SYSTEM], [USER, ANSWER, SYSTEM]),
        "assistant": ([USER, ANSWER], [USER, THOUGHT]),
    }
    answers = [ANSWER, THOUGHT, *([called] if shape.renders_calls else [])]
    for role, conversations in histories.items():
        found = [_find_boundary(probe, history, answers) for history in conversations]
        shape.junctions[role] = list(dict.fromkeys(junction for junction in found if junction))
    closed, open_ = probe(USER), probe(USER, prompt=True)
    if closed and open_:
        shape.trailing.append(closed.text[: closed.spans[0][0]])
        shape.trailing += [closed.text[closed.spans[0][1] :]] if closed.text == open_.text else []


def _find_boundary(probe: TemplateProber, history: list[dict], answers: list[dict]) -> TurnBoundary | None:
    closed, open_ = probe(*history), probe(*history, prompt=True)
    if closed is None or open_ is None or open_.spans[-1] != max(open_.spans):
        return None
    end, number = open_.spans[-1][1], len(history)
    border = max(end, probe.specials.compute_shared_length(closed.text, open_.text))
    tail, prompt = open_.text[end:border], open_.text[border:]
    shares, header, always = [], "", False
    for answer, *later in [[answer, *after] for answer in answers for after in ([], [AGAIN, LAST])]:
        layout = probe(*history, answer, *later)
        if layout is None:
            continue
        start, first = layout.spans[number - 1][1], layout.spans[number][0]
        glue, rest = layout.text[start:first], layout.text[start:]
        if not prompt and not glue.startswith(tail):  # a prompt that is always there and differs from the answer's
            tail = tail[: probe.specials.compute_shared_length(rest, tail)]
            always = tail not in _before_a_user(probe)  # else what is always there is no prompt, but an end or a header
        share = _share(probe, glue, rest, tail, prompt)
        if share is not None:
            shares.append(share)
            if answer is ANSWER and not later and not prompt:
                header = glue[len(tail) :]
    if not shares:
        return None
    return TurnBoundary(tail, prompt, prompt[: min(shares)], header if header.strip() and not always else "")


def _before_a_user(probe: TemplateProber) -> str:
    """What stands between an answer and the next user's text."""
    layout = probe(USER, ANSWER, AGAIN)
    return layout.text[layout.spans[1][1] : layout.spans[2][0]] if layout else ""


def _share(probe: TemplateProber, glue: str, rest: str, tail: str, prompt: str) -> int | None:
    """How much of `prompt` the turn in `rest` starts with; None where its header is another one."""
    if not prompt:
        return 0 if glue.startswith(tail) else None
    share = probe.specials.compute_shared_length(rest[len(tail) :], prompt) if glue.startswith(tail) else 0
    if share:
        return share
    for length in range(len(prompt), 0, -1):  # the turn's tail differs: blanks, or a token that only one of them has
        piece = prompt[:length]
        whole = probe.specials.find_token_across(prompt, length)[0] == length
        if whole and glue.count(piece) == 1 and (length == len(prompt) or probe.specials.has_any(piece)):
            return length
    return 0 if glue.startswith(tail) and not glue[len(tail) :].strip() else None
