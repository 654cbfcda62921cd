"""Cutting the literals of a template without cutting its special tokens."""

from collections import defaultdict
from collections.abc import Iterable


class SpecialTokens:
    """The special tokens of a tokenizer: what no border may run through, and where turns end."""

    def __init__(self, tokens: Iterable[str]):
        self.tokens = tuple(sorted(set(tokens), key=lambda token: (-len(token), token)))
        self._by_pair: dict[str, list[str]] = defaultdict(list)  # two characters side by side → tokens with them
        for token in self.tokens:
            for pair in {token[i : i + 2] for i in range(len(token) - 1)}:
                self._by_pair[pair].append(token)
        self._ended: dict[str, str] = {}

    def token_across(self, text: str, at: int) -> tuple[int, int]:
        """Where the special token starts and ends that stands across position `at`; (at, at) where none does."""
        for token in self._by_pair.get(text[at - 1 : at + 1], ()) if at else ():
            start = text.find(token, max(0, at - len(token) + 1), at + len(token) - 1)
            if 0 <= start < at < start + len(token):
                return start, start + len(token)
        return at, at

    def common_prefix(self, one: str, other: str) -> int:
        """The length of the longest common prefix that cuts no special token of either text in two."""
        pairs = enumerate(zip(one, other, strict=False))
        length = next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
        return min(self.token_across(text, length)[0] for text in (one, other))

    def through_last_token(self, literal: str) -> str:
        """`literal` through its last special token, or, without one, less its trailing blanks."""
        if literal not in self._ended:
            ends = [literal.rfind(token) + len(token) for token in self.tokens if token in literal]
            self._ended[literal] = literal[: max(ends)] if ends else literal.rstrip()
        return self._ended[literal]

    def last(self, literal: str) -> str | None:
        """The special token that `literal` ends with, the longest of several."""
        return next((token for token in self.tokens if literal.endswith(token)), None)

    def first(self, text: str) -> str | None:
        """The special token that `text` starts with, the longest of several."""
        return next((token for token in self.tokens if text.startswith(token)), None)

    def any_in(self, text: str) -> bool:
        """Whether a special token stands in `text`."""
        return any(token in text for token in self.tokens)
