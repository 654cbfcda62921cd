"""Mixtures of experts: a tensor for each expert, as checkpoints have them, and fused as inside of transformers 5."""

import re
from collections.abc import Callable
from pathlib import Path

from support.models import edit_json

QWEN3_MOE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}

MIXTRAL = {"num_local_experts": 3, "num_experts_per_tok": 2}
GLM4_MOE = {"vocab_size": 2056, "num_hidden_layers": 3, "n_routed_experts": 4, "num_experts_per_tok": 2}
GLM4_MOE |= {"moe_intermediate_size": 32, "routed_scaling_factor": 2.5, "attention_bias": True}
GPT_OSS_ROPE = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
GPT_OSS_ROPE |= {"original_max_position_embeddings": 4096}
GPT_OSS = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 16}


def save_fused(folder: Path) -> None:
    """The weights as transformers 5 has them in memory: stacks of experts, gates and ups in one."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    model.save_pretrained(folder, save_original_format=False)


def pack_experts(folder: Path) -> None:
    """Experts in MXFP4, as the hub has gpt-oss: any bytes are some values, scales near 1 keep them usual."""
    import numpy as np
    import torch
    from safetensors.torch import load_file, save_file

    random, path = np.random.default_rng(0), folder / "model.safetensors"
    packed = {}
    for name, tensor in load_file(path).items():
        if not name.endswith(("experts.down_proj", "experts.gate_up_proj")):
            packed[name] = tensor
            continue
        count, inputs, outputs = tensor.shape
        scales = (count, outputs, inputs // 32)
        packed[f"{name}_blocks"] = torch.from_numpy(random.integers(0, 256, (*scales, 16), np.uint8))
        packed[f"{name}_scales"] = torch.from_numpy(random.integers(119, 124, scales, np.uint8))
    save_file(packed, path, {"format": "pt"})
    quantized = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    edit_json(folder / "config.json", quantization_config=quantized)


def make_glm(folder: Path) -> None:
    """The tokens by which llama.cpp's script knows GLM's roles; a router's bias that is not 0."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[gMASK]", "<|user|>", "<|observation|>"]})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    biases = re.compile(r".+\.e_score_correction_bias")
    change_tensors(folder, lambda name, tensor: torch.randn_like(tensor) / 8 if biases.fullmatch(name) else tensor)


def add_prediction_layer(folder: Path) -> None:
    """A layer after the last that predicts a further token, as the hub's checkpoints have it."""
    from safetensors.torch import load_file, save_file

    make_glm(folder)
    path, number = folder / "model.safetensors", GLM4_MOE["num_hidden_layers"]
    tensors = load_file(path)
    last = {name: tensor for name, tensor in tensors.items() if f".{number - 1}." in name}
    further = {name.replace(f".{number - 1}.", f".{number}.", 1): tensor.clone() for name, tensor in last.items()}
    further[f"model.layers.{number}.eh_proj.weight"] = tensors["lm_head.weight"][:64].repeat(1, 2)
    save_file(tensors | further, path, {"format": "pt"})


def change_tensors(folder: Path, change: Callable) -> None:
    """Has `change` make each tensor of the weights anew, from its name and itself."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {name: change(name, tensor) for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})


FAMILIES = {
    "qwen3-moe": ("Qwen3Moe", "bytes", QWEN3_MOE | {"head_dim": 32}),
    "qwen3-moe-fused": ("Qwen3Moe", "bytes", QWEN3_MOE | {"tie_word_embeddings": True}, save_fused),
    "mixtral": ("Mixtral", "bytes", MIXTRAL | {"num_hidden_layers": 3, "sliding_window": None}),
    "mixtral-sp": ("Mixtral", "pieces", MIXTRAL | {"vocab_size": 608, "head_dim": 32, "tie_word_embeddings": True}),
    "gpt-oss": ("GptOss", "bytes", GPT_OSS),
    "gpt-oss-mxfp4": ("GptOss", "bytes", GPT_OSS, pack_experts),
    "glm4-moe": ("Glm4Moe", "bytes", GLM4_MOE | {"head_dim": 32}, add_prediction_layer),
    "glm4-moe-norms": (
        "Glm4Moe",
        "bytes",
        GLM4_MOE
        | {"use_qk_norm": True, "attention_bias": False, "n_shared_experts": 2, "first_k_dense_replace": 2}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}},
        make_glm,
    ),
}
OLD_NAMES = {
    "qwen3-moe-old": (
        "qwen3-moe",
        {"num_local_experts": None, "num_experts": 5, "rope_parameters": None, "rope_theta": 1e6, "layer_types": None},
    ),
    "glm4-moe-old": (
        "glm4-moe",
        {"rope_parameters": None, "rope_theta": 1e6, "rope_scaling": None, "partial_rotary_factor": 0.5}
        | {"num_mtp_layers": None, "num_nextn_predict_layers": 1},
    ),
    "mixtral-old": (
        "mixtral",
        {"head_dim": None, "rope_parameters": None, "rope_theta": 1e6, "rope_scaling": None, "sliding_window": 4096},
    ),
    "gpt-oss-old": (
        "gpt-oss-mxfp4",
        {"rope_parameters": None, "rope_theta": 150000, "swiglu_alpha": None, "layer_types": None}
        | {"rope_scaling": GPT_OSS_ROPE, "experts_per_token": 2, "initial_context_length": 4096},
    ),
}
SCRIPT_FLAGS = {name: ["--no-mtp"] for name in ("glm4-moe", "glm4-moe-norms", "glm4-moe-old")}
FURTHER_OUTTYPES = [
    *(("qwen3-moe", "q8_0"), ("qwen3-moe-fused", "bf16"), ("glm4-moe", "q8_0")),
    *(("gpt-oss", "bf16"), ("gpt-oss-mxfp4", "q8_0")),
]
LOGITS = ["qwen3-moe", "qwen3-moe-fused", "mixtral", "gpt-oss", "glm4-moe", "glm4-moe-norms"]
LEVELS = dict.fromkeys(("gpt-oss-mxfp4", "gpt-oss-old"), "mxfp4_moe")
