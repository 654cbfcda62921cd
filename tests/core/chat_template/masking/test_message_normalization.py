"""What a row's messages become before they are rendered; what would lose something of them is refused."""

import json

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


def read_arguments(message: dict, as_text: bool = False):
    fmt = TemplateFormat(SpecialTokens([]), renders_calls=True, arguments_as_text=as_text)
    (call,) = normalize_messages(said({"role": "assistant", **message}), fmt)[1]["tool_calls"]
    assert call["function"].keys() - {"description", "args", "thought_signature"} == {"name", "arguments"}
    return call["function"]["arguments"]


CITY = {"city": "Paris"}


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ({"function": {"name": "f"}, "arguments": CITY}, CITY),
        ({"function": {"name": "f", "arguments": {}}, "parameters": json.dumps(CITY)}, CITY),
        ({"function": {"name": "f", "parameters": {"n": 5}, "arguments": None}}, {"n": 5}),
        ({"function": {"name": "f", "arguments": CITY}, "arguments": json.dumps(CITY)}, CITY),
        ({"function": None, "name": "f", "parameters": CITY}, CITY),
        ({"name": "f", "arguments": "null"}, {}),
        ({"name": "f", "arguments": json.dumps(json.dumps(CITY))}, CITY),
        ({"name": "f", "arguments": "[]", "args": None, "description": "says"}, []),
        ({"name": "f", "arguments": {}, "thought_signature": "abc"}, {}),
    ],
)
def test_the_arguments_of_a_call_are_found_wherever_they_stand(call, arguments):
    assert read_arguments({"tool_calls": [call]}) == arguments
    assert json.loads(read_arguments({"tool_calls": [call]}, as_text=True)) == arguments
    for form in (call, [call], json.dumps(call)):
        assert read_arguments({"function_call": form}) == arguments
    assert read_arguments({"role": "function_call", "content": json.dumps(call)}) == arguments


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ({"name": "f", "args": CITY}, "the call f of message 1 has args, which is not read"),
        ({"name": "f", "arguments": None, "input": "Paris"}, "has input, which is not read"),
        ({"name": "f", "arguments": {}, "params": '{"a": 1}'}, "has params, which is not read"),
        ({"function": {"name": "f", "arguments": "{}"}, "kwargs": [1]}, "has kwargs, which is not read"),
        ({"function": {"name": "f", "arguments": CITY}, "arguments": {"a": 1}}, "arguments that differ"),
        ({"function": {"name": "f", "arguments": CITY, "weight": 0}}, "has weight: flags of training belong to"),
        ({"name": "f", "arguments": CITY, "noLoss": True}, "has noLoss: flags of training belong to the message"),
    ],
)
def test_what_would_be_lost_of_a_call_is_refused(call, told):
    for message in ({"tool_calls": [call]}, {"function_call": call}, {"function_call": json.dumps([call])}):
        with pytest.raises(RefusedError, match=told) as caught:
            read_arguments(message)
        assert caught.value.reason == "bad_row"
    with pytest.raises(RefusedError, match="function_call in message 1 is not"):
        read_arguments({"role": "function_call", "content": "[]"})


@pytest.mark.parametrize(
    "key",
    ["lossMask", "computeLoss", "excludeFromLoss", "lossWeight", "is_target", "no_loss", "ignore", "label"],
)
@pytest.mark.parametrize("value", [False, True])
def test_flags_in_other_names_are_refused(key, value):
    with pytest.raises(RefusedError, match=f"{key} of message 1 is no flag that is known") as caught:
        normalize_messages(said({"role": "assistant", "content": "a", key: value}), TemplateFormat(SpecialTokens([])))
    assert caught.value.reason == "bad_row"


@pytest.mark.parametrize(
    "fields",
    [
        {"learner_id": 7, "train_number": 12, "weight_kg": 80.5, "masked_content": True, "loss_type": 1},
        {"trainer": True, "learner": {"age": 9}, "target_language": "de", "target": "x", "label": 1, "lossless": True},
        {"is": True, "in_response_to": 3, "message_count": 5, "mask": "x", "train_detail": [], "ignore_case": True},
    ],
)
def test_keys_that_only_sound_like_flags_are_none(fields):
    message = {"role": "assistant", "content": "a", **fields}
    assert normalize_messages(said(message), TemplateFormat(SpecialTokens([])))[1] == message


def text_part(text: str, **more) -> dict:
    return {"type": "text", "text": text, **more}


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (text_part("bad", weight=0), "a part of message 1 has weight: flags of training belong to the message"),
        (text_part("bad", train=False), "a part of message 1 has train"),
        ({"text": "bad", "excludeFromLoss": True}, "a part of message 1 has excludeFromLoss"),
        (text_part("look", image="x.png"), "message 1 has a part of kind image: only text"),
        (text_part("look", image_url={"url": "x"}), "message 1 has a part of kind image_url: only text"),
        ({"type": "input_audio", "data": "x"}, "message 1 has a part of kind input_audio: only text"),
        ({"type": "inputFile", "id": "x"}, "message 1 has a part of kind inputfile: only text"),
        ({"type": "profile", "profile": "x"}, "message 1 has a part of kind profile, which this template does not"),
        ({"type": "tool_use", "input": {}}, "message 1 has a part of kind tool_use, which this template does not"),
        ({"type": "thinking", "thinking": "x"}, "a part of kind thinking, which this template does not take"),
    ],
)
def test_parts_that_are_not_only_text_are_refused(part, told):
    with pytest.raises(RefusedError, match=told) as caught:
        normalize_messages(said({"role": "assistant", "content": [part]}), TemplateFormat(SpecialTokens([])))
    assert caught.value.reason == "bad_row"


def test_text_parts_in_other_names_are_text():
    kinds = ({"type": "input_text"}, {"type": "output_text", "annotations": []}, {"cache_control": {"type": "short"}})
    content = [{"text": text, **kind} for text, kind in zip("abc", kinds, strict=True)]
    for takes, expected in ((False, "abc"), (True, ["text", "text", None])):
        fmt = TemplateFormat(SpecialTokens([]), probe_parts=lambda role, count, takes=takes: takes)
        prepared = normalize_messages(said({"role": "assistant", "content": content}), fmt)[1]["content"]
        assert prepared == expected or [part.get("type") for part in prepared] == expected
