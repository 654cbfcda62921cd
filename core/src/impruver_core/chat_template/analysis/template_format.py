"""What is known of a chat template: what it puts around the texts of a conversation.

A conversation is header, text and end of turn, over and over. Between the last character of one text and the first of
the next stands what the template wrote itself: the rest of one turn and the header of the next. A `TemplateFormat` says
where the one ends and the other begins.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class SpecialTokens:
    """The special tokens of a tokenizer: what no border may run through, and where turns end."""

    def __init__(self, tokens: Iterable[str]):
        self.tokens = tuple(sorted(set(tokens), key=lambda token: (-len(token), token)))
        self._by_pair: dict[str, list[str]] = defaultdict(list)  # two characters side by side → tokens with them
        for token in self.tokens:
            for pair in {token[i : i + 2] for i in range(len(token) - 1)}:
                self._by_pair[pair].append(token)
        self._cut: dict[str, str] = {}

    def find_token_across(self, text: str, position: int) -> tuple[int, int]:
        """Start and end of the special token that stands across `position`; (position, position) without one."""
        for token in self._by_pair.get(text[position - 1 : position + 1], ()) if position else ():
            start = text.find(token, max(0, position - len(token) + 1), position + len(token) - 1)
            if 0 <= start < position < start + len(token):
                return start, start + len(token)
        return position, position

    def compute_shared_length(self, one: str, other: str) -> int:
        """The length of the longest common prefix that cuts no special token of either text in two."""
        if one.startswith(other):  # as most do
            length = len(other)
        else:
            pairs = enumerate(zip(one, other, strict=False))
            length = next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
        return min(self.find_token_across(text, length)[0] for text in (one, other))

    def cut_after_last_token(self, literal: str) -> str:
        """`literal` through its last special token, or, without one, less its trailing blanks."""
        if literal not in self._cut:
            ends = [literal.rfind(token) + len(token) for token in self.tokens if token in literal]
            self._cut[literal] = literal[: max(ends)] if ends else literal.rstrip()
        return self._cut[literal]

    def find_suffix(self, literal: str) -> str | None:
        """The special token that `literal` ends with, the longest of several."""
        return next((token for token in self.tokens if literal.endswith(token)), None)

    def find_prefix(self, text: str) -> str | None:
        """The special token that `text` starts with, the longest of several."""
        return next((token for token in self.tokens if text.startswith(token)), None)

    def has_any(self, text: str) -> bool:
        """Whether a special token is in `text`."""
        return any(token in text for token in self.tokens)

    def remove_all(self, text: str) -> str:
        """`text` with a blank in place of each special token."""
        for token in self.tokens:
            text = text.replace(token, " ")
        return text


@dataclass(frozen=True)
class TurnBoundary:
    """What stands between a text and the answer that follows: `tail` ends the one's turn, `prompt` opens the other's.

    `shared` is how much of the generation prompt every probed answer's turn starts with; `header` is what stands
    before the answer in a template without a generation prompt.
    """

    tail: str
    prompt: str
    shared: str
    header: str


class LastEnding(NamedTuple):
    """What ends the last turn of a conversation, and whether in a special token."""

    literal: str
    closed: bool


@dataclass
class TemplateFormat:
    """What is known of a template for given arguments and special tokens."""

    specials: SpecialTokens
    eos: str | None = None
    boundaries: dict[str, list[TurnBoundary]] = field(default_factory=dict)  # by the role of the text before
    ends: dict[tuple[str, bool], str] = field(default_factory=dict)  # ("answer" or "calls", last turn?) → end of turn
    trailing: list[str] = field(default_factory=list)  # headers: the user's, and a prompt that is always there
    stops: list[str] = field(default_factory=list)  # the end-of-turn tokens
    renders_calls: bool = False  # as `tool_calls` of an assistant's message
    renders_function_roles: bool = False  # calls and results as roles of their own, as it may any role
    arguments_as_text: bool = False
    ids_hold_names: bool = False  # a call is rendered by its id, which has to hold the function's name
    result_header: str = ""  # what stands between a call's turn and the text of its result
    repeated: str = ""  # what stands within a turn, between reasoning and answer and between two calls
    renders_tools: bool = False
    renders_developer: bool = False
    # Whether a role's content may be a list of one text part, or of several (2).
    probe_parts: Callable[[str, int], bool] = lambda role, count: False
    _last_endings: dict[tuple[str, str], LastEnding] = field(default_factory=dict)

    @property
    def ends_calls(self) -> bool:
        """Whether a token ends a turn of calls that a result follows, or hands over to it."""
        end = self.ends.get(("calls", False), "")
        return any(stop in end for stop in self.stops)

    def set_stops(self, stops: Iterable[str]) -> None:
        """Sets the end-of-turn tokens."""
        self.stops = list(dict.fromkeys(stops))
        self._last_endings.clear()

    def find_last_ending(self, closing: str, kind: str) -> LastEnding:
        """What ends the last turn ("answer" or "calls"), of all that stands behind its text.

        What is special to the last turn ends it (gpt-oss: <|return|>); a prompt for the next turn does not.
        """
        key = (closing, kind)
        if key not in self._last_endings:
            literal = self.specials.cut_after_last_token(closing)
            middle = self.ends.get((kind, False))
            if middle is not None and not closing.startswith(middle):  # behind arguments of another form
                middle = self._cut_after_stop(closing)
            if middle is not None:
                rest = closing[len(middle) :].strip()
                prompted = rest not in ("", self.eos) and any(text.rstrip().endswith(rest) for text in self.trailing)
                if prompted or not self.specials.has_any(rest) or (kind == "calls" and self.opens_turn(rest)):
                    literal = middle
            self._last_endings[key] = LastEnding(literal, self.specials.find_suffix(literal) is not None)
        return self._last_endings[key]

    def _cut_after_stop(self, literal: str) -> str | None:
        """`literal` through the first end-of-turn token in it."""
        ends = [literal.index(stop) + len(stop) for stop in self.stops if stop in literal]
        return literal[: min(ends)] if ends else None

    def opens_turn(self, literal: str) -> bool:
        """Whether a generation prompt's first token is in what stands behind an end of turn."""
        prompts = (boundary.prompt.lstrip() for boundaries in self.boundaries.values() for boundary in boundaries)
        return any(token in literal for prompt in prompts if (token := self.specials.find_prefix(prompt)))
