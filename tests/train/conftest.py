"""Tiny real parts for training: a tokenizer trained here, a Llama saved here, token rows, and the command itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
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


def make_tokenizer(folder, template=TEMPLATE, texts=TEXTS):
    """Trains a byte-level BPE of 400 tokens with chat markers, pad and EOS; saves it into `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=template
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_rows(tokenizer, count):
    """Token rows of one question and answer each, the answer learned."""
    rows = []
    for text in (TEXTS * (count // len(TEXTS) + 1))[:count]:
        question, _, answer = text.partition(" is ")
        prompt = tokenizer(f"<|user|>{question}<|end|><|assistant|>", add_special_tokens=False)["input_ids"]
        learned = tokenizer(f"{answer}<|end|>", add_special_tokens=False)["input_ids"]
        rows.append({"input_ids": prompt + learned, "labels": [-100] * len(prompt) + learned})
    return rows


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def tiny():
    """The makers above, for tests."""
    return SimpleNamespace(
        llama=LLAMA, make_tokenizer=make_tokenizer, make_rows=make_rows, read_jsonl=read_jsonl, write_jsonl=write_jsonl
    )


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
        for key, value in keys.items():
            if value is None:
                base.pop(key)
            elif isinstance(value, dict) and key in base:
                base[key] = {name: item for name, item in (base[key] | value).items() if item is not None}
            else:
                base[key] = value
        path = tmp_path / name
        path.write_text(json.dumps(base), encoding="utf-8")  # JSON is YAML
        return path

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
        capfd.readouterr()
        try:
            code = main(["--config", str(config), *map(str, flags)])
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def as_process():
    """Runs `python -m impruver_train` as a process of its own; its CompletedProcess."""

    def run(*flags, **environment):
        return subprocess.run(
            [sys.executable, "-m", "impruver_train", *map(str, flags)],
            capture_output=True,
            text=True,
            env=os.environ | environment,
            timeout=300,
        )

    return run
