"""What a backend is asked: a prompt, and how the tokens of its answer are chosen."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """Token ids to continue, with the limit of the answer's length and the seed of its draws."""

    ids: list[int]
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of an answer are chosen, and how many at most; the defaults are the first impruver's."""

    max_new_tokens: int = 200
    repetition_penalty: float = 1.2
    do_sample: bool = True
    temperature: float = 0.5
    top_p: float = 0.6
    top_k: int = 40
