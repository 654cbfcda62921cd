"""config.json and adapter_config.json that promise more than the weights beside them hold are refused."""

import json
import math

import pytest
import torch
from impruver_core.errors import ImpruverError
from impruver_core.modeling.foreign_config import check_adapter_config, check_config, check_size
from safetensors.torch import save_file
from torch import nn

MODULES = [f"model.layers.{number}.self_attn.{name}_proj" for number in range(30) for name in "qkvo"]


@pytest.fixture
def write(tmp_path):
    def write(name, content, tensors=3):
        (tmp_path / name).write_text(json.dumps(content))
        weights = {f"{number}.weight": torch.zeros(4, 8) for number in range(tensors)}
        if weights:
            save_file(weights, tmp_path / "model.safetensors")
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"num_hidden_layers": 100_000}, "num_hidden_layers is 100,000, more than any model has"),
        ({"n_layer": 10**9}, "n_layer is 1,000,000,000, more"),
        ({"n_layers": 4}, "n_layers is 4, and the weights beside it are 3 tensors"),
        ({"text_config": {"num_hidden_layers": 10**5}}, "num_hidden_layers"),
        ({"vision_config": {"parts": [{"depth": 10**5}]}}, "depth"),
        ({"num_labels": 10**9}, "num_labels"),
        ({"num_local_experts": 10**6}, "num_local_experts"),
        *(({key: -1}, f"{key} is -1, which no model has") for key in ("vocab_size", "head_dim", "sliding_window")),
        ({"text_config": {"num_key_value_heads": -2}}, "num_key_value_heads is -2"),
        ({"transformers_weights": "w.bin"}, "transformers_weights: 'w.bin' is no safetensors file of its folder"),
        ({"transformers_weights": "sub/w.safetensors"}, "transformers_weights"),
        ({"attn_implementation": "owner/kernel"}, "attn_implementation: 'owner/kernel' is code of a repository"),
        ({"text_config": {"_attn_implementation": "owner/kernel@main"}}, "'owner/kernel@main' is code of a repository"),
        ({"attn_implementation": {"text_config": "owner/kernel"}}, "is code of a repository"),
        ({"experts_implementation": "owner/kernel"}, "experts_implementation: 'owner/kernel' is code"),
    ],
)
def test_more_than_any_model_has(config, named, write):
    with pytest.raises(ImpruverError, match=r"config.json") as raised:
        check_config(write("config.json", config))
    assert named in str(raised.value)


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 3, "max_window_layers": 28, "vocab_size": 250_000, "max_position_embeddings": 10**7},
        {"num_hidden_layers": True, "layer_norm_eps": 1e-5, "rope_theta": 10**9},
        [],
        {"num_hidden_layers": "many"},
        {"pad_token_id": -1, "vision_feature_layer": -2, "image_token_index": -100},
        {"transformers_weights": "w.safetensors"},
        {"_attn_implementation": "sdpa", "_name_or_path": "owner/model"},
    ],
)
def test_what_models_have_passes(config, write):
    check_config(write("config.json", config))


def test_without_weights_any_usual_number_passes(write, tmp_path):
    check_config(write("config.json", {"num_hidden_layers": 80}, tensors=0))
    check_config(tmp_path / "nowhere")


def test_a_model_far_larger_than_its_weights(write):
    folder = write("config.json", {})
    with torch.device("meta"):
        check_size(nn.Linear(8, 4), folder)
        with pytest.raises(ImpruverError, match=r"has 10,000,100,000 parameters, and the weights beside it 96"):
            check_size(nn.Linear(100_000, 100_000), folder)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"target_modules": r"([a-z_.0-9]+)+!"}, "target_modules: "),
        ({"exclude_modules": r"(.|..)+\d!"}, "exclude_modules: "),
        ({"rank_pattern": {r"(\w+\.?)+!": 8}}, "rank_pattern: "),
        ({"alpha_pattern": {"(": 8}}, "is no regular expression"),
        ({"target_modules": "a{99999999999999999999}"}, "is no regular expression"),
        ({"target_modules": "(" * 5000 + ")" * 5000}, "target_modules: "),
        ({"r": 10**9}, "r is 1,000,000,000, more than any of its weights has"),
        ({"rank_pattern": {"q_proj": 10**6}}, "q_proj is 1,000,000"),
        ({"layer_replication": [[0, 10**9]]}, "layer_replication"),
        ({"layer_replication": [[0, 2]] * 5000}, "layer_replication names more layers"),
        ({"layer_replication": 5}, "layer_replication is no list of pairs"),
        ({"layer_replication": True}, "layer_replication is no list of pairs"),
        ({"layer_replication": [[0, 1.5]]}, "layer_replication is no list of pairs"),
        ({"layer_replication": [0, 2]}, "layer_replication is no list of pairs"),
        ({"init_lora_weights": "pissa_niter_99999999"}, "init_lora_weights asks for 99,999,999 iterations"),
        ({"init_lora_weights": "pissa_niter_" + "9" * 5000}, "init_lora_weights asks for 99,999"),
        ({"loftq_config": {"loftq_iter": 5000}}, "loftq_iter asks for 5,000 iterations"),
    ],
)
def test_adapters_that_take_for_ever_or_all_memory(config, named, write, monkeypatch):
    monkeypatch.setattr("impruver_core.modeling.foreign_config.SECONDS", 0.3)
    with pytest.raises(ImpruverError, match=r"adapter_config.json") as raised:
        check_adapter_config(write("adapter_config.json", config), MODULES)
    assert named in str(raised.value)


def test_a_usual_adapter_passes(write):
    config = {
        "r": 16,
        "lora_alpha": 10**6,
        "target_modules": r".*\.layers\.(1\d|2)\.self_attn\.(q|k)_proj",
        "rank_pattern": {r"layers\.0\..*": 4},
        "layers_pattern": "layers",
        "layer_replication": [[0, 4], [2, 30]],
        "init_lora_weights": "pissa_niter_16",
        "trainable_token_indices": [10**6],
        "lora_dropout": math.pi,
    }
    check_adapter_config(write("adapter_config.json", config), MODULES)
