"""A tokenizer.json that loops, fills memory or aborts is refused in a process of its own; any other passes."""

import copy
import json
import time

import pytest
from impruver_core import tokenizer_trial, trial
from impruver_core.errors import ImpruverError
from impruver_core.tokenizer_trial import UnloadableTokenizerError, trying_tokenizer
from support.tokenizers import train_bpe


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPRUVER_CACHE", str(tmp_path / "cache"))


def pad(**settings):
    return {
        "direction": "Right",
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "a",
        "pad_to_multiple_of": None,
    } | settings


def steps(step, times):
    return {"type": "Sequence", "normalizers": [step] * times}


def template(count, ids):
    special = {"a": {"id": "a", "ids": [0] * ids, "tokens": ["a"] * ids}}
    single = [{"SpecialToken": {"id": "a", "type_id": 0}}] * count + [{"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}


REPLACE = {"type": "Replace", "pattern": {"String": "zqx"}, "content": "zqx" * 500}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
ATTACKS = {
    "a replacement that multiplies": {"normalizer": steps(REPLACE, 4)},
    "texts that double with each step": {"normalizer": steps({"type": "ByteLevel"}, 40)},
    "a prefix added again and again": {"normalizer": steps({"type": "Prepend", "prepend": "a" * 200_000}, 5)},
    "a decoder that multiplies": {
        "decoder": {"type": "Sequence", "decoders": [REPLACE | {"pattern": {"String": "a"}, "content": "a" * 1500}] * 4}
    },
    "a decoder that cuts more than there is": {
        "decoder": {"type": "Strip", "content": "a", "start": 10**12, "stop": 10**12}
    },
    "a regular expression": {"pre_tokenizer": SPLIT | {"pattern": {"Regex": "(a+)+b"}}},
    "another one, for another letter": {"pre_tokenizer": SPLIT | {"pattern": {"Regex": "(ы|ыы)+$"}}},
    "chunks of nothing": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "padding to a length": {"padding": pad(strategy={"Fixed": 10**10})},
    "padding to a multiple": {"padding": pad(strategy="BatchLongest", pad_to_multiple_of=10**9)},
    "a stride above the length": {
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
    },
    "special tokens around a text": {"post_processor": template(1000, 1000)},
    "a prefix of subwords": {"model": {"continuing_subword_prefix": "x" * 10**6}},
    "a charsmap of nothing": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA////"}},
    "an id far beyond the others": {"model": {"vocab": {"a": 0, "b": 1, "ab": 2, "c": 4_000_000_000}}},
    "a token that is a book": {"model": {"vocab": {"a": 0, "b": 1, "ab": 2, "c" * 200_000: 3}}},
}


@pytest.fixture(scope="module")
def plain():
    """The JSON of a small BPE."""
    content = json.loads(train_bpe(["ab"], 300).to_str())
    content["model"] |= {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    return content | {"pre_tokenizer": None, "decoder": None}


@pytest.mark.parametrize("what", ATTACKS)
def test_what_does_harm_is_refused(what, plain, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_trial, "SECONDS", 1)
    content = copy.deepcopy(plain)
    for key, value in ATTACKS[what].items():
        content[key] = content["model"] | value if key == "model" else value
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    start = time.monotonic()
    with pytest.raises(ImpruverError) as raised, trying_tokenizer(path):
        pass
    assert str(raised.value).startswith(f"{path}: ")
    assert "copy it again" in str(raised.value)
    assert len(str(raised.value)) < 400
    assert time.monotonic() - start < 300  # ends at all, on any machine


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"model": 7}', '{"version": "1.0"}', '{"normalizer":' * 100_000, "\0" * 1000],
    ids=["empty", "cut off", "a list", "no model", "half", "nested", "zeros"],
)
def test_what_cannot_be_loaded_is_told_as_that(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    told = pytest.raises(UnloadableTokenizerError, match=r"tokenizer.json can't be loaded: .")
    with told, trying_tokenizer(tmp_path / "tokenizer.json"):
        pass


def test_a_good_one_is_tried_once(plain, tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(plain | {"added_tokens": []}, indent=3))
    (tmp_path / "cache").mkdir()  # which a dry run doesn't
    with trying_tokenizer(path):
        pass
    monkeypatch.setattr(trial, "_passed", set())  # as in another process, which finds the file
    monkeypatch.setattr(tokenizer_trial.subprocess, "Popen", None)  # another process can't be started
    with trying_tokenizer(path):
        pass


def test_no_file_is_no_fault(tmp_path):
    with trying_tokenizer(tmp_path / "tokenizer.json"):
        pass


def test_a_failure_meanwhile_leaves_no_process(plain, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(plain, indent=5))
    with pytest.raises(ZeroDivisionError), trying_tokenizer(path):
        raise ZeroDivisionError
