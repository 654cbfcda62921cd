"""What a chat template writes around reasoning and tool calls, found by rendering probe conversations.

Tool calls in the text of an answer are parsed in the format in which the template writes them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any, NamedTuple

from impruver_core.chat_template.analysis import prober as probes
from impruver_core.chat_template.analysis.prober import ANSWER, FUNCTION_CALL, THOUGHT, USER, TemplateProber
from impruver_core.chat_template.analysis.template_format import TemplateFormat

TAG = re.compile(r"(<[^<>\s]+>|\[[^\[\]\s]+\])\s*$")
NAME, ID = "probe_tool", "call00001"  # of the probe's call
ARGUMENTS = {"probe_one": "probe value", "probe_two": "another value"}
WORD = re.compile(r"[\w.:/-]+")
ParsedCalls = tuple[list[dict], int]  # and where they end in the text


class ReasoningMarkers(NamedTuple):
    """The texts around reasoning; `has_field`: the template takes it as `reasoning_content`, else as text."""

    start: str = "<think>"
    end: str = "</think>"
    has_field: bool = False


USUAL = ReasoningMarkers()  # where a template has none of its own


@dataclass(frozen=True)
class ToolCallFormat:
    """How a template writes calls: `start`, a call, `separator` and a call for each further one, `end`.

    A call is one of three:

        {"name": "f", "arguments": {"x": 1}}     JSON with these `keys`
        f<between>{"x": 1}                       a name, `between`, JSON
        f<tags[0]>x<tags[1]>1<tags[2]>y…         a name; before the first argument's name, a value, a further name
    """

    start: str
    separator: str = ""
    end: str = ""
    keys: tuple[str, str] = ("name", "arguments")
    between: str | None = None
    tags: tuple[str, str, str] | None = None

    @property
    def literals(self) -> tuple[str, ...]:
        """The texts that a template writes around calls."""
        return self.start, self.separator, self.between or "", *(self.tags or ())


@dataclass(frozen=True)
class TemplateMarkers:
    """What a template writes around reasoning, answers and tool calls.

    Attributes:
        answer_prefix: stands before plain text.
        starts_in_reasoning: the generation prompt has opened the reasoning.
        tool_calls: None where no form of them is known.
        supports_tool_calls: the template takes calls as `tool_calls`.
        supports_function_roles: it takes them as messages of a role of their own; of these JSON alone is one, too.
        named_call_ids: the ids of calls hold the functions' names.
        special_tokens: those among the markers, which the text of an answer has to keep.
    """

    reasoning: ReasoningMarkers = USUAL
    answer_prefix: str = ""
    starts_in_reasoning: bool = False
    tool_calls: ToolCallFormat | None = None
    supports_tool_calls: bool = False
    supports_function_roles: bool = False
    named_call_ids: bool = False
    special_tokens: frozenset[str] = frozenset()


def find_markers(template: str, variables: Mapping, template_format: TemplateFormat) -> TemplateMarkers:
    """Find the markers of a template by what it renders of reasoning and of a call behind its generation prompt."""
    prober = TemplateProber(template, variables, template_format.specials, False)
    rendering = prober(USER, prompt=True)
    prompt = rendering.text if rendering else ""
    reasoning, form = _find_reasoning_markers(prober, prompt), None
    if template_format.renders_calls:
        messages = (_make_call_message(template_format, times) for times in (1, 2))
        turns = (_render_turn(prober, prompt, message) for message in messages)
        form = infer_tool_call_format(*(_strip_empty_reasoning(turn, reasoning.end) for turn in turns))
    elif template_format.renders_function_roles:
        content = json.dumps({"name": NAME, "arguments": ARGUMENTS})
        form = infer_tool_call_format(_render_turn(prober, prompt, {**FUNCTION_CALL, "content": content}))
    answer = _strip_empty_reasoning(_render_turn(prober, prompt, ANSWER), reasoning.end)
    prefix = answer[: max(answer.find(ANSWER["content"]), 0)].strip()
    literals = [reasoning.start, reasoning.end, prefix, *(form.literals if form else ())]
    tokens = (token for token in template_format.specials.tokens if any(token in literal for literal in literals))
    starts_in_reasoning = prompt.rstrip().endswith(reasoning.start)
    supports = template_format.renders_calls, template_format.renders_function_roles, template_format.ids_hold_names
    return TemplateMarkers(reasoning, prefix, starts_in_reasoning, form, *supports, frozenset(tokens))


def _find_reasoning_markers(prober: TemplateProber, prompt: str) -> ReasoningMarkers:
    turn, rendering = _render_turn(prober, prompt, THOUGHT), prober(USER, THOUGHT)
    thought, answer = THOUGHT["reasoning_content"], THOUGHT["content"]
    if rendering is None or thought not in rendering.text or rendering.text.find(thought) > rendering.text.find(answer):
        return USUAL
    start, answer_start = rendering.text.index(thought), rendering.text.index(answer)
    closes = rendering.text[start + len(thought) : answer_start].strip()
    opens = turn[: turn.find(thought)].strip()
    if not opens:  # the prompt has it, or has more than it
        tag = TAG.search(rendering.text[:start])
        opens = tag.group(1) if tag else ""
    return ReasoningMarkers(opens, closes, True) if opens and closes else USUAL


def _make_call_message(template_format: TemplateFormat, times: int) -> dict:
    """Make the message of the probe's call, repeated so many times."""
    message = probes.build_tool_call(template_format.arguments_as_text, times, template_format.ids_hold_names, NAME)
    arguments = json.dumps(ARGUMENTS) if template_format.arguments_as_text else ARGUMENTS
    calls = [{**each, "function": {"name": NAME, "arguments": arguments}} for each in message["tool_calls"]]
    return message | {"tool_calls": calls}


def _render_turn(prober: TemplateProber, prompt: str, message: dict) -> str:
    """Render what of a turn the model has to generate: the text behind the prompt; "" if its header is another one."""
    rendering = prober(USER, message)
    if rendering is None or not prompt:
        return ""
    shared = prober.specials.compute_shared_length(rendering.text, prompt)
    return "" if prompt[shared:].strip() else rendering.text[shared:]


def _strip_empty_reasoning(turn: str, reasoning_end: str) -> str:
    """Strip empty reasoning from the beginning of a turn."""
    head, marker, rest = turn.partition(reasoning_end)
    return rest if marker and NAME not in head and ANSWER["content"] not in head else turn


def infer_tool_call_format(turn: str, twice: str = "") -> ToolCallFormat | None:
    """Infer the format of the probe's call in `turn`, and of two in `twice`; None where it is none of the three."""
    inferred = _infer_first_call(turn)
    if inferred is None:
        return None
    form, end = inferred
    form = replace(form, end=turn[end:])
    second = twice.find(NAME, end)
    if form.between is None and form.tags is None and second > 0:
        second = twice.find("{", end)
    return replace(form, separator=twice[end:second].strip()) if second > end else form


def parse_tool_calls(text: str, form: ToolCallFormat) -> list[dict] | None:
    """Parse the calls `{"name", "arguments"}` that make up `text`; None where it is anything else."""
    parse = _parse_tagged_call if form.tags else _parse_json_calls if form.between is None else _parse_named_call
    calls, position = [], _skip_literal(form.start, text, 0)
    while position is not None:
        parsed = parse(text, position, form)
        if parsed is None:
            return None
        calls += parsed[0]
        position = _skip_literal(form.separator, text, parsed[1]) if form.separator else None
        if position is None:
            return calls if form.end.strip().startswith(text[parsed[1] :].strip()) else None
    return None


def _infer_first_call(turn: str) -> tuple[ToolCallFormat, int] | None:
    """Infer the format, less what stands around further calls, and where the first call ends."""
    if NAME not in turn:
        return None
    name_start = turn.index(NAME)
    for start in (match.start() for match in re.finditer(r"[{\[]", turn[:name_start])):
        value, end = _parse_json(turn, start)
        keys = _find_keys(value[0] if isinstance(value, list) and value else value)
        if keys:
            return ToolCallFormat(turn[:start].strip(), keys=keys), end
    name_end, opens = name_start + len(NAME), turn[:name_start].strip()
    start = turn.find("{", name_end)
    value, end = _parse_json(turn, max(start, 0))
    if opens and value == ARGUMENTS:
        return ToolCallFormat(opens, between=turn[name_end:start].strip()), end
    return _infer_tagged_call(turn, opens, name_end)


def _infer_tagged_call(turn: str, opens: str, position: int) -> tuple[ToolCallFormat, int] | None:
    """Infer what stands between the probe's name and its arguments' names and values; as `_infer_first_call`."""
    tags = []
    for text in [text for argument in ARGUMENTS.items() for text in argument]:
        start = turn.find(text, position)
        if start < 0:
            return None
        tags.append(turn[position:start])
        position = start + len(text)
    if not opens or not all(tag.strip() for tag in tags):
        return None
    return ToolCallFormat(opens, tags=tuple(tags[:3])), position


def _skip_literal(literal: str, text: str, position: int) -> int | None:
    """Where `literal` ends in `text`, blanks aside and with any id; None where it does not stand there."""
    words = (re.escape(word).replace(ID, r"\w+") for word in literal.split())
    match = re.compile(r"\s*" + r"\s*".join(words) + r"\s*").match(text, position)
    return match.end() if match else None


def _parse_json_calls(text: str, position: int, form: ToolCallFormat) -> ParsedCalls | None:
    value, end = _parse_json(text, position)
    calls = []
    for item in value if isinstance(value, list) else [value]:
        function = item.get("function", item) if isinstance(item, dict) else {}
        name, arguments = (function.get(key) for key in form.keys) if isinstance(function, dict) else (None, None)
        if not isinstance(name, str) or _parse_object(arguments) is None:
            return None
        calls.append({"name": name, "arguments": _parse_object(arguments)})
    return (calls, end) if calls else None


def _parse_named_call(text: str, position: int, form: ToolCallFormat) -> ParsedCalls | None:
    word = WORD.match(text, position)
    start = _skip_literal(form.between or "", text, word.end()) if word else None
    arguments, end = _parse_json(text, start) if start is not None else (None, 0)
    return ([{"name": word.group(), "arguments": arguments}], end) if word and isinstance(arguments, dict) else None


def _parse_tagged_call(text: str, position: int, form: ToolCallFormat) -> ParsedCalls | None:
    first, equals, further = form.tags or ("", "", "")
    value_end = commonprefix([further, form.end])  # noqa: RUF071 (no paths)
    word = WORD.match(text, position)
    if not value_end.strip():
        return None
    arguments, opens, position = {}, first, word.end() if word else len(text)
    while text.startswith(opens, position):
        start = text.find(equals, position + len(opens))
        end = text.find(value_end, start)
        if start < 0 or end < 0:
            return None
        value = text[start + len(equals) : end]
        parsed, stop = _parse_json(value, 0)
        is_json = stop == len(value) and not isinstance(parsed, str)  # rendered again, either is the same text
        arguments[text[position + len(opens) : start]] = parsed if is_json else value
        opens, position = further, end
    return ([{"name": word.group(), "arguments": arguments}], position) if word and arguments else None


def _find_keys(item: Any) -> tuple[str, str] | None:
    """Find the keys of the probe's name and arguments."""
    function = item.get("function", item) if isinstance(item, dict) else None
    if not isinstance(function, dict):
        return None
    name = next((key for key, value in function.items() if value == NAME), None)
    arguments = next((key for key, value in function.items() if _parse_object(value) == ARGUMENTS), None)
    return (name, arguments) if name and arguments else None


def _parse_object(value: Any) -> dict | None:
    """An object, also where it is given as JSON text."""
    if isinstance(value, str):
        value, _ = _parse_json(value, 0)
    return value if isinstance(value, dict) else None


def _parse_json(text: str, start: int) -> tuple[Any, int]:
    """Parse the JSON value that begins at `start`; it and where it ends, (None, start) where none begins there."""
    try:
        return json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start
