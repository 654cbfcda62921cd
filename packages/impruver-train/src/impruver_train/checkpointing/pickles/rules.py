"""Which classes and functions the pickles of a checkpoint name, and what they call them with, by kind of file.

All else is refused, though torch.load(weights_only=True) lets more pass: what its functions are called with decides how
much memory they take. DeepSpeed and torch.distributed.checkpoint load without weights_only.
"""

import re
from collections.abc import Callable
from math import prod
from typing import Any

from impruver_train.checkpointing.pickles.parsing import Budget, Global, Instance, Pairs, PickleError, Rule, Storage

FindRule = Callable[[str], Rule | None]

STORAGE_BYTES = {  # of an item
    "torch.ComplexDoubleStorage": 16,
    **dict.fromkeys(("torch.DoubleStorage", "torch.LongStorage", "torch.ComplexFloatStorage"), 8),
    **dict.fromkeys(("torch.FloatStorage", "torch.IntStorage"), 4),
    **dict.fromkeys(("torch.HalfStorage", "torch.BFloat16Storage", "torch.ShortStorage"), 2),
    **dict.fromkeys(("torch.ByteStorage", "torch.CharStorage", "torch.BoolStorage", "torch.storage.UntypedStorage"), 1),
}
WIDE = {"torch.uint16": 2, "torch.uint32": 4, "torch.uint64": 8}  # the other dtypes without a storage of theirs: 1 byte
DTYPE = re.compile(r"torch\.(bool|b?float\d+\w*|u?int\d+|complex\d+)")
TENSOR_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter")
MOST_DIMENSIONS = 64  # torch's own limit
QUANTIZED_STATE = re.compile(r"torchao\.(optim|prototype\.low_bit_optim)\.subclass_\w+\.OptimState\w+")
# Classes alone (PEP 8 names nothing else so), in the modules that hold what training arguments are made of. Nothing of
# ours loads that file.
ARGUMENT_CLASS = re.compile(
    r"(transformers\.(training_args\w*|trainer\w*|debug_utils|deepspeed|(integrations|generation|utils)\.\w+)"
    r"|accelerate\.(state|utils\.dataclasses)|trl\.trainer\.\w+)\.[A-Z]\w*"
)
DEEPSPEED_CLASS = re.compile(
    r"deepspeed\.(runtime\.fp16\.loss_scaler\.(Dynamic)?LossScaler|runtime\.zero\.config\.ZeroStageEnum"
    r"|utils\.tensor_fragment\.fragment_address)"
)
SHARDS_CLASS = re.compile(
    r"torch\.distributed\.checkpoint\.metadata\.((Tensor|Bytes|Chunk)StorageMetadata|Metadata|MetadataIndex|StorageMeta"
    r"|TensorProperties|_MEM_FORMAT_ENCODING)|pathlib\.(_local\.)?PosixPath"
)
SHARD_PLACE = "torch.distributed.checkpoint.filesystem._StorageInfo"
PLACE_ATTRIBUTE = "relative_path"  # what has it is taken for a place, whatever its class


def _require(*conditions: Any) -> None:
    if not all(conditions):
        raise ValueError


def _are_counts(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _check_tensor(args: tuple, budget: Budget) -> None:
    """A tensor must lie within its storage: torch would enlarge that, or read beyond it."""
    storage, offset, size, stride = args[:4]
    dtype = args[6] if len(args) > 6 and type(args[6]) is Global else None
    _require(
        type(storage) is Storage, 4 <= len(args) <= 8, _are_counts((offset,)), _are_counts(size), _are_counts(stride)
    )
    _require(len(size) == len(stride) <= MOST_DIMENSIONS, dtype is None or DTYPE.fullmatch(dtype.name))
    item_bytes = max(storage.item_bytes, WIDE.get(dtype.name, 1) if dtype is not None else 1)
    numbers = prod(size)
    end = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1 if numbers else 0
    if max(numbers, end) * item_bytes > storage.count * storage.item_bytes:
        raise PickleError("a tensor that is larger than its data")
    budget.spend(tensor_bytes=numbers * item_bytes)


def _check_of_tensor(args: tuple, budget: Budget) -> None:
    """A parameter around a tensor, or a tensor of another device: (tensor, …)."""
    _require(type(args[0]) is Instance, args[0].name in TENSORS or args[0].name in WRAPPERS, len(args) <= 4)
    if len(args) == 4 and isinstance(args[3], (list, tuple)):
        _check_all_attributes(args[3])


def _check_quantized(args: tuple, budget: Budget) -> None:
    """torchao's optimizer states: (class, dtype, size, stride, …); their numbers are attributes."""
    kind, dtype, size, stride = args[:4]
    _require(type(kind) is Global, QUANTIZED_STATE.fullmatch(kind.name), type(dtype) is Global, len(args) == 8)
    _require(_are_counts(size), _are_counts(stride), len(size) == len(stride) <= MOST_DIMENSIONS)
    budget.spend(tensor_bytes=prod(size) // 2)


def _check_with_attributes(args: tuple, budget: Budget) -> None:
    """A tensor of a class of its own, or with attributes: (function, class, its arguments, attributes)."""
    make, kind, its_args, state = args
    _require(type(make) is Global, type(kind) is Global, type(its_args) is tuple)
    _require(kind.name in TENSOR_CLASSES or QUANTIZED_STATE.fullmatch(kind.name))
    check = TENSORS.get(make.name) or WRAPPERS[make.name]
    _require(check is not _check_with_attributes)
    check(its_args, budget)
    _check_all_attributes(state)


def _check_all_attributes(state: Any) -> None:
    """A tensor's attributes, by themselves or with those that have slots; None for none."""
    for attributes in state if isinstance(state, tuple) else (state,):
        if attributes is not None:
            _check_attributes(attributes)


def _check_attributes(state: Any) -> None:
    """Attributes by name, none of which is one of Python's own, nor makes a place in a file of what is none."""
    _require(type(state) is Pairs)
    for name in state[::2]:
        _require(type(name) is str, not name.startswith("__"), name != PLACE_ATTRIBUTE)


def _check_scalars(args: tuple, budget: Budget) -> None:
    """What enums, paths and named tuples are made of."""
    _require(all(value is None or type(value) in (str, int, float, bool) for value in args))


def _check_types(*kinds: type) -> Callable[[tuple, Budget], None]:
    """A check of the arguments' types, each exactly one of `kinds`, in their order."""
    return lambda args, budget: _require(tuple(map(type, args)) == kinds)


def _check_device(args: tuple, budget: Budget) -> None:
    _require(tuple(map(type, args)) in ((str,), (str, int)))


def _check_size(args: tuple, budget: Budget) -> None:
    _require(len(args) == 1, _are_counts(args[0]))


def _check_bytes(args: tuple, budget: Budget) -> None:
    """Bytes as protocol 2 has them; another encoding might make more of them each time."""
    text, encoding = args
    _require(type(text) is str, encoding in ("latin1", "latin-1"))
    text.encode("latin1")


def _check_changeable_bytes(args: tuple, budget: Budget) -> None:
    """A bytearray of bytes, or of none; a number would be its length."""
    _require(len(args) <= 1, all(map(_is_bytes, args)))


def _check_array(args: tuple, budget: Budget) -> None:
    """An array of NumPy's as it is before its state."""
    kind, shape, code = args
    _require(type(kind) is Global, kind.name == "numpy.ndarray", shape == (0,), _is_bytes(code))


def _check_array_state(state: Any) -> None:
    version, shape, dtype, by_columns, content = state
    _require(version == 1, _are_counts(shape), type(dtype) is Instance, dtype.name == "numpy.dtype", _is_bytes(content))
    _require(type(by_columns) is bool, prod(shape) * int(dtype.args[0][1:]) == len(content.args[0]))


def _check_dtype(args: tuple, budget: Budget) -> None:
    _require(len(args) == 3, re.fullmatch(r"[biufc]\d{1,2}", args[0]), type(args[1]) is bool, type(args[2]) is bool)


def _check_dtype_state(state: Any) -> None:
    """Of a number: the order of its bytes, and no fields, no alignment, no flags."""
    _require(state[0] == 3, state[1] in "<>|=", tuple(state[2:]) == (None, None, None, -1, -1, 0))


def _is_bytes(value: Any) -> bool:
    return type(value) is Instance and value.name == "_codecs.encode"


TENSORS = {
    "torch._utils._rebuild_tensor": _check_tensor,
    "torch._utils._rebuild_tensor_v2": _check_tensor,
    "torch._utils._rebuild_tensor_v3": _check_tensor,
}
WRAPPERS = {
    "torch._utils._rebuild_parameter": _check_of_tensor,
    "torch._utils._rebuild_parameter_with_state": _check_of_tensor,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _check_of_tensor,
    "torch._utils._rebuild_wrapper_subclass": _check_quantized,
    "torch._tensor._rebuild_from_type_v2": _check_with_attributes,
}
PLAIN = Rule(_check_scalars, _check_attributes)
NAMED = Rule()  # as a value, never called
STATES: dict[str, Rule] = {
    **{name: Rule(check) for name, check in (TENSORS | WRAPPERS).items()},
    **dict.fromkeys((*STORAGE_BYTES, *TENSOR_CLASSES), NAMED),
    "torch.Size": Rule(_check_size),
    "torch.device": Rule(_check_device),
    "torch.serialization._get_layout": Rule(_check_types(str)),
    "collections.OrderedDict": Rule(_check_types(), _check_attributes, items=True),
    "collections.Counter": Rule(_check_types(Pairs)),
    "builtins.set": Rule(_check_types(list)),
    "builtins.complex": Rule(_check_types(float, float)),
    "builtins.bytearray": Rule(_check_changeable_bytes),
    "_codecs.encode": Rule(_check_bytes),
}
ARRAYS = {
    **dict.fromkeys(
        ("numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct"),
        Rule(_check_array, _check_array_state),
    ),
    "numpy.ndarray": NAMED,
    "numpy.dtype": Rule(_check_dtype, _check_dtype_state),
}


def find_state_rule(name: str) -> Rule | None:
    """For what Trainer loads of a checkpoint: tensors and plain values."""
    return STATES.get(name) or (NAMED if DTYPE.fullmatch(name) or QUANTIZED_STATE.fullmatch(name) else None)


def find_random_rule(name: str) -> Rule | None:
    """For states of random generators, among them NumPy's."""
    return ARRAYS.get(name) or find_state_rule(name)


def find_arguments_rule(name: str) -> Rule | None:
    """For training_args.bin, which lies there and is never loaded."""
    return PLAIN if ARGUMENT_CLASS.fullmatch(name) else find_state_rule(name)


def find_deepspeed_rule(name: str) -> Rule | None:
    """For DeepSpeed's own files."""
    return PLAIN if DEEPSPEED_CLASS.fullmatch(name) else find_state_rule(name)


def make_shards_rules(places: list[dict[str, Any]]) -> FindRule:
    """For the metadata of a checkpoint in shards (FSDP); `places` gets where each tensor and value lies."""

    def note_place(state: Any) -> None:
        _require(type(state) is Pairs, len(set(state[::2])) * 2 == len(state))
        places.append(dict(zip(state[::2], state[1::2], strict=True)))

    rules = {
        SHARD_PLACE: Rule(_check_types(), note_place),
        "torch.distributed.checkpoint.metadata.TensorProperties": Rule(_check_types(), _check_properties),
    }

    def find_rule(name: str) -> Rule | None:
        return rules.get(name) or (PLAIN if SHARDS_CLASS.fullmatch(name) else find_state_rule(name))

    return find_rule


def _check_properties(state: Any) -> None:
    """A tensor's dtype, layout and so on, in their order."""
    _require(type(state) is tuple, len(state) in (5, 6))
