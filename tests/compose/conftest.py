"""A small real tokenizer, data and recipes written in tmp_path, and the command itself."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BARE = CHATML.replace("<|im_end|>\n", "")  # no token ends a turn
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
WORDS = [
    "river",
    "stone",
    "cloud",
    "lamp",
    "tiger",
    "bread",
    "window",
    "garden",
    "silver",
    "market",
    "winter",
    "candle",
    "forest",
    "engine",
    "pepper",
    "bridge",
]


@pytest.fixture(scope="session", autouse=True)
def offline():
    """No hub; set before the libraries read it, at their import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        yield


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory, offline) -> Path:
    """A byte-level BPE with ChatML, BOS (put before plain text), EOS and PAD."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    texts = [f"the {a} and the {b}, user assistant system, столица страны" for a in WORDS for b in WORDS]
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder = tmp_path_factory.mktemp("tokenizer")
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=CHATML, **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_dir)


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    """Home, cache and working folder of its own for each test."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IMPRUVER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def chat(*texts, system=None):
    """A messages row of alternating user and assistant texts."""
    turns = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + turns}


def unlike(count, start=0):
    """Rows that are no duplicates of one another."""
    said = [
        " ".join(WORDS[(at * 7 + step * (at % 13 + 1)) % len(WORDS)] + str(at * step) for step in range(1, 7))
        for at in range(start, start + count)
    ]
    return [chat(f"question {at} {text}", f"{text} answer {at}") for at, text in enumerate(said, start)]


def rendered(*turns):
    """What ChatML makes of (role, text) pairs, as this tokenizer decodes it."""
    return "<s>" + "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)


def read_jsonl(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def write_rows(path, rows):
    """Writes JSONL, compressed where the name ends in .gz."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture
def files(tmp_path):
    """The makers and readers above, and `learned`."""
    return SimpleNamespace(
        chat=chat,
        chatml=CHATML,
        bare=BARE,
        read=read_jsonl,
        rendered=rendered,
        unlike=unlike,
        write=lambda name, rows: write_rows(tmp_path / name, rows),
    )


@pytest.fixture
def recipe(tmp_path, tokenizer_dir):
    """Writes a recipe, returns its path; keyword arguments are top-level keys, None removes one.

    `data`: the only data set's name, or its keys. All goes to train.jsonl unless `split` says otherwise.
    """

    def write(data="data.jsonl", **keys):
        base = {
            "train_path": "out/train.jsonl",
            "val_path": "out/val.jsonl",
            "tokenizer": {"name": str(tokenizer_dir)},
            "datasets": [{"name": data} if isinstance(data, str) else {"name": "data.jsonl", **data}],
            "split": {"val_rows": 0},
        }
        base = {key: value for key, value in (base | keys).items() if value is not None}
        base.get("tokenizer", {}).setdefault("name", str(tokenizer_dir))
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(base, ensure_ascii=False), encoding="utf-8")  # JSON is YAML
        return path

    return write


class Outcome(SimpleNamespace):
    """code, out, err of a run in `folder`, and what it wrote."""

    @property
    def train(self):
        return read_jsonl(self.folder / "out/train.jsonl")

    @property
    def val(self):
        return read_jsonl(self.folder / "out/val.jsonl")

    @property
    def dropped(self):
        return read_jsonl(self.folder / "out/train.dropped.jsonl")

    @property
    def manifest(self):
        return json.loads((self.folder / "out/train.jsonl.manifest.json").read_text(encoding="utf-8"))


@pytest.fixture
def compose(recipe, tmp_path, capfd):
    """Runs the command's own main in this process (saves the imports) on a recipe made of the keyword arguments."""
    from impruver_compose.cli import main

    def run(*flags, **keys):
        config = recipe(**keys)
        capfd.readouterr()
        code = main(["--config", str(config), *map(str, flags)])
        out, err = capfd.readouterr()
        return Outcome(code=code, out=out, err=err, folder=tmp_path)

    return run


@pytest.fixture
def composed(compose):
    """As `compose`, and it must go well."""

    def run(*flags, **keys):
        done = compose(*flags, **keys)
        assert done.code == 0, done.err
        return done

    return run


@pytest.fixture
def refused(compose, tmp_path):
    """As `compose`, and it must end with one message, its exit code (2) and nothing written; returns the message."""

    def run(*flags, code=2, **keys):
        done = compose(*flags, **keys)
        assert done.code == code, done.err
        assert "Traceback" not in done.err
        assert done.out == ""
        assert done.err.count("impruver-compose: ") == 1
        left = tmp_path / "out"
        assert not left.is_dir() or not list(left.iterdir())
        return done.err.partition("impruver-compose: error: ")[2]

    return run


@pytest.fixture
def as_process():
    """Runs the installed console script as a process of its own."""
    program = Path(sys.executable).with_name("impruver-compose")

    def run(*flags, **environment):
        return subprocess.run(
            [program, *map(str, flags)], capture_output=True, text=True, env=os.environ | environment, timeout=120
        )

    return run


@pytest.fixture
def texts(tokenizer):
    """What rows say, special tokens included."""
    return lambda rows: [tokenizer.decode(row["input_ids"]) for row in rows]


@pytest.fixture
def learned(tokenizer):
    """The learned runs of a row, decoded."""

    def runs(row):
        assert len(row["labels"]) == len(row["input_ids"])
        found, before = [], -100
        for id_, label in zip(row["input_ids"], row["labels"], strict=True):
            assert label in (-100, id_)
            if label != -100:
                found = [*found[:-1], [*found[-1], id_]] if before != -100 else [*found, [id_]]
            before = label
        return [tokenizer.decode(ids) for ids in found]

    return runs
