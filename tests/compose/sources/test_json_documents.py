"""JSON that is no JSON Lines: documents with a list of rows; and keys that stand twice."""

import json

import pytest

ROWS = [{"instruction": "a", "output": "b"}, {"instruction": "c\n\u2028", "output": "d", "n": 1.5}]
LISTED = json.dumps(ROWS)

DOCUMENTS = {
    "a list of rows under data": json.dumps({"data": ROWS}),
    "over several lines": json.dumps({"data": ROWS}, indent=2),
    "with other keys": json.dumps({"version": "1.1", "info": {"by": "x"}, "tags": ["a"], "data": ROWS}, indent=1),
    "with what the hub's server says": json.dumps(
        {"features": [{"feature_idx": 0, "name": "x"}], "examples": ROWS, "num_rows_total": 2, "partial": False}
    ),
    "with a schema": json.dumps({"schema": {"fields": [{"name": "x"}]}, "data": ROWS, "system": "", "tools": []}),
    "the only list of objects": json.dumps({"name": "x", "empty": [], "examples": ROWS}),
    "a list over several lines": json.dumps(ROWS, indent=4, ensure_ascii=False),
    "rows over several lines": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "Windows line ends": json.dumps({"data": ROWS}, indent=2).replace("\n", "\r\n"),
    "a blank line before": "\n\n" + json.dumps({"data": ROWS}) + "\n\n",
    "lines": "".join(json.dumps(row) + "\n" for row in ROWS),
}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents(document, load):
    rows = load("a.json", DOCUMENTS[document])
    assert [{key: value for key, value in row.items() if value is not None} for row in rows] == ROWS


def test_a_document_of_one_row(load):
    """Its lists of objects are its own."""
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    pairs = [{"question": "x", "answer": "y"}]
    for row in (
        {"messages": said},
        {"conversations": said, "tools": []},
        {"prompt": said[:1], "completion": said[1:]},
        {"query": "THE QUESTION", "reply": "THE ANSWER", "history": pairs},
        {"ask": "q", "say": "a", "history": pairs},
        {"prompt": "q", "output": "a", "data": pairs},
        {"question": "q", "solution": "a", "steps": pairs},
        {"id": 1, "turns": said, "weight": 0},
        {"dialog": "q", "tools": [{"name": "f"}]},
    ):
        assert load("a.json", json.dumps(row)) == load("b.json", json.dumps(row, indent=2)) == [row]


def test_what_describes_a_document_is_named(load, capsys):
    for _ in range(2):  # with rows of the cache, too
        load("a.json", json.dumps({"version": 2, "metadata": {"by": "x"}, "data": ROWS, "split": ""}))
        assert capsys.readouterr().err.count("a.json: not rows, and left out: version, metadata\n") == 1
    load("b.json", LISTED)
    assert "left out" not in capsys.readouterr().err


def test_values_stay_as_they_were_written(load, tmp_path):
    load("a.json", '{"data": [\n{"text": "2024-01-01", "n": 1.10, "big": 12345678901234567890, "half": "\\ud800"}\n]}')
    (lines,) = (tmp_path / "cache").glob("datasets/*/*.jsonl")
    assert '"n": 1.10, "big": 12345678901234567890, "half": "\\ud800"' in lines.read_text()


BAD = {
    "two lists of objects": (json.dumps({"train": ROWS, "test": ROWS}), "holds 2 lists of objects (train, test)"),
    "data and another list": (json.dumps({"data": ROWS, "more": ROWS}), "holds 2 lists of objects (data, more)"),
    "a system prompt": (json.dumps({"system": "Be X", "data": ROWS}), "a.json has system beside its list data: put"),
    "tools": (json.dumps({"data": ROWS, "tools": [{"name": "f"}], "system": "X"}), "has tools, system beside its list"),
    "a weight": (json.dumps({"name": "x", "weight": 0, "rows": ROWS}), "has weight beside its list rows"),
    "a prompt of all": (json.dumps({"prompt": "Be X", "data": ROWS}), "has prompt beside its list data"),
    "a description of other form": (json.dumps({"version": {"a": 1}, "data": ROWS}), "has version beside its list"),
    "texts beside rows": (json.dumps({"data": ["a"], "rows": ROWS}), "has data beside its list rows"),
    "data twice": (f'{{"data": {LISTED}, "data": {LISTED}}}', 'the key "data" occurs twice'),
    "data of no objects": ('{"data": [[1, 2]]}', "row 0: a row must be a JSON object, not list"),
    "data of none": ('{"data": []}', "has no rows"),
    "a text among rows": (f'{{"data": [{json.dumps(ROWS[0])}, "x"]}}', "row 1: a row must be a JSON object, not str"),
    "columns of pandas": ('{"prompt": {"0": "a", "1": "b"}, "answer": {"0": "c", "1": "d"}}', "written by columns"),
    "columns as lists": (json.dumps({"question": ["a", "b"], "answer": ["c", "d"]}, indent=2), "written by columns"),
    "cut off": ('{\n"data": [\n{"a": 1},\n{"a"', "line 4, column 5: not JSON"),
    "no comma": ('{\n"data": [\n{"a": 1}\n{"a": 2}]}', "line 4, column 1: not JSON"),
    "something behind": ('[{"a": 1}]\nx', "line 2, column 1: not JSON: Extra data"),
    "commas between lines": ('{"a": 1},\n{"a": 2}', "line 1, column 9: not JSON: Extra data; rows have no comma"),
    "a bad line": ('{"a": 1}\n{"a": 2\n', "line 2, column 8: not JSON"),
    "nested too deep": ('{"data": ' + "[" * 100_000, "a.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_document(case, load_error):
    content, told = BAD[case]
    message = load_error("a.json", content)
    assert "a.json" in message
    assert told in message


TWICE = {  # a row, and the key that it has twice
    "at the top": ('{"instruction": "a", "output": "b", "output": "c"}', "output"),
    "equal values": ('{"instruction": "a", "instruction": "a", "output": "c"}', "instruction"),
    "in a message": (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "content": "c"}]}',
        "content",
    ),
    "in a call": (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": '
        '[{"function": {"name": "f", "arguments": {"x": {"y": 1, "y": 2}}}}]}]}',
        "y",
    ),
    "in a call's arguments": (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": '
        '[{"function": {"name": "f", "arguments": "{\\"city\\": 1, \\"city\\": 2}"}}]}]}',
        "city",
    ),
    "in tools as text": (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], '
        '"tools": "[{\\"name\\": \\"f\\", \\"name\\": \\"g\\"}]"}',
        "name",
    ),
    "spelt otherwise": ('{"instruction": "a", "output": "b", "\\u006futput": "c"}', "output"),
}


@pytest.mark.parametrize("form", ["lines", "list", "document"])
def test_a_key_that_occurs_twice_drops_its_row(form, composed, files, tmp_path):
    """Wherever it stands; the ledger has each row with its key, and the others are trained on."""
    from support.tokenizers import CHATML

    template = CHATML.replace(
        "{{ m['content'] }}", "{{ m['content'] }}{{ m['tool_calls'] | tojson if m['tool_calls'] }}"
    )
    good = {
        "instruction": '{"instruction": "q", "output": "a"}',
        "messages": json.dumps(files.chat("e", "f")),
    }
    for column, last in good.items():
        group = [case for case, (row, _) in TWICE.items() if row.startswith(f'{{"{column}"')]
        rows = [TWICE[case][0] for case in group]
        assert rows
        lines = [*rows, last]
        written = {
            "lines": "\n".join(lines),
            "list": "[" + ",\n ".join(lines) + "]",
            "document": '{"data": [' + ",".join(lines) + "]}",
        }[form]
        (tmp_path / "d.json").write_text(written)
        done = composed(data="d.json", dedup={"method": "none"}, tokenizer={"chat_template": template})
        assert len(done.train) == 1
        told = [(line["row"], line["reason"]) for line in done.dropped]
        assert told == [(number, "bad_row") for number in range(len(rows))]
        for line, case in zip(done.dropped, group, strict=True):
            assert f'the key "{TWICE[case][1]}" occurs twice' in line["detail"], case
