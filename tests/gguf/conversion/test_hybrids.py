"""Hybrids of Mamba, convolutions and attention: other names for the same model, and what is refused of them."""

import pytest
from cyllama.llama import llama_cpp
from gguf import GGUFReader
from support.gguf_families.hybrids import DENSE, GRANITE_4, save_runtime_names
from support.models import edit_json, make_model


@pytest.mark.parametrize("name", ["granite-hybrid", "granite-hybrid-dense", "granite-moe-shared", "lfm2-moe"])
def test_names_of_transformers_5_make_the_same_file(name, case, gguf):
    """Which llama.cpp's script takes for layers without attention, or for no tensors of the model."""
    folder = case(name, "gguf: {quantization_levels: []}")
    assert gguf("--output_dir", folder)[0] == 0
    made = read_content(folder)
    save_runtime_names(folder)
    if "hybrid" in name:
        types = ["linear_attention", "full_attention", "linear_attention", "linear_attention"]
        edit_json(folder / "config.json", layer_types=types)
    code, _, told = gguf("--output_dir", folder)
    assert code == 0, told
    assert read_content(folder) == made


def read_content(folder):
    """What a file holds: the order of its tensors is that of the names in the checkpoint."""
    reader = GGUFReader(folder / "gguf/model-f16.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in reader.tensors}


def test_a_vocabulary_of_any_size_is_loaded(cases, gguf, tmp_path):
    """llama.cpp's script pads that of a Granite hybrid to a multiple of 8, to more tokens than there are embeddings."""
    folder = tmp_path / "odd"
    make_model("GraniteMoeHybrid", folder, cases["granite-hybrid"], **GRANITE_4 | DENSE | {"vocab_size": 2051})
    (folder / "recipe.yaml").write_text("gguf: {quantization_levels: []}", encoding="utf-8")
    code, _, told = gguf("--output_dir", folder)
    assert code == 0, told
    parameters = llama_cpp.LlamaModelParams()
    loaded = llama_cpp.LlamaModel(path_model=str(folder / "gguf/model-f16.gguf"), params=parameters)
    assert loaded.get_vocab().n_vocab == 2051


UNSUPPORTED = [
    ("granite", {"head_dim": 32}),
    ("granite-hybrid", {"position_embedding_type": "rope"}),
    ("granite-hybrid", {"mamba_expand": 4, "mamba_d_head": "auto"}),
    ("granite-hybrid", {"mamba_conv_bias": False}),
    ("granite-hybrid", {"time_step_limit": [0.0, 0.1]}),
    ("granite-hybrid-dense", {"intermediate_size": 128}),
    ("granite-hybrid-dense", {"num_experts_per_tok": 2}),
    ("granite-attention", {"position_embedding_type": None}),
    ("lfm2", {"conv_bias": True}),
    ("lfm2", {"tie_embedding": False}),
    ("lfm2", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6, "factor": 8.0}}),
    ("lfm2-moe", {"use_expert_bias": False}),
    ("lfm2-moe", {"tie_word_embeddings": False}),
    ("lfm2-moe", {"routed_scaling_factor": 2.5}),
    ("falcon-h1", {"attention_bias": True}),
    ("falcon-h1", {"tie_word_embeddings": True}),
    ("falcon-h1", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}}),
    ("falcon-h1-norm", {"mamba_norm_before_gate": True}),
]


@pytest.mark.parametrize(("name", "change"), UNSUPPORTED)
def test_what_llama_cpp_would_compute_otherwise(name, change, case, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = case(name)
    edit_json(folder / "config.json", **change)
    refused(folder, "with ", "is not converted here")


WRONG = [
    ("granite-hybrid", {"layer_types": ["mamba"]}, "layer_types holds 1 types, and num_hidden_layers is 4"),
    ("granite-hybrid", {"layer_types": ["mamba", "attention", "mamba", "conv"]}, "layer_types holds conv"),
    ("granite-hybrid", {"layer_types": ["attention"] * 2 + ["mamba"] * 2}, "is no tensor of a granitehybrid model"),
    ("granite-hybrid", {"mamba_n_heads": 16}, "mamba_d_head 16 times mamba_n_heads 16 is not Mamba's width 128"),
    ("granite-hybrid", {"mamba_d_state": 8}, "model.layers.0.mamba.conv1d.bias is [192], and should be [160]"),
    ("granite-hybrid", {"mamba_n_groups": 3}, "mamba_n_heads 8 is no multiple of mamba_n_groups 3"),
    ("granite-moe", {"num_experts_per_tok": 9}, "num_experts_per_tok 9 is more than the 5 experts"),
    ("lfm2", {"block_multiple_of": 50}, "(intermediate_size, hidden_size)"),
    ("lfm2-untied", {"layer_types": ["conv"] * 4}, "is no tensor of a lfm2 model"),
    ("lfm2-moe", {"num_dense_layers": 2}, "is no tensor of a lfm2moe model"),
    ("lfm2-moe", {"num_experts": 4}, "is [5], and should be [4] (num_experts)"),
    ("falcon-h1", {"ssm_multipliers": [1.0]}, "ssm_multipliers holds 1 numbers, and should hold 5"),
    ("falcon-h1", {"mamba_d_head": "large"}, "mamba_d_head must be a whole number from 1 or auto"),
]


@pytest.mark.parametrize(("name", "change", "words"), WRONG)
def test_a_configuration_of_another_model(name, change, words, case, refused):
    folder = case(name)
    edit_json(folder / "config.json", **change)
    refused(folder, words)
