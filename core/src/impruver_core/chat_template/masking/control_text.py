"""Finds text of messages, tools and template arguments that is a control token's: `<|im_end|>` in a question.

A tokenizer looks for its special tokens in the whole rendering, whoever wrote them. Where one came from is known from
the traced texts, and, as not all data are traced (roles, names of arguments, tools), from a second rendering in which
such text is replaced by letters: what differs came from the data.

    rendering    <|im_start|>user\\nWhat is <|im_end|>?<|im_end|>
    of the data  ........................111111111111111..........
    second one   <|im_start|>user\\nWhat is xxxxxxxxxx?<|im_end|>

Control tokens are those that the tokenizer marks as special, and others that it adds and by which the template opens or
ends turns. Those that a recipe adds for its data are none, unless the template opens or ends turns with them.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import jinja2.nodes

from impruver_core.chat_template.analysis.prober import AGAIN, ANSWER, THOUGHT, USER, TemplateProber
from impruver_core.chat_template.analysis.template_format import SpecialTokens
from impruver_core.chat_template.rendering.renderer import REASONING_FIELDS, compile_template, render_template
from impruver_core.chat_template.rendering.traced_string import get_runs
from impruver_core.chat_template.selection import SelectedTemplate
from impruver_core.errors import RefusedError
from impruver_core.labels import TRAINED_ROLES

NO_ROLE = re.compile(r"[^\w .:/-]")  # in a role it may complete a header that the template begins
ESCAPED = "<>&\"'"  # by the filter `escape`
SHARED = 16  # characters that tokens may begin with alike and are written once in a pattern
SEARCHES = ("split", "rsplit", "partition", "rpartition", "find", "replace")


class InexactError(Exception):
    """Why it can't be told, or not be kept, that text is not a control token."""


class TemplateInput(NamedTuple):
    """What a conversation was rendered from: the template, normalized messages, tools, arguments of the template."""

    template: SelectedTemplate
    messages: Sequence[dict]
    tools: Sequence[dict] | None = None
    kwargs: dict | None = None
    add_generation_prompt: bool = False

    def render(self) -> str:
        """Renders it; RefusedError where the template refuses it."""
        variables = {**self.template.variables, **(self.kwargs or {})}
        options = {"add_generation_prompt": self.add_generation_prompt, "variables": variables}
        return render_template(self.template.text, self.messages, self.tools, **options)

    def iterate_data(self) -> Iterator[tuple[str, Any]]:
        """(where, value) of all that comes from a row; the special tokens among the arguments do not."""
        for number, message in enumerate(self.messages):
            for key, value in message.items():
                yield f"{key} of message {number} ({message['role']})", value
        yield "the tools", self.tools
        for name, value in (self.kwargs or {}).items():
            if not name.endswith("_token"):
                yield f"{name} of chat_template_kwargs", value


class ControlText(NamedTuple):
    """Characters `start` to `stop` of a rendering that are a control token's text."""

    token: str
    start: int
    stop: int


class ControlTokens:
    """A set of control tokens, looked for in what conversations are rendered from.

    `others`: further added tokens. `normalized`: what the tokenizer takes for one may be written otherwise.
    """

    def __init__(self, tokens: Collection[str], others: Collection[str] = (), normalized: bool = False):
        self.tokens, self.normalized = frozenset(tokens), normalized
        self._others, self._borders = others, SpecialTokens(tokens)
        self._pairs = frozenset(token[at : at + 2] for token in tokens for at in range(len(token) - 1))

    @cached_property
    def _own_pattern(self) -> re.Pattern:
        return _compile_tokens(self.tokens)

    @cached_property
    def _pattern(self) -> re.Pattern:
        return _compile_tokens({*self.tokens, *self._others})

    def may_occur(self, text: str, given: TemplateInput) -> bool:
        """Whether `text`, the traced rendering of `given`, may hold control text; False is certain, and cheap."""
        if self.normalized or not self.tokens:
            return bool(self.tokens)
        search = self._own_pattern.search
        for message in given.messages:
            for value in message.values():
                if search(value) if isinstance(value, str) else value and _find_any(search, value):
                    return True
            if not message["role"].isidentifier():
                return True
        if (given.tools and _find_any(search, given.tools)) or (given.kwargs and _find_any(search, given.kwargs)):
            return True
        plain, pairs = str.__str__(text), self._pairs
        for start, end, _, _ in get_runs(text):
            if plain[start - 1 : start + 1] in pairs or plain[end - 1 : end + 1] in pairs:
                return self._crosses_a_border(text)
        return False

    def _crosses_a_border(self, text: str) -> bool:
        """Whether a token's text stands across the border of a message's text."""
        plain, find = str.__str__(text), self._borders.find_token_across
        return any(find(plain, at) != (at, at) for run in get_runs(text) for at in (run.start, run.end))

    def find_all(self, text: str) -> list[ControlText]:
        """All texts of control tokens in a text, whoever wrote them."""
        matches = self._pattern.finditer(str.__str__(text))
        return [ControlText(each[0], *each.span()) for each in matches if each[0] in self.tokens]

    def is_in_data(self, text: str, given: TemplateInput, candidates: Iterable[ControlText]) -> bool:
        """Whether one of the `candidates` in a rendering may have come from its data; False is certain."""
        search = _compile_tokens({candidate.token for candidate in candidates}).search
        return (
            self.normalized
            or any(_find_any(search, value) for _, value in given.iterate_data())
            or any(NO_ROLE.search(message["role"]) for message in given.messages)
            or self._crosses_a_border(text)
        )

    def mark_data(self, text: str, given: TemplateInput) -> bytearray:
        """A 1 for each character of a rendering that came from its data, but for the tags that the template parses.

        InexactError where it can't be told.
        """
        plain, runs = str.__str__(text), get_runs(text)
        tags = find_parsed_tags(given.template, self.tokens)
        rendered = [token for token in self.tokens if token in plain]
        data = [str.__str__(string) for _, value in given.iterate_data() for string in _iterate_strings(value)]
        present = {token for token in rendered if any(token in string for string in data)}
        try:
            second = str.__str__(_replace_tokens(given, present, tags).render())
            if len(second) != len(plain):  # what a template escapes is as long only with the same marks
                second = str.__str__(_replace_tokens(given, present, tags, ESCAPED).render())
        except RefusedError as error:
            raise InexactError(f"the template reads it ({error.detail})") from None
        if len(second) != len(plain):
            raise InexactError("the template reads it")
        marks = bytearray(map(str.__ne__, plain, second))
        for run in runs:
            marks[run.start : run.end] = b"\1" * (run.end - run.start)
        if tags:
            pattern = _compile_tokens(tags)
            for start, end, source, _ in runs:
                if _may_hold_tags(given.messages[source.message], source.path):
                    for match in pattern.finditer(plain, start, end):
                        marks[slice(*match.span())] = bytes(len(match[0]))
        return marks

    def find_written(self, text: str, marks: bytearray) -> list[ControlText]:
        """The control tokens in the parts of a rendering that are not marked as data."""
        stretches = (stretch.span() for stretch in re.finditer(rb"\x00+", marks))
        matches = (match for stretch in stretches for match in self._pattern.finditer(str.__str__(text), *stretch))
        return [ControlText(each[0], *each.span()) for each in matches if each[0] in self.tokens]

    def find_traced(self, text: str, candidates: Sequence[ControlText]) -> list[ControlText]:
        """The `candidates` that hold a character of a traced text."""
        runs = get_runs(text)
        return [each for each in candidates if any(run.start < each.stop and each.start < run.end for run in runs)]

    def describe(self, text: str, given: TemplateInput, control: ControlText) -> str:
        """The token with the message and the offset in its text, for the ledger."""
        for start, end, source, offset in get_runs(text):
            recast = offset < 0 and control.token not in source.text  # one of several in a text, as JSON is
            if start < control.stop and control.start < end and not recast:
                at = offset + max(0, control.start - start) if offset >= 0 else source.text.find(control.token)
                where = f"{source.path} of message {source.message} ({given.messages[source.message]['role']})"
                across = "" if start <= control.start and control.stop <= end else ", with text of the template"
                return f"{control.token!r} in {where}, at {max(0, at)}{across}"
        in_data = self._list_in_data(given, {control.token})
        return in_data[0] if in_data else f"{control.token!r} in a role or argument, with text of the template"

    def describe_all(self, text: str, given: TemplateInput, control: Sequence[ControlText]) -> str:
        """The first token, as `describe` does, and how many more there are."""
        return self.describe(text, given, control[0]) + _count_further(control)

    def describe_candidates(self, text: str, given: TemplateInput, candidates: Sequence[ControlText]) -> str:
        """The same where it can't be told which of the tokens in a rendering came from the data."""
        tags = find_parsed_tags(given.template, self.tokens)
        traced = [each for each in self.find_traced(text, candidates) if each.token not in tags]
        if traced:
            return self.describe_all(text, given, traced)
        in_data = self._list_in_data(given, self.tokens)
        return in_data[0] + _count_further(in_data) if in_data else self.describe_all(text, given, candidates)

    def _list_in_data(self, given: TemplateInput, tokens: Collection[str]) -> list[str]:
        """The places of tokens in the data, whether or not the template writes these."""
        pattern = _compile_tokens(tokens)
        return [
            f"{match[0]!r} in {where}, at {match.start()}"
            for where, value in given.iterate_data()
            for string in _iterate_strings(value)
            for match in pattern.finditer(string)
        ]


def select_control_tokens(
    template: SelectedTemplate, special: Collection[str], added: Collection[str], own: Collection[str] = ()
) -> frozenset[str]:
    """The control tokens of a tokenizer with this template.

    `special` are marked as such, `added` are the other added ones; `own` are those that a recipe adds for its data.
    """
    named = {value for name, value in template.variables.items() if name.endswith("_token")}
    own = set(own) - named
    turns = find_turn_tokens(template, {*added, *own}) if added or own else frozenset()
    return frozenset({*special, *turns} - (own - turns))


def find_turn_tokens(template: SelectedTemplate, tokens: Collection[str]) -> frozenset[str]:
    """Those of `tokens` with which the template opens or ends turns: no pair of tags that stands around reasoning."""
    fmt = template.format
    around = _find_reasoning_tags(template, tokens)
    reasoning = {tag for tag in around if f"{tag[:1]}/{tag[1:]}" in around or tag.replace("/", "", 1) in around - {tag}}
    boundaries = [each for role in ("user", "system") for each in fmt.boundaries.get(role, ())]
    literals = [*fmt.stops, *(boundary.tail for boundary in boundaries), _probe_literals(template).header]
    prompts = [text.lstrip() for each in boundaries for text in (each.prompt, each.header)]
    return frozenset(
        token
        for token in set(tokens) - reasoning
        if any(token in literal for literal in literals) or any(text.startswith(token) for text in prompts)
    )


def find_parsed_tags(template: SelectedTemplate, tokens: Collection[str]) -> frozenset[str]:
    """Those of `tokens` that are markup in an answer: the template parses them out, or puts them around reasoning."""
    read = {text for text in _list_searched(template.text) if text in tokens}
    around = _find_reasoning_tags(template, tokens)
    pairs = {token.replace("/", "", 1) for token in read} | {f"{token[:1]}/{token[1:]}" for token in read}
    tags = frozenset((read | pairs | around) & set(tokens))
    named = {value for name, value in template.variables.items() if name.endswith("_token")}
    return tags - find_turn_tokens(template, tags) - named


def _find_reasoning_tags(template: SelectedTemplate, tokens: Collection[str]) -> set[str]:
    """The tokens that the template writes right before and behind reasoning."""
    before, found, after = _probe_literals(template).thought.partition(THOUGHT["reasoning_content"])
    before, after = before.rstrip(), after.lstrip()
    return {token for token in tokens if found and (before.endswith(token) or after.startswith(token))}


class _Literals(NamedTuple):
    """What a template writes between an answer and the next question, and after a question through a thought."""

    header: str
    thought: str


def _probe_literals(template: SelectedTemplate) -> _Literals:
    variables = json.dumps(template.variables, sort_keys=True, ensure_ascii=False, default=str)
    return _render_literals(template.text, variables)


@lru_cache(maxsize=256)
def _render_literals(template: str, variables: str) -> _Literals:
    probe = TemplateProber(template, json.loads(variables), SpecialTokens(()), False)
    turns, thought = probe(USER, ANSWER, AGAIN), probe(USER, THOUGHT)
    return _Literals(
        turns.text[turns.spans[1][1] : turns.spans[2][0]] if turns else "",
        thought.text[thought.spans[0][1] : thought.spans[1][1]] if thought else "",
    )


@lru_cache(maxsize=256)
def _list_searched(template: str) -> frozenset[str]:
    """The texts that a template looks for in others, or stores under a name."""
    tree = compile_template(template).environment.parse(template)
    nodes = jinja2.nodes
    found: list[nodes.Node] = []
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in SEARCHES:
            found += call.args
    for each in tree.find_all(nodes.Filter):
        found += each.args if each.name in ("replace", "split") else []
    for each in tree.find_all(nodes.Compare):
        found += [each.expr] if any(operand.op in ("in", "notin") for operand in each.ops) else []
    found += [each.node for each in tree.find_all(nodes.Assign)]
    texts = (node.value for node in found if isinstance(node, nodes.Const))
    return frozenset(text.strip() for text in texts if isinstance(text, str))


def _count_further(found: Sequence) -> str:
    return f", and {len(found) - 1} more" if len(found) > 1 else ""


def _compile_tokens(tokens: Collection[str]) -> re.Pattern:
    """A pattern of the texts, of several that begin at one place the longest; of none, one that is nowhere."""
    return re.compile(_format_branches(set(tokens), SHARED) if tokens else "(?!)")


def _format_branches(texts: Collection[str], depth: int) -> str:
    """What the texts begin with is written once: thousands of tokens are looked for as fast as few."""
    if len(texts) == 1 or not depth:
        longest_first = sorted(texts, key=lambda text: (-len(text), text))
        return "|".join(map(re.escape, longest_first))
    groups: dict[str, list[str]] = defaultdict(list)
    for text in sorted(texts):
        groups[text[:1]].append(text[1:])
    ends = groups.pop("", None) is not None
    parts = [f"{re.escape(first)}(?:{_format_branches(rest, depth - 1)})" for first, rest in groups.items()]
    return f"(?:{'|'.join(parts)})?" if ends else "|".join(parts)


def _find_any(search: Callable, value: Any) -> bool:
    """Whether `search` finds something in a string in a value of plain JSON types, keys included."""
    return any(map(search, _iterate_strings(value)))


def _iterate_strings(value: Any) -> Iterator[str]:
    """The strings in a value of plain JSON types, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.items() if isinstance(value, dict) else value:
            yield from _iterate_strings(item)


def _may_hold_tags(message: dict, path: str) -> bool:
    return message["role"] in TRAINED_ROLES and path.partition(".")[0] in ("content", *REASONING_FIELDS)


def _replace_tokens(
    given: TemplateInput, tokens: Collection[str], tags: Collection[str], kept: str = ""
) -> TemplateInput:
    """The same with each text of a token in its data, but for an answer's tags, replaced by as many letters.

    The characters `kept` of a token stay.
    """

    def write_letters(match: re.Match) -> str:
        return "".join(each if each in kept else "y" if each == "x" else "x" for each in match[0])

    def replace(value: Any, pattern: re.Pattern) -> Any:
        if isinstance(value, str):
            return pattern.sub(write_letters, str.__str__(value))
        if isinstance(value, dict):
            return {replace(key, pattern): replace(item, pattern) for key, item in value.items()}
        return [replace(item, pattern) for item in value] if isinstance(value, (list, tuple)) else value

    every, untagged = _compile_tokens(tokens), _compile_tokens(set(tokens) - set(tags))
    messages = [
        {
            key: NO_ROLE.sub("x", value)
            if key == "role"
            else replace(value, untagged if _may_hold_tags(message, key) else every)
            for key, value in message.items()
        }
        for message in given.messages
    ]
    kwargs = {
        name: value if name.endswith("_token") else replace(value, every)
        for name, value in (given.kwargs or {}).items()
    }
    return given._replace(messages=messages, tools=replace(given.tools, every), kwargs=kwargs)
