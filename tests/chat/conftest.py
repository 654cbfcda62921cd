"""The models of support.chat_models, made once for all workers; and the command, in this process or as its own."""

import io
import json
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.chat_models import (
    CHATS,
    LINEAR,
    MARKS,
    OTHER_WORDS,
    SPECIAL,
    THINKING,
    WORDS,
    make_model,
    make_tokenizer,
    teach,
    teach_chats,
)
from support.cli import run_as_process, run_in_process
from support.jsonl import read_jsonl
from support.jsonl import write_jsonl as write_rows
from support.models import edit_json
from support.recipes import write_recipe
from support.shared import fill_once


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The models are tiny: more threads, torch's and llama.cpp's, only wait for each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def models(shared) -> Path:
    """Folders: `full` knows WORDS, `adapter` on it OTHER_WORDS, `babbler` never ends."""
    return fill_once(shared / "chat-models", make_models)


def make_models(folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.set_num_threads(1)
    tokenizer = make_tokenizer(folder / "full")
    full = teach(make_model(), tokenizer, WORDS)
    full.save_pretrained(folder / "full")
    lora = LoraConfig(r=8, lora_alpha=32, target_modules=LINEAR, task_type="CAUSAL_LM")
    adapted = teach(get_peft_model(full, lora), tokenizer, OTHER_WORDS, steps=250)
    adapted.save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    edit_json(folder / "adapter/adapter_config.json", base_model_name_or_path=str(folder / "full"))
    make_model().save_pretrained(folder / "babbler")
    tokenizer.save_pretrained(folder / "babbler")


@pytest.fixture(scope="session")
def thinker(shared) -> Path:
    """The folder of a model that thinks, calls a function and writes Markdown, as its template has it."""

    def fill(folder: Path) -> None:
        tokenizer = make_tokenizer(folder, THINKING, SPECIAL + MARKS)
        teach_chats(make_model(), tokenizer, CHATS).save_pretrained(folder)

    return fill_once(shared / "chat-thinker", fill)


@pytest.fixture
def recipe(tmp_path, models):
    """Writes a recipe for a folder of `models` (or any other), returns its path; keyword arguments are its keys."""

    def write(folder="full", /, **keys):
        given = {"output_dir": str(models / folder), "model": {"dtype": "fp32"}} | keys
        return write_recipe(tmp_path / "recipe.yaml", given)

    return write


@pytest.fixture
def write_jsonl(tmp_path):
    """Writes rows into a file of tmp_path; its path."""
    return lambda rows, name="questions.jsonl": write_rows(tmp_path / name, rows)


@pytest.fixture
def chat(capfd):
    """Runs the command's own main in this process (saves the imports); (exit code, stdout, stderr)."""
    from impruver_chat.cli import main

    return lambda *flags: run_in_process(main, flags, capfd)


@pytest.fixture
def pipe(chat, monkeypatch):
    """Talks to the command with these flags through a pipe; (stdout, stderr). Exit code 0 is asserted."""

    def run(lines, *flags):
        data = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        code, out, err = chat(*flags)
        assert code == 0, err
        return out, err

    return run


@pytest.fixture
def talk(pipe):
    """Talks to a recipe's model through a pipe, greedily; (stdout, stderr)."""
    greedy = ("--temperature", "0", "--repetition_penalty", "1")
    return lambda config, *lines, flags=(): pipe(lines, "--config", config, *greedy, *flags)


@pytest.fixture
def given(monkeypatch):
    """The ids of each prompt that a model is given from now on."""
    from transformers import LlamaForCausalLM

    prompts, generate = [], LlamaForCausalLM.generate

    def noted(self, **options):
        prompts.append(options["input_ids"][0].tolist())
        return generate(self, **options)

    monkeypatch.setattr(LlamaForCausalLM, "generate", noted)
    return prompts


class WorkerHere:
    """llama.cpp in this process, in place of a LlamaCppProcess; what goes to and fro is JSON as well."""

    def __init__(self, path):
        from impruver_chat.backends.llama_cpp.worker import Worker

        self.worker = Worker()

    def request(self, name, *arguments):
        return self.receive(self.send(name, *arguments))

    def send(self, name, *arguments):
        return json.dumps(getattr(self.worker, name)(*json.loads(json.dumps(arguments))))

    def receive(self, reply):
        return json.loads(reply)

    def close(self):
        pass


@pytest.fixture
def llama_cpp_here(monkeypatch):
    """Has llama.cpp run in this process, for tests that look at what it is given."""
    from impruver_chat.backends.llama_cpp import backend

    monkeypatch.setattr(backend, "LlamaCppProcess", WorkerHere)


@pytest.fixture(scope="module")
def load_gguf():
    """Loads a GGUF file, with the tokenizer in a folder if one is given; its LlamaCppBackend."""
    from impruver_chat.backends.chat_tokenizer import EncodingOptions
    from impruver_chat.backends.llama_cpp.backend import load_backend
    from impruver_chat.model_dir import GgufFile
    from impruver_core.recipe.sections import TokenizerSection

    with ExitStack() as stack:

        def load(path, folder=Path(), **options):
            backend = load_backend(GgufFile(path, folder), TokenizerSection(), EncodingOptions(**options))
            stack.callback(backend.close)
            return backend

        yield load


@pytest.fixture
def terminal():
    """Starts `python` with these arguments at a terminal; a terminals.Terminal."""
    from support.terminals import Terminal

    open_ones = []

    def start(*arguments, **options):
        open_ones.append(Terminal(*arguments, **options))
        return open_ones[-1]

    yield start
    for each in open_ones:
        each.close()


@pytest.fixture
def refused(chat, tmp_path):
    """Runs the command and returns its message; exit code 2, no traceback, nothing on stdout, no file made."""

    def run(*flags):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = chat(*flags)
        assert code == 2, err
        assert out == ""
        assert "Traceback" not in err
        assert err.count("impruver-chat: error:") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return err[err.index("impruver-chat: error:") :]

    return run


@pytest.fixture
def copy(models, tmp_path):
    """A copy of a folder of `models` to break."""
    return lambda name: shutil.copytree(models / name, tmp_path / "broken")


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
def composed(tmp_path, capfd):
    """Runs impruver-compose on a file with the tokenizer of a folder; its rows. Exit code 0 is asserted."""
    from impruver_compose.cli import main

    def run(path, tokenizer):
        places = [tmp_path / "train.jsonl", tmp_path / "val.jsonl"]
        config = dict(zip(("train_path", "val_path"), map(str, places), strict=True))
        config |= {"tokenizer": {"name": str(tokenizer)}, "datasets": [{"name": str(path)}]}
        (tmp_path / "compose.yaml").write_text(json.dumps(config))
        assert main(["--config", str(tmp_path / "compose.yaml")]) == 0, capfd.readouterr().err
        return [row for place in places for row in read_jsonl(place)]

    return run


@pytest.fixture
def as_process():
    """Runs `python -m impruver_chat` as a process of its own; its CompletedProcess, with bytes."""

    def run(*flags, **options):
        return run_as_process(sys.executable, "-m", "impruver_chat", *flags, text=False, **options)

    return run
