"""EXAONE 4: norms after attention and feed-forward alone; in the large model windows, and RoPE in their layers only."""

from gguf import GGUFWriter
from impruver_core.io.json_schema import INDEX, TEXT, either

from impruver_gguf.architectures.base import decoder
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.architectures.dense.gemma3 import POST_NORMS
from impruver_gguf.architectures.dense.llama import ROPE_TYPES, generate_llama_extra_tensors

LAYERS_WITH_WINDOWS = 64  # of the one model that llama.cpp gives windows
FULL_EVERY = 4  # there each fourth layer attends to all
SLIDING, LOCAL = "sliding_attention", "L"  # names of a layer with a window: in layer_types, in sliding_window_pattern
WITHOUT_NORMS = {
    name: sizes
    for name, sizes in (decoder.ATTENTION | decoder.FEED_FORWARD).items()
    if name not in ("blk.attn_norm.weight", "blk.ffn_norm.weight")
}


def find_windows(config: Config) -> list[bool]:
    """Which layers attend to a window; [] where no layer type says so, or there is no window."""
    pattern, count = config.get("sliding_window_pattern"), config["num_hidden_layers"]
    if not config.get("sliding_window"):
        return []
    if config.get("layer_types"):
        return [kind == SLIDING for kind in config["layer_types"]]
    if isinstance(pattern, str):
        return [pattern[layer % len(pattern)] == LOCAL for layer in range(count)]
    return [(layer + 1) % pattern != 0 for layer in range(count)] if pattern else []


def find_exaone4_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: windows, RoPE, activation; or would not load: odd heads."""
    windows, count = find_windows(config), config["num_hidden_layers"]
    has_windows = count == LAYERS_WITH_WINDOWS
    expected = [(layer + 1) % FULL_EVERY != 0 for layer in range(count)] if has_windows else []
    if windows != expected:
        fitting = f"sliding windows in all but each {FULL_EVERY}th layer" if has_windows else "no sliding windows"
        return f"other than {fitting}, which is what {count} layers have in llama.cpp"
    reason = decoder.find_other_head_dim(config) or decoder.find_unsupported_rope(config, ROPE_TYPES)
    return reason or decoder.find_unsupported(config)


def set_exaone4_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write a decoder's hyperparameters, the vocabulary's size, and which layers attend to a window."""
    decoder.set_gguf_parameters(writer, config, file_type)
    writer.add_vocab_size(config["vocab_size"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
        writer.add_sliding_window_pattern(find_windows(config))


EXAONE4 = decoder.make_architecture(
    name="exaone4",
    keys=decoder.KEYS | {"sliding_window_pattern": either(INDEX, TEXT)},
    defaults=decoder.DEFAULTS
    | {"vocab_size": 102400, "intermediate_size": 16384, "num_key_value_heads": 32, "rms_norm_eps": 1e-5}
    | {"max_position_embeddings": 2048, "sliding_window": 4096, "sliding_window_pattern": FULL_EVERY},
    nullable=("sliding_window",),
    shapes=decoder.EMBEDDINGS | WITHOUT_NORMS | decoder.HEAD_NORMS | POST_NORMS,
    find_unsupported=find_exaone4_unsupported,
    set_gguf_parameters=set_exaone4_gguf_parameters,
    generate_extra_tensors=generate_llama_extra_tensors,
)
