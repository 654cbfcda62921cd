"""Tiny real models that know five words, saved here; and the command, in this process or as one of its own."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = {"red": "красный 🍎", "green": "зелёный", "blue": "синий", "black": "чёрный", "white": "белый"}
OTHER_WORDS = {"red": "rot", "green": "vert", "blue": "azul", "black": "nero", "white": "bijeli"}
VOCABULARY = 290
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]


def make_tokenizer(folder):
    """A byte-level BPE of 290 tokens with chat markers; Cyrillic letters and emoji take several tokens each."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["what is red", "green and blue", "black or white"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_model(**changes):
    """A Llama with random weights, the same each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(LLAMA | {"vocab_size": VOCABULARY} | changes)))


def teach(model, tokenizer, words, steps=120, rate=3e-3):
    """Trains what requires gradients until the model answers each word with its translation."""
    import torch
    from impruver_core import encode_chat

    chats = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in words.items()
    ]
    rows = [encode_chat(tokenizer, messages) for messages in chats]
    width = max(len(row.input_ids) for row in rows)
    ids = torch.tensor([row.input_ids + [0] * (width - len(row.input_ids)) for row in rows])
    labels = torch.tensor([row.labels + [-100] * (width - len(row.labels)) for row in rows])
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=rate)
    for _ in range(steps):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The models are tiny: more threads, torch's and llama.cpp's, only wait for each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders: `full` knows WORDS, `adapter` on it OTHER_WORDS, `babbler` never ends; made once a worker."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer(folder / "full")
    full = teach(make_model(), tokenizer, WORDS)
    full.save_pretrained(folder / "full")
    lora = LoraConfig(r=8, lora_alpha=32, target_modules=LINEAR, task_type="CAUSAL_LM")
    adapted = teach(get_peft_model(full, lora), tokenizer, OTHER_WORDS, steps=250)
    adapted.save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    settings = json.loads((folder / "adapter/adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(folder / "full")
    (folder / "adapter/adapter_config.json").write_text(json.dumps(settings))
    make_model().save_pretrained(folder / "babbler")
    tokenizer.save_pretrained(folder / "babbler")
    return folder


@pytest.fixture(scope="session")
def tiny():
    """The makers above, for tests."""
    return SimpleNamespace(
        words=WORDS, other_words=OTHER_WORDS, make_model=make_model, make_tokenizer=make_tokenizer, teach=teach
    )


@pytest.fixture
def recipe(tmp_path, models):
    """Writes a recipe for a folder of `models` (or any other), returns its path; keyword arguments are its keys."""

    def write(folder="full", /, **keys):
        given = {"output_dir": str(models / folder), "model": {"dtype": "fp32"}} | keys
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(given), encoding="utf-8")  # JSON is YAML
        return path

    return write


@pytest.fixture
def write_jsonl(tmp_path):
    """Writes rows into a file of tmp_path; its path."""

    def write(rows, name="questions.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def chat(capfd):
    """Runs the command's own main in this process (saves the imports); (exit code, stdout, stderr)."""
    from impruver_chat.cli import main

    def run(*flags):
        capfd.readouterr()
        try:
            code = main([str(flag) for flag in flags])
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def answers(chat, write_jsonl, tmp_path):
    """Answers rows with the command; (the rows of the output, stdout, stderr). Exit code 0 is asserted."""

    def run(config, rows, *flags):
        output = tmp_path / "answers.jsonl"
        paths = ["--input", write_jsonl(rows), "--output", output]
        code, out, err = chat("--config", config, *paths, "--overwrite", *flags)
        assert code == 0, err
        return read_jsonl(output), out, err

    return run


@pytest.fixture
def as_process(tmp_path):
    """Runs `python -m impruver_chat` as a process of its own; its CompletedProcess, with bytes."""

    def run(*flags, **options):
        command = [sys.executable, "-m", "impruver_chat", *map(str, flags)]
        return subprocess.run(command, capture_output=True, timeout=300, check=False, **options)

    return run
