"""DeepSeek V2 and V3, and GigaChat 3 as it is on the hub: latent attention, dense layers first, shared experts."""

from collections.abc import Callable
from pathlib import Path

from support.models import edit_json

YARN = {"rope_type": "yarn", "rope_theta": 1e5, "factor": 40.0, "original_max_position_embeddings": 4096}
YARN |= {"beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
DEEPSEEK = {"num_key_value_heads": 4, "num_hidden_layers": 3, "first_k_dense_replace": 1}
DEEPSEEK |= {"kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 8, "v_head_dim": 64}
DEEPSEEK |= {"n_routed_experts": 8, "moe_intermediate_size": 32, "num_experts_per_tok": 2}
LONG = {"rope_parameters": YARN, "max_position_embeddings": 163840}
GIGACHAT = {"num_hidden_layers": 26, "hidden_size": 32, "intermediate_size": 64, "q_lora_rank": None}


def name_function(function: str) -> Callable[[Path], None]:
    """As on the hub, where config.json names the router's function; transformers' own configurations do not."""
    return lambda folder: edit_json(folder / "config.json", scoring_func=function)


def edit_torch_weights(folder: Path, change: Callable[[dict], None]) -> None:
    """Has `change` work on torch's tensors by name."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def bias_routers(folder: Path) -> None:
    """Biases by which the routers choose other experts than by their scores alone; transformers begins with zeros."""
    import torch

    def change(tensors: dict) -> None:
        for name, bias in tensors.items():
            if name.endswith("e_score_correction_bias"):
                tensors[name] = torch.linspace(0.3, -0.2, len(bias))

    edit_torch_weights(folder, change)


def add_prediction_layer(folder: Path) -> None:
    """A layer after the last, as on the hub, that predicts a further token."""
    import torch

    def change(tensors: dict) -> None:
        last = {name: tensor for name, tensor in tensors.items() if ".layers.25." in name}
        tensors |= {name.replace(".25.", ".26."): tensor.clone() for name, tensor in last.items()}
        tensors["model.layers.26.eh_proj.weight"] = torch.ones(32, 64)
        tensors["model.layers.26.enorm.weight"] = torch.ones(32)

    edit_torch_weights(folder, change)


SIGMOID = (name_function("sigmoid"), bias_routers)
FAMILIES = {
    "deepseek2": ("DeepseekV2", "bytes", DEEPSEEK, name_function("softmax")),
    "deepseek2-tied": (
        "DeepseekV2",
        "bytes",
        DEEPSEEK
        | {"tie_word_embeddings": True, "routed_scaling_factor": 16.0, "n_shared_experts": 1}
        | {"rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}, "first_k_dense_replace": 0},
    ),
    "deepseek3": ("DeepseekV3", "bytes", DEEPSEEK | {"n_group": 4, "topk_group": 2}, *SIGMOID),
    "deepseek3-yarn": ("DeepseekV3", "bytes", DEEPSEEK | LONG | {"n_group": 1, "topk_group": 1}, *SIGMOID),
    "gigachat3": (
        "DeepseekV3",
        "bytes",
        DEEPSEEK | LONG | GIGACHAT | {"n_group": 1, "topk_group": 1},
        *SIGMOID,
        add_prediction_layer,
    ),
}
HUB_YARN = {"type": "yarn"} | {name: value for name, value in YARN.items() if name not in ("rope_type", "rope_theta")}
OLD_NAMES = {
    "gigachat3-hub": (
        "gigachat3",
        {"head_dim": None, "rope_parameters": None, "rope_theta": 1e5, "rope_scaling": HUB_YARN}
        | {"num_local_experts": None, "n_routed_experts": 8, "rope_interleave": None},
    ),
    "deepseek2-old": ("deepseek2", {"head_dim": None, "rope_parameters": None, "rope_theta": 2e4}),
}
FURTHER_OUTTYPES = [("deepseek3", "q8_0"), ("deepseek2-tied", "bf16")]
LOGITS = ["deepseek2", "deepseek2-tied", "deepseek3", "deepseek3-yarn"]
