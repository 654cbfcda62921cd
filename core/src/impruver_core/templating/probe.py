"""Renders probe conversations, and finds where their texts stand."""

from collections.abc import Mapping
from dataclasses import dataclass

from impruver_core.errors import RefusedError
from impruver_core.templating.probe_chats import SYSTEM, probe_schema
from impruver_core.templating.render import render
from impruver_core.templating.shape import first_runs
from impruver_core.templating.traced import runs_of, trace


@dataclass(frozen=True)
class Layout:
    """A rendered text; `spans[i]` is where the texts of message i stand in it, None where none was rendered."""

    text: str
    spans: list[tuple[int, int] | None]


def lay_out(template: str, messages: list[dict], tools, prompt: bool, variables: Mapping) -> Layout:
    """Renders `messages` and finds where the texts of each stand; RefusedError where the template refuses."""
    traced = [
        {key: value if key == "role" else trace(value, number, key) for key, value in message.items()}
        for number, message in enumerate(messages)
    ]
    text = render(template, traced, tools, add_generation_prompt=prompt, variables=variables)
    spans: list = [None] * len(messages)
    for _, (start, end, source, _) in first_runs(runs_of(text)):
        span = spans[source.message]
        if span is None or span[0] == span[1]:
            spans[source.message] = start, end
        elif start < end:  # an empty text beside others says nothing
            spans[source.message] = min(span[0], start), max(span[1], end)
    return Layout(str.__str__(text), spans)


class Probe:
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
                return Layout(layout.text, spans)
        return None

    def opening(self, text: str) -> str | None:
        """The special token that a conversation starts with, behind BOS."""
        text = text.removeprefix(self.variables.get("bos_token") or "")
        return self.specials.first(text)
