"""The word n-grams of benchmarks, and the search for them in other texts. Hashes find, the words themselves confirm.

Words are numbered by a vocabulary of the benchmarks' own; any other word is 0, as is what stands between two texts, so
that no n-gram reaches over it:

    benchmark   when was the old bridge rebuilt       1 2 3 4 5 6
    training    so when was the old bridge rebuilt    0 1 2 3 4 5 6

Memory is bounded by the benchmarks: a number for each word of theirs, three for each n-gram.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from impruver_compose.decontamination.words import split_long_text, split_words
from impruver_compose.dedup.shingles import PRIME, mix_hashes

N = 13  # words of an n-gram
SHORTEST = 5  # words of a text that is looked for as a whole
FILTER_SHARE = 16  # places of the filter for each n-gram
COMPARED = 1 << 16  # n-grams that are compared word by word at once
SEARCHED = 1 << 20  # words that are searched at once


class Match(NamedTuple):
    """The n-gram number `ngram` of those of `length` words stands at a `position` of the words that were searched."""

    position: int
    length: int
    ngram: int


@dataclass(frozen=True)
class NgramTable:
    """The distinct n-grams of one length: sorted hashes, and where in the index's words each stands, text by text.

    N-gram number n stands at `places[bounds[n] : bounds[n + 1]]`, ascending.
    """

    hashes: np.ndarray  # (ngrams,) uint64
    places: np.ndarray  # (occurrences,) int64
    bounds: np.ndarray  # (ngrams + 1,) int64
    filter: np.ndarray  # (a power of two,) bool: the hashes by their last bits

    def look_up(self, hashes: np.ndarray) -> np.ndarray:
        """Looks up hashes: the number of the n-gram with each, -1 where there is none."""
        numbers = np.full(len(hashes), -1, np.int64)
        likely = np.flatnonzero(self.filter[hashes & np.uint64(len(self.filter) - 1)])
        found = np.minimum(np.searchsorted(self.hashes, hashes[likely]), len(self.hashes) - 1)
        same = self.hashes[found] == hashes[likely]
        numbers[likely[same]] = found[same]
        return numbers


class NgramIndex:
    """The n-grams of texts, each of which belongs to an owner, a number."""

    def __init__(self, texts: Iterable[tuple[int, str]]):
        """Builds the index of (owner, text), owners ascending; texts of fewer than SHORTEST words are not in it."""
        self.vocabulary: dict[str, int] = {}
        words, owners, starts = array("I", [0]), array("q"), array("q")
        for owner, text in texts:
            numbers = [
                self.vocabulary.setdefault(word, len(self.vocabulary) + 1)
                for piece in split_long_text(text)
                for word in split_words(piece)
            ]
            if len(numbers) >= SHORTEST:
                owners.append(owner)
                starts.append(len(words))
                words.extend(numbers)
                words.append(0)
        self.words = np.array(words, np.uint32)  # text by text, a 0 around each
        self._owners, self._starts = np.array(owners, np.int64), np.array(starts, np.int64)  # (texts,)
        self.tables = self._build_tables()

    def __len__(self) -> int:
        """How many texts are in it."""
        return len(self._owners)

    def _build_tables(self) -> dict[int, NgramTable]:
        ends = np.append(self._starts[1:], len(self.words)) - 1 if len(self) else self._starts
        sizes = ends - self._starts
        places = {int(size): self._starts[sizes == size] for size in np.unique(sizes[sizes < N])}
        long = self._starts[sizes >= N], sizes[sizes >= N] - N + 1
        if len(long[0]):
            first = np.repeat(long[0] - np.cumsum(long[1]) + long[1], long[1])
            places[N] = first + np.arange(len(first))
        seed = 0
        while True:  # once, but for an accident of 64 bits
            self._codes = mix_hashes((np.arange(len(self.vocabulary) + 1, dtype=np.uint64) + np.uint64(seed)) * PRIME)
            tables = {length: self._build_table(length, own) for length, own in sorted(places.items())}
            if all(table is not None for table in tables.values()):
                return tables
            seed += len(self.vocabulary) + 1

    def _build_table(self, length: int, places: np.ndarray) -> NgramTable | None:
        """Builds the table of the n-grams at these places; None if two different ones have the same hash."""
        hashes = np.zeros(len(places), np.uint64)
        for offset in range(length):
            hashes = hashes * PRIME + self._codes[self.words[places + offset]]
        order = np.argsort(hashes, kind="stable")
        places, hashes = places[order], hashes[order]
        first = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1]))
        bounds = np.append(first, len(hashes))
        representatives = np.repeat(places[first], np.diff(bounds))
        if not all(self._compare(self.words, places, representatives, length)):
            return None
        size = 1 << int(FILTER_SHARE * len(first)).bit_length()
        bits = np.zeros(size, bool)
        bits[hashes[first] & np.uint64(size - 1)] = True
        return NgramTable(hashes[first], places, bounds, bits)

    def _compare(self, words: np.ndarray, places: np.ndarray, own: np.ndarray, length: int) -> np.ndarray:
        """Compares the n-grams of `words` at `places` with those of the index at the places `own`: (places,) bool."""
        steps, same = np.arange(length), np.ones(len(places), bool)
        for start in range(0, len(places), COMPARED):
            part = slice(start, start + COMPARED)
            both = words[places[part, None] + steps] == self.words[own[part, None] + steps]
            same[part] = both.all(axis=1)
        return same

    def number_words(self, text: str) -> np.ndarray:
        """Numbers the words of a text, (words,) of uint32; one that no text of the index has is 0."""
        get = self.vocabulary.get
        pieces = ([get(word, 0) for word in split_words(piece)] for piece in split_long_text(text))
        return np.concatenate([np.array(piece, np.uint32) for piece in pieces])

    def find_matches(self, words: np.ndarray) -> Iterator[Match]:
        """Finds every n-gram of the index in numbered words, uint32, those of several texts with a 0 between them."""
        for begin in range(0, len(words), SEARCHED):
            starts = begin + np.flatnonzero(words[begin : begin + SEARCHED])
            hashes = np.zeros(len(starts), np.uint64)
            for offset in range(max(self.tables, default=0)):
                inside = starts < len(words) - offset
                starts, hashes = starts[inside], hashes[inside]
                following = words[starts + offset]
                known = following != 0
                starts, hashes = starts[known], hashes[known] * PRIME + self._codes[following[known]]
                if offset + 1 in self.tables:
                    yield from self._match(words, starts, hashes, offset + 1)

    def _match(self, words: np.ndarray, starts: np.ndarray, hashes: np.ndarray, length: int) -> Iterator[Match]:
        """Finds which of the n-grams at `starts` the index has: candidates by their hashes, matches by their words."""
        table = self.tables[length]
        numbers = table.look_up(hashes)
        places, numbers = starts[numbers >= 0], numbers[numbers >= 0]
        same = self._compare(words, places, table.places[table.bounds[numbers]], length)
        for position, number in zip(places[same].tolist(), numbers[same].tolist(), strict=True):
            yield Match(position, length, number)

    def list_owners(self, length: int, ngram: int) -> Sequence[int]:
        """Lists the owners of the texts in which an n-gram stands, ascending, each once."""
        table = self.tables[length]
        places = table.places[table.bounds[ngram] : table.bounds[ngram + 1]]
        texts = np.searchsorted(self._starts, places, "right") - 1
        return np.unique(self._owners[texts]).tolist()

    def list_all_owners(self) -> np.ndarray:
        """Lists the owners of all texts, ascending, each once."""
        return np.unique(self._owners)

    def count_run(self, words: np.ndarray, match: Match) -> int:
        """Counts the words in a row, from where `match` begins, that the first text with its n-gram has, too."""
        table = self.tables[match.length]
        place = int(table.places[table.bounds[match.ngram]])
        text = int(np.searchsorted(self._starts, place, "right")) - 1
        end = int(self._starts[text + 1]) - 1 if text + 1 < len(self) else len(self.words) - 1
        length = min(end - place, len(words) - match.position)
        differ = words[match.position : match.position + length] != self.words[place : place + length]
        return int(np.argmax(differ)) if differ.any() else length
