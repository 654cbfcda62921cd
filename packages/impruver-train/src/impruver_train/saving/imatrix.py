"""imatrix.safetensors, an importance matrix: for each module how large its inputs are on training's rows, by column.

impruver-gguf quantizes with it: columns with large inputs lose less. Of each module, under transformers' name, it has
`NAME.in_sum2` (matrices, columns), float32, sums of squared inputs, and `NAME.counts` (matrices,), of how many; there
are several matrices where experts are one parameter.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.cli.console import log_info, open_progress, warn
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write
from impruver_core.io.model_files import get_context_length

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from impruver_train.planning.plan import TrainingData, TrainingPlan

IMATRIX_ROWS = 512  # where --imatrix_only asks for it and trainer.imatrix_rows says nothing
WRAPPERS = (".base_layer", ".modules_to_save.default")  # PEFT's, at the end of a module's name
NOT_BASE = (".lora_", ".original_module")  # in names of modules that are no weights of the merged model


class InputSums:
    """Sums of squared inputs and their counts, by module."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}  # (matrices, columns)
        self.counts: dict[str, list[int]] = {}

    def add(self, name: str, inputs: torch.Tensor, matrix: int = 0, matrices: int = 1) -> None:
        """Add inputs (…, columns) of one of a module's matrices."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        if name not in self.sums:
            self.sums[name], self.counts[name] = rows.new_zeros(matrices, rows.shape[-1]), [0] * matrices
        self.sums[name][matrix] += rows.square().sum(0)
        self.counts[name][matrix] += len(rows)

    def build_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of the file; ImpruverError where inputs were no numbers."""
        import torch

        tensors = {}
        for name, sums in self.sums.items():
            if not torch.isfinite(sums).all():
                raise ImpruverError(
                    f"trainer.imatrix_rows: the inputs of {name} hold NaN or infinity: no importance matrix is made"
                )
            tensors[f"{name}.in_sum2"] = sums.cpu().contiguous()
            tensors[f"{name}.counts"] = torch.tensor(self.counts[name])
        return tensors


def choose_rows(rows: Any, held_out: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[list[int]]:
    """Choose `count` token rows by `seed`, none of them held out; fewer where there are no more."""
    forbidden = {tuple(row["input_ids"]) for row in held_out if "input_ids" in row}
    order, chosen = list(range(len(rows))), []
    random.Random(seed).shuffle(order)
    for number in order:
        if len(chosen) == count:
            break
        row = rows[number]
        if tuple(row["input_ids"]) in forbidden:
            continue
        mask = row.get("attention_mask") or [1] * len(row["input_ids"])
        chosen.append([token for token, seen in zip(row["input_ids"], mask, strict=True) if seen])
    return [row for row in chosen if row]


def collect_imatrix(
    model: PreTrainedModel, rows: Collection[list[int]], positions: int | None, autocast: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """Run `model` on token rows, each by itself, and add up the squared inputs of its matrices.

    Neither weights nor states of random numbers change.
    """
    import torch

    base = model.get_base_model() if hasattr(model, "peft_config") else model
    sums, training = InputSums(), [module for module in model.modules() if module.training]
    device, head = base.get_input_embeddings().weight.device, base.get_output_embeddings()
    head_name = next((_strip_name(name) for name, module in base.named_modules() if module is head), None)
    computing = torch.autocast(device.type, autocast) if autocast else nullcontext()
    try:
        model.eval()
        bar = open_progress(len(rows), "rows for the importance matrix")
        with torch.no_grad(), computing, recording_inputs(base, sums), bar:
            for row in rows:
                ids = torch.tensor([row[:positions]], device=device)
                # The head is left out, whose logits take more memory than all else: its inputs are the last states.
                states = base.base_model(input_ids=ids, use_cache=False).last_hidden_state
                if head_name:
                    sums.add(head_name, states)
                bar.update(1)
    finally:
        for module in training:
            module.training = True
    return sums.build_tensors()


@contextmanager
def recording_inputs(base: nn.Module, sums: InputSums) -> Iterator[None]:
    """While it is open, inputs of linear modules, and of experts that are one parameter, are added to `sums`."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    hooks, head = [], base.get_output_embeddings()
    for name, module in base.named_modules():
        if not isinstance(module, (nn.Linear, Conv1D)) or module is head or any(part in name for part in NOT_BASE):
            continue

        def record(module: nn.Module, inputs: tuple, name: str = _strip_name(name)) -> None:
            sums.add(name, inputs[0])

        hooks.append(module.register_forward_pre_hook(record))
    config = base.config.get_text_config()
    experts = {id(weight): name for name, weight in base.named_parameters() if weight.dim() == 3 and "experts" in name}
    implementation = getattr(config, "_experts_implementation", None)
    if experts and implementation is not None:
        config._experts_implementation = "eager"  # one expert after the other, each with its own inputs
    try:
        with recording_experts(experts, sums) if experts else nullcontext():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        if experts and implementation is not None:
            config._experts_implementation = implementation


def recording_experts(names: Mapping[int, str], sums: InputSums) -> Any:
    """A mode in which products with a slice of one of these parameters (their ids → names) are recorded."""
    import torch
    from torch.nn.functional import linear
    from torch.overrides import TorchFunctionMode

    products = (linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)

    class RecordingMode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in products and len(args) > 1 and (whole := getattr(args[1], "_base", None)) is not None:
                name = names.get(id(whole))
                if name and args[1].dim() == 2:
                    matrix = (args[1].storage_offset() - whole.storage_offset()) // whole.stride(0)
                    sums.add(name, args[0], matrix, len(whole))
            return function(*args, **(kwargs or {}))

    return RecordingMode()


def make_imatrix(
    path: Path, model: PreTrainedModel, count: int, plan: TrainingPlan, data: TrainingData, source: str
) -> bool:
    """Collect an importance matrix on `count` training rows and write it to `path`; False where there are no rows."""
    from safetensors.torch import save

    dataset = data.datasets["train"]
    dataset = getattr(dataset, "rows", dataset)  # those of packs
    rows = choose_rows(dataset, data.held_out, count, plan.arguments.seed)
    if not rows:
        warn("trainer.imatrix_rows: all training rows are held out, too: no importance matrix is made")
        return False
    if len(rows) < count:
        log_info(f"note: trainer.imatrix_rows is {count:,}, and there are {len(rows):,} rows that are not held out")
    tensors = collect_imatrix(model, rows, get_context_length(plan.config), plan.precision.autocast_dtype)
    # One key: safetensors writes several in another order each time, and equal runs leave equal files.
    description = {"rows": f"{len(rows)} of {source}, {sum(map(len, rows))} tokens"}
    with atomic_write(path, "wb") as file:
        file.write(save(tensors, description))
    return True


def _strip_name(name: str) -> str:
    """A module's name in the model as it is without PEFT."""
    for wrapper in WRAPPERS:
        name = name.removesuffix(wrapper)
    return name
