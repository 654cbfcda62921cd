"""The quickstart's data and tokenizer: what is committed is what tools/make_quickstart.py makes, and it is usable."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from support.jsonl import read_jsonl

QUICKSTART = ROOT / "configs" / "impruver_configs" / "quickstart"
MADE = (
    "countries.jsonl",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
)


def make(folder: Path) -> dict[str, bytes]:
    tool = ROOT / "tools" / "make_quickstart.py"
    subprocess.run([sys.executable, str(tool), str(folder)], check=True, capture_output=True)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return read_jsonl(QUICKSTART / "countries.jsonl")


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(QUICKSTART / "tokenizer", local_files_only=True)


def test_what_is_committed_is_what_the_tool_makes_each_time(tmp_path):
    first, second = make(tmp_path / "first"), make(tmp_path / "second")
    assert tuple(first) == MADE
    assert first == second
    for name in MADE:
        assert first[name] == (QUICKSTART / name).read_bytes(), f"{name}: run tools/make_quickstart.py and commit"


def test_rows(rows):
    assert len(rows) >= 2000
    assert {tuple(row) for row in rows} == {("instruction", "output")}
    assert all(row["instruction"].strip() == row["instruction"] and row["output"].endswith(".") for row in rows)
    assert not any(mark in text for row in rows for text in row.values() for mark in "{}")


def test_every_question_has_one_answer(rows):
    answers = {}
    for row in rows:
        assert answers.setdefault(row["instruction"], row["output"]) == row["output"]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the capital of France?", "The capital of France is Paris."),
        ("What is the currency of the Netherlands?", "The currency of the Netherlands is the euro."),
        ("What continent is Russia in?", "Russia is in Europe and Asia."),
        ("Назови столицу Вьетнама.", "Столица Вьетнама — Ханой."),
        ("Какими деньгами платят во Франции?", "Валюта Франции — евро."),
        ("На каком континенте находятся США?", "США находятся в Северной Америке."),
    ],
)
def test_sentences_are_grammatical(rows, question, answer):
    assert {"instruction": question, "output": answer} in rows


def test_most_rows_are_no_near_duplicates_and_some_are(rows):
    """By words in fives at 0.8, whatever exact form compose gives its shingles."""
    seen, near = {}, 0
    for row in rows:
        words = "".join(c if c.isalnum() else " " for c in f"{row['instruction']} {row['output']}".casefold()).split()
        shingles = {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}
        same_answer = seen.setdefault(row["output"], [])
        near += any(len(shingles & other) >= 0.8 * len(shingles | other) for other in same_answer)
        same_answer.append(shingles)
    assert 0.05 * len(rows) < near < 0.2 * len(rows)


def test_tokenizer_round_trips_and_knows_its_ends(tokenizer):
    for text in ("Привет, Ёжик! Столица Франции — Париж.", "  two  blanks\n\tnaïve 日本 🙂 1234"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "<|im_end|>", "<pad>")
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert tokenizer.model_max_length == 512


def test_chat_template(tokenizer):
    user, assistant = {"role": "user", "content": "Столица Перу?"}, {"role": "assistant", "content": "Лима."}
    prompt = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nСтолица Перу?<|im_end|>\n<|im_start|>assistant\n"
    whole = tokenizer.apply_chat_template([user, assistant], tokenize=False)
    assert whole == f"{prompt}Лима.<|im_end|>\n"
    ids = tokenizer.apply_chat_template([user, assistant], tokenize=True, return_dict=False)
    assert [ids.count(tokenizer.convert_tokens_to_ids(mark)) for mark in ("<|im_start|>", "<|im_end|>")] == [2, 2]


def test_every_role_is_one_token(tokenizer):
    assert [len(tokenizer(role).input_ids) for role in ("system", "user", "assistant")] == [1, 1, 1]
