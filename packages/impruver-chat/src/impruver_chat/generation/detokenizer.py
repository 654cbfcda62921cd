"""Tokens to text as they come: whole characters only, and nothing that may yet turn out to be an end of turn."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

UNFINISHED = "�"  # what a decoder shows for bytes that are no whole character yet


@dataclass(frozen=True)
class StopCriteria:
    """What ends an answer: tokens, and texts of templates whose turns no token ends."""

    ids: frozenset[int]
    texts: tuple[str, ...] = ()


def make_stop_criteria(
    texts: Iterable[str], ids: Iterable[int | None], token_of: Callable[[str], int | None]
) -> StopCriteria:
    """Stops of the ends of turn `texts`, each by its token where it is one, and of `ids` as they are."""
    tokens = {text: token_of(text) for text in texts if text}
    found = {number for number in (*tokens.values(), *ids) if number is not None}
    return StopCriteria(frozenset(found), tuple(text for text, number in tokens.items() if number is None))


class StreamingDetokenizer:
    """Takes an answer's tokens one by one and hands its text to `emit`, in pieces that never change afterwards.

    `decode` turns ids into text. `stopped` tells that an end of turn came; what follows it is ignored.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: StopCriteria, emit: Callable[[str], None]):
        self._decode, self._stops, self._emit = decode, stops, emit
        self._ids: list[int] = []
        self._from = self._read = 0  # decoding starts a piece earlier: blanks depend on what stands before
        self._held = ""
        self._pieces: list[str] = []
        self._cut = False  # a stop text was found: what is held begins with it
        self.stopped = False

    def add_token(self, token: int) -> None:
        """The next token."""
        if self.stopped:
            return
        if token in self._stops.ids:
            self.stopped = True
            return
        self._ids.append(token)
        text = self._decode_new_text()
        if text and not text.endswith(UNFINISHED):
            self._from, self._read = self._read, len(self._ids)
            self._append(text)

    def finish(self) -> str:
        """No more tokens: the rest goes out; the whole answer."""
        if not self._cut:
            self._append(self._decode_new_text().rstrip(UNFINISHED))  # cut off within a character: without its half
        if not self._cut:
            self._send_text(self._held)
        return "".join(self._pieces)

    def _decode_new_text(self) -> str:
        before = self._decode(self._ids[self._from : self._read])
        return self._decode(self._ids[self._from :])[len(before) :]

    def _append(self, text: str) -> None:
        self._held += text
        places = [place for stop in self._stops.texts if (place := self._held.find(stop)) >= 0]
        if places:
            self._send_text(self._held[: min(places)])
            self._held = self._held[min(places) :]
            self.stopped = self._cut = True
            return
        kept = find_partial_match(self._held, self._stops.texts)
        self._send_text(self._held[: len(self._held) - kept])
        self._held = self._held[len(self._held) - kept :]

    def _send_text(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            self._emit(text)


def find_partial_match(text: str, stops: Collection[str]) -> int:
    """How many characters at the end of `text` may be the beginning of one of `stops`."""
    lengths = (length for stop in stops for length in range(1, len(stop)) if text.endswith(stop[:length]))
    return max(lengths, default=0)
