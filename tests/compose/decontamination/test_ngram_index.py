"""The search for n-grams finds what brute force finds, and nothing else."""

import random

import numpy as np
import pytest
from impruver_compose.decontamination import ngram_index
from impruver_compose.decontamination.ngram_index import SHORTEST, N, NgramIndex


def search(index, texts):
    """(position, length, owners) of each match in the texts, one behind the other."""
    words = np.concatenate([part for text in texts for part in (index.number_words(text), np.zeros(1, np.uint32))])
    return {
        (match.position, match.length, tuple(index.list_owners(match.length, match.ngram)))
        for match in index.find_matches(words)
    }


def search_by_brute_force(own, texts):
    """The same, by comparing every n-gram with every place."""
    grams = {}
    for owner, text in own:
        words = text.split()
        size = min(N, len(words))
        if size >= SHORTEST:
            for start in range(len(words) - size + 1):
                grams.setdefault(tuple(words[start : start + size]), set()).add(owner)
    found, offset = set(), 0
    for text in texts:
        words = text.split()
        for start in range(len(words)):
            for size in {len(gram) for gram in grams}:
                owners = grams.get(tuple(words[start : start + size]))
                if owners and start + size <= len(words):
                    found.add((offset + start, size, tuple(sorted(owners))))
        offset += len(words) + 1
    return found


def draw(chance, count, words, longest):
    return [" ".join(chance.choices(words, k=chance.randint(0, longest))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(6))
def test_it_finds_what_brute_force_finds(seed, monkeypatch):
    chance = random.Random(seed)
    words = "ab" if seed % 2 else "abcdefgh"
    own = list(enumerate(draw(chance, 40, words, 30)))
    texts = draw(chance, 60, f"{words}?", 60)
    for _ in range(60):  # copies of whole texts and of pieces, within others
        copied = chance.choice(own)[1].split()
        start, stop = sorted(chance.choices(range(len(copied) + 1), k=2))
        around = draw(chance, 2, f"{words}?", 5)
        texts.append(" ".join([around[0], *(copied if chance.random() < 0.5 else copied[start:stop]), around[1]]))
    monkeypatch.setattr(ngram_index, "SEARCHED", 50)
    monkeypatch.setattr(ngram_index, "COMPARED", 7)
    texts = [text.replace("?", "other") for text in texts]
    expected = search_by_brute_force(own, texts)
    assert search(NgramIndex(own), texts) == expected
    assert len(expected) > 50


def test_the_order_of_words_and_each_of_them_counts():
    text = "one two three four five six seven eight nine ten eleven twelve thirteen"
    index, words = NgramIndex([(7, text)]), text.split()
    assert search(index, [f"so {text} then"]) == {(1, 13, (7,))}
    for n in range(13):
        assert not search(index, [" ".join([*words[:n], "other", *words[n + 1 :]])])
        assert not search(index, [" ".join(words[:n] + words[n + 1 :])])
    assert not search(index, [" ".join(reversed(words))])
    assert not search(index, [" ".join(words[:7]), " ".join(words[7:])])  # no n-gram reaches over two texts


def test_short_texts_count_as_a_whole():
    index = NgramIndex([(0, "one two three four five"), (1, "one two three four")])
    assert len(index) == 1
    assert search(index, ["so one two three four five six"]) == {(1, 5, (0,))}
    assert not search(index, ["one two three four", "two three four five"])


def test_equal_hashes_of_different_ngrams_are_told_apart(monkeypatch):
    mix, calls = ngram_index.mix_hashes, []

    def collide_once(hashes):
        calls.append(1)
        return np.zeros_like(hashes) if len(calls) == 1 else mix(hashes)

    monkeypatch.setattr(ngram_index, "mix_hashes", collide_once)
    own = [(0, "a b c d e"), (1, "f g h i j"), (2, "a b c d e")]
    index = NgramIndex(own)
    assert len(calls) == 2
    assert search(index, ["a b c d e", "f g h i j"]) == {(0, 5, (0, 2)), (6, 5, (1,))}


def test_a_hash_that_a_searched_text_shares_by_accident_is_no_match(monkeypatch):
    monkeypatch.setattr(ngram_index, "mix_hashes", np.zeros_like)  # all hashes are equal
    index = NgramIndex([(0, "a b c d e")])
    assert search(index, ["e d c b a", "x a b c d e"]) == {(7, 5, (0,))}


def test_the_run_is_counted_to_where_the_text_ends():
    index = NgramIndex([(0, "a b c d e f g h i j k l m n o"), (1, "q r s t u")])
    for said, run in (("a b c d e f g h i j k l m n o q", 15), ("a b c d e f g h i j k l m n x", 14)):
        words = index.number_words(said)
        first = min(index.find_matches(words))
        assert index.count_run(words, first) == run


def test_nothing_in_nothing():
    index = NgramIndex([])
    assert len(index) == 0
    assert not search(index, ["a b c d e", ""])
