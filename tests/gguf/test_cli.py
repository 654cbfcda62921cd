"""The command from outside: fast help, nothing heavy imported, the way without --config."""

import json
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.cli import run_as_process
from support.recipes import write_adapter_recipe

LIGHT = """
import sys
from impruver_gguf.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "peft", "accelerate"} & set(sys.modules)
raise SystemExit(f"imported {heavy}" if heavy else code)
"""


def run(*command):
    return run_as_process(sys.executable, *command, environment={"PYTHONDONTWRITEBYTECODE": "1"})


def test_help_names_the_keys():
    assert "--only_quantize" in run("-m", "impruver_gguf", "--help").stdout


def test_help_and_sections_import_no_numpy_or_model_library():
    code = "import sys, impruver_gguf.cli, impruver_gguf.sections; print(*sys.modules)"
    loaded = run("-c", code).stdout.split()
    assert not {"numpy", "gguf", "cyllama", "tokenizers", "huggingface_hub"} & set(loaded)


def test_an_export_imports_neither_torch_nor_transformers(adapter):
    done = run("-c", LIGHT, "--output_dir", str(adapter), "--quantization_levels", "q8_0")
    assert done.returncode == 0, done.stderr
    assert (adapter / "gguf" / "model-q8_0.gguf").is_file()


@pytest.mark.parametrize("flag", ["--quantisation_levels", "--only-quantise"])
def test_a_misspelt_flag(flag, gguf):
    code, _, told = gguf(flag)
    assert code == 2
    assert "did you mean" in told


@pytest.fixture(scope="module")
def large(tmp_path_factory, smollm2):
    """An adapter on a model whose embeddings are far larger than all else."""
    folder = tmp_path_factory.mktemp("large")
    rows, width = 120_000, 1024
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": rows, "hidden_size": width, "num_hidden_layers": 1}
    config |= {
        "intermediate_size": 64,
        "num_attention_heads": 16,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    }
    shapes = {f"self_attn.{name}_proj": size for name, size in zip("qkvo", (width, 64, 64, width), strict=True)}
    shapes |= {"mlp.gate_proj": 64, "mlp.up_proj": 64}
    tensors = {f"model.layers.0.{name}.weight": numbers(size, width) for name, size in shapes.items()}
    tensors["model.layers.0.mlp.down_proj.weight"] = numbers(width, 64)
    norms = ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm")
    tensors |= {f"{name}.weight": numbers(width) for name in norms}
    tensors["model.embed_tokens.weight"] = numbers(rows, width)
    lora = {"embed_tokens.lora_embedding_A": (8, rows), "embed_tokens.lora_embedding_B": (width, 8)}
    lora |= {
        "layers.0.self_attn.q_proj.lora_A.weight": (8, width),
        "layers.0.self_attn.q_proj.lora_B.weight": (width, 8),
    }
    for name, content in (("base", tensors), ("adapter", {})):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if content:
            save_file(content, folder / name / "model.safetensors")
    save_file(
        {f"base_model.model.model.{name}": numbers(*shape) for name, shape in lora.items()},
        folder / "adapter" / "adapter_model.safetensors",
    )
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 8}), encoding="utf-8")
    write_adapter_recipe(folder / "adapter", folder / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(smollm2 / name, folder / "adapter" / name)
    return folder / "adapter"


def numbers(*shape):
    return np.random.default_rng(0).random(shape, np.float32).astype(np.float16)


MEASURE = """
import resource, subprocess, sys
code = subprocess.run([sys.executable, "-m", "impruver_gguf", *sys.argv[1:]], stdout=subprocess.DEVNULL).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, usage.ru_maxrss * 1024 / 1e6)
"""


def measure_memory(*flags):
    """Megabytes that the command took; a small process starts it, since a child counts ours."""
    code, megabytes = run("-c", MEASURE, *flags).stdout.split()
    assert code == "0"
    return float(megabytes)


def test_memory_stays_far_below_the_largest_tensor(large):
    """In float32 its embeddings alone take 490 MB."""
    assert measure_memory("--output_dir", large, "--quiet", "--verify", "false") < 250


def test_a_dry_run_reads_no_weights(large, smollm2, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"output_dir": str(tmp_path / "later"), "model": {"name": str(smollm2)}}), "utf-8")
    for flags in (("--output_dir", large), ("--config", recipe)):
        assert measure_memory(*flags, "--dry_run") < 250
