"""A small real tokenizer, data and recipes written in tmp_path, and the command itself."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.cli import run_as_process, run_in_process, script
from support.jsonl import read_jsonl, write_jsonl
from support.messages import conversation
from support.recipes import write_recipe
from support.tokenizers import CHATML, target_runs, train_bpe_tokenizer

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
    from tokenizers.processors import TemplateProcessing

    texts = [f"the {a} and the {b}, user assistant system, столица страны" for a in WORDS for b in WORDS]
    folder = tmp_path_factory.mktemp("tokenizer")
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = train_bpe_tokenizer(folder, texts, 500, SPECIAL, CHATML, **names)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save_pretrained(folder)
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


def unlike(count, start=0):
    """Rows that are no duplicates of one another."""
    said = [
        " ".join(WORDS[(at * 7 + step * (at % 13 + 1)) % len(WORDS)] + str(at * step) for step in range(1, 7))
        for at in range(start, start + count)
    ]
    return [conversation(f"question {at} {text}", f"{text} answer {at}") for at, text in enumerate(said, start)]


def rendered(*turns):
    """What ChatML makes of (role, text) pairs, as this tokenizer decodes it."""
    return "<s>" + "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)


@dataclass(frozen=True)
class Files:
    """Rows and templates for tests, and JSONL in `folder`."""

    folder: Path
    chatml: str = CHATML
    bare: str = BARE
    chat = staticmethod(conversation)
    unlike = staticmethod(unlike)
    rendered = staticmethod(rendered)
    read = staticmethod(read_jsonl)

    def write(self, name: str, rows) -> Path:
        return write_jsonl(self.folder / name, rows)


@pytest.fixture
def files(tmp_path) -> Files:
    return Files(tmp_path)


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
        return write_recipe(tmp_path / "recipe.yaml", base)

    return write


@dataclass(frozen=True)
class Outcome:
    """code, out, err of a run in `folder`, and what it wrote."""

    code: int
    out: str
    err: str
    folder: Path

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
        done = run_in_process(main, ["--config", recipe(**keys), *flags], capfd)
        return Outcome(*done, folder=tmp_path)

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

    def run(*flags, **environment):
        return run_as_process(script("impruver-compose"), *flags, environment=environment, timeout=120)

    return run


@pytest.fixture
def texts(tokenizer):
    """What rows say, special tokens included."""
    return lambda rows: [tokenizer.decode(row["input_ids"]) for row in rows]


@pytest.fixture
def learned(tokenizer):
    """The runs of target tokens of a row, decoded."""
    return lambda row: target_runs(tokenizer, row)
