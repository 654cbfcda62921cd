"""A command of our own: renders the template in template.jinja for a conversation, with core's renderer alone."""

from collections.abc import Sequence
from pathlib import Path

CALL = {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": {"at": "sky", "times": 3}}}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "looks", "parameters": {"type": "object"}}}]
MESSAGES = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "What is red?"},
    {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "content": "blue", "name": "look", "tool_call_id": "call00001"},
    {"role": "assistant", "content": [{"type": "text", "text": "Blue."}]},
]
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "date_string": "2026-01-02", "enable_thinking": True}


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    from impruver_core.chat_template.rendering.renderer import render_template
    from impruver_core.chat_template.rendering.traced_string import trace_messages
    from impruver_core.cli.console import print_result
    from impruver_core.cli.runner import run_guarded

    def work() -> None:
        template = Path("template.jinja").read_text(encoding="utf-8")
        for messages in (MESSAGES, trace_messages(MESSAGES[:3])):
            text = render_template(template, messages, TOOLS, add_generation_prompt=True, variables=VARIABLES)
            print_result(str(len(text)))

    return run_guarded("render", work)
