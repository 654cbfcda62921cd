"""What a chat template puts around the texts of a conversation, found once by rendering small ones.

A conversation is header, text and end of turn, over and over. Between the last character of one text and the first of
the next stands what the template wrote itself: the rest of one turn and the head of the next. Where the one ends and
the other begins is read from renderings of probe conversations:

- the rendering up to a user's text, with the generation prompt and without, gives the rest of the user's turn (`tail`)
  and the generation prompt; the same for system, tool and assistant texts: a `Junction` each;
- what follows an answer at the end of a conversation, or stands between it and the next user's text less that
  user's header, is the end of turn.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from impruver_core.errors import RefusedError
from impruver_core.templating.render import render
from impruver_core.templating.traced import Run, Source, runs_of, trace

USER = {"role": "user", "content": "probe question one"}
ANSWER = {"role": "assistant", "content": "probe answer two"}
SYSTEM = {"role": "system", "content": "probe system three"}
AGAIN = {"role": "user", "content": "probe question four"}
LAST = {"role": "assistant", "content": "probe answer nine"}
THOUGHT = {"role": "assistant", "content": "probe answer five", "reasoning_content": "probe thought six"}
TOOL = {"role": "tool", "name": "probe_tool", "tool_call_id": "call00001", "content": "probe result seven"}
FUNCTION_CALL = {"role": "function_call", "content": '{"name": "probe_tool", "arguments": {"key": "probe value"}}'}
FUNCTION_RESPONSE = {"role": "function_response", "content": "probe result eight"}


def call(arguments) -> dict:
    """An assistant's message that calls one tool, with `arguments` as they are to be rendered."""
    function = {"name": "probe_tool", "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call00001", "type": "function", "function": function}],
    }


@dataclass(frozen=True)
class Layout:
    """A rendered text; `spans[i]` is where the texts of message i stand in it, None where none was rendered."""

    text: str
    spans: list[tuple[int, int] | None]
    last_path: list[str | None]  # the field of message i that was rendered last


@dataclass(frozen=True)
class Junction:
    """What stands between a text and the answer that follows: `tail` ends the one's turn, `prompt` opens the other's.

    `shared` is how much of `prompt` every probed answer's turn starts with, `header` what stands before the answer
    in a template without a generation prompt.
    """

    tail: str
    prompt: str
    shared: str
    header: str


@dataclass
class Shape:
    """What is known of a template: junctions by the role before, ends of turn by what a turn ends in and its place."""

    junctions: dict[str, list[Junction]] = field(default_factory=dict)
    ends: dict[tuple[str, bool], str] = field(default_factory=dict)  # ("answer" | "calls", last turn?) → literal
    trailing: list[str] = field(default_factory=list)  # behind a user's text, prompt asked for or not
    stops: list[str] = field(default_factory=list)
    renders_function_roles: bool = False
    arguments_as_text: bool = False
    renders_calls: bool = False
    renders_tools: bool = False


def lay_out(template: str, messages: list[dict], tools, prompt: bool, variables: Mapping) -> Layout:
    """Renders `messages` and finds where the texts of each stand; RefusedError where the template refuses."""
    traced = [
        {key: value if key == "role" else trace(value, number, key) for key, value in message.items()}
        for number, message in enumerate(messages)
    ]
    text = render(template, traced, tools, add_generation_prompt=prompt, variables=variables)
    spans: list = [None] * len(messages)
    last_path: list = [None] * len(messages)
    for _, (start, end, source, _) in first_runs(runs_of(text)):
        number = source.message
        span = spans[number]
        if span is None or span[0] == span[1]:
            spans[number], last_path[number] = (start, end), source.path
        elif start < end:  # an empty text beside others says nothing
            spans[number] = (min(span[0], start), max(span[1], end))
            last_path[number] = source.path if end >= span[1] else last_path[number]
    return Layout(str.__str__(text), spans, last_path)


def first_runs(runs: Iterable[Run]) -> Iterator[tuple[int, Run]]:
    """(index, run) of the runs of a rendered text, but for what repeats characters that were rendered before."""
    seen: dict[Source, list[tuple[int, int]]] = {}
    for index, run in enumerate(runs):
        start, end, source, offset = run
        low, high = (offset, offset + end - start) if offset >= 0 else (0, len(source.text))
        covered = seen.setdefault(source, [])
        if covered and low < covered[-1][1] and any(low < b and a < high for a, b in covered):
            continue
        if covered and low == high:
            continue
        covered.append((low, high))
        yield index, run


def shape_of(template: str, variables: Mapping, specials: Iterable[str], with_tools: bool = False) -> Shape:
    """The shape of `template` with these variables and special tokens; probed once for the same arguments."""
    key = json.dumps(dict(variables), sort_keys=True, ensure_ascii=False, default=str)
    return _shape_of(template, key, tuple(sorted(specials)), with_tools)


@lru_cache(maxsize=256)
def _shape_of(template: str, variables: str, specials: tuple[str, ...], with_tools: bool) -> Shape:
    probe = _Probe(template, json.loads(variables), specials, with_tools)
    shape = Shape()
    _probe_calls(probe, shape)
    _probe_junctions(probe, shape)
    _probe_ends(probe, shape)
    return shape


class _Probe:
    """Renders probe conversations of one template; None for those that it refuses or renders in part."""

    def __init__(self, template, variables, specials, with_tools):
        self.template, self.variables, self.specials = template, variables, specials
        self.tools = [probe_schema()] if with_tools else None

    def __call__(self, *messages, prompt=False) -> Layout | None:
        for opening in ((), (SYSTEM,)):  # some templates want a system message
            try:
                layout = lay_out(self.template, [*opening, *messages], self.tools, prompt, self.variables)
            except RefusedError:
                continue
            spans = layout.spans[len(opening) :]
            if None not in spans:
                return Layout(layout.text, spans, layout.last_path[len(opening) :])
        return None

    def opening(self, text: str) -> str | None:
        """The special token that a conversation starts with, behind BOS."""
        text = text.removeprefix(self.variables.get("bos_token") or "")
        return next((token for token in self.specials if text.startswith(token)), None)

    def common(self, one: str, other: str) -> int:
        """The length of the longest common prefix that cuts no special token in two."""
        return common_prefix(one, other, self.specials)


def common_prefix(one: str, other: str, specials: Iterable[str]) -> int:
    """The length of the longest common prefix that cuts no special token of either text in two."""
    pairs = enumerate(zip(one, other, strict=False))
    length = next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
    return min(straddling(text, length, specials)[0] for text in (one, other))


def straddling(text: str, at: int, specials: Iterable[str]) -> tuple[int, int]:
    """Where the special token starts and ends that stands across position `at`; (at, at) where none does."""
    if 0 < at < len(text):
        for token in specials:
            start = text.find(token, max(0, at - len(token) + 1), at + len(token) - 1)
            if 0 <= start < at < start + len(token):
                return start, start + len(token)
    return at, at


def probe_schema() -> dict:
    """The schema of the tool that the probes call."""
    parameters = {
        "type": "object",
        "properties": {"key": {"type": "string", "description": "probe"}},
        "required": ["key"],
    }
    function = {"name": "probe_tool", "description": "probe tool", "parameters": parameters}
    return {"type": "function", "function": function}


def _probe_calls(probe: _Probe, shape: Shape) -> None:
    as_role = probe(USER, FUNCTION_CALL, FUNCTION_RESPONSE, ANSWER)
    shape.renders_function_roles = as_role is not None
    arguments = {"key": "probe value"}
    for as_text in (False, True):
        layout = probe(USER, call(json.dumps(arguments) if as_text else arguments), TOOL, ANSWER)
        if layout is None:
            continue
        rendered = layout.text[layout.spans[1][0] : layout.spans[2][0]]
        broken = '\\"' in rendered if as_text else str(arguments) in rendered
        if "probe_tool" in rendered and "probe value" in rendered and not broken:
            shape.renders_calls, shape.arguments_as_text = True, as_text
            break
    try:
        with_tools = render(probe.template, [USER], [probe_schema()], variables=probe.variables)
        shape.renders_tools = "probe_tool" in with_tools
    except RefusedError:
        pass


def _turn(shape: Shape) -> dict:
    arguments = {"key": "probe value"}
    return call(json.dumps(arguments) if shape.arguments_as_text else arguments)


def _probe_junctions(probe: _Probe, shape: Shape) -> None:
    """For each role that may stand before an answer, what stands between its text and the answer's."""
    called = _turn(shape)
    histories = {
        "user": ([USER], [USER, ANSWER, AGAIN]),
        "tool": ([USER, called, TOOL],) if shape.renders_calls else (),
        "function_response": ([USER, FUNCTION_CALL, FUNCTION_RESPONSE],) if shape.renders_function_roles else (),
        "system": ([SYSTEM], [USER, ANSWER, SYSTEM]),
        "assistant": ([USER, ANSWER], [USER, THOUGHT]),
    }
    answers = [ANSWER, THOUGHT, *([called] if shape.renders_calls else [])]
    for role, conversations in histories.items():
        found = [_junction(probe, history, answers) for history in conversations]
        shape.junctions[role] = list(dict.fromkeys(junction for junction in found if junction))
    closed, open_ = probe(USER), probe(USER, prompt=True)
    if closed and open_ and closed.text == open_.text:
        shape.trailing.append(closed.text[closed.spans[0][1] :])


def _junction(probe: _Probe, history: list[dict], answers: list[dict]) -> Junction | None:
    closed, open_ = probe(*history), probe(*history, prompt=True)
    if closed is None or open_ is None or open_.spans[-1] != max(open_.spans):
        return None
    end, number = open_.spans[-1][1], len(history)
    border = max(end, probe.common(closed.text, open_.text))
    tail, prompt = open_.text[end:border], open_.text[border:]
    shares, header, always = [], "", False
    for answer, *later in [[answer, *after] for answer in answers for after in ([], [AGAIN, LAST])]:
        layout = probe(*history, answer, *later)
        if layout is None:
            continue
        start, first = layout.spans[number - 1][1], layout.spans[number][0]
        glue, rest = layout.text[start:first], layout.text[start:]
        if not prompt and not glue.startswith(tail):  # the prompt is always there, and differs from the answer's header
            tail, always = tail[: probe.common(rest, tail)], True
        share = _share(probe, glue, rest, tail, prompt)
        if share is not None:
            shares.append(share)
            if answer is ANSWER and not later and not prompt:
                header = glue[len(tail) :]
    if not shares:
        return None
    return Junction(tail, prompt, prompt[: min(shares)], header if header.strip() and not always else "")


def _share(probe: _Probe, glue: str, rest: str, tail: str, prompt: str) -> int | None:
    """How much of `prompt` the turn in `rest` starts with; None where its header is another one."""
    if not prompt:
        return 0 if glue.startswith(tail) else None
    share = probe.common(rest[len(tail) :], prompt) if glue.startswith(tail) else 0
    if share:
        return share
    for length in range(len(prompt), 0, -1):  # the turn's tail differs: blanks, or a token that only one of them has
        piece = prompt[:length]
        whole = straddling(prompt, length, probe.specials)[0] == length
        if whole and glue.count(piece) == 1 and (length == len(prompt) or any(t in piece for t in probe.specials)):
            return length
    return 0 if glue.startswith(tail) and not glue[len(tail) :].strip() else None


def _probe_ends(probe: _Probe, shape: Shape) -> None:
    """The literal that ends an assistant's turn, by what it ends in (an answer, calls) and whether it is the last."""
    tails = [junction.tail for junction in shape.junctions["user"] if junction.tail]
    kinds = [("answer", ANSWER, [AGAIN]), *([("calls", _turn(shape), [TOOL, ANSWER])] if shape.renders_calls else [])]
    for kind, turn, after in kinds:
        last, middle = probe(USER, turn), probe(USER, turn, *after)
        closing = last.text[last.spans[1][1] :] if last else None
        if middle is not None:
            between = middle.text[middle.spans[1][1] : middle.spans[2][0]]
            header = middle.text[: middle.spans[0][0]]
            stop = shape.ends.get(("answer", False), "") if kind == "calls" else ""
            rest = _less_header(probe, between, header, closing, tails, stop, kind)
            shape.ends[kind, False] = ended(rest, probe.specials)
        if closing is not None:
            shape.ends[kind, True] = last_end(closing, kind, shape, probe.specials)
    found = [(stop, kind) for (kind, _), end in shape.ends.items() if (stop := _stop(probe, end))]
    stops = [stop for stop, kind in found if kind == "answer" or stop in probe.specials]
    inner = _inside_a_turn(probe)
    shape.stops = list(dict.fromkeys([stop for stop in stops if stop not in inner] or stops))


def last_end(closing: str, kind: str, shape: Shape, specials: Iterable[str]) -> str:
    """What ends the last turn, of all that stands behind it: a prompt for the next one does not."""
    literal = ended(closing, specials)
    middle = shape.ends.get((kind, False))
    if middle is None or not literal.startswith(middle):
        return literal
    rest = literal[len(middle) :]
    prompted = rest.strip() and any(trailing.rstrip().endswith(rest.strip()) for trailing in shape.trailing)
    return middle if prompted or not any(token in rest for token in specials) else literal


def _less_header(probe, between: str, header: str, last: str | None, tails: list[str], stop: str, kind: str) -> str:
    """What stands between a turn's text and the next one, less that text's header."""
    if last and last.strip() and between.startswith(last):
        return last
    if stop and (token := _stop(probe, stop)) in between:
        return between[: between.index(token) + len(token)]
    for tail in tails:
        if between.startswith(tail) and header.endswith(between[len(tail) :]):
            return tail
    opening = probe.opening(header)
    if kind == "answer" and opening and header.endswith(between[between.find(opening) :]) and opening in between:
        return between[: between.index(opening)]  # a header starts as the conversation does
    cut = len(between)  # what also stands before the first user's text is header
    while cut and between[cut - 1 :] == header[-(len(between) - cut + 1) :]:
        cut -= 1
    less_suffix = between[: straddling(between, cut, probe.specials)[1]]
    less_prefix = last[: probe.common(last, between)] if last else ""
    either = (less_suffix, less_prefix) if kind == "answer" else (less_prefix, less_suffix)
    return next((literal for literal in either if literal.strip()), "")


def ended(literal: str, specials: Iterable[str]) -> str:
    """`literal` through its last special token, or, without one, less its trailing blanks."""
    ends = [literal.rfind(token) + len(token) for token in specials if token in literal]
    return literal[: max(ends)] if ends else literal.rstrip()


def _stop(probe: _Probe, end: str) -> str:
    special = [token for token in probe.specials if end.endswith(token)]
    return max(special, key=len) if special else end.strip()


def _inside_a_turn(probe: _Probe) -> str:
    """The literal between a turn's reasoning and its answer: a token in it does not end a turn."""
    layout = probe(USER, THOUGHT)
    if layout is None:
        return ""
    start, end = layout.spans[1]
    return layout.text[start:end]
