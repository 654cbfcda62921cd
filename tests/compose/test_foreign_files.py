"""What strangers put beside outputs: forged journals are refused, links are replaced and never followed."""

import bz2
import gzip
import lzma

import pytest
from support.attacks import place_journals


def test_forged_journals_are_refused(compose, files, tmp_path):
    files.write("data.jsonl", files.unlike(4))
    for what, out in place_journals(tmp_path, "train.jsonl.manifest.json", "train.jsonl", tmp_path / "profile"):
        paths = {"train_path": f"{out}/train.jsonl", "val_path": f"{out}/val.jsonl"}
        done = compose("--overwrite", **paths)
        assert (what, done.code) == (what, 2), done.err
        assert "train.jsonl.manifest.json.pending: Impruver did not write this" in done.err
        (tmp_path / "recipe.yaml").unlink()


def test_links_in_place_of_outputs_are_replaced_and_not_followed(composed, files, tmp_path):
    files.write("data.jsonl", files.unlike(4))
    out = tmp_path / "out"
    out.mkdir()
    names = ["train.jsonl", "val.jsonl", "train.dropped.jsonl", "train.report.html", "train.jsonl.manifest.json"]
    for name in [*names, *(f".{name}.staged" for name in names)]:
        (tmp_path / f"mine.{name}").write_text("mine")
        (out / name).symlink_to(tmp_path / f"mine.{name}")
    done = composed("--overwrite")
    assert {path.read_text() for path in tmp_path.glob("mine.*")} == {"mine"}
    assert not any(path.is_symlink() for path in out.iterdir() if path.name in names)
    assert len(done.train) == 4


def test_a_converter_is_found_beside_the_recipe_alone(compose, files, tmp_path, monkeypatch):
    files.write("data.jsonl", [{"a": "x"}])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "stranger.py").write_text("open('ran', 'w')\ndef convert(row, mapping): return []\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for converter in ("stranger.convert", "subprocess.call", "os.system", "builtins.print"):
        done = compose(data={"name": str(tmp_path / "data.jsonl"), "converter": converter})
        assert done.code == 2
        assert f"converter: {converter}" in done.err
    assert not (tmp_path / "elsewhere" / "ran").exists()


def write_parquet(path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["x" * 1000] * 80_000}), path)


def write_compressed(path):
    opener = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}[path.suffix]
    with opener(path, "wb") as file:
        file.write(b"text\n" + (b"x" * 1000 + b"\n") * 50_000)


@pytest.mark.parametrize("name", ["a.parquet", "a.csv.gz", "a.txt.xz", "a.tsv.bz2"])
def test_a_small_file_that_unpacks_to_a_large_one(name, compose, tmp_path):
    path = tmp_path / name
    write_parquet(path) if name == "a.parquet" else write_compressed(path)
    done = compose(datasets=[{"name": name, "converter": "impruver.text"}])
    assert done.code == 2
    assert f"{path}: it unpacks to more than 200 times its size" in done.err
    assert not (tmp_path / "out" / "train.jsonl").exists()


LOOPS = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
SLOW = "{% if messages|length > 2 %}" + LOOPS + "{% endif %}"


def test_a_template_that_takes_for_ever_stops_the_run(compose, files, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("impruver_core.chat_template.rendering.limits.SECONDS", 0.2)
    rows = [files.chat(f"a{number}", "b", "c", "d") for number in range(20)]
    files.write("data.jsonl", [files.chat("a", "b")] * 3 + rows)
    (tmp_path / "slow.jinja").write_text(SLOW + tokenizer.chat_template)
    done = compose("--num_proc", "1", tokenizer={"chat_template": "slow.jinja"})
    assert done.code == 2, done.err
    assert "the chat template takes too long, for one row after another" in done.err
