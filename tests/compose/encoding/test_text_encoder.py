"""Whatever encodes, the bytes are the same; where gigatoken can't be used, or disagrees, `tokenizers` encodes."""

import hashlib
import json
import random
from importlib.metadata import version

import impruver_compose.encoding.text_encoder as text_encoder
import pytest
from impruver_compose.encoding.text_encoder import GigatokenEncoder, TokenizersEncoder, find_encoder
from impruver_core.chat_template.masking.byte_level import encode_with_offsets
from support.tokenizers import SMOLLM2_TEMPLATE, byte_level, sentencepiece_like, tokenizer_for
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PIECES = ["What is", " the", "\n\n", " Привет", "12345", "中文", "👩‍🚀", "e\u0301", " ﬁ", "\t", "<|im_end|>", "don't"]
OUTPUTS = ("train.jsonl", "val.jsonl", "train.dropped.jsonl")


def qwen_like():
    tokenizer = Tokenizer.from_str(byte_level())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN), "isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, last])
    return tokenizer.to_str()


def make_text(chance):
    return "".join(chance.choices(PIECES, k=chance.randrange(1, 40)))


@pytest.fixture
def rows(files):
    """Conversations in many scripts, some with control text, some too long, and a document."""
    chance = random.Random(0)
    rows = [files.chat(f"{number} {make_text(chance)}", f"{make_text(chance)} {number}") for number in range(1200)]
    rows[7] = files.chat("long", "river " * 2000)
    files.write("data.jsonl", rows)
    files.write("texts.jsonl", [{"text": "".join(make_text(chance) for _ in range(30))}])
    return [{"name": "data.jsonl"}, {"name": "texts.jsonl"}]


@pytest.fixture
def qwen_dir(tmp_path):
    tokenizer_for(SMOLLM2_TEMPLATE, qwen_like()).save_pretrained(tmp_path / "qwen")
    return {"name": str(tmp_path / "qwen"), "max_tokens_count": 1000}


def hashes(done):
    return [hashlib.sha256((done.folder / "out" / name).read_bytes()).hexdigest() for name in OUTPUTS]


@pytest.mark.parametrize("kind", ["trained here", "qwen-like"])
def test_all_encoders_give_the_same_bytes(kind, rows, composed, tokenizer_dir, qwen_dir):
    tokenizer = qwen_dir if kind == "qwen-like" else {"name": str(tokenizer_dir), "max_tokens_count": 1000}
    keys = {"datasets": rows, "tokenizer": tokenizer, "split": {"val_ratio": 0.1}}
    found = {}
    for encoder, processes in (("tokenizers", 2), ("gigatoken", 1), ("gigatoken", 2), ("auto", 2)):
        done = composed("--overwrite", f"--num_proc={processes}", compose={"encoder": encoder}, **keys)
        assert "differently" not in done.err
        described = done.manifest["encoders"]
        assert all(each.startswith(encoder.replace("auto", "gigatoken")) for each in described)
        assert all(f"tokenizers {version('tokenizers')}" in each for each in described)
        found[encoder, processes] = hashes(done)
    assert len(set(map(tuple, found.values()))) == 1
    assert len(done.train) > 900


@pytest.fixture
def losing_a_merge(monkeypatch):
    """Has gigatoken load the tokenizer without the merge of some pair: a planted fault, in its data."""

    def plant(first, second):
        def load(self):
            from gigatoken import Tokenizer

            content = json.loads(self._content)
            merges = content["model"]["merges"]
            content["model"]["merges"] = [pair for pair in merges if list(pair) != [first, second]]
            assert len(content["model"]["merges"]) < len(merges)
            return Tokenizer.from_json(json.dumps(content))

        monkeypatch.setattr(GigatokenEncoder, "_load", load)

    return plant


@pytest.mark.parametrize("processes", [1, 2])
def test_a_data_set_that_gigatoken_encodes_otherwise(processes, files, composed, losing_a_merge, tokenizer_dir):
    """What differs is in a sampled row of one data set: that one alone is encoded by `tokenizers`."""
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    losing_a_merge(*next(pair for pair in merges if "".join(pair) == "Ñģ"))  # of Cyrillic letters
    files.write("data.jsonl", files.unlike(1100))
    russian = files.unlike(1100, start=2000)
    russian[1000] = files.chat("столица страны", "столица страны")  # the first of the second shard
    files.write("russian.jsonl", russian)
    keys = {"datasets": [{"name": "data.jsonl"}, {"name": "russian.jsonl"}]}
    done = composed(f"--num_proc={processes}", **keys)
    assert "russian.jsonl: gigatoken and tokenizers encode a text differently (of row 1000 or one behind it" in done.err
    assert "столица" in done.err
    assert "data.jsonl: gigatoken" not in done.err.replace("russian.jsonl", "")
    assert [each.split()[0] for each in done.manifest["encoders"]] == ["gigatoken", "tokenizers"]
    found = hashes(done)
    assert hashes(composed("--overwrite", compose={"encoder": "tokenizers"}, **keys)) == found


def test_bytes_that_do_not_add_up(files, composed, monkeypatch):
    """Ids that lack bytes of their text are compared whichever row they are of."""

    def lose(self, texts):
        found = original(self, texts)
        return [ids[:-3] if "question 150 " in text else ids for text, ids in zip(texts, found, strict=True)]

    original = GigatokenEncoder._encode
    monkeypatch.setattr(GigatokenEncoder, "_encode", lose)
    files.write("data.jsonl", files.unlike(200))
    done = composed()
    assert "data.jsonl: gigatoken and tokenizers encode a text differently" in done.err
    assert len(done.train) == 200
    assert hashes(composed("--overwrite", compose={"encoder": "tokenizers"})) == hashes(done)


def test_a_tokenizer_that_gigatoken_does_not_take(files, composed, refused, tmp_path):
    for name, backend in (("pieces", sentencepiece_like()), ("lacking", without_a_byte())):
        tokenizer_for(SMOLLM2_TEMPLATE, backend).save_pretrained(tmp_path / name)
        files.write("data.jsonl", files.unlike(5))
        keys = {"tokenizer": {"name": str(tmp_path / name)}}
        message = refused("--overwrite", compose={"encoder": "gigatoken"}, **keys)
        assert message.startswith("compose.encoder: gigatoken")
        assert message.rstrip().endswith("; auto takes it where it can be used")
        assert composed("--overwrite", **keys).manifest["encoders"] == [f"tokenizers {version('tokenizers')}"]
        for path in (tmp_path / "out").iterdir():
            path.unlink()


def without_a_byte():
    content = json.loads(byte_level())
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    lost = "Ă"  # the byte 2
    content["model"]["vocab"] = {token: number for token, number in vocabulary.items() if lost not in token}
    content["model"]["merges"] = [pair for pair in merges if lost not in "".join(pair)]
    return json.dumps(content)


def test_gigatoken_is_not_installed(files, composed, refused, monkeypatch):
    monkeypatch.setattr(text_encoder, "find_spec", lambda name: None)
    files.write("data.jsonl", files.unlike(5))
    message = refused(compose={"encoder": "gigatoken"})
    assert "gigatoken is not installed: pip install 'impruver-compose[fast]'" in message
    assert composed().manifest["encoders"] == [f"tokenizers {version('tokenizers')}"]


def test_dry_run_names_the_encoder_of_each_data_set(files, compose):
    files.write("data.jsonl", files.unlike(5))
    assert "encoded by gigatoken" in compose("--dry_run").err
    assert "encoded by tokenizers" in compose("--dry_run", compose={"encoder": "tokenizers"}).err


def test_gigatoken_is_loaded_anew_before_it_remembers_too_much(monkeypatch):
    tokenizer = tokenizer_for(SMOLLM2_TEMPLATE, qwen_like())
    chance = random.Random(3)
    texts = [make_text(chance) for _ in range(50)]
    wanted = [each.ids for each in encode_with_offsets(tokenizer, texts)]
    encoder, loaded = find_encoder(tokenizer, "gigatoken"), []
    load = GigatokenEncoder._load
    monkeypatch.setattr(GigatokenEncoder, "_load", lambda self: loaded.append(1) or load(self))
    monkeypatch.setattr(text_encoder, "RENEWED", 1000)
    for start in range(0, 50, 10):
        assert [each.ids for each in encoder(texts[start : start + 10])] == wanted[start : start + 10]
    assert 1 < len(loaded) < 6


@pytest.mark.parametrize("encoder", [TokenizersEncoder, GigatokenEncoder])
def test_a_text_that_the_backend_fails_on(encoder):
    tokenizer = tokenizer_for(SMOLLM2_TEMPLATE, qwen_like())
    encode = find_encoder(tokenizer, encoder.name)
    assert isinstance(encode, encoder)
    good, bad, more = encode(["What is", "\ud800", "the river"])
    assert [each.ids for each in encode_with_offsets(tokenizer, ["What is", "the river"])] == [good.ids, more.ids]
    assert bad.reason == "tokenizer_failed"
    assert encode([]) == []
