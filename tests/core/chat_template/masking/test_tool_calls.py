"""Tool calls and results in every form that data has them, on stock templates and on ones of other shapes."""

import json

import pytest
from impruver_core import RefusedError, encode_chat
from impruver_core.chat_template.masking.message_normalization import normalize_messages
from impruver_core.chat_template.selection import TemplateSelector
from support.messages import assistant, system, user
from support.tokenizers import CHATML, SMOLLM2_TEMPLATE, stock_template, target_runs, tokenizer_for

XML = (  # as Kimi-K3's: macros, and special tokens between words that are no prose
    '{% macro tag(name, attrs=[]) %}<|open|>{{ name }}{% for a in attrs %} {{ a[0] }}="{{ a[1] | string | '
    "replace('\"', '&quot;') }}\"{% endfor %}<|sep|>{% endmacro %}"
    "{% macro end(name) %}<|close|>{{ name }}<|sep|>{% endmacro %}"
    "{% for m in messages %}{{ tag('message', [('role', m.role), ('kind', 'turn of a conversation')]) }}"
    "{% if m.role == 'assistant' %}{{ tag('think') }}{{ end('think') }}{{ tag('response') }}{{ m.content }}"
    "{{ end('response') }}{% if m.tool_calls %}{{ tag('tools') }}{% for c in m.tool_calls %}"
    "{{ tag('call', [('tool', c.function.name), ('index', loop.index)]) }}"
    "{% for k, v in c.function.arguments.items() %}{{ tag('argument', [('key', k), ('type', 'of a value')]) }}"
    "{{ v if v is string else v | tojson }}{{ end('argument') }}{% endfor %}{{ end('call') }}{% endfor %}"
    "{{ end('tools') }}{% endif %}{% else %}{{ m.content }}{% endif %}{{ end('message') }}<|end_of_msg|>{% endfor %}"
    "{% if add_generation_prompt %}{{ tag('message', [('role', 'assistant'), ('kind', 'turn of a conversation')]) }}"
    "{{ tag('think') }}{% endif %}"
)
CALLS = (  # what writes a call stands in place of CALL
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}:CALL</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDLESS = CALLS.replace("<|im_end|>", "{% if not m.tool_calls %}<|im_end|>{% endif %}")
HANDS_OVER = ENDLESS.replace(
    "<|im_start|>{{ m.role }}", "{{ '<|result|>' if m.role == 'tool' else '<|im_start|>' + m.role }}"
)
ARGUMENTS = [{"seats": ["4A", "4B"]}, {"trip": {"from": "A", "days": [1, None]}}, {"n": 5, "all": True}, {"q": ""}, {}]
STOPS = ("<|im_end|>", "</s>", "<|observation|>", "[e~[", "<|end_of_msg|>", "<seed:eos>", "<turn|>")


def trace(*arguments, name="book", results=("fine",), content="", **more):
    functions = [{"name": name, "arguments": each} for each in arguments] or [{"name": name}]
    calls = [{"id": f"call0000{n}", "type": "function", "function": each} for n, each in enumerate(functions, 1)]
    behind = [
        {"role": "tool", "tool_call_id": f"call0000{n}", "name": name, "content": each}
        for n, each in enumerate(results, 1)
    ]
    return [user("Book"), assistant(content, tool_calls=calls, **more), *behind, assistant("Done.")]


def runs_of(template, messages, tools=None):
    tokenizer = tokenizer_for(template)
    return target_runs(tokenizer, encode_chat(tokenizer, messages, tools, add_eos=False))


@pytest.mark.parametrize(
    "name",
    [
        *("Qwen3.5-4B", "Qwen3-Coder", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "StepFun3.5-Flash", "ByteDance-Seed-OSS"),
        *("mistralai-Ministral-3-14B-Reasoning-2512", "LFM2.5-8B-A1B", "openbmb-MiniCPM5-1B"),
        *("GLM-4.6", "GLM-4.7-Flash", "google-gemma-4-31B-it-interleaved", "MiniMaxAI-MiniMax-M3-MXFP8", "XML"),
    ],
)
def test_arguments_of_every_type(name):
    """Cases 1 to 3 of the field's reports: lists, objects, no arguments, any call at all."""
    tokenizer = tokenizer_for(XML if name == "XML" else stock_template(name))
    for given in ARGUMENTS:
        for messages in (trace(given), trace(json.dumps(given)), trace(given, given, results=("fine", "fine"))):
            row = encode_chat(tokenizer, messages, add_eos=False)
            call, answer = target_runs(tokenizer, row)
            assert "book" in call
            assert all(value in call for value in ("4A", "4B", "seats", "trip", "days") if value in json.dumps(given))
            assert "fine" not in call
            assert call.endswith(STOPS)
            assert "Done." in answer


def test_missing_and_blank_arguments_are_none():
    for arguments in ([], [None], [""], ["{}"], [{}]):
        (call, _) = runs_of(stock_template("Qwen-Qwen2.5-7B-Instruct"), trace(*arguments))
        assert call == '<tool_call>\n{"name": "book", "arguments": {}}\n</tool_call><|im_end|>'


@pytest.mark.parametrize(
    ("written", "call"),
    [
        ("{{ c.function.arguments | tojson | safe }}", '{"seats": ["4A", "<b>"]}'),
        ("{{ c.function.arguments.seats | string | safe | trim }}", "['4A', '<b>']"),
        ("{{ '%s' | format(c.function.arguments.seats) }}", "['4A', '<b>']"),
        ("{{ '%s and %s' % (c.function.arguments.seats[0], c.function.arguments.seats[1]) }}", "4A and <b>"),
        ("{{ '{} & {}'.format(*c.function.arguments.seats) }}", "4A & <b>"),
        ("{{ ('<i>' | safe) + c.function.arguments.seats | join(' ') }}", "<i>4A &lt;b&gt;"),
        ("{{ c.function.arguments.seats | join('+') | escape }}", "4A+&lt;b&gt;"),
        (
            "{% for k, v in c.function.arguments | items %}{{ k }}={{ v | map('upper') | list | tojson }}{% endfor %}",
            'seats=["4A", "<B>"]',
        ),
        ("{% for v in c.function.arguments.seats %}{{ v }}</{{ c.function.name }}>{% endfor %}", "4A</book><b></book>"),
    ],
)
def test_what_templates_make_of_arguments(written, call):
    template = CALLS.replace("CALL", written)
    messages = trace({"seats": ["4A", "<b>"]})
    tokenizer = tokenizer_for(template)
    row = encode_chat(tokenizer, messages, add_eos=False)
    if "map('upper')" not in written:  # transformers' jinja and ours print alike
        assert row.input_ids == tokenizer.apply_chat_template(messages, return_dict=False)
    assert target_runs(tokenizer, row)[0] == f"<call>book:{call}</call><|im_end|>"


def test_what_a_template_drops_of_a_call_is_told():
    first = CALLS.replace("CALL", "{{ c.function.arguments.values() | first }}")
    with pytest.raises(RefusedError, match=r"tool_calls\.function\.arguments\.to") as caught:
        encode_chat(tokenizer_for(first), trace({"key": "a", "to": "b"}))
    assert caught.value.reason == "template_lost_text"


@pytest.mark.parametrize(
    ("template", "end", "ends"),
    [
        (CALLS, "</call><|im_end|>", True),
        (HANDS_OVER, "</call><|result|>", True),  # what GLM's <|observation|> is
        (ENDLESS, "</call>", False),  # the next token opens turns of every role
    ],
)
def test_what_ends_a_turn_of_calls(template, end, ends):
    template = template.replace("CALL", "{{ c.function.arguments | tojson }}")
    tokenizer = tokenizer_for(template)
    for arguments in ({"key": "v"}, {"n": 1}, {}):
        row = encode_chat(tokenizer, trace(arguments), add_eos=False)
        runs = [f"<call>book:{json.dumps(arguments)}{end}", "Done.<|im_end|>"]
        assert target_runs(tokenizer, row) == runs
    assert TemplateSelector(tokenizer).select().format.ends_calls == ends


def test_a_call_as_the_last_turn_ends_in_eos_where_nothing_else_ends_it():
    messages = trace({"at": "Oslo"})[:2]
    glm = tokenizer_for(stock_template("GLM-4.6"))
    assert target_runs(glm, encode_chat(glm, messages))[0].rstrip("\n").endswith("</tool_call>")
    qwen = tokenizer_for(stock_template("Qwen3.5-4B"))
    assert target_runs(qwen, encode_chat(qwen, messages))[0].endswith("</tool_call><|im_end|>")


OLD = [
    user("W?"),
    assistant(None, function_call={"name": "w", "arguments": '{"c": "Oslo"}'}),
    {"role": "function", "name": "w", "content": "4"},
    assistant("Four."),
]
CALLED = {"name": "w", "arguments": {"c": "Oslo"}}
NEW = [
    user("W?"),
    assistant(
        "", tool_calls=[{"id": "call00001", "type": "function", "function": {"name": "w", "arguments": {"c": "Oslo"}}}]
    ),
    {"role": "tool", "name": "w", "tool_call_id": "call00001", "content": "4"},
    assistant("Four."),
]
SHAREGPT = [
    user("W?"),
    {"role": "function_call", "content": '{"name": "w", "arguments": {"c": "Oslo"}}'},
    {"role": "function_response", "content": "4"},
    assistant("Four."),
]


@pytest.mark.parametrize(
    "name",
    [
        *("Qwen3-Coder", "ByteDance-Seed-OSS", "GigaChat3-10B-A1.8B", "LFM2.5-8B-A1B"),
        *("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "meta-llama-Llama-3.1-8B-Instruct", "Qwen-Qwen2.5-7B-Instruct"),
    ],
)
def test_every_form_of_a_call_becomes_the_templates_own(name):
    tokenizer = tokenizer_for(stock_template(name))
    rows = [encode_chat(tokenizer, messages) for messages in (NEW, OLD, SHAREGPT)]
    assert rows[0] == rows[1] == rows[2]
    assert not any("function_call" in run for run in target_runs(tokenizer, rows[2]))


def test_ids_that_hold_names_are_made_for_templates_that_print_nothing_else():
    tokenizer = tokenizer_for(stock_template("moonshotai-Kimi-K2-Instruct"))
    call, answer = target_runs(tokenizer, encode_chat(tokenizer, SHAREGPT))
    assert '<|tool_call_begin|>functions.w:0<|tool_call_argument_begin|>{"c": "Oslo"}' in call
    assert answer == "Four.<|im_end|>"
    with pytest.raises(RefusedError, match=r"tool_calls.function.name.*'w'.*id.*functions\.w:0") as caught:
        encode_chat(tokenizer, NEW)  # ids of the data stay as they are
    assert caught.value.reason == "template_lost_text"


def test_a_role_of_its_own_stays_where_the_template_has_no_calls():
    (call, answer) = runs_of(SMOLLM2_TEMPLATE, SHAREGPT)
    assert call == 'function_call\n{"name": "w", "arguments": {"c": "Oslo"}}<|im_end|>'
    assert answer == "Four.<|im_end|>"


def normalized(messages, name="Qwen-Qwen2.5-7B-Instruct"):
    return normalize_messages(messages, TemplateSelector(tokenizer_for(stock_template(name))).select().format)


def test_results_find_their_calls_by_name_else_in_order():
    calls = [{"name": name, "arguments": {}} for name in ("one", "two")]
    together = [user("q"), {"role": "function_call", "content": json.dumps(calls)}]
    apart = [user("q"), *({"role": "function_call", "content": json.dumps(each)} for each in calls)]
    results = [{"role": "function", "name": "two", "content": "2"}, {"role": "function_response", "content": "1"}]
    for messages in (together, apart):
        prepared = normalized([*messages, *results, assistant("a")])
        ids = {call["function"]["name"]: call["id"] for message in prepared for call in message.get("tool_calls", [])}
        answered = [(message["name"], message["tool_call_id"]) for message in prepared if message["role"] == "tool"]
        assert answered == [("two", ids["two"]), ("one", ids["one"])]


@pytest.mark.parametrize("none", [[], None])
@pytest.mark.parametrize(
    "name", ["Qwen-Qwen2.5-7B-Instruct", "mistralai-Mistral-Nemo-Instruct-2407", "meta-llama-Llama-3.1-8B-Instruct"]
)
def test_no_calls_and_no_tools_are_none(name, none):
    tokenizer = tokenizer_for(stock_template(name))
    messages = [user("q"), assistant("a", tool_calls=none, function_call=none), user("p"), assistant("b")]
    plain = [user("q"), assistant("a"), user("p"), assistant("b")]
    assert encode_chat(tokenizer, messages, none) == encode_chat(tokenizer, plain)


def test_text_parts_are_joined_where_the_template_wants_text():
    """Case 10; a template that takes lists gets them as they are."""
    parts = [{"type": "text", "text": "10:"}, {"type": "text", "text": "15"}]
    names = ("Qwen-Qwen2.5-7B-Instruct", "mistralai-Mistral-Nemo-Instruct-2407", "meta-llama-Llama-3.1-8B-Instruct")
    for name in (*names, "google-gemma-2-2b-it"):
        tokenizer = tokenizer_for(stock_template(name))
        call, result = trace({}, name="now")[1:3]
        rows = [
            [
                user(content),
                *([call, {**result, "content": content}] if name in names else []),
                assistant(content),
            ]
            for content in ("10:15", parts)
        ]
        assert encode_chat(tokenizer, rows[0]) == encode_chat(tokenizer, rows[1]), name
    prepared = normalized([user(parts), assistant("a")], "HuggingFaceTB-SmolVLM-Instruct-DPO")
    assert prepared[0]["content"] == parts


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        *(
            (name, "system user assistant")
            for name in ("mistralai-Mistral-Small-3.1-24B-Instruct-2503", "OpenGVLab-InternVL3-1B")
        ),
        *((name, "system") for name in ("google-gemma-4-31B-it", "LGAI-EXAONE-EXAONE-4.5-33B")),
    ],
)
def test_no_text_part_is_lost(name, roles):
    """Some take one part and drop the second, or refuse those of a system's message."""
    tokenizer = tokenizer_for(stock_template(name))
    plain = [system("Be brief."), user("one two"), assistant("three four")]
    expected = encode_chat(tokenizer, plain)
    for message in (message for message in plain if message["role"] in roles):
        first, second = message["content"].split()
        for texts in ([first, f" {second}"], [message["content"]]):
            content = [{"type": "text", "text": text} for text in texts]
            row = encode_chat(tokenizer, [{**each, "content": content} if each is message else each for each in plain])
            assert row == expected, (message, texts)


@pytest.mark.parametrize(
    ("template", "role"),
    [
        (CHATML, "system"),  # it passes any role through, and knows none of them
        (stock_template("Qwen-Qwen2.5-7B-Instruct"), "system"),
        (stock_template("meta-llama-Llama-3.1-8B-Instruct"), "system"),
        (stock_template("openai-gpt-oss-120b"), "developer"),
    ],
)
def test_a_developers_message_is_the_systems_where_no_developer_is_known(template, role):
    tokenizer = tokenizer_for(template)
    messages = [{"role": "developer", "content": "Be brief."}, user("q"), assistant("a")]
    expected = encode_chat(tokenizer, [{**messages[0], "role": role}, *messages[1:]])
    assert encode_chat(tokenizer, messages) == expected
    assert role == "developer" or expected == encode_chat(tokenizer, [system("Be brief."), *messages[1:]])


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"function_call": {"arguments": "{}"}}, 'function_call in message 1 is not {"name"'),
        ({"function_call": "{"}, "function_call in message 1 is not JSON"),
        (
            {"function_call": {"name": "f"}, "tool_calls": [{"function": {"name": "f"}}]},
            "both tool_calls and function_call",
        ),
        ({"tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1, "a": 2}'}}]}, 'the key "a" occurs twice'),
        ({"function_call": '{"name": "f", "arguments": {"a": {"b": 1, "b": 2}}}'}, 'the key "b" occurs twice'),
        ({"tool_calls": [{"function": {"name": "f", "arguments": "{a: 1}"}}]}, "are not JSON"),
    ],
)
def test_calls_that_are_none_are_told(message, told):
    with pytest.raises(RefusedError) as caught:
        encode_chat(tokenizer_for(stock_template("Qwen-Qwen2.5-7B-Instruct")), [user("q"), assistant("", **message)])
    assert caught.value.reason == "bad_row"
    assert told in caught.value.detail


def test_an_answer_that_a_template_writes_behind_a_call_is_not_learned():
    tokenizer = tokenizer_for(stock_template("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B"))
    for messages in (trace({"at": "Oslo"}), trace({})[:2]):  # <｜Assistant｜> and its end, for the empty content
        row = encode_chat(tokenizer, messages, add_eos=False)
        assert row.input_ids == tokenizer.apply_chat_template(messages, return_dict=False)
        assert target_runs(tokenizer, row)[0].endswith("<｜tool▁calls▁end｜><｜end▁of▁sentence｜>")


@pytest.mark.parametrize("name", ["deepseek-ai-DeepSeek-V3.2", "unsloth-functiongemma-270m-it"])
def test_a_blank_result_that_the_template_drops_is_named(name):
    with pytest.raises(RefusedError, match=r"no trace of the blank message 2 \(tool\)") as caught:
        encode_chat(tokenizer_for(stock_template(name)), trace({"key": "v"}, results=("",)))
    assert caught.value.reason == "mask_refused"
