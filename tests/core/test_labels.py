"""Rows as texts of learned and other tokens: joined they are the whole, and no character is torn."""

import random

import pytest
from impruver_core import encode_chat
from impruver_core.labels import decode_segments
from support.messages import assistant, user
from support.tokenizers import SMOLLM2_TEMPLATE, byte_level, sentencepiece_like, tokenizer_for

BACKENDS = {"byte-level": byte_level, "sentencepiece": sentencepiece_like}
SAID = "Привет, 👩‍🚀 — a  b\n中文 \ufffd x é 🍏"


@pytest.fixture(params=BACKENDS)
def tokenizer(request):
    return tokenizer_for(SMOLLM2_TEMPLATE, BACKENDS[request.param]())


def test_a_row_is_cut_where_learning_starts_and_ends(tokenizer):
    messages = [user(SAID), assistant(f" {SAID} "), user(SAID), assistant(SAID)]
    row = encode_chat(tokenizer, messages, add_bos=False, add_eos=False)
    found = decode_segments(tokenizer, row.input_ids, row.labels)
    assert [learned for _, learned in found] == [False, True, False, True, False]
    assert "".join(text for text, _ in found) == tokenizer.decode(row.input_ids)
    assert [text.strip() for text, learned in found if learned] == [SAID + " <|im_end|>", SAID + "<|im_end|>"]


def test_no_character_is_torn_wherever_the_borders_are(tokenizer):
    ids = tokenizer(SAID * 3, add_special_tokens=False)["input_ids"]
    chance = random.Random(0)
    for share in (0.05, 0.3, 0.5, 0.9):
        for _ in range(50):
            labels = [token if chance.random() < share else -100 for token in ids]
            found = decode_segments(tokenizer, ids, labels)
            assert "".join(text for text, _ in found) == tokenizer.decode(ids)
            assert all(text != "" for text, _ in found)
            assert sum(text.count("\ufffd") for text, _ in found) == 3


def test_tokens_that_are_no_text_and_no_tokens(tokenizer):
    ids = tokenizer("🍏", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    assert decode_segments(tokenizer, ids[:-1], [-100] * (len(ids) - 1)) == [(tokenizer.decode(ids[:-1]), False)]
    assert decode_segments(tokenizer, [], []) == []
