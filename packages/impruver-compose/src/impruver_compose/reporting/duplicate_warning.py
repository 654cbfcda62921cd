"""The warning of a data set of which deduplication drops more than half, with two of the pairs."""

from collections.abc import Sequence

import numpy as np
from impruver_core.cli.console import warn

from impruver_compose.corpus import Corpus
from impruver_compose.dataset_stats import DatasetStats
from impruver_compose.decontamination.words import list_row_texts
from impruver_compose.dedup.duplicates import Duplicate, Duplicates
from impruver_compose.reporting.text_diff import compare_texts
from impruver_compose.sections import DedupSection

EXAMPLES = 2  # pairs
SAME, DIFFERENT, LONGEST = 40, 80, 400  # characters of a stretch that is the same, of one that is not, of a pair


def warn_about_many_duplicates(
    corpus: Corpus, duplicates: Duplicates, stats: Sequence[DatasetStats], dedup: DedupSection
) -> None:
    """Warns of each data set of which more than half is dropped as duplicates, with two of the pairs."""
    datasets, sizes = corpus.get_datasets(duplicates.number), corpus.count_conversations()
    dropped = np.bincount(datasets, minlength=len(sizes)).tolist()
    for each in stats:
        if 2 * dropped[each.index] <= sizes[each.index]:
            continue
        own = np.flatnonzero(datasets == each.index)
        pairs = "\n".join(_format_pair(corpus, pair) for pair in _choose_pairs(duplicates, own))
        warn(
            f"data set {each.index} ({each.name}): {dropped[each.index]} of {sizes[each.index]} conversations repeat "
            f"others and are dropped (dedup.method: {dedup.method}, dedup.on: {dedup.on}), such as\n{pairs}"
        )


def _choose_pairs(duplicates: Duplicates, own: np.ndarray) -> list[Duplicate]:
    """Chooses the pairs that are least alike, of different conversations that were kept where there are such.

    `own`: the positions of the data set's pairs.
    """
    ordered = own[np.lexsort((duplicates.number[own], duplicates.similarity[own]))]
    _, first = np.unique(duplicates.kept[ordered], return_index=True)
    chosen = np.concatenate([ordered[np.sort(first)], ordered])[: 2 * EXAMPLES]
    return [duplicates.get(position) for position in dict.fromkeys(chosen.tolist())][:EXAMPLES]


def _format_pair(corpus: Corpus, pair: Duplicate) -> str:
    """Formats where both come from, and what they say: [-in the dropped one-], {+in the kept one+}."""
    dropped, kept = (":".join(map(str, corpus.get_origin(number)[1:])) for number in (pair.number, pair.kept))
    texts = [" / ".join(list_row_texts(corpus.read_conversation(number))) for number in (pair.number, pair.kept)]
    line = ""
    for left, right in compare_texts(*(" ".join(text.split()) for text in texts)):
        if left == right:
            line += _shorten(left, SAME)
        else:
            line += "".join(
                f"{begin}{_shorten(text, DIFFERENT)}{end}"
                for begin, text, end in (("[-", left, "-]"), ("{+", right, "+}"))
                if text
            )
        if len(line) > LONGEST:
            line += " …"
            break
    how = "exactly" if pair.exact else f"similarity {pair.similarity}"
    return f"  {dropped} repeats {kept}, {how} (--explain {dropped} shows both): {line}"


def _shorten(text: str, longest: int) -> str:
    """Shortens a text to its ends."""
    return text if len(text) <= 2 * longest else f"{text[:longest]} … {text[-longest:]}"
