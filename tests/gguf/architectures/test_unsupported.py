"""Configurations that llama.cpp would compute otherwise than transformers, or not load: refused by name."""

from pathlib import Path

import pytest
from impruver_core.errors import ImpruverError
from impruver_gguf.architectures.registry import ARCHITECTURES, complete_config

YARN = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096}
EXAONE = {"num_hidden_layers": 64, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
ALPHA = {"head_dim": 128, "max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        ("DeepseekV3", {}, None),
        ("DeepseekV3", {"q_lora_rank": None}, "q_lora_rank None and num_hidden_layers 61"),
        ("DeepseekV3", {"q_lora_rank": None, "num_hidden_layers": 26}, None),
        ("DeepseekV3", {"num_hidden_layers": 27}, "q_lora_rank 1536 and num_hidden_layers 27"),
        ("DeepseekV3", {"q_lora_rank": None, "num_hidden_layers": 48, "vocab_size": 128256}, None),
        ("DeepseekV3", {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}}, None),
        ("DeepseekV3", {"rope_scaling": YARN}, "mscale None and mscale_all_dim None of yarn"),
        ("DeepseekV3", {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.0}}, "mscale 0.7"),
        ("DeepseekV3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type linear"),
        ("DeepseekV3", {"rope_interleave": False}, "rope_interleave false"),
        ("DeepseekV3", {"attention_bias": True}, "attention_bias"),
        ("DeepseekV3", {"scoring_func": "softmax"}, "scoring_func softmax"),
        ("DeepseekV3", {"topk_group": 8}, "topk_group 8 of n_group 8"),
        ("DeepseekV3", {"n_routed_experts": 8, "n_group": 8}, "n_group 8 of 8 experts"),
        ("DeepseekV2", {"num_experts_per_tok": 6}, None),
        ("DeepseekV2", {"num_experts_per_tok": 6, "n_group": 8, "topk_group": 3}, "n_group 8"),
        ("DeepseekV2", {"num_experts_per_tok": 6, "norm_topk_prob": True}, "norm_topk_prob"),
        ("DeepseekV2", {"num_experts_per_tok": 6, "topk_method": "noaux_tc"}, "topk_method noaux_tc"),
        ("Glm4", {}, None),
        ("Glm4", {"rope_parameters": {"mrope_section": [8, 12, 12]}}, "mrope_section"),
        ("Glm4", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type dynamic"),
        ("Exaone4", EXAONE, None),
        ("Exaone4", EXAONE | {"sliding_window_pattern": "LLLG"}, None),
        ("Exaone4", EXAONE | {"sliding_window_pattern": 3}, "each 4th layer"),
        ("Exaone4", EXAONE | {"sliding_window": None}, "other than sliding windows"),
        ("Exaone4", EXAONE | {"num_hidden_layers": 30}, "other than no sliding windows"),
        ("Exaone4", EXAONE | {"num_hidden_layers": 30, "sliding_window": None}, None),
        ("Exaone4", EXAONE | {"head_dim": 32}, "head_dim 32"),
        ("HunYuanDenseV1", ALPHA | {"rope_scaling": {"type": "dynamic", "alpha": 1000.0}}, None),
        ("HunYuanDenseV1", ALPHA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "without alpha"),
        ("HunYuanDenseV1", ALPHA | {"rope_theta": 5e4, "rope_scaling": {"type": "dynamic", "alpha": 50}}, "rope_theta"),
        (
            "HunYuanDenseV1",
            ALPHA | {"max_position_embeddings": 8192, "rope_scaling": {"type": "dynamic", "alpha": 50}},
            "max_position_embeddings 8192",
        ),
        ("HunYuanDenseV1", {"attention_bias": True}, "attention_bias"),
    ],
    ids=str,
)
def test_what_is_unsupported_is_named(kind, config, reason):
    architecture = ARCHITECTURES[f"{kind}ForCausalLM"]
    told = architecture.find_unsupported(complete_config(architecture, config, Path("config.json")))
    assert told is None if reason is None else reason in told


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("DeepseekV3", {"num_key_value_heads": 8}, "num_key_value_heads 8 is not num_attention_heads 128"),
        ("DeepseekV3", {"n_group": 7}, "n_routed_experts 256 is no multiple of n_group 7"),
        ("DeepseekV3", {"num_experts_per_tok": 300}, "num_experts_per_tok 300 is more than the 256 experts"),
        ("DeepseekV2", {}, "num_experts_per_tok is not set"),
        ("DeepseekV3", {"kv_lora_rank": "512"}, "kv_lora_rank must be a whole number"),
        ("Glm4", {"head_dim": 30}, "RoPE turn"),
        ("Glm4", {"partial_rotary_factor": "half"}, "partial_rotary_factor must be"),
    ],
    ids=str,
)
def test_what_no_model_can_have_is_an_error(kind, config, words):
    with pytest.raises(ImpruverError, match=words):
        complete_config(ARCHITECTURES[f"{kind}ForCausalLM"], config, Path("config.json"))
