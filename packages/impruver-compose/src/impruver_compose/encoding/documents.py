"""Plain text to lines: cut at the limit, nothing of it lost."""

from itertools import pairwise

import numpy as np
from impruver_core.chat_template.masking.loss_mask import Encoded, Refused
from impruver_core.io.jsonl import format_row
from impruver_core.labels import IGNORE_INDEX

from impruver_compose.encoding.job import DatasetJob
from impruver_compose.records import EncodedConversation, build_token_row, compute_digest


def encode_document(job: DatasetJob, row: int, at: int, text: str, encoding) -> EncodedConversation | Refused:
    """A document, cut at the limit, with BOS and EOS around the whole; every piece carries its part of the text."""
    if not encoding.ids:
        return Refused("nothing_to_learn", "no tokens")
    ids, starts = _add_bos_and_eos(job, encoding.ids, [0, *(start for start, _ in encoding.offsets[1:])], len(text))
    labels = list(ids)
    if ids[0] == job.tokenizer.bos_token_id:
        labels[0] = IGNORE_INDEX
    lines = []
    for start, stop in pairwise(_compute_borders(len(ids), job.limit)):
        ended = stop == len(ids) and stop - start > 1 and ids[-1] == job.tokenizer.eos_token_id
        encoded = Encoded(ids[start:stop], labels[start:stop], [], ended)
        lines.append(build_token_row(encoded, format_row({"text": text[starts[start] : starts[stop]]}).encode()))
    if not any(line.learned for line in lines):
        return Refused("nothing_to_learn", "no piece has two tokens")
    whole = compute_digest(np.asarray(ids, np.uint32))
    said = ids if job.prompts_only else encoding.ids
    return EncodedConversation(row, at, lines, np.asarray(said, np.uint32), whole, whole)


def _compute_borders(length: int, limit: int | None) -> list[int]:
    """Where a document of `length` tokens is cut. The last piece is no single token: a row's first is not learned."""
    size = limit or length
    borders = [*range(0, length, size), length]
    if length % size == 1 and len(borders) > 2 and size > 2:
        borders[-2] -= 1
    return borders


def _add_bos_and_eos(job: DatasetJob, ids: list[int], starts: list[int], length: int) -> tuple[list[int], list[int]]:
    """The ids with BOS and EOS where they are missing; where in the text each begins, and where the text ends."""
    bos, eos = job.tokenizer.bos_token_id, job.tokenizer.eos_token_id
    if job.options["add_bos"] and bos not in (None, ids[0]):
        ids, starts = [bos, *ids], [0, *starts]
    if job.options["add_eos"] and eos not in (None, ids[-1]):
        ids, starts = [*ids, eos], [*starts, length]
    return ids, [*starts, length]
