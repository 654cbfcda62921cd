"""Pickles in a checkpoint: what would run code, fill the memory or is broken is refused unread; genuine ones pass."""

import io
import os
import pickle
import random
import struct
import sys
import time
import zipfile
from collections import Counter, OrderedDict
from types import ModuleType

import numpy
import pytest
import torch
from impruver_core.errors import ImpruverError
from impruver_train.checkpointing.pickles import checks
from support.attacks import Payload

ADVICE = "take another one"


def archive(pickled, data=b"", compression=zipfile.ZIP_STORED, **more):
    """An archive as torch.save writes it, of a given pickle; `more`: further records by name."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        file.writestr("optimizer/data.pkl", pickled)
        file.writestr("optimizer/data/0", data)
        for name, record in more.items():
            file.writestr(f"optimizer/{name}", record)
    return content.getvalue()


def saved(value, **options):
    content = io.BytesIO()
    torch.save(value, content, **options)
    return content.getvalue()


def call(name, args, rest=b""):
    """A pickle that calls a function with arguments given as opcodes."""
    module, _, function = name.rpartition(".")
    return b"\x80\x02c%s\n%s\n(%stR%s." % (module.encode(), function.encode(), args, rest)


def tensor(size, stride, count=1, offset=0, kind="FloatStorage"):
    """A pickle of a tensor over the record `0`."""
    numbers = [b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in each) + b"t" for each in (size, stride)]
    identity = b"(X\x07\x00\x00\x00storagectorch\n%s\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu\x8a\x08%stQ" % (
        kind.encode(),
        struct.pack("<q", count),
    )
    offset = b"\x8a\x08" + struct.pack("<q", offset)
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return call("torch._utils._rebuild_tensor_v2", identity + offset + numbers[0] + numbers[1] + hooks)


def forge(command):
    """(name of the file, its content, what the message says) of checkpoints by strangers; `command` is to be run."""
    evil = Payload(command)
    raw = b"cos\nsystem\n(X%sX%stR." % (struct.pack("<I", len(command)), command.encode())
    text = b"(S'%s'\nios\nsystem\n." % command.encode()
    imports = "would import posix.system when it is loaded"
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin", "global_step2/mp_rank_00_model_states.pt"):
        yield name, saved({"state": evil}), imports
    yield "mine.pkl", pickle.dumps(evil), imports
    yield "pytorch_model_fsdp_0/.metadata", pickle.dumps(evil), imports
    yield "scheduler.pt", pickle.dumps(evil, 0), imports
    yield "scheduler.pt", b"cos\nsystem\n(S'%s'\ntR." % command.encode(), "would import os.system"
    yield "scheduler.pt", b"(ios\nsystem\n.", "would import os.system"
    yield "scheduler.pt", text, "is no pickle of a checkpoint (STRING)"
    yield "optimizer.pt", saved([evil], _use_new_zipfile_serialization=False), imports
    yield "optimizer.pt", saved([1], _use_new_zipfile_serialization=False), "of a torch before 1.6"
    yield "optimizer.pt", saved([evil], pickle_protocol=4), imports
    yield "optimizer.pt", saved([1], pickle_protocol=4), "is pickled with protocol 4"
    names = b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93."
    yield "optimizer.pt", archive(names), "is no pickle of a checkpoint (POP)"
    yield (
        "optimizer.pt",
        archive(b"\x80\x04(\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93t."),
        "would import os.system",
    )
    computed = b"\x80\x04c_codecs\nencode\n(X\x02\x00\x00\x00osX\x06\x00\x00\x00latin1tR\x8c\x06system\x93."
    yield "optimizer.pt", archive(computed), "would import what it computes the name of"
    for name in ("builtins.eval", "__builtin__.getattr", "torch.load", "torch.storage._load_from_bytes"):
        yield "optimizer.pt", archive(call(name, b"N")), f"would import {name.replace('__builtin__', 'builtins')}"
    yield "training_args.bin", archive(call("transformers.trainer_utils.set_seed", b"K\x01")), "set_seed"
    yield "optimizer.pt", archive(b"\x80\x02\x82\x01."), "(EXT1)"
    yield "optimizer.pt", archive(b"\x80\x02N.", **{"constants.pkl": raw}), "is a TorchScript archive"
    # Two readers, two pickles.
    with pytest.warns(UserWarning, match="Duplicate"):
        yield "optimizer.pt", archive(b"\x80\x02N.", **{"data.pkl": raw}), "a name stands there twice"
    yield "optimizer.pt", archive(b"\x80\x02N.", **{"DATA.pkl": raw}), "a name stands there twice"
    yield "optimizer.pt", archive(b"\x80\x02N.") + archive(raw), "no archive as torch.save writes it"
    yield "optimizer.pt", b"MZ" + archive(raw), "is broken or cut off"
    # Bombs.
    yield "optimizer.pt", archive(b"\x80\x02N.", b"0" * 99999, zipfile.ZIP_DEFLATED), "it is compressed"
    whole = archive(b"\x80\x02N.", b"0" * 200)
    at = whole.rindex(b"PK\x01\x02")
    overlap = whole[: at + 20] + struct.pack("<II", 1000, 1000) + whole[at + 28 :]
    yield "optimizer.pt", overlap, "its records overlap"
    yield "optimizer.pt", archive(tensor([1 << 40], [1]), bytes(4)), "a tensor that is larger than its data"
    yield "optimizer.pt", archive(tensor([1 << 40], [0]), bytes(4)), "a tensor that is larger than its data"
    yield "optimizer.pt", archive(tensor([2], [1 << 40]), bytes(4)), "a tensor that is larger than its data"
    yield "optimizer.pt", archive(tensor([1], [1], offset=9), bytes(4)), "a tensor that is larger than its data"
    yield "optimizer.pt", archive(tensor([1], [1], count=1 << 40), bytes(4)), "a tensor that is larger than its data"
    yield "optimizer.pt", archive(tensor([-1], [1]), bytes(4)), "would call torch._utils._rebuild_tensor_v2"
    yield (
        "optimizer.pt",
        archive(call("builtins.bytearray", b"\x8a\x05\x00\x00\x00\x00\x10")),
        "call builtins.bytearray",
    )
    yield "optimizer.pt", archive(call("torch.Tensor", b"\x8a\x05\x00\x00\x00\x00\x10")), "no checkpoint calls"
    doubling = b"(X\x01\x00\x00\x00aX\x03\x00\x00\x00hext"
    yield "optimizer.pt", archive(b"\x80\x02c_codecs\nencode\n" + doubling + b"R."), "would call _codecs.encode"
    yield "optimizer.pt", archive(b"\x80\x02X\xff\xff\xff\x7fabc."), "is broken or cut off"
    yield "optimizer.pt", archive(b"\x80\x02\x8b\xff\xff\xff\x7fabc."), "(LONG4)"
    yield "optimizer.pt", archive(b"\x80\x02Nr\xff\xff\xff\x7f."), "it leaves out places of its memo"
    yield "a/.metadata", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.", "is broken or cut off"
    yield "optimizer.pt", archive(b"\x80\x02)" + b"\x85" * 100_000 + b"."), "nested more than 100 deep"
    yield "optimizer.pt", archive(b"\x80\x02]q\x00h\x00a."), "holds itself"
    again = b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00(h\x00ctorch\nTensor\nq\x01"
    again = b"\x80\x02" + again + b"(h\x00h\x01" * 4999 + b")" + b"Nt" * 5000 + b"R."
    yield "optimizer.pt", archive(again), "would call torch._tensor._rebuild_from_type_v2"
    laughs = b"\x80\x02(]q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)) + b"t."
    yield "optimizer.pt", archive(laughs), "far more values than its size explains"
    yield "optimizer.pt", archive(b"\x80\x02(" + b"]" * 500_000 + b"t."), "far more values than its size explains"
    # Broken files.
    whole = saved({"state": torch.zeros(4)})
    for content in (b"", whole[:100], whole[:-1], whole[:-60], whole + b"0", b"\xff" * 99, archive(b""), archive(b"]")):
        yield "optimizer.pt", content, "optimizer.pt is"
    yield "optimizer.pt", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"
    # Files that lead to others.
    yield "latest", b"../../elsewhere", "names '../../elsewhere', which is no folder of the checkpoint"
    yield "pytorch_model.bin", saved({}), "is for pickled weights"
    yield "pytorch_model.bin.index.json", b"{}", "is for pickled weights"


def refuse(folder):
    """The message with which a checkpoint is refused, in little time."""
    began = time.process_time()
    with pytest.raises(ImpruverError) as caught:
        checks.check_pickles(folder, ADVICE, "key")
    assert time.process_time() - began < 30
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_forged_pickles_are_refused_and_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "STEPS", 100_000)
    ran = tmp_path / "ran"
    pickle.loads(pickle.dumps(Payload(f"touch {ran}")))
    assert ran.exists()  # the payload does what it says
    ran.unlink()
    cases = list(forge(f"touch {ran}"))
    assert len(cases) > 50
    for number, (name, content, said) in enumerate(cases):
        path = tmp_path / str(number) / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        message = refuse(tmp_path / str(number))
        assert said in message, (number, name, message)
        assert str(path) in message
        assert not ran.exists(), (number, name)


def test_what_is_no_file_is_refused(tmp_path):
    def place(name, make):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        make(folder / name)
        return refuse(folder)

    (tmp_path / "elsewhere").mkdir()
    assert "which is no ordinary file" in place("optimizer.pt", os.mkfifo)
    assert "which is no ordinary file" in place("optimizer.pt", lambda path: path.symlink_to("/dev/zero"))
    assert "can't be read" in place("optimizer.pt", lambda path: path.symlink_to("nothing"))
    assert "has a link to another folder" in place("global_step2", lambda path: path.symlink_to(tmp_path / "elsewhere"))
    assert "optimizer.pt can't be read" in place("optimizer.pt", lambda path: path.symlink_to(path))


def test_sizes_are_told_before_they_are_read(tmp_path):
    path = tmp_path / "optimizer.pt"
    with zipfile.ZipFile(path, "w") as file, file.open("optimizer/data.pkl", "w", force_zip64=True) as record:
        record.write(b"\x80\x02N.")
    content = path.read_bytes()
    at = content.rindex(b"PK\x01\x02")
    size = 10 << 30
    with path.open("r+b") as file:  # a file of 10 GiB, of which next to nothing is on the disk
        file.seek(size)
        wide = struct.pack("<HHQQ", 1, 16, size - 100, size - 100)
        names = b"optimizer/data.pkl"
        header = content[at : at + 20] + b"\xff" * 8 + struct.pack("<HHHHHII", len(names), len(wide), 0, 0, 0, 0, 0)
        directory = header + names + wide
        file.write(directory + b"PK\x06\x06" + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, 1, 1, len(directory), size))
        file.write(b"PK\x06\x07" + struct.pack("<IQI", 0, size + len(directory), 1))
        file.write(b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 1, 1, len(directory), 0xFFFFFFFF, 0))
    assert "has a pickle of 10,737,418,140 bytes" in refuse(tmp_path)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_shards_are_read_from_beside_their_metadata_alone(tmp_path):
    from torch.distributed import checkpoint

    ran = tmp_path / "ran"
    folder = tmp_path / "checkpoint/optimizer_0"
    state = {"weights": torch.ones(3), "lr": 0.1, "betas": (0.9, 0.99), "name": "adam"}
    checkpoint.save({"optimizer": state}, storage_writer=checkpoint.FileSystemWriter(folder), no_dist=True)
    checks.check_pickles(folder.parent, ADVICE)
    genuine = pickle.loads((folder / ".metadata").read_bytes())
    evil = saved(Payload(f"touch {ran}"))
    (folder / "evil.distcp").write_bytes(b"...." + evil)
    (tmp_path / "evil.distcp").write_bytes(evil)

    def forge(**fields):
        metadata = pickle.loads(pickle.dumps(genuine))
        place = next(iter(metadata.storage_data.values()))
        vars(place).update(fields)
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        return refuse(folder.parent)

    inside = {"relative_path": "evil.distcp", "offset": 4, "length": len(evil)}
    assert "would import posix.system" in forge(**inside)
    assert "data that is not beside it" in forge(relative_path="../../evil.distcp", offset=0)
    assert "data that is not beside it" in forge(relative_path=str(tmp_path / "evil.distcp"), offset=0)
    assert "no plain data" in forge(transform_descriptors=["zstd"])
    assert "data behind the end of __0_0.distcp" in forge(offset=1 << 70)
    assert "can't be read" in forge(relative_path="other.distcp")
    for name, metadata in genuine.state_dict_metadata.items():  # another class with the attributes of a place
        if type(metadata).__name__ == "BytesStorageMetadata":
            vars(metadata).update(inside)
            genuine.storage_data[next(index for index in genuine.storage_data if index.fqn == name)] = metadata
            break
    assert "gives torch.distributed.checkpoint.metadata.BytesStorageMetadata a state" in forge()
    assert not ran.exists()


def make_optimizer_state():
    """What optimizers keep: tensors of any kind, tensors with attributes (bitsandbytes), views, plain values."""
    paged = torch.zeros(4, 4, dtype=torch.uint8)
    paged.is_paged, paged.page_deviceid = True, 0
    base = torch.arange(12.0).reshape(3, 4)
    kinds = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "uint16", "bool")
    kinds += ("float8_e4m3fn", "float8_e5m2", "complex64", "complex128", "uint32", "uint64")
    state = {name: torch.zeros(5, dtype=getattr(torch, name)) for name in kinds}
    state |= {"paged": paged, "row": base[1], "transposed": base.T, "all": base, "none": torch.zeros(0, 7)}
    state |= {
        "parameter": torch.nn.Parameter(torch.zeros(2)),
        "number": torch.tensor(3),
        "large": 1 << 70,
        "set": {1, 2},
    }
    state |= {
        "bytes": b"\x00\xff",
        "array": bytearray(b"12"),
        "empty": bytearray(),
        "complex": 1j,
        "counter": Counter("aab"),
        "inf": -1e999,
    }
    weights = torch.nn.Linear(2, 2).state_dict()  # an OrderedDict with attributes
    groups = [
        {"lr": 1e-3, "betas": (0.9, 0.99), "params": [0, 1], "device": torch.device("cpu"), "dtype": torch.float16}
    ]
    return {
        "state": {0: state, 1: OrderedDict(a=None)},
        "param_groups": groups,
        "shape": torch.zeros(2).shape,
        2: weights,
    }


def test_what_optimizers_and_generators_keep_passes(tmp_path):
    torch.save(make_optimizer_state(), tmp_path / "optimizer.pt")
    states = {"python": random.getstate(), "numpy": numpy.random.get_state(), "cpu": torch.get_rng_state()}
    torch.save(states | {"cuda": [torch.get_rng_state()] * 2}, tmp_path / "rng_state_1.pth")
    (tmp_path / "mine.pkl").write_bytes(pickle.dumps({"seen": [1, 2.5, "text", b"bytes"]}))
    checks.check_pickles(tmp_path, ADVICE)


@pytest.fixture
def deepspeed(monkeypatch):
    """The class of DeepSpeed's that its checkpoints always have; the package itself is not among ours."""
    name = ""
    for part in ("deepspeed", "runtime", "fp16", "loss_scaler"):
        name = f"{name}.{part}".strip(".")
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
    module.LossScaler = type("LossScaler", (), {"__module__": name})
    return module


def test_what_deepspeed_keeps_passes_in_its_own_folder(tmp_path, deepspeed):
    scaler = deepspeed.LossScaler()
    scaler.cur_scale = 1.0
    (tmp_path / "global_step2").mkdir()
    torch.save({"loss_scaler": scaler}, tmp_path / "global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (tmp_path / "latest").write_text("global_step2")
    checks.check_pickles(tmp_path, ADVICE)
    torch.save({"loss_scaler": scaler}, tmp_path / "optimizer.pt")
    assert "would import deepspeed.runtime.fp16.loss_scaler.LossScaler" in refuse(tmp_path)


def test_training_arguments_pass_whatever_they_say(tmp_path):
    from transformers import GenerationConfig, Seq2SeqTrainingArguments, TrainingArguments

    common = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    many = {"debug": "underflow_overflow", "eval_strategy": "epoch", "lr_scheduler_kwargs": {"a": [1]}, "bf16": True}
    generation = GenerationConfig(max_new_tokens=3)
    for arguments in (
        TrainingArguments(**common),
        TrainingArguments(**common, **many),
        Seq2SeqTrainingArguments(**common, generation_config=generation),
    ):
        torch.save(arguments, tmp_path / "training_args.bin")
        checks.check_pickles(tmp_path, ADVICE)
    torch.save({"state": common | {"scheduler": GenerationConfig()}}, tmp_path / "scheduler.pt")
    assert "scheduler.pt would import transformers.generation.configuration_utils" in refuse(tmp_path)
