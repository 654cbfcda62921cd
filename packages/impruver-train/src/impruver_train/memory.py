"""What a run will hold in memory, by the formula that the README gives; bytes, of the longest batch."""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, NamedTuple

from impruver_core.io.disk_space import format_size

from impruver_train import distributed as sharding
from impruver_train.modeling.chunked_loss import CHUNK, LogitsPath
from impruver_train.modeling.model_size import Size

# Bytes of an optimizer's state for each trained weight; AdamW's 8 where a name is not here.
STATE = {
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


class Places(NamedTuple):
    """Of a busiest batch: places of a row of it, the longest, and the share of them that logits are computed for."""

    longest: int
    logits: float = 1.0


@dataclass(frozen=True)
class Memory:
    """Bytes; `peak` is less than the sum where gradients come as activations go."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


def estimate(
    size: Size, config: Any, arguments: Any, precision: Any, bits: int | None, places: Places
) -> Memory | None:
    """A process's memory with batches that are `places` a row; None where the formula does not fit."""
    if not knows(config):
        return None
    trained = precision.trained.itemsize
    frozen = size.total - size.trainable
    held = 4 if bits else precision.frozen.itemsize  # beside a quantized base the rest is fp32
    quantized = size.quantizable if bits else 0
    weights = size.trainable * trained + (frozen - quantized) * held + int(quantized * QUANTIZED.get(bits or 0, 0))
    gradients = size.trainable * trained
    name = str(getattr(arguments.optim, "value", arguments.optim))
    spread = sharding.parts(arguments)
    optimizer = size.trainable * (STATE.get(name, 8) if trained == 4 else STATE.get(name, 8) // 2)
    weights, gradients, optimizer = (part // n for part, n in zip((weights, gradients, optimizer), spread, strict=True))
    kept = activations(size, config, arguments, precision, bits, places)
    # Gradients of several batches stay while the next is computed; those of one come as its activations go.
    busiest = kept + gradients if arguments.gradient_accumulation_steps > 1 else max(kept, gradients)
    if str(getattr(arguments.eval_strategy, "value", arguments.eval_strategy)) != "no":
        evaluated = arguments.eval_batch_size * places.longest * places.logits
        busiest = max(busiest, of_logits(evaluated, size, config, precision, learns=False))
    return Memory(weights, gradients, optimizer, kept, weights + optimizer + busiest)


def activations(size: Size, config: Any, arguments: Any, precision: Any, bits: int | None, places: Places) -> int:
    """What backward needs of one batch: layers, then logits."""
    tokens = arguments.train_batch_size * places.longest
    layers, hidden = config.num_hidden_layers, config.hidden_size
    value, full = precision.compute.itemsize, size.trainable == size.total
    layer = per_layer(config, value, places.longest, size.attention)
    layer += 8 * hidden if full else 0  # trained norms keep their output too
    mask = 4 if arguments.device.type == "cpu" else 1
    inputs = max(size.inputs, size.every if bits == 8 else 0)
    whole = layers * layer + inputs * value + size.dropped * mask
    if checkpointed(arguments):  # the layers' inputs, and one layer as a whole
        stream = 4 if full or bits else value
        whole = layers * hidden * stream + whole / layers
    cast = 2 * size.trainable if full and precision.autocast else 0  # 16-bit copies of trained weights
    # Gradients of a matrix that is applied piece by piece: their sum in fp32, and one's.
    head = (4 + value) * hidden * config.vocab_size if full and size.logits is LogitsPath.CHUNKED else 0
    return int(tokens * whole) + of_logits(tokens * places.logits, size, config, precision, learns=True) + cast + head


def of_logits(places: float, size: Size, config: Any, precision: Any, learns: bool) -> int:
    """Bytes of logits at so many places and of what their loss needs, with or without their gradient."""
    if size.logits is LogitsPath.ALL:
        return int(places * LOGITS * config.vocab_size)
    value = precision.compute.itemsize
    chunked = size.logits is LogitsPath.CHUNKED
    kept = 0 if chunked else (1 + learns) * value
    piece = (4 if value == 4 else 8) + chunked * value  # logarithms, of 16 bits the logits in 32; else not kept
    return int((places * kept + min(places, CHUNK) * piece) * config.vocab_size)


def per_layer(config: Any, value: int, longest: int, attention: str) -> int:
    """Bytes a token that a layer keeps whatever is trained: norms in fp32, attention, gated MLP in `value` bytes.

    Eager attention keeps scores of each head in fp32 and, in 16 bits, a copy; SDPA its mask in `value` bytes; both
    repeat key and value heads that several queries share.
    """
    heads = getattr(config, "num_attention_heads", None) or 1  # a model without attention: as if it had one head
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    queries, keys = heads * head, (getattr(config, "num_key_value_heads", None) or heads) * head
    experts = getattr(config, "num_experts_per_tok", None) or 1
    inner = getattr(config, "moe_intermediate_size", None) if experts > 1 else None
    inner = inner or getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    inner = inner or 4 * config.hidden_size
    kept = 2 * queries + 2 * (keys if "flash" in attention else queries) + 3 * experts * inner
    kept += 3 * experts * config.hidden_size if experts > 1 else 0  # each expert's input, its output, and that weighed
    scores = {"eager": (4 + value % 4) * heads, "sdpa": value}.get(attention, 0)  # of 32 bits there is no copy
    return 8 * config.hidden_size + value * kept + scores * longest


def checkpointed(arguments: Any) -> bool:
    """Whether activations are computed again in backward."""
    return bool(getattr(arguments, "activation_checkpointing", None) or arguments.gradient_checkpointing)


def knows(config: Any) -> bool:
    """Whether the formula fits a configuration: its sizes have the usual names and are the same in every layer."""
    needed = ("num_hidden_layers", "hidden_size", "vocab_size")
    others = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "num_experts_per_tok")
    try:
        sizes = [getattr(config, name, None) for name in (*needed, *others)]
    except RuntimeError:  # transformers' own, for a size that differs by layer, as in Gemma 4
        return False
    return None not in sizes[: len(needed)] and all(size is None or isinstance(size, int) for size in sizes)


def told(memory: Memory | None, processes: int = 1) -> str:
    """The estimate as a line."""
    if memory is None:
        return "memory: no estimate for a configuration of this kind; --trial_steps measures it"
    parts = ("weights", "gradients", "optimizer", "activations")
    each = ", ".join(f"{name} {getattr(memory, name) / MIB:,.0f}" for name in parts)
    each_of = f" in each of {processes} processes" if processes > 1 else ""
    return f"memory: about {memory.peak / MIB:,.0f} MiB at its peak{each_of} ({each} MiB)"


WORTH = 0.01  # of the greatest effect


LORA_SHARE = 0.02  # of the weights that an adapter trains, more or less


def memory_advice(plan: Any, places: Places, bits: int | None) -> list[str]:
    """What to set where memory was not enough, with what each saves of this run, the greatest effect first."""
    now = peak(plan, places, bits)
    options = [(now - left, text) for left, text in ways_out(plan, places, bits)] if now is not None else []
    options.sort(reverse=True)
    worth = [(saved, text) for saved, text in options if saved > WORTH * options[0][0]]
    told = [f"{text} (about {format_size(saved)} less)" for saved, text in worth]
    return told or ["smaller batches, trainer.gradient_checkpointing: true, shorter rows"]


def peak(plan: Any, places: Places, bits: int | None, size: Any = None, **arguments: Any) -> int | None:
    """The estimate's peak in bytes with other training `arguments`, or another `size`; None where it knows none."""
    changed = copy(plan.arguments)
    for name, value in arguments.items():
        setattr(changed, name, value)
    found = estimate(size or plan.size, plan.config.get_text_config(), changed, plan.precision, bits, places)
    return None if found is None else found.peak


def ways_out(plan: Any, places: Places, bits: int | None) -> Iterator[tuple[int, str]]:
    """(peak in bytes, what to set) for all that would take less."""
    arguments, size = plan.arguments, plan.size
    batch = arguments.per_device_train_batch_size
    if batch > 1:
        steps = batch * arguments.gradient_accumulation_steps
        text = f"trainer.per_device_train_batch_size: 1 with trainer.gradient_accumulation_steps: {steps}"
        smaller = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": steps}
        yield peak(plan, places, bits, **smaller), f"{text}, the same batch in smaller parts"
    if not checkpointed(arguments):
        text = "trainer.gradient_checkpointing: true, about a third slower"
        yield peak(plan, places, bits, gradient_checkpointing=True), text
    half = places._replace(longest=places.longest // 2)
    shorter = f"tokenizer.max_tokens_count: {half.longest} for rows of at most half the length (compose)"
    yield peak(plan, half, bits), shorter
    if size.trainable == size.total:
        small = replace(size, trainable=int(LORA_SHARE * size.total))
        yield peak(plan, places, bits, small), "a `lora` section: a small part of the weights is trained"
    elif not bits:
        yield peak(plan, places, 4), "model.load_in_4bit: true"
    if STATE.get(arguments.optim.value, 8) == 8 and find_spec("bitsandbytes"):
        yield peak(plan, places, bits, optim="adamw_bnb_8bit"), "trainer.optim: adamw_bnb_8bit"
