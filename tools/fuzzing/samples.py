"""What is valid: a small project that the tools themselves made, to be broken by the strategies."""

import json
import os
import shutil
import sys
from pathlib import Path

from fuzzing.example import Example

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))  # support.…

COLOURS = {"red": "rot", "green": "grün", "blue": "azul", "black": "чёрный", "white": "bijeli", "grey": "灰"}
ROWS = [
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    for question, answer in COLOURS.items()
]
QUESTIONS = [{"prompt": "red"}, {"messages": ROWS[1]["messages"]}]
RECIPE = {
    "output_dir": "model",
    "train_path": "out/train.jsonl",
    "val_path": "out/val.jsonl",
    "seed": 7,
    "datasets": [{"name": "data.jsonl", "converter": "impruver.messages"}],
    "dedup": {"method": "exact"},
    "split": {"val_ratio": 0.3},
    "tokenizer": {"name": "tokenizer", "max_tokens_count": 200},
    "model": {
        "class": "transformers.LlamaForCausalLM",
        "config_class": "transformers.LlamaConfig",
        "config": {
            "vocab_size": 290,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
        },
        "dtype": "fp32",
    },
    "trainer": {"max_steps": 2, "save_strategy": "no", "report_to": "none", "per_device_train_batch_size": 2},
    "gguf": {"quantization_levels": []},
    "chat": {"max_new_tokens": 4, "do_sample": False},
}
LORA = {
    "output_dir": "adapter",
    "model": {"name": "model", "dtype": "fp32"},
    "lora": {"r": 2, "target_modules": ["q_proj"]},
}
SAVING = ("--set=trainer.save_strategy=steps", "--set=trainer.save_steps=1")
FIXED = ("--train_path", "out/train.jsonl", "--val_path", "out/val.jsonl")  # no recipe says where files go
COMPOSE = ("impruver-compose", "--config", "recipe.yaml", "--num_proc", "1", *FIXED)
TRAIN = ("impruver-train", "--config", "recipe.yaml", "--dry_run")
GGUF = ("impruver-gguf", "--output_dir", "model", "--verify", "false", "--set", "gguf.quantization_levels=[]")
ASK = ("--input", "questions.jsonl", "--output", "answers.jsonl")
CHAT = ("impruver-chat", "--output_dir", "model", *ASK, "--set", "chat.max_new_tokens=4")
WITH_GGUF = (*CHAT, "--gguf", "model/gguf/model-f16.gguf")
FROM_CHECKPOINT = ("--output_dir", "new", "--set=trainer.resume_from_checkpoint=other/checkpoint-1")
CHECKPOINT = {"other/checkpoint-1": "checkpoint-1"}
RESUME = ("impruver-train", "--config", "recipe.yaml", *FROM_CHECKPOINT)


def build_samples(root: Path) -> None:
    """Makes `root/samples`: data, a tokenizer, token rows, a model with its GGUF file and answers, an adapter."""
    import impruver_chat.cli
    import impruver_compose.cli
    import impruver_gguf.cli
    import impruver_train.cli
    from support.chat_models import make_tokenizer

    folder = root / "samples"
    folder.mkdir()
    os.environ |= {"HOME": str(root), "IMPRUVER_CACHE": str(root / "cache")}
    os.chdir(folder)
    make_tokenizer(folder / "tokenizer")
    write_rows(folder / "data.jsonl", ROWS)
    write_rows(folder / "questions.jsonl", QUESTIONS)
    Path("recipe.yaml").write_text(json.dumps(RECIPE), encoding="utf-8")
    Path("lora.yaml").write_text(json.dumps(RECIPE | LORA), encoding="utf-8")
    for main, words in (
        (impruver_compose.cli.main, COMPOSE[1:]),
        (impruver_train.cli.main, ("--config", "recipe.yaml")),
        (impruver_train.cli.main, ("--config", "lora.yaml")),
        (impruver_train.cli.main, ("--config", "recipe.yaml", "--output_dir", "stopped", *SAVING)),
        (impruver_gguf.cli.main, GGUF[1:]),
        (impruver_chat.cli.main, CHAT[1:]),
    ):
        if main([*words, "--quiet"]) != 0:
            raise RuntimeError(f"a sample can't be made: {words}")
    shutil.move(folder / "stopped/checkpoint-1", folder)
    shutil.move(folder / "checkpoint-1/impruver.json", folder / "marker.json")  # with it no other file may be changed


def write_rows(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def list_valid_examples() -> list[Example]:
    """Commands that do their work: what they import is imported before any other example is run."""
    project = {name: name for name in ("data.jsonl", "questions.jsonl", "recipe.yaml", "tokenizer")}
    model, base = {"model": "model", "questions.jsonl": "questions.jsonl"}, {"model": "adapter", "base": "model"}
    trained = project | {"out": "out"}
    return [
        Example("valid", "compose", COMPOSE, project, {}),
        Example("valid", "compose", (*COMPOSE, "--dry_run"), project, {}),
        Example("valid", "check", ("impruver", "check", "--config", "recipe.yaml"), trained, {}),
        Example("valid", "train", TRAIN, trained, {}),
        Example("valid", "resume", RESUME, trained | CHECKPOINT, {}),
        Example("valid", "gguf", (*GGUF, "--overwrite"), model, {}),
        Example("valid", "chat", CHAT, model, {}),
        Example("valid", "chat with an adapter", (*CHAT, "--set", "model.name=base"), model | base, {}),
        Example("valid", "chat with a GGUF file", WITH_GGUF, model, {}),
    ]
