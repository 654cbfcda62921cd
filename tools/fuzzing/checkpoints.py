"""Checkpoints to resume from: pickles that run code, grow or nest, and states of training that can't be."""

import io
import json
import zipfile
from pathlib import Path

from fuzzing.example import HOME, Example
from fuzzing.mutations import dump_json, mutate_bytes, mutate_value
from fuzzing.samples import CHECKPOINT, RESUME
from hypothesis import strategies as st

STATES = ("trainer_state.json", "trainer_state.json", "config.json", "tokenizer_config.json")
PICKLED = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")
TOUCH = b"touch " + HOME + b"/ran"
PICKLES = [
    b"cos\nsystem\n(S'" + TOUCH + b"'\ntR.",
    b"cbuiltins\nexec\n(S'import os; os.system(\"" + TOUCH + b"\")'\ntR.",
    b"cos\nsystem\n.",
    b"ctorch.hub\nload\n(S'evil/evil'\nS'x'\ntR.",
    b"ctorch\nempty\n(I1000000000000\ntR.",
    b"ctorch._utils\n_rebuild_tensor_v2\n(NI0\n(I1000000000000\nt(I1\ntI00\n}tR.",
    b"cnumpy\nzeros\n(I1000000000000\ntR.",
    b"ccollections\nOrderedDict\n(tR.",
    b"\x80\x02]" + b"]a" * 3 + b".",
    b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    b"\x80\x02K\x01" + b"\x85" * 100_000 + b".",
    b"\x80\x02(" + b"(" * 100_000 + b".",
    b"\x80\x02]q\x00" + b"(h\x00h\x00h\x00lq\x00" * 60 + b".",
    b"\x80\x02\x8b\xff\xff\xff\x7f.",
    b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
    b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.",
    b"\x80\x02r\xff\xff\xff\x7fN.",
    b"I" + b"9" * 100_000 + b"\n.",
    *(
        b"",
        b".",
        b"\x80\xff.",
        b"N.",
        b"(l.",
        b"(d.",
        b"\x80\x02}.",
        b"\x80\x02Nq\xff.",
        b"\x80\x02Q.",
        b"\x80\x02X\x01\x00\x00\x00\xff.",
    ),
]
COPIES = {name: name for name in ("recipe.yaml", "tokenizer", "out")} | CHECKPOINT


@st.composite
def break_checkpoint(draw: st.DrawFn, samples: Path) -> Example:
    """A checkpoint of a stranger, with one of its files broken, and a run that resumes from it."""
    kind = draw(st.sampled_from(("pickle", "pickle", "state", "state", "marker")))
    if kind == "pickle":
        name = draw(st.sampled_from(PICKLED))
        content = draw(break_pickle((samples / "checkpoint-1" / name).read_bytes()))
    else:
        name = draw(st.sampled_from(STATES)) if kind == "state" else "impruver.json"
        path = samples / f"checkpoint-1/{name}" if kind == "state" else samples / "marker.json"
        content = dump_json(draw(mutate_value(json.loads(path.read_text(encoding="utf-8")))))
    more = ("--dry_run",) if draw(st.integers(0, 3)) == 0 else ()
    (folder,) = CHECKPOINT
    return Example("headers", f"checkpoint: {name}", (*RESUME, *more), COPIES, {f"{folder}/{name}": content})


@st.composite
def break_pickle(draw: st.DrawFn, content: bytes) -> bytes:
    """What torch.save wrote, a zip file, with another pickle in it, or with other bytes; or a pickle alone."""
    pickle = draw(st.sampled_from(PICKLES))
    change = draw(st.sampled_from(("within", "within", "within", "bytes", "alone")))
    if change == "alone":
        return pickle
    if change == "bytes":
        return draw(mutate_bytes(content))
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(target, "w") as archive:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("/data.pkl"):
                data = draw(mutate_bytes(data)) if draw(st.booleans()) else pickle
            archive.writestr(zipfile.ZipInfo(entry.filename), data)
    return target.getvalue()
