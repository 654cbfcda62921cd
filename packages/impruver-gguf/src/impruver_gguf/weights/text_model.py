"""The text model within a multimodal one, which is all that a GGUF of a language model holds.

config.json of a multimodal class has its text model's keys in `text_config`; names of tensors have `language_model` in
them, in one of three places:

    model.language_model.layers.0.…     transformers 4.52 and later, and as adapters call modules
    language_model.model.layers.0.…     most files on the hub
    language_model.layers.0.…           files of a bare model

As llama.cpp's script does, `language_model.` is taken out of names, and tensors of other parts are left out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError

from impruver_gguf.weights.checkpoint import PEFT_PREFIX, SourceCheckpoint
from impruver_gguf.weights.lazy_tensor import LazyTensor, Tensors

LANGUAGE = "language_model."
OTHER_PARTS = {  # modules beside the language model, as the families call them
    *("vision_tower", "vision_model", "visual", "vision_embedder", "embed_vision", "multi_modal_projector"),
    *("audio_tower", "audio_model", "embed_audio", "mm_projector", "connector", "image_newline", "patch_merger"),
}


def get_text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the keys of its `text_config` among its own, where they win.

    Whether ends are tied is the whole model's to say, as for transformers 5.
    """
    nested = config.get("text_config") or {}
    nested = {name: value for name, value in nested.items() if name != "tie_word_embeddings"}
    return {name: value for name, value in config.items() if name != "text_config"} | nested


def get_text_name(name: str) -> str:
    """A tensor's or module's name as a model of text alone has it."""
    return name.replace(LANGUAGE, "", 1)


def extract_text_model(checkpoint: SourceCheckpoint) -> SourceCheckpoint:
    """Make the checkpoint of the text model within a multimodal one, with one warning of what is left out.

    An adapter's modules keep their names, to which its patterns refer. A model of text alone comes back as it is.
    """
    adapter, left_out = checkpoint.adapter, _find_other_parts(checkpoint.tensors)
    if adapter:
        trained = _find_other_parts(name.removeprefix(PEFT_PREFIX) for name in adapter.tensors)
        text = {n: tensor for n, tensor in adapter.tensors.items() if n.removeprefix(PEFT_PREFIX) not in trained}
        adapter, left_out = replace(adapter, tensors=text), left_out | trained
    if not checkpoint.tensors:
        left_out |= {key: key for key in ("vision_config", "audio_config") if checkpoint.config.get(key)}
    if left_out:
        warn(
            f"the GGUF is of the text model alone, without {', '.join(sorted({*left_out.values()}))}: it takes no "
            "images or sound (llama.cpp's script writes those parts into a second file with --mmproj)"
        )
    tensors = _rename_tensors(checkpoint, left_out)
    return replace(checkpoint, config=get_text_config(checkpoint.config), tensors=tensors, adapter=adapter)


def _find_other_parts(names: Iterable[str]) -> dict[str, str]:
    """Of these names those of other parts than the language model, each with its part's."""
    parts = {name: name.removeprefix("model.").partition(".")[0] for name in names}
    return {name: part for name, part in parts.items() if part in OTHER_PARTS}


def _rename_tensors(checkpoint: SourceCheckpoint, left_out: Mapping[str, str]) -> Tensors:
    """The tensors of the text model by its names, in their order; ImpruverError where two come to one name."""
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in checkpoint.tensors.items():
        if name in left_out:
            continue
        if get_text_name(name) in tensors:
            raise ImpruverError(
                f"{checkpoint.base}: {get_text_name(name)} is there twice, once as {name}: the files are of two models"
            )
        tensors[get_text_name(name)] = tensor
    return tensors
