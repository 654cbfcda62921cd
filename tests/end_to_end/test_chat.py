"""impruver-chat with a real model: the base, a trained adapter on it, the same rows through the GGUF."""

from impruver_core.io.jsonl import read_rows
from support.jsonl import write_jsonl
from support.recipes import write_recipe

FRANCE = "The capital of France is Paris."


def test_smollm2_and_an_adapter_on_it(smollm2, smollm2_gguf, run, tmp_path):
    question = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "reference": FRANCE}
    write_jsonl(tmp_path / "questions.jsonl", [question])
    rows = [{"input_ids": list(range(3, 20)), "labels": list(range(3, 20))}] * 2
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_recipe(tmp_path / "base.yaml", {"output_dir": str(smollm2), "model": {"dtype": "fp32"}})
    adapter = {
        "output_dir": "./adapter",
        "train_path": "./train.jsonl",
        "model": {"name": str(smollm2), "dtype": "fp32"},
        "lora": {"r": 2, "target_modules": ["q_proj"]},
        "trainer": {"max_steps": 1, "learning_rate": 1e-6, "save_strategy": "no"},
    }
    write_recipe(tmp_path / "adapter.yaml", adapter)
    trained = run("impruver-train", "--config", "adapter.yaml")
    assert trained.returncode == 0, trained.stderr
    files = ["--input", "questions.jsonl", "--output", "answers.jsonl", "--expect", "--max_new_tokens", "12"]
    for where in (["--config", "base.yaml"], ["--output_dir", "adapter"]):
        done = run("impruver-chat", *where, *files)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0] == "right: 1 of 1 (100.0%)"
        (row,) = read_rows(tmp_path / "answers.jsonl")
        assert row["messages"][-1] == {"role": "assistant", "content": FRANCE}
    flags = ["--gguf", str(smollm2_gguf), "--temperature", "0", *files[:4]]
    done = run("impruver-chat", "--output_dir", "adapter", *flags)
    assert done.returncode == 0, done.stderr
    assert "its own chat template" not in done.stderr  # the adapter's tokenizer is the GGUF's
