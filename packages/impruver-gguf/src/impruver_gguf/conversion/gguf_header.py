"""Build a GGUF's header: names, hyperparameters and vocabulary in llama.cpp's order, and what tensors follow."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import INDEX, NUMBER, TEXT, WHOLE, check_keys, list_of, read_json

from impruver_gguf.architectures.registry import Architecture
from impruver_gguf.conversion.gguf_writer import TensorType
from impruver_gguf.vocab.token_types import Vocabulary
from impruver_gguf.weights.lazy_tensor import Tensors

SAMPLING_KEYS = {  # those of generation_config.json that GGUF has a place for
    "sequence": TEXT,
    **dict.fromkeys(("top_k", "mirostat", "penalty_last_n"), WHOLE),
    **dict.fromkeys(("temperature", "top_p", "min_p", "xtc_probability", "xtc_threshold"), NUMBER),
    **dict.fromkeys(("penalty_repeat", "mirostat_tau", "mirostat_eta"), NUMBER),
}
CARD_KEYS = {"STRING": TEXT, "ARRAY": list_of(TEXT), "UINT32": INDEX}  # by GGUF's type


def build_header(
    architecture: Architecture,
    config: dict[str, Any],
    vocab: Vocabulary,
    folder: Path,
    tensors: Tensors,
    types: Mapping[str, TensorType],
    file_type: int,
) -> bytes:
    """Build all that stands before the tensors' data; `folder` has the model card, its name is the last resort."""
    writer = gguf.GGUFWriter(None, architecture.name)
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType(types[name].ggml)
        writer.add_tensor_info(name, tensor.shape, np.dtype("f4"), types[name].compute_bytes(tensor.shape), kind)
    read_json(folder / "generation_config.json", SAMPLING_KEYS, missing_ok=True)  # gguf-py takes it as it comes
    architecture.set_leading_parameters(writer, config)
    _write_general(writer, folder)
    architecture.set_gguf_parameters(writer, config, file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    architecture.set_vocab(writer, config, vocab)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "header.gguf"
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        return path.read_bytes()


def _write_general(writer: gguf.GGUFWriter, folder: Path) -> None:
    """Write `general.*`: what README.md's front matter, config.json and the folder's name say of the model."""
    total, shared, expert, experts = writer.get_total_parameter_count()
    card = folder / "README.md"
    try:
        general = gguf.Metadata.load(None, folder, None, total)
        general.name = general.name or folder.name
        general.size_label = general.size_label or gguf.size_label(total, shared, expert, experts)
        writer.add_type(gguf.GGUFType.MODEL)
        general.set_gguf_meta_model(writer)
    except Exception as error:  # gguf takes the front matter as it comes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImpruverError(f"{card}: its front matter can't be read ({reason}); mend it, or move it away") from None
    entries = {key: entry for key, entry in writer.kv_data[0].items() if entry.type.name in CARD_KEYS}
    values = {key: entry.value for key, entry in entries.items()}
    check_keys(values, {key: CARD_KEYS[entry.type.name] for key, entry in entries.items()}, card)
