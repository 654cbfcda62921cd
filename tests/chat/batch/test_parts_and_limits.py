"""Contents as lists of parts, and answers at their limit: what a row says of them."""

from support.chat_models import WORDS
from support.jsonl import read_jsonl
from support.messages import assistant, user


def text_part(text, **changes):
    return {"type": "text", "text": text} | changes


RED = user([text_part("re"), text_part("d", type="input_text")])


def test_a_list_of_text_parts_is_the_text_and_anything_else_is_named(answers, recipe, tmp_path, models, composed):
    rows = [
        {"messages": [RED], "id": 1},
        {"prompt": [text_part("re"), "d"], "reference": "no"},
        {"messages": [RED, assistant([text_part(WORDS["red"], type="output_text")])]},
        {"messages": [user([text_part("what"), {"type": "image_url", "image_url": {"url": "x"}}])]},
        {"messages": [user([{"type": "text"}])]},
        {"messages": [user([])]},
        {"messages": [user([5])]},
    ]
    got, out, _ = answers(recipe(), rows, "--expect")
    assert [row["messages"][-2:] for row in got[:3]] == [[user("red"), assistant(WORDS["red"])]] * 3
    assert (got[2]["reference"], got[2]["match"]) == (WORDS["red"], True)
    assert "right: 1 of 2" in out
    told = ["its part 1 is of type 'image_url'; parts of text alone are read", "part 0 has no text", "it is empty"]
    assert all(each in row["error"] for each, row in zip([*told, "part 0 has no text"], got[3:], strict=True))
    assert len(composed(tmp_path / "answers.jsonl", models / "full")) == 1  # the same answer three times, and no errors


def test_a_row_says_that_its_answer_was_cut_off(answers, recipe, chat, write_jsonl, tmp_path):
    rows = [{"prompt": "red"}, {"prompt": "red", "finish_reason": "length", "id": 1}, {"id": 2, "finish_reason": "x"}]
    got, _, err = answers(recipe(), rows)
    assert ["finish_reason" in row for row in got] == [False, True, True]
    assert (got[1]["finish_reason"], got[2]["finish_reason"], "limit" in err) == ("stop", "x", False)
    got, _, err = answers(recipe(), rows, "--max_new_tokens", "3")
    assert [row["finish_reason"] for row in got] == ["length", "length", "x"]
    assert "2 of the answers reached the limit of tokens" in err
    # Resumed from a journal, and with what the context leaves as the limit, as well.
    flags = ["--input", write_jsonl([{"prompt": "x " * 2040}]), "--output", tmp_path / "b.jsonl"]
    assert chat("--config", recipe("babbler"), *flags, "--batch_size", "1")[0] == 0
    assert read_jsonl(tmp_path / "b.jsonl")[0]["finish_reason"] == "length"
