"""What a chat template puts around the texts of a conversation, found once by probing it.

A conversation is header, text and end of turn, over and over. Between the last character of one text and the first of
the next stands what the template wrote itself: the rest of one turn and the head of the next. A `Shape` tells where the
one ends and the other begins.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from impruver_core.templating.literals import Specials
from impruver_core.templating.traced import Run, Source


@dataclass(frozen=True)
class Junction:
    """What stands between a text and the answer that follows: `tail` ends the one's turn, `prompt` opens the other's.

    `shared` is how much of the generation prompt every probed answer's turn starts with; `header` is what stands
    before the answer in a template without a generation prompt.
    """

    tail: str
    prompt: str
    shared: str
    header: str


@dataclass
class Shape:
    """What is known of a template for given arguments and special tokens."""

    specials: Specials
    eos: str | None = None
    junctions: dict[str, list[Junction]] = field(default_factory=dict)  # by the role of the text before
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
            literal = self.specials.ended(closing)
            middle = self.ends.get((kind, False))
            if middle is not None and closing.startswith(middle):
                rest = closing[len(middle) :].strip()
                prompted = rest not in ("", self.eos) and any(
                    trailing.rstrip().endswith(rest) for trailing in self.trailing
                )
                literal = middle if prompted or not self.specials.any_in(rest) else literal
            self._last_ends[key] = literal, self.specials.last(literal) is not None
        return self._last_ends[key]


def shape_of(template: str, variables: Mapping, specials: Iterable[str], with_tools: bool = False) -> Shape:
    """The shape of `template` with these variables and special tokens; probed once for the same arguments."""
    key = json.dumps(dict(variables), sort_keys=True, ensure_ascii=False, default=str)
    return _shape_of(template, key, tuple(specials), with_tools)


@lru_cache(maxsize=256)
def _shape_of(template: str, variables: str, specials: tuple[str, ...], with_tools: bool) -> Shape:
    from impruver_core.templating.calls import probe_calls
    from impruver_core.templating.ends import probe_ends
    from impruver_core.templating.junctions import probe_junctions
    from impruver_core.templating.probe import Probe

    named = json.loads(variables)
    shape = Shape(Specials(specials), named.get("eos_token"))
    probe = Probe(template, named, shape.specials, with_tools)
    probe_calls(probe, shape)
    probe_junctions(probe, shape)
    probe_ends(probe, shape)
    return shape


def reach(run: Run) -> tuple[int, int]:
    """Which characters of its source a run holds."""
    start, end, source, offset = run
    return (offset, offset + end - start) if offset >= 0 else (0, len(source.text))


def first_runs(runs: Iterable[Run]) -> Iterator[tuple[int, Run]]:
    """(index, run) of the runs of a rendered text, but for what repeats characters that were rendered before."""
    seen: dict[Source, list[tuple[int, int]]] = {}
    for index, run in enumerate(runs):
        low, high = reach(run)
        covered = seen.setdefault(run[2], [])
        if covered and low < covered[-1][1] and any(low < b and a < high for a, b in covered):
            continue
        if covered and low == high:
            continue
        covered.append((low, high))
        yield index, run
