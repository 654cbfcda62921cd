"""Translate a chat template to Go's language, for Ollama, where that can say exactly what the Jinja one does.

Ollama takes the Jinja template in a GGUF, but for one that is within a hundred edits of a template that it knows and
renders no tools: that one's Go form stands in, with that one's tokens and without a default system prompt.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from impruver_core.chat_template.analysis.analyzer import analyze_template
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.errors import RefusedError

DATE_VARIABLES = re.compile(r"\b(strftime_now|date_string)\b")  # what they render is another text tomorrow
ROLES = ("system", "user", "assistant")
TRIAL_ROLES = ("user", "system user", "user assistant user", "system user assistant user assistant user")
TRIAL_TEXTS = (
    *("one text", "  blanks\n\naround ", "<think>\nwhy\n</think>\n\nan answer"),
    'quotes " \\n {{ .System }} {% x %}',
)
Render = Callable[[Sequence[Mapping[str, str]], bool], str]  # messages, add_generation_prompt


@dataclass
class RoleLiterals:
    """What a template puts around the texts of a chat."""

    around: dict[str, tuple[str, str]]  # role → what stands before and after each of its texts
    unprompted: str  # what stands before a chat without a system prompt
    answer: str  # the generation prompt

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """What the Go template makes of a chat."""
        parts = ["" if any(message["role"] == "system" for message in messages) else self.unprompted]
        for message in messages:
            before, after = self.around[message["role"]]
            parts.append(before + message["content"] + after)
        return "".join(parts) + self.answer

    def format_go(self) -> str:
        """The Go template."""
        branches = [
            f'{{{{ {"if" if role == "system" else "else if"} eq .Role "{role}" }}}}'
            f"{_escape_braces(before)}{{{{ .Content }}}}{_escape_braces(after)}"
            for role in ROLES
            for before, after in [self.around[role]]
        ]
        start = f"{{{{ if not .System }}}}{_escape_braces(self.unprompted)}{{{{ end }}}}" if self.unprompted else ""
        messages = f"{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}"
        return f"{start}{messages}{_escape_braces(self.answer)}"


CHATML = RoleLiterals(
    {role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ROLES}, "", "<|im_start|>assistant\n"
)


def translate_to_go(template: str, named: Mapping[str, object], bos_added: str | None) -> str | None:
    """Translate `template` where Ollama needs it; None where its own way is right, or where Go can't say the same.

    Args:
        named: Special tokens as the template reads them.
        bos_added: The BOS, where llama.cpp puts it there itself.
    """
    if DATE_VARIABLES.search(template):
        return None
    texts = [text for value in named.values() for text in (value if isinstance(value, list) else [value])]
    if analyze_template(template, named, [text for text in texts if text], True).renders_tools:
        return None

    def render(messages: Sequence[Mapping[str, str]], prompt: bool = True) -> str:
        text = render_template(template, messages, add_generation_prompt=prompt, variables=named)
        return str.__str__(text).removeprefix(bos_added or "")

    try:
        literals = _find_literals(render)
        if literals is None or literals == CHATML:
            return None
        for roles in TRIAL_ROLES:  # every kind of chat that Ollama sends
            for start in range(len(TRIAL_TEXTS)):
                texts = islice(cycle(TRIAL_TEXTS), start, None)
                chat = [{"role": role, "content": text} for role, text in zip(roles.split(), texts, strict=False)]
                if literals.render(chat) != render(chat):
                    return None
    except RefusedError:
        return None
    return literals.format_go()


def _find_literals(render: Render) -> RoleLiterals | None:
    """Take a template's literals from renderings of more and more messages; None where they do not add up."""

    def split_rendering(*roles: str, prompt: bool = False) -> list[str] | None:
        """Render a chat of these roles and cut it at the texts: what stands before each, and after the last."""
        marks = [f"\ue000{position}\ue001" for position in range(len(roles))]
        text = render([{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)], prompt)
        pieces = []
        for mark in marks:
            piece, separator, text = text.partition(mark)
            if not separator:
                return None
            pieces.append(piece)
        return [*pieces, text]

    splits = [split_rendering("user"), split_rendering("user", "assistant")]
    splits += [split_rendering("user", "assistant", "user"), split_rendering("system", "user")]
    splits += [split_rendering("user", prompt=True)]
    if any(split is None for split in splits):
        return None
    (head, user_end), (_, answer, answer_end), (_, _, again, _), (system, then, _), (_, asked) = splits
    user = again.removeprefix(answer_end)
    around = {
        "user": (user, user_end),
        "assistant": (answer.removeprefix(user_end), answer_end),
        "system": (system, then.removesuffix(user)),
    }
    return RoleLiterals(around, head.removesuffix(user), asked.removeprefix(user_end))


def _escape_braces(text: str) -> str:
    """`text` with braces that would open an action, alone or with what follows, as texts of their own."""
    return re.sub(r"\{{2,}|\{\Z", lambda braces: f'{{{{ "{braces[0]}" }}}}', text)
