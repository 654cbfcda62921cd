"""Mixtures of experts: stacks of their matrices in chunks of any size, LoRA beside them, what is refused."""

import json
import shutil

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import save_file
from support.gguf_families.moe import GLM4_MOE, GPT_OSS, QWEN3_MOE
from support.models import edit_json, edit_weights, make_model, merge_with_peft, save_adapter
from support.recipes import write_adapter_recipe

NO_LEVELS = "gguf: {quantization_levels: []}\n"
GATE = "model.layers.1.mlp.experts.3.gate_proj.weight"


@pytest.mark.parametrize("name", ["qwen3-moe", "qwen3-moe-fused", "mixtral", "gpt-oss", "gpt-oss-mxfp4"])
def test_the_same_file_in_small_chunks(name, oracle, case, gguf, monkeypatch):
    monkeypatch.setattr("impruver_gguf.weights.lazy_tensor.CHUNK_VALUES", 1000)
    folder = case(name, NO_LEVELS)
    code, _, told = gguf("--output_dir", folder)
    assert code == 0, told
    assert (folder / "gguf/model-f16.gguf").read_bytes() == oracle[name, "f16"].read_bytes()


def read_tensors(folder):
    return {tensor.name: tensor.data for tensor in GGUFReader(folder / "gguf/model-f16.gguf").tensors}


@pytest.mark.parametrize(("family", "config"), [("Qwen3Moe", QWEN3_MOE), ("GptOss", GPT_OSS), ("Glm4Moe", GLM4_MOE)])
def test_a_merge_is_pefts(family, config, cases, gguf, tmp_path):
    """Of attention: where experts share a parameter, peft's LoRA is another kind."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    make_model(family, tmp_path / "base", cases["qwen2"], **config)
    save_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=targets)
    write_adapter_recipe(tmp_path / "adapter", tmp_path / "base")
    merge_with_peft(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    (tmp_path / "merged/recipe.yaml").write_text(NO_LEVELS, encoding="utf-8")
    for name in ("adapter", "merged"):
        code, _, told = gguf("--output_dir", tmp_path / name, "--quantization_levels")
        assert code == 0, told
    ours, theirs = read_tensors(tmp_path / "adapter"), read_tensors(tmp_path / "merged")
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert np.allclose(ours[name].astype(np.float32), values.astype(np.float32), rtol=1e-3, atol=1e-6), name


def test_lora_on_single_experts(case, gguf, tmp_path):
    """As transformers 4 had them: a module for each, under the hub's names."""
    base = case("qwen3-moe")
    module, random = GATE.removesuffix(".weight"), np.random.default_rng(0)
    a, b = random.normal(size=(4, 64)).astype(np.float32), random.normal(size=(32, 4)).astype(np.float32)
    adapter = shutil.copytree(base, tmp_path / "adapter")
    (adapter / "model.safetensors").unlink()
    pair = {f"base_model.model.{module}.lora_{part}.weight": values for part, values in (("A", a), ("B", b))}
    save_file(pair, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": [module]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    write_adapter_recipe(adapter, base)
    code, _, told = gguf("--output_dir", adapter, "--quantization_levels")
    assert code == 0, told
    code, _, told = gguf("--output_dir", base, "--quantization_levels")
    assert code == 0, told
    before, after = read_tensors(base), read_tensors(adapter)
    changed = {name for name, values in before.items() if not np.array_equal(values, after[name])}
    assert changed == {"blk.1.ffn_gate_exps.weight"}
    expected = before["blk.1.ffn_gate_exps.weight"].astype(np.float32)
    expected[3] += 2 * b @ a
    assert np.allclose(after["blk.1.ffn_gate_exps.weight"].astype(np.float32), expected, rtol=2e-3, atol=2e-3)


def test_an_adapter_on_a_base_with_a_prediction_layer(case, gguf, tmp_path):
    """Transformers does not load such a layer, so the adapter has nothing for its modules."""
    base = case("glm4-moe")
    save_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    write_adapter_recipe(tmp_path / "adapter", base)
    code, _, told = gguf("--output_dir", tmp_path / "adapter", "--quantization_levels")
    assert code == 0, told
    assert not [name for name in read_tensors(tmp_path / "adapter") if name.startswith("blk.3.")]


def test_mxfp4_is_quantized_no_second_time(case, gguf, refused):
    folder = case("gpt-oss-mxfp4")
    refused(folder, "q8_0 can't be made", "blk.0.ffn_down_exps.weight is in MXFP4", "mxfp4_moe")
    code, _, told = gguf("--output_dir", folder, "--quantization_levels", "mxfp4_moe")
    assert code == 0, told
    assert "llama.cpp rounds the range of yarn" in told
    kept, made = (GGUFReader(folder / f"gguf/model-{name}.gguf").tensors for name in ("f16", "mxfp4_moe"))
    stacks = [{tensor.name: tensor for tensor in tensors if "_exps.weight" in tensor.name} for tensors in (kept, made)]
    assert len(stacks[0]) == 6
    for name, tensor in stacks[0].items():
        assert tensor.tensor_type.name == "MXFP4"
        assert np.array_equal(tensor.data, stacks[1][name].data), name


@pytest.mark.parametrize("packed", ["_blocks", "_scales"])
def test_half_of_packed_experts_is_named(packed, case, refused):
    folder = case("gpt-oss-mxfp4", NO_LEVELS)
    lost = f"model.layers.1.mlp.experts.gate_up_proj{packed}"
    edit_weights(folder / "model.safetensors", lambda tensors: tensors.pop(lost))
    refused(folder, "model.layers.1.mlp.experts.gate_up_proj_blocks and", "do not belong together")


def test_a_missing_expert_is_named(case, refused):
    folder = case("qwen3-moe", NO_LEVELS)
    edit_bf16_weights(folder, lambda tensors: tensors.pop(GATE))
    refused(folder, f"{GATE} is not among the weights")


def test_an_expert_of_another_shape_is_named(case, refused):
    folder = case("qwen3-moe", NO_LEVELS)
    edit_bf16_weights(folder, lambda tensors: tensors.update({GATE: tensors[GATE][:8].clone()}))
    refused(folder, f"{GATE} is [8, 64], another expert's is [32, 64]")


def edit_bf16_weights(folder, change):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("qwen3-moe", {"num_local_experts": 6}, "is [5, 64, 32], and should be [6, 64, 32]"),
        ("qwen3-moe", {"num_experts_per_tok": 6}, "num_experts_per_tok 6 is more than the 5 experts"),
        ("qwen3-moe", {"norm_topk_prob": False}, "with norm_topk_prob false"),
        ("qwen3-moe", {"mlp_only_layers": [0]}, "with mlp_only_layers"),
        ("qwen3-moe", {"decoder_sparse_step": 2}, "with decoder_sparse_step"),
        ("gpt-oss", {"swiglu_limit": 5.0}, "with swiglu_limit 5.0"),
        ("gpt-oss", {"layer_types": ["full_attention"] * 2}, "with layer_types"),
        ("gpt-oss", {"tie_word_embeddings": True}, "with tie_word_embeddings"),
        ("glm4-moe", {"n_group": 2, "topk_group": 2}, "with topk_group 2 of n_group 2"),
        ("glm4-moe", {"n_group": 3}, "n_routed_experts 4 is no multiple of n_group 3"),
        ("mixtral", {"hidden_act": "relu"}, "with hidden_act relu"),
    ],
)
def test_what_is_refused(name, change, words, case, refused):
    folder = case(name, NO_LEVELS)
    edit_json(folder / "config.json", **change)
    refused(folder, words)


@pytest.mark.parametrize("name", ["glm4-moe", "deepseek3"])
def test_a_configuration_of_fewer_layers_is_another_models(name, case, refused):
    """Layers after the last are left out where they predict further tokens, and only there."""
    folder = case(name)
    count = json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    edit_json(folder / "config.json", num_hidden_layers=count - 1)
    refused(folder, f"model of {count - 1} layers")
