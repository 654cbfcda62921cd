"""GLM-4.5 to 4.7: GLM-4's attention, and DeepSeek V3's experts with a shared one after some dense layers."""

from gguf import ExpertGatingFuncType, GGUFWriter
from impruver_core.io.json_schema import COUNT, FLAG

from impruver_gguf.architectures.base import decoder, experts
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.architectures.dense import glm4
from impruver_gguf.architectures.dense.qwen import QKV_BIASES
from impruver_gguf.architectures.mixtures import deepseek
from impruver_gguf.vocab.token_types import Vocabulary
from impruver_gguf.weights.lazy_tensor import LazyTensor, Tensors

SHAPES = decoder.EMBEDDINGS | decoder.ATTENTION | QKV_BIASES | decoder.HEAD_NORMS
SHAPES |= {"blk.post_attention_norm.weight": ("hidden_size",)}
SHAPES |= deepseek.DENSE | deepseek.MIXTURE | deepseek.ROUTER_BIAS
# Special tokens that llama.cpp's converter gives these models where the tokenizer's files name no other.
SPECIAL_TOKENS = {"bos": "[gMASK]", "eot": "<|user|>", "unk": "<|endoftext|>", "eom": "<|observation|>"}


def find_glm4_moe_contradiction(config: Config) -> str | None:
    """Name what in a configuration no such model can have."""
    count, groups = experts.get_expert_count(config), config["n_group"]
    if count % groups:
        return f"n_routed_experts {count} is no multiple of n_group {groups}"
    return glm4.find_glm4_contradiction(config) or experts.find_expert_contradiction(config)


def get_glm4_moe_sizes(config: Config) -> dict[str, int]:
    """The sizes that SHAPES names."""
    shared = config["n_shared_experts"] * config["moe_intermediate_size"]
    return decoder.get_sizes(config) | {deepseek.SHARED_SIZE: shared}


def get_glm4_moe_optional(config: Config) -> list[str]:
    """The biases and the norms of heads, where no key asks for them."""
    asked = {"attention_bias": QKV_BIASES, "use_qk_norm": decoder.HEAD_NORMS}
    return [name for key, names in asked.items() if not config[key] for name in names]


def get_glm4_moe_absent(config: Config, layer: int) -> tuple[str, ...]:
    """What of SHAPES a layer lacks: the first ones have no experts, the others nothing else."""
    is_dense = layer < config["first_k_dense_replace"]
    return (*deepseek.MIXTURE, *deepseek.ROUTER_BIAS) if is_dense else tuple(deepseek.DENSE)


def find_glm4_moe_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise, or not load: groups of experts, RoPE, activation."""
    return deepseek.find_unsupported_groups(config) or glm4.find_glm4_unsupported(config)


def set_glm4_moe_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write a decoder's hyperparameters, how much of a head RoPE turns, and how experts are chosen and weighted."""
    glm4.set_glm4_gguf_parameters(writer, config, file_type)
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])


def set_glm4_moe_vocab(writer: GGUFWriter, _: Config, vocab: Vocabulary) -> None:
    """Write the vocabulary with the special tokens of these models, as far as it has them."""
    glm4.write_glm_vocab(writer, vocab, SPECIAL_TOKENS)


def prepare_glm4_moe_tensors(tensors: Tensors, _: Config) -> dict[str, LazyTensor]:
    """Stack the experts, and name the router's bias as gguf-py does."""
    prepared = experts.prepare_experts(tensors)
    return {name.replace(".e_score_correction_bias", ".e_score_correction.bias"): prepared[name] for name in prepared}


GLM4_MOE = decoder.make_architecture(
    name="glm4moe",
    keys=decoder.KEYS | experts.KEYS | {"n_shared_experts": COUNT, "use_qk_norm": FLAG},
    defaults=decoder.DEFAULTS
    | {"vocab_size": 151552, "intermediate_size": 10944, "num_hidden_layers": 46, "num_attention_heads": 96}
    | {"num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5}
    | {"partial_rotary_factor": 0.5, "attention_bias": False, "use_qk_norm": False}
    | {"moe_intermediate_size": 1408, "num_experts_per_tok": 8, "n_shared_experts": 1, "n_routed_experts": 128}
    | {"routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "norm_topk_prob": True},
    shapes=SHAPES,
    find_contradiction=find_glm4_moe_contradiction,
    get_sizes=get_glm4_moe_sizes,
    get_optional=get_glm4_moe_optional,
    get_absent=get_glm4_moe_absent,
    find_unsupported=find_glm4_moe_unsupported,
    drop_unused=decoder.drop_prediction_layers,
    prepare_tensors=prepare_glm4_moe_tensors,
    set_gguf_parameters=set_glm4_moe_gguf_parameters,
    set_vocab=set_glm4_moe_vocab,
)
