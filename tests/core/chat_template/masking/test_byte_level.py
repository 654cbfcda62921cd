"""Where tokens stand, computed from their bytes, is where `tokenizers` says that they stand; or it is not computed."""

import random

import pytest
from impruver_core.chat_template.masking.byte_level import (
    build_byte_level_encodings,
    encode_with_offsets,
    read_byte_level_vocabulary,
)
from impruver_core.chat_template.masking.loss_mask import _find_token_ranges
from support.tokenizers import SMOLLM2_TEMPLATE, byte_level, byte_level_with, sentencepiece_like, tokenizer_for
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

PIECES = [
    "What is",
    " the",
    "\n\n",
    " Привет",
    "12345",
    "中文",
    "👩‍🚀",
    "e\u0301",
    "é",
    "ﬁ",
    "𝕏",
    "\t",
    "<|im_end|>",
    "\x00",
]
LETTERS = pre_tokenizers.Split(Regex(r"\p{L}+|\s+"), "isolated")


def splitting(*steps):
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return byte_level_with(pre_tokenizer=pre_tokenizers.Sequence([*steps, last]))


def less_bytes():
    """The vocabulary without its tokens of some single bytes, as SmolLM2's."""
    tokenizer = Tokenizer.from_str(byte_level())
    vocabulary = {token: number for token, number in tokenizer.get_vocab().items() if token not in "ÐÑĠ"}
    tokenizer.model = models.BPE(vocab=vocabulary, merges=[])
    return tokenizer.to_str()


TAKEN = {
    "byte-level": byte_level,
    "split first": lambda: splitting(LETTERS, pre_tokenizers.Digits(individual_digits=True)),
    "NFC": lambda: byte_level_with(normalizer=normalizers.NFC()),
    "without some bytes": less_bytes,
}
OTHERS = {
    "sentencepiece": sentencepiece_like,
    "NFKC": lambda: byte_level_with(normalizer=normalizers.NFKC()),
    "NFC and more": lambda: byte_level_with(
        normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    ),
    "prefix space": lambda: byte_level_with(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "blanks removed": lambda: splitting(pre_tokenizers.Split(Regex(r"\s+"), "removed")),
    "words alone": lambda: splitting(pre_tokenizers.Whitespace()),
    "no bytes": lambda: byte_level_with(pre_tokenizer=pre_tokenizers.Whitespace()),
}


def make_texts(count=150):
    chance = random.Random(0)
    return ["", *("".join(chance.choices(PIECES, k=chance.randrange(1, 30))) for _ in range(count))]


@pytest.mark.parametrize("kind", TAKEN)
def test_offsets_are_those_of_the_library(kind):
    tokenizer = tokenizer_for(SMOLLM2_TEMPLATE, TAKEN[kind]())
    vocabulary = read_byte_level_vocabulary(tokenizer.backend_tokenizer)
    texts = make_texts()
    wanted = encode_with_offsets(tokenizer, texts)
    found = build_byte_level_encodings(texts, [each.ids for each in wanted], vocabulary)
    assert sum(each is not None for each in found) > (10 if kind == "without some bytes" else 40)
    chance = random.Random(1)
    for text, one, other in zip(texts, found, wanted, strict=True):
        if one is None:  # bytes that are not in the vocabulary, or characters that are composed
            assert kind in ("NFC", "without some bytes")
            continue
        assert len(one) == len(other)
        assert one.array.tolist() == one.ids == other.ids
        assert one.offsets == [tuple(each) for each in other.offsets]
        assert one.starts.tolist() == [start for start, _ in other.offsets]
        spans = [tuple(sorted(chance.choices(range(len(text) + 1), k=2))) for _ in range(20)]
        assert list(_find_token_ranges(one, spans)) == list(_find_token_ranges(other, spans))


@pytest.mark.parametrize("kind", OTHERS)
def test_of_other_kinds_nothing_is_computed(kind):
    assert read_byte_level_vocabulary(tokenizer_for(SMOLLM2_TEMPLATE, OTHERS[kind]()).backend_tokenizer) is None


@pytest.mark.parametrize("text", ["a <x> b", "a  <x>  b", "<x>", "no such token"])
def test_an_added_token_that_takes_blanks_with_it(text):
    tokenizer = tokenizer_for(SMOLLM2_TEMPLATE)
    tokenizer.add_tokens([AddedToken("<x>", lstrip=True, rstrip=True, special=True)])
    (encoding,) = encode_with_offsets(tokenizer, [text])
    (found,) = build_byte_level_encodings(
        [text], [encoding.ids], read_byte_level_vocabulary(tokenizer.backend_tokenizer)
    )
    assert (found is None) == (" <x>" in text)
    assert found is None or found.offsets == [tuple(each) for each in encoding.offsets]


def test_ids_that_are_not_the_text():
    tokenizer = tokenizer_for(SMOLLM2_TEMPLATE, unk_token="<unk>")
    vocabulary = read_byte_level_vocabulary(tokenizer.backend_tokenizer)
    (encoding,) = encode_with_offsets(tokenizer, ["What is it?"])
    wrong = [encoding.ids[1:], [*encoding.ids, 10**6], [], None]
    texts = ["What is it?"] * len(wrong)
    assert build_byte_level_encodings(texts, wrong, vocabulary) == [None] * len(wrong)
