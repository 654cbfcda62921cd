"""Rendering equals `apply_chat_template`, on every stock template."""

import pytest
from impruver_core.chat_template.analysis.prober import build_tool_schema
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.chat_template.rendering.traced_string import trace_messages
from impruver_core.errors import ImpruverError, RefusedError
from support.messages import assistant, system, user
from support.tokenizers import STOCK_NAMES, stock_template, tokenizer_for

CALL = {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": {"at": "Paris", "days": 2}}}
NESTED = {"at": ["<a> & 'b'", {"deep": "c", "n": 1}], "days": 2.5, "ok": True, "none": None, "text": ""}
CHATS = [
    ([user(" What?\n"), assistant("Это Париж."), user("And?"), assistant("")], None, False),
    ([system("Be brief."), user("What?")], None, True),
    (
        [user("a"), assistant("", tool_calls=[CALL]), {"role": "tool", "content": "1", "name": "look"}],
        [build_tool_schema()],
        True,
    ),
    (
        [
            user("a"),
            assistant(
                "Let me see.",
                tool_calls=[
                    CALL,
                    {"id": "call00002", "type": "function", "function": {"name": "n", "arguments": NESTED}},
                ],
            ),
            {"role": "tool", "content": "1", "name": "look", "tool_call_id": "call00001"},
            {"role": "tool", "content": "2", "name": "n", "tool_call_id": "call00002"},
            assistant("b"),
        ],
        [build_tool_schema()],
        False,
    ),
    (
        [user("a"), assistant("b", reasoning_content="because"), user("c"), assistant("<think>\nd\n</think>\n\ne")],
        None,
        False,
    ),
]


@pytest.mark.parametrize("shard", range(8))
def test_render_equals_apply_chat_template(shard):
    refused = 0
    for name in STOCK_NAMES[shard::8]:
        template = stock_template(name)
        tokenizer = tokenizer_for(template)
        for messages, tools, prompt in CHATS:
            options = {"tools": tools, "add_generation_prompt": prompt}
            try:
                expected = tokenizer.apply_chat_template(messages, tokenize=False, **options)
            except Exception:  # what the template refuses there, it must refuse here
                refused += 1
                with pytest.raises(RefusedError):
                    _render(template, messages, tokenizer, **options)
                continue
            assert _render(template, messages, tokenizer, **options) == expected, name
            assert _render(template, trace_messages(messages), tokenizer, **options) == expected, name
    assert refused < len(STOCK_NAMES[shard::8])


def _render(template, messages, tokenizer, tools, add_generation_prompt):
    return render_template(
        template, messages, tools, add_generation_prompt=add_generation_prompt, variables=tokenizer.special_tokens_map
    )


def test_a_template_that_does_not_parse_names_the_line():
    with pytest.raises(ImpruverError, match="line 2"):
        render_template("{{ messages }}\n{% if %}", [user("x")])


def test_what_a_template_raises_comes_in_its_own_words():
    with pytest.raises(RefusedError, match="roles must alternate") as caught:
        render_template("{{ raise_exception('roles must alternate') }}", [user("x")])
    assert caught.value.reason == "template_refused"


@pytest.mark.parametrize(
    "attack", ["{{ messages.__class__.__mro__ }}", "{{ ''.__class__.__base__ }}", "{{ messages.append(1) }}"]
)
def test_templates_run_in_a_sandbox(attack):
    with pytest.raises(RefusedError, match="unsafe"):
        render_template(attack, [user("x")])


def test_a_date_is_what_the_row_says():
    template = "{{ strftime_now('%d %b %Y') }}"
    assert render_template(template, [user("x")], variables={"date_string": "2024-07-26"}) == "26 Jul 2024"
    assert render_template(template, [user("x")], variables={"date_string": "one fine day"}) == "one fine day"
