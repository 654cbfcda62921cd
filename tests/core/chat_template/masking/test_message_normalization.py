"""What a row's messages become before they are rendered; what would lose something of them is refused."""

import pytest
from impruver_core.chat_template.analysis.template_format import SpecialTokens, TemplateFormat
from impruver_core.chat_template.masking.message_normalization import normalize_messages
from impruver_core.errors import RefusedError

TWICE = {  # arguments, and the key that an object of them has twice
    '{"city": "Oslo", "city": "Bergen"}': "city",
    '{"a": {"b": [1, {"c": 1, "c": 1}]}}': "c",
    '{"a": 1, "\\u0061": 2}': "a",
    '[{"": 1, "": 2}]': "",
}


def said(message: dict) -> list[dict]:
    return [{"role": "user", "content": "q"}, message]


@pytest.mark.parametrize("arguments", TWICE)
def test_a_key_that_occurs_twice_in_the_arguments_of_a_call(arguments):
    """As an object one of them would be gone; as text nothing is lost."""
    fmt = TemplateFormat(SpecialTokens([]))
    call = {"function": {"name": "f", "arguments": arguments}}
    told = f'the key "{TWICE[arguments]}" occurs twice'
    with pytest.raises(RefusedError, match=f"arguments of a tool call of message 1: {told}"):
        normalize_messages(said({"role": "assistant", "tool_calls": [call]}), fmt)
    text = f'{{"name": "f", "arguments": {arguments}}}'
    with pytest.raises(RefusedError, match=f"function_call in message 1: {told}"):
        normalize_messages(said({"role": "function_call", "content": text}), fmt)
    as_text = TemplateFormat(SpecialTokens([]), arguments_as_text=True)
    messages = normalize_messages(said({"role": "assistant", "tool_calls": [call]}), as_text)
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == arguments


def test_equal_keys_of_different_objects_are_no_matter():
    arguments = '{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}'
    call = {"function": {"name": "f", "arguments": arguments}}
    messages = normalize_messages(said({"role": "assistant", "tool_calls": [call]}), TemplateFormat(SpecialTokens([])))
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}
