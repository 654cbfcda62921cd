"""The warning of a data set of which deduplication drops more than half, with two of the pairs."""

from collections import Counter
from collections.abc import Sequence

from impruver_core.cli.console import warn

from impruver_compose.decontamination.words import list_row_texts
from impruver_compose.dedup import Duplicate
from impruver_compose.reporting.text_diff import compare_texts
from impruver_compose.sections import DedupSection
from impruver_compose.selection import DatasetStats
from impruver_compose.storage import Corpus

EXAMPLES = 2  # pairs
SAME, DIFFERENT, LONGEST = 40, 80, 400  # characters of a stretch that is the same, of one that is not, of a pair


def warn_about_many_duplicates(
    corpus: Corpus, duplicates: Sequence[Duplicate], stats: Sequence[DatasetStats], dedup: DedupSection
) -> None:
    """Warns of each data set of which more than half is dropped as duplicates, with two of the pairs."""
    dataset = corpus.dataset.tolist()
    sizes, dropped = Counter(dataset), Counter(dataset[each.number] for each in duplicates)
    for each in stats:
        if 2 * dropped[each.index] <= sizes[each.index]:
            continue
        own = [duplicate for duplicate in duplicates if dataset[duplicate.number] == each.index]
        pairs = "\n".join(_format_pair(corpus, pair) for pair in _choose_pairs(own))
        warn(
            f"data set {each.index} ({each.name}): {dropped[each.index]} of {sizes[each.index]} conversations repeat "
            f"others and are dropped (dedup.method: {dedup.method}, dedup.on: {dedup.on}), such as\n{pairs}"
        )


def _choose_pairs(duplicates: Sequence[Duplicate]) -> list[Duplicate]:
    """Chooses the pairs that are least alike, of different conversations that were kept where there are such."""
    ordered = sorted(duplicates, key=lambda each: (each.similarity, each.number))
    of_kept: dict[int, Duplicate] = {}
    for each in ordered:
        of_kept.setdefault(each.kept, each)
    return [*dict.fromkeys([*of_kept.values(), *ordered])][:EXAMPLES]


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
