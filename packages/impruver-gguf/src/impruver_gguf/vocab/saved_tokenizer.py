"""output_dir's tokenizer without transformers, in the shape that core's templates and masks ask for."""

from __future__ import annotations

from pathlib import Path

from impruver_gguf.vocab.byte_level_bpe import load_backend
from impruver_gguf.vocab.token_types import WORD_BORDER, named_tokens
from impruver_gguf.vocab.vocabulary import chat_templates, special_tokens, tokenizer_config, tokenizer_json


class SavedTokenizer:
    """A fast tokenizer as transformers has it, of what `impruver_core` reads of one."""

    is_fast = True

    def __init__(self, folder: Path):
        config = tokenizer_config(folder)
        named = named_tokens(config)
        self.backend_tokenizer = load_backend(folder, tokenizer_json(folder), config)
        self.chat_template = chat_templates(folder)
        self.special_tokens_map = named
        self.extra_special_tokens = special_tokens(folder)["additional_special_tokens"]
        self.added_tokens_decoder = self.backend_tokenizer.get_added_tokens_decoder()
        self.bos_token, self.eos_token = named.get("bos_token"), named.get("eos_token")
        self.bos_token_id, self.eos_token_id = (
            self.backend_tokenizer.token_to_id(token) if token else None for token in (self.bos_token, self.eos_token)
        )
        self.size = max(self.backend_tokenizer.get_vocab(with_added_tokens=True).values()) + 1  # its ids are below


def differ_in_blanks(ours: list[int], theirs: list[int], tokenizer: SavedTokenizer) -> bool:
    """Whether two lists of ids say the same but for blanks at the start or after a special token.

    SentencePiece puts a blank before a text; llama.cpp and tokenizers disagree where one starts. Up to the first word's
    end the tokens may then differ, their text less the blank may not.
    """
    pieces = [_segments(ids, tokenizer) for ids in (ours, theirs)]
    return len(pieces[0]) == len(pieces[1]) and all(map(_same_words, *pieces))


def _segments(ids: list[int], tokenizer: SavedTokenizer) -> list[list[str]]:
    """The texts of tokens, cut before each special token, which stands first in its piece."""
    segments: list[list[str]] = [[""]]
    for number in ids:
        text = tokenizer.backend_tokenizer.id_to_token(number) or f"<{number}>"
        if number in tokenizer.added_tokens_decoder:
            segments.append([text])
        else:
            segments[-1].append(text)
    return segments


def _same_words(one: list[str], other: list[str]) -> bool:
    while len(one) > 1 and len(other) > 1 and one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    heads = ["".join(part[1:]).lstrip(WORD_BORDER) for part in (one, other)]
    return one[0] == other[0] and heads[0] == heads[1] and WORD_BORDER not in heads[0]
