"""impruver-compose writes parts, impruver-train trains on them: what the single file gives, whichever way."""

import json
from pathlib import Path

import pytest
from support.cli import run_in_process
from support.jsonl import read_jsonl
from support.models import QUICKSTART, make_llama
from support.recipes import write_recipe

RECIPE = {
    "datasets": [{"name": str(QUICKSTART.parent / "countries.jsonl"), "split": "train[:60]"}],
    "split": {"val_rows": 12},
    "model": {"name": "./base", "dtype": "fp32"},
    "lora": {"r": 2, "target_modules": ["q_proj"]},
    "tokenizer": {"max_tokens_count": 128},
    "trainer": {"max_steps": 6, "per_device_train_batch_size": 4, "eval_strategy": "steps", "eval_steps": 3}
    | {"save_strategy": "no", "use_cpu": True},
}
WAYS = {
    "parts": ("train/", "val/", {"part_bytes": 4000}),
    "compressed parts": ("train/", "val/", {"part_bytes": 4000, "part_compression": "zst"}),
    "compressed files": ("train.jsonl.zst", "val.jsonl.zst", {}),
}


@pytest.fixture
def ran(tmp_path, monkeypatch, capfd):
    """Composes and trains with these paths in a folder of its own; losses, weights and held-out rows."""
    from impruver_compose.cli import main as compose
    from impruver_train.cli import main as train

    make_llama(tmp_path / "base", QUICKSTART, vocab_size=2050)

    def run(train_path, val_path, section):
        folder = tmp_path / "".join(filter(str.isalnum, f"{train_path}{section}"))
        folder.mkdir()
        monkeypatch.setenv("IMPRUVER_CACHE", str(folder / "cache"))
        keys = {"train_path": f"{folder}/{train_path}", "val_path": f"{folder}/{val_path}"}
        keys |= {"output_dir": str(folder / "out"), "compose": section or None}
        config = write_recipe(tmp_path / "recipe.yaml", RECIPE | keys)
        for main in (compose, train):
            done = run_in_process(main, ["--config", config], capfd)
            assert done.code == 0, done.err
            assert "has no manifest" not in done.err
        out = folder / "out"
        inputs = json.loads((out / "impruver.json").read_text())["inputs"]
        rows = [(entry["role"], entry.get("rows"), entry["sha256"]) for entry in inputs]
        weights = (out / "adapter_model.safetensors").read_bytes()
        return read_jsonl(out / "metrics.jsonl"), weights, (out / "heldout.jsonl").read_bytes(), rows

    monkeypatch.chdir(tmp_path)
    return run


def test_parts_and_compressed_rows_train_as_the_single_file(ran):
    single = ran("train.jsonl", "val.jsonl", {})
    assert len(single[0]) == 8
    for name, way in WAYS.items():
        assert ran(*way) == single, name
    assert len(list(Path().glob("*/train/part-*.jsonl"))) > 2
    assert len(list(Path().glob("*/train/part-*.jsonl.zst"))) > 2
