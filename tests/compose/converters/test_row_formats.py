"""Rows as data sets have them: flags of turns, histories, other speakers, media, pairs, several formats in one file."""

import json

import pytest
from impruver_compose.converters.columns import find_guard
from support.messages import assistant, user
from support.tokenizers import stock_template

U, A, S = "user", "assistant", "system"
PAIR = [user("q"), assistant("good")]


def share(*turns, **row):
    """A row of ShareGPT: (from, value) pairs, or objects."""
    return {"conversations": [t if isinstance(t, dict) else {"from": t[0], "value": t[1]} for t in turns], **row}


TURNS_LEFT_OUT = {
    "weight": {"messages": [user("q"), assistant("bad", weight=0), user("again"), assistant("good")]},
    "weight, a number of a table": {
        "messages": [user("q"), assistant("bad", weight=0.0), user("r"), assistant("good")]
    },
    "weights of all": {
        "messages": [user("q", weight=1), assistant("bad", weight=0), user("r"), assistant("good", weight=1)]
    },
    "loss": {"messages": [user("q"), assistant("bad", loss=False), user("again"), assistant("good", loss=True)]},
    "train": {"messages": [user("q"), assistant("bad", train=False), user("again"), assistant("good")]},
    "ShareGPT, weight": share(
        ("human", "q"), {"from": "gpt", "value": "bad", "weight": 0}, ("human", "r"), ("gpt", "good")
    ),
    "ShareGPT, train": share(
        ("human", "q"), {"from": "gpt", "value": "bad", "train": False}, ("human", "r"), ("gpt", "good")
    ),
    "completion": {
        "prompt": [user("q"), assistant("no", weight=1)],
        "completion": [assistant("bad", loss=False), user("r"), assistant("good")],
    },
    "lists": {"messages": {"role": [U, A, U, A], "content": ["q", "bad", "r", "good"], "weight": [1, 0, 1, 1]}},
}


@pytest.mark.parametrize("turns", ["all", "each", "last"])
def test_turns_that_say_so_are_left_out(turns, composed, files, learned):
    files.write("data.jsonl", [{"id": str(n)} | row for n, row in enumerate(TURNS_LEFT_OUT.values())])
    done = composed(data={"turns": turns}, dedup={"method": "none"})
    assert [learned(row) for row in done.train] == [["good<|im_end|>"]] * len(TURNS_LEFT_OUT)


def test_val_says_in_one_way_what_is_trained_on(composed, files):
    files.write("data.jsonl", [TURNS_LEFT_OUT["weights of all"], *files.unlike(5)])
    done = composed(split={"val_rows": 6 - 1})
    assert all({"weight", "loss"}.isdisjoint(message) for row in done.val for message in row["messages"])


REFUSED = {
    "a weight between": ([user("q"), assistant("a", weight=0.5)], "weight of message 1 is 0.5, neither 0 nor 1"),
    "a loss in words": ([user("q"), assistant("a", loss="no")], "loss of message 1 is neither true nor false"),
    "a contradiction": ([user("q"), assistant("a", weight=0, train=True)], "train: True and weight: 0"),
    "a user's turn": ([user("q", train=True), assistant("a")], "train of message 0 is true, but its role is user"),
    "a mask": ([user("q"), assistant("a", mask=1)], "mask of message 1 is no flag that is known (train, weight, loss)"),
    "a mask, torchtune's": ([user("q", masked=True), assistant("a", masked=False)], "masked of message 0 is no flag"),
    "a detail": ([user("q"), assistant("a", train_detail=[{"begin_offset": 0}])], "train_detail of message 1"),
    "a scale": ([user("q"), assistant("a", loss_scale=2.0)], "loss_scale of message 1"),
    "an image": (
        [user([{"type": "image"}, {"type": "text", "text": "?"}]), assistant("a")],
        "message 0 has a part of kind image",
    ),
    "its address": ([user([{"type": "image_url", "image_url": {"url": "x"}}]), assistant("a")], "of kind image_url"),
    "without a type": ([user([{"text": "?"}, {"audio": "a.wav"}]), assistant("a")], "of kind audio"),
    "a file": ([user([{"type": "input_file", "file_id": "x"}]), assistant("a")], "of kind input_file"),
    "beside the text": ([user("?", images=["b.png"]), assistant("a")], "of kind images"),
}


def test_messages_that_are_refused_by_name(composed, files):
    files.write("data.jsonl", [{"messages": messages} for messages, _ in REFUSED.values()] + files.unlike(1))
    done = composed(dedup={"method": "none"})
    assert len(done.train) == 1
    details = {case: line["detail"] for case, line in zip(REFUSED, done.dropped, strict=True)}
    assert {line["reason"] for line in done.dropped} == {"bad_row"}
    assert [case for case, (_, told) in REFUSED.items() if told not in details[case]] == [], details


@pytest.mark.parametrize("turns", ["each", "last"])
def test_a_blank_turn_is_no_row_of_its_own(turns, composed, files, learned):
    files.write("data.jsonl", [{"messages": [user("q"), assistant("a"), user("r"), assistant(" ")]}])
    assert [learned(row) for row in composed(data={"turns": turns}).train] == [["a<|im_end|>"]]


NO_TARGETS = [
    {"messages": [user("q"), assistant(" ")]},
    {"messages": [user("q"), assistant("")]},
    {"messages": [user("q"), assistant([{"type": "text", "text": "\n"}])]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "\t"}]},
    {"instruction": "q", "output": "  "},
    {"prompt": "q", "completion": [assistant("\n")]},
    {"prompt": "q", "reasoning": "so", "completion": ""},
    {"text": " \n"},
    {"messages": [user("q"), assistant("a", weight=0)]},
]


def test_blank_answers_have_nothing_to_learn(composed, files):
    files.write("data.jsonl", NO_TARGETS + files.unlike(1))
    (files.folder / "lines.txt").write_text("the river\n\n   \nthe stone\n", encoding="utf-8")
    done = composed(datasets=[{"name": "data.jsonl"}, {"name": "lines.txt"}])
    assert len(done.train) == 3
    expected = [(0, row) for row in range(len(NO_TARGETS))] + [(1, 1), (1, 2)]
    assert [(line["dataset_index"], line["row"]) for line in done.dropped] == expected
    assert {line["reason"] for line in done.dropped} == {"nothing_to_learn"}


GUARDED = {
    "label": ({"prompt": [user("q")], "completion": [assistant("bad")], "label": False}, "bad_row", "label is false"),
    "label in text": ({"prompt": "q", "completion": "bad", "label": "False"}, "bad_row", "label is false"),
    "pair": ({"messages": PAIR, "rejected": [assistant("bad")]}, "bad_row", "rejected has an answer"),
    "pair of other names": (
        {"prompt": "q", "response": "good", "rejected_response": "bad"},
        "bad_row",
        "rejected_response has an answer",
    ),
    "pair in another case": ({"prompt": "q", "completion": "good", "Rejected": "bad"}, "bad_row", "Rejected has"),
    "weight 0": ({"messages": PAIR, "weight": 0}, "converter_skipped", "weight is 0"),
    "weight in another case": ({"messages": PAIR, "Weight": 0}, "converter_skipped", "Weight is 0"),
    "train": ({"messages": PAIR, "train": False}, "converter_skipped", "train is false"),
    "loss, in a table": ({"instruction": "q", "output": "a", "loss": "False"}, "converter_skipped", "loss is false"),
    "weight between": ({"instruction": "q", "output": "a", "weight": 0.3}, "bad_row", "weight is 0.3"),
    "images": (
        {"messages": [user("<image>?"), assistant("Red.")], "images": ["b.png"]},
        "bad_row",
        "images: only text",
    ),
    "image in a text": (
        {"prompt": "<image>\nWhat?", "completion": "a", "image": "0.jpg"},
        "bad_row",
        "image: only text",
    ),
    "image": ({"prompt": "q", "completion": "a", "image": {"bytes": "x", "path": "b"}}, "bad_row", "image: only text"),
}


@pytest.mark.parametrize("case", GUARDED)
def test_columns_that_must_not_be_passed_over(case, composed, files):
    row, reason, told = GUARDED[case]
    name = next(name for name in row if find_guard(name))
    kept = {"label": True, "weight": 1, "train": True, "loss": 0.25}
    files.write("data.jsonl", [row, row | {name: kept.get(name.lower())}])
    done = composed(dedup={"method": "none"})
    assert [(line["row"], line["reason"]) for line in done.dropped] == [(0, reason)]
    assert told in done.dropped[0]["detail"]
    assert reason == "converter_skipped" or f"mapping: {{{name}: _}}" in done.dropped[0]["detail"]
    assert len(composed(data={"mapping": {name: "_"}}, dedup={"method": "none"}).train) == 2


READ = {
    "other spellings in a prompt": (
        {"prompt": [{"role": "Human", "content": "a"}], "completion": [{"role": "Model", "content": "b"}]},
        [(U, "a"), (A, "b")],
    ),
    "one message each": ({"prompt": user("a"), "completion": assistant("b")}, [(U, "a"), (A, "b")]),
    "turns of ShareGPT's": (
        {"prompt": [{"from": "human", "value": "a"}], "completion": [{"from": "gpt", "value": "b"}]},
        [(U, "a"), (A, "b")],
    ),
    "messages in cells": (
        {"prompt": json.dumps([user("a")]), "completion": json.dumps([assistant("b")])},
        [(U, "a"), (A, "b")],
    ),
    "an answer that is JSON": (
        {"prompt": "a", "completion": json.dumps([user("b")])},
        [(U, "a"), (A, json.dumps([user("b")]))],
    ),
    "a whole conversation as completion": ({"prompt": "q", "completion": PAIR}, [(U, "q"), (A, "good")]),
    "reasoning of messages": (
        {"prompt": "q", "reasoning": "so", "completion": [assistant("a")]},
        [(U, "q"), (A, "<think>\nso\n</think>\n\na")],
    ),
    "history of speakers": (
        {"question": "c", "answer": "d", "history": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        [(U, "a"), (A, "b"), (U, "c"), (A, "d")],
    ),
    "a history that is none": ({"question": "c", "answer": "d", "history": "None"}, [(U, "c"), (A, "d")]),
    "a flag of a review": ({"question": "c", "answer": "d", "rejected": False, "weight": 1.0}, [(U, "c"), (A, "d")]),
    "history of pairs": (
        {"instruction": "And the second?", "output": "Brahms.", "history": [["A composer?", "Bach."]]},
        [(U, "A composer?"), (A, "Bach."), (U, "And the second?"), (A, "Brahms.")],
    ),
    "history in a cell": (
        {"instruction": "c", "output": "d", "history": '[["a", "b"]]'},
        [(U, "a"), (A, "b"), (U, "c"), (A, "d")],
    ),
    "history of objects": (
        {"prompt": "c", "response": "d", "history": [{"user": "a", "assistant": "b"}], "system": "s"},
        [(S, "s"), (U, "a"), (A, "b"), (U, "c"), (A, "d")],
    ),
    "history of messages": (
        {"question": "c", "answer": "d", "history": [{"role": "Human", "content": "a"}, assistant("b")]},
        [(U, "a"), (A, "b"), (U, "c"), (A, "d")],
    ),
    "empty history": ({"instruction": "c", "output": "d", "history": []}, [(U, "c"), (A, "d")]),
    "Dolly": (
        {"instruction": "Which?", "context": "We crossed the Neva.", "response": "The Neva."},
        [(U, "Which?\nWe crossed the Neva."), (A, "The Neva.")],
    ),
    "OpenOrca": (
        {"system_prompt": "be brief", "question": "hi", "response": "yo"},
        [(S, "be brief"), (U, "hi"), (A, "yo")],
    ),
    "system beside messages": ({"system": "be brief", "messages": PAIR}, [(S, "be brief"), (U, "q"), (A, "good")]),
    "the same system twice": (
        {"system": "s", "messages": [{"role": S, "content": "s"}, *PAIR]},
        [(S, "s"), (U, "q"), (A, "good")],
    ),
    "text and messages": ({"prompt": "Colour?", "completion": [assistant("Teal.")]}, [(U, "Colour?"), (A, "Teal.")]),
    "text and a message": ({"prompt": "Colour?", "completion": assistant("Teal.")}, [(U, "Colour?"), (A, "Teal.")]),
    "messages and text": ({"prompt": [user("Colour?")], "completion": "Teal."}, [(U, "Colour?"), (A, "Teal.")]),
    "ShareGPT as text": (
        {"conversations": json.dumps([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}])},
        [(U, "q"), (A, "a")],
    ),
    "lists as text": ({"messages": json.dumps({"role": [U, A], "content": ["q", "a"]})}, [(U, "q"), (A, "a")]),
    "speakers": (
        share(("Human", "a"), ("chatbot", "b"), ("prompter", "c"), ("Model", "d"), ("USER", "e"), ("AI", "f")),
        [(U, "a"), (A, "b"), (U, "c"), (A, "d"), (U, "e"), (A, "f")],
    ),
    "roles": (
        {"messages": [{"role": r, "content": r} for r in ("System", "Human", "Assistant", "prompter", "model")]},
        [(S, "System"), (U, "Human"), (A, "Assistant"), (U, "prompter"), (A, "model")],
    ),
}


def test_rows_as_data_sets_have_them(composed, files, texts):
    for number, (row, _) in enumerate(READ.values()):
        files.write(f"{number:02}.jsonl", [row])
    data = [{"name": f"{number:02}.jsonl"} for number in range(len(READ))]
    done = composed(datasets=data, dedup={"method": "none"})
    assert sorted(texts(done.train)) == sorted(files.rendered(*turns) for _, turns in READ.values())


CALL = {"name": "look", "arguments": {"at": "Oslo"}}
TRACES = {  # of a call and its result, by the roles or speakers that they have
    **{
        f"{call}, {result}": {
            "messages": [
                user("q"),
                {"role": call, "content": json.dumps(CALL)},
                {"role": result, "content": "4"},
                assistant("a"),
            ]
        }
        for call, result in (
            ("function_call", "observation"),
            ("tool_call", "tool_response"),
            ("tool_calls", "tool"),
            ("Tool_Call", "tool_result"),
        )
    },
    "speakers": share(("human", "q"), ("tool_call", json.dumps(CALL)), ("tool_response", "4"), ("gpt", "a")),
    "ShareGPT's": share(("human", "q"), ("function_call", json.dumps(CALL)), ("observation", "4"), ("gpt", "a")),
    "OpenAI's": {
        "messages": [
            user("q"),
            assistant(None, tool_calls=[{"id": "c", "type": "function", "function": CALL}]),
            {"role": "tool", "tool_call_id": "c", "content": "4"},
            assistant("a"),
        ]
    },
}


@pytest.mark.parametrize("name", ["Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.1-8B-Instruct"])
def test_calls_and_results_by_any_name_are_the_templates_own(name, composed, files):
    files.write("data.jsonl", [{"id": str(n)} | row for n, row in enumerate(TRACES.values())])
    done = composed(tokenizer={"chat_template": stock_template(name)}, dedup={"method": "none"})
    assert len(done.train) == len(TRACES)
    assert len({json.dumps(row) for row in done.train}) == 1


def test_calls_by_any_name_are_trained_on_where_the_template_passes_roles_through(composed, files, learned):
    files.write("data.jsonl", [TRACES["tool_call, tool_response"], TRACES["function_call, observation"]])
    expected = [f"function_call\n{json.dumps(CALL)}<|im_end|>", "a<|im_end|>"]
    assert [learned(row) for row in composed(dedup={"method": "none"}).train] == [expected] * 2


def test_earlier_answers_are_trained_on(composed, files, learned):
    files.write("data.jsonl", [READ["history of pairs"][0]])
    assert learned(composed().train[0]) == ["Bach.<|im_end|>", "Brahms.<|im_end|>"]


BROKEN = {
    "history that is a text": {"instruction": "q", "output": "a", "history": "we met"},
    "history that is no pair": {"instruction": "q", "output": "a", "history": [["x"]]},
    "conversations that are no JSON": {"conversations": "[{'from': 'human', 'value': 'q'}]"},
    "a turn that is a text": {"conversations": ["hi", "yo"]},
    "messages and an input": {"prompt": [user("q")], "input": "more", "completion": "a"},
    "a text under another name": {"messages": [{"role": "user", "text": "q"}, assistant("a")]},
    "two texts": {"conversations": [{"from": "human", "value": "q", "content": "r"}, {"from": "gpt", "value": "a"}]},
    "tools that are none": {"messages": PAIR, "tools": [None]},
}


def test_broken_rows_are_named(composed, files):
    for number, row in enumerate(BROKEN.values()):
        files.write(f"{number}.jsonl", [row])
    files.write("good.jsonl", files.unlike(1))
    numbers = range(len(BROKEN))
    done = composed(datasets=[{"name": f"{number}.jsonl"} for number in (*numbers, "good")])
    reasons = ["bad_row", "bad_row", "converter_failed", *["bad_row"] * 5]
    assert [(line["dataset_index"], line["reason"]) for line in done.dropped] == list(
        zip(numbers, reasons, strict=True)
    )


def test_each_row_is_read_in_its_own_format(composed, files, texts):
    rows = [
        {"instruction": "a", "output": "b"},
        {"messages": [user("c"), assistant("d")]},
        {"question": "e", "answer": "f"},
        share(("human", "g"), ("gpt", "h")),
        {"messages": {"role": [U, A], "content": ["i", "j"]}},
        {"prompt": "k", "completion": [assistant("l")], "system": "s"},
        {"text": "the river"},
        {"instruction": "m", "output": None, "text": "### m"},
        {"about": "nothing"},
        {"messages": [], "instruction": "n", "input": "", "context": "o", "output": "p"},
        {"instruction": "q", "input": "r", "output": "s"},
    ]
    files.write("data.jsonl", rows)
    done = composed(dedup={"method": "none"}, data={"mapping": {"about": "_"}})
    pairs = [files.rendered((U, q), (A, a)) for q, a in ("ab", "cd", "ef", "gh", "ij", ("n\no", "p"), ("q\nr", "s"))]
    pairs += [files.rendered((S, "s"), (U, "k"), (A, "l")), "<s>the river</s>"]
    assert sorted(texts(done.train)) == sorted(pairs)
    assert [line["row"] for line in done.dropped] == [7, 8]


def test_pairs_of_preference_training_are_told(refused, composed, files, learned):
    files.write("data.jsonl", [{"prompt": "q", "chosen": "good", "rejected": "bad"}])
    message = refused()
    assert "pairs for preference training" in message
    assert "{output: chosen, rejected: _}" in message
    done = composed(data={"mapping": {"output": "chosen", "rejected": "_"}})
    assert learned(done.train[0]) == ["good<|im_end|>"]
    files.write("data.jsonl", [{"prompt": "q", "chosen": PAIR, "rejected": [user("q"), assistant("bad")]}])
    done = composed(data={"mapping": {"messages": "chosen", "rejected": "_"}})
    assert learned(done.train[0]) == ["good<|im_end|>"]
