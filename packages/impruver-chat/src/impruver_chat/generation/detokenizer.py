"""Detokenize an answer while it is generated, and stop at its end of turn."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

UNFINISHED = "�"  # what a decoder shows for bytes that are no whole character yet


@dataclass(frozen=True)
class StopCriteria:
    """What ends an answer: tokens, and texts of chat templates whose turns no single token ends."""

    ids: frozenset[int]
    texts: tuple[str, ...] = ()


def make_stop_criteria(
    texts: Iterable[str], ids: Iterable[int | None], find_token: Callable[[str], int | None]
) -> StopCriteria:
    """Make the criteria of `ids` and of the ends of turn `texts`, each by its token where it is one."""
    tokens = {text: find_token(text) for text in texts if text}
    all_ids = frozenset(number for number in (*tokens.values(), *ids) if number is not None)
    return StopCriteria(all_ids, tuple(text for text, number in tokens.items() if number is None))


class StreamingDetokenizer:
    """Turns an answer's tokens into pieces of text for `emit` as they come, until a stop.

    Pieces are whole characters and never change afterwards; what may yet become a stop text is held back. `stopped`
    is True once an end of turn came.
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
        """Add the next token; ignored after a stop."""
        self.stopped = self.stopped or token in self._stops.ids
        if self.stopped:
            return
        self._ids.append(token)
        text = self._decode_new_text()
        if text and not text.endswith(UNFINISHED):
            self._from, self._read = self._read, len(self._ids)
            self._append(text)

    def finish(self) -> str:
        """Emit what is held back, since no more tokens come; the whole answer."""
        if not self._cut:
            self._append(self._decode_new_text().rstrip(UNFINISHED))  # cut off within a character: without its half
        if not self._cut:
            self._send(self._held)
        return "".join(self._pieces)

    def _decode_new_text(self) -> str:
        before = self._decode(self._ids[self._from : self._read])
        return self._decode(self._ids[self._from :])[len(before) :]

    def _append(self, text: str) -> None:
        self._held += text
        starts = [start for stop in self._stops.texts if (start := self._held.find(stop)) >= 0]
        if starts:
            self.stopped = self._cut = True
        end = min(starts) if starts else len(self._held) - find_partial_match(self._held, self._stops.texts)
        self._send(self._held[:end])
        self._held = self._held[end:]

    def _send(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            self._emit(text)


def find_partial_match(text: str, stops: Collection[str]) -> int:
    """Find how many characters at the end of `text` may be the beginning of one of `stops`."""
    lengths = (length for stop in stops for length in range(1, len(stop)) if text.endswith(stop[:length]))
    return max(lengths, default=0)
