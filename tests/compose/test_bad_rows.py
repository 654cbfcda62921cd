"""Rows that parse and are of no use, or of a size that nobody expects: told by reason, the rest goes on."""

import time

import pytest

STRICT = (
    "{% for m in messages %}{% if m['role'] not in ('user', 'assistant') %}"
    "{{ raise_exception('unknown role ' + m['role']) }}{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_content(files, at, content):
    row = files.chat("a", "b", "c", "d")
    row["messages"][at]["content"] = content
    return row


def test_a_row_of_five_million_characters(composed, files, texts):
    long = "".join(f"river {number} " for number in range(400_000))[:5_000_000]
    assert len(long) == 5_000_000
    files.write("data.jsonl", [files.chat("a", "b"), files.chat("c", long)])
    started = time.monotonic()
    done = composed(split={"val_rows": 1})
    assert time.monotonic() - started < 60
    assert any(long in text for text in texts(done.train + done.val))
    done = composed(data={"max_tokens_count": 50})
    assert [(line["row"], line["reason"]) for line in done.dropped] == [(1, "too_long")]


def test_a_document_of_five_million_characters(composed, files, texts):
    long = "".join(f"stone {number} " for number in range(400_000))[:5_000_000]
    files.write("data.jsonl", [{"text": long}])
    done = composed(data={"max_tokens_count": 100_000})
    assert len(done.train) > 10
    assert sum(len(text) for text in texts(done.train)) == len("<s>" + long + "</s>")


def test_null_contents(composed, files, learned):
    rows = [with_content(files, 0, None), with_content(files, 1, None), with_content(files, 3, None)]
    files.write("data.jsonl", rows)
    done = composed(dedup={"method": "none"})
    assert done.dropped == []
    ends = [["b<|im_end|>", "<|im_end|>"], ["b<|im_end|>", "d<|im_end|>"], ["<|im_end|>", "d<|im_end|>"]]
    assert sorted(learned(row) for row in done.train) == sorted(ends)


def said(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def spoken(*turns):
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in turns]}


NO_CONVERSATIONS = [
    ({"messages": []}, "bad_row", "messages is empty"),
    ({"messages": None}, "bad_row", "messages is empty"),
    ({"messages": ["a", "b"]}, "bad_row", "message 0 is not an object"),
    ({"messages": [[7]]}, "bad_row", "message 0 is not an object"),
    ({"messages": 7}, "converter_failed", "messages is no list but int"),
    ({"messages": {"role": "user", "content": "a"}}, "converter_failed", "messages is no list but dict"),
    ({"messages": "no JSON"}, "converter_failed", "Expecting value"),
    ({"messages": '"a text"'}, "converter_failed", "messages is no list but str"),
    (said((None, "a")), "bad_row", "message 0 has no role"),
    (said(("user", "a"), ("assistant", 7)), "bad_row", "content of message 1 is not text but int"),
    (said(("user", {"a": 1}), ("assistant", "b")), "bad_row", "content of message 0 is not text but dict"),
    (said(("user", "a"), ("assistant", True)), "bad_row", "content of message 1 is not text but bool"),
    (said(("user", "only a question")), "nothing_to_learn", "no assistant's turn is trained on (roles: user)"),
    (said(("user", "a"), ("narrator", "b"), ("assistant", "c")), "template_refused", "unknown role narrator"),
    (said(("user", "a"), ("assistant", "b")) | {"tools": "no JSON"}, "bad_row", "tools is not JSON"),
    (said(("user", "a"), ("assistant", "b")) | {"tools": "[" * 100000}, "bad_row", "tools is not JSON"),
    (said(("user", "a"), ("assistant", "b")) | {"chat_template_kwargs": "[]"}, "bad_row", "is no object"),
]


def test_rows_that_are_no_conversations(composed, files):
    """Told by reason in the ledger's order; the good row after them is trained on."""
    rows = [row for row, _, _ in NO_CONVERSATIONS]
    files.write("data.jsonl", [*rows, files.chat("e", "f")])
    done = composed(dedup={"method": "none"}, tokenizer={"chat_template": STRICT})
    assert len(done.train) == 1
    for number, (line, (_, reason, detail)) in enumerate(zip(done.dropped, NO_CONVERSATIONS, strict=True)):
        assert (line["row"], line["reason"]) == (number, reason)
        assert detail in line["detail"]


def test_speakers_of_no_role(composed, files):
    files.write("data.jsonl", [spoken(("human", "a"), ("narrator", "b")), spoken(("human", "a"), ("gpt", "c"))])
    done = composed()
    assert len(done.train) == 1
    (line,) = done.dropped
    assert (line["row"], line["reason"]) == (0, "converter_failed")
    assert "unknown speaker 'narrator'; known: human, " in line["detail"]


WRITTEN = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] ~ '' }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize("at", [0, 1])
def test_a_list_as_content_of_a_template_that_takes_none(at, composed, files):
    """It would print the list as Python writes it: the row goes, the run goes on, with or without other rows."""
    files.write("data.jsonl", [with_content(files, at, [{"type": "citation", "text": "b"}]), files.chat("a", "b")])
    for template in (files.chatml, WRITTEN):
        (line,) = composed(tokenizer={"chat_template": template}).dropped
        assert (line["row"], line["reason"]) == (0, "bad_row")
        assert f"message {at} has a part of kind citation, which this template does not take" in line["detail"]


@pytest.mark.parametrize("parts", [["b", "c"], [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]])
@pytest.mark.parametrize("at", [0, 1])
def test_text_parts_of_a_template_that_takes_none_are_joined(parts, at, composed, files):
    files.write("data.jsonl", [with_content(files, at, content) for content in (parts, "bc")])
    for template in (files.chatml, WRITTEN):
        done = composed(tokenizer={"chat_template": template}, dedup={"method": "none"})
        assert done.train[0] == done.train[1]


def test_duplicates_only(composed, files):
    files.write("data.jsonl", [files.chat("a", "b")] * 30)
    done = composed(split=None)
    assert (len(done.train), len(done.val)) == (1, 0)
    assert [line["row"] for line in done.dropped] == list(range(1, 30))
    assert {(line["reason"], line["kept"]["row"]) for line in done.dropped} == {("exact_duplicate", 0)}


def test_data_sets_of_different_schemas(composed, files, texts):
    files.write("a.jsonl", files.unlike(2))
    files.write(
        "b.jsonl", [{"instruction": "c", "output": "d", "score": 1}, {"instruction": "e", "output": "f", "x": []}]
    )
    files.write("c.jsonl", [{"text": "a document"}])
    done = composed(datasets=[{"name": name} for name in ("a.jsonl", "b.jsonl", "c.jsonl")])
    assert [(each["rows"], each["train"]) for each in done.manifest["counts"]] == [(2, 2), (2, 2), (1, 1)]
    assert [entry["dataset"] for entry in done.manifest["gate"]] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert len(done.train) == 5


def test_rows_of_different_schemas_in_one_file(composed, files):
    rows = [files.chat("a", "b"), {"instruction": "c", "output": "d"}, {"text": "a document"}, {}]
    files.write("data.jsonl", rows)
    done = composed()
    assert len(done.train) == 3
    assert [line["row"] for line in done.dropped] == [3]
