"""Which conversations go to val."""

import random
import re

import numpy as np
import pytest
from impruver_compose.selection import _shuffle


def prompts(rows):
    return [row["messages"][0]["content"] for row in rows]


def test_val_rows_and_val_ratio(composed, files):
    files.write("data.jsonl", files.unlike(40))
    for section, val in (
        ({"val_rows": 7}, 7),
        ({"val_ratio": 0.25}, 10),
        ({"val_ratio": 0.001}, 1),
        ({"val_ratio": 0}, 0),
    ):
        done = composed(split=section)
        assert (len(done.train), len(done.val)) == (40 - val, val)
    assert (len(composed(split=None).val), len(composed(split={"val_rows": 0}).val)) == (2, 0)


def test_rows_with_the_same_prompt_land_on_the_same_side(composed, files, texts):
    rows = [files.chat(f"question {number // 4}", f"answer {number}") for number in range(80)]
    files.write("data.jsonl", rows)
    done = composed(split={"val_ratio": 0.2}, dedup={"method": "none"})
    in_val = set(prompts(done.val))
    assert len(done.val) == 16
    assert len(in_val) == 4
    assert not any(f"user\n{prompt}<|im_end|>" in text for text in texts(done.train) for prompt in in_val)


def test_another_answer_is_the_same_prompt_another_turn_is_not(composed, files):
    files.write("a.jsonl", [files.chat("a", "b", "c", f"answer {number}") for number in range(6)])
    files.write("b.jsonl", [files.chat("a", f"b{number}", "c", "answer") for number in range(6)])
    names = {"method": "none"}
    assert len(composed(data="a.jsonl", split={"val_rows": 3}, dedup=names).val) == 0
    assert len(composed(data="b.jsonl", split={"val_rows": 3}, dedup=names).val) == 3


JOINED = (  # as Mistral's: what stands before the question, and so its first token, depends on the system prompt
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }} {% elif m.role == 'user' %}{{ m.content|trim }}"
    "\n### answer:\n{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)


def test_the_system_prompt_does_not_make_another_prompt(composed, files):
    systems = (None, "Be kind.", "be brief\n")
    rows = [
        files.chat(f"river question {number}" + " " * at, f"answer {number} {at}", system=system)
        for number in range(20)
        for at, system in enumerate(systems)
    ]
    files.write("data.jsonl", rows)
    done = composed(tokenizer={"chat_template": JOINED}, split={"val_ratio": 0.5}, dedup={"method": "none"})
    asked = [row["messages"][-2]["content"].strip() for row in done.val]
    assert len(asked) == 30
    assert len(set(asked)) == 10


def test_rows_without_a_prompt_are_no_group(composed, files):
    files.write("data.jsonl", [{"instruction": "", "output": f"poem number {number}"} for number in range(20)])
    assert len(composed(split={"val_rows": 5}, dedup={"method": "none"}).val) == 5


def test_the_seed_decides(composed, files):
    files.write("data.jsonl", files.unlike(30))
    first, again, other = (composed(seed=seed, split={"val_rows": 10}) for seed in (1, 1, 2))
    runs = [composed(seed=seed, split={"val_rows": 10}).val for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert {*prompts(runs[0])} != {*prompts(runs[2])}
    assert first.code == again.code == other.code == 0


def test_train_and_val_are_shuffled(composed, files, texts):
    files.write("data.jsonl", files.unlike(60))
    done = composed(split={"val_ratio": 0.5})
    for rows in (done.train, done.val):
        numbers = [int(re.search(r"question (\d+)", text)[1]) for text in texts(rows)]
        assert len(numbers) == 30
        assert numbers != sorted(numbers)


def test_shuffled_as_lists_are():
    numbers = list(range(100, 300))
    shuffled = _shuffle(np.array(numbers), random.Random(3))
    random.Random(3).shuffle(numbers)
    assert shuffled.tolist() == numbers
    assert _shuffle(np.zeros(0, np.int64), random.Random(3)).tolist() == []


@pytest.mark.parametrize("wanted", [30, 31, 1000])
def test_nothing_left_for_train(wanted, refused, files):
    files.write("data.jsonl", files.unlike(30))
    assert "none of 30 conversations is left for train_path" in refused(split={"val_rows": wanted})


def test_one_conversation_goes_to_train(composed, files):
    files.write("data.jsonl", files.unlike(1))
    done = composed(split={"val_ratio": 0.5})
    assert (len(done.train), len(done.val)) == (1, 0)


def test_an_empty_val_that_was_not_asked_for_is_told(composed, files):
    files.write("data.jsonl", [files.chat("the same question", f"answer {at}") for at in range(10)])
    told, kept = "val_path gets no row", {"method": "none"}
    assert told in composed(split={"val_ratio": 0.5}, dedup=kept).err
    assert told not in composed(split={"val_ratio": 0}, dedup=kept).err
