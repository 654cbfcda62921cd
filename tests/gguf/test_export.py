"""What stands in gguf/ after a run, what is replaced, and what is left where a run ends badly."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from math import prod
from pathlib import Path

import psutil
import pytest
from impruver_gguf import export
from impruver_gguf.conversion import artifacts
from impruver_gguf.conversion.plan import plan_existing_file
from impruver_gguf.quantization import quantize
from safetensors import safe_open
from support.cli import wait_for
from support.models import QUICKSTART, edit_json, edit_weights, make_gpt2, make_llama, save_adapter
from support.oracles import write_program
from support.recipes import write_adapter_recipe

ALL = ["f16", "q8_0", "q5_0", "q4_0", "q4_k_m", "q2_k"]


def names(folder):
    return sorted(path.name for path in (folder / "gguf").iterdir()) if (folder / "gguf").is_dir() else []


def test_default_levels_with_their_modelfiles(tiny, gguf):
    (tiny / "recipe.yaml").write_text("{}", encoding="utf-8")
    code, out, told = gguf("--output_dir", tiny)
    assert code == 0, told
    assert names(tiny) == sorted(
        ["impruver.json", *(f"model-{level}.gguf" for level in ALL), *(f"Modelfile.{level}" for level in ALL)]
    )
    assert f"ollama create NAME -f {tiny / 'gguf' / 'Modelfile.q8_0'}" in out.splitlines()[-1]
    manifest = json.loads((tiny / "gguf" / "impruver.json").read_text(encoding="utf-8"))
    assert manifest["impruver"] == 1
    assert manifest["tool"] == "impruver-gguf"
    assert {entry["path"] for entry in manifest["outputs"]} == {*names(tiny)} - {"impruver.json"}
    for entry in manifest["outputs"]:
        content = (tiny / "gguf" / entry["path"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_levels_are_what_the_library_makes_of_the_f16_file(tiny, gguf, tmp_path):
    from cyllama.llama import llama_cpp

    assert gguf("--output_dir", tiny, "--quantization_levels", "Q4_K_M")[0] == 0
    assert "model-q4_k_m.gguf" in names(tiny)
    settings = llama_cpp.LlamaModelQuantizeParams()
    settings.ftype = 15
    llama_cpp.model_quantize(str(tiny / "gguf/model-f16.gguf"), str(tmp_path / "ours.gguf"), settings)
    assert (tiny / "gguf/model-q4_k_m.gguf").read_bytes() == (tmp_path / "ours.gguf").read_bytes()


@pytest.mark.parametrize("outtype", ["bf16", "f32"])
def test_levels_of_another_outtype(outtype, tiny, gguf):
    from gguf import GGUFReader

    code, _, told = gguf("--output_dir", tiny, "--set", f"gguf.outtype={outtype}", "--quantization_levels", "q4_0")
    assert code == 0, told
    made = [f"Modelfile.{outtype}", "Modelfile.q4_0", "impruver.json", f"model-{outtype}.gguf", "model-q4_0.gguf"]
    assert names(tiny) == sorted(made)
    kinds = {tensor.tensor_type.name for tensor in GGUFReader(tiny / f"gguf/model-{outtype}.gguf").tensors}
    assert kinds == {"F32", outtype.upper()}
    assert GGUFReader(tiny / "gguf/model-q4_0.gguf").fields["general.file_type"].contents() == 2


def test_q8_0_is_no_source_of_other_levels(tiny, gguf):
    code, _, told = gguf("--output_dir", tiny, "--set", "gguf.outtype=q8_0", "--quantization_levels", "q8_0", "q4_0")
    assert code == 2
    assert "q4_0 can't be made of q8_0" in told
    assert gguf("--output_dir", tiny, "--set", "gguf.outtype=q8_0")[0] == 0  # its recipe asks for the level q8_0
    assert names(tiny) == ["Modelfile.q8_0", "impruver.json", "model-q8_0.gguf"]


def test_a_level_that_a_flag_names_wins_over_the_recipe(tiny, gguf):
    assert gguf("--output_dir", tiny, "--set", "gguf.quantization_levels=[Q4_0]")[0] == 0
    assert {"model-f16.gguf", "model-q4_0.gguf"} == {name for name in names(tiny) if name.endswith(".gguf")}


def test_a_second_run_replaces_its_own_and_nothing_else(tiny, gguf):
    assert gguf("--output_dir", tiny)[0] == 0
    made = (tiny / "gguf/model-q8_0.gguf").stat()
    before = (tiny / "gguf/model-q8_0.gguf").read_bytes()
    code, _, told = gguf("--output_dir", tiny, "--quantization_levels", "q4_0")
    assert code == 0
    assert "earlier run" not in told  # it is of the same model
    assert (tiny / "gguf/model-q8_0.gguf").read_bytes() == before
    assert gguf("--output_dir", tiny)[0] == 0  # q8_0 is still known as ours
    assert (tiny / "gguf/model-q8_0.gguf").stat().st_mtime_ns == made.st_mtime_ns  # and not made again
    (tiny / "gguf/model-q8_0.gguf").write_bytes(b"mine")
    code, _, told = gguf("--output_dir", tiny)
    assert code == 2
    assert "changed since" in told
    assert (tiny / "gguf/model-q8_0.gguf").read_bytes() == b"mine"
    assert gguf("--output_dir", tiny, "--overwrite")[0] == 0
    assert (tiny / "gguf/model-q8_0.gguf").read_bytes() == before


def test_a_run_after_another_training_names_what_is_not_new(tiny, gguf):
    assert gguf("--output_dir", tiny)[0] == 0
    before = (tiny / "gguf/model-f16.gguf").read_bytes()
    edit_weights(tiny / "model.safetensors", lambda tensors: tensors["model.norm.weight"].fill(2))
    code, _, told = gguf("--output_dir", tiny, "--quantization_levels", "q4_0")
    assert code == 0, told
    assert "model-q8_0.gguf in" in told
    assert "model-q4_0.gguf in" not in told
    assert (tiny / "gguf/model-f16.gguf").read_bytes() != before


def test_a_run_that_makes_nothing_anew_needs_no_room(tiny, gguf, free_room):
    """As after a full disk while proving: what is whole and the same stays, and is not counted again."""
    from impruver_gguf.export import RESERVED_BYTES

    assert gguf("--output_dir", tiny, "--quantization_levels", "q8_0", "q4_0")[0] == 0
    made = {path.name: path.stat().st_ino for path in (tiny / "gguf").glob("*.gguf")}
    free_room(RESERVED_BYTES + 10)
    code, _, told = gguf("--output_dir", tiny, "--quantization_levels", "q8_0", "q4_0")
    assert code == 0, told
    assert "the same byte for byte, and kept" in told
    assert {path.name: path.stat().st_ino for path in (tiny / "gguf").glob("*.gguf")} == made
    assert gguf("--output_dir", tiny, "--quantization_levels", "q8_0", "q5_0")[0] == 2


def test_only_quantize(tiny, gguf):
    code, _, told = gguf("--output_dir", tiny, "--only_quantize")
    assert code == 2
    assert "model-f16.gguf is not there" in told
    assert names(tiny) == []
    assert gguf("--output_dir", tiny, "--quantization_levels")[0] == 0
    made = (tiny / "gguf/model-f16.gguf").stat()
    (tiny / "model.safetensors").unlink()
    code, _, told = gguf("--output_dir", tiny, "--only_quantize")
    assert code == 0, told
    assert "model-q8_0.gguf" in names(tiny)
    assert (tiny / "gguf/model-f16.gguf").stat().st_mtime_ns == made.st_mtime_ns
    (tiny / "gguf/model-f16.gguf").write_bytes(b"GGUF")
    code, _, told = gguf("--output_dir", tiny, "--only_quantize")
    assert code == 2
    assert "no GGUF file" in told


def test_dry_run_tells_and_writes_nothing(tiny, adapter, gguf):
    code, out, _ = gguf("--output_dir", tiny, "--dry_run")
    assert code == 0
    assert "pre-tokenizer gpt-2" in out
    assert "model-q8_0.gguf" in out
    code, out, _ = gguf("--output_dir", adapter, "--dry_run")
    assert code == 0
    assert "the adapter merged into" in out
    assert names(tiny) == names(adapter) == []


def before_training(tmp_path, **recipe):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"output_dir": str(tmp_path / "later"), **recipe}), encoding="utf-8")
    return "--config", path, "--dry_run"


def test_dry_run_before_training_is_a_note(tmp_path, gguf):
    flags = before_training(tmp_path)
    code, out, _ = gguf(*flags)
    assert code == 0
    assert "holds no model yet" in out
    assert "can't be told yet: neither model.name nor model.config_class" in out
    assert gguf(*flags[:2])[0] == 2


def test_dry_run_before_training_tells_whether_it_will_convert(tmp_path, tiny_base, gguf):
    flags = before_training(tmp_path, model={"name": str(tiny_base)}, lora={"r": 4})
    code, out, told = gguf(*flags)
    assert code == 0, told
    assert "holds no model yet" in out
    assert "2,048 tokens, pre-tokenizer gpt-2" in out
    assert "model-q2_k.gguf" in out
    assert not (tmp_path / "later").exists()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Puts files of a folder into the hub's cache as a repository of this name; the network is off."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def cached(name: str, folder: Path, files: str) -> None:
        place = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        snapshot = place / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (place / "refs").mkdir()
        (place / "refs/main").write_text("0" * 40, encoding="utf-8")
        for path in folder.glob(files):
            shutil.copyfile(path, snapshot / path.name)

    return cached


@pytest.mark.parametrize("files", ["*.json", "*"])
def test_dry_run_before_training_of_a_base_on_the_hub(files, tmp_path, tiny_base, gguf, hub):
    hub("some/base", tiny_base, files)
    code, out, told = gguf(*before_training(tmp_path, model={"name": "some/base"}, lora={"r": 4}))
    assert code == 0, told
    assert "2,048 tokens, pre-tokenizer gpt-2" in out
    assert ("by its configuration alone" in out) == (files == "*.json")
    rows = [line.split() for line in out.splitlines() if line.startswith("model-")]
    assert (
        gguf("--output_dir", shutil.copytree(tiny_base, tmp_path / "later"), "--config", tmp_path / "recipe.yaml")[0]
        == 0
    )
    real = tmp_path / "later/gguf/model-f16.gguf"
    assert rows[0] == ["model-f16.gguf", f"{real.stat().st_size / 1e6:,.1f}"]
    assert f"{sum(prod(shape) for shape in plan_existing_file(real).shapes.values()):,} parameters" in out


# Weights alone tell whether layers have scales, keys that nothing reads, and layers that predict further tokens.
WITH_MORE = ("gemma4", "qwen35")


def test_what_is_told_of_a_configuration_alone_is_what_comes(cases):
    from impruver_gguf.conversion.llama_cpp_tools import LlamaCppPaths
    from impruver_gguf.conversion.plan import plan_conversion
    from impruver_gguf.weights.checkpoint import make_checkpoint, read_checkpoint

    for name, folder in cases.items():
        told = plan_conversion(make_checkpoint(folder, {}, None, folder), folder, LlamaCppPaths(), "f16")
        comes = plan_conversion(read_checkpoint(folder, None, None), folder, LlamaCppPaths(), "f16")
        if told.shapes.keys() < comes.shapes.keys() and name.startswith(WITH_MORE):
            assert told.shapes.items() <= comes.shapes.items(), name
            assert comes.file_bytes * 0.75 < told.file_bytes <= comes.file_bytes, name
            continue
        planned = (told.shapes, told.file_bytes, told.header_bytes)
        assert planned == (comes.shapes, comes.file_bytes, comes.header_bytes), name


def test_dry_run_before_training_says_what_it_could_not_see(tmp_path, tiny_base, gguf, hub):
    for name in ("some/unknown", "./nowhere"):
        code, out, told = gguf(*before_training(tmp_path, model={"name": name}))
        assert code == 0, told
        assert f"whether it will convert can't be told yet: {name} is " in out
    hub("some/tokenizer", tiny_base, "tok*.json")
    code, out, _ = gguf(*before_training(tmp_path, model={"name": "some/tokenizer"}))
    assert code == 0
    assert "has no config.json" in out


@pytest.mark.parametrize("change", [{"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, {"hidden_act": "relu"}])
def test_dry_run_before_training_refuses_by_configuration_alone(change, tmp_path, tiny, gguf, hub):
    edit_json(tiny / "config.json", rope_parameters=None, **change)
    hub("some/base", tiny, "*.json")
    code, _, told = gguf(*before_training(tmp_path, model={"name": "some/base"}))
    assert code == 2
    assert "LlamaForCausalLM with" in told


def test_dry_run_before_training_from_scratch(tmp_path, tiny_base, gguf):
    model = {"class": "transformers.AutoModelForCausalLM", "config_class": "transformers.LlamaConfig"}
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    recipe = {"model": model | {"config": sizes}, "tokenizer": {"name": str(tiny_base)}}
    code, out, told = gguf(*before_training(tmp_path, **recipe))
    assert code == 0, told
    assert "llama, " in out
    assert "2,048 tokens, pre-tokenizer gpt-2" in out
    recipe["model"]["config"] = sizes | {"num_key_value_heads": 3}
    code, _, told = gguf(*before_training(tmp_path, **recipe))
    assert code == 2
    assert "model.config: num_attention_heads 4 is no multiple" in told


def test_a_dry_run_brings_no_weights(adapter, tiny_base, tmp_path, gguf, hub):
    """The adapter's base is on the hub: its configuration is enough to tell."""
    hub("some/base", tiny_base, "config.json")
    flags = ("--output_dir", adapter, "--set", "model.name=some/base")
    code, out, told = gguf(*flags, "--dry_run")
    assert code == 0, told
    assert "by its configuration alone" in out
    assert gguf(*flags)[0] == 2


def test_dry_run_before_training_with_a_larger_tokenizer(tmp_path, tiny_base, cases, gguf):
    """Training gives the model a row for each token."""
    names = {"model": {"name": str(tiny_base)}, "tokenizer": {"name": str(cases["qwen2"])}}
    code, out, told = gguf(*before_training(tmp_path, **names))
    assert code == 0, told
    assert "2,049 tokens" in out


@pytest.mark.parametrize(
    ("case", "recipe", "word"),
    [
        ("tiny", {"lora": {"init_lora_weights": "pissa"}}, "init_lora_weights pissa"),
        ("new", {}, "NewForCausalLM is not converted here"),
        ("pieces", {}, "copy the base's tokenizer.model"),
    ],
)
def test_dry_run_before_training_tells_what_will_not_convert(case, recipe, word, tmp_path, tiny, cases, gguf):
    if case == "new":
        edit_json(tiny / "config.json", architectures=["NewForCausalLM"])
    if case == "pieces":
        shutil.copyfile(cases["llama-sp"] / "tokenizer.json", tiny / "tokenizer.json")
    code, _, told = gguf(*before_training(tmp_path, model={"name": str(tiny)}, **recipe))
    assert code == 2
    assert word in told


def test_room_is_checked_before_training(tmp_path, tiny_base, gguf, free_room):
    free_room(10**6)
    code, _, told = gguf(*before_training(tmp_path, model={"name": str(tiny_base)}))
    assert code == 2
    assert "are needed" in told


def test_estimates_are_near(tiny, gguf):
    from impruver_gguf.quantization.quant_types import estimate_bytes

    assert gguf("--output_dir", tiny, "--quantization_levels", *ALL[1:])[0] == 0
    shapes = plan_existing_file(tiny / "gguf/model-f16.gguf").shapes
    for level in ALL[1:]:
        real = (tiny / f"gguf/model-{level}.gguf").stat().st_size - 100_000  # less the vocabulary
        assert 0.75 * real < estimate_bytes(level, shapes) < 1.6 * real, level


def test_room_is_checked_first(tiny, gguf, free_room):
    free_room(10**6)
    for flags in ((), ("--dry_run",)):
        code, _, told = gguf("--output_dir", tiny, *flags)
        assert code == 2
        assert "are needed" in told
        assert "Traceback" not in told
    assert names(tiny) == []


@pytest.mark.parametrize("megabytes", [0.02, 0.5, 1.0])
def test_a_full_disk_leaves_nothing(megabytes, tiny, gguf, small_disk, free_room):
    """Full in the header, in the tensors, while quantizing: another program took the room that was there."""
    (tiny / "gguf").symlink_to(small_disk(int(megabytes * 1e6)))
    free_room(10**9)
    code, _, told = gguf("--output_dir", tiny)
    assert code == 2, told
    assert "make room" in told
    assert str(tiny / "gguf") in told
    assert "Traceback" not in told
    assert names(tiny) == []


def test_a_stop_while_the_manifest_is_made_leaves_nothing(tiny, gguf, monkeypatch):
    def stopped(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(export, "build_manifest", stopped)
    code, _, told = gguf("--output_dir", tiny, "--quantization_levels")
    assert code == 2, told
    assert names(tiny) == []


def test_an_error_while_levels_are_made_ends_the_quantizer_and_leaves_nothing(tiny, gguf, monkeypatch):
    """The first level is described while the next ones are made: here in a process that would be at work for long."""
    build = quantize._build_commands
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(quantize, "_build_commands", lambda *how: build(*how) | {"q4_0": slow})
    started = []

    def described(path, **_):
        started.extend(psutil.Process().children())
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(artifacts, "describe_file", described)
    code, _, told = gguf("--output_dir", tiny, "--quantization_levels", "q8_0", "q4_0")
    assert code == 2, told
    assert "Input/output error" in told
    assert len(started) == 1
    assert not started[0].is_running()
    assert names(tiny) == []


def test_a_broken_manifest_of_an_earlier_run(tiny, gguf):
    path = tiny / "gguf" / "impruver.json"
    path.parent.mkdir()
    path.write_text('{"impruver": 1, "outputs": [{}]}', encoding="utf-8")
    code, _, told = gguf("--output_dir", tiny)
    assert code == 2, told
    assert "gguf/impruver.json: not a manifest" in told
    assert names(tiny) == ["impruver.json"]
    code, _, told = gguf("--output_dir", tiny, "--overwrite")
    assert code == 0, told
    assert "gguf/impruver.json: can't be read, and is replaced" in told
    assert gguf("--output_dir", tiny)[0] == 0


def test_dry_run_tells_the_sizes_as_they_come(tiny, gguf):
    _, planned, _ = gguf("--output_dir", tiny, "--dry_run")
    _, made, _ = gguf("--output_dir", tiny)
    sizes = [dict(line.split() for line in out.splitlines() if ".gguf " in line) for out in (planned, made)]
    assert sizes[0]["model-f16.gguf"] == sizes[1]["model-f16.gguf"]
    assert float(sizes[0]["model-q8_0.gguf"]) == pytest.approx(float(sizes[1]["model-q8_0.gguf"]), rel=0.02)


def test_a_failing_quantizer_leaves_nothing_and_tells_its_words(tiny, gguf, tmp_path):
    program = tmp_path / "llama-quantize"
    write_program(program, "#!/bin/sh\necho half > $2\necho 'it broke' >&2\nexit 7\n")
    code, _, told = gguf("--output_dir", tiny, "--llama_cpp_quantize_bin", program)
    assert code == 2
    assert "exit 7" in told
    assert "it broke" in told
    assert names(tiny) == []


def test_a_quantizer_that_is_named_is_used(tiny, gguf, tmp_path):
    program = tmp_path / "llama-quantize"
    write_program(program, '#!/bin/sh\necho "$3" > "$2"\n')
    assert gguf("--output_dir", tiny, "--llama_cpp_quantize_bin", program)[0] == 0
    assert (tiny / "gguf/model-q8_0.gguf").read_text(encoding="utf-8") == "q8_0\n"


@pytest.mark.parametrize(("stop", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGKILL", -9)])
def test_a_stop_leaves_nothing_under_a_final_name(stop, code, tiny, tmp_path, gguf):
    program = tmp_path / "llama-quantize"
    write_program(program, "#!/bin/sh\necho half > $2\nexec sleep 20\n")
    command = [sys.executable, "-m", "impruver_gguf", "--output_dir", tiny, "--llama_cpp_quantize_bin", program]
    process = subprocess.Popen([*command, "--verify", "false"], stderr=subprocess.PIPE, text=True)
    wait_for((tiny / "gguf/.model-q8_0.gguf.staged").exists, process)
    process.send_signal(getattr(signal, stop))
    assert process.wait(20) == code
    process.stderr.close()
    assert [name for name in names(tiny) if not name.endswith(".staged")] == []
    assert names(tiny) == [] or stop == "SIGKILL"
    assert gguf("--output_dir", tiny)[0] == 0
    assert names(tiny) == ["Modelfile.f16", "Modelfile.q8_0", "impruver.json", "model-f16.gguf", "model-q8_0.gguf"]


@pytest.mark.parametrize("outtype", ["f16", "bf16", "f32", "q8_0"])
def test_nan_is_named(outtype, tiny, gguf):
    def spoil(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")

    edit_weights(tiny / "model.safetensors", spoil)
    code, _, told = gguf("--output_dir", tiny, "--set", f"gguf.outtype={outtype}")
    assert code == 3
    assert "blk.1.ffn_up.weight holds NaN" in told
    assert names(tiny) == []


SCRIPT = """
import json, pathlib, sys
from safetensors.numpy import load_file
folder, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[3])
tensors = load_file(folder / "model.safetensors")
kinds = sorted({f"{len(v.shape)}:{v.dtype}" for v in tensors.values()})
assert "quantization_config" not in json.loads((folder / "config.json").read_text())
told = [folder.name, sorted(p.name for p in folder.iterdir() if p.suffix != ".safetensors"), kinds, sys.argv[4:]]
target.write_text(json.dumps(told))
"""


def test_another_architecture_goes_through_llama_cpps_script(adapter, gguf, tmp_path, monkeypatch):
    quantized = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit_json(adapter / "config.json", architectures=["NewForCausalLM"], quantization_config=quantized)
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    (folder / "convert_hf_to_gguf.py").write_text(SCRIPT, encoding="utf-8")
    monkeypatch.setenv("LLAMA_CPP_DIR", str(folder))
    code, _, told = gguf("--output_dir", adapter)
    assert code == 0, told
    name, files, kinds, flags = json.loads((adapter / "gguf/model-f16.gguf").read_text(encoding="utf-8"))
    assert name == "adapter"
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert not {"adapter_config.json", "recipe.yaml"} & set(files)
    assert kinds == ["1:float32", "2:float16"]
    assert flags == ["--outtype", "f16"]
    assert names(adapter) == ["Modelfile.f16", "impruver.json", "model-f16.gguf"]


KEEPS = (
    "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[3] + '.kept'); shutil.copyfile(__file__, sys.argv[3])"
)


def test_the_script_gets_untied_heads_and_other_outtypes(tmp_path, gguf, monkeypatch):
    make_llama(tmp_path / "base", QUICKSTART, vocab_size=2048, tie_word_embeddings=True)
    save_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=["lm_head"])
    for name in ("base", "adapter"):
        edit_json(tmp_path / name / "config.json", architectures=["NewForCausalLM"])
    write_adapter_recipe(tmp_path / "adapter", tmp_path / "base")
    (tmp_path / "convert_hf_to_gguf.py").write_text(KEEPS, encoding="utf-8")
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    for outtype, kind in (("bf16", "BF16"), ("f32", "F32"), ("q8_0", "F16")):
        code, _, told = gguf("--output_dir", tmp_path / "adapter", "--set", f"gguf.outtype={outtype}")
        assert code == 0, told
        kept = next(tmp_path.glob(f"adapter/gguf/*{outtype}*.kept"))
        assert json.loads((kept / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"] is False
        with safe_open(kept / "model.safetensors", "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
        assert {"lm_head.weight", "model.embed_tokens.weight"} <= slices.keys()
        kinds = {(len(part.get_shape()), part.get_dtype()) for part in slices.values()}
        assert kinds == {(1, "F32"), (2, kind)}


def test_llama_cpps_own_script_on_a_merge(llama_cpp_source, smollm2, adapter, tiny, gguf):
    """The same adapter through the script and through us: only the architecture's name sent it there."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(smollm2 / name, adapter / name)
    edit_json(adapter / "config.json", architectures=["VLlama3ForCausalLM"], vocab_size=49152)
    code, _, told = gguf("--output_dir", adapter, "--llama_cpp", llama_cpp_source)
    assert code == 0, told
    theirs = tensors(adapter)
    shutil.rmtree(adapter / "gguf")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny / name, adapter / name)
    edit_json(adapter / "config.json", architectures=["LlamaForCausalLM"], vocab_size=2048)
    assert gguf("--output_dir", adapter)[0] == 0
    assert tensors(adapter) == theirs


def tensors(folder):
    from gguf import GGUFReader

    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(folder / "gguf/model-f16.gguf").tensors}


def test_tensors_that_a_level_does_not_fit_are_named(tiny, gguf):
    code, _, told = gguf("--output_dir", tiny, "--quantization_levels", "q4_k_m", "Q8_0")
    assert code == 0, told
    assert "q4_k_m: its blocks of 256 values do not fit these tensors, which fall back: " in told
    assert "blk.*.attn_q.weight (64 values a row): q5_0" in told
    assert "blk.*.ffn_down.weight (96 values a row): " in told
    assert "q8_0: its blocks" not in told


@pytest.fixture(scope="module")
def wide_f16(tmp_path_factory):
    """A model whose rows fit every level."""
    from impruver_gguf.cli import main
    from support.models import QUICKSTART, make_llama

    folder = tmp_path_factory.mktemp("wide") / "wide"
    make_llama(folder, QUICKSTART, vocab_size=2048, hidden_size=256, intermediate_size=512)
    (folder / "recipe.yaml").write_text("gguf: {quantization_levels: []}\n", encoding="utf-8")
    assert main(["--output_dir", str(folder), "--verify", "false"]) == 0
    return folder


def test_every_level_that_llama_cpp_names(wide_f16, gguf):
    from impruver_core.io.gguf_file import read_gguf_header
    from impruver_gguf.quantization.quant_types import QUANT_TYPES, WITH_IMATRIX

    levels = [level for level in QUANT_TYPES if level not in WITH_IMATRIX]
    code, _, told = gguf("--output_dir", wide_f16, "--only_quantize", "--quantization_levels", *levels)
    assert code == 0, told
    assert "fall back" not in told
    for level in levels:
        tensors = read_gguf_header(wide_f16 / f"gguf/model-{level}.gguf").tensors
        kinds = {tensor.type.lower() for tensor in tensors}
        family = "q8" if level == "mxfp4_moe" else level.partition("_")[0]  # that one is for experts
        assert family in {kind.partition("_")[0] for kind in kinds}, (level, kinds)


@pytest.mark.parametrize(
    ("level", "words"),
    [("IQ2_XS", "needs an importance matrix"), ("f32", "gguf.outtype"), ("q4_k_x", "did you mean q4_k_")],
)
def test_levels_that_are_none(level, words, tiny, gguf):
    code, _, told = gguf("--output_dir", tiny, "--quantization_levels", level)
    assert code == 2
    assert words in told
    assert names(tiny) == []


def test_the_context_of_gpt2_is_the_positions_that_it_has(tmp_path, gguf):
    """The first impruver's nanoGPT has an n_ctx of its own, which transformers reads no more."""
    from gguf import GGUFReader

    make_gpt2(tmp_path / "gpt2", QUICKSTART, vocab_size=2048)
    edit_json(tmp_path / "gpt2/config.json", n_ctx=64)
    (tmp_path / "gpt2/recipe.yaml").write_text("gguf: {quantization_levels: []}\n", encoding="utf-8")
    code, _, err = gguf("--output_dir", tmp_path / "gpt2")
    assert code == 0, err
    fields = GGUFReader(tmp_path / "gpt2/gguf/model-f16.gguf").fields
    assert fields["gpt2.context_length"].contents() == 128
