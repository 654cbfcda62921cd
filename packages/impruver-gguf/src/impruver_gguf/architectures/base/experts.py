"""Experts of a mixture: a matrix each in most checkpoints, stacks of all in a GGUF and inside of transformers 5.

Nothing is read here: a stack reads its rows from the experts' matrices, a part of a fused stack from that one.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from gguf import ExpertGatingFuncType, GGUFWriter
from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import COUNT, FLAG, INDEX, NUMBER, TEXT

from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.weights.lazy_tensor import LazyTensor, Tensors, slice_matrices, stack_tensors

COUNT_NAMES = ("num_local_experts", "num_experts", "n_routed_experts")  # how configurations call the number of experts
WIDTH_NAMES = ("moe_intermediate_size", "intermediate_size")  # and the width of one
KEYS = {
    **dict.fromkeys((*COUNT_NAMES, *WIDTH_NAMES, "num_experts_per_tok", "n_group", "topk_group"), COUNT),
    **dict.fromkeys(("n_shared_experts", "first_k_dense_replace"), INDEX),
    "routed_scaling_factor": NUMBER,
    "norm_topk_prob": FLAG,
    "scoring_func": TEXT,
}
SHAPES = {  # a layer's feed-forward part
    "blk.ffn_norm.weight": ("hidden_size",),
    "blk.ffn_gate_inp.weight": ("num_experts", "hidden_size"),
    "blk.ffn_gate_exps.weight": ("num_experts", "moe_intermediate_size", "hidden_size"),
    "blk.ffn_up_exps.weight": ("num_experts", "moe_intermediate_size", "hidden_size"),
    "blk.ffn_down_exps.weight": ("num_experts", "hidden_size", "moe_intermediate_size"),
}
GATING = {
    "sigmoid": ExpertGatingFuncType.SIGMOID,
    "softmax": ExpertGatingFuncType.SOFTMAX,
}
EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)\.weight")
PROJECTIONS = ("down_proj", "gate_proj", "up_proj")  # in the order in which llama.cpp's converter writes stacks


def get_expert_count(config: Config) -> int | None:
    """How many experts a layer has that are routed to; None for a model without any."""
    return next((config[name] for name in COUNT_NAMES if config.get(name) is not None), None)


def get_expert_sizes(config: Config) -> dict[str, int]:
    """The sizes that SHAPES names: {} for a model without experts."""
    count = get_expert_count(config)
    if count is None:
        return {}
    return {"num_experts": count, "moe_intermediate_size": next(config[name] for name in WIDTH_NAMES if name in config)}


def find_expert_contradiction(config: Config) -> str | None:
    """Name what no mixture of experts can have."""
    count, used = get_expert_count(config), config["num_experts_per_tok"]
    return f"num_experts_per_tok {used} is more than the {count} experts" if used > count else None


def write_expert_counts(writer: GGUFWriter, config: Config) -> None:
    """Write how many experts there are, how many work on a token, and how a router's outputs become weights."""
    for value, add in (
        (get_expert_count(config), writer.add_expert_count),
        (config.get("num_experts_per_tok"), writer.add_expert_used_count),
        (config.get("n_group"), writer.add_expert_group_count),
        (config.get("topk_group"), writer.add_expert_group_used_count),
        (GATING.get(config.get("scoring_func")), writer.add_expert_gating_func),
    ):
        if value is not None:
            add(value)


def stack_experts(tensors: Tensors, projections: Sequence[str] = PROJECTIONS) -> dict[str, LazyTensor]:
    """Stack `*.experts.3.up_proj.weight` and its like to `*.experts.up_proj.weight` of (experts, rows, columns).

    A layer's stacks come in the order of `projections` where its last expert was. ImpruverError where experts are
    missing or of different shapes.
    """
    layers: dict[str, dict[str, dict[int, LazyTensor]]] = {}  # `*.experts` → projection → expert's number → matrix
    last = {}  # `*.experts` → the name of its last matrix
    for name, tensor in tensors.items():
        if found := EXPERT.fullmatch(name):
            experts, number, projection = found.groups()
            layers.setdefault(experts, defaultdict(dict))[projection][int(number)] = tensor
            last[experts] = name
    stacked = {}
    for name, tensor in tensors.items():
        found = EXPERT.fullmatch(name)
        if found is None:
            stacked[name] = tensor
        elif last[found[1]] == name:
            stacked |= dict(_stack_layer(found[1], layers[found[1]], projections))
    return stacked


def _stack_layer(
    experts: str, matrices: dict[str, dict[int, LazyTensor]], projections: Sequence[str]
) -> Iterator[tuple[str, LazyTensor]]:
    count = 1 + max(number for numbered in matrices.values() for number in numbered)
    for projection in sorted(matrices, key=lambda name: projections.index(name) if name in projections else -1):
        numbered = matrices[projection]
        missing = next((number for number in range(count) if number not in numbered), None)
        if missing is not None:
            raise ImpruverError(
                f"{experts}.{missing}.{projection}.weight is not among the weights, but others of {count} experts "
                "are: they are not whole, copy the model again"
            )
        for number, matrix in numbered.items():
            if matrix.shape != numbered[0].shape:
                raise ImpruverError(
                    f"{experts}.{number}.{projection}.weight is {list(matrix.shape)}, another expert's is "
                    f"{list(numbered[0].shape)}: the weights are of different models"
                )
        yield f"{experts}.{projection}.weight", stack_tensors([numbered[number] for number in range(count)])


def split_fused_experts(tensors: Tensors) -> dict[str, LazyTensor]:
    """Split `*.experts.gate_up_proj` (experts, gate's rows then up's, columns) in two; name all three as weights."""
    split = {}
    for name, tensor in tensors.items():
        experts, _, projection = name.removesuffix(".weight").rpartition(".")
        if not experts.endswith(".experts") or len(tensor.shape) != 3:
            split[name] = tensor
        elif projection == "gate_up_proj" and tensor.shape[1] % 2 == 0:
            rows = tensor.shape[1] // 2
            split[f"{experts}.gate_proj.weight"] = slice_matrices(tensor, 0, rows)
            split[f"{experts}.up_proj.weight"] = slice_matrices(tensor, rows, 2 * rows)
        else:
            split[f"{experts}.{projection}.weight"] = tensor
    return split


def prepare_experts(tensors: Tensors, _config: object = None) -> dict[str, LazyTensor]:
    """Have experts as stacks of gates, ups and downs, whether a checkpoint holds them one by one or fused."""
    return split_fused_experts(stack_experts(tensors))
