"""`impruver` and its verbs, as real processes.

The tools themselves are stand-ins where a test is about how they are started: an `impruver-…` program of the test's own
beside a Python of the test's own, so nothing hangs on which tools are installed here.
"""

import os
import signal
import stat
import subprocess
import sys

import pytest
from impruver_core.commands.installed_tools import TOOLS
from impruver_core.commands.run import build_launch_command
from impruver_core.recipe.paths import list_recipes
from support import ROOT
from support.cli import run_as_process, run_python

IMPRUVER = "import sys; from impruver_core.commands.main import main; sys.exit(main())"


def impruver(*argv, python=sys.executable, **kwargs):
    return run_as_process(python, "-c", IMPRUVER, *argv, timeout=60, **kwargs)


def program(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\nimport sys, os, time\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def alone(tmp_path):
    """(a Python with no tool beside it, the environment in which it finds our packages and an empty PATH)."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(os.path.realpath(sys.executable))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PATH": str(tmp_path / "path")}
    return python, environment


def test_help_lists_commands_and_tools():
    done = impruver("--help")
    assert done.returncode == 0
    for name in ("run", "ls", "cp", "check", "env", *TOOLS):
        assert f"  {name} " in done.stdout
    assert impruver().returncode == 2


@pytest.mark.parametrize("verb", ["run", "ls", "cp", "check", "env"])
def test_each_command_has_help(verb):
    done = impruver(verb, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: impruver {verb}")


def test_version():
    assert impruver("--version").stdout.startswith("impruver 0.")


def test_an_unknown_command():
    done = impruver("chek")
    assert (done.returncode, done.stderr) == (2, "impruver: error: no command chek; did you mean check?\n")


def test_nothing_heavy_is_imported():
    code = "import sys\nfrom impruver_core.commands.main import main\n"
    code += "for words in (['ls'], ['env'], ['--help'], ['run'], ['cp', 'no/such', 'x']): main(words)\n"
    code += "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    run_python(code, check=True)


# --- ls, env


def test_ls_tells_recipes_and_tools(alone):
    python, environment = alone
    done = impruver("ls", python=python, environment=environment)
    assert done.returncode == 0
    assert all(name in done.stdout for name in list_recipes())
    assert all(package in done.stdout for package in TOOLS)


def test_ls_names_what_installs_an_absent_tool(alone, tmp_path):
    python, environment = alone
    core = ROOT
    environment["PYTHONPATH"] = os.pathsep.join([str(core / "core" / "src"), str(core / "configs")])
    done = impruver("ls", python=python, environment=environment)
    for package in TOOLS:
        assert f"not installed: pip install {package}" in done.stdout
    program(tmp_path / "path" / "impruver-chat", "")
    assert "pip install impruver-chat" not in impruver("ls", python=python, environment=environment).stdout


def test_env_tells_versions_and_no_secrets():
    done = impruver("env", environment={"HF_TOKEN": "hf_secret", "WANDB_API_KEY": "secret"})
    assert done.returncode == 0
    for name in ("python", "platform", "GPU", "impruver-core", "transformers", "torch"):
        assert any(line.startswith(name) for line in done.stdout.splitlines())
    assert "secret" not in done.stdout


# --- cp


def test_cp_into_a_folder_and_to_a_file(tmp_path):
    source = tmp_path / "own.yaml"
    source.write_text("# Mine.\nseed: 1\n")
    (tmp_path / "folder").mkdir()
    for where, target in (
        ("folder", "folder/own.yaml"),
        ("new/", "new/own.yaml"),
        ("deep/er/x.yaml", "deep/er/x.yaml"),
    ):
        done = impruver("cp", str(source), where, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, f"{target}\n")
        assert done.stderr.endswith(f"impruver-compose --config {target}\n")
        assert (tmp_path / target).read_text() == source.read_text()


def test_cp_never_overwrites(tmp_path):
    source, target = tmp_path / "own.yaml", tmp_path / "there.yaml"
    source.write_text("seed: 1\n")
    target.write_text("mine\n")
    for where in (str(target), str(source)):
        done = impruver("cp", str(source), where)
        assert done.returncode == 2
        assert "is already there" in done.stderr
    assert target.read_text() == "mine\n"
    assert source.read_text() == "seed: 1\n"


def test_cp_of_what_is_not_there(tmp_path):
    done = impruver("cp", "no/such", ".", cwd=tmp_path)
    assert done.returncode == 2
    assert "neither a file nor an installed recipe" in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- run


@pytest.mark.parametrize(
    ("name", "package"),
    [(name, package) for package, tool in TOOLS.items() for name in (tool.name, tool.short, package)],
)
def test_run_starts_the_program_with_its_flags_and_code(alone, tmp_path, name, package):
    python, environment = alone
    program(tmp_path / "path" / package, "print(sys.argv[1:]); sys.exit(7)")
    done = impruver("run", name, "--config", "a b", "--set", "x.y=--z", "chat", python=python, environment=environment)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == "['--config', 'a b', '--set', 'x.y=--z', 'chat']\n"


def test_run_takes_the_program_beside_this_python_before_path(alone, tmp_path):
    python, environment = alone
    program(tmp_path / "path" / "impruver-chat", "print('path')")
    program(tmp_path / "bin" / "impruver-chat", "print('beside')")
    assert impruver("run", "chat", python=python, environment=environment).stdout == "beside\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_run_passes_signals_on(alone, tmp_path, number):
    python, environment = alone
    body = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    body += "signal.signal(signal.SIGINT, lambda *_: sys.exit(130))\nprint('up', flush=True); time.sleep(60)"
    program(tmp_path / "path" / "impruver-train", body)
    command = [str(python), "-c", IMPRUVER, "run", "finetune"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout.readline() == "up\n"
        child.send_signal(number)
        assert child.wait(timeout=30) == {signal.SIGTERM: 143, signal.SIGINT: 130}.get(number, -number)


def test_run_of_an_absent_tool_says_what_installs_it(alone):
    python, environment = alone
    done = impruver("run", "convert_gguf", "--config", "x", python=python, environment=environment)
    assert done.returncode == 2
    assert (
        done.stderr == "impruver: error: impruver-gguf is not installed; install it with: pip install impruver-gguf\n"
    )


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["finetun", "--config", "chat"], "no tool finetun; did you mean finetune?"),
        (["--nproc_per_node", "2"], "no tool 2 (valid: compose_dataset, compose, impruver-compose, finetune, "),
        (["--nproc_per_node", "2", "compose"], "only finetune takes options of the launcher"),
    ],
)
def test_run_of_what_is_no_tool(alone, tmp_path, argv, what):
    python, environment = alone
    for package in TOOLS:
        program(tmp_path / "path" / package, "print('started')")
    done = impruver("run", *argv, python=python, environment=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert what in done.stderr


@pytest.mark.parametrize(
    ("launcher", "alone_here"),
    [
        (["--nproc_per_node", "2"], True),
        (["--nproc-per-node=2", "--log_dir", "chat"], True),
        (["--standalone", "--nproc_per_node", "2"], False),
        (["--nnodes=2", "--node_rank=0", "--master_addr=a"], False),
        (["--rdzv_backend", "c10d"], False),
        (["--rdzv-endpoint=a:1"], False),
    ],
)
def test_the_launchers_options_go_to_torchrun_untouched(launcher, alone_here):
    command = build_launch_command(launcher, ["--config", "x"])
    head = [sys.executable, "-m", "torch.distributed.run", *(["--standalone"] if alone_here else [])]
    assert command == [*head, *launcher, "-m", "impruver_train", "--config", "x"]


def test_a_launch_reaches_torchrun(alone, tmp_path):
    """torchrun's own code runs; what it launches stands in for impruver_train and needs no weights."""
    python, environment = alone
    program(tmp_path / "path" / "impruver-train", "")
    module = tmp_path / "stand_in" / "impruver_train"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("")
    (module / "__main__.py").write_text("import os, sys; print(os.environ['WORLD_SIZE'], sys.argv[1:])\n")
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "stand_in"), environment["PYTHONPATH"]])
    argv = ["run", "--nproc_per_node", "1", "finetune", "--config", "x"]
    done = impruver(*argv, python=python, environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 ['--config', 'x']\n"


# --- check


def test_check_runs_every_installed_tool_and_names_the_absent(alone, tmp_path):
    python, environment = alone
    program(tmp_path / "path" / "impruver-compose", "print('compose', sys.argv[1:])")
    program(tmp_path / "path" / "impruver-train", "print('train'); sys.exit(3)")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("seed: 1\n")
    done = impruver("check", "--config", str(recipe), "--set", "seed=2", python=python, environment=environment)
    assert done.returncode == 3
    assert f"compose ['--config', '{recipe}', '--set=seed=2', '--dry_run']\n" in done.stdout
    assert done.stdout.index("compose [") < done.stdout.index("== impruver-train") < done.stdout.index("train\n")
    assert done.stdout.endswith(
        "impruver-compose: passed\nimpruver-train: failed (exit 3)\n"
        "impruver-gguf: not installed, so not checked (pip install impruver-gguf)\n"
        "impruver-chat: not installed, so not checked (pip install impruver-chat)\n"
    )


def test_check_tells_a_recipes_faults_once(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("seeed: 1\nmodel: 5\n")
    done = impruver("check", "--config", str(recipe))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("did you mean seed?") == 1
    assert "2 faults" in done.stderr


def test_check_tells_a_tool_that_was_killed(alone, tmp_path):
    python, environment = alone
    program(tmp_path / "path" / "impruver-compose", "os.kill(os.getpid(), 9)")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("")
    assert impruver("check", "--config", str(recipe), python=python, environment=environment).returncode == 137
