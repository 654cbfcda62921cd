"""Generation defaults saved with the model."""

from typing import Any

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff")


def set_generation(model: Any, tokenizer: Any, ends: list[str]) -> None:
    """Gives `model` the tokenizer's special ids and the generation configuration of what is trained.

    It stops at the ends of turn and at EOS. The base's sampling values go where it does not sample: transformers would
    refuse to save them.
    """
    from transformers import GenerationConfig

    model = model.get_base_model() if hasattr(model, "peft_config") else model
    generation = getattr(model, "generation_config", None) or GenerationConfig()
    unknown = tokenizer.unk_token_id
    stops = [tokenizer.convert_tokens_to_ids(text) for text in ends] + [tokenizer.eos_token_id]
    stops = list(dict.fromkeys(number for number in stops if number is not None and number != unknown))
    generation._from_model_config = False  # else transformers may rebuild it from config.json
    generation.eos_token_id = stops or None
    config = model.config.get_text_config()
    for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
        number, known = getattr(tokenizer, name), getattr(config, name, None)
        if number is not None and number != known and not (isinstance(known, list) and number in known):
            setattr(config, name, number)
        if number is not None and name != "eos_token_id":
            setattr(generation, name, number)
    if not generation.do_sample:
        for name in SAMPLING:
            setattr(generation, name, None)
    model.generation_config = generation
