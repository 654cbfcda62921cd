"""The gate: what is learned, whether the model learns to stop, and whether it is asked as it was trained."""

import pytest

THINKS = (  # as the prompt of models that always think: no answer of the data begins so
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
EMPTY_THOUGHT = (  # as Qwen3's: its own empty thought before the last answer, learned as the model is to write it
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n"
    "</think>\n\n{% endif %}{% endif %}"
)
STRIPS = (  # as Qwen3's: of earlier turns the thought goes
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last %}{% set text = text.split('</think>')[-1].lstrip('\n') %}"
    "{% elif m['reasoning_content'] %}{% set text = '<think>' + m.reasoning_content + '</think>' + text %}{% endif %}"
    "{{ text }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def gate(composed, files):
    """Runs on rows with a template; (the outcome, the gate of the only data set)."""

    def run(rows, template=None, *flags, **keys):
        files.write("data.jsonl", rows)
        if template:
            keys["tokenizer"] = {"chat_template": template, **keys.get("tokenizer", {})}
        done = composed(*flags, **keys)
        (entry,) = done.manifest["gate"]
        return done, entry

    return run


def test_all_is_well(gate, files):
    rows = [*files.unlike(8), files.chat("no answer")]
    done, entry = gate(rows, split={"val_rows": 2})
    everything = done.train + done.val
    tokens = sum(len(row["input_ids"]) for row in everything)
    learned = sum(label != -100 for row in everything for label in row["labels"])
    assert entry == {
        "dataset": "data.jsonl",
        "dataset_index": 0,
        "tokens": tokens,
        "learned": learned,
        "learned_share": round(learned / tokens, 4),
        "nothing_to_learn": 1,
        "rows": 8,
        "ended": 8,
        "probed": 8,
        "unlike_prompt": 0,
        "example": None,
        "reasoning_stripped": 0,
        "warnings": [],
    }
    assert "warning" not in done.err
    line = next(line for line in done.err.splitlines() if "8 of 8" in line)
    assert line.split() == ["0", "data.jsonl", f"{learned / tokens:.0%}", "1", "8", "of", "8"]


def test_an_entry_for_each_data_set(composed, files):
    files.write("a.jsonl", files.unlike(3))
    files.write("b.jsonl", files.unlike(4, 50))
    done = composed(datasets=[{"name": "a.jsonl"}, {"name": "b.jsonl", "add_global_eos": False}])
    assert [(e["dataset"], e["dataset_index"], e["rows"]) for e in done.manifest["gate"]] == [
        ("a.jsonl", 0, 3),
        ("b.jsonl", 1, 4),
    ]


def test_a_dry_run_tells_the_same(composed, files, gate):
    rows = [*files.unlike(3), files.chat("a", "<think>b</think>c", "d", "e")]
    _, entry = gate(rows, STRIPS)
    done = composed("--dry_run", "--overwrite", tokenizer={"chat_template": STRIPS})
    assert "4 of 4" in done.err
    assert f"warning: data set 0 (data.jsonl): {entry['warnings'][0]}" in done.err


NO_END = "the chat template has no end-of-turn token, a turn ends only by the next header"


def last_unlearned(files):
    row = files.chat("a", "b", "c", "d")
    row["messages"][3]["train"] = False
    return row


ENDS = {
    "EOS behind each": (lambda files: files.unlike(3), {}, 3, [f"{NO_END}: EOS behind the last answer alone teaches"]),
    "EOS off": (
        lambda files: files.unlike(3),
        {"data": {"add_global_eos": False}},
        0,
        ["trained on in 0 of 3 rows", NO_END, "add_global_eos is off", "the model won't learn to stop"],
    ),
    "the last answer is not learned": (
        lambda files: [*files.unlike(3), last_unlearned(files)],
        {},
        3,
        ["trained on in 3 of 4 rows", NO_END, "the last answer has train: false"],
    ),
    "rows go on": (
        lambda files: [*files.unlike(3), files.chat("a", "b", "c")],
        {},
        3,
        ["trained on in 3 of 4 rows", "rows go on behind their last answer"],
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_template_without_an_end_of_turn(case, gate, files):
    rows, keys, ended, told = ENDS[case]
    done, entry = gate(rows(files), files.bare, **keys)
    assert entry["ended"] == ended
    (warning,) = entry["warnings"]
    assert all(part in warning for part in told), warning
    assert ("won't learn to stop" in warning) == (ended == 0)
    assert f"warning: data set 0 (data.jsonl): {warning}" in done.err


def test_a_tokenizer_without_eos(gate, files, tokenizer_dir, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "endless")
    _, entry = gate(files.unlike(3), files.bare, tokenizer={"name": "endless"})
    (warning,) = entry["warnings"]
    told = ("0 of 3", NO_END, "the tokenizer has no EOS", "won't learn to stop")
    assert all(part in warning for part in told), warning


def test_documents_that_are_cut_or_have_no_eos(gate):
    texts = [{"text": "the river " * 20}, {"text": "a stone"}]
    _, entry = gate(texts, data={"max_tokens_count": 16})
    assert (entry["ended"], entry["probed"]) == (2, 0)
    assert "of documents that are cut at max_tokens_count only the last piece has EOS" in entry["warnings"][0]
    _, entry = gate(texts, data={"add_global_eos": False})
    assert "0 of 2 rows: add_global_eos is off; the model won't learn to stop" in entry["warnings"][0]
    _, entry = gate(texts)
    assert (entry["ended"], entry["warnings"]) == (2, [])


def test_the_prompt_is_not_what_was_trained(gate, files):
    rows = [*files.unlike(4), files.chat("a", "<think>\nb</think>c")]
    done, entry = gate(rows, THINKS)
    assert (entry["unlike_prompt"], entry["probed"]) == (4, 5)  # the last row begins as the prompt ends
    example = entry["example"]
    assert (example["row"], example["part"]) == (0, 0)
    assert example["trained"].endswith("<|im_start|>assistant\n")
    assert example["prompt"].endswith("<|im_start|>assistant\n<think>\n")
    (warning,) = entry["warnings"]
    assert "in 4 of the first 5 rows" in warning
    assert "row 0, conversation 0" in warning
    assert f"training:  {example['trained']!r}\n" in warning
    assert f"inference: {example['prompt']!r}" in warning
    assert warning in done.err
    assert done.err.count("inference: ") == 1


def test_only_the_neighbourhood_of_the_difference_is_shown(gate, files):
    _, entry = gate([files.chat("river " * 500, "b")], THINKS)
    assert all(len(entry["example"][name]) < 200 for name in ("trained", "prompt"))
    assert entry["example"]["prompt"].startswith("…")


def test_an_empty_thought_of_the_model_is_trained_on(gate, files, learned):
    done, entry = gate([files.chat("a", "b", "c", "d")], EMPTY_THOUGHT)
    assert (entry["unlike_prompt"], entry["warnings"]) == (0, [])
    assert learned(done.train[0])[-1] == "<think>\n\n</think>\n\nd<|im_end|>"
    _, entry = gate(
        [files.chat("a", "b", "c", "d")], EMPTY_THOUGHT, tokenizer={"chat_template_kwargs": {"enable_thinking": False}}
    )
    assert entry["unlike_prompt"] == 0


def test_a_template_without_a_generation_prompt(gate, files):
    template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    _, entry = gate(files.unlike(3), template)
    assert entry["unlike_prompt"] == 3
    assert not entry["example"]["prompt"].endswith("assistant\n")


def thoughts(files):
    tagged = files.chat("a", "<think>\nwhy not\n</think>\nb", "c", "<think>so</think>d")
    field = files.chat("e", "f", "g", "h")
    field["messages"][1]["reasoning_content"] = "earlier"
    last = files.chat("i", "j", "k", "<think>only the last</think>l")
    return [tagged, field, last, files.chat("m", "<b>n</b>", "o", "p")]


def test_reasoning_of_earlier_turns_that_is_stripped(gate, files, texts):
    done, entry = gate(thoughts(files), STRIPS)
    assert not any("why not" in text or "earlier" in text for text in texts(done.train))
    assert (entry["reasoning_stripped"], entry["probed"]) == (2, 4)
    (warning,) = entry["warnings"]
    assert "in 2 of the first 4 rows" in warning
    assert "turns: each (or last)" in warning
    assert warning in done.err


@pytest.mark.parametrize("turns", ["each", "last"])
def test_turns_as_at_inference_lose_nothing(turns, gate, files):
    done, entry = gate(thoughts(files), STRIPS, data={"turns": turns})
    assert (entry["reasoning_stripped"], entry["warnings"]) == (0, [])
    assert entry["probed"] == entry["rows"] == len(done.train) == (8 if turns == "each" else 4)


def test_reasoning_that_stays_is_not_stripped(gate, files):
    _, entry = gate(thoughts(files)[:1])
    assert entry["reasoning_stripped"] == 0


def test_the_first_hundred_rows_must_have_a_mask(refused, compose, files):
    """A template that doubles what begins with x: its mask can't be found there."""
    said = "{% if m['content'][0] == 'x' %}{{ m['content'] * 2 }}{% else %}{{ m['content'] }}{% endif %}"
    template = files.chatml.replace("{{ m['content'] }}", said)
    bad = files.chat("a question", "x is said twice")
    files.write("data.jsonl", [*files.unlike(99), bad])
    message = refused(tokenizer={"chat_template": template}, code=3)
    assert "data set 0 (data.jsonl), row 99, conversation 0: " in message
    assert '"x is said twice"' in message
    files.write("data.jsonl", [*files.unlike(100), bad])
    done = compose(tokenizer={"chat_template": template})
    assert done.code == 3
    assert len(done.train) == 100
    assert [(line["row"], line["reason"]) for line in done.dropped] == [(100, "mask_refused")]


def test_rows_without_tools_are_not_warned_about(composed, files):
    files.write("data.jsonl", [files.chat("a", "b") | {"tools": "[]"}])
    assert "tools" not in composed().err
    files.write("data.jsonl", [files.chat("a", "b") | {"tools": '[{"name": "f"}]'}])
    assert "its rows have tools, which the chat template does not render" in composed().err
