"""Stages on disk: near-duplicates are the same whatever memory there is, and wherever a run was stopped."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from impruver_compose.corpus import Corpus
from impruver_compose.dedup import judging, near_duplicates
from impruver_compose.dedup.components import find_roots, join_edges
from impruver_compose.dedup.equal_digests import find_first_equal
from impruver_compose.dedup.judging import JudgingRules, judge_candidates
from impruver_compose.dedup.near_duplicates import find_near_duplicates
from impruver_compose.dedup.shingles import compute_jaccard, compute_shingles
from impruver_compose.dedup.signatures import choose_bands, compute_band_keys, compute_signatures
from impruver_compose.stages.column_files import Columns, write_columns
from impruver_compose.stages.large_arrays import ArrayStore
from impruver_compose.stages.local_engine import LocalEngine
from impruver_compose.stages.workspace import KeyRange, Workspace
from impruver_compose.storage import EncodedConversation, EncodedShard, TokenRow, compute_digest, write_shard
from impruver_core.errors import ImpruverError
from impruver_core.io.integrity import read_record
from support.cli import script
from support.interruptions import DYING

NUM_PERM, SHARD = 64, 40
IN_MEMORY = 1 << 30
EMPTY_ROW = TokenRow(b'{"input_ids":[1],"labels":[1]}', b'{"text":""}', 1, 1, 1)


def clusters(seed, count=300):
    """Texts of tokens: some alone, some in chains of ever more distant copies, and one large cluster."""
    chance = np.random.default_rng(seed)
    texts = [chance.integers(0, 5000, 60).astype(np.uint32)]
    while len(texts) < count:
        text = texts[0 if chance.random() < 0.4 else chance.integers(0, len(texts))].copy()
        if chance.random() < 0.3:
            text = chance.integers(0, 5000, chance.integers(0, 80)).astype(np.uint32)
        changed = chance.integers(0, max(1, len(text)), chance.integers(0, 8)) if len(text) else []
        text[changed] = chance.integers(0, 5000, len(changed))
        texts.append(text)
    return texts


@pytest.fixture
def make_corpus(tmp_path):
    """A corpus of conversations that are judged by these tokens, in shards of forty."""

    def make(texts, arrays=None):
        paths = []
        for first in range(0, len(texts), SHARD):
            own = texts[first : first + SHARD]
            digests = [compute_digest(text) for text in own]
            conversations = [
                EncodedConversation(row, 0, [EMPTY_ROW], text, digest, digest)
                for row, (text, digest) in enumerate(zip(own, digests, strict=True), first)
            ]
            paths.append(tmp_path / f"encoded/{first:06d}.arrow")
            shard = EncodedShard(conversations=conversations)
            write_shard(paths[-1], shard, compute_signatures(own, NUM_PERM))
        return Corpus(["data"], [paths], arrays or ArrayStore(tmp_path, IN_MEMORY))

    return make


def judge_in_one_pass(texts, order, threshold):
    """What `find_near_duplicates` finds, as (number, kept, similarity): all in one loop and one dict."""
    bands, width = choose_bands(threshold, NUM_PERM)
    keys = compute_band_keys(compute_signatures(texts, NUM_PERM), bands, width)
    rank = {number: place for place, number in enumerate(order)}
    kept, found = defaultdict(list), []
    for number in order:
        buckets = list(enumerate(keys[number].tolist()))
        for other in sorted({other for bucket in buckets for other in kept[bucket]}, key=rank.get):
            similarity = compute_jaccard(compute_shingles(texts[number]), compute_shingles(texts[other]))
            if similarity >= threshold:
                found.append((number, other, round(similarity, 4)))
                break
        else:
            for bucket in buckets:
                kept[bucket].append(number)
    return sorted(found)


def listed(duplicates):
    return [tuple(duplicates.get(position))[:3] for position in range(len(duplicates))]


@pytest.mark.parametrize("threshold", [0.4, 0.8])
@pytest.mark.parametrize(("memory", "processes"), [(IN_MEMORY, 1), (200_000, 2), (20_000, 1)])
def test_near_duplicates_are_the_same_whatever_memory_there_is(threshold, memory, processes, make_corpus, tmp_path):
    texts = clusters(seed=3)
    order = np.random.default_rng(1).permutation([number for number, text in enumerate(texts) if len(text)])
    expected = judge_in_one_pass(texts, order.tolist(), threshold)
    workspace = Workspace(tmp_path, LocalEngine(processes), memory)
    corpus = make_corpus(texts, workspace.arrays)
    assert listed(find_near_duplicates(corpus, order, threshold, NUM_PERM, workspace)) == expected
    assert len(expected) > 30
    assert [path.name for path in workspace.folder.iterdir()] == ["judged.arrow"]


def test_what_memory_is_too_small_for_is_told_and_lies_on_the_disk(make_corpus, tmp_path, capfd):
    texts = clusters(seed=4)
    order = np.array([number for number, text in enumerate(texts) if len(text)])
    workspace = Workspace(tmp_path, LocalEngine(1), 20_000)
    corpus = make_corpus(texts, workspace.arrays)
    assert isinstance(corpus.digest, np.memmap)
    find_near_duplicates(corpus, order, 0.4, NUM_PERM, workspace)
    said = capfd.readouterr().err
    assert "conversations are linked by text that they share, such as row 0 of data set 0" in said
    assert str(workspace.folder) in said


def test_leaks_are_judged_against_train_alone(make_corpus, tmp_path):
    texts = clusters(seed=5)
    filled = [number for number, text in enumerate(texts) if len(text)]
    train, val = filled[::2], filled[1::2]
    workspace = Workspace(tmp_path, LocalEngine(1), IN_MEMORY)
    options = {"judged_from": len(train), "joins": False}
    order = np.array(train + val)
    found = find_near_duplicates(make_corpus(texts), order, 0.5, NUM_PERM, workspace, **options)
    sets = [compute_shingles(text) for text in texts]
    assert len(found) > 30
    for number, kept, similarity in listed(found):
        assert (number in val, kept in train) == (True, True)
        assert similarity == round(compute_jaccard(sets[number], sets[kept]), 4)


def test_each_stage_says_what_became_of_its_rows(make_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(Workspace, "remove_stages", lambda *_: None)
    texts = clusters(seed=6)
    order = np.array([number for number, text in enumerate(texts) if len(text)])
    workspace = Workspace(tmp_path, LocalEngine(1), 50_000)
    find_near_duplicates(make_corpus(texts), order, 0.5, NUM_PERM, workspace)
    bands, _ = choose_bands(0.5, NUM_PERM)
    told = {path.parent.name.partition("-")[0]: read_record(path) for path in workspace.folder.glob("*/stage.json")}
    assert {*told} == {"bands", "edges", "candidates", "judged"}
    assert told["bands"]["rows_in"] == len(texts) == told["bands"]["rows_out"] // bands + told["bands"]["dropped"]
    for one, other in (("bands", "edges"), ("edges", "candidates"), ("candidates", "judged")):
        assert told[other]["rows_in"] == told[one]["rows_out"] == told[other]["rows_out"] + told[other]["dropped"]
    assert len(told["edges"]["files"]) > 1


@pytest.mark.parametrize("seed", range(3))
def test_components_of_random_graphs(seed):
    chance = np.random.default_rng(seed)
    count = 400
    edges = chance.integers(0, count, (2, 350)).astype(np.uint32)
    parents = np.arange(count, dtype=np.uint32)
    join_edges(parents, ((part[0], part[1]) for part in np.array_split(edges, 7, axis=1)))
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    _, labels = connected_components(csr_matrix((np.ones(350), edges), shape=(count, count)), directed=False)
    least = np.full(count, count)
    np.minimum.at(least, labels, np.arange(count))
    assert np.array_equal(find_roots(parents, np.arange(count)), least[labels])


@pytest.mark.parametrize("limit", [1 << 20, 200, 1])
def test_equal_digests_are_found_a_part_at_a_time(limit, tmp_path):
    chance = random.Random(0)
    digests = [compute_digest(bytes([chance.randrange(20)])) for _ in range(90)]
    numbers = np.array(chance.sample(range(90), 60))
    found = find_first_equal(np.array(digests, "V16"), numbers, ArrayStore(tmp_path, limit))
    own = [digests[number] for number in numbers]
    assert found.tolist() == [own.index(digest) for digest in own]


def test_a_full_disk_in_any_stage_is_one_message(make_corpus, small_disk, tmp_path, monkeypatch):
    monkeypatch.setattr("impruver_core.io.atomic.check_free_space", lambda *_: None)  # somebody else fills it
    texts = clusters(seed=7)
    order = np.array([number for number, text in enumerate(texts) if len(text)])
    corpus, disk = make_corpus(texts), small_disk(1 << 20)
    expected = judge_in_one_pass(texts, order.tolist(), 0.5)
    failed = 0
    for size in range(4096, 1 << 20, 12288):
        subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
        try:
            found = find_near_duplicates(corpus, order, 0.5, NUM_PERM, Workspace(disk, LocalEngine(1), 30_000))
        except ImpruverError as error:
            assert "the disk is full" in str(error)  # noqa: PT017
            failed += 1
        else:
            assert listed(found) == expected
            break
        shutil.rmtree(disk / "stages", ignore_errors=True)
    assert failed > 5


@pytest.fixture
def rows(files):
    """Rows for a recipe, a third of them near-duplicates of one before."""
    rows = files.unlike(90)
    for number in range(0, 90, 3):
        text = rows[number]["messages"][-1]["content"]
        rows.append(files.chat(rows[number]["messages"][0]["content"], f"{text} again"))
    files.write("data.jsonl", rows)
    return {"dedup": {"threshold": 0.6}, "split": {"val_rows": 20}}


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.suffix == ".jsonl"}


def die_at_rename(main, config, at):
    """Runs the command in a fork, which dies in place of renaming a file for the time number `at`; whether it died."""
    child = os.fork()
    if not child:
        try:
            names = {"os": os, "at": at}
            exec(DYING, names)
            os.replace = names["dying"](os.replace)
            os._exit(0 if main(["--config", str(config), "--num_proc", "1", "--quiet"]) == 0 else 1)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def test_a_run_that_is_killed_at_any_file_goes_on(rows, composed, recipe, monkeypatch):
    from impruver_compose.cli import main

    composed(**rows)
    expected = contents("out")
    assert len(expected["train.dropped.jsonl"].splitlines()) > 20
    config, at = recipe(**rows), 0
    while True:
        shutil.rmtree("out")
        shutil.rmtree("cache/stages")
        died = die_at_rename(main, config, at)
        assert not died or not Path("out/train.jsonl.manifest.json").exists()
        composed(**rows)
        assert contents("out") == expected
        if not died:
            break
        at += 1
    assert at > 12  # files of stages, their manifests, outputs


def test_a_worker_that_is_killed_in_a_stage_is_told(rows, composed, compose, monkeypatch, files):
    files.write("more.jsonl", files.unlike(60, start=40))
    rows = rows | {"datasets": [{"name": "data.jsonl"}, {"name": "more.jsonl"}]}
    composed(**rows)
    expected, parent = contents("out"), os.getpid()
    for stage in ("list_bands", "find_shared_buckets", "list_candidates", "judge_candidates"):
        shutil.rmtree("out")
        shutil.rmtree("cache/stages")

        def die(*_):
            assert os.getpid() != parent
            os.kill(os.getpid(), signal.SIGKILL)

        with monkeypatch.context() as patch:
            patch.setattr(near_duplicates, "PART_PAIRS", 200)
            patch.setattr(near_duplicates, "JUDGED_PAIRS", 50)
            patch.setattr(near_duplicates, "BLOCK_SHARDS", 1)
            patch.setattr(near_duplicates, stage, die)
            stopped = compose("--num_proc", "2", **rows)
        assert stopped.code == 2, (stage, stopped.err)
        assert "a worker process was killed" in stopped.err
        assert list(Path("out").iterdir()) == []
        composed(**rows)
        assert contents("out") == expected


def test_a_work_dir_serves_any_recipe_and_two_runs_at_once(rows, composed, recipe, tmp_path):
    composed(**rows)
    expected = contents("out")
    keys = {"compose": {"work_dir": "work", "max_memory": 64_000_000}}
    composed(**rows | {"dedup": {"threshold": 0.9, "on": "answer"}}, **keys)
    assert contents("out") != expected
    configs = []
    for name in ("one", "two"):
        config = recipe(**rows, **keys, train_path=f"{name}/train.jsonl", val_path=f"{name}/val.jsonl")
        configs.append(config.rename(tmp_path / f"{name}.yaml"))
    started = [subprocess.Popen([script("impruver-compose"), "--config", config, "--quiet"]) for config in configs]
    assert [process.wait(100) for process in started] == [0, 0]
    for name in ("one", "two"):
        assert contents(name) == expected
    assert not Path("cache/stages", "x").exists()
    assert {path.name for path in Path("work").iterdir()} == {"compose", "stages"}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"max_memory": 1000}, "must be at least 16000000 bytes (16 MB), not 1000"),
        ({"work_dir": "a\0b"}, "compose.work_dir: holds a null character"),
        ({"address": "auto"}, "set engine to ray, too"),
        ({"engine": "spark"}, "spark"),
    ],
)
def test_settings_that_can_not_be(section, message, refused, rows):
    assert message in refused(compose=section)


def test_a_work_dir_that_is_a_file_is_refused(rows, refused, files):
    Path("work").write_text("mine")
    for name in ("work", "work/below"):
        assert "compose.work_dir: " in (said := refused(compose={"work_dir": name}))
        assert f"{Path('work').absolute()} is a file, not a folder: name another path" in said
    assert Path("work").read_text() == "mine"


def test_a_work_dir_of_nobody_is_refused(rows, refused):
    assert "compose.work_dir: ~nobody-has-this-name/x: there is no such home" in refused(
        compose={"work_dir": "~nobody-has-this-name/x"}
    )


@pytest.mark.parametrize("name", ["out/train.jsonl", "out/train.dropped.jsonl/work"])
def test_a_work_dir_in_the_place_of_an_output_is_refused(name, rows, refused):
    assert "is where an output goes: name another folder" in refused(compose={"work_dir": name})
    assert not Path(name).exists()


def attacks(places, mine):
    """Each way to put something in the place of a stage's folder or file."""
    yield from ((place, lambda path: path.symlink_to(mine)) for place in places)
    yield from ((place, lambda path: path.write_text("x")) for place in places)
    yield from ((place, lambda path: (path / "x").mkdir(parents=True)) for place in places)


def test_what_strangers_put_in_place_of_stages_is_replaced_and_not_followed(make_corpus, tmp_path, monkeypatch):
    texts = clusters(seed=9, count=80)
    order = np.array([number for number, text in enumerate(texts) if len(text)])
    expected, corpus = judge_in_one_pass(texts, order.tolist(), 0.5), make_corpus(texts)
    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "remove_stages", lambda *_: None)
        find_near_duplicates(corpus, order, 0.5, NUM_PERM, Workspace(tmp_path, LocalEngine(1), IN_MEMORY))
    stages = tmp_path / "stages"
    places = [path.relative_to(stages) for path in stages.rglob("*")]
    assert len(places) == 15
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("000000.arrow", "stage.json"):
        (mine / name).write_text("mine")
    for place, put in attacks(places, mine):
        shutil.rmtree(stages)
        (stages / place).parent.mkdir(parents=True)
        put(stages / place)
        with Workspace(tmp_path, LocalEngine(1), IN_MEMORY).open_folder("") as workspace:
            assert listed(find_near_duplicates(corpus, order, 0.5, NUM_PERM, workspace)) == expected
        assert {path.name: path.read_text() for path in mine.iterdir()} == {
            "000000.arrow": "mine",
            "stage.json": "mine",
        }


def test_links_in_place_of_the_folders_of_a_run_are_not_followed(rows, composed, tmp_path):
    composed(**rows)
    expected, mine = contents("out"), tmp_path / "mine"
    mine.mkdir()
    (mine / "000000.arrow").write_text("mine")
    for kind in ("compose", "stages"):
        (folder,) = Path("cache", kind).iterdir()
        shutil.rmtree("cache/stages")
        shutil.rmtree("out")
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(exist_ok=True)
        folder.symlink_to(mine)
        composed(**rows)
        assert contents("out") == expected
        assert [path.read_text() for path in mine.iterdir()] == ["mine"]
        assert not folder.is_symlink()


def test_dry_run_tells_what_stages_take(rows, composed):
    said = composed("--dry_run", **rows, compose={"work_dir": "work"}).err
    assert "work for encoded rows that are not there yet, and about" in said
    assert "there while duplicates are looked for" in said
    assert not Path("work").exists()


def test_stages_that_nobody_used_for_long_go(rows, composed):
    composed(**rows)
    (old,) = Path("cache/stages").iterdir()
    os.utime(old, (1, 1))
    composed(**rows | {"dedup": {"threshold": 0.7}})
    assert old not in set(Path("cache/stages").iterdir())
    assert sys.platform != "linux" or len(list(Path("cache/stages").iterdir())) == 1


def test_a_run_with_other_memory_goes_on_where_one_was_stopped(make_corpus, tmp_path, monkeypatch):
    texts = clusters(seed=8)
    order = np.array([number for number, text in enumerate(texts) if len(text)])
    expected = judge_in_one_pass(texts, order.tolist(), 0.5)
    for stage in ("find_shared_buckets", "list_candidates", "judge_candidates"):
        for memory, later in ((20_000, IN_MEMORY), (IN_MEMORY, 30_000)):
            workspace = Workspace(tmp_path / f"{stage}{memory}", LocalEngine(1), memory)
            corpus = make_corpus(texts)
            with monkeypatch.context() as patch:
                patch.setattr(near_duplicates, stage, lambda *_: os.kill(os.getpid(), signal.SIGINT))
                with pytest.raises(KeyboardInterrupt):
                    find_near_duplicates(corpus, order, 0.5, NUM_PERM, workspace)
            again = Workspace(workspace.work_dir, LocalEngine(1), later)
            assert listed(find_near_duplicates(corpus, order, 0.5, NUM_PERM, again)) == expected


def trace_stages(make_corpus, folder, seed, monkeypatch, memory=50_000):
    """Runs all stages and keeps them: the corpus, the order, the workspace, and what was found."""
    texts = clusters(seed, 120)
    order = np.array([number for number, text in enumerate(texts) if len(text)])
    workspace, corpus = Workspace(folder, LocalEngine(1), memory, f"run-{seed}"), make_corpus(texts)
    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "remove_stages", lambda *_: None)
        found = listed(find_near_duplicates(corpus, order, 0.5, NUM_PERM, workspace))
    assert found == judge_in_one_pass(texts, order.tolist(), 0.5)
    return corpus, order, workspace, found


def list_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def replace_by_a_folder(path):
    path.unlink()
    path.mkdir()


def replace_folder_by_a_file(path):
    shutil.rmtree(path.parent)
    path.parent.write_text("x")


@pytest.mark.parametrize("damage", [replace_by_a_folder, replace_folder_by_a_file])
def test_what_stands_in_the_place_of_a_file_or_a_stage_goes(damage, make_corpus, tmp_path, monkeypatch):
    corpus, order, workspace, found = trace_stages(make_corpus, tmp_path / "work", 11, monkeypatch)
    shutil.copytree(workspace.folder, tmp_path / "kept")
    names = [path.relative_to(workspace.folder) for path in list_files(workspace.folder)]
    assert {name.parts[0].partition("-")[0] for name in names} > {"bands", "components", "candidates", "judged"}
    result = Path("judged.arrow")
    for name in names:
        if damage is replace_folder_by_a_file and name == result:
            continue
        shutil.rmtree(workspace.folder)
        shutil.copytree(tmp_path / "kept", workspace.folder)
        for later in ("judged.arrow", *(["components/000000.arrow"] if name.parts[0] != "components" else [])):
            (workspace.folder / later).unlink()
        if name == result:
            (workspace.folder / result).mkdir()
        elif (workspace.folder / name).exists():
            damage(workspace.folder / name)
        assert listed(find_near_duplicates(corpus, order, 0.5, NUM_PERM, workspace)) == found, name
        assert [path.name for path in workspace.folder.iterdir()] == ["judged.arrow"], name


def test_files_of_other_stages_are_not_taken_for_own_ones(make_corpus, tmp_path, monkeypatch):
    _, _, other, _ = trace_stages(make_corpus, tmp_path / "other", 12, monkeypatch)
    corpus, order, workspace, found = trace_stages(make_corpus, tmp_path / "work", 13, monkeypatch)
    shutil.rmtree(workspace.folder)
    shutil.copytree(other.folder, workspace.folder)
    (workspace.folder / "judged.arrow").unlink()
    assert listed(find_near_duplicates(corpus, order, 0.5, NUM_PERM, workspace)) == found


def test_what_a_killed_run_was_writing_beside_its_stages_goes(make_corpus, tmp_path):
    workspace = Workspace(tmp_path, LocalEngine(1), IN_MEMORY, "run")
    workspace.folder.mkdir(parents=True)
    (workspace.folder / ".judged.arrow.123.part").write_text("half")
    find_near_duplicates(make_corpus(clusters(14, 50)), np.arange(20), 0.5, NUM_PERM, workspace)
    assert [path.name for path in workspace.folder.iterdir()] == ["judged.arrow"]


def test_rows_that_repeat_one_are_looked_up_among_those_kept_alone(tmp_path, monkeypatch):
    count, buckets = 600, 10  # all before each would be 180,000
    base = np.arange(60, dtype=np.uint32)

    class NearEqualIds:
        def read(self, number):
            return np.append(base, np.uint32(100 + number))

    pairs = {"bucket": np.tile(np.arange(buckets, dtype=np.uint32), count)}
    pairs |= {"rank": np.repeat(np.arange(count, dtype=np.uint32), buckets), "key": np.ones(count * buckets, np.uint64)}
    write_columns(tmp_path / "candidates.arrow", Columns(pairs))
    rules = JudgingRules(0.8, np.arange(count), NearEqualIds(), ArrayStore(tmp_path, IN_MEMORY))
    looked_up, list_kept = [], judging._list_kept

    def count_kept(*args):
        looked_up.append(list_kept(*args))
        return looked_up[-1]

    monkeypatch.setattr(judging, "_list_kept", count_kept)
    found = judge_candidates(rules, KeyRange([tmp_path / "candidates.arrow"], 0, 1))
    assert found.columns["kept"].tolist() == [0] * (count - 1)
    assert sum(map(len, looked_up)) == count - 1
