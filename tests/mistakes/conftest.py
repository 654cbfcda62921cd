"""A user's folder: a small base, data, a recipe that is right, what training left; and the commands."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLACES = ["France", "Italy", "Spain", "Japan", "Norway", "Chile", "Kenya", "Iran"]
ROWS = [
    {"instruction": f"Where is {place} to be found?", "output": f"{place} is {at * 9} days away."}
    for at, place in enumerate(PLACES)
]
RECIPE = {
    "output_dir": "output_dir: out",
    "train_path": "train_path: train.jsonl",
    "val_path": "val_path: val.jsonl",
    "model": "model:\n  name: ./base",
    "datasets": "datasets:\n  - name: data.jsonl",
    "lora": "lora:\n  target_modules: [q_proj, v_proj]",
    "trainer": "trainer:\n  max_steps: 2\n  use_cpu: true",
    "gguf": "gguf:\n  quantization_levels: [q8_0]",
}
MAINS = {
    "impruver": "impruver_core.commands.main",
    "impruver-compose": "impruver_compose.cli",
    "impruver-train": "impruver_train.cli",
    "impruver-gguf": "impruver_gguf.cli",
    "impruver-chat": "impruver_chat.cli",
}


def made(text: str) -> str:
    """The recipe with `text` first, and all that is right of the keys that it does not have."""
    keys = re.findall(r"^(\w+):", text, re.MULTILINE)
    return "\n".join([text.strip("\n"), *(block for key, block in RECIPE.items() if key not in keys)]) + "\n"


def run_main(program: str, words: list[str]) -> int:
    try:
        return import_module(MAINS[program]).main(words)
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """The folder as it is before any mistake: each step of the chain worked once."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("home")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [text for row in ROWS for text in row.values()],
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<|im_end|>", chat_template=CHATML
    )
    tokenizer.save_pretrained(folder / "base")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    LlamaForCausalLM(LlamaConfig(**sizes, **ids, max_position_embeddings=128)).save_pretrained(folder / "base")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (folder / "recipe.yaml").write_text(made(""), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("IMPRUVER_CACHE", str(folder / "cache"))
        for program in ("impruver-compose", "impruver-train", "impruver-gguf"):
            assert run_main(program, ["--config", "recipe.yaml", "--quiet"]) == 0, program
    shutil.rmtree(folder / "cache")
    shutil.copytree(folder, folder.with_suffix(".kept"))
    return folder


@pytest.fixture
def folder(home, monkeypatch) -> Path:
    """It, to go wrong in, as the working folder: put back before each test, since files in it name it by its path."""
    shutil.rmtree(home)
    shutil.copytree(home.with_suffix(".kept"), home)
    monkeypatch.chdir(home)
    monkeypatch.setenv("IMPRUVER_CACHE", str(home / "cache"))
    return home


@pytest.fixture
def recipe_of():
    """The text of a recipe: what is given of it, and all that is right of the rest."""
    return made


@pytest.fixture
def run(capfd):
    """Runs a command line, in this process (saves the imports) or as one of its own; (exit code, stdout, stderr)."""

    def run(command: str, as_process: bool = False):
        program, *words = shlex.split(command)
        if as_process:
            done = subprocess.run([Path(sys.executable).with_name(program), *words], capture_output=True, text=True)
            return done.returncode, done.stdout, done.stderr
        capfd.readouterr()
        code = run_main(program, words)
        return code, *capfd.readouterr()

    return run
