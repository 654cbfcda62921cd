"""Tries a tokenizer.json from elsewhere in a process of its own, which can be ended.

What `tokenizers` computes can't be interrupted: a few lines of JSON have it loop without end, fill any memory, or end
the process with Rust's panic. So a copy is loaded, and encodes and decodes a few texts, under limits of time and
memory, while this process imports what it needs itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.errors import ImpruverError, describe_error
from impruver_core.trial import build_trial_command, build_verdict_name, has_passed, set_trial_limits, write_verdict

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LARGEST_FILE = 512 << 20  # bytes; Gemma's takes 33 MB
SECONDS, SECONDS_PER_MB = 4, 0.5  # of CPU time
MOST_MEMORY = 2 << 30  # bytes
MOST_GROWTH = 100  # tokens for a character, or characters for one of a token
LONGEST_TOKEN = 100_000  # characters
UNUSED_IDS = 100_000  # below the largest, besides as many as there are tokens: embeddings have a row for each
TEXTS = ("", "a", "Hello, world! 12345", "Привет", "日本語 \U0001f642 e\u0301\ufdfa", "  \t\r\n\n ", "<s></s>[UNK]#@_")
PATTERN_KEYS = ("String", "Regex", "content", "prepend", "replacement", "pattern")
MOST_PATTERNS = 100
RUN, LONG_RUN = 40, 1000  # times a character: what has a regular expression go back and forth
FAULT, UNLOADABLE = 3, 4  # exit codes, with the reason on stdout


class UnloadableTokenizerError(ImpruverError):
    """A tokenizer.json that is broken, or of a kind that is not known."""


@contextmanager
def trying_tokenizer(path: Path) -> Iterator[None]:
    """Tries the tokenizer.json at `path` while the body runs; ImpruverError at its end where it does harm.

    UnloadableTokenizerError for one that `tokenizers` can't load.
    """
    if not path.is_file():
        yield
        return
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise ImpruverError(f"{path}: {size:,} bytes are more than any tokenizer has; copy it again")
    verdict = build_verdict_name("tokenizers", path.read_bytes())
    if has_passed(verdict):
        yield
        return
    command = build_trial_command(__name__, path, round(SECONDS + SECONDS_PER_MB * size / 1e6))
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace")
    try:
        yield
        _judge_trial(process, path)
        write_verdict(verdict)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _judge_trial(process: subprocess.Popen, path: Path) -> None:
    out, err = process.communicate()
    if process.returncode == 0:
        return
    if process.returncode == UNLOADABLE:
        raise UnloadableTokenizerError(f"{path} can't be loaded: {out.strip()}")
    _, panicked, panic = err.partition("PanicException: ")
    if process.returncode == FAULT:
        what = out.strip()
    elif panicked:
        what = f"`tokenizers` fails: {' '.join(panic.split())}"
    else:
        what = (
            "loading it, or encoding a few words, takes more time or memory than any tokenizer does, or ends in a crash"
        )
    raise ImpruverError(f"{path}: {what}; copy it again from the model that it belongs to")


def main(path: str, seconds: str) -> int:
    """Loads and uses the tokenizer at `path`; the exit code, with what is wrong on stdout."""
    set_trial_limits(int(seconds), MOST_MEMORY)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # tokenizers raises bare ones
        print(describe_error(error))
        return UNLOADABLE
    faults = (check_text(tokenizer, text) for text in build_texts(tokenizer))
    fault = check_vocabulary(tokenizer) or next(filter(None, faults), "")
    print(fault)
    return FAULT if fault else 0


def check_vocabulary(tokenizer: Tokenizer) -> str:
    """What is wrong with the ids and the lengths of tokens; empty for nothing."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    largest = max(vocabulary.values(), default=0)
    if largest > 2 * len(vocabulary) + UNUSED_IDS:
        return f"it has {len(vocabulary):,} tokens and the id {largest:,}"
    longest = max(map(len, vocabulary), default=0)
    return f"it has a token of {longest:,} characters" if longest > LONGEST_TOKEN else ""


def check_text(tokenizer: Tokenizer, text: str) -> str:
    """What is wrong with the encoding of a text, and with what that decodes to; empty for nothing."""
    for special in (True, False):
        try:
            ids = tokenizer.encode(text, add_special_tokens=special).ids
            decoded = tokenizer.decode(ids, skip_special_tokens=False)
        except Exception:  # an unknown character where there is no token for those, which some tokenizers lack
            continue
        if len(ids) > MOST_GROWTH * (len(text) + 10):
            return f"it makes {len(ids):,} tokens of {len(text):,} characters"
        if len(decoded) > MOST_GROWTH * (sum(len(tokenizer.id_to_token(each) or "") for each in ids) + 10):
            return f"it makes {len(decoded):,} characters of {len(ids):,} tokens"
    return ""


def build_texts(tokenizer: Tokenizer) -> Iterator[str]:
    """Texts that have each part of a tokenizer do its work: general ones, and of what its patterns are made."""
    yield from TEXTS
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder)
    patterns = [pattern for part in parts if part for pattern in _list_patterns(json.loads(part.__getstate__()))]
    yield from (pattern[:LONG_RUN] for pattern in patterns[:MOST_PATTERNS])
    for character in dict.fromkeys("a0 \nж-" + "".join(patterns)[:LONG_RUN]):
        yield character * RUN + "!"
        yield character * LONG_RUN + "!"


def _list_patterns(value: Any) -> list[str]:
    """The texts in a normalizer's, pre-tokenizer's or decoder's JSON that are searched for or put in."""
    patterns, left = [], [value]
    while left:
        value = left.pop()
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if isinstance(value, dict):
            patterns += [text for key, text in value.items() if key in PATTERN_KEYS and isinstance(text, str)]
    return patterns


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
