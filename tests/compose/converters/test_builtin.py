"""Every built-in converter, found by the columns or named, and the user's own: rows in, training texts out."""

import json

import pytest

U, A, S = "user", "assistant", "system"
CHARACTER = {
    "name": "Ада",
    "context": "Ада считает.",
    "greeting": "Привет!",
    "example_dialogue": [{"role": "user", "content": "Ты кто?"}, {"role": "char", "content": "Ада."}],
    "dialogues": [
        {"model_name": "gpt-4", "chat": [{"role": "user", "content": "раз"}, {"role": "char", "content": "два"}]},
        {"model_name": "gpt-3.5", "chat": [{"role": "user", "content": "нет"}, {"role": "char", "content": "да"}]},
        {"model_name": "gpt-4", "chat": [{"role": "operator", "content": "три"}, {"role": "char", "content": "пять"}]},
    ],
}

FOUND = {
    "messages": (
        "messages",
        {"messages": [{"role": U, "content": "hi"}, {"role": A, "content": "yo"}]},
        [(U, "hi"), (A, "yo")],
    ),
    "messages as JSON text": (
        "messages",
        {"messages": json.dumps([{"role": U, "content": "hi"}, {"role": A, "content": "yo"}])},
        [(U, "hi"), (A, "yo")],
    ),
    "dialog": (
        "dialog_to_messages",
        {"messages": {"role": ["user", "bot", "user", "bot"], "content": ["a", "b", "c", "d"]}},
        [(U, "a"), (A, "b"), (U, "c"), (A, "d")],
    ),
    "sharegpt": (
        "conversations_to_messages",
        {
            "system": "be brief",
            "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}],
        },
        [(S, "be brief"), (U, "hi"), (A, "yo")],
    ),
    "sharegpt, all speakers": (
        "conversations_to_messages",
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "user", "value": "weather?"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "rain"},
                {"from": "bot", "value": "rain"},
                {"from": "tool", "value": "sun"},
                {"from": "assistant", "value": "sun"},
            ]
        },
        [
            (S, "s"),
            (U, "weather?"),
            ("function_call", '{"name": "f", "arguments": {"x": 1}}'),
            ("function_response", "rain"),
            (A, "rain"),
            ("function_response", "sun"),
            (A, "sun"),
        ],
    ),
    "conversations of roles": (
        "conversations_to_messages",
        {"conversations": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]},
        [(U, "hi"), (A, "yo")],
    ),
    "instruction": (
        "instruction_to_messages",
        {"instruction": "add", "input": "1 and 2", "output": "3"},
        [(U, "add\n1 and 2"), (A, "3")],
    ),
    "instruction without input": (
        "instruction_to_messages",
        {"instruction": "name one", "input": "", "output": "tiger"},
        [(U, "name one"), (A, "tiger")],
    ),
    "prompt and completion": (
        "instruction_to_messages",
        {"prompt": "hi", "completion": "yo"},
        [(U, "hi"), (A, "yo")],
    ),
    "question and answer, system": (
        "instruction_to_messages",
        {"system": "be brief", "question": "hi", "answer": "yo"},
        [(S, "be brief"), (U, "hi"), (A, "yo")],
    ),
    "numbers": ("instruction_to_messages", {"question": 6, "answer": 7}, [(U, "6"), (A, "7")]),
    "reasoning": (
        "reasoning_to_messages",
        {"instruction": "1+1", "reasoning": "two ones", "output": "2"},
        [(U, "1+1"), (A, "<think>\ntwo ones\n</think>\n\n2")],
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_found_by_the_columns(case, composed, files, texts):
    name, row, turns = FOUND[case]
    files.write("data.jsonl", [row])
    done = composed()
    assert f"converter impruver.{name}\n" in done.err
    assert texts(done.train) == [files.rendered(*turns)]


def test_text_is_found_and_empty_lines_are_skipped(composed, files, texts):
    files.write("data.jsonl", [{"text": "the river"}, {"text": ""}, {"text": "the stone"}])
    done = composed()
    assert "converter impruver.text\n" in done.err
    assert sorted(texts(done.train)) == ["<s>the river</s>", "<s>the stone</s>"]
    assert [(line["row"], line["reason"]) for line in done.dropped] == [(1, "nothing_to_learn")]


def test_a_character_plays_what_gpt4_wrote(composed, files, texts):
    files.write("data.jsonl", [CHARACTER, CHARACTER | {"dialogues": CHARACTER["dialogues"][1:2]}])
    done = composed(dedup={"method": "none"})
    assert "converter impruver.char_dialog_to_messages\n" in done.err
    first, second = sorted(texts(done.train), key=lambda text: "три" in text)
    assert first.endswith(files.rendered((U, "раз"), (A, "два")).removeprefix("<s>"))
    assert second.endswith(files.rendered((U, "три"), (A, "пять")).removeprefix("<s>"))
    assert all(text.startswith("<s><|im_start|>system\n") and "Ада считает." in text for text in (first, second))
    assert [(line["row"], line["reason"]) for line in done.dropped] == [(1, "converter_skipped")]


def test_a_characters_sheet_is_drawn_by_chance_seeded_by_the_row():
    from impruver_compose.converters.builtin import char_dialog_to_messages

    rows = [CHARACTER | {"name": f"Ада {number}"} for number in range(60)]
    drawn = [char_dialog_to_messages(row, {}) for row in rows]
    assert drawn == [char_dialog_to_messages(row, {}) for row in rows]
    sheets = [part[0]["content"] for parts in drawn for part in parts]
    for sign, low, high in (("Ты Ада", 36, 84), ("Приветствие: Привет!", 8, 44), ("Пользователь: Ты кто?", 8, 44)):
        assert low < sum(sign in sheet for sheet in sheets) < high, sign
    assert CHARACTER["dialogues"][0]["chat"][1]["role"] == "char"


def test_what_the_instruction_converters_skip(composed, files):
    rows = [
        {"instruction": "a", "output": "b", "label": "ok"},
        {"instruction": "c", "output": "d", "label": "bad_output"},
        {"instruction": "e", "output": "  ", "label": "ok"},
        {"instruction": "f", "output": None, "label": "ok"},
    ]
    files.write("data.jsonl", rows)
    done = composed()
    reasons = [(1, "converter_skipped"), (2, "nothing_to_learn"), (3, "converter_skipped")]
    assert [(line["row"], line["reason"]) for line in done.dropped] == reasons


MAPPINGS = {
    "columns": (
        {"instruction": "q", "output": "a", "system": "s"},
        {"q": "hi", "a": "yo", "s": "be brief", "input": ""},
        [(S, "be brief"), (U, "hi"), (A, "yo")],
    ),
    "_ is empty, as in the first impruver's toxicator": (
        {"instruction": "_", "system": "instruction", "input": "input", "output": "output"},
        {"instruction": "judge", "input": "fool", "output": "toxic"},
        [(S, "judge"), (U, "fool"), (A, "toxic")],
    ),
    "some": (
        {"output": "short answer"},
        {"instruction": "hi", "short answer": "yo", "output": "a long one"},
        [(U, "hi"), (A, "yo")],
    ),
}


@pytest.mark.parametrize("converter", [None, "impruver.instruction_to_messages"])
@pytest.mark.parametrize("case", MAPPINGS)
def test_mapping(case, converter, composed, files, texts):
    mapping, row, turns = MAPPINGS[case]
    files.write("data.jsonl", [row])
    done = composed(data={"mapping": mapping} | ({"converter": converter} if converter else {}))
    assert texts(done.train) == [files.rendered(*turns)]


def test_mapping_of_other_converters(composed, files, texts):
    files.write("data.jsonl", [{"chat": files.chat("hi", "yo")["messages"]}])
    assert texts(composed(data={"mapping": {"messages": "chat"}}).train) == [files.rendered((U, "hi"), (A, "yo"))]
    files.write("data.jsonl", [{"body": "the river"}])
    done = composed(data={"converter": "impruver.text", "mapping": {"text": "body"}})
    assert texts(done.train) == ["<s>the river</s>"]
    files.write("data.jsonl", [{"task": "1+1", "solution": "two ones", "short answer": "2"}])
    mapping = {"instruction": "task", "reasoning": "solution", "output": "short answer"}
    done = composed(data={"converter": "impruver.reasoning_to_messages", "mapping": mapping})
    assert texts(done.train) == [files.rendered((U, "1+1"), (A, "<think>\ntwo ones\n</think>\n\n2"))]


BAD_MAPPINGS = {
    "absent column": ({"mapping": {"instruction": "q", "output": "anser"}}, ["mapping", "output: anser", "q, answer"]),
    "absent column, converter named": (
        {"converter": "impruver.text", "mapping": {"text": "body"}},
        ["mapping", "text: body", "q, answer"],
    ),
    "no such field": (
        {"converter": "impruver.instruction_to_messages", "mapping": {"instructon": "q", "output": "answer"}},
        ["mapping", "instructon", "instruction"],
    ),
    "field without a column": (
        {"converter": "impruver.instruction_to_messages", "mapping": {"output": "answer"}},
        ["mapping", "instruction", "q, answer"],
    ),
    "unknown converter": ({"converter": "impruver.instruct"}, ["converter", "impruver.instruct", "impruver.messages"]),
    "no converter fits": ({}, ["no converter fits", "q, answer", "mapping"]),
}


@pytest.mark.parametrize("case", BAD_MAPPINGS)
def test_mapping_and_converter_must_fit(case, refused, files):
    section, told = BAD_MAPPINGS[case]
    files.write("data.jsonl", [{"q": "hi", "answer": "yo"}])
    message = refused(data=section)
    assert "recipe.yaml:1: datasets.0" in message
    assert all(part in message for part in told), message


OWN = """
def turns(row, mapping):
    "Messages, several conversations, None, an error or rubbish, as the row wishes."
    wish = row[mapping["wish"]]
    pair = [{"role": "user", "content": wish}, {"role": "assistant", "content": "yes " + wish}]
    if wish == "none":
        return None
    if wish == "two":
        return [pair, [pair[0], {"role": "assistant", "content": "two again"}]]
    if wish == "raise":
        raise KeyError("lost")
    rubbish = {
        "number": 7, "empty": [], "strings": ["a", "b"], "mixed": [pair[0], pair], "roleless": [{"content": "x"}],
        "bytes": [pair[0], {"role": "assistant", "content": b"x"}], "dict": pair[0],
        "odd": [pair[0] | {"seen": {1}}, pair[1]],
        "surrogate": [pair[0], {"role": "assistant", "content": chr(0xD800)}],
        "nan": [pair[0] | {"score": float("nan")}, pair[1]],
    }
    return rubbish.get(wish, pair)

def alone(row):
    return [{"role": "user", "content": row["wish"]}, {"role": "assistant", "content": "alone"}]

def old(sample, mapping=None, skip=("x",)):
    return alone({"wish": sample[mapping["wish"]]})

def rude(row, mapping):
    mapping.clear()
    row.clear()
    raise SystemExit(3)

thing = 7
"""


def test_users_own_converter(composed, files, texts, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    wishes = ["plain", "two", "none", "raise", "number", "empty", "strings", "mixed", "roleless", "bytes", "dict"]
    wishes += ["odd", "surrogate", "last"]
    files.write("data.jsonl", [{"wish": wish} for wish in wishes])
    done = composed(data={"converter": "mine.turns", "mapping": {"wish": "wish"}}, dedup={"method": "none"})
    assert "converter mine.turns\n" in done.err
    said = [("plain", "yes plain"), ("two", "yes two"), ("two", "two again"), ("last", "yes last")]
    assert sorted(texts(done.train)) == sorted(files.rendered((U, one), (A, other)) for one, other in said)
    reasons = {wishes[line["row"]]: line["reason"] for line in done.dropped}
    assert reasons.pop("none") == "converter_skipped"
    assert reasons.pop("raise") == "converter_failed"
    assert set(reasons) == set(wishes[4:-1])
    assert set(reasons.values()) == {"bad_row"}
    (failed,) = [line for line in done.dropped if line["reason"] == "converter_failed"]
    assert failed == {
        "dataset": "data.jsonl",
        "dataset_index": 0,
        "row": 3,
        "part": 0,
        "reason": "converter_failed",
        "detail": "turns: KeyError: 'lost'",
    }
    assert all(line["detail"] for line in done.dropped if line["reason"] == "bad_row")


@pytest.mark.parametrize("name", ["alone", "old"])
def test_own_converters_in_both_forms(name, composed, files, texts, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    files.write("data.jsonl", [{"wish": "hi"}])
    done = composed(data={"converter": f"mine.{name}", "mapping": {"wish": "wish"}})
    assert texts(done.train) == [files.rendered((U, "hi"), (A, "alone"))]


def test_a_converter_can_neither_change_the_mapping_nor_leave(composed, files, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    files.write("data.jsonl", [{"wish": "a"}])
    files.write("more.jsonl", [files.chat("a", "b")])
    data = [{"name": "data.jsonl", "converter": "mine.rude", "mapping": {"wish": "wish"}}, {"name": "more.jsonl"}]
    done = composed(datasets=data)
    (line,) = done.dropped
    assert (line["reason"], line["detail"]) == ("converter_failed", "rude: SystemExit: 3")
    assert done.manifest["recipe"]["datasets"][0]["mapping"] == {"wish": "wish"}


def test_nan_is_no_text(composed, files):
    """What pandas leaves in a row without the column."""
    files.write(
        "data.jsonl", [{"instruction": "a", "input": float("nan"), "output": "b"}, {"instruction": "c", "output": "d"}]
    )
    (line,) = composed().dropped
    assert (line["row"], line["reason"]) == (0, "converter_failed")
    assert "a value is NaN or infinite, which is no text: write null" in line["detail"]


def test_an_own_converter_that_is_none(refused, files, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    files.write("data.jsonl", [{"wish": "hi"}])
    assert "datasets.0.converter: mine.thing is no function" in refused(data={"converter": "mine.thing"})
    assert "did you mean mine.turns" in refused(data={"converter": "mine.turn"})
    assert "nowhere" in refused(data={"converter": "nowhere.turns"})


@pytest.mark.parametrize("names", [("prompt", "completion"), ("instruction", "output")])
def test_a_prompt_and_a_completion_of_messages(names, composed, files, texts, learned):
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    files.write("data.jsonl", [dict(zip(names, (asked, [{"role": "assistant", "content": "d"}]), strict=True))])
    done = composed()
    assert texts(done.train) == [files.rendered(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))]
    assert learned(done.train[0]) == ["d<|im_end|>"]


def test_keys_that_json_would_change_are_told(compose, files, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def keyed(row, mapping):\n"
        "    called = {'name': 'f', 'arguments': {1: 'a', 'b': 2} if row['keyed'] else {'b': 2}}\n"
        "    call = {'role': 'assistant', 'content': '', 'tool_calls': [{'function': called}]}\n"
        "    return [row['messages'][0], call, {'role': 'tool', 'content': 'r'}, row['messages'][1]]\n"
    )
    template = files.chatml.replace("<|im_end|>", "{{ m.tool_calls | tojson if m.tool_calls else '' }}<|im_end|>", 1)
    files.write("data.jsonl", [files.chat("a", "b") | {"keyed": keyed} for keyed in (True, False)])
    done = compose(data={"converter": "mine.keyed"}, tokenizer={"chat_template": template})
    assert done.code == 0, done.err
    assert [(line["reason"], "the key 1 is no text" in line["detail"]) for line in done.dropped] == [("bad_row", True)]


CALLS = (
    "{% for t in tools or [] %}<tool>{{ t.function.name }}</tool>{% endfor %}{% for m in messages %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% for c in m.tool_calls or [] %}"
    "<call>{{ c.function.name }}{{ c.function.arguments | tojson }}</call>{% endfor %}END\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASKED, TOLD = {"role": U, "content": "W?"}, {"role": A, "content": "Four."}


@pytest.mark.parametrize("as_text", [False, True])
def test_openais_older_form_of_calls_and_tools(composed, files, as_text):
    call = {"role": A, "content": None, "function_call": {"name": "w", "arguments": "{}"}}
    functions = [{"name": "w", "parameters": {"type": "object", "properties": {}}}]
    row = {
        "messages": [ASKED, call, {"role": "function", "name": "w", "content": "4"}, TOLD],
        "functions": json.dumps(functions) if as_text else functions,
        "parallel_tool_calls": False,
    }
    files.write("data.jsonl", [row])
    done = composed("--show", "1", tokenizer={"chat_template": CALLS.replace("END", "<|im_end|>")})
    assert "<tool>w</tool>" in done.out
    assert "⟦<call>w{}</call><|im_end|>⟧" in done.out
    assert "⟦Four.<|im_end|>⟧" in done.out
    assert "by no token" not in done.err


def test_tools_and_functions_that_differ_are_a_bad_row(composed, files):
    tool = {"name": "w", "parameters": {}}
    rows = [
        {"messages": [ASKED, {**TOLD, "content": str(functions)}], "tools": [tool], "functions": functions}
        for functions in ([{"type": "function", "function": tool}], [{"name": "v"}], [], None)
    ]
    files.write("data.jsonl", rows)
    done = composed(dedup={"method": "none"})
    assert [(each["row"], each["reason"]) for each in done.dropped] == [(1, "bad_row")]
    assert done.dropped[0]["detail"] == "it has both tools and functions, and they differ: leave one of them"


def test_calls_that_no_token_ends_are_a_warning(composed, files):
    calls = [{"id": "call00001", "type": "function", "function": {"name": "w", "arguments": {"c": "Oslo"}}}]
    result = {"role": "tool", "tool_call_id": "call00001", "name": "w", "content": "4"}
    files.write("data.jsonl", [{"messages": [ASKED, {"role": A, "content": "", "tool_calls": calls}, result, TOLD]}])
    done = composed(tokenizer={"chat_template": CALLS.replace("END", "{% if not m.tool_calls %}<|im_end|>{% endif %}")})
    (entry,) = done.manifest["gate"]
    assert any("ends a turn of tool calls by no token" in warning for warning in entry["warnings"])
    assert "the model is not taught to stop behind a call" in done.err
