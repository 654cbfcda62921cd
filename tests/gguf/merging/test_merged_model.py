"""`--merged DIR`: the merged model as transformers reads it, bit for bit peft's, and what another round makes of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from impruver_core.errors import ImpruverError
from impruver_gguf.conversion import merged_model
from support.models import (
    QUICKSTART,
    edit_json,
    edit_weights,
    make_gpt2,
    make_model,
    merge_with_peft,
    save_adapter,
)
from support.recipes import write_adapter_recipe

WIDE = {"vocab_size": 2050, "hidden_size": 200, "intermediate_size": 300}
ALL = {"target_modules": "all-linear"}
# Name → family, type of its weights, configuration, the adapter's settings, the type of the merge.
MERGES = {
    "llama": ("Llama", "bfloat16", {"tie_word_embeddings": True}, ALL, "bfloat16"),
    "qwen3 with dora": ("Qwen3", "float16", {"head_dim": 50}, ALL | {"use_dora": True}, "float16"),
    "in 32 bits": ("Qwen2", "float32", {}, ALL, "bfloat16"),
    "lora on tied embeddings": (
        "Llama",
        "bfloat16",
        {"tie_word_embeddings": True},
        {"target_modules": ["embed_tokens", "q_proj"]},
        "bfloat16",
    ),
    "a grown vocabulary": (
        "Mistral",
        "bfloat16",
        {"tie_word_embeddings": False},
        {"target_modules": ["q_proj"], "grown_to": 2060, "save_embedding_layers": True},
        "bfloat16",
    ),
    "a saved head": (
        "SmolLM3",
        "bfloat16",
        {"tie_word_embeddings": True, "num_hidden_layers": 4},
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
        "bfloat16",
    ),
}


def load_state(folder: Path) -> dict:
    """The tensors of a model as transformers loads them, in the type that its configuration names."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.state_dict()


def assert_same_models(folder: Path, expected: Path) -> None:
    ours, theirs = load_state(folder), load_state(expected)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert ours[name].dtype == values.dtype, name
        assert ours[name].equal(values), name


@pytest.fixture
def merge(compared, tmp_path):
    """Runs `impruver-gguf --merged` on a folder; the merged one."""

    def merge(folder: Path, name: str = "merged", *flags) -> Path:
        code, out, told = compared("--output_dir", folder, "--merged", tmp_path / name, *flags)
        assert code == 0, told
        assert not (folder / "gguf").exists()
        assert f"to {tmp_path / name}" in out
        return tmp_path / name

    return merge


@pytest.mark.parametrize("name", MERGES)
def test_a_merged_model_is_pefts_bit_for_bit(name, merge, tmp_path, monkeypatch):
    family, dtype, config, settings, merged_dtype = MERGES[name]
    monkeypatch.setattr(merged_model, "SHARD_BYTES", 700_000)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_model(family, base, QUICKSTART, dtype, **WIDE | config)
    save_adapter(base, adapter, **dict(settings))
    write_adapter_recipe(adapter, base)
    untied = "embed_tokens" in settings["target_modules"]
    merge_with_peft(base, adapter, tmp_path / "pefts", settings.get("grown_to"), untied=untied, dtype=merged_dtype)
    folder = merge(adapter)
    assert_same_models(folder, tmp_path / "pefts")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    assert all(path.stat().st_size < 1_700_000 for path in folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert set(index["weight_map"].values()) == {path.name for path in folder.glob("*.safetensors")}
    assert not list(folder.glob("adapter_*"))
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"] == merged_dtype


def test_another_round_of_training_is_merged_again(merge, compared, tmp_path):
    make_model("Llama", tmp_path / "base", QUICKSTART, **WIDE | {"tie_word_embeddings": True})
    save_adapter(tmp_path / "base", tmp_path / "first", target_modules=["embed_tokens", "q_proj"])
    write_adapter_recipe(tmp_path / "first", tmp_path / "base")
    merged = merge(tmp_path / "first")
    save_adapter(merged, tmp_path / "second", target_modules=["lm_head", "down_proj"])
    write_adapter_recipe(tmp_path / "second", merged)
    merge_with_peft(merged, tmp_path / "second", tmp_path / "pefts", dtype="bfloat16")
    assert_same_models(merge(tmp_path / "second", "again"), tmp_path / "pefts")
    (tmp_path / "empty.yaml").touch()
    flags = ["--config", tmp_path / "empty.yaml", "--quantization_levels"]
    code, _, told = compared("--output_dir", tmp_path / "again", *flags)  # proven against the merged model
    assert code == 0, told
    assert "as the merged model in transformers" in told


def test_whole_models_keep_their_tensors(merge, tmp_path):
    """Names of a hub's bare model and values as they are; the tokenizer comes along, nothing of the training."""
    base = tmp_path / "base"
    make_gpt2(base, QUICKSTART, "float16", vocab_size=2048)
    edit_weights(base / "model.safetensors", lambda t: [t.__setitem__(n[12:], t.pop(n)) for n in list(t)])
    edit_json(base / "config.json", dtype=None, torch_dtype="float32", quantization_config={"quant_method": "x"})
    (base / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates/rag.jinja").write_text("{{ documents }}", encoding="utf-8")
    for name in ("recipe.yaml", "heldout.jsonl", "training_args.bin"):
        (base / name).touch()
    before = load_state(base)
    folder = merge(base)
    for name, values in load_state(folder).items():
        assert values.equal(before[name]), name
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["torch_dtype"] == "float16"
    assert "quantization_config" not in config
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        *("config.json", "generation_config.json", "model.safetensors", "impruver.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates/rag.jinja"),
    }


@pytest.mark.parametrize("adapted", [False, True])
def test_tied_ends_that_a_file_holds_twice_stay_tied(adapted, merge, tmp_path):
    base = tmp_path / "base"
    make_model("Llama", base, QUICKSTART, "float16", **WIDE | {"tie_word_embeddings": True})
    edit_weights(
        base / "model.safetensors", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()})
    )
    folder = base
    if adapted:
        folder = tmp_path / "adapter"
        save_adapter(base, folder, target_modules=["q_proj"])
        write_adapter_recipe(folder, base)
    else:
        (base / "recipe.yaml").touch()
    merged = merge(folder)
    assert json.loads((merged / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"] is True
    state = load_state(merged)
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()


def test_an_architecture_that_llama_cpp_knows_not(merge, tmp_path, adapter, tiny_base):
    """Merging needs its tensors alone."""
    merge_with_peft(tiny_base, adapter, tmp_path / "pefts", dtype="bfloat16")
    for name in (adapter, tmp_path / "pefts"):
        edit_json(name / "config.json", architectures=["NewForCausalLM"])
    assert_same_models(merge(adapter), tmp_path / "pefts")


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from impruver_gguf.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_it_needs_no_torch(adapter, merge, tmp_path):
    command = [sys.executable, "-c", WITHOUT_TORCH, "--output_dir", adapter, "--merged", tmp_path / "alone"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    merged = merge(adapter)
    assert (tmp_path / "alone/model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()


def test_what_is_there_is_not_lost(adapter, tiny_base, compared, tmp_path):
    def run(target, *flags):
        return compared("--output_dir", adapter, "--merged", target, *flags)

    target = tmp_path / "some" / "merged"
    code, out, _ = run(target, "--dry_run")
    assert code == 0
    assert "nothing was written" in out
    assert "kB" in out or "MB" in out
    assert not target.parent.exists()
    assert run(target)[0] == 0
    made = (target / "model.safetensors").read_bytes()
    code, _, told = run(target)
    assert code == 2
    assert "is not empty: name another folder, or use --overwrite" in told
    (target / "model.safetensors").write_bytes(b"old")
    assert run(target, "--overwrite")[0] == 0
    assert (target / "model.safetensors").read_bytes() == made
    (target / "my_notes.txt").write_text("mine", encoding="utf-8")
    code, _, told = run(target, "--overwrite")
    assert code == 2
    assert "my_notes.txt is no file of a merged model" in told
    for place in (adapter, tiny_base, tmp_path):
        code, _, told = run(place, "--overwrite")
        assert code == 2
        assert "holds the model that is merged" in told
    assert sorted(path.name for path in target.parent.iterdir()) == ["merged"]


def test_a_failure_leaves_nothing(adapter, compared, tmp_path, monkeypatch):
    def fail(*_):
        raise ImpruverError("the disk is full")

    monkeypatch.setattr(merged_model, "_write_json", fail)
    code, _, told = compared("--output_dir", adapter, "--merged", tmp_path / "merged")
    assert code == 2
    assert "the disk is full" in told
    assert not list(tmp_path.glob("*merged*"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_too_little_room_is_told_before(adapter, compared, free_room, tmp_path):
    free_room(1000)
    for flags in ([], ["--dry_run"]):
        code, _, told = compared("--output_dir", adapter, "--merged", tmp_path / "merged", *flags)
        assert code == 2
        assert "are needed" in told
    assert not (tmp_path / "merged").exists()
