"""What a run will hold in memory, and what would take less: bytes of one process, for the largest batch.

    weights      trained x 4 (2 in pure bf16) + frozen x 4 or 2; quantized matrices x 1 (8 bit) or 0.516 (4 bit)
    gradients    trained x 4 (2)
    optimizer    trained x OPTIMIZER_BYTES
    activations  tokens x (layers x (8 h + c (4 q + 3 f)) + c inputs) + logits
    logits       the smaller of targets and 256 x (8 + c) V; held as a whole targets x 2 c V besides; of all positions
                 x 16 V
    peak         weights + optimizer + the largest of activations, gradients (their sum with gradient accumulation) and
                 the logits of an evaluation

tokens: batch x longest row or pack; h, f, V: hidden, MLP and vocabulary size; q: heads x head size; c: bytes of the
compute dtype; inputs: widths of what trained matrices read. The package's README says the rest and how it was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from impruver_core.io.atomic import format_size

from impruver_train.distributed import get_sharding_degrees
from impruver_train.modeling.chunked_loss import CHUNK, LogitsPath
from impruver_train.planning.plan import TrainingPlan

if TYPE_CHECKING:
    from transformers import PretrainedConfig, TrainingArguments

# Bytes of an optimizer's state for each trained weight; AdamW's 8 where a name is not here.
OPTIMIZER_BYTES = {
    **dict.fromkeys(("sgd", "adafactor", "lomo", "adalomo"), 0),  # adafactor keeps a row and a column of each matrix
    **dict.fromkeys(("rmsprop", "adagrad", "lion_32bit", "paged_lion_32bit", "schedule_free_sgd"), 4),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "adamw_torch_8bit"), 2),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit", "rmsprop_bnb_8bit", "adamw_torch_4bit"), 1),
    **dict.fromkeys(("ademamix", "paged_ademamix_32bit"), 12),
    **dict.fromkeys(("ademamix_8bit", "paged_ademamix_8bit"), 3),
}
QUANTIZED = {4: 0.5 + 1 / 64, 8: 1.0}  # bytes a weight, with the scales
LOGITS = 16  # bytes of each: the logits in fp32, their logarithms, and the gradients of both
MIB = 1 << 20
WORTH = 0.01  # of the greatest effect
LORA_SHARE = 0.02  # of the weights that an adapter trains, more or less


class BatchShape(NamedTuple):
    """Of the largest batch: positions of its longest row or pack, and the share that logits are computed for."""

    longest: int
    logits: float = 1.0


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes; `peak` is less than the sum where gradients come as activations go."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


def estimate_memory(plan: TrainingPlan, shape: BatchShape, bits: int | None) -> MemoryEstimate | None:
    """A process's memory with batches of that shape and a base in `bits`; None where the formula does not fit."""
    if not supports_config(plan.config.get_text_config()):
        return None
    size, precision, arguments = plan.size, plan.precision, plan.arguments
    trained = precision.trained.itemsize
    frozen = 4 if bits else precision.frozen.itemsize  # beside a quantized base the rest is fp32
    quantized = size.quantizable if bits else 0
    weights = size.trainable * trained + (size.total - size.trainable - quantized) * frozen
    weights += int(quantized * QUANTIZED.get(bits or 0, 0))
    gradients = size.trainable * trained
    each = OPTIMIZER_BYTES.get(str(getattr(arguments.optim, "value", arguments.optim)), 8)
    optimizer = size.trainable * (each if trained == 4 else each // 2)
    spread = get_sharding_degrees(arguments)
    weights, gradients, optimizer = (
        weights // spread.weights,
        gradients // spread.gradients,
        optimizer // spread.optimizer,
    )
    activations = _estimate_activations(plan, shape, bits)
    # Gradients of several batches stay while the next is computed; those of one come as its activations go.
    accumulates = arguments.gradient_accumulation_steps > 1
    largest = activations + gradients if accumulates else max(activations, gradients)
    if str(getattr(arguments.eval_strategy, "value", arguments.eval_strategy)) != "no":
        evaluated = arguments.eval_batch_size * shape.longest * shape.logits
        largest = max(largest, _estimate_logits(plan, evaluated, training=False))
    return MemoryEstimate(weights, gradients, optimizer, activations, weights + optimizer + largest)


def _estimate_activations(plan: TrainingPlan, shape: BatchShape, bits: int | None) -> int:
    """What backward needs of one batch: layers, then logits."""
    size, arguments, config = plan.size, plan.arguments, plan.config.get_text_config()
    tokens = arguments.train_batch_size * shape.longest
    layers, hidden = config.num_hidden_layers, config.hidden_size
    value, full = plan.precision.compute.itemsize, size.trainable == size.total
    layer = _estimate_layer(config, value, shape.longest, size.attention)
    layer += 8 * hidden if full else 0  # trained norms keep their output too
    mask = 4 if arguments.device.type == "cpu" else 1
    inputs = max(size.inputs, size.every if bits == 8 else 0)
    each = layers * layer + inputs * value + size.dropped * mask
    if uses_checkpointing(arguments):  # the layers' inputs, and one layer as a whole
        stream = 4 if full or bits else value
        each = layers * hidden * stream + each / layers
    cast = 2 * size.trainable if full and plan.precision.autocast else 0  # 16-bit copies of trained weights
    # Gradients of a matrix that is applied chunk by chunk: their sum in fp32, and one's.
    head = (4 + value) * hidden * config.vocab_size if full and size.logits is LogitsPath.CHUNKED else 0
    return int(tokens * each) + _estimate_logits(plan, tokens * shape.logits, training=True) + cast + head


def _estimate_logits(plan: TrainingPlan, positions: float, training: bool) -> int:
    """Bytes of logits at so many positions and of what their loss needs, with or without their gradient."""
    vocabulary = plan.config.get_text_config().vocab_size
    if plan.size.logits is LogitsPath.ALL:
        return int(positions * LOGITS * vocabulary)
    value, chunked = plan.precision.compute.itemsize, plan.size.logits is LogitsPath.CHUNKED
    held = 0 if chunked else (1 + training) * value
    chunk = (4 if value == 4 else 8) + chunked * value  # logarithms, of 16 bits the logits in 32; else not held
    return int((positions * held + min(positions, CHUNK) * chunk) * vocabulary)


def _estimate_layer(config: PretrainedConfig, value: int, longest: int, attention: str) -> int:
    """Bytes a token that a layer keeps whatever is trained: norms in fp32, attention, gated MLP in `value` bytes.

    Eager attention keeps scores in fp32 and, in 16 bits, a copy, SDPA its mask; both repeat shared key and value heads.
    """
    heads = getattr(config, "num_attention_heads", None) or 1  # a model without attention: as if it had one head
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    queries, keys = heads * head, (getattr(config, "num_key_value_heads", None) or heads) * head
    experts = getattr(config, "num_experts_per_tok", None) or 1
    inner = getattr(config, "moe_intermediate_size", None) if experts > 1 else None
    inner = inner or getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    inner = inner or 4 * config.hidden_size
    values = 2 * queries + 2 * (keys if "flash" in attention else queries) + 3 * experts * inner
    values += 3 * experts * config.hidden_size if experts > 1 else 0  # each expert's input, output, and that weighed
    scores = {"eager": (4 + value % 4) * heads, "sdpa": value}.get(attention, 0)  # of 32 bits there is no copy
    return 8 * config.hidden_size + value * values + scores * longest


def uses_checkpointing(arguments: TrainingArguments) -> bool:
    """Whether activations are computed again in backward."""
    return bool(getattr(arguments, "activation_checkpointing", None) or arguments.gradient_checkpointing)


def supports_config(config: PretrainedConfig) -> bool:
    """Whether the formula fits a configuration: its sizes have the usual names and are the same in every layer."""
    needed = ("num_hidden_layers", "hidden_size", "vocab_size")
    others = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "num_experts_per_tok")
    try:
        sizes = [getattr(config, name, None) for name in (*needed, *others)]
    except RuntimeError:  # transformers' own, for a size that differs by layer, as in Gemma 4
        return False
    return None not in sizes[: len(needed)] and all(size is None or isinstance(size, int) for size in sizes)


def format_estimate(memory: MemoryEstimate | None, processes: int = 1) -> str:
    """The estimate as a line."""
    if memory is None:
        return "memory: no estimate for a configuration of this kind; --trial_steps measures it"
    names = ("weights", "gradients", "optimizer", "activations")
    each = ", ".join(f"{name} {getattr(memory, name) / MIB:,.0f}" for name in names)
    each_of = f" in each of {processes} processes" if processes > 1 else ""
    return f"memory: about {memory.peak / MIB:,.0f} MiB at its peak{each_of} ({each} MiB)"


def list_memory_advice(plan: TrainingPlan, shape: BatchShape) -> list[str]:
    """What to set where memory was not enough, with what each saves of this run, the greatest effect first."""
    now = _estimate_peak(plan, shape, plan.bits)
    savings = [(now - peak, text) for peak, text in _list_alternatives(plan, shape)] if now is not None else []
    savings.sort(reverse=True)
    worth = [(saved, text) for saved, text in savings if saved > WORTH * savings[0][0]]
    lines = [f"{text} (about {format_size(saved)} less)" for saved, text in worth]
    return lines or ["smaller batches, trainer.gradient_checkpointing: true, shorter rows"]


def _estimate_peak(plan: TrainingPlan, shape: BatchShape, bits: int | None, **arguments: Any) -> int | None:
    """The estimate's peak in bytes with other training `arguments`; None where there is no estimate."""
    changed = copy(plan.arguments)
    for name, value in arguments.items():
        setattr(changed, name, value)
    memory = estimate_memory(replace(plan, arguments=changed), shape, bits)
    return None if memory is None else memory.peak


def _list_alternatives(plan: TrainingPlan, shape: BatchShape) -> Iterator[tuple[int, str]]:
    """(peak in bytes, what to set) for all that would take less."""
    arguments, size, bits = plan.arguments, plan.size, plan.bits
    batch = arguments.per_device_train_batch_size
    if batch > 1:
        steps = batch * arguments.gradient_accumulation_steps
        text = f"trainer.per_device_train_batch_size: 1 with trainer.gradient_accumulation_steps: {steps}"
        smaller = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": steps}
        yield _estimate_peak(plan, shape, bits, **smaller), f"{text}, the same batch in smaller parts"
    if not uses_checkpointing(arguments):
        text = "trainer.gradient_checkpointing: true, about a third slower"
        yield _estimate_peak(plan, shape, bits, gradient_checkpointing=True), text
    half = shape._replace(longest=shape.longest // 2)
    shorter = f"tokenizer.max_tokens_count: {half.longest} for rows of at most half the length (compose)"
    yield _estimate_peak(plan, half, bits), shorter
    if size.trainable == size.total:
        small = replace(plan, size=replace(size, trainable=int(LORA_SHARE * size.total)))
        yield _estimate_peak(small, shape, bits), "a `lora` section: a small part of the weights is trained"
    elif not bits:
        yield _estimate_peak(plan, shape, 4), "model.load_in_4bit: true"
    if OPTIMIZER_BYTES.get(arguments.optim.value, 8) == 8 and find_spec("bitsandbytes"):
        yield _estimate_peak(plan, shape, bits, optim="adamw_bnb_8bit"), "trainer.optim: adamw_bnb_8bit"
