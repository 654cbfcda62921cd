"""GLM-4, EXAONE 4 with and without windows, dense Hunyuan."""

from pathlib import Path

from support.models import edit_json

GLM4_YARN = {"rope_type": "yarn", "rope_theta": 1e5, "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e6, "factor": 16.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
WINDOWS = {"num_hidden_layers": 64, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
ALPHA = {"rope_type": "dynamic", "alpha": 1000.0, "rope_theta": 1e4, "factor": 1.0}


def name_users_turn(folder: Path) -> None:
    """The token that llama.cpp's script asks of a GLM's tokenizer."""
    path = folder / "tokenizer.json"
    text = path.read_text(encoding="utf-8").replace("<|im_start|>", "<|user|>")
    path.write_text(text, encoding="utf-8")


def name_ends(folder: Path) -> None:
    """The ends of a turn as generation_config.json has them on the hub."""
    edit_json(folder / "generation_config.json", eos_token_id=[2, 0])


FAMILIES = {
    "glm4": ("Glm4", "bytes", {"head_dim": 16}, name_users_turn),
    "glm4-yarn": (
        "Glm4",
        "bytes",
        {"head_dim": 32, "attention_bias": False, "tie_word_embeddings": True, "eos_token_id": 2}
        | {"rope_parameters": GLM4_YARN | {"partial_rotary_factor": 0.25}},
        name_users_turn,
    ),
    "exaone4": (
        "Exaone4",
        "bytes",
        {"sliding_window": None, "layer_types": ["full_attention"] * 2, "tie_word_embeddings": True}
        | {"rope_parameters": LLAMA3},
    ),
    "exaone4-windows": ("Exaone4", "bytes", WINDOWS | {"sliding_window": 8}),
    "hunyuan": ("HunYuanDenseV1", "bytes", {"head_dim": 32, "eod_token_id": 0}),
    "hunyuan-alpha": (
        "HunYuanDenseV1",
        "bytes",
        {"head_dim": 16, "max_position_embeddings": 32768, "tie_word_embeddings": True, "rope_parameters": ALPHA},
        name_ends,
    ),
}
OLD_NAMES = {
    "glm4-old": ("glm4", {"rope_parameters": None, "rope_theta": 5e5, "partial_rotary_factor": 0.5}),
    "exaone4-old": (
        "exaone4-windows",
        {"layer_types": None, "rope_parameters": None, "rope_theta": 5e5, "sliding_window_pattern": 4},
    ),
    "hunyuan-old": (
        "hunyuan-alpha",
        {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "alpha": 50, "factor": 1.0}},
    ),
}
FURTHER_OUTTYPES = [("glm4", "q8_0"), ("exaone4", "bf16"), ("hunyuan-alpha", "q8_0")]
LOGITS = ["glm4", "glm4-yarn", "exaone4", "exaone4-windows", "hunyuan", "hunyuan-alpha"]
