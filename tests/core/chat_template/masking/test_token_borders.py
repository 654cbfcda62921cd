"""Borders inside tokens, characters of several tokens, and the kinds of tokenizers that real models have."""

import unicodedata

import pytest
from impruver_core import encode_chat
from impruver_core.chat_template.masking import loss_mask
from impruver_core.tokenizer import compute_fingerprint, plain_encoder
from support.messages import assistant, user
from support.tokenizers import (
    SMOLLM2_TEMPLATE,
    byte_level,
    byte_level_with,
    sentencepiece_like,
    stock_template,
    target_runs,
    tokenizer_for,
)
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors

BARE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
EMOJI = "👩‍🚀 e\u0301 ﬁ 𝕏 中文"


BACKENDS = {
    "byte-level": byte_level,
    "trimmed offsets": lambda: byte_level_with(post_processor=processors.ByteLevel(trim_offsets=True)),
    "NFC": lambda: byte_level_with(normalizer=normalizers.NFC()),
    "NFKC": lambda: byte_level_with(normalizer=normalizers.NFKC()),
    "prefix space": lambda: byte_level_with(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "sentencepiece": sentencepiece_like,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("template", [SMOLLM2_TEMPLATE, BARE], ids=["chatml", "bare"])
@pytest.mark.parametrize("answer", [EMOJI, "Paris", " Paris \n", "", "assistant: user:"])
def test_learned_tokens_are_those_that_hold_a_learned_character(backend, template, answer, monkeypatch):
    tokenizer = tokenizer_for(template, BACKENDS[backend]())
    messages = [user(f"Ask {EMOJI}"), assistant(answer), user(" x "), assistant("last " + answer)]
    row = encode_chat(tokenizer, messages, add_bos=False, add_eos=False)
    assert row.input_ids == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    runs = [unicodedata.normalize("NFKC", run) for run in target_runs(tokenizer, row)]
    wanted = [unicodedata.normalize("NFKC", text.strip()) for text in (answer, "last " + answer)]
    if template is SMOLLM2_TEMPLATE:
        assert [run.removesuffix("<|im_end|>").strip() for run in runs] == wanted
        assert all(run.endswith("<|im_end|>") for run in runs)
    elif answer != "":
        assert [run.strip() for run in runs] == wanted
    monkeypatch.setattr(loss_mask, "MANY_STEPS", 0)  # as in a conversation of many turns
    assert encode_chat(tokenizer, messages, add_bos=False, add_eos=False) == row


def test_the_tokenizer_is_left_as_it_was():
    tokenizer = tokenizer_for(SMOLLM2_TEMPLATE, BACKENDS["trimmed offsets"]())
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    before = tokenizer.backend_tokenizer.to_str()
    row = encode_chat(tokenizer, [user("a long question indeed"), assistant("a long answer indeed")])
    assert len(row.input_ids) > 9
    with pytest.raises(ZeroDivisionError), plain_encoder(tokenizer):
        raise ZeroDivisionError
    assert tokenizer.backend_tokenizer.to_str() == before


def test_a_fingerprint_knows_the_vocabulary_and_not_the_padding():
    tokenizer = tokenizer_for(SMOLLM2_TEMPLATE, pad_token="<pad>")
    print_before = compute_fingerprint(tokenizer)
    tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=4)
    assert compute_fingerprint(tokenizer) == print_before
    tokenizer.add_tokens(["<new>"])
    assert compute_fingerprint(tokenizer) != print_before


def test_200_turns_are_linear_in_renderings(monkeypatch):
    """One rendering and one tokenization, however many turns."""
    from impruver_core.chat_template.masking import loss_mask as mask

    calls = []
    monkeypatch.setattr(
        mask, "render_template", lambda *args, **more: calls.append(1) or render_template(*args, **more)
    )
    from impruver_core.chat_template.rendering.renderer import render_template

    tokenizer = tokenizer_for(stock_template("Qwen-Qwen3-0.6B"))
    messages = [message for turn in range(200) for message in (user(f"q{turn}"), assistant(f"a{turn}"))]
    row = encode_chat(tokenizer, messages)
    assert len(target_runs(tokenizer, row)) == 200
    assert len(calls) == 1


def test_a_tokenizer_of_another_making():
    """Special tokens declared in transformers' own ways are special, whichever way it was."""
    from transformers import PreTrainedTokenizerFast

    declared = [
        lambda t: t.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}),
        lambda t: t.add_special_tokens({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}),
        lambda t: t.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True),
        lambda t: None,  # not special at all: the end of turn is plain text
    ]
    for declare in declared:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(byte_level()))
        declare(tokenizer)
        tokenizer.chat_template = SMOLLM2_TEMPLATE
        row = encode_chat(tokenizer, [user("a"), assistant("b"), user("c"), assistant("d")], add_eos=False)
        assert target_runs(tokenizer, row) == ["b<|im_end|>", "d<|im_end|>"]
