"""Folders as repositories, `save_to_disk` and people lay them out: the split that is asked for, or a refusal."""

import os

import pytest

CONFIGS = """---
license: mit
configs:
- config_name: en
  data_files:
  - split: train
    path: en/*.jsonl
  - split: test
    path:
    - held/en.jsonl
    - held/x-*.jsonl
- config_name: de
  data_dir: de
- config_name: everything
  default: true
  data_files: "**/*.jsonl"
- config_name: outside
  data_files: ../secret.jsonl
- config_name: root
  data_files: [/etc/*.jsonl, "https://example.com/x.jsonl"]
---
# A data set
"""
OF_CONFIGS = ["en/1.jsonl", "en/2.jsonl", "held/en.jsonl", "held/x-1.jsonl", "de/train.jsonl", "de/test.jsonl"]

# files with their rows; {split: the files that are read}
LAYOUTS = {
    "shards of a repository": (
        {"data/train-00000-of-00001.parquet": 3, "data/test-00000-of-00001.parquet": 2},
        {"train": ["data/train-00000-of-00001.parquet"], "test": ["data/test-00000-of-00001.parquet"]},
    ),
    "splits of other names": (
        {"data/train_sft-00000-of-00001.jsonl": 2, "data/train_gen-00000-of-00001.jsonl": 1},
        {"train_sft": ["data/train_sft-00000-of-00001.jsonl"], "train_gen": ["data/train_gen-00000-of-00001.jsonl"]},
    ),
    "file names": (
        {"train.jsonl": 2, "my-test_1.jsonl": 1, "dev.jsonl": 2},
        {"train": ["train.jsonl"], "test": ["my-test_1.jsonl"], "validation": ["dev.jsonl"]},
    ),
    "folders": (
        {"train/a.csv": 2, "train/b.csv": 1, "validation/a.csv": 1},
        {"train": ["train/a.csv", "train/b.csv"], "validation": ["validation/a.csv"]},
    ),
    "folders of configs": (
        {"en/train.jsonl": 2, "en/test.jsonl": 1, "de/train.jsonl": 1},
        {"train": ["de/train.jsonl", "en/train.jsonl"], "test": ["en/test.jsonl"]},
    ),
    "no splits": ({"a.jsonl": 1, "b/c.jsonl": 2}, {"train": ["a.jsonl", "b/c.jsonl"]}),
    "others beside": ({"train.jsonl": 2, "test.jsonl": 1, "more.jsonl": 1}, {"train": ["train.jsonl"]}),
}


def texts_of(files: dict[str, int], names: list[str]) -> list[str]:
    return sorted(f"{name} {number}" for name in names for number in range(files[name]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_gives_the_split_that_is_asked_for(layout, plant, load, load_error):
    """The same rows as `datasets` itself finds; a split that is not there is refused with those that are."""
    import datasets

    files, splits = LAYOUTS[layout]
    folder = plant("d", files)
    for split, names in splits.items():
        texts = sorted(row["text"] for row in load("d", split=split))
        assert texts == texts_of(files, names)
        assert texts == sorted(datasets.load_dataset(str(folder), split=split)["text"])
    message = load_error("d", split="heldout[:10%]")
    assert "datasets.0.split: ./d has no split heldout; " in message
    assert all(split in message for split in splits)


def test_texts_about_data_beside_it(plant, load, tmp_path, capsys):
    def add(*names):
        for name in names:
            (tmp_path / "d" / name).write_text("about\nit\n")

    plant("d", {"a.jsonl": 1})
    add("LICENSE.txt", "readme.txt", "requirements-gpu.txt", "~$a.csv", ".~lock.a.csv#")
    assert [row["text"] for row in load("d")] == ["a.jsonl 0"]
    note = "./d: not data, and left out: LICENSE.txt, readme.txt, requirements-gpu.txt (to train"
    assert note in capsys.readouterr().err
    (tmp_path / "d/a.jsonl").unlink()
    assert len(load("d")) == 6  # there is nothing else
    add("book.txt", "licensed.txt")
    assert len(load("d")) == 4
    assert len(load("d/LICENSE.txt")) == 2
    assert len(load("d/*.txt")) == 10


def test_parts_and_sums_of_splits(plant, load):
    plant("d", {"data/train-00000-of-00001.parquet": 4, "data/test-00000-of-00001.parquet": 2})
    plant("l", {"train.jsonl": 4, "test.jsonl": 2})
    for name, ends in (("d", "-00000-of-00001.parquet"), ("l", ".jsonl")):
        texts = [row["text"].rpartition("/")[2] for row in load(name, split="train[50%:]+test[:1]")]
        assert texts == [f"train{ends} 2", f"train{ends} 3", f"test{ends} 0"]


def test_words_for_a_split(plant, load):
    """`dev`, `val` and `valid` are `validation`, upper case is as lower."""
    plant("d", {"Train.jsonl": 2, "VAL.jsonl": 1})
    assert {load("d", split=split)[0]["text"] for split in ("dev", "val", "valid", "validation")} == {"VAL.jsonl 0"}
    assert len(load("d")) == 2


def test_names_that_differ_in_case_alone(plant, load):
    plant("d", {"Train.jsonl": 1, "train.jsonl": 1, "test.jsonl": 1})
    assert sorted(row["text"] for row in load("d")) == ["Train.jsonl 0", "train.jsonl 0"]


def test_shards_of_splits_with_a_dash(plant, load, load_error):
    """`datasets` takes no such name."""
    plant("d", {"data/train-clean-00000-of-00001.jsonl": 2, "data/test-clean-00000-of-00001.jsonl": 1})
    assert [len(load("d", split=split)) for split in ("train-clean", "test-clean")] == [2, 1]
    assert "has no split train; the names of its files say test-clean, train-clean" in load_error("d")


def test_a_data_folder_of_a_repository_is_as_the_repository(plant, load, load_error):
    plant("d", {"data/train_sft-00000-of-00001.jsonl": 2, "data/test_sft-00000-of-00001.jsonl": 1})
    assert len(load("d/data", split="test_sft")) == 1
    assert "has no split train; the names of its files say test_sft, train_sft" in load_error("d/data")


def test_patterns_choose_and_splits_choose_among_what_they_match(plant, load, load_error):
    plant("d", {"data/train-0.csv": 3, "data/test-0.csv": 2, "x/test.csv": 1})
    assert len(load("d/data/*.csv")) == len(load("d/**/train*")) == 3
    assert len(load("d/data/*.csv", split="test")) == 2
    assert len(load("d/**/*.csv", split="test")) == 3
    assert len(load("d/data/test*")) == 2  # named: whatever split
    assert len(load("d/x/test.csv")) == 1
    assert "./d/data/train-0.csv has no split test; its name says train" in load_error(
        "d/data/train-0.csv", split="test"
    )
    assert "has no split validation" in load_error("d/data/test*", split="validation")


def test_a_name_of_two_splits_is_refused(plant, load, load_error):
    plant("d", {"train_test.jsonl": 1, "train.jsonl": 1})
    assert "d/train_test.jsonl is of two splits (train, test)" in load_error("d")
    assert len(load("d/train_test.jsonl", split="test")) == 1


def test_configs_of_a_readme(plant, load, load_error, tmp_path):
    plant("d", dict.fromkeys(OF_CONFIGS, 1), CONFIGS)
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}\n')

    def read(**keys):
        return [row["text"].removesuffix(" 0") for row in load("d", **keys)]

    assert read(subset="en") == ["en/1.jsonl", "en/2.jsonl"]
    assert read(subset="en", split="test") == ["held/en.jsonl", "held/x-1.jsonl"]
    assert (read(subset="de"), read(subset="de", split="test")) == (["de/train.jsonl"], ["de/test.jsonl"])
    assert sorted(read()) == sorted(OF_CONFIGS)  # the default one
    assert "has no config fr; there are en, de, everything, outside, root" in load_error("d", subset="fr")
    assert "has no split test; config everything of its README.md has train" in load_error("d", split="test")
    for subset in ("outside", "root"):
        assert f"config {subset} of its README.md has the split train, and no file" in load_error("d", subset=subset)
    several = CONFIGS.replace("  default: true\n", "")
    plant("d", {}, several)
    assert "d has several configs: set subset to one of en, de" in load_error("d")


ONE_CONFIG = "configs:\n- config_name: x\n  data_files: b.jsonl\n"


@pytest.mark.parametrize("broken", ["title: a: b\n", "tags: [\n", "license: mit\nlicense: mit\n", "summary: 'x\n"])
def test_a_front_matter_that_is_broken_elsewhere(broken, plant, load, capsys):
    files = {"a.jsonl": 1, "b.jsonl": 1}
    for readme, count in ((broken + ONE_CONFIG, 1), (ONE_CONFIG + broken, 1), (broken + "about: configs\n", 2)):
        plant("d", files, f"---\n{readme}---\n")
        assert len(load("d")) == count
        err = capsys.readouterr().err
        assert (
            "d/README.md is no YAML, and " + ("of it only configs is read" if count == 1 else "it is left out") in err
        )


@pytest.mark.parametrize(
    "configs",
    [
        "3",
        "[{data_files: x}]",
        "[{config_name: a, data_files: {split: 3}}]",
        "[\n",
        f"[]\n{ONE_CONFIG}",
        "[]\n x: y: z",
    ],
)
def test_configs_that_can_not_be_read(configs, plant, load_error):
    plant("d", {"a.jsonl": 1}, f"---\nconfigs: {configs}\n---\n")
    assert "d/README.md" in load_error("d")


def test_a_subset_is_a_folder_where_no_readme_says_else(plant, load, load_error):
    plant("d", {"en/train.jsonl": 2, "en/test.jsonl": 1, "de/a.jsonl": 3}, "# No front matter\n\nconfigs: none\n")
    assert [len(load("d", subset="en", split=split)) for split in ("train", "test")] == [2, 1]
    assert len(load("d", subset="de")) == 3
    assert "nor data in a folder fr; there is de, en" in load_error("d", subset="fr")
    assert "./d/de/a.jsonl is a file, which has no subsets" in load_error("d/de/a.jsonl", subset="de")
    assert "datasets.0.subset" in load_error("d/*/a.jsonl", subset="de")


def test_what_save_to_disk_wrote(load, load_error, tmp_path):
    import datasets

    table = datasets.Dataset.from_list([{"text": f"row {number}"} for number in range(5)])
    table.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict(train=table, test=table.select([4])).save_to_disk(tmp_path / "dict")
    assert [row["text"] for row in load("one", split="train[1:3]")] == ["row 1", "row 2"]
    assert load("dict", split="test") == load("dict/test", split="test") == [{"text": "row 4"}]
    assert len(load("dict")) == 5
    assert "./dict has no split validation; save_to_disk wrote train, test" in load_error("dict", split="validation")
    for name, split in (("one", "test"), ("dict/test", "train"), ("dict/train", "test")):
        assert f"./{name} has no split {split}" in load_error(name, split=split)
    for folder, told in (("two/a", "holds a data set "), ("two/in/b", "holds 2 data sets ")):
        table.save_to_disk(tmp_path / folder)
        assert f"./two {told}that save_to_disk wrote (a" in load_error("two")
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "two/c")
    assert "./two holds 3 data sets that save_to_disk wrote (a, c, in/b): name each folder" in load_error("two")
    (tmp_path / "dict/train/data-00000-of-00001.arrow").unlink()
    assert "what save_to_disk wrote is incomplete" in load_error("dict")
    (tmp_path / "one/state.json").write_text(
        '{"_data_files": [{"filename": "../dict/test/data-00000-of-00001.arrow"}]}'
    )
    assert "which is no file of this folder" in load_error("one")


def test_a_snapshot_of_the_hub(plant, load, load_error, tmp_path):
    """Its files are links to blobs; one that was not fetched is told."""
    plant("blobs", {"a.jsonl": 2, "b.jsonl": 1, "infos.jsonl": 1})
    snapshot = tmp_path / "snapshots/1"
    (snapshot / "data").mkdir(parents=True)
    for name, blob in (
        ("data/train-00000-of-00001", "a"),
        ("data/test-00000-of-00001", "b"),
        ("dataset_infos", "infos"),
    ):
        (snapshot / f"{name}.json").symlink_to(
            os.path.relpath(tmp_path / f"blobs/{blob}.jsonl", (snapshot / name).parent)
        )
    assert [len(load("snapshots/1", split=split)) for split in ("train", "test")] == [2, 1]
    (tmp_path / "blobs/b.jsonl").unlink()
    assert "is a link to a file that is not there" in load_error("snapshots/1")


def test_what_systems_and_editors_leave_is_no_data(plant, load):
    stray = [
        ".a.jsonl",
        ".ipynb_checkpoints/a-checkpoint.jsonl",
        "__MACOSX/x/b.jsonl",
        "sub/.cache/c.jsonl",
        "config.json",
    ]
    folder = plant("d", {"a.jsonl": 1, "sub/b.jsonl": 1} | dict.fromkeys(stray, 1))
    (folder / "._a.jsonl").write_bytes(b"\x00\x05\x16\x07 a resource fork")
    for name in ("d", "d/**/*.jsonl"):
        assert [row["text"] for row in load(name)] == ["a.jsonl 0", "sub/b.jsonl 0"]
    assert [row["text"] for row in load("d/.a.jsonl")] == [".a.jsonl 0"]


def test_the_command_trains_on_no_row_of_another_split(composed, files, texts, plant):
    plant("hub", {"data/train-00000-of-00002.parquet": 3, "data/test-00000-of-00001.parquet": 2, "extra.parquet": 1})
    done = composed(data={"name": "hub", "split": "test"}, dedup={"method": "none"})
    assert sorted(texts(done.train)) == [f"<s>data/test-00000-of-00001.parquet {n}</s>" for n in range(2)]
    assert [given["path"].rpartition("/")[2] for given in done.manifest["inputs"]] == ["test-00000-of-00001.parquet"]
    done = composed(data="hub", dedup={"method": "none"})
    assert len(done.train) == 3
    assert "has 1 of the 2 files train-…-of-00002: the others' rows are missing" in done.err


def test_the_same_bytes_under_two_names_are_told(composed, files, plant):
    plant("d", {"a.jsonl": 2, "b.jsonl": 1})
    for name in ("d/copy.jsonl", "other.jsonl"):
        files.write(name, files.read(files.folder / "d/a.jsonl"))
    done = composed(datasets=[{"name": "d"}, {"name": "other.jsonl"}], dedup={"method": "none"})
    (line,) = [line for line in done.err.splitlines() if "the same bytes" in line]
    assert [line.count(name) for name in ("d/a.jsonl", "d/copy.jsonl", "other.jsonl", "b.jsonl")] == [1, 1, 1, 0]
    done = composed(datasets=[{"name": "d/b.jsonl"}, {"name": "./d/b.jsonl"}], dedup={"method": "none"})
    assert "the same bytes" not in done.err


def test_patterns_of_a_readme_that_would_take_for_ever(plant, load, load_error):
    """Of a regular expression made of them each star would try all lengths."""
    long = f"{'a' * 200}.jsonl"
    plant("d", {long: 1}, f"---\nconfigs:\n- {{config_name: x, data_files: '{'*a' * 40}*b'}}\n---\n")
    assert "no file of it is there" in load_error("d")
    plant("d", {}, f"---\nconfigs:\n- {{config_name: x, data_files: '{'*a' * 40}*.jsonl'}}\n---\n")
    assert len(load("d")) == 1
    plant("d", {}, f"---\nconfigs:\n- {{config_name: x, data_files: '{'**/' * 40}*.jsonl'}}\n---\n")
    assert "its configs can't be read" in load_error("d")
