"""Arguments of the chat template that are set during a conversation: any by its name, reasoning by its switch."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from impruver_core.errors import ImpruverError, RefusedError
from impruver_core.recipe.yaml_document import Document, parse_text

KEY = "chat_template_kwargs"
PROBE = [{"role": "user", "content": "hi"}]


class ThinkingSwitch(NamedTuple):
    """An argument that switches reasoning on and off, with its value for either."""

    name: str
    on: Any
    off: Any


SWITCHES = (  # as the chat templates of the known models have it, the most usual first
    ThinkingSwitch("enable_thinking", True, False),
    ThinkingSwitch("thinking", True, False),
    ThinkingSwitch("think", True, False),
    ThinkingSwitch("thinking_mode", "on", "off"),
    ThinkingSwitch("thinking_mode", "enabled", "disabled"),
    ThinkingSwitch("thinking_mode", "thinking", "chat"),
    ThinkingSwitch("reasoning_mode", "on", "off"),
    ThinkingSwitch("reasoning", True, False),
    ThinkingSwitch("skip_thinking", False, True),
    ThinkingSwitch("skip_think", False, True),
    ThinkingSwitch("skip_reasoning", False, True),
)


def find_thinking_switch(names: Collection[str], encode: Callable[..., list[int]]) -> ThinkingSwitch | None:
    """Find the switch of a template that reads `names`: one whose two values make different prompts."""

    def encode_with(switch: ThinkingSwitch, value: Any) -> list[int] | None:
        try:
            return encode(PROBE, None, {switch.name: value})
        except RefusedError:
            return None

    for switch in SWITCHES:
        if switch.name in names:
            on, off = encode_with(switch, switch.on), encode_with(switch, switch.off)
            if on is not None and off is not None and on != off:
                return switch
    return None


def set_argument(arguments: Mapping[str, Any], name: str, text: str) -> dict[str, Any]:
    """The arguments with one set to a YAML value, all of them for the name of their key; null takes it back."""
    value = _parse_value(name, text)
    if name == KEY:
        if value is not None and not (isinstance(value, dict) and all(isinstance(key, str) for key in value)):
            raise ImpruverError(f"{KEY}: a mapping of names is wanted, as in {{enable_thinking: false}}")
        return dict(value or {})
    name = name.removeprefix(f"{KEY}.")
    if not name:
        raise ImpruverError(f"{KEY}.: an argument's name is wanted, as in {KEY}.enable_thinking")
    others = {key: each for key, each in arguments.items() if key != name}
    return others if value is None else others | {name: value}


def format_arguments(arguments: Mapping[str, Any]) -> str:
    """Format arguments for a person: `enable_thinking false`."""
    values = (str(value).lower() if isinstance(value, bool) else str(value) for value in arguments.values())
    return ", ".join(f"{name} {value}" for name, value in zip(arguments, values, strict=True)) or "none"


def _parse_value(name: str, text: str) -> Any:
    document = Document(name)
    if not text:
        raise ImpruverError(f"{name}: give a value, too, as in: /set {name} false (null takes it back)")
    parse_text(text, document)
    if document.faults:
        raise ImpruverError(f"{name}: {text[:40]!r} is no value in YAML; a text may stand in quotes")
    return document.data
