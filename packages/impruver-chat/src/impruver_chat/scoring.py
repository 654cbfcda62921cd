"""Whether an answer is the reference: case, blanks, final punctuation and Unicode's several forms do not count."""

import unicodedata


def is_match(answer: str, reference: str) -> bool:
    """True where both say the same."""
    return normal(answer) == normal(reference)


def normal(text: str) -> str:
    """A text less what does not count; one of punctuation alone keeps it."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = " ".join(folded.split())
    end = len(words)
    while end and (words[end - 1] == " " or unicodedata.category(words[end - 1]).startswith("P")):
        end -= 1
    return words[:end] or words


def share(right: int, asked: int) -> str:
    """`right: 10 of 12 (83.3%)`."""
    if not asked:
        return "right: 0 of 0: no row with a reference could be asked"
    return f"right: {right:,} of {asked:,} ({right / asked:.1%})"
