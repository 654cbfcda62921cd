"""What a chat template puts around the texts of a conversation, found once by probing it.

A conversation is header, text and end of turn, over and over. Between the last character of one text and the first of
the next stands what the template wrote itself: the rest of one turn and the head of the next. A `Shape` tells where the
one ends and the other begins.
"""

from dataclasses import dataclass, field

from impruver_core.chat_template.analysis.special_tokens import SpecialTokens


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


@dataclass
class TemplateFormat:
    """What is known of a template for given arguments and special tokens."""

    specials: SpecialTokens
    eos: str | None = None
    junctions: dict[str, list[TurnBoundary]] = field(default_factory=dict)  # by the role of the text before
    ends: dict[tuple[str, bool], str] = field(default_factory=dict)  # ("answer" or "calls", last turn?) → end of turn
    trailing: list[str] = field(default_factory=list)  # headers: the user's, and a prompt that is always there
    stops: list[str] = field(default_factory=list)  # the end-of-turn tokens
    renders_function_roles: bool = False
    renders_calls: bool = False
    arguments_as_text: bool = False
    renders_tools: bool = False
    _last_ends: dict[tuple[str, str], tuple[str, bool]] = field(default_factory=dict)

    def last_end(self, closing: str, kind: str) -> tuple[str, bool]:
        """(what ends the last turn of all that stands behind it, whether in a special token).

        What is special to the last turn ends it (gpt-oss: <|return|>); a prompt for the next turn does not.
        """
        key = (closing, kind)
        if key not in self._last_ends:
            literal = self.specials.through_last_token(closing)
            middle = self.ends.get((kind, False))
            if middle is not None and closing.startswith(middle):
                rest = closing[len(middle) :].strip()
                prompted = rest not in ("", self.eos) and any(
                    trailing.rstrip().endswith(rest) for trailing in self.trailing
                )
                literal = middle if prompted or not self.specials.any_in(rest) else literal
            self._last_ends[key] = literal, self.specials.last(literal) is not None
        return self._last_ends[key]
