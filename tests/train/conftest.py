"""Tiny real parts for training: a tokenizer trained here, a Llama saved here, token rows, and the command itself."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from support.cli import run_as_process, run_in_process
from support.jsonl import write_jsonl
from support.recipes import merge_keys, write_recipe
from support.tokenizers import ROLE_TAGS, train_bpe_tokenizer

COLOURS = ["red", "green", "blue", "black", "white"]
TEXTS = [f"the colour of thing number {i} is {COLOURS[i % 5]}" for i in range(200)]
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def make_tokenizer(folder, template=ROLE_TAGS, texts=TEXTS):
    """Trains a byte-level BPE of 400 tokens with chat markers, pad and EOS; saves it into `folder`."""
    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return train_bpe_tokenizer(folder, texts, 400, special, template, **names)


def make_rows(tokenizer, count):
    """Token rows of one question and answer each, the answer trained on."""
    rows = []
    for text in (TEXTS * (count // len(TEXTS) + 1))[:count]:
        question, _, answer = text.partition(" is ")
        prompt = tokenizer(f"<|user|>{question}<|end|><|assistant|>", add_special_tokens=False)["input_ids"]
        targets = tokenizer(f"{answer}<|end|>", add_special_tokens=False)["input_ids"]
        rows.append({"input_ids": prompt + targets, "labels": [-100] * len(prompt) + targets})
    return rows


@dataclass(frozen=True)
class Tiny:
    """The makers above, for tests."""

    llama: dict[str, int]
    make_tokenizer: Callable
    make_rows: Callable[..., list[dict]]


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny(LLAMA, make_tokenizer, make_rows)


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """Folder with `base` (a tiny Llama and its tokenizer), `train.jsonl`, `val.jsonl`, made once a worker."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)  # the parts are tiny: more threads only wait for each other
    folder = tmp_path_factory.mktemp("parts")
    tokenizer = make_tokenizer(folder / "base")
    torch.manual_seed(0)
    config = LlamaConfig(**LLAMA, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    rows = make_rows(tokenizer, 60)
    write_jsonl(folder / "train.jsonl", rows[:48])
    val = [row | {"messages": [{"role": "user", "content": f"q{i}"}]} for i, row in enumerate(rows[48:])]
    write_jsonl(folder / "val.jsonl", val)
    return folder


@pytest.fixture
def uneven(parts, tmp_path):
    """Seven rows of 1 to 7 answers each: numbers of target tokens that no batch averages right by itself."""
    from transformers import AutoTokenizer

    rows = make_rows(AutoTokenizer.from_pretrained(parts / "base"), 7)
    for times, row in enumerate(rows, 1):
        answer = [token for token in row["labels"] if token != -100]
        row["input_ids"] += answer * (times - 1)
        row["labels"] += answer * (times - 1)
    return write_jsonl(tmp_path / "uneven.jsonl", rows)


@pytest.fixture
def recipe(parts, tmp_path):
    """Writes a recipe over the tiny parts, returns its path; keyword arguments are top-level keys, None removes one."""

    def write(name="recipe.yaml", **keys):
        base = {
            "output_dir": str(tmp_path / "out"),
            "train_path": str(parts / "train.jsonl"),
            "model": {"name": str(parts / "base"), "dtype": "fp32"},
            "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
            "trainer": {
                "max_steps": 4,
                "per_device_train_batch_size": 4,
                "learning_rate": 0.01,
                "save_strategy": "no",
                "use_cpu": True,
                "logging_steps": 2,
            },
        }
        return write_recipe(tmp_path / name, merge_keys(base, keys))

    return write


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Each test has a cache of its own, no tracker, no hub and two threads at most."""
    monkeypatch.setenv("IMPRUVER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def impruver_train(capfd, monkeypatch):
    """Runs the command's own main in this process (saves the imports); (exit code, stdout, stderr)."""
    from impruver_train.cli import main

    def run(config, *flags):
        return run_in_process(main, ["--config", config, *flags], capfd)

    return run


@pytest.fixture
def as_process():
    """Runs `python -m impruver_train` as a process of its own; its CompletedProcess."""

    def run(*flags, **environment):
        return run_as_process(sys.executable, "-m", "impruver_train", *flags, environment=environment)

    return run
