"""Duplicates judged by answers alone, and the warning where most of a data set is dropped."""

import pytest

LONG = "the river and the stone, the cloud and the lamp, the tiger and the bread, the window and the garden " * 2


def dropped_of(done):
    return [(each["row"], each["reason"], each["kept"]["row"]) for each in done.dropped]


ROWS = {
    "the same answer": (("a", "one"), ("b", "one")),
    "blanks around it": (("a", "one"), ("b", " one\n")),
}


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("method", ["exact", "minhash"])
def test_equal_answers(case, method, composed, files):
    files.write("data.jsonl", [files.chat(*row) for row in ROWS[case]])
    assert dropped_of(composed(dedup={"on": "answer", "method": method})) == [(1, "exact_duplicate", 0)]
    assert composed(dedup={"method": method}).dropped == []
    assert composed(dedup={"on": "prompt", "method": method}).dropped == []


def test_near_answers_whatever_is_asked(composed, files):
    rows = [
        files.chat("what is it?", f"{LONG} one"),
        files.chat(f"something else: {LONG}", f"{LONG} two"),
        files.chat("what is it?", "quite another one, of which nothing was said before"),
    ]
    files.write("data.jsonl", rows)
    done = composed(dedup={"on": "answer"})
    assert dropped_of(done) == [(1, "near_duplicate", 0)]
    assert done.dropped[0]["similarity"] >= 0.8


def test_all_answers_of_a_conversation_count(composed, files):
    rows = [
        files.chat("a", "one", "b", "two"),
        files.chat("c", "one", "d", "two"),
        files.chat("a", "one", "b", "three"),
    ]
    files.write("data.jsonl", [*rows, files.chat("a", "two")])
    assert dropped_of(composed(dedup={"on": "answer", "method": "exact"})) == [(1, "exact_duplicate", 0)]


def test_another_call_or_another_thought_is_another_answer(composed, files):
    def call(city):
        function = {"name": "weather", "arguments": {"city": city}}
        return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}

    template = files.chatml.replace("m['content'] }}", "m['content'] }}{{ (m.tool_calls or '') | string }}", 1)
    rows = [[{"role": "user", "content": f"{n}"}, call(city)] for n, city in enumerate(("Rome", "Oslo", "Rome"))]
    files.write("data.jsonl", [{"messages": messages} for messages in rows])
    keys = {"dedup": {"on": "answer", "method": "exact"}, "tokenizer": {"chat_template": template}}
    assert dropped_of(composed(**keys)) == [(2, "exact_duplicate", 0)]


def test_the_split_is_by_prompt_as_ever(composed, files):
    files.write("data.jsonl", [files.chat(f"question {n // 4}", f"answer {n} {'of it ' * n}") for n in range(40)])
    done = composed(dedup={"on": "answer", "method": "exact"}, split={"val_rows": 8})
    assert len(done.val) == 8
    assert len({row["messages"][0]["content"] for row in done.val}) == 2


def test_documents_are_judged_whole(composed, files):
    files.write("data.jsonl", [{"text": f"{LONG} one"}, {"text": f"{LONG} one"}, {"text": "other words"}])
    assert dropped_of(composed(dedup={"on": "answer"})) == [(1, "exact_duplicate", 0)]


def test_most_of_a_data_set_dropped_is_warned_of_with_two_pairs(composed, files):
    rows = [files.chat(f"question {n}", "yes") for n in range(4)] + [files.chat(f"other {n}", "no") for n in range(3)]
    files.write("data.jsonl", rows)
    files.write("b.jsonl", [*files.unlike(2), files.chat("question 9", "yes")])
    done = composed(datasets=[{"name": "data.jsonl"}, {"name": "b.jsonl"}], dedup={"on": "answer"})
    warned = "data set 0 (data.jsonl): 5 of 7 conversations repeat others and are dropped (dedup.method: minhash, "
    assert f"{warned}dedup.on: answer), such as\n" in done.err
    first, second = done.err.partition(warned)[2].splitlines()[1:3]
    assert first == "  0:1:0 repeats 0:0:0, exactly (--explain 0:1:0 shows both): question [-1-]{+0+} / yes"
    assert second == "  0:5:0 repeats 0:4:0, exactly (--explain 0:5:0 shows both): other [-1-]{+0+} / no"
    assert "data set 1" not in done.err.partition(warned)[2].partition("#")[0]
    again = composed("--explain", "0:1:0", datasets=[{"name": "data.jsonl"}, {"name": "b.jsonl"}]).out
    assert "kept was data set 0 (data.jsonl), row 0" in again


def test_the_pairs_are_those_least_alike_shortened(composed, files):
    text = f"{LONG * 6} end"
    files.write("data.jsonl", [files.chat("q", text), files.chat("q", text), files.chat("q", f"{text} so")])
    err = composed().err
    assert "2 of 3 conversations repeat others" in err
    first, second = (line for line in err.splitlines() if " repeats 0:0:0, " in line)
    assert "0:2:0 repeats 0:0:0, similarity 0." in first
    assert "[- so-]" in first
    assert "exactly" in second
    assert max(len(first), len(second)) < 700


def test_half_of_a_data_set_is_no_warning(composed, files):
    rows = files.unlike(3)
    files.write("data.jsonl", [*rows, *rows])
    assert "repeat others" not in composed().err
    files.write("data.jsonl", [*rows, *rows, rows[0]])
    assert "4 of 7 conversations repeat others" in composed().err


def test_it_is_told_before_anything_is_written(composed, files, monkeypatch):
    from pathlib import Path

    from impruver_compose.reporting import duplicate_warning

    seen = []
    warn = duplicate_warning.warn
    monkeypatch.setattr(
        duplicate_warning, "warn", lambda text: (seen.append(Path("out/train.jsonl").exists()), warn(text))
    )
    files.write("data.jsonl", [files.chat("a", "b")] * 3)
    composed()
    assert seen == [False]
