"""The benchmarks, what is asked of each figure, and why a target is missed where it is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A figure as results.py records it, what is asked of it, and why it is missed where it is."""

    name: str
    what: str
    asked: float
    least: bool = False  # at least `asked`; else at most
    form: str = ".2f"
    unit: str = " times"
    why: str = ""

    def met(self, value: float) -> bool:
        """Whether `value` is what is asked."""
        return value >= self.asked if self.least else value <= self.asked

    def row(self, values: list[float]) -> str:
        """A row of the table, of the worst of `values`."""
        value = (min if self.least else max)(values, default=None)
        bound = f"at {'least' if self.least else 'most'} {self._text(self.asked)}"
        if value is None:
            return f"| {self.what} | not measured | {bound} | |\n"
        missed = f"**missed** by {self._text(abs(value - self.asked))}: {self.why or 'not looked into yet'}"
        return f"| {self.what} | {self._text(value)} | {bound} | {'met' if self.met(value) else missed} |\n"

    def _text(self, value: float) -> str:
        return f"{value:{self.form}}{self.unit}"


@dataclass(frozen=True)
class Benchmark:
    """A script of this folder: its arguments ({model}, {data}, {rows} are filled in) and its targets."""

    what: str
    arguments: str
    targets: tuple[Target, ...]
    gpu: bool = False


SHARE = {"form": ".1%", "unit": ""}
BENCHMARKS = {
    "masks": Benchmark(
        "Exact masks",
        "{model}",
        (Target("turns", "200 turns with masks, against rendering and tokenizing them plainly", 3.0),),
    ),
    "dedup": Benchmark(
        "Near-duplicates, judged by brute force",
        "{model} {data}",
        (
            Target("recall", "found of those 0.05 above the threshold", 0.95, least=True, form=".4f", unit=""),
            Target("precision", "as similar as the threshold says, of those dropped", 1.0, True, form=".4f", unit=""),
        ),
    ),
    "compose": Benchmark(
        "impruver-compose",
        "{model} {data}",
        (
            Target(
                "times",
                "time against one `encode_batch` of tokenizers, 100,000 and 400,000 rows",
                0.6,
                why="of fewer rows the time of one process counts more: reading before, writing behind",
            ),
            Target(
                "refused",
                "the same where gigatoken does not take the tokenizer, 100,000 rows",
                1.4,
                why="rendering and masks take half as long again as the encoding",
            ),
            Target(
                "first_impruver",
                "rows a second against the first impruver's way",
                22.0,
                least=True,
                form=".1f",
                why="as for 100,000 rows above",
            ),
            Target("peak", "memory of all processes together, 400,000 rows", 1.0, unit=" GB"),
            Target("large", "the same, 4,000,000 rows (`--large`)", 1.5, unit=" GB"),
            Target(
                "ray",
                "`engine: ray` on two processors against `local`, 200,000 rows, without what 100 rows take",
                1.4,
            ),
            Target(
                "again",
                "a second run with nothing changed, of the first's time",
                0.15,
                **SHARE,
                why="with gigatoken the first run takes less than when this was set, and both have the imports",
            ),
        ),
    ),
    "train": Benchmark(
        "impruver-train",
        "{model} {rows}",
        (
            Target("step", "a step of quickstart's model against a bare PyTorch loop", 1.05, form=".3f"),
            Target("lora", "a step of SmolLM2 LoRA against the same", 1.05, form=".3f"),
            Target(
                "packing",
                "target tokens a second, packed against plain padding",
                1.8,
                least=True,
                why="with a share p of padding packing gains 1 / (1 - p) times, and what attention between rows cost",
            ),
            Target("padding", "padding of packed rows", 0.05, **SHARE),
            Target("start", "start to first step on 100,000 cached rows, against importing and loading", 1.3),
        ),
    ),
    "gguf": Benchmark(
        "impruver-gguf",
        "{model}",
        (
            Target(
                "time",
                "time to f16 and five levels, against peft, llama.cpp's script and llama-quantize",
                0.4,
                why="gguf-py's own writer packs a vocabulary value by value",
            ),
            Target("memory", "peak memory against the same", 0.35),
            Target(
                "peak",
                "peak memory: 1.5 times the largest tensor in fp32 (113 MB) and 300 MB",
                470,
                form=".0f",
                unit=" MB",
                why="of the whole command: llama.cpp maps the f16 file while it quantizes, and its pages count; making "
                "that file alone stays below (test_memory_stays_far_below_the_largest_tensor)",
            ),
            Target("proof", "proof of six files on 32 rows", 90, form=".0f", unit=" s"),
            Target("proof_times", "proof against decoding the same tokens", 1.3),
        ),
    ),
    "chat": Benchmark(
        "impruver-chat",
        "{model}",
        (
            Target("stream_later", "first token, later than a bare `generate`'s", 50, form=".1f", unit=" ms"),
            Target("stream_speed", "tokens a second against a bare `generate`", 0.97, least=True, form=".3f"),
            Target("batch", "answers a second in batches against one by one", 2.5, least=True),
            Target("batch_differ", "answers that batches change, of 64", 0, form=".0f", unit=""),
            Target("turns", "time to the first token at turn 10 against turn 2", 1.5),
            Target("gguf_speed", "GGUF: tokens a second against cyllama's own calls", 0.95, least=True, form=".3f"),
            Target("turns_gguf", "GGUF: time to the first token at turn 10 against turn 2", 1.5),
        ),
    ),
    "trl": Benchmark(
        "impruver-train against TRL, on a GPU",
        "{model} {rows}",
        (
            Target("padded_padded", "tokens a second against TRL's, both padded", 1.0, least=True),
            Target("packed_packed", "both packed", 1.0, least=True),
            Target("packed_padded", "packed against TRL's default, padded", 1.8, least=True),
            Target("memory_padded", "peak memory against TRL's, both padded", 1.0),
            Target("memory_packed", "both packed", 1.0),
        ),
        gpu=True,
    ),
}
