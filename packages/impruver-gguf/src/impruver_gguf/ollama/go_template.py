"""A chat template in Go's language, for Ollama, where that can say exactly what the Jinja one does.

Ollama takes the Jinja template in a GGUF, but for one that is within a hundred edits of a template that it knows and
renders no tools: that one's Go form stands in, with that one's tokens and without a default system prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from impruver_core.chat_template.analysis.analyzer import analyze_template
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.errors import RefusedError

DAY = re.compile(r"\b(strftime_now|date_string)\b")  # what they render is another text tomorrow


ROLES = ("system", "user", "assistant")


TEXTS = ("one text", "  blanks\n\naround ", "<think>\nwhy\n</think>\n\nan answer", 'quotes " \\n {{ .System }} {% x %}')


@dataclass
class Pieces:
    """What stands before and after each role's text, before a chat without a system prompt, and before an answer."""

    around: dict[str, tuple[str, str]]
    unprompted: str
    answer: str

    def rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
        """What the Go template makes of a chat."""
        parts = ["" if any(message["role"] == "system" for message in messages) else self.unprompted]
        for message in messages:
            before, after = self.around[message["role"]]
            parts.append(before + message["content"] + after)
        return "".join(parts) + self.answer


CHATML = Pieces({role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ROLES}, "", "<|im_start|>assistant\n")


def go_template(template: str, named: Mapping[str, object], bos_added: str | None) -> str | None:
    """`template` in Go where Ollama needs it; None where its own way is right, or where Go can't say the same.

    `named`: special tokens as the template reads them; `bos_added`: the BOS, where llama.cpp puts it there itself.
    """
    if DAY.search(template):
        return None
    texts = [text for value in named.values() for text in (value if isinstance(value, list) else [value])]
    if analyze_template(template, named, [text for text in texts if text], True).renders_tools:
        return None

    def rendering(messages: Sequence[dict[str, str]], prompt: bool = True) -> str:
        text = render_template(template, messages, add_generation_prompt=prompt, variables=named)
        return str.__str__(text).removeprefix(bos_added or "")

    try:
        pieces = _pieces(rendering)
        if pieces is None or pieces == CHATML:
            return None
        exact = all(pieces.rendered(chat) == rendering(chat) for chat in _chats())
    except RefusedError:
        return None
    return _in_go(pieces) if exact else None


def _chats() -> list[list[dict[str, str]]]:
    """Chats of every length and kind that Ollama sends, with texts that templates treat in ways of their own."""
    shapes = ["user", "system user", "user assistant user", "system user assistant user assistant user"]
    return [
        [{"role": role, "content": TEXTS[(at + start) % len(TEXTS)]} for at, role in enumerate(shape.split())]
        for shape in shapes
        for start in range(len(TEXTS))
    ]


def _pieces(rendering) -> Pieces | None:
    """The literals of a template, taken from renderings of more and more messages; None where they do not add up."""

    def between(*roles: str, prompt: bool = False) -> list[str] | None:
        marks = [f"\ue000{at}\ue001" for at in range(len(roles))]
        text = rendering([{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)], prompt)
        found = []
        for mark in marks:
            piece, there, text = text.partition(mark)
            if not there:
                return None
            found.append(piece)
        return [*found, text]

    layouts = [between("user"), between("user", "assistant"), between("user", "assistant", "user")]
    layouts += [between("system", "user"), between("user", prompt=True)]
    if any(layout is None for layout in layouts):
        return None
    (head, user_end), (_, answer, answer_end), (_, _, again, _), (system, then, _), (_, asked) = layouts
    user = again.removeprefix(answer_end)
    around = {
        "user": (user, user_end),
        "assistant": (answer.removeprefix(user_end), answer_end),
        "system": (system, then.removesuffix(user)),
    }
    return Pieces(around, head.removesuffix(user), asked.removeprefix(user_end))


def _in_go(pieces: Pieces) -> str:
    branches = [
        f'{{{{ {"if" if role == "system" else "else if"} eq .Role "{role}" }}}}'
        f"{_literal(before)}{{{{ .Content }}}}{_literal(after)}"
        for role in ROLES
        for before, after in [pieces.around[role]]
    ]
    unprompted = f"{{{{ if not .System }}}}{_literal(pieces.unprompted)}{{{{ end }}}}" if pieces.unprompted else ""
    return (
        f"{unprompted}{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{_literal(pieces.answer)}"
    )


def _literal(text: str) -> str:
    """`text` with braces that would open an action, alone or with what follows, as texts of their own."""
    return re.sub(r"\{{2,}|\{\Z", lambda braces: f'{{{{ "{braces[0]}" }}}}', text)
