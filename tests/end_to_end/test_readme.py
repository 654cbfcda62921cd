"""README's blocks, as they stand there, pasted into an empty folder with an empty home."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from support.jsonl import read_jsonl
from support.oracles import require_program

BLOCKS = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
FRANCE = {"role": "assistant", "content": "The capital of France is Paris."}


@pytest.fixture
def paste(tmp_path):
    """Runs the block with a word in it, some of it replaced; `uv run` takes this environment."""
    require_program("uv")
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    own = {"UV_PROJECT": str(ROOT), "UV_PROJECT_ENVIRONMENT": sys.prefix, "UV_NO_SYNC": "1", "UV_OFFLINE": "1"}
    own |= {"HOME": str(tmp_path / "home"), "IMPRUVER_CACHE": str(tmp_path / "cache")}

    def paste(word: str) -> str:
        (block,) = (block for block in BLOCKS if word in block)
        command = ["bash", "-euo", "pipefail", "-c", block]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | own, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return paste


def test_ones_own_converter(paste, tmp_path):
    assert "⟦In France.<|im_end|>⟧" in paste("my_converters")
    assert [len(read_jsonl(tmp_path / name)) for name in ("train.faq.jsonl", "val.faq.jsonl")] == [1, 1]
    assert read_jsonl(tmp_path / "train.faq.dropped.jsonl")[0]["reason"] == "converter_skipped"


@pytest.mark.slow
def test_the_chain_on_a_real_chat_model(paste, run, smollm2, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/SmolLM2-135M-Instruct").symlink_to(smollm2)  # unpacked by the block's own command before
    told = paste("smollm2.yaml")
    assert "recommended: " in told
    check_rows(tmp_path, smollm2)
    check_model(tmp_path / "models/smollm2_countries", smollm2)
    for name in ("answered.jsonl", "answered.q8_0.jsonl"):
        assert read_jsonl(tmp_path / name)[0]["messages"][-1] == FRANCE
    checked = run("impruver", "check", "--config", "smollm2.yaml")
    assert checked.returncode == 0, checked.stderr
    again = run("impruver-train", "--config", "smollm2.yaml")
    assert again.returncode == 0, again.stderr


def check_rows(folder: Path, base: Path) -> None:
    """What is learned of a row is its answer and the end of its turn."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    held_out = read_jsonl(folder / "val.smollm2.jsonl")
    assert len(held_out) >= 5
    for row in held_out:
        learned = tokenizer.decode([label for label in row["labels"] if label != -100])
        assert learned == row["messages"][-1]["content"].strip() + "<|im_end|>"


def check_model(folder: Path, base: Path) -> None:
    """Twenty steps, the ends of turn where chat and Ollama look for them, a proof that failed nowhere."""
    steps = [row["step"] for row in read_jsonl(folder / "metrics.jsonl") if "loss" in row]
    assert steps == list(range(1, 21))
    added = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    end = next(token["id"] for token in added if token["content"] == "<|im_end|>")
    assert end in json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    assert (folder / "gguf/model-q8_0.gguf").stat().st_size > 100_000_000
    assert 'PARAMETER stop "<|im_end|>"' in (folder / "gguf/Modelfile.q8_0").read_text(encoding="utf-8")
    quality = read_jsonl(folder / "gguf/quality.jsonl")
    assert [(row["level"], row["ids_equal"]) for row in quality] == [("f16", True), ("q8_0", True)]
    assert "failed" not in json.loads((folder / "gguf/impruver.json").read_text(encoding="utf-8"))
