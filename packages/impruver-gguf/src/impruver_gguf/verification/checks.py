"""Check what llama.cpp makes of a file against output_dir's tokenizer and the held-out rows."""

from collections.abc import Mapping

from impruver_core.cli.console import warn

from impruver_gguf.verification.heldout import HeldOutExample, HeldOutSet, VerificationInputs
from impruver_gguf.verification.measure import PLAIN_TEXT, TEMPLATE_KEY, FileMeasurement
from impruver_gguf.vocab.saved_tokenizer import SavedTokenizer
from impruver_gguf.vocab.token_types import WORD_BORDER
from impruver_gguf.vocab.vocabulary import strip_generation_tags

IDS_AROUND = 6  # shown on each side of a difference
MAX_TEXT = 300  # characters of a row that are shown


def check_measurement(measurement: FileMeasurement, inputs: VerificationInputs) -> tuple[str | None, bool | None]:
    """Say what is wrong with a file, and whether all its ids are the tokenizer's; None where that is not known."""
    if measurement.error:
        return measurement.error, None
    tokenizer, heldout, blanks = inputs.tokenizer, inputs.heldout, 0
    for example, ids in zip(heldout.examples, measurement.ids, strict=True):
        if ids == example.text_ids:
            continue
        if not _is_same_except_blanks(ids, example.text_ids, tokenizer):
            return _describe_other_ids(example, ids), False
        blanks += 1
    if blanks:
        rows = f"{blanks} of {len(heldout.examples)} rows"
        warn(f"{rows}: llama.cpp and the tokenizer differ on blanks at the start of a text")
    if measurement.vocab_size < tokenizer.size:
        return f"it has {measurement.vocab_size:,} tokens, the tokenizer {tokenizer.size:,}", False
    failure = _find_template_fault(measurement.templates, heldout, tokenizer) or _find_endless_answers(measurement)
    return failure, not blanks if heldout.examples else None


def _is_same_except_blanks(ours: list[int], theirs: list[int], tokenizer: SavedTokenizer) -> bool:
    """Whether ids say the same but for SentencePiece's blank at the start or after a special token."""
    segments = [_split_at_special_tokens(ids, tokenizer) for ids in (ours, theirs)]
    return len(segments[0]) == len(segments[1]) and all(map(_is_same_segment, *segments))


def _split_at_special_tokens(ids: list[int], tokenizer: SavedTokenizer) -> list[list[str]]:
    """The texts of tokens, cut before each special token, which stands first in its segment."""
    segments: list[list[str]] = [[""]]
    for token_id in ids:
        text = tokenizer.backend_tokenizer.id_to_token(token_id) or f"<{token_id}>"
        if token_id in tokenizer.added_tokens_decoder:
            segments.append([text])
        else:
            segments[-1].append(text)
    return segments


def _is_same_segment(one: list[str], other: list[str]) -> bool:
    while len(one) > 1 and len(other) > 1 and one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    heads = ["".join(texts[1:]).lstrip(WORD_BORDER) for texts in (one, other)]
    return one[0] == other[0] and heads[0] == heads[1] and WORD_BORDER not in heads[0]


def _describe_other_ids(example: HeldOutExample, ids: list[int]) -> str:
    pairs = enumerate(zip(ids, example.text_ids, strict=False))
    first = next((position for position, (one, other) in pairs if one != other), min(len(ids), len(example.text_ids)))
    around = slice(max(0, first - IDS_AROUND), first + IDS_AROUND)
    text = example.text if len(example.text) <= MAX_TEXT else f"{example.text[:MAX_TEXT]}…"
    return (
        f"llama.cpp's token ids are not the tokenizer's in {example.where}, from token {first} on: llama.cpp "
        f"{ids[around]}, tokenizer.json {example.text_ids[around]}; the row: {text!r}"
    )


def _find_template_fault(templates: Mapping[str, str], heldout: HeldOutSet, tokenizer: SavedTokenizer) -> str | None:
    """Say what is wrong with a file's chat templates: other texts, or another rendering without generation tags."""
    own = tokenizer.chat_template
    own = own if isinstance(own, dict) else {"default": own} if own else {}
    keys = {name: TEMPLATE_KEY + ("" if name == "default" else f".{name}") for name in own}
    in_file = {text: templates.get(keys[name]) for name, text in own.items()}
    for name, text in own.items():
        if in_file[text] not in (text, strip_generation_tags(text)):
            difference = f"in the file: {in_file[text]!r}; the tokenizer's: {text!r}"
            return f"{keys[name]} is not the tokenizer's own; {difference}"
    for example in heldout.examples:
        chat = example.chat
        if not chat or in_file.get(chat.template, chat.template) == chat.template:
            continue
        text = chat.render(in_file[chat.template])
        if text != example.text:
            return f"its template renders {example.where} otherwise: {text!r}; the tokenizer's: {example.text!r}"
    return None


def _find_endless_answers(measurement: FileMeasurement) -> str | None:
    """Say that no answer ends, though the model predicts the end of its turns; of the first file only."""
    answers, ends, predicted = len(measurement.answers), measurement.ends, measurement.predicted_ends
    if answers and not measurement.answers_ended and measurement.kl is None and ends and 2 * predicted >= ends:
        return (
            f"no greedy answer ended by itself ({answers} tried), though an end of turn is the likeliest token at "
            f"{predicted} of {ends} ends of held-out answers"
        )
    return None


def warn_about_endings(measurement: FileMeasurement, inputs: VerificationInputs) -> None:
    """Warn where a file ends answers, or frames plain text, otherwise without being wrong."""
    tokenizer = inputs.tokenizer.backend_tokenizer
    if measurement.end_ids is not None:
        unknown = [
            tokenizer.id_to_token(token_id) for token_id in inputs.end_ids if token_id not in measurement.end_ids
        ]
        if unknown:
            warn(f"llama.cpp itself does not stop at {', '.join(unknown)}; Ollama does, by the Modelfile's stop")
    answers = len(measurement.answers)
    if answers and not measurement.answers_ended:
        warn(f"none of {answers} greedy answers ended by itself: the model has not learned where a turn ends")
    plain_ids = measurement.plain_ids
    if plain_ids is not None and (ids := tokenizer.encode(PLAIN_TEXT).ids) != plain_ids:
        warn(f"around plain text llama.cpp and the tokenizer put other tokens: {plain_ids} and {ids} for 'a'")
