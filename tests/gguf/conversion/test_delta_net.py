"""Qwen3-Next, Qwen3.5 and Qwen3-VL: rows in another order in chunks of any size, LoRA, what is expected and refused."""

import json
import shutil

import numpy as np
import pytest
from gguf import GGUFReader
from impruver_gguf.architectures.registry import ARCHITECTURES, complete_config, make_expected_tensors
from impruver_gguf.weights.text_model import get_text_config
from support.gguf_families.qwen3_next import turn_experts
from support.models import edit_json, edit_weights, merge_with_peft, save_adapter
from support.recipes import write_adapter_recipe

NO_LEVELS = "gguf: {quantization_levels: []}\n"
LINEAR = ["q_proj", "v_proj", "in_proj_qkv", "in_proj_qkvz", "in_proj_ba", "in_proj_a", "out_proj"]


def read_tensors(folder):
    return {tensor.name: tensor.data for tensor in GGUFReader(folder / "gguf/model-f16.gguf").tensors}


@pytest.mark.parametrize("name", ["qwen35-heads", "qwen35-moe-vision", "qwen3-next-heads", "qwen3-vl-moe"])
def test_the_same_file_in_small_chunks(name, oracle, case, gguf, monkeypatch):
    monkeypatch.setattr("impruver_gguf.weights.lazy_tensor.CHUNK_VALUES", 1000)
    folder = case(name, NO_LEVELS)
    code, _, told = gguf("--output_dir", folder)
    assert code == 0, told
    assert (folder / "gguf/model-f16.gguf").read_bytes() == oracle[name, "f16"].read_bytes()


@pytest.mark.parametrize("name", ["qwen3-vl-moe", "qwen3-vl-moe-wide"])
def test_experts_as_transformers_saves_them(name, oracle, case, gguf):
    folder = case(name, NO_LEVELS)
    turn_experts(folder)
    code, _, told = gguf("--output_dir", folder)
    assert code == 0, told
    assert (folder / "gguf/model-f16.gguf").read_bytes() == oracle[name, "f16"].read_bytes()


@pytest.mark.parametrize(
    ("name", "targets", "dora"),
    [("qwen35-mtp", "all-linear", False), ("qwen35-heads", LINEAR, True), ("qwen3-next-heads", LINEAR, False)],
)
def test_a_merge_is_pefts(name, targets, dora, cases, gguf, tmp_path):
    save_adapter(cases[name], tmp_path / "adapter", target_modules=targets, use_dora=dora)
    shutil.copyfile(cases[name] / "config.json", tmp_path / "adapter/config.json")
    write_adapter_recipe(tmp_path / "adapter", cases[name])
    merge_with_peft(cases[name], tmp_path / "adapter", tmp_path / "merged")
    (tmp_path / "merged/recipe.yaml").write_text(NO_LEVELS, encoding="utf-8")
    for folder in ("adapter", "merged"):
        code, _, told = gguf("--output_dir", tmp_path / folder, "--quantization_levels")
        assert code == 0, told
    ours, theirs = read_tensors(tmp_path / "adapter"), read_tensors(tmp_path / "merged")
    further = {tensor for tensor in ours if tensor.startswith("blk.4.")} if name == "qwen35-mtp" else set()
    assert ours.keys() - further == theirs.keys()
    for tensor, values in theirs.items():
        assert np.allclose(ours[tensor].astype(np.float32), values.astype(np.float32), rtol=1e-3, atol=1e-6), tensor


@pytest.mark.parametrize("name", ["qwen35", "qwen35-moe", "qwen3-next", "qwen3-vl", "qwen3-vl-moe"])
def test_expected_tensors_are_those_of_the_file(name, cases, oracle):
    path = cases[name] / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    architecture = ARCHITECTURES[config["architectures"][0]]
    expected = make_expected_tensors(architecture, complete_config(architecture, get_text_config(config), path))
    written = {tensor.name: tuple(map(int, tensor.shape[::-1])) for tensor in GGUFReader(oracle[name, "f16"]).tensors}
    assert {tensor: lazy.shape for tensor, lazy in expected.items()} == written


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("qwen35", {"linear_value_head_dim": 16}, "with linear_value_head_dim 16"),
        ("qwen35", {"attention_bias": True}, "with attention_bias"),
        ("qwen35", {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 0, 0]}}, "with mrope_section"),
        ("qwen35", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "with rope_type dynamic"),
        ("qwen35", {"linear_num_value_heads": 5}, "linear_num_value_heads 5 is no multiple of"),
        ("qwen35", {"layer_types": ["linear_attention"]}, "layer_types holds 1 types"),
        ("qwen35", {"linear_num_key_heads": "2"}, "linear_num_key_heads"),
        ("qwen35", {"layer_types": ["full_attention"] * 4}, "is no tensor of a qwen35 model"),
        ("qwen3-next", {"norm_topk_prob": False}, "with norm_topk_prob false"),
        ("qwen3-next", {"mlp_only_layers": [1]}, "with mlp_only_layers"),
        ("qwen3-next", {"linear_key_head_dim": 16, "linear_value_head_dim": 16}, "should be"),
        ("qwen3-vl", {"vision_config": {"deepstack_visual_indexes": [0, 1, 2, 3]}}, "with 4 deepstack_visual_indexes"),
    ],
)
def test_what_is_refused(name, change, words, case, gguf):
    folder = case(name, NO_LEVELS)
    edit_json(folder / "config.json", **change)
    code, _, told = gguf("--output_dir", folder)
    assert code == 2
    assert words in told
    assert "Traceback" not in told


def test_a_tensor_of_mtp_that_is_missing_or_unknown(case, gguf):
    folder = case("qwen35-mtp", NO_LEVELS)
    norm = "mtp.pre_fc_norm_hidden.weight"
    edit_weights(folder / "model.safetensors", lambda tensors: tensors.update({f"mtp.x{norm}": tensors.pop(norm)}))
    code, _, told = gguf("--output_dir", folder)
    assert code == 2
    assert "is no tensor of a qwen35 model" in told
