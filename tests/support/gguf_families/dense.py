"""OLMo 2 and 3, Cohere's Command models, GPT-NeoX, and Phi-4-mini with its vocabulary."""

from pathlib import Path

from support.models import edit_json


def as_phi4(folder: Path) -> None:
    """Phi-4's files name the tokenizer by which llama.cpp's script knows that the vocabulary is byte-level."""
    edit_json(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0}
YARN |= {"attention_factor": 1.2079441541679836}
OLMO3_ROPE = {"full_attention": YARN | {"rope_theta": 5e5}, "sliding_attention": {"rope_type": "default"}}
PHI4_ROPE = {
    "rope_type": "longrope",
    "long_factor": [1.0 + number / 7 for number in range(6)],
    "short_factor": [1.0] * 6,
    "partial_rotary_factor": 0.75,
}
PHI4 = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "sliding_window": 262144}
SHORT_WINDOW = {"num_hidden_layers": 5, "sliding_window": 8}
FAMILIES = {
    "olmo2": ("Olmo2", "bytes", {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "olmo2-yarn": (
        "Olmo2",
        "bytes",
        {"num_key_value_heads": 4, "num_attention_heads": 8, "rope_parameters": YARN | {"rope_theta": 1e5}},
    ),
    "olmo3": ("Olmo3", "bytes", SHORT_WINDOW | {"rope_parameters": OLMO3_ROPE, "max_position_embeddings": 512}),
    "olmo3-full": ("Olmo3", "bytes", {"layer_types": ["full_attention"] * 2, "num_key_value_heads": 1}),
    "command-r": ("Cohere", "bytes", {"logit_scale": 0.25, "model_max_length": 131072}),
    "command-r-plus": (
        "Cohere",
        "bytes",
        {"num_hidden_layers": 64, "use_qk_norm": True, "hidden_size": 32, "intermediate_size": 32, "logit_scale": 0.5},
    ),
    "command-a": ("Cohere2", "bytes", SHORT_WINDOW | {"logit_scale": 0.25, "rotary_pct": 1.0}),
    "command-a-short": ("Cohere2", "bytes", {"num_attention_heads": 8, "rope_parameters": {"rope_theta": 5e4}}),
    "pythia": ("GPTNeoX", "bytes", {"rotary_pct": 0.25}),
    "neox-serial": ("GPTNeoX", "bytes", {"rotary_pct": 1.0, "use_parallel_residual": False, "hidden_act": "gelu_fast"}),
    "phi4-mini": ("Phi3", "bytes", PHI4 | {"rope_parameters": PHI4_ROPE, "tie_word_embeddings": True}, as_phi4),
    "phi4": ("Phi3", "bytes", {"num_attention_heads": 8, "sliding_window": None}, as_phi4),
}
OLD_ROPE = {"rope_parameters": None}
OLD_NAMES = {
    "olmo3-old": ("olmo3", OLD_ROPE | {"rope_theta": 5e5, "rope_scaling": YARN, "layer_types": None}),
    "command-r-old": ("command-r", OLD_ROPE | {"rope_theta": 8e6, "use_qk_norm": None, "head_dim": 16}),
    "command-a-old": (
        "command-a",
        OLD_ROPE
        | {"rope_theta": 5e4, "layer_types": None, "sliding_window_pattern": 4, "layer_switch": 4}
        | {"order_of_interleaved_layers": "local_attn_first", "use_qk_norm": False, "head_dim": None},
    ),
    "pythia-old": ("pythia", OLD_ROPE | {"rotary_pct": 0.25, "rotary_emb_base": 10000, "attention_bias": None}),
    "phi4-mini-old": (
        "phi4-mini",
        OLD_ROPE
        | {"rope_theta": 1e4, "partial_rotary_factor": 0.75, "full_attn_mod": 1, "lm_head_bias": False}
        | {"rope_scaling": {"type": "longrope"} | {key: PHI4_ROPE[key] for key in ("long_factor", "short_factor")}},
    ),
}
FURTHER_OUTTYPES = [("command-r-plus", "q8_0"), ("pythia", "q8_0"), ("olmo3", "bf16")]
LOGITS = [
    *("olmo2", "olmo2-yarn", "olmo3", "command-r-plus", "command-a", "pythia", "neox-serial"),
    "phi4-mini",
]
