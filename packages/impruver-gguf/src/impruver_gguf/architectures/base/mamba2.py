"""The Mamba 2 mixer, as hybrid models have it in some layers or beside attention."""

from dataclasses import replace

from gguf import GGUFWriter
from impruver_core.io.json_schema import COUNT, FLAG, NUMBER, OBJECT, JsonType, either, list_of

from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.weights.exponential import compute_exp
from impruver_gguf.weights.lazy_tensor import LazyTensor, Tensors

INNER, CHANNELS, PROJECTED, GROUP = "Mamba's width", "convolved channels", "projected by in_proj", "width of a group"
INFINITY = JsonType("infinity", lambda value: value == float("inf"))
KEYS = {
    **dict.fromkeys(("mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_conv", "mamba_expand"), COUNT),
    **dict.fromkeys(("mamba_conv_bias", "mamba_proj_bias"), FLAG),
    "mamba_d_head": either(COUNT, JsonType("auto", lambda value: value == "auto")),
    "time_step_limit": list_of(either(NUMBER, INFINITY, OBJECT)),  # transformers 5 writes infinity as an object
}
DEFAULTS = {
    "mamba_n_heads": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_head": "auto",
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}
# A tensor's sizes in transformers, and in a GGUF where they are others.
NORM = "blk.ssm_norm.weight"
SHAPES = {
    "blk.ssm_in.weight": (PROJECTED, "hidden_size"),
    "blk.ssm_conv1d.weight": (CHANNELS, "1", "mamba_d_conv"),
    "blk.ssm_conv1d.bias": (CHANNELS,),
    "blk.ssm_dt.bias": ("mamba_n_heads",),
    "blk.ssm_a": ("mamba_n_heads",),
    "blk.ssm_d": ("mamba_n_heads",),
    NORM: (INNER,),
    "blk.ssm_out.weight": ("hidden_size", INNER),
}
RESHAPED = {
    "blk.ssm_conv1d.weight": (CHANNELS, "mamba_d_conv"),
    "blk.ssm_a": ("mamba_n_heads", "1"),
    "blk.ssm_d": ("mamba_n_heads", "1"),
    NORM: ("mamba_n_groups", GROUP),
}


def get_inner_size(config: Config) -> int:
    """The width of the mixer: all its heads together."""
    return config.get("mamba_d_ssm") or config["mamba_expand"] * config["hidden_size"]


def get_mamba2_sizes(config: Config) -> dict[str, int]:
    """The sizes that `SHAPES` and `RESHAPED` name beside the model's own."""
    sizes = {name: config[name] for name in ("mamba_n_heads", "mamba_n_groups", "mamba_d_conv")}
    inner, groups = get_inner_size(config), config["mamba_n_groups"]
    channels = inner + 2 * groups * config["mamba_d_state"]
    projected = inner + channels + config["mamba_n_heads"]
    return sizes | {"1": 1, INNER: inner, CHANNELS: channels, PROJECTED: projected, GROUP: inner // groups}


def find_mamba2_contradiction(config: Config) -> str | None:
    """Name what no such mixer can have: heads or groups that do not divide its width."""
    inner, heads, groups = get_inner_size(config), config["mamba_n_heads"], config["mamba_n_groups"]
    width = config["mamba_d_head"]
    if inner % heads:
        return f"Mamba's width {inner} is no multiple of mamba_n_heads {heads}"
    if width != "auto" and width * heads != inner:
        return f"mamba_d_head {width} times mamba_n_heads {heads} is not Mamba's width {inner}"
    return f"mamba_n_heads {heads} is no multiple of mamba_n_groups {groups}" if heads % groups else None


def find_mamba2_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise than transformers: biases, limited time steps."""
    if not config["mamba_conv_bias"]:
        return "mamba_conv_bias false"
    if config["mamba_proj_bias"]:
        return "mamba_proj_bias"
    limit = config.get("time_step_limit") or [0.0, float("inf")]
    return (
        None if limit[0] == 0 and limit[1] in (float("inf"), {"__float__": "Infinity"}) else f"time_step_limit {limit}"
    )


def prepare_mamba2_tensors(tensors: Tensors, _config: object = None) -> dict[str, LazyTensor]:
    """Give the biases of the time steps the names that they have in gguf's table."""
    return {name.replace(".mamba.dt_bias", ".mamba.dt_proj.bias"): tensor for name, tensor in tensors.items()}


def modify_mamba2_tensors(name: str, tensor: LazyTensor, config: Config) -> LazyTensor:
    """Turn A, stored as a logarithm, into what the recurrence multiplies with: -exp(A_log)."""
    if not name.endswith(".A_log"):
        return tensor
    return replace(tensor, read=lambda start, stop: -compute_exp(tensor.read(start, stop)))


def write_mamba2_parameters(writer: GGUFWriter, config: Config) -> None:
    """Write the mixer's hyperparameters."""
    writer.add_ssm_conv_kernel(config["mamba_d_conv"])
    writer.add_ssm_state_size(config["mamba_d_state"])
    writer.add_ssm_group_count(config["mamba_n_groups"])
    writer.add_ssm_inner_size(get_inner_size(config))
    writer.add_ssm_time_step_rank(config["mamba_n_heads"])
