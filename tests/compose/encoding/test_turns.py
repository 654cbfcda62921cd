"""turns, on_overflow and weight: which lines a conversation becomes, on which side, how often."""

import random
from collections import Counter

import pytest
from impruver_core import encode_chat

STRIPS = (  # of earlier turns the thought goes, so a leading part may be longer than it is within the whole
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last %}{% set text = text.split('</think>')[-1] %}{% endif %}"
    "{{ text }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LEARNED = ("assistant", "function_call")


def unlearned(row, *numbers):
    for number in numbers:
        row["messages"][number]["train"] = False
    return row


@pytest.fixture
def rows(files):
    """Conversations of one turn and of many, with turns that are not learned, ends that are no answer, calls."""
    calls = files.chat("rain?")
    calls["messages"] += [
        {"role": "function_call", "content": '{"name": "f", "arguments": {"at": "Paris"}}'},
        {"role": "function_response", "content": "no"},
        {"role": "assistant", "content": "dry"},
    ]
    return [
        files.chat("one question", "one answer"),
        files.chat("a", "b", "c", "d один", "e", "f два 🍏", system="be kind"),
        unlearned(files.chat("g", "h", "i", "j", "k", "l"), 3),
        unlearned(files.chat("m", "n", "o", "p"), 3),
        files.chat("q", "r", "s", "t", "and a last word of the user that nobody answers"),
        files.chat("u", "<think>thought of u</think>v", "w", "<think>thought of w</think>x"),
        calls,
    ]


def expected(tokenizer, messages, turns):
    """(number of messages, Encoded) of each line, encoded one by one."""
    ends = [n for n, m in enumerate(messages) if m["role"] in LEARNED and m.get("train") is not False]
    if turns == "all":
        return [(len(messages), encode_chat(tokenizer, messages))]
    lines = []
    for end in ends if turns == "each" else ends[-1:]:
        before = [message | {"train": False} for message in messages[:end]]
        lines.append((end + 1, encode_chat(tokenizer, [*before, messages[end]])))
    return lines


def as_pairs(rows):
    return Counter((tuple(row["input_ids"]), tuple(row["labels"])) for row in rows)


def pairs_of(lines):
    return Counter((tuple(line.input_ids), tuple(line.labels)) for line in lines)


@pytest.fixture
def templated(tokenizer_dir):
    """The tokenizer with another template."""
    from transformers import AutoTokenizer

    def made(template):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
        tokenizer.chat_template = template
        return tokenizer

    return made


@pytest.mark.parametrize("template", ["chatml", "without an end", "strips"])
@pytest.mark.parametrize("turns", ["all", "last", "each"])
def test_lines_are_leading_parts_trained_on_their_last_turn(turns, template, rows, composed, files, templated, learned):
    text = {"chatml": files.chatml, "without an end": files.bare, "strips": STRIPS}[template]
    files.write("data.jsonl", rows)
    done = composed(data={"turns": turns}, tokenizer={"chat_template": text})
    wanted = [line for row in rows for line in expected(templated(text), row["messages"], turns)]
    assert as_pairs(done.train) == pairs_of(encoded for _, encoded in wanted)
    if turns != "all":
        assert all(len(learned(row)) == 1 for row in done.train)
    (counts,) = done.manifest["counts"]
    assert (counts["conversations"], counts["train"], counts["train_rows"]) == (7, 7, len(wanted))
    assert counts["tokens"] == sum(len(row["input_ids"]) for row in done.train)
    assert counts["ended"] == sum(encoded.ended for _, encoded in wanted)


@pytest.mark.parametrize("turns", ["last", "each"])
def test_a_turn_that_is_not_to_be_learned_gives_no_line(turns, composed, files, learned):
    files.write(
        "data.jsonl", [unlearned(files.chat("g", "h", "i", "j", "k", "l"), 3), unlearned(files.chat("m", "n"), 1)]
    )
    done = composed(data={"turns": turns})
    assert sorted(learned(row) for row in done.train) == [["h<|im_end|>"], ["l<|im_end|>"]][turns == "last" :]
    assert [(line["row"], line["reason"]) for line in done.dropped] == [(1, "nothing_to_learn")]


@pytest.mark.parametrize("seed", range(3))
def test_lines_of_a_conversation_stay_on_one_side(seed, composed, files):
    rows = [files.chat(*(f"{number} said {turn}" for turn in range(2 + 2 * (number % 4)))) for number in range(30)]
    files.write("data.jsonl", rows)
    done = composed(data={"turns": "each"}, split={"val_ratio": 0.4}, dedup={"method": "none"}, seed=seed)
    (counts,) = done.manifest["counts"]
    assert (counts["val"], counts["train"]) == (12, 18)
    asked = [row["messages"] for row in done.val]
    in_val = {int(messages[0]["content"].split()[0]) for messages in asked}
    assert len(in_val) == 12
    assert len(asked) == counts["val_rows"] == sum(1 + number % 4 for number in in_val)
    assert len(done.train) == counts["train_rows"] == sum(1 + number % 4 for number in range(30)) - len(asked)
    for messages in asked:
        assert messages == rows[int(messages[0]["content"].split()[0])]["messages"][: len(messages)]


@pytest.mark.parametrize("turns", ["last", "each"])
def test_val_rows_carry_the_messages_up_to_their_turn(turns, rows, composed, files, tokenizer):
    files.write("data.jsonl", rows)
    done = composed(data={"turns": turns}, split={"val_rows": 6})
    given = {row["messages"][-1]["content"]: row["messages"] for row in rows}
    assert len(done.val) >= 6
    for row in done.val:
        count = len(row["messages"])
        (whole,) = [messages for messages in given.values() if messages[:count] == row["messages"]]
        (encoded,) = [line for length, line in expected(tokenizer, whole, turns) if length == count]
        assert (row["input_ids"], row["labels"]) == (encoded.input_ids, encoded.labels)


def longest(tokenizer, messages, turns, limit):
    """The lines of `messages` with on_overflow: trim_turns, by trying all."""
    lines = expected(tokenizer, messages, turns)
    fit = [line for line in lines if len(line[1].input_ids) <= limit]
    if fit:
        return fit
    for count in range(len(messages) - 1, 0, -1):
        last = messages[count - 1]
        if last["role"] in LEARNED and last.get("train") is not False:
            line = expected(tokenizer, messages[:count], turns if turns == "all" else "last")[0]
            if len(line[1].input_ids) <= limit:
                return [line]
    return []


@pytest.mark.parametrize("template", ["chatml", "strips"])
@pytest.mark.parametrize("turns", ["all", "last", "each"])
@pytest.mark.parametrize("limit", [12, 18, 24, 30, 45, 60])
def test_trimmed_rows_are_the_longest_that_fit(limit, turns, template, rows, compose, files, templated):
    text = {"chatml": files.chatml, "strips": STRIPS}[template]
    files.write("data.jsonl", rows)
    section = {"turns": turns, "on_overflow": "trim_turns", "max_tokens_count": limit}
    done = compose(data=section, tokenizer={"chat_template": text}, dedup={"method": "none"})
    wanted = [longest(templated(text), row["messages"], turns, limit) for row in rows]
    if not any(wanted):
        assert done.code == 2
        assert "too_long" in done.err
        return
    assert done.code == 0, done.err
    assert as_pairs(done.train) == pairs_of(line for lines in wanted for _, line in lines)
    assert all(len(row["input_ids"]) <= limit for row in done.train)
    assert [line["row"] for line in done.dropped] == [at for at, lines in enumerate(wanted) if not lines]
    assert {line["reason"] for line in done.dropped} <= {"too_long"}
    (counts,) = done.manifest["counts"]
    shorter = [
        lines and lines[-1][0] < expected_count(row["messages"], turns) for row, lines in zip(rows, wanted, strict=True)
    ]
    assert counts["trimmed"] == sum(map(bool, shorter))


def expected_count(messages, turns):
    """How many messages the longest line of an untrimmed conversation has."""
    ends = [n + 1 for n, m in enumerate(messages) if m["role"] in LEARNED and m.get("train") is not False]
    return len(messages) if turns == "all" else ends[-1]


def test_trimmed_rows_carry_what_is_left_in_val(composed, files):
    rows = [files.chat(f"a{n}", f"b{n}", "c", "river " * 40) for n in range(6)]
    files.write("data.jsonl", rows)
    done = composed(data={"on_overflow": "trim_turns", "max_tokens_count": 40}, split={"val_rows": 3})
    assert [row["messages"] in [each["messages"][:2] for each in rows] for row in done.val] == [True] * 3
    assert done.manifest["counts"][0]["trimmed"] == 6
    assert done.dropped == []


def test_nothing_to_trim_to(composed, files):
    """All is learned, and no turn of an assistant is there to end with."""
    files.write("data.jsonl", [files.chat("river " * 200), files.chat("a", "b")])
    section = {"only_target_loss": False, "on_overflow": "trim_turns", "max_tokens_count": 100}
    done = composed(data=section)
    assert [(line["row"], line["reason"]) for line in done.dropped] == [(0, "too_long")]


def said(texts, rows):
    """How often each question stands in rows."""
    return Counter(text.partition("user\n")[2].partition("<|im_end|>")[0] for text in texts(rows))


@pytest.mark.parametrize(("weight", "least", "more"), [(0.3, 0, 15), (1, 1, 0), (2, 2, 0), (2.5, 2, 25)])
def test_weight(weight, least, more, composed, files, texts):
    """Of 50 conversations `more` stand once more than `least`."""
    files.write("data.jsonl", files.unlike(50))
    files.write("other.jsonl", files.unlike(10, 100))
    keys = {"datasets": [{"name": "data.jsonl", "weight": weight}, {"name": "other.jsonl"}]}
    done = composed(**keys, split={"val_rows": 0})
    asked = [row["messages"][0]["content"] for row in files.unlike(50)]
    times = said(texts, done.train)
    assert sorted(times[question] for question in asked) == [least] * (50 - more) + [least + 1] * more
    assert all(times[row["messages"][0]["content"]] == 1 for row in files.unlike(10, 100))
    out = [line for line in done.dropped if line["reason"] == "sampled_out"]
    assert {asked[line["row"]] for line in out} == {question for question in asked if not times[question]}
    assert {line["detail"] for line in out} <= {f"weight {float(weight)}"}
    counts = done.manifest["counts"][0]
    assert counts["conversations"] == 50 == counts["train"] + counts["val"] + counts["dropped"].get("sampled_out", 0)
    assert counts["train_rows"] == 50 * least + more
    assert counts["tokens"] + done.manifest["counts"][1]["tokens"] == sum(len(row["input_ids"]) for row in done.train)


def test_weight_is_for_train_alone(composed, files):
    files.write("data.jsonl", files.unlike(40))
    plain = composed(split={"val_rows": 10})
    for weight in (0.5, 3):
        done = composed(data={"weight": weight}, split={"val_rows": 10})
        assert done.val == plain.val
        assert len(done.train) == 30 * weight


def test_weight_is_drawn_by_seed(composed, files):
    files.write("data.jsonl", files.unlike(40))
    runs = [composed(data={"weight": 0.5}, seed=seed).train for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert as_pairs(runs[0]) != as_pairs(runs[2])


def test_a_conversation_is_weighed_with_all_its_lines(composed, files, texts):
    rows = [files.chat(f"a{n}", f"b{n}", f"c{n}", f"d{n}") for n in range(10)]
    files.write("data.jsonl", rows)
    done = composed(data={"weight": 1.5, "turns": "each"}, dedup={"method": "none"})
    times = said(texts, done.train)
    assert sorted(times.values()) == [2] * 5 + [4] * 5
    lengths = Counter(text.count("<|im_start|>") for text in texts(done.train))
    assert lengths == {2: 15, 4: 15}


def test_weights_that_leave_nothing(refused, files):
    files.write("data.jsonl", files.unlike(2))
    assert "weight" in refused(data={"weight": 0.1})


@pytest.mark.parametrize("weight", [0, -1, ".inf"])
def test_weights_that_are_none(weight, refused, files):
    files.write("data.jsonl", files.unlike(2))
    assert "datasets.0.weight" in refused(data={"weight": weight})


def test_any_order_of_rows_gives_the_same_lines(composed, rows, files):
    files.write("data.jsonl", rows)
    first = as_pairs(composed(data={"turns": "each"}).train)
    random.Random(3).shuffle(rows)
    files.write("data.jsonl", rows)
    assert as_pairs(composed(data={"turns": "each"}).train) == first
