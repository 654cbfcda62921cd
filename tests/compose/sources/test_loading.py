"""Files of every kind, folders, globs and slices; what can't be read is told by file and line."""

import bz2
import gzip
import json
import lzma
import os

import pytest
import zstandard

ROWS = [{"question": f"what is {number}", "answer": f"{number} is a number"} for number in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in ROWS)


def as_parquet(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), path)


KINDS = {
    "d.jsonl": lambda path: path.write_text(LINES),
    "d.ndjson": lambda path: path.write_text("\ufeff" + LINES.replace("\n", "\r\n")),
    "d.json": lambda path: path.write_text(json.dumps(ROWS)),
    "d.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "d.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "d.jsonl.xz": lambda path: path.write_bytes(lzma.compress(LINES.encode())),
    "d.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(LINES.encode())),
    "d.jsonl.zst": lambda path: path.write_bytes(zstandard.ZstdCompressor().compress(LINES.encode())),
    "d.csv": lambda path: path.write_text(TABLE),
    "d.tsv": lambda path: path.write_text(TABLE.replace(",", "\t")),
    "d.tsv.gz": lambda path: path.write_bytes(gzip.compress(TABLE.replace(",", "\t").encode())),
    "d.parquet": as_parquet,
}


@pytest.fixture
def all_rows(files):
    return sorted(files.rendered(("user", row["question"]), ("assistant", row["answer"])) for row in ROWS)


@pytest.mark.parametrize("name", KINDS)
def test_files_of_every_kind(name, composed, texts, tmp_path, all_rows):
    KINDS[name](tmp_path / name)
    done = composed(data=f"./{name}", dedup={"method": "none"})
    assert sorted(texts(done.train)) == all_rows
    (given,) = done.manifest["inputs"]
    assert (given["path"], given["bytes"]) == (str(tmp_path / name), (tmp_path / name).stat().st_size)


def test_lines_of_a_text_file_are_documents(composed, texts, tmp_path):
    (tmp_path / "d.txt").write_text("\ufeffthe river\n\nстолица\n", encoding="utf-8")
    assert sorted(texts(composed(data="d.txt").train)) == ["<s>the river</s>", "<s>столица</s>"]


@pytest.mark.parametrize("name", ["folder", "folder/*.jsonl", "fold*/**/p*.jsonl*"])
def test_folders_and_globs_in_the_order_of_their_names(name, composed, files, texts, all_rows):
    files.write("folder/part-2.jsonl", ROWS[2:])
    files.write("folder/part-1.jsonl", ROWS[:2])
    done = composed(data=name, dedup={"method": "none"}, split={"val_rows": 1})
    assert sorted(texts(done.train + done.val)) == all_rows
    assert [given["path"].rpartition("/")[2] for given in done.manifest["inputs"]] == ["part-1.jsonl", "part-2.jsonl"]
    files.write("folder/part-3.jsonl", [{"question": "bad", "answer": ""}])
    (line,) = composed(data=name).dropped
    assert (line["row"], line["reason"]) == (4, "nothing_to_learn")


def test_values_stay_as_they_were_written(composed, files, texts, tmp_path):
    """Arrow would make a date of 2024-01-01, pandas 7 of 007 and nothing of None."""
    said = ["2024-01-01", "007", "1.10", "None", "NA", "true", " x "]
    expected = sorted(files.rendered(("user", f"q{at}"), ("assistant", text)) for at, text in enumerate(said))
    rows = [{"question": f"q{at}", "answer": text} for at, text in enumerate(said)]
    files.write("d.jsonl", rows)
    (tmp_path / "d.json").write_text(json.dumps(rows))
    (tmp_path / "d.csv").write_text("question,answer\n" + "".join(f"q{at},{text}\n" for at, text in enumerate(said)))
    for name in ("d.jsonl", "d.json", "d.csv"):
        assert sorted(texts(composed(data=name, dedup={"method": "none"}).train)) == expected, name
    files.write("d.jsonl", [{"question": f"q{at}", "answer": "2024-01-01"} for at in range(3)])
    assert all("2024-01-01" in text for text in texts(composed(data="d.jsonl", dedup={"method": "none"}).train))


def test_rows_with_other_columns_than_the_first(composed, files, texts):
    rows = [{"question": "a", "answer": "b"}, {"system": "s", "question": "c", "answer": "d", "extra": {"x": 1}}]
    rows += [{"question": "e", "answer": {"text": ["f"]}, "extra": "y"}]
    files.write("data.jsonl", rows)
    s, u, a = "system", "user", "assistant"
    turns = [[(u, "a"), (a, "b")], [(s, "s"), (u, "c"), (a, "d")], [(u, "e"), (a, '{"text": ["f"]}')]]
    assert sorted(texts(composed().train)) == sorted(files.rendered(*each) for each in turns)


def test_blank_lines_are_no_rows(composed, files, tmp_path):
    good = json.dumps(ROWS[0]), json.dumps(ROWS[1]), json.dumps(ROWS[2] | {"answer": ""})
    (tmp_path / "data.jsonl").write_text(f"\n{good[0]}\n \t\n{good[1]}\n\n{good[2]}\n\n")
    done = composed(dedup={"method": "none"})
    assert len(done.train) == 2
    assert [line["row"] for line in done.dropped] == [2]
    assert len(composed(data={"split": "train[1:]"}, dedup={"method": "none"}).train) == 1


def test_a_slice_and_a_split_of_another_name(composed, files, texts, all_rows):
    files.write("data.jsonl", ROWS)
    assert sorted(texts(composed(data={"split": "train[1:3]"}, dedup={"method": "none"}).train)) == all_rows[1:3]
    assert len(composed(data={"split": "test"}, dedup={"method": "none"}).train) == 4
    assert len(composed(data={"split": "train[:1000]"}, dedup={"method": "none"}).train) == 4


def test_a_changed_file_is_read_anew(composed, files, texts):
    files.write("data.jsonl", ROWS[:1])
    composed()
    files.write("data.jsonl", ROWS[1:2])
    assert "what is 1" in texts(composed().train)[0]


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.json", "d.csv"])
def test_a_changed_file_of_the_same_time_is_read_anew(name, composed, files, texts, tmp_path):
    """As tar and rsync leave it; `datasets` goes by name and time."""
    for answer in ("one", "two"):
        table = f"question,answer\nhi,{answer}\n"
        row = {"question": "hi", "answer": answer}
        content = {".json": json.dumps([row]), ".csv": table}.get(name[1:], json.dumps(row) + "\n").encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        os.utime(tmp_path / name, (1e9, 1e9))
        assert texts(composed(data=name).train) == [files.rendered(("user", "hi"), ("assistant", answer))]


@pytest.mark.parametrize("name", ["run [1]/d.jsonl", "d[1].jsonl", "d?.jsonl", "d*.jsonl", "папка 1/данные №1.jsonl"])
def test_a_name_is_no_pattern(name, composed, files, texts, all_rows):
    files.write(name, ROWS)
    files.write("d1.jsonl", [{"question": "another", "answer": "file"}])
    done = composed(data=f"./{name}", dedup={"method": "none"})
    assert sorted(texts(done.train)) == all_rows


def test_keys_of_other_rows_do_not_come_as_nulls(composed, files, tmp_path):
    """Arrow gives every struct the keys of all rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def row(name, arguments):
        call = {
            "role": "assistant",
            "content": name,
            "tool_calls": [{"function": {"name": name, "arguments": arguments}}],
        }
        tool = {"name": name, "parameters": {"properties": {key: {"type": "number"} for key in arguments}}}
        return {"messages": [{"role": "user", "content": f"go {name}", "tool_calls": None}, call], "tools": [tool]}

    rows = [row("one", {"a": 1, "list": [1, 2]}), row("two", {"b": 2})]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    files.write("more.jsonl", [files.chat("a", "b")])
    template = files.chatml.replace(
        "{{ m['content'] }}", "{{ m['content'] }}{{ m['tool_calls'] | tojson if m['tool_calls'] }}"
    )
    data = [{"name": "d.parquet"}, {"name": "more.jsonl"}]
    done = composed(
        datasets=data, tokenizer={"chat_template": template}, split={"val_rows": 2}, dedup={"method": "none"}
    )
    told = {line["messages"][1]["content"]: line for line in done.val if "tools" in line}
    assert told
    for name, line in told.items():
        (original,) = [row for row in rows if row["tools"][0]["name"] == name]
        assert line["messages"][1]["tool_calls"] == original["messages"][1]["tool_calls"]
        assert line["tools"] == [{"type": "function", "function": original["tools"][0]}]


def test_tables_of_other_columns_are_not_read_together(refused, files, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.csv").write_text(TABLE)
    (tmp_path / "folder/b.csv").write_text("question,answer,system\na,b,c\n")
    message = refused(data="folder")
    assert "b.csv, line 1: the columns are question, answer, system, and another file has question, answer" in message


def test_a_lone_surrogate_in_a_list(composed, tmp_path):
    (tmp_path / "d.json").write_text('[{"question": "q", "answer": "\\ud800"}, {"question": "q", "answer": "a"}]')
    (line,) = composed(data="d.json").dropped
    assert (line["row"], line["reason"]) == (0, "bad_row")


def test_data_is_looked_for_beside_the_recipe_first(composed, files, tmp_path, monkeypatch, texts):
    (tmp_path / "else").mkdir()
    (tmp_path / "else/data.jsonl").write_text('{"question": "wrong", "answer": "file"}\n')
    files.write("data.jsonl", ROWS[:1])
    monkeypatch.chdir(tmp_path / "else")
    done = composed(train_path=str(tmp_path / "out/train.jsonl"), val_path=str(tmp_path / "out/val.jsonl"))
    assert "what is 0" in texts(done.train)[0]


def test_quickstart_data_from_the_installed_recipes(composed, tmp_path):
    done = composed(data={"name": "quickstart/countries.jsonl", "split": "train[:50]"}, dedup={"method": "none"})
    assert len(done.train) == 50


def test_tools_of_one_row_do_not_leak_into_another(composed, files, tmp_path):
    tools = [
        {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
        {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}},
    ]
    rows = [files.chat("hi", "yo") | {"tools": [tools[0]]}, files.chat("hello there", "you") | {"tools": [tools[1]]}]
    rows.append(files.chat("a third", "one") | {"tools": json.dumps(tools)})
    rows.append(files.chat("the fourth", "row"))
    files.write("data.jsonl", rows)
    done = composed(split={"val_rows": 3}, dedup={"method": "none"})
    assert "warning: data set 0 (data.jsonl): its rows have tools, which the chat template does not render" in done.err
    wrapped = {"hi": tools[:1], "hello there": tools[1:], "a third": tools, "the fourth": None}
    assert len(done.val) == 3
    for row in done.val:
        expected = wrapped[row["messages"][0]["content"]]
        assert row.get("tools") == (expected and [{"type": "function", "function": tool} for tool in expected])


BAD = {
    "missing file": ("gone.jsonl", None, ["datasets.0: gone.jsonl is not there"]),
    "missing folder": ("./gone", None, ["datasets.0: ./gone is not there"]),
    "empty file": ("d.jsonl", b"", ["datasets.0", "d.jsonl is empty"]),
    "blank lines": ("d.jsonl", b"\n\n", ["datasets.0", "d.jsonl"]),
    "malformed line": ("d.jsonl", LINES.encode() + b'{"question": "x"\n', ["d.jsonl, line 5", "not JSON"]),
    "malformed line, compressed": ("d.jsonl.gz", gzip.compress(b'{"a": 1}\n{"a"\n'), ["d.jsonl.gz, line 2"]),
    "cut off compressed": ("d.jsonl.gz", gzip.compress(LINES.encode())[:-9], ["d.jsonl.gz, after line 4", "broken"]),
    "cut off list": ("d.json", b'[{"question": "q",\n', ["d.json, line 2", "not JSON"]),
    "a list of texts": ("d.json", b'["question"]', ["d.json, row 0", "object"]),
    "no UTF-8": ("d.jsonl", LINES.encode() + b'{"question": "caf\xe9", "answer": "a"}\n', ["d.jsonl, line 5", "UTF-8"]),
    "no UTF-8 in a list": ("d.json", b'[{"question": "caf\xe9"}]', ["d.json", "UTF-8"]),
    "no UTF-8 in CSV": ("d.csv", b"question,answer\ncaf\xe9,b\n", ["d.csv, line 2: not UTF-8 (byte 4 of the line)"]),
    "a list as row": ("d.jsonl", b'{"question": "q", "answer": "a"}\n[1, 2]\n', ["d.jsonl, line 2", "object"]),
    "only lists": ("d.jsonl", b"[1, 2]\n[3]\n", ["d.jsonl, line 1", "object"]),
    "text as row": ("d.jsonl", b'"question"\n', ["d.jsonl, line 1", "object"]),
    "broken parquet": ("d.parquet", b"PAR1 nothing", ["datasets.0", "d.parquet", "parquet"]),
    "unknown kind": ("d.xlsx", b"x", ["datasets.0: d.xlsx is of no kind", ".parquet"]),
    "a blank that is none of JSON's": ("d.jsonl", b"{}\n\xc2\xa0\n", ["d.jsonl, line 2", "not JSON"]),
    "a carriage return in a row": (
        "d.jsonl",
        b'{"question": "q",\r"answer": "a"}\n',
        ["d.jsonl, line 1", "carriage"],
    ),
    "nested too deep": ("d.json", b"[" * 100000, ["d.json: can't be read"]),
    "a cut off compressed list": ("d.json.gz", gzip.compress(b'[{"a": 1}]')[:-9], ["d.json.gz", "broken"]),
    "a list without rows": ("d.json", b"[]", ["d.json has no rows"]),
    "more cells than columns": (
        "d.csv",
        b"question,answer\na,b,c\nd,e,f\n",
        ["datasets.0", "d.csv, line 2: 3 cells, and the header has 2", "needs quotes"],
    ),
    "header alone": ("d.csv", b"question,answer\n", ["datasets.0", "d.csv"]),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_read(case, refused, tmp_path):
    name, content, told = BAD[case]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = refused(data=name)
    assert all(part in message for part in told), message


def test_folders_without_data_and_of_mixed_kinds(refused, files, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.md").write_text("nothing")
    assert "datasets.0: no data files in" in refused(data="folder")
    files.write("folder/a.jsonl", ROWS)
    (tmp_path / "folder/a.csv").write_text(TABLE)
    assert "datasets.0: files of different kinds (csv, json)" in refused(data="folder")


def test_a_bad_split(refused, files):
    files.write("data.jsonl", ROWS)
    assert "datasets.0.split: train[:1 can't be read" in refused(data={"split": "train[:1"})
    assert "datasets.0: data.jsonl has no rows in split train[9:]" in refused(data={"split": "train[9:]"})


def test_a_hub_data_set_offline(refused):
    message = refused(data="nobody/nothing-of-that-name")
    assert "datasets.0: nobody/nothing-of-that-name is no file or folder here, and can't be loaded from the" in message
    assert len(message.strip().splitlines()) == 1


def test_the_second_of_several_files_is_the_bad_one(refused, files, tmp_path):
    files.write("folder/a.jsonl", ROWS)
    (tmp_path / "folder/b.jsonl").write_text('{"question": "q", "answer": "a"}\n{"question"\n')
    assert "b.jsonl, line 2" in refused(data="folder")


def test_what_this_run_writes_is_no_input(refused, files, tmp_path):
    files.write("data/train.jsonl", ROWS)
    for data in ("data", "data/train.jsonl"):
        message = refused("--overwrite", data=data, train_path="data/train.jsonl")
        assert "datasets.0" in message
        assert "data/train.jsonl, which this run writes" in message
    (tmp_path / "linked").symlink_to("data")
    assert "which this run writes" in refused("--overwrite", data="linked/*.jsonl", train_path="data/train.jsonl")
    assert "which this run writes" in refused(data="data", train_path="data/new.jsonl")
    assert (tmp_path / "data/train.jsonl").read_text() == LINES
