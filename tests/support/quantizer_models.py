"""GGUF files for quantizers, which need tensors and sizes but no vocabulary; llama.cpp's quantizer with a matrix."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from impruver_gguf.quantization.imatrix_file import Imatrix, ImatrixEntry


def write_decoder(
    path: Path,
    architecture: str = "llama",
    *,
    width: int = 256,
    inner: int = 512,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 4,
    experts: int = 0,
    tied: bool = False,
    dtype: str = "float16",
    fused: bool = False,
    head_width: int = 32,
) -> Path:
    """Writes a decoder of random weights with its sizes; `fused`: queries, keys and values are one tensor."""
    random, writer = np.random.default_rng(7), gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    writer.add_rope_dimension_count(head_width)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(40)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(inner)
    writer.add_quantization_version(2)
    writer.add_file_type(1)
    writer.add_string("general.name", "after the file type")

    def add(name: str, *shape: int) -> None:
        values = random.normal(0, 0.05, shape) * np.logspace(-1, 1, shape[-1])
        if len(shape) == 1 or "_norm" in name or "gate_inp" in name:
            writer.add_tensor(name, values.astype(np.float32))
        elif dtype == "bfloat16":
            halves = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
            writer.add_tensor(name, halves, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, values.astype(dtype))

    queries, keys, across = heads * head_width, kv_heads * head_width, (experts,) if experts else ()
    suffix = "_exps" if experts else ""
    add("token_embd.weight", 40, width)
    for layer in range(layers):
        block = f"blk.{layer}."
        add(f"{block}attn_norm.weight", width)
        if fused:
            add(f"{block}attn_qkv.weight", queries + 2 * keys, width)
        else:
            add(f"{block}attn_q.weight", queries, width)
            add(f"{block}attn_k.weight", keys, width)
            add(f"{block}attn_v.weight", keys, width)
        add(f"{block}attn_output.weight", width, queries)
        add(f"{block}ffn_norm.weight", width)
        if experts:
            add(f"{block}ffn_gate_inp.weight", experts, width)
        add(f"{block}ffn_gate{suffix}.weight", *across, inner, width)
        add(f"{block}ffn_up{suffix}.weight", *across, inner, width)
        add(f"{block}ffn_down{suffix}.weight", *across, width, inner)
    add("output_norm.weight", width)
    if not tied:
        add("output.weight", 40, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_matrix(path: Path, *, unseen: int = 0) -> Imatrix:
    """A matrix for all matrices of a GGUF in layers; the first `unseen` of each tensor's experts had no input."""
    random, entries = np.random.default_rng(3), {}
    for tensor in gguf.GGUFReader(path).tensors:
        name, shape = tensor.name, [int(size) for size in tensor.shape]
        if not name.startswith("blk.") or len(shape) < 2:
            continue
        matrices = shape[2] if len(shape) > 2 else 1
        counts = np.full(matrices, 640.0, np.float32)
        if matrices > 1:
            counts[:unseen] = 0
        sums = random.exponential(1.0, (matrices, shape[0])).astype(np.float32) * counts[:, None]
        entries[name] = ImatrixEntry(sums, counts)
    return Imatrix(entries, ["train.jsonl"], 5, 128)


class MatrixData(ctypes.Structure):
    """llama.cpp's `llama_model_imatrix_data`."""

    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]


def quantize_with_llama_cpp(source: Path, target: Path, ftype: int, matrix: Imatrix | None) -> None:
    """Has llama.cpp's own quantizer, in cyllama, write `target`; RuntimeError where it refuses.

    cyllama's parameters hide their pointer to a matrix. They are a C structure in the Python object: the pointer
    follows the numbers and flags, which are sought there.
    """
    from cyllama.llama import llama_cpp

    llama_cpp.disable_logging()
    parameters = llama_cpp.LlamaModelQuantizeParams()
    parameters.nthread, parameters.ftype = 2, ftype
    pointers = list(_build_pointers(matrix)) if matrix else []
    if pointers:
        numbers = np.array([2, ftype, parameters.output_tensor_type, parameters.token_embedding_type], np.int32)
        content = ctypes.string_at(id(parameters), llama_cpp.LlamaModelQuantizeParams.__basicsize__)
        place = content.index(numbers.tobytes()) + numbers.nbytes + 8  # six flags, padded
        table = (MatrixData * (len(pointers) + 1))(*pointers)
        ctypes.c_void_p.from_address(id(parameters) + place).value = ctypes.addressof(table)
    llama_cpp.model_quantize(str(source), str(target), parameters)


def _build_pointers(matrix: Imatrix) -> Iterator[MatrixData]:
    for name, entry in matrix.entries.items():
        means = np.ascontiguousarray(entry.compute_means())
        data = MatrixData(name.encode(), means.ctypes.data, means.size)
        data.means = means  # as long as the pointer
        yield data
