"""What chatting costs: `uv run python tools/benchmarks/bench_chat.py MODEL_FOLDER [--parts stream batch gguf turns …]`.

MODEL_FOLDER: SmolLM2 with its tokenizer. Pairs of one run, taking turns, on a CPU in fp32; the best of each:

- stream: time to the first token and tokens a second after it, ours (with text as it comes) and a bare `generate`'s,
  whose streamer takes the time and no more;
- batch, batch_gguf: answers a second to 64 prompts, in batches and one by one, and how many of the answers differ;
- gguf: as stream, with q4_k_m (made by impruver-gguf) and a loop over cyllama's own calls;
- turns, turns_gguf: the time to the first token in each of ten turns of equal length.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from impruver_chat.backends.chat_tokenizer import EncodingOptions
from impruver_chat.generation.detokenizer import StopCriteria
from impruver_chat.generation.parameters import GREEDY
from impruver_chat.generation.prompt import Prompt
from impruver_core.llama_cpp import load_gguf
from results import record
from workload import run_tool

QUESTION = "Tell me a long story about a fisherman who finds a lamp on the beach."
SUBJECTS = ("the sea", "iron", "bread", "the moon", "a library", "rain", "horses", "glass")
TASKS = (
    "Write one sentence about {}.",
    "What is {} good for?",
    "Give three words that describe {}, and no more than that.",
    "Explain {} to a child of five years, in a friendly and simple way, please.",
    "Name a book in which {} matters.",
    "I have to hold a speech about {} at school tomorrow, and nothing comes to my mind. How could it begin?",
    "Is {} older than people?",
    "Translate the words '{}' into French.",
)
OPTIONS = EncodingOptions()
MODEL = "out/gguf/model-q4_k_m.gguf"


def transformers(folder: Path) -> Any:
    """Our backend, as the command loads it."""
    from impruver_chat.backends.transformers.backend import load_backend
    from impruver_chat.model_dir import find_model
    from impruver_core.recipe.sections import ModelSection, TokenizerSection

    return load_backend(
        find_model(folder, None, folder), ModelSection(dtype="fp32"), TokenizerSection(), OPTIONS, folder
    )


def asked(backend: Any, text: str) -> list[int]:
    """The prompt of one question."""
    return backend.tokenizer.encode([{"role": "user", "content": text}])


def ours(backend: Any, ids: list[int], tokens: int) -> tuple[float, float]:
    """(seconds to the first token, tokens a second after it) of `stream`, without what it kept of earlier prompts."""
    forget(backend)
    with decoded_at(backend) as times:
        start = time.perf_counter()
        backend.stream_answer(Prompt(ids, tokens, 0), GREEDY, lambda _: None)
        end = time.perf_counter()
    return times[0] - start, (tokens - 1) / (end - times[0])


@contextmanager
def decoded_at(backend: Any) -> Iterator[list[float]]:
    """The times at which the backend turns tokens into text."""
    times: list[float] = []
    whole = backend.tokenizer

    def decode(ids: list[int]) -> str:
        times.append(time.perf_counter())
        return whole.decode(ids)

    backend.tokenizer = replace(whole, decode=decode)
    yield times
    backend.tokenizer = whole


def forget(backend: Any) -> None:
    """Drops the cache that is kept between turns."""
    from impruver_chat.backends.transformers.backend import PromptCache

    if hasattr(backend, "_cache"):
        backend._cache = PromptCache()
    else:  # llama.cpp's process has one: the last of two other prompts leaves nothing that a third one begins with
        for token in (1, 2):
            backend.stream_answer(Prompt([token], 1, 0), GREEDY, lambda _: None)


def bare(backend: Any, ids: list[int], tokens: int) -> tuple[float, float]:
    """The same of transformers' `generate` alone; its streamer takes the time and no more."""
    import torch

    times: list[float] = []

    class Watch:
        def put(self, _: Any) -> None:
            times.append(time.perf_counter())

        def end(self) -> None:
            times.append(time.perf_counter())

    given = torch.tensor([ids])
    start = time.perf_counter()
    backend.model.generate(
        given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=tokens, streamer=Watch()
    )
    return times[1] - start, (tokens - 1) / (times[-1] - times[1])  # the prompt is put first


load_model = cache(load_gguf)


def cyllama_loop(path: Path, _: Any, ids: list[int], tokens: int) -> tuple[float, float]:
    """The same of cyllama's own calls in this process: decode, sample, detokenize."""
    from cyllama.llama.llama_cpp import LlamaSampler, LlamaSamplerChainParams, llama_batch_get_one
    from impruver_chat.backends.llama_cpp.inference import make_context

    model = load_model(path)
    context, sampler = make_context(model, 2048), LlamaSampler(LlamaSamplerChainParams())
    sampler.add_greedy()
    vocab = model.get_vocab()
    start = time.perf_counter()
    context.decode(llama_batch_get_one(ids, 0))
    for place in range(len(ids), len(ids) + tokens):
        token = sampler.sample(context, -1)
        vocab.detokenize([token])
        if place == len(ids):
            first = time.perf_counter()
        if place < len(ids) + tokens - 1:
            context.decode(llama_batch_get_one([token], place))
    return first - start, (tokens - 1) / (time.perf_counter() - first)


def without_ends(backend: Any) -> Any:
    """The backend with answers that no end of turn cuts short, so that both sides compute the same number of tokens."""
    backend.tokenizer = replace(backend.tokenizer, stops=StopCriteria(frozenset()))
    return backend


def compare(part: str, what: str, backend: Any, theirs: Any, tokens: int, rounds: int) -> None:
    """Prints time to the first token and tokens a second of both, taking turns."""
    ids = asked(without_ends(backend), QUESTION)
    theirs(backend, ids, 4), ours(backend, ids, 4)  # warm
    pairs = [(theirs(backend, ids, tokens), ours(backend, ids, tokens)) for _ in range(rounds)]
    (first, own_first), (speed, own_speed) = (
        [best(pair[side][part] for pair in pairs) for side in (0, 1)] for part, best in ((0, min), (1, max))
    )
    middle = statistics.median(pair[1][1] / pair[0][1] for pair in pairs)
    print(
        f"{what}: first token {first * 1e3:.1f} ms, ours {own_first * 1e3:.1f} ({(own_first - first) * 1e3:+.1f}); "
        f"{speed:.2f} tokens/s, ours {own_speed:.2f}, {own_speed / speed:.3f} times (median of pairs {middle:.3f})",
        flush=True,
    )
    record(f"{part}_later", (own_first - first) * 1e3)
    record(f"{part}_speed", own_speed / speed)


def compare_batches(part: str, backend: Any, tokens: int, rounds: int, size: int) -> None:
    """Prints answers a second in batches and one by one."""
    texts = [task.format(subject) for task in TASKS for subject in SUBJECTS]
    prompts = [Prompt(asked(backend, text), tokens, place) for place, text in enumerate(texts)]
    list(backend.answer_batch(prompts[:2], GREEDY, 2))  # warm
    spent: dict[int, list[float]] = {1: [], size: []}
    said = {}
    for _ in range(rounds):
        for count, times in spent.items():
            start = time.perf_counter()
            said[count] = dict(backend.answer_batch(prompts, GREEDY, count))
            times.append(time.perf_counter() - start)
    alone, together = (len(prompts) / min(times) for times in spent.values())
    differ = sum(said[1][place] != said[size][place] for place in said[1])
    print(
        f"{type(backend).__name__}, {len(prompts)} prompts, answers of at most {tokens} tokens: one by one {alone:.3f} "
        f"answers/s, in batches of {size} {together:.3f}, {together / alone:.2f} times; {differ} answers differ",
        flush=True,
    )
    record(part, together / alone)
    record(f"{part}_differ", differ)


def compare_turns(part: str, what: str, backend: Any, tokens: int, rounds: int) -> None:
    """Prints the time to the first token in each of ten turns of equal length, the best of the conversations."""
    without_ends(backend)
    best = [float("inf")] * 10
    for _ in range(rounds):
        forget(backend)
        messages: list[dict] = []
        for turn in range(10):
            messages.append({"role": "user", "content": f"{QUESTION} Its number is {turn}."})
            with decoded_at(backend) as times:
                start = time.perf_counter()
                ids = backend.tokenizer.encode(messages)
                answer = backend.stream_answer(Prompt(ids, tokens, 0), GREEDY, lambda _: None)
            best[turn] = min(best[turn], times[0] - start)
            messages.append({"role": "assistant", "content": answer.text})
    shown = ", ".join(f"{seconds * 1e3:.0f}" for seconds in best)
    print(f"{what}, ms to the first token by turn: {shown}; turn 10 / turn 2: {best[9] / best[1]:.2f}", flush=True)
    record(part, best[9] / best[1])


def quantized(folder: Path, scratch: Path) -> Any:
    """Our GGUF backend with the model as q4_k_m."""
    from impruver_chat.backends.llama_cpp import backend as gguf
    from impruver_chat.model_dir import GgufFile
    from impruver_core.recipe.sections import TokenizerSection

    (scratch / "out").mkdir()
    for path in folder.absolute().iterdir():
        (scratch / "out" / path.name).symlink_to(path)
    recipe = {"output_dir": str(scratch / "out"), "gguf": {"quantization_levels": ["q4_k_m"]}}
    run_tool("impruver_gguf", recipe, scratch)
    return gguf.load_backend(GgufFile(scratch / MODEL, folder), TokenizerSection(), OPTIONS)


def main() -> None:
    """Prints the figures of each part."""
    names = ("stream", "batch", "gguf", "batch_gguf", "turns", "turns_gguf")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--parts", nargs="+", default=names, choices=names)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=32, help="rows of a batch")
    args = parser.parse_args()
    given, rounds = set(args.parts), args.rounds
    if "stream" in given:
        compare("stream", "transformers, bare generate", transformers(args.model), bare, args.tokens, rounds)
    if "batch" in given:
        compare_batches("batch", transformers(args.model), args.tokens, max(1, rounds // 3), args.size)
    if "turns" in given:
        compare_turns("turns", "transformers", transformers(args.model), args.tokens // 4, rounds)
    if given & {"gguf", "batch_gguf", "turns_gguf"}:
        with tempfile.TemporaryDirectory() as scratch:
            backend = quantized(args.model, Path(scratch))
            if "batch_gguf" in given:
                compare_batches("batch_gguf", backend, args.tokens, max(1, rounds // 3), args.size)
            if "turns_gguf" in given:
                compare_turns("turns_gguf", "GGUF q4_k_m", backend, args.tokens // 4, rounds)
            if "gguf" in given:
                loop = partial(cyllama_loop, Path(scratch) / MODEL)
                compare("gguf", "GGUF q4_k_m, cyllama's own loop", backend, loop, args.tokens, rounds)
            backend.close()


if __name__ == "__main__":
    main()
