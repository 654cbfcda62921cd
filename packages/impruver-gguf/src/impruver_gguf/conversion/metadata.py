"""What stands in a GGUF before its tensors: names, hyperparameters, vocabulary; in llama.cpp's order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import INDEX, NUMBER, TEXT, WHOLE, check_keys, list_of, read_json

from impruver_gguf.architectures.registry import Architecture
from impruver_gguf.vocab.token_types import Vocabulary
from impruver_gguf.vocab.vocabulary import write_vocabulary

SAMPLING_KEYS = {  # those of generation_config.json that GGUF has a place for
    "sequence": TEXT,
    **dict.fromkeys(("top_k", "mirostat", "penalty_last_n"), WHOLE),
    **dict.fromkeys(("temperature", "top_p", "min_p", "xtc_probability", "xtc_threshold"), NUMBER),
    **dict.fromkeys(("penalty_repeat", "mirostat_tau", "mirostat_eta"), NUMBER),
}


CARD_KINDS = {"STRING": TEXT, "ARRAY": list_of(TEXT), "UINT32": INDEX}  # by GGUF's type


def write_metadata(
    writer: Any,
    architecture: Architecture,
    config: dict[str, Any],
    vocabulary: Vocabulary,
    folder: Path,
    file_type: int,
) -> None:
    """Fills `writer`, which knows its tensors already; names come from README.md, config.json and the folder's name."""
    import gguf

    sampling = folder / "generation_config.json"
    if sampling.is_file():
        read_json(sampling, SAMPLING_KEYS)
    architecture.first(writer, config)
    _write_names(writer, folder)
    architecture.parameters(writer, config, file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    architecture.vocabulary_before(writer, config, vocabulary)
    write_vocabulary(writer, vocabulary)
    architecture.vocabulary_after(writer, config, vocabulary)


def _write_names(writer: Any, folder: Path) -> None:
    import gguf

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
    entries = {key: entry for key, entry in writer.kv_data[0].items() if entry.type.name in CARD_KINDS}
    values = {key: entry.value for key, entry in entries.items()}
    check_keys(values, {key: CARD_KINDS[entry.type.name] for key, entry in entries.items()}, card)
