"""Records of unfinished and of finished work, forged: journals of a publish, of answers, manifests, ledgers."""

import contextlib
import json
import os
import tempfile
from functools import cache
from pathlib import Path

import yaml
from fuzzing.example import HOME, Content, Example, Special
from fuzzing.mutations import BLOCKS, dump_json, mutate_bytes, mutate_value, texts, values
from fuzzing.samples import CHAT, COMPOSE, GGUF, TRAIN
from fuzzing.server import CANARIES
from hypothesis import strategies as st

PATHS = [
    *("@HOME@/profile", "../home/profile", "../../home/profile", "~/profile", "profile", ".bashrc", "", ".", ".."),
    "a/../../home/profile",
]
COPIES = {name: name for name in ("data.jsonl", "questions.jsonl", "recipe.yaml", "tokenizer", "out", "model")}
ANSWERS = COPIES | {"answers.jsonl": "answers.jsonl", "answers.jsonl.manifest.json": "answers.jsonl.manifest.json"}
COMPOSED = ("train.jsonl", "val.jsonl", "train.dropped.jsonl", "train.report.html", "train.contaminated_eval.jsonl")
# The command → its manifest and the files that it writes beside it.
TOOLS = {
    COMPOSE: ("out/train.jsonl.manifest.json", COMPOSED),
    CHAT: ("answers.jsonl.manifest.json", ("answers.jsonl",)),
    GGUF: ("model/gguf/impruver.json", ("model-f16.gguf", "Modelfile.f16", "quality.json")),
}
READERS = [
    *TOOLS,
    (*COMPOSE, "--explain", "0:0"),
    (*COMPOSE, "--explain", "0:1:0"),
    TRAIN,
    (*TRAIN, "--output_dir", "new"),
    (*GGUF, "--overwrite"),
    (*CHAT, "--overwrite"),
    (*COMPOSE, "--overwrite"),
]
FINISHED = [  # files of finished work, that readers rely on
    *("out/train.jsonl.manifest.json", "out/train.dropped.jsonl", "out/val.jsonl", "out/train.jsonl"),
    *("model/impruver.json", "model/heldout.jsonl", "model/metrics.jsonl", "model/recipe.yaml"),
    *("model/gguf/impruver.json", "answers.jsonl.manifest.json"),
]


def build_journals(samples: Path) -> st.SearchStrategy[Example]:
    """Forged records beside what a tool has written, and the tool again."""
    return st.one_of(forge_pending(samples), forge_pending(samples), forge_finished(samples), forge_answers())


@cache
def capture_forged(manifest: str, output: str) -> list[tuple[str, dict[str, Content]]]:
    """The forged records of the tests, as files."""
    from support.attacks import forge_journals

    forged = []
    for number in range(60):
        with tempfile.TemporaryDirectory() as name:
            folder, victim = Path(name) / "work", Path(name) / "home/profile"
            path = folder / manifest
            for each in (path.parent, victim.parent):
                each.mkdir(parents=True)
            victim.write_text(CANARIES["profile"], encoding="utf-8")
            attacks = list(forge_journals(path, output, victim))
            if number == len(attacks):
                return forged
            attack, write = attacks[number]
            with contextlib.suppress(OSError):
                write()
            files: dict[str, Content] = {}
            for entry in sorted(folder.rglob("*")):
                name = str(entry.relative_to(folder))
                if entry.is_symlink():
                    files[name] = Special("link", os.path.relpath(entry.readlink(), entry.parent))
                elif entry.is_fifo():
                    files[name] = Special("pipe")
                elif entry.is_file():
                    files[name] = entry.read_bytes().replace(str(victim.parent).encode(), HOME)
                elif entry.name.endswith(".pending"):
                    files[name] = Special("folder")
            forged.append((attack, files))
    return forged


@st.composite
def forge_pending(draw: st.DrawFn, samples: Path) -> Example:
    """A record of a `publish`: one of the tests', or made of what a true one has."""
    command, (manifest, outputs) = draw(st.sampled_from(list(TOOLS.items())))
    pending = f"{manifest}.pending"
    folder = manifest.rpartition("/")[0]
    if draw(st.booleans()):
        attack, files = draw(st.sampled_from(capture_forged(manifest, outputs[0])))
    else:
        attack, files = "a record", {}
        true = json.loads((samples / manifest).read_text(encoding="utf-8"))
        names = st.one_of(st.sampled_from(outputs), st.sampled_from(PATHS), texts)
        hashes = st.one_of(st.sampled_from(("", "0" * 64)), st.just(true["outputs"][0].get("sha256", "")), texts)
        more = {"elsewhere": st.booleans(), "staged": names}
        entry = st.fixed_dictionaries({"path": names, "sha256": hashes}, optional=more)
        record = {"files": draw(st.lists(entry, max_size=3)), "manifest": true}
        if draw(st.booleans()):
            record["removed"] = draw(st.lists(entry, max_size=2))
        if draw(st.booleans()):
            record = draw(mutate_value(record))
        files[pending] = dump_json(record)
        if draw(st.integers(0, 3)) == 0:
            files[pending] = draw(mutate_bytes(files[pending], 3, [*BLOCKS, HOME]))
    if draw(st.booleans()):
        staged = "/".join(filter(None, (folder, f".{draw(st.sampled_from(outputs))}.staged")))
        content = st.sampled_from((b"evil", Special("link", "../../home/profile"), Special("folder"), Special("pipe")))
        files = files | {staged: draw(content)}
    more = ("--overwrite",) if draw(st.booleans()) else ()
    return Example("journals", attack, (*command, *more), ANSWERS if command == CHAT else COPIES, files)


@st.composite
def forge_finished(draw: st.DrawFn, samples: Path) -> Example:
    """A file of finished work with odd values, or with bytes changed."""
    name = draw(st.sampled_from([name for name in FINISHED if (samples / name).is_file()]))
    content = (samples / name).read_bytes()
    if draw(st.integers(0, 2)) == 0:
        content = draw(mutate_bytes(content))
    elif name.endswith(".yaml"):
        content = dump_json(draw(mutate_value(yaml.safe_load(content))))
    elif name.endswith(".jsonl"):
        lines = content.splitlines(keepends=True) or [b"{}\n"]
        number = draw(st.integers(0, len(lines) - 1))
        lines[number] = dump_json(draw(mutate_value(json.loads(lines[number])))) + b"\n"
        content = b"".join(lines)
    else:
        content = dump_json(draw(mutate_value(json.loads(content))))
    return Example("journals", name, draw(st.sampled_from(READERS)), ANSWERS, {name: content})


@st.composite
def forge_answers(draw: st.DrawFn) -> Example:
    """A journal of answers that another run of chat left, or says that it did."""
    head = draw(st.sampled_from((b'{"answers_of": "x"}\n', b'{"answers_of"', b"", b"\n", b'{"answers_of": null}\n')))
    answer = st.fixed_dictionaries({"place": values, "text": values, "ended": values})
    lines = draw(st.lists(st.one_of(values, answer), max_size=3))
    content = head + b"".join(dump_json(line) + b"\n" for line in lines)
    special = st.sampled_from((Special("link", "../home/profile"), Special("pipe"), Special("folder")))
    file = draw(st.one_of(st.just(content), st.just(content), mutate_bytes(content), special))
    more = ("--overwrite",) if draw(st.booleans()) else ()
    return Example("journals", "a journal of answers", (*CHAT, *more), COPIES, {".answers.jsonl.partial": file})
