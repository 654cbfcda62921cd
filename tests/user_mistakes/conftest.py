"""A user's folder: a small base, data, a recipe that is right, what training left; and the commands."""

import re
import shlex
import shutil
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from support.cli import Finished, run_as_process, run_in_process, script
from support.jsonl import write_jsonl
from support.tokenizers import CHATML, train_bpe_tokenizer

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


def made(text: str) -> str:
    """The recipe with `text` first, and all that is right of the keys that it does not have."""
    keys = re.findall(r"^(\w+):", text, re.MULTILINE)
    return "\n".join([text.strip("\n"), *(block for key, block in RECIPE.items() if key not in keys)]) + "\n"


def main_of(program: str):
    """The `main(argv)` of a console script's module."""
    return import_module(entry_points(group="console_scripts")[program].module).main


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """The folder as it is before any mistake: each step of the chain worked once."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("home")
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    texts = [text for row in ROWS for text in row.values()]
    names = {"pad_token": "<pad>", "eos_token": "<|im_end|>"}
    tokenizer = train_bpe_tokenizer(folder / "base", texts, 400, special, CHATML, **names)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    LlamaForCausalLM(LlamaConfig(**sizes, **ids, max_position_embeddings=128)).save_pretrained(folder / "base")
    write_jsonl(folder / "data.jsonl", ROWS)
    (folder / "recipe.yaml").write_text(made(""), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("IMPRUVER_CACHE", str(folder / "cache"))
        for program in ("impruver-compose", "impruver-train", "impruver-gguf"):
            assert main_of(program)(["--config", "recipe.yaml", "--quiet"]) == 0, program
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

    def run(command: str, as_process: bool = False) -> Finished:
        program, *words = shlex.split(command)
        if as_process:
            done = run_as_process(script(program), *words)
            return Finished(done.returncode, done.stdout, done.stderr)
        return run_in_process(main_of(program), words, capfd)

    return run
