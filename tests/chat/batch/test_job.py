"""JSONL in, JSONL out, with a real tiny model."""

import json

from impruver_chat.batch.rows import parse_question
from support.chat_models import WORDS


def turn(word, answer=None):
    messages = [{"role": "user", "content": word}]
    return [*messages, {"role": "assistant", "content": answer}] if answer is not None else messages


def test_answers_keep_the_order_and_the_other_fields_of_rows(answers, recipe):
    rows = [
        {"prompt": "green", "id": 7, "tags": ["a", None]},
        {"messages": turn("red"), "source": "x"},
        {"messages": turn("blue", "is not asked with it")},
    ]
    got, out, err = answers(recipe(), rows)
    assert got[0] == rows[0] | {"messages": turn("green", WORDS["green"])}
    assert got[1] == rows[1] | {"messages": turn("red", WORDS["red"])}
    assert got[2] == {"messages": turn("blue", WORDS["blue"])}
    assert out.endswith("answers.jsonl\n")
    assert out.startswith("wrote 3 rows to ")
    assert "the likeliest token each time, at most 200 new tokens" in err


def test_expect_scores_against_the_rows_own_answer_or_reference(answers, recipe):
    rows = [
        {"messages": turn("green", " ЗЕЛЁНЫЙ! ")},
        {"messages": turn("red", "rouge")},
        {"prompt": "blue", "reference": "Синий."},
        {"prompt": "white"},
    ]
    got, out, _ = answers(recipe(), rows, "--expect")
    assert [(row.get("reference"), row.get("match")) for row in got] == [
        (" ЗЕЛЁНЫЙ! ", True),
        ("rouge", False),
        ("Синий.", True),
        (None, None),
    ]
    assert out.splitlines()[0] == "right: 2 of 3 (66.7%)"


def test_fields_that_are_ours_win_and_that_is_said(answers, recipe):
    own = {"error": "E1", "match": "near", "reference": 5}
    rows = [{"prompt": "red", **own}, {"messages": turn("red", WORDS["red"]), **own}, {"id": 1, **own}]
    got, _, err = answers(recipe(), rows)
    said = {"messages": turn("red", WORDS["red"])}
    assert got == [rows[0] | said, own | said, {"id": 1, **own, "error": "neither messages nor a prompt"}]
    assert "note: 1 rows had an error, reference or match of their own, which ours replaced" in err
    got, _, err = answers(recipe(), rows, "--expect")
    assert got[:2] == [rows[0] | said, own | said | {"reference": WORDS["red"], "match": True}]
    assert "note: 2 rows had an error, reference or match of their own" in err
    assert "note: 1 of the answers have no reference that is a text, and are not scored" in err


def test_a_row_that_cant_be_asked_becomes_an_error_row(answers, recipe, models, tmp_path):
    rows = [
        {"messages": [], "id": 1},
        {"id": 2},
        {"messages": "red"},
        {"messages": [{"content": "no role"}]},
        {"messages": turn("red", "x")[1:]},
        {"prompt": "red", "tools": {}},
        {"prompt": "x " * 5000},
        {"prompt": "red"},
    ]
    got, out, _ = answers(recipe(), rows)
    assert all("messages" not in row and isinstance(row["error"], str) for row in got[:-1])
    assert got[0] == {"id": 1, "error": "no message to answer"}
    assert "neither messages nor a prompt" in got[1]["error"]
    assert "no role" in got[3]["error"]
    assert "tools is no list" in got[5]["error"]
    assert "context is 4,096" in got[6]["error"]
    assert got[7]["messages"][-1]["role"] == "assistant"
    assert "7 of them with an error" in out


def test_a_rows_tools_and_arguments_reach_the_template(answers, recipe, copy):
    folder = copy("full")
    template = "{% if not tools or mood is not defined %}{{ raise_exception('missing') }}{% endif %}"
    inherited = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template + inherited)
    row = {"prompt": "red", "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}
    got, _, _ = answers(recipe(folder), [row | {"chat_template_kwargs": {"mood": "b"}}, row])
    assert got[0]["messages"][-1]["content"]
    assert got[0]["tools"] == row["tools"]
    assert "missing" in got[1]["error"]


def test_the_system_prompt_precedes_prompts_but_not_messages():
    by_prompt = parse_question(1, {"prompt": "hi"}, "be brief")
    assert by_prompt.messages == [{"role": "system", "content": "be brief"}, *turn("hi")]
    assert parse_question(1, {"messages": turn("hi")}, "be brief").messages == turn("hi")


def test_a_function_call_is_an_answer_too():
    call = {"role": "function_call", "content": '{"name": "f", "arguments": {}}'}
    question = parse_question(1, {"messages": [*turn("hi"), call]}, None)
    assert (question.messages, question.reference) == (turn("hi"), call["content"])


def test_drawn_answers_are_the_seeds(answers, recipe):
    rows, flags = [{"prompt": "red"}] * 3, ["--temperature", "2", "--top_p", "1", "--max_new_tokens", "8"]

    def said(*more):
        got, _, _ = answers(recipe("babbler"), rows, *flags, *more)
        return [row["messages"][-1]["content"] for row in got]

    first = said("--seed", "1")
    assert first == said("--seed", "1")
    assert len(set(first)) == 3  # each row draws for itself
    assert said("--seed", "2") == [*first[1:], said("--seed", "4")[0]]  # a row's seed is seed + its place


def test_an_answer_at_its_limit_is_told(answers, recipe):
    _, _, err = answers(recipe("babbler"), [{"prompt": "red"}], "--max_new_tokens", "3")
    assert "1 of the answers reached the limit" in err


def test_the_output_is_what_compose_reads(answers, recipe, tmp_path, models, composed):
    answers(recipe(), [{"prompt": word} for word in ("red", "green", "blue")])
    assert len(composed(tmp_path / "answers.jsonl", models / "full")) == 3


def test_its_own_output_is_replaced_and_nobody_elses(chat, recipe, write_jsonl, tmp_path):
    flags = ["--config", recipe(), "--input", write_jsonl([{"prompt": "red"}]), "--output", tmp_path / "a.jsonl"]
    assert chat(*flags)[0] == 0
    assert chat(*flags)[0] == 0
    manifest = json.loads((tmp_path / "a.jsonl.manifest.json").read_text())
    assert (manifest["tool"], manifest["counts"]["rows"]) == ("impruver-chat", 1)
    assert manifest["outputs"][0]["path"] == "a.jsonl"
    (tmp_path / "a.jsonl").write_text("mine\n")
    code, _, err = chat(*flags)
    assert code == 2
    assert "--overwrite" in err
    assert (tmp_path / "a.jsonl").read_text() == "mine\n"


def test_a_row_longer_than_the_context_is_an_error_or_a_stop(answers, chat, recipe, write_jsonl, tmp_path):
    rows = [{"prompt": "red"}, {"prompt": "x " * 5000, "id": 1}, {"prompt": "blue"}]
    got, _, _ = answers(recipe(), rows)
    error = "the prompt takes 10,003 tokens, and the model's context is 4,096"
    assert got[1] == {"prompt": "x " * 5000, "id": 1, "error": error}
    assert [row["messages"][0]["content"] for row in got[::2]] == ["red", "blue"]
    path = write_jsonl(rows)
    code, out, err = chat("--config", recipe(), "--input", path, "--output", tmp_path / "b.jsonl", "--strict")
    assert (code, out) == (2, "")
    assert f"{path}, line 2: {error}" in err
    assert not (tmp_path / "b.jsonl").exists()


def test_the_size_of_batches_changes_no_byte(chat, recipe, write_jsonl, tmp_path):
    rows = write_jsonl([{"prompt": "red " * number, "id": number} for number in range(1, 20)])
    written = set()
    for size in (1, 5, 64):
        flags = ["--output", tmp_path / f"{size}.jsonl", "--batch_size", size, "--max_new_tokens", "6"]
        assert chat("--config", recipe("babbler"), "--input", rows, *flags, "--temperature", "1")[0] == 0
        written.add((tmp_path / f"{size}.jsonl").read_bytes())
    assert len(written) == 1
