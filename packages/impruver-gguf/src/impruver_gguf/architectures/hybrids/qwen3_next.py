"""Qwen3-Next, Qwen3.5 and its mixtures of experts: gated delta nets and gated attention (see `delta_net`)."""

from dataclasses import replace

from gguf import GGUFWriter
from impruver_core.io.json_schema import COUNT, INDEX, list_of

from impruver_gguf.architectures.base import decoder, delta_net, experts
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.architectures.base.delta_net import SHARED
from impruver_gguf.weights.lazy_tensor import Tensors

MROPE_SECTION = (11, 11, 10)  # Qwen3.5's, where config.json has none
DENSE = {name: sizes for name, sizes in decoder.FEED_FORWARD.items() if name != "blk.ffn_norm.weight"}
GROUPED = {  # what Qwen3.5 has where Qwen3-Next has one matrix
    f"blk.ssm_{name}.weight": ("linear_num_value_heads", "hidden_size") for name in ("alpha", "beta")
}
JOINED = {"blk.ssm_ba.weight": ("2 x linear_num_value_heads", "hidden_size")}
MIXTURE = {name: sizes for name, sizes in experts.SHAPES.items() if name != "blk.ffn_norm.weight"} | {
    "blk.ffn_gate_inp_shexp.weight": ("1", "hidden_size"),
    "blk.ffn_gate_shexp.weight": (SHARED, "hidden_size"),
    "blk.ffn_up_shexp.weight": (SHARED, "hidden_size"),
    "blk.ffn_down_shexp.weight": ("hidden_size", SHARED),
}
MIXTURE_KEYS = {**delta_net.KEYS, **experts.KEYS, SHARED: COUNT, "decoder_sparse_step": COUNT} | {
    "mlp_only_layers": list_of(INDEX)
}


def find_qwen35_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: what it would in any delta net, sections of RoPE."""
    pairs = delta_net.get_rotary_dim(config) // 2
    unturned = decoder.find_unturned_pairs(decoder.get_rope(config), MROPE_SECTION, pairs)
    return delta_net.find_unsupported(config) or unturned


def set_qwen35_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write a delta net's hyperparameters, and the sections of RoPE in any case."""
    delta_net.set_gguf_parameters(writer, config, file_type)
    if "mrope_section" not in decoder.get_rope(config):
        decoder.write_mrope_sections(writer, MROPE_SECTION)


def find_mixture_contradiction(config: Config) -> str | None:
    """Name what no mixture of experts with delta nets can have."""
    return experts.find_expert_contradiction(config) or delta_net.find_contradiction(config)


def get_mixture_sizes(config: Config) -> dict[str, int]:
    """The sizes that the shapes of a mixture name."""
    joined = 2 * config["linear_num_value_heads"]
    return delta_net.get_sizes(config) | {SHARED: config[SHARED], "2 x linear_num_value_heads": joined}


def find_qwen3_next_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: layers without experts, weights of experts that do not sum to 1."""
    if config["mlp_only_layers"] or config["decoder_sparse_step"] != 1:
        return "mlp_only_layers" if config["mlp_only_layers"] else "decoder_sparse_step"
    return delta_net.find_unsupported(config) if config["norm_topk_prob"] else "norm_topk_prob false"


def prepare_qwen3_next_tensors(tensors: Tensors, config: Config) -> Tensors:
    """Prepare a mixture's tensors without those of mtp, as the script's --no-mtp: cyllama's llama.cpp loads none."""
    return prepare_mixture({name: tensor for name, tensor in tensors.items() if not delta_net.is_mtp(name)}, config)


def prepare_mixture(tensors: Tensors, config: Config) -> Tensors:
    """Prepare a delta net's tensors, with experts in stacks."""
    return experts.prepare_experts(delta_net.prepare_tensors(tensors, config))


QWEN35 = decoder.make_architecture(
    name="qwen35",
    keys=delta_net.KEYS,
    defaults=delta_net.DEFAULTS | {"vocab_size": 248320, "intermediate_size": 12288, "num_key_value_heads": 4},
    shapes=delta_net.SHAPES | GROUPED | DENSE,
    reshaped=delta_net.RESHAPED,
    get_sizes=delta_net.get_sizes,
    get_absent=lambda config, layer: delta_net.get_absent(config, layer, GROUPED),
    adapt_config=delta_net.count_mtp_layers,
    find_contradiction=delta_net.find_contradiction,
    find_unsupported=find_qwen35_unsupported,
    prepare_tensors=delta_net.prepare_tensors,
    modify_tensors=delta_net.modify_grouped_tensors,
    set_gguf_parameters=set_qwen35_gguf_parameters,
)
QWEN35_MOE = replace(
    QWEN35,
    name="qwen35moe",
    keys=MIXTURE_KEYS,
    defaults=delta_net.DEFAULTS
    | {"vocab_size": 248320, "hidden_size": 2048, "num_hidden_layers": 40, "num_key_value_heads": 2}
    | {"moe_intermediate_size": 512, SHARED: 512, "num_experts_per_tok": 8, "num_experts": 256},
    shapes=delta_net.SHAPES | GROUPED | MIXTURE,
    get_sizes=get_mixture_sizes,
    find_contradiction=find_mixture_contradiction,
    prepare_tensors=prepare_mixture,
)
QWEN3_NEXT = replace(
    QWEN35_MOE,
    name="qwen3next",
    defaults=QWEN35_MOE.defaults
    | {"vocab_size": 151936, "intermediate_size": 5632, "num_hidden_layers": 48, "num_experts_per_tok": 10}
    | {"num_experts": 512, "decoder_sparse_step": 1, "norm_topk_prob": True, "mlp_only_layers": []},
    shapes=delta_net.SHAPES | JOINED | MIXTURE,
    get_absent=lambda config, layer: delta_net.get_absent(config, layer, JOINED),
    adapt_config=lambda config, names: config,
    find_unsupported=find_qwen3_next_unsupported,
    prepare_tensors=prepare_qwen3_next_tensors,
    modify_tensors=delta_net.modify_tensors,
    set_gguf_parameters=delta_net.set_gguf_parameters,
)
