"""What a GGUF's own vocabulary tells: the text of its tokens, byte by byte, special tokens, ends."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

COMPARED = 500  # tokens by which a tokenizer is known to be the GGUF's
SENTENCEPIECE, BYTE_LEVEL = 1, 2  # llama.cpp's vocab_type
NORMAL, USER_DEFINED, BYTE = 4, 16, 32  # its token attributes
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2 writes these bytes as themselves,
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]  # and these as the characters from 256 on

BYTE_OF_CHARACTER = {chr(byte): bytes([byte]) for byte in PRINTABLE} | {
    chr(256 + n): bytes([b]) for n, b in enumerate(OTHERS)
}


def make_decoder(vocab: Any, drop_first_blank: bool, shown: Collection[str] = ()) -> Callable[[Sequence[int]], str]:
    """Ids → text, each blank as the model wrote it; � for what is no whole character.

    cyllama's detokenize drops blanks at both ends and before punctuation. `drop_first_blank`: as SentencePiece does.
    `shown` are the control tokens that are text.
    """
    if vocab.vocab_type not in (SENTENCEPIECE, BYTE_LEVEL):
        return lambda ids: vocab.detokenize(list(ids)) if ids else ""
    drop_first_blank &= vocab.vocab_type == SENTENCEPIECE

    def decode(ids: Sequence[int]) -> str:
        text = b"".join(get_token_bytes(vocab, number, shown) for number in ids).decode("utf-8", "replace")
        return text.removeprefix(" ") if drop_first_blank else text

    return decode


def get_token_bytes(vocab: Any, number: int, shown: Collection[str] = ()) -> bytes:
    """The bytes that a token stands for; none for a control token unless its text is to be `shown`."""
    text, attributes = vocab.get_text(number), vocab.get_attr(number)
    if attributes & USER_DEFINED or text in shown:
        return text.encode()
    if attributes & BYTE:  # <0x0A>
        return bytes([int(text[3:5], 16)])
    if not attributes & NORMAL:
        return b""
    if vocab.vocab_type == SENTENCEPIECE:
        return text.replace("\u2581", " ").encode()
    return b"".join(BYTE_OF_CHARACTER.get(character) or character.encode() for character in text)


def read_special_tokens(vocab: Any) -> tuple[dict[str, str], list[str]]:
    """(special tokens by the names that templates read, the texts of all of them)."""
    named = {"bos_token": vocab.token_bos(), "eos_token": vocab.token_eos(), "pad_token": vocab.token_pad()}
    variables = {name: vocab.get_text(number) for name, number in named.items() if number >= 0}
    return variables, [vocab.get_text(number) for number in range(vocab.n_vocab) if vocab.is_control(number)]


def find_end_token_ids(vocab: Any) -> list[int]:
    """EOS and the end of turn as the GGUF's metadata names them, and all that llama.cpp knows as ends."""
    named = [number for number in (vocab.token_eos(), vocab.token_eot()) if number >= 0]
    return [*named, *filter(vocab.is_eog, range(vocab.n_vocab))]


def make_token_finder(vocab: Any) -> Callable[[str], int | None]:
    """Text of a special token → its id; None for any other text."""

    def find(text: str) -> int | None:
        ids = vocab.tokenize(text, add_special=False, parse_special=True)
        return ids[0] if len(ids) == 1 and vocab.get_text(ids[0]) == text else None

    return find


def is_same_vocabulary(tokenizer: Any, vocab: Any) -> bool:
    """Whether the GGUF has the tokenizer's tokens: as many at least, equal in a sample spread over all."""
    count = len(tokenizer)
    sample = {*range(0, count, max(1, count // COMPARED)), *tokenizer.all_special_ids}
    return vocab.n_vocab >= count and all(
        vocab.get_text(number) == tokenizer.convert_ids_to_tokens(number) for number in sample
    )
