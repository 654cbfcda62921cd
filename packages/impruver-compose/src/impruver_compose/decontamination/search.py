"""Find the conversations that hold text of a benchmark, and the benchmarks' rows that they hold text of."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from impruver_core.cli.console import log_info, open_progress
from impruver_core.errors import ImpruverError

from impruver_compose.corpus import Corpus
from impruver_compose.decontamination.benchmarks import Benchmark
from impruver_compose.decontamination.ngram_index import SHORTEST, Match, NgramIndex
from impruver_compose.decontamination.words import list_row_texts

BATCH_WORDS = 1 << 18  # that are searched at once
LISTED = 1000  # conversations that the line of a benchmark's row names


class Contaminated(NamedTuple):
    """Conversation `number` holds text of a benchmark's row: `words` first, and `run` words in a row from there."""

    number: int
    benchmark_index: int
    row: int
    words: list[str]
    run: int


class BenchmarkIndex:
    """The texts of all benchmarks that are looked for, owned by their rows, numbered through."""

    def __init__(self, benchmarks: Sequence[Benchmark]):
        """Reads the benchmarks; ImpruverError for one with no text that can be looked for."""
        self.benchmarks = benchmarks
        self._first = [0, *accumulate(len(each.rows) for each in benchmarks)]  # (benchmarks + 1,)
        self.ngrams = NgramIndex(self._list_texts())
        self.word_list = list(self.ngrams.vocabulary)
        owners = self.ngrams.list_all_owners()
        self.searched = [int(np.sum((owners >= first) & (owners < end))) for first, end in pairwise(self._first)]
        for each, count in zip(benchmarks, self.searched, strict=True):
            short = len(each.rows) - count
            if not count:
                raise ImpruverError(
                    f"{each.where}: {each.section.name} has no text of {SHORTEST} words or more ({each.of}, on "
                    f"{each.section.on}): nothing of it can be looked for"
                )
            if short:
                log_info(
                    f"note: {each.where}: {short} of {len(each.rows)} rows have no text of {SHORTEST} words or more, "
                    "and are not looked for"
                )

    def _list_texts(self) -> Iterator[tuple[int, str]]:
        for benchmark, first in zip(self.benchmarks, self._first, strict=False):
            for owner, texts in enumerate(benchmark.read_all_texts(), first):
                yield from ((owner, text) for text in texts)

    def locate(self, owner: int) -> tuple[int, int]:
        """Locates a row by its number among all: the benchmark's index, and the row's number there."""
        index = int(np.searchsorted(self._first, owner, "right")) - 1
        return index, owner - self._first[index]


class ContaminationResult:
    """What was found: the conversations, in order, and by which n-grams."""

    def __init__(self, index: BenchmarkIndex):
        self.index = index
        self.conversations: list[Contaminated] = []
        self._numbers: dict[tuple[int, int], array] = defaultdict(lambda: array("q"))  # of an n-gram, ascending

    def add(self, number: int, words: np.ndarray, offset: int, matches: Sequence[Match]) -> None:
        """Adds what was found in a conversation of these words, whose positions are counted from `offset`."""
        first = min(matches, key=lambda match: (match.position, -match.length))
        ngrams = self.index.ngrams
        benchmark_index, row = self.index.locate(ngrams.list_owners(first.length, first.ngram)[0])
        own = words[first.position - offset :]
        texts = [self.index.word_list[word - 1] for word in own[: first.length].tolist()]
        run = ngrams.count_run(own, first._replace(position=0))
        self.conversations.append(Contaminated(number, benchmark_index, row, texts, run))
        for ngram in {match[1:] for match in matches}:
            self._numbers[ngram].append(number)

    def list_affected_rows(self) -> Iterator[tuple[int, int, list[int]]]:
        """Lists the benchmarks' rows whose text was found: benchmark, row, and the conversations that hold it."""
        ngrams_of: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for ngram in self._numbers:
            for owner in self.index.ngrams.list_owners(*ngram):
                ngrams_of[owner].append(ngram)
        for owner in sorted(ngrams_of):
            numbers = set().union(*(self._numbers[ngram] for ngram in ngrams_of[owner]))
            yield *self.index.locate(owner), sorted(numbers)

    def describe(self) -> list[dict]:
        """Describes each benchmark for the manifest: its data, its rows, how many were searched for and were found."""
        owners = {owner for ngram in self._numbers for owner in self.index.ngrams.list_owners(*ngram)}
        affected = Counter(self.index.locate(owner)[0] for owner in owners)
        return [
            {
                "name": each.section.name,
                "on": each.section.on,
                "inputs": each.inputs,
                "rows": len(each.rows),
                "searched": self.index.searched[each.index],
                "affected": affected[each.index],
            }
            for each in self.index.benchmarks
        ]

    def build_eval_rows(self, corpus: Corpus) -> list[dict]:
        """Builds the lines of `contaminated_eval.jsonl`, one for each benchmark's row that is affected."""
        return [
            {
                "benchmark": self.index.benchmarks[index].section.name,
                "benchmark_index": index,
                "row": row,
                "conversations": len(numbers),
                "hit": [corpus.get_origin(number)._asdict() for number in numbers[:LISTED]],
            }
            for index, row, numbers in self.list_affected_rows()
        ]


def find_contaminated(corpus: Corpus, numbers: np.ndarray, index: BenchmarkIndex) -> ContaminationResult:
    """Finds which of the conversations `numbers` hold an n-gram of the benchmarks; all of their texts are searched."""
    result, wanted = ContaminationResult(index), np.zeros(len(corpus), bool)
    wanted[numbers] = True
    batch: list[tuple[int, np.ndarray]] = []
    size = 0
    with open_progress(len(numbers), "decontaminate", "rows") as progress:
        for number, row in corpus.read_conversations(wanted):
            texts = [index.ngrams.number_words(text) for text in list_row_texts(row)]
            words = np.concatenate([part for text in texts for part in (text, np.zeros(1, np.uint32))])
            batch.append((number, words))
            size += len(words)
            if size > BATCH_WORDS:
                _search(batch, result)
                batch, size = [], 0
            progress.update(1)
        _search(batch, result)
    return result


def _search(batch: Sequence[tuple[int, np.ndarray]], result: ContaminationResult) -> None:
    """Searches conversations of numbered words, each of which ends in 0, and adds what is found."""
    if not batch:
        return
    starts = np.cumsum([0, *(len(words) for _, words in batch)])
    matches: dict[int, list[Match]] = defaultdict(list)
    for match in result.index.ngrams.find_matches(np.concatenate([words for _, words in batch])):
        matches[int(np.searchsorted(starts, match.position, "right")) - 1].append(match)
    for position in sorted(matches):
        number, words = batch[position]
        result.add(number, words, int(starts[position]), matches[position])
