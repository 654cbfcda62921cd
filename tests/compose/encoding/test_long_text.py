"""A long text gives the same tokens window by window as at once, whatever the tokenizer."""

import random
import shutil

import numpy as np
import pytest
from impruver_compose.encoding import long_text
from impruver_compose.encoding.long_text import make_tokenized_text, tokenize_text
from impruver_core.errors import RefusedError
from impruver_core.tokenizer import plain_encoder
from support.tokenizers import SMOLLM2_TEMPLATE, byte_level, byte_level_with, sentencepiece_like, tokenizer_for
from tokenizers import normalizers

WORDS = ["the river ", "and ", "stone\n\n", "столица страны ", "12345", "中文", "a" * 50]
PIECES = [*WORDS, "👩‍🚀", "e\u0301", "ﬁ", "  ", "\t", "!?..."]


BACKENDS = {
    "byte-level": byte_level,
    "NFKC": lambda: byte_level_with(normalizer=normalizers.NFKC()),
    "lowercase, stripped": lambda: byte_level_with(
        normalizer=normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()])
    ),
    "sentencepiece": sentencepiece_like,
}


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(long_text, "WINDOW", 700)
    monkeypatch.setattr(long_text, "OVERLAP", 300)


def make_text(seed, pieces=PIECES, count=800):
    return "".join(random.Random(seed).choices(pieces, k=count))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_give_the_tokens_of_the_whole(backend, seed, small_windows):
    text = make_text(seed)
    with plain_encoder(tokenizer_for(SMOLLM2_TEMPLATE, BACKENDS[backend]())) as encode:
        whole, lengths = make_tokenized_text(*encode([text])), []
        tokens = tokenize_text(lambda texts: lengths.extend(map(len, texts)) or encode(texts), text)
    assert np.array_equal(tokens.ids, whole.ids)
    assert np.array_equal(tokens.starts, whole.starts)
    assert len(lengths) > 5
    assert max(lengths) < len(text) / 2


@pytest.mark.parametrize("text", ["a" * 3000, "aб" * 1500 + " end", "", "short"])
def test_what_has_no_place_to_cut_is_the_same_too(text, small_windows):
    with plain_encoder(tokenizer_for(SMOLLM2_TEMPLATE, sentencepiece_like())) as encode:
        whole, tokens = make_tokenized_text(*encode([text])), tokenize_text(encode, text)
    assert np.array_equal(tokens.ids, whole.ids)
    assert np.array_equal(tokens.starts, whole.starts)


def test_a_window_that_the_tokenizer_fails_on_refuses_the_text(small_windows):
    def encode(texts):
        return [RefusedError("tokenizer_failed", "no") for _ in texts]

    with pytest.raises(RefusedError, match="tokenizer_failed"):
        tokenize_text(encode, make_text(1))


def test_a_long_document_is_composed_as_before(composed, files, monkeypatch, tokenizer):
    text = make_text(7)
    files.write("data.jsonl", [{"text": "one"}, {"text": text}, {"text": ""}])
    section = {"name": "data.jsonl", "max_tokens_count": 100}
    whole = composed(datasets=[section], output_dir="whole")
    monkeypatch.setattr("impruver_compose.encoding.encoder.WINDOW", 700)
    monkeypatch.setattr(long_text, "WINDOW", 700)
    monkeypatch.setattr(long_text, "OVERLAP", 300)
    shutil.rmtree("cache")
    windows = composed("--overwrite", datasets=[section], output_dir="whole")
    assert len(whole.train) > 5
    assert windows.train == whole.train
    assert windows.dropped == whole.dropped
