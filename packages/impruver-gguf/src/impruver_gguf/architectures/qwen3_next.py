"""Qwen3-Next, Qwen3.5 and its mixtures of experts: gated delta nets and gated attention (see `delta_net`)."""

from gguf import GGUFWriter

from impruver_gguf.architectures import decoder, delta_net
from impruver_gguf.architectures.architecture import Config

MROPE_SECTION = (11, 11, 10)  # Qwen3.5's, where config.json has none
DENSE = {name: sizes for name, sizes in decoder.FEED_FORWARD.items() if name != "blk.ffn_norm.weight"}
GROUPED = {  # what Qwen3.5 has where Qwen3-Next has one matrix
    f"blk.ssm_{name}.weight": ("linear_num_value_heads", "hidden_size") for name in ("alpha", "beta")
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
