"""Granite 3 and 4, LFM2 and Falcon-H1: Mamba and short convolutions beside attention, and Granite without them."""

from pathlib import Path

from support.models import edit_json

GRANITE = {"attention_multiplier": 0.0625, "embedding_multiplier": 12.0, "residual_multiplier": 0.22}
GRANITE |= {"logits_scaling": 8.0}
GRANITE_MOE = GRANITE | {"num_local_experts": 5, "num_experts_per_tok": 2}
MAMBA = {"mamba_n_heads": 8, "mamba_d_state": 16, "mamba_n_groups": 2}
GRANITE_4 = GRANITE | MAMBA | {"num_hidden_layers": 4, "vocab_size": 2056}
DENSE = {"num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 96}
FALCON_H1 = MAMBA | {
    "mamba_d_ssm": 64,
    "attention_in_multiplier": 0.9,
    "attention_out_multiplier": 0.7,
    "key_multiplier": 0.4,
    "ssm_in_multiplier": 1.2,
    "ssm_out_multiplier": 0.3,
    "lm_head_multiplier": 0.1,
    "embedding_multiplier": 5.6,
    "mlp_multipliers": [0.8, 0.6],
    "ssm_multipliers": [0.35, 0.25, 0.17, 0.5, 0.3],
}
LFM2_MOE = {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3, "num_experts": 5}
LFM2_MOE |= {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LAYERS = ["mamba", "attention", "mamba", "mamba"]


def write_hub_layers(folder: Path, layers: list[str] = LAYERS) -> None:
    """Name the layers' types as the hub's config.json does, which llama.cpp's script asks for."""
    edit_json(folder / "config.json", layer_types=layers)


def write_hub_attention(folder: Path) -> None:
    """Likewise for a model without Mamba."""
    write_hub_layers(folder, ["attention"] * 2)


def save_runtime_names(folder: Path) -> None:
    """The weights under the names that they have inside of transformers 5."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    model.save_pretrained(folder, save_original_format=False)


FAMILIES = {
    "granite": ("Granite", "bytes", GRANITE | {"tie_word_embeddings": True}),
    "granite-biases": ("Granite", "bytes", GRANITE | {"attention_bias": True, "mlp_bias": True, "logits_scaling": 1}),
    "granite-moe": ("GraniteMoe", "bytes", GRANITE_MOE | {"tie_word_embeddings": True}),
    "granite-moe-shared": ("GraniteMoeShared", "bytes", GRANITE_MOE | {"shared_intermediate_size": 64}),
    "granite-hybrid": (
        "GraniteMoeHybrid",
        "bytes",
        GRANITE_4 | GRANITE_MOE | {"shared_intermediate_size": 64, "layer_types": LAYERS},
        write_hub_layers,
    ),
    "granite-hybrid-dense": (
        "GraniteMoeHybrid",
        "bytes",
        GRANITE_4 | DENSE | {"layer_types": LAYERS, "tie_word_embeddings": True, "mamba_d_conv": 3},
        write_hub_layers,
    ),
    "granite-attention": (
        "GraniteMoeHybrid",
        "bytes",
        GRANITE | MAMBA | DENSE | {"layer_types": ["attention"] * 2, "position_embedding_type": "rope"},
        write_hub_attention,
    ),
    "lfm2": ("Lfm2", "bytes", {"num_hidden_layers": 3, "full_attn_idxs": [1]}),
    "lfm2-untied": (
        "Lfm2",
        "bytes",
        {"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"], "conv_L_cache": 4}
        | {"block_auto_adjust_ff_dim": False, "tie_word_embeddings": False, "rope_theta": 5e5},
    ),
    "lfm2-moe": ("Lfm2Moe", "bytes", LFM2_MOE | {"num_dense_layers": 1}),
    "lfm2-moe-all": (
        "Lfm2Moe",
        "bytes",
        LFM2_MOE | {"num_dense_layers": 0, "num_experts_per_tok": 3, "conv_L_cache": 2},
    ),
    "falcon-h1": ("FalconH1", "bytes", FALCON_H1 | {"head_dim": 32}),
    "falcon-h1-norm": (
        "FalconH1",
        "bytes",
        FALCON_H1
        | {"mamba_d_ssm": 96, "head_dim": 16, "mamba_rms_norm": True, "mamba_norm_before_gate": False}
        | {"tie_word_embeddings": True, "embedding_multiplier": 0.1, "rope_theta": 1e11},
    ),
}
OLD = {"rope_parameters": None, "rope_theta": 1e6, "rope_scaling": None}
OLD_NAMES = {
    "granite-old": ("granite", OLD | {"num_key_value_heads": 2}),
    "granite-hybrid-old": ("granite-hybrid", OLD | {"position_embedding_type": "nope", "time_step_limit": None}),
    "lfm2-old": (
        "lfm2",
        OLD | {"layer_types": None, "intermediate_size": None, "block_ff_dim": 96, "tie_embedding": True},
    ),
    "lfm2-moe-old": ("lfm2-moe", OLD | {"tie_embedding": True, "tie_word_embeddings": None}),
    "falcon-h1-old": ("falcon-h1", OLD | {"time_step_limit": [0.0, float("inf")]}),
}
Q8_0 = ("granite-moe-shared", "granite-hybrid", "lfm2-moe", "falcon-h1")
FURTHER_OUTTYPES = [*((name, "q8_0") for name in Q8_0), ("lfm2", "bf16")]
LOGITS = [*FAMILIES]
