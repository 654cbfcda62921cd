"""Whether weights are finite numbers, before a step is made with them; the tensors that are not are named.

One pass over each tensor finds its least and its greatest value, in which NaN and infinity show; only where they do are
they counted, a piece at a time, so that nothing of the tensor's size is held besides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from impruver_core.errors import CheckFailedError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

PIECE = 1 << 20  # values that are looked at together: they stay in a core's cache
SCALES = ("absmax", "offset", "state2")  # of bitsandbytes' 4-bit state: numbers, and a state of its own


class NonFiniteTensor(NamedTuple):
    """A tensor with values that are no finite numbers: how many, of how many."""

    name: str
    nan: int
    infinite: int
    total: int

    def describe(self) -> str:
        """As `lm_head.weight holds NaN (7 of 1,234 values)`."""
        kinds = " and ".join(word for word, count in (("NaN", self.nan), ("infinity", self.infinite)) if count)
        return f"{self.name} holds {kinds} ({self.nan + self.infinite:,} of {self.total:,} values)"


def check_finite_base(model: PreTrainedModel, name: str) -> None:
    """CheckFailedError where the loaded base `name` holds NaN or infinity, which a mask among its buffers may."""
    found = find_nonfinite(list_weights(model))
    found += [each for each in find_nonfinite(list_buffers(model)) if each.nan]
    if not found:
        return
    more = f" (the first of {len(found)} such tensors)" if len(found) > 1 else ""
    dtypes = {str(weight.dtype) for weight in model.parameters()}
    narrow = any(each.infinite for each in found) and "torch.float16" in dtypes
    advice = ", or set model.dtype: fp32, as fp16 ends at 65,504" if narrow else ""
    raise CheckFailedError(
        f"model.name: {name}: {found[0].describe()}{more}: no number could come of training; copy or download it "
        f"again, or name another base{advice}"
    )


def check_finite_checkpoint(model: nn.Module, checkpoint: object) -> None:
    """CheckFailedError where what is trained, as a checkpoint left it, holds NaN or infinity."""
    trained = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    found = find_nonfinite((name, local) for name, weight in trained for local in _list_local(weight))
    if found:
        raise CheckFailedError(
            f"{checkpoint}: {found[0].describe()}: no number could come of training; resume from an earlier "
            "checkpoint, or begin anew"
        )


def list_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The floating-point weights of a model that this process holds, by name; of a quantized matrix its scales."""
    for name, weight in model.named_parameters():
        for values in _list_local(weight):
            yield name, values


def list_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The floating-point buffers that are saved with a model, by name."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set and buffer.is_floating_point():
                yield f"{prefix}.{name}".removeprefix("."), buffer


def _list_local(weight: Tensor) -> Iterator[Tensor]:
    """The values of a weight that are here: a shard's where it is spread over processes."""
    local = _get_zero3_part(weight) if hasattr(weight, "ds_tensor") else weight
    local = local.to_local() if hasattr(local, "to_local") else local
    if local.is_floating_point():
        yield local
    elif getattr(weight, "SCB", None) is not None:  # 8 bit: a scale for each row
        yield weight.SCB
    else:
        yield from _list_scales(getattr(weight, "quant_state", None))


def _get_zero3_part(weight: Tensor) -> Tensor:
    """What DeepSpeed keeps of a weight here, less the padding of the last part, which is whatever was in memory."""
    import torch

    part = weight.ds_tensor.reshape(-1)
    before = torch.distributed.get_rank(weight.ds_process_group) * part.numel()
    return part[: max(0, weight.ds_numel - before)]


def _list_scales(state: object) -> Iterator[Tensor]:
    import torch

    for value in (getattr(state, name, None) for name in SCALES if state is not None):
        if isinstance(value, torch.Tensor):
            yield from [value] if value.is_floating_point() else []
        else:
            yield from _list_scales(value)


def find_nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> list[NonFiniteTensor]:
    """Those of some tensors that hold NaN or infinity."""
    import torch

    found = []
    with torch.no_grad():
        for name, tensor in tensors:
            if tensor.is_meta or not tensor.numel():
                continue
            ends = [end for piece in _split(tensor) for end in torch.aminmax(piece)]
            if torch.stack(ends).isfinite().all():
                continue
            nan = sum(int(piece.isnan().sum()) for piece in _split(tensor))
            infinite = sum(int(piece.isinf().sum()) for piece in _split(tensor))
            found.append(NonFiniteTensor(name, nan, infinite, tensor.numel()))
    return found


def _split(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor's values in pieces; those of 8 bits, of which torch finds no extremes, in fp32."""
    for piece in tensor.detach().reshape(-1).split(PIECE):
        yield piece.float() if piece.element_size() == 1 else piece
