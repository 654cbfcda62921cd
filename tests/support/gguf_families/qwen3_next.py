"""Qwen3-Next, Qwen3.5 and Qwen3-VL: with experts, with layers of mtp, text models and multimodal ones."""

import re
from collections.abc import Callable
from pathlib import Path

from support.models import BLOCKS, edit_json, save_model

HEADS = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32}
DELTA_NET = {"head_dim": 32, "num_hidden_layers": 4} | HEADS
ROPE = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.5, "mrope_section": [3, 3, 2]}
TIED = DELTA_NET | {"tie_word_embeddings": True, "rope_parameters": ROPE}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
MIXTURE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
EXPERTS = MIXTURE | {"shared_expert_intermediate_size": 64}
WIDE = {"moe_intermediate_size": 96, "tie_word_embeddings": True}
VL = {
    "num_hidden_layers": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5]},
}
OTHER_HEADS = {"linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 16}


def add_mtp(folder: Path) -> None:
    """Weights of multi-token prediction, as checkpoints of the hub have them beside a text model's."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (layer,) = {name.partition(".self_attn.")[0] for name in tensors if name.endswith(".self_attn.q_proj.weight")}
    added = {name.replace(layer, "mtp.layers.0"): tensor for name, tensor in tensors.items() if f"{layer}." in name}
    norm = next(tensor for name, tensor in tensors.items() if re.search(r"(^|model\.)norm.weight$", name))
    added |= {f"mtp.{name}.weight": norm for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    added = {name: torch.randn_like(tensor) for name, tensor in added.items()}
    added["mtp.fc.weight"] = torch.randn(len(norm), 2 * len(norm), dtype=norm.dtype)
    save_file(tensors | added, folder / "model.safetensors", {"format": "pt"})
    if "intermediate_size" in (folder / "config.json").read_text(encoding="utf-8"):  # Qwen3-Next's names no mtp
        edit_json(folder / "config.json", mtp_num_hidden_layers=1, full_attention_interval=4)


def turn_experts(folder: Path) -> None:
    """Experts as Qwen3-VL's are on the hub: (experts, columns, rows)."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    turned = {name: tensor.transpose(1, 2).contiguous() for name, tensor in tensors.items() if ".experts." in name}
    save_file(tensors | turned, folder / "model.safetensors", {"format": "pt"})


def make_vision_language(family: str, text: dict, *edits: Callable[[Path], None], **config) -> Callable:
    """Makes the function that fills a folder with a model of a multimodal class."""
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}

    def make(folder: Path, tokenizers: dict[str, Path]) -> None:
        import transformers

        sizes = BLOCKS | {"vocab_size": 2050, "num_key_value_heads": 2} | text
        configuration = getattr(transformers, f"{family}Config")(text_config=sizes, vision_config=vision, **config)
        model = getattr(transformers, f"{family}ForConditionalGeneration")(configuration)
        save_model(model, folder, tokenizers["bytes"], "bfloat16", "5GB")
        for edit in edits:
            edit(folder)

    return make


FAMILIES = {
    "qwen35": ("Qwen3_5", "bytes", DELTA_NET),
    "qwen35-tied": ("Qwen3_5", "bytes", TIED),
    "qwen35-heads": ("Qwen3_5", "bytes", DELTA_NET | OTHER_HEADS | {"linear_value_head_dim": 16}),
    "qwen35-yarn": ("Qwen3_5", "bytes", DELTA_NET | {"rope_parameters": YARN}),
    "qwen35-mtp": ("Qwen3_5", "bytes", DELTA_NET, add_mtp),
    "qwen35-vision": make_vision_language("Qwen3_5", TIED, add_mtp, tie_word_embeddings=True),
    "qwen35-moe-vision": make_vision_language("Qwen3_5Moe", DELTA_NET | EXPERTS | {"rope_parameters": ROPE}, add_mtp),
    "qwen3-vl": make_vision_language("Qwen3VL", VL | {"head_dim": 32}, tie_word_embeddings=True),
    "qwen3-vl-moe": make_vision_language("Qwen3VLMoe", VL | MIXTURE | {"head_dim": 32}, turn_experts),
    "qwen3-vl-moe-wide": make_vision_language("Qwen3VLMoe", VL | MIXTURE | WIDE, turn_experts),
    "qwen35-moe": ("Qwen3_5Moe", "bytes", DELTA_NET | EXPERTS),
    "qwen35-moe-mtp": ("Qwen3_5Moe", "bytes", DELTA_NET | EXPERTS | {"tie_word_embeddings": True}, add_mtp),
    "qwen3-next": ("Qwen3Next", "bytes", DELTA_NET | EXPERTS),
    "qwen3-next-heads": ("Qwen3Next", "bytes", DELTA_NET | EXPERTS | OTHER_HEADS | {"linear_value_head_dim": 16}),
    "qwen3-next-mtp": ("Qwen3Next", "bytes", DELTA_NET | EXPERTS, add_mtp),
}
OLD_NAMES = {
    "qwen3-next-old": (
        "qwen3-next",
        {"rope_parameters": None, "layer_types": None, "rope_theta": 1e6, "partial_rotary_factor": 0.5}
        | {"full_attention_interval": 4, "rope_scaling": None, "head_dim": 32, "mlp_only_layers": []},
    ),
    "qwen35-old": (
        "qwen35",
        {"rope_parameters": None, "layer_types": None, "rope_theta": 1e6, "partial_rotary_factor": 0.5}
        | {"full_attention_interval": 4, "mtp_num_hidden_layers": 1},
    ),
}
SCRIPT_FLAGS = {name: ["--no-mtp"] for name in (*FAMILIES, *OLD_NAMES) if not name.endswith("-mtp")}
SCRIPT_FLAGS["qwen3-next-mtp"] = ["--no-mtp"]
SCRIPT_FLAGS |= {name: [] for name in FAMILIES if "-vision" in name or "-vl" in name}
FURTHER_OUTTYPES = [("qwen35-heads", "q8_0"), ("qwen35-mtp", "bf16"), ("qwen3-next", "q8_0"), ("qwen35-moe", "bf16")]
LOGITS = ["qwen35", "qwen35-heads", "qwen35-tied", "qwen35-yarn", "qwen35-mtp", "qwen35-vision", "qwen35-moe"]
LOGITS += ["qwen3-next", "qwen3-next-heads", "qwen3-vl", "qwen3-vl-moe"]
