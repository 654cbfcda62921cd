"""Renders probe conversations, and finds where their texts stand."""

from dataclasses import dataclass

from impruver_core.errors import RefusedError
from impruver_core.templating.probe_chats import SYSTEM, probe_schema
from impruver_core.templating.render import render
from impruver_core.templating.spans import places_of
from impruver_core.templating.traced import runs_of, trace_messages


@dataclass(frozen=True)
class Layout:
    """A rendered text; `spans[i]` is where the texts of message i stand in it."""

    text: str
    spans: list[tuple[int, int]]


class Probe:
    """Renders probe conversations of one template; None for those that it refuses or renders in part."""

    def __init__(self, template, variables, specials, with_tools):
        self.template, self.variables, self.specials = template, variables, specials
        self.tools = [probe_schema()] if with_tools else None

    def __call__(self, *messages, prompt=False) -> Layout | None:
        for opening in ((), (SYSTEM,)):  # some templates want a system message
            traced = trace_messages([*opening, *messages])
            try:
                text = render(self.template, traced, self.tools, add_generation_prompt=prompt, variables=self.variables)
            except RefusedError:
                continue
            places = places_of(runs_of(text), len(text))
            if all(number in places for number in range(len(opening), len(traced))):
                spans = [(places[number].start, places[number].end) for number in range(len(opening), len(traced))]
                return Layout(str.__str__(text), spans)
        return None
