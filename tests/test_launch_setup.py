"""What ``launch.sh`` makes of its verbs and of ``.venv``, with a stand-in for Python; and how many ranks it takes."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from senet import REPOSITORY, launch
from senet.config.options import Config, TrainConfig
from senet.config.recipes import with_recipe
from senet.distributed.preemption import StopFlag
from senet.errors import ConfigError

# Makes a virtual environment of itself, "installs" torch into it, and says what else it is asked to run
PYTHON = """\
#!/bin/sh
echo "$(basename "$0") $*" >>"$CALLS"
venv=$(dirname "$(dirname "$0")")
case "$*" in
"-m venv --clear "*)
    for venv; do :; done
    rm -rf "$venv" && mkdir -p "$venv/bin" "$venv/packages" && cp "$0" "$venv/bin/python"
    printf '#!/bin/sh\\n%s\\n' "'''exec' \\"$venv/bin/python\\"" >"$venv/bin/pip"
    case "$*" in *--system-site-packages*)
        echo "include-system-site-packages = true" >"$venv/pyvenv.cfg" && touch "$venv/torch" ;;
    esac
    ;;
"-m pip install "*) if [ -n "$PIP_FAILS" ]; then exit 7; else touch "$venv/torch"; fi ;;
"-P -m senet.site_torch")
    if [ -n "$NO_TORCH" ]; then exit 2; fi
    printf '%s\\n' torch==2.12.1 '# /the site' torchvision==0.27.1
    ;;
"-I -c "*sysconfig*) echo "$venv/packages" ;;
"-I -c "*) [ -e "$venv/torch" ] ;;
"-c "*) ;;
*) echo "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which nothing is installed yet."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("launch.sh", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder)
    (tmp_path / "python3").write_text(PYTHON)
    (tmp_path / "python3").chmod(0o755)
    return folder


def start(
    checkout: Path, *args: str, before: tuple[str, ...] = (), cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    folder = checkout.parent
    environment = {"PATH": f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin", "CALLS": str(folder / "calls")} | env
    command = [*before, str(checkout / "launch.sh"), *args]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=180)


def installs(checkout: Path) -> list[str]:
    """The installations since this was last asked."""
    calls = checkout.parent / "calls"
    lines = calls.read_text().splitlines() if calls.exists() else []
    calls.write_text("")
    found = []
    for line in lines:
        if " -m venv " in line:
            found.append(line.split()[3])
        elif " -m pip " in line:
            found.append("pip" + line.partition(f"/{checkout.name}")[2])
    return found


def test_it_installs_once_and_again_when_the_list_of_packages_has_changed(checkout: Path) -> None:
    done = start(checkout, "train.epochs=1")
    assert (done.returncode, done.stdout) == (0, "-P -m senet.launch train train.epochs=1\n")
    assert installs(checkout) == ["--clear", "pip"]
    assert start(checkout, "train.epochs=1").stderr == ""
    assert start(checkout, "slurm", "status").stdout == f"{checkout}/slurm/submit.py --quickstart status\n"
    assert installs(checkout) == []
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# another\n")
    assert "installing" in start(checkout).stderr
    assert installs(checkout) == ["pip"]
    assert start(checkout, "setup", "benchmarks").returncode == 0
    assert installs(checkout) == ["pip[benchmarks]"]


@pytest.mark.parametrize(
    ("arguments", "extra", "runs"),
    [
        (["configs/a.yaml", "seed=1"], "", "-P -m senet.launch train configs/a.yaml seed=1"),
        (["train", "seed=1"], "", "-P -m senet.launch train seed=1"),
        (["predict", "runs/a", "b.jpg"], "", "-P -m senet.predict runs/a b.jpg"),
        (["predict", "a b.onnx", "b.jpg"], "export", "-P -m senet.predict a b.onnx b.jpg"),
        (["predict", "--json", "a.safetensors", "b.jpg"], "export", "-P -m senet.predict --json a.safetensors b.jpg"),
        (["evaluate", "runs/a"], "", "-P -m senet.evaluate runs/a"),
        (["export", "runs/a", "--format", "onnx"], "export", "-P -m senet.export runs/a --format onnx"),
        (["report", "runs/a"], "report", "-P -m senet.report runs/a"),
        (["data", "list"], "", "-P -m senet.data list"),
    ],
)
def test_a_verb_installs_what_it_needs_the_first_time(
    arguments: list[str], extra: str, runs: str, checkout: Path
) -> None:
    done = start(checkout, *arguments)
    assert (done.returncode, done.stdout) == (0, f"{runs}\n")
    assert installs(checkout) == ["--clear", f"pip[{extra}]" if extra else "pip"]
    assert start(checkout, *arguments).stderr == ""
    assert start(checkout).stderr == ""
    assert installs(checkout) == []


def test_an_extra_that_is_installed_later_is_said_in_one_line(checkout: Path) -> None:
    start(checkout)
    done = start(checkout, "export", "runs/a")
    assert done.stderr == f"launch.sh: installing what export needs into {checkout}/.venv (once)\n"


def test_the_extra_dev_holds_what_export_and_report_need(checkout: Path) -> None:
    start(checkout, "setup", "dev")
    assert installs(checkout) == ["--clear", "pip[dev]"]
    for arguments in (["export", "runs/a"], ["report", "runs/a"], ["setup"]):
        assert start(checkout, *arguments).stderr == ""
    assert installs(checkout) == []


def test_several_ranks_evaluate_under_torchrun_and_one_without(checkout: Path) -> None:
    for ranks, module in (("", "senet.evaluate"), ("1", "senet.evaluate"), ("2", "senet.launch evaluate")):
        assert start(checkout, "evaluate", "runs/a", NPROC=ranks).stdout == f"-P -m {module} runs/a\n"
    assert start(checkout, "evaluate", "--help", NPROC="2").stdout == "-P -m senet.evaluate --help\n"


def test_the_help_fits_a_screen_shows_each_verb_and_installs_nothing(checkout: Path) -> None:
    [page] = {start(checkout, *arguments).stdout for arguments in (["help"], ["--help"], ["-h"], ["setup", "--help"])}
    assert installs(checkout) == []
    lines = page.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    [verbs] = [line for line in (checkout / "launch.sh").read_text().splitlines() if line.startswith("verbs=")]
    table = lines[2 : lines.index("", 2)]
    assert f'verbs="{" ".join(line.split()[0] for line in table if line[0] != " ")}"' == verbs
    for word in ("NPROC=", "PYTHON=", "SYSTEM_TORCH=", "2 bad input", "README.md"):
        assert word in page


@pytest.mark.parametrize(
    "verb",
    ["train", "predict", "evaluate", "export", "report", "compare", "tensorboard", "drill", "doctor", "slurm", "data"],
)
def test_the_help_of_a_verb_never_makes_a_set_up(verb: str, checkout: Path) -> None:
    page = start(checkout, "help").stdout
    own = {
        "slurm": f"{checkout}/slurm/submit.py --quickstart",
        "train": "-P -m senet.launch train",
    }.get(verb, f"-P -m senet.{verb}")
    last = "launch.sh: more help needs .venv: ./launch.sh setup\n"
    done = start(checkout, verb, "--help")
    assert (done.returncode, done.stdout) == (0, page if verb == "tensorboard" else page + last)
    assert not (checkout / ".venv").exists()
    start(checkout)
    installs(checkout)
    for words in ((verb, "--help"), ("help", verb)):
        assert start(checkout, *words).stdout == (page if verb == "tensorboard" else f"{own} --help\n")
    assert installs(checkout) == []


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("trian", "train"),
        ("Evaluate", "evaluate"),
        ("tensor-board", "tensorboard"),
        ("predictt", "predict"),
        ("cifar10", "configs/cifar10.yaml"),
    ],
)
def test_a_word_that_is_no_verb_is_refused_before_the_set_up(word: str, near: str, checkout: Path) -> None:
    (checkout / "configs").mkdir()
    shutil.copy(REPOSITORY / "configs" / "cifar10.yaml", checkout / "configs")
    done = start(checkout, word, "runs/a", PYTHON=sys.executable)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"launch.sh: '{word}' is neither a verb nor ")
    assert f"did you mean '{near}'?" in line
    assert not (checkout / ".venv").exists()
    assert "did you mean" not in start(checkout, "zzz", PYTHON=sys.executable).stderr


def test_tensorboard_shows_each_run_under_the_path_that_was_typed(checkout: Path, tmp_path: Path) -> None:
    for run in ("runs/one", "runs/a two"):
        (tmp_path / run / "tensorboard").mkdir(parents=True)
    done = start(
        checkout, "tensorboard", "runs/one/", "runs/a two", f"{tmp_path}/runs/one", "--port", "1", cwd=tmp_path
    )
    named = f"runs/one:runs/one/tensorboard,runs/a two:runs/a two/tensorboard,{str(tmp_path)[1:]}/runs/one:{tmp_path}"
    assert done.stdout == f"-P -m tensorboard.main --logdir_spec={named}/runs/one/tensorboard --port 1\n"


def test_tensorboard_shows_the_runs_of_a_folder_each_under_its_own_path(checkout: Path, tmp_path: Path) -> None:
    for cell in ("lr=0.1_seed=0", "lr=0.1_seed=1"):
        (tmp_path / "runs/rates" / cell / "tensorboard").mkdir(parents=True)
    (tmp_path / "runs/rates/not begun").mkdir()
    done = start(checkout, "tensorboard", "runs/rates/", cwd=tmp_path)
    cells = [f"runs/rates/lr=0.1_seed={seed}" for seed in (0, 1)]
    named = ",".join(f"{cell}:{cell}/tensorboard" for cell in cells)
    assert done.stdout == f"-P -m tensorboard.main --logdir_spec={named}\n"
    (tmp_path / "runs/rates/a,b").mkdir()
    assert "runs/rates/a,b has a comma" in start(checkout, "tensorboard", "runs/rates", cwd=tmp_path).stderr


def test_a_comparison_needs_an_extra_only_for_its_page(checkout: Path) -> None:
    start(checkout, "compare", "runs")
    assert installs(checkout) == ["--clear", "pip"]
    done = start(checkout, "compare", "runs", "--page=a.html")
    assert done.stdout == "-P -m senet.compare runs --page=a.html\n"
    assert installs(checkout) == ["pip[report]"]


@pytest.mark.parametrize(
    ("runs", "why"),
    [([], "takes one run directory or more"), (["none"], "none/tensorboard: no such folder"), (["a,b"], "a comma")],
)
def test_tensorboard_without_a_run_is_refused_before_the_set_up(runs: list[str], why: str, checkout: Path) -> None:
    done = start(checkout, "tensorboard", *runs)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("launch.sh: tensorboard")
    assert why in line
    assert installs(checkout) == []


def test_a_checkout_that_was_moved_or_copied_is_set_up_anew(checkout: Path) -> None:
    start(checkout)
    moved = checkout.rename(checkout.parent / "moved")
    installs(moved)
    assert start(moved).returncode == 0
    assert installs(moved) == ["--clear", "pip"]


@pytest.mark.parametrize("gone", [".venv/bin/python", ".venv/torch", ".venv/bin/pip"])
def test_a_python_that_was_upgraded_or_a_set_up_that_was_cut_short_is_mended(checkout: Path, gone: str) -> None:
    start(checkout)
    (checkout / gone).unlink()  # a dangling link; packages of another version's folder; pip was killed
    installs(checkout)
    assert start(checkout).returncode == 0
    assert installs(checkout) == ["--clear", "pip"]


def test_the_torch_of_the_site_is_seen_and_kept_by_pip_and_asked_for_once(checkout: Path) -> None:
    venv = checkout / ".venv"
    assert start(checkout, SYSTEM_TORCH="1").returncode == 0
    calls = (checkout.parent / "calls").read_text()
    assert f"python3 -m venv --clear --system-site-packages {venv}\n" in calls
    assert f" --constraint {venv}/.site-torch --editable {checkout}\n" in calls
    assert (venv / ".site-torch").read_text() == "torch==2.12.1\n# /the site\ntorchvision==0.27.1\n"
    assert (venv / "packages" / "site-torch.pth").read_text() == "/the site\n"
    for again in ({}, {"SYSTEM_TORCH": "1"}):
        installs(checkout)
        assert start(checkout, **again).stderr == ""
        assert installs(checkout) == []
    start(checkout, "report", "runs/a")
    assert (
        f" --constraint {venv}/.site-torch --editable {checkout}[report]\n" in (checkout.parent / "calls").read_text()
    )
    moved = checkout.rename(checkout.parent / "moved")
    assert start(moved).returncode == 0
    assert (moved / ".venv" / "packages" / "site-torch.pth").exists()


def test_a_start_that_was_killed_before_it_noted_the_torch_of_the_site_is_made_good(checkout: Path) -> None:
    venv = checkout / ".venv"
    noted = (venv / ".site-torch", venv / "packages" / "site-torch.pth")
    start(checkout, SYSTEM_TORCH="1")
    for again in ({}, {"SYSTEM_TORCH": "1"}):
        for file in (*noted, venv / ".installed"):
            file.unlink()
        (checkout.parent / "calls").write_text("")
        assert start(checkout, **again).returncode == 0
        assert f" --constraint {venv}/.site-torch " in (checkout.parent / "calls").read_text()
        assert all(file.exists() for file in noted)


@pytest.mark.parametrize(
    ("made", "asked", "why"), [("", "1", "has a torch of its own"), ("1", "0", "uses the site's torch")]
)
def test_a_venv_with_the_other_torch_is_kept_and_the_remedy_is_said(
    made: str, asked: str, why: str, checkout: Path
) -> None:
    start(checkout, SYSTEM_TORCH=made)
    installs(checkout)
    done = start(checkout, SYSTEM_TORCH=asked)
    assert done.returncode == 2
    venv = checkout / ".venv"
    assert done.stderr == f"launch.sh: SYSTEM_TORCH={asked}, but {venv} {why}; remove it first: rm -r '{venv}'\n"
    assert installs(checkout) == []
    (venv / "torch").unlink()  # a set-up that was cut short is nothing to keep
    assert start(checkout, SYSTEM_TORCH=asked).returncode == 0
    assert (venv / ".site-torch").exists() == (asked == "1")


def test_a_site_without_a_torch_that_will_do_leaves_no_venv_behind(checkout: Path) -> None:
    assert start(checkout, SYSTEM_TORCH="1", NO_TORCH="1").returncode == 2
    assert not (checkout / ".venv").exists()
    done = start(checkout, SYSTEM_TORCH="yes")
    assert done.returncode == 2
    assert done.stderr.startswith("launch.sh: SYSTEM_TORCH=yes: use 1 ")
    assert start(checkout).returncode == 0
    assert not (checkout / ".venv" / ".site-torch").exists()


@pytest.mark.parametrize(
    ("free_gb", "temporary_gb", "said"),
    [
        (6.5, 50, "{venv} has 6.5 GB free; torch for CUDA takes about 7 GB there"),
        (50, 1.25, "{tmp} has 1.2 GB free; torch for CUDA takes about 4 GB there"),
        (50, 50, ""),
    ],
)
def test_where_pip_fails_on_a_small_disk_the_space_is_said(
    free_gb: float, temporary_gb: float, said: str, checkout: Path, tmp_path: Path
) -> None:
    blocks = {"venv": int(free_gb * 2**20), "tmp": int(temporary_gb * 2**20)}
    df = f"case $2 in */.venv) free={blocks['venv']} ;; *) free={blocks['tmp']} ;; esac\necho head; echo / 1 2 $free"
    (tmp_path / "df").write_text(f"#!/bin/sh\n{df}\n")
    (tmp_path / "df").chmod(0o755)
    done = start(checkout, PIP_FAILS="1", TMPDIR=str(tmp_path))
    assert done.returncode == 7
    lines = done.stderr.splitlines()[1:]
    assert lines == [f"launch.sh: {said.format(venv=checkout / '.venv', tmp=tmp_path)}: docs/install.md"][: bool(said)]
    for torch_is_there in ({"SYSTEM_TORCH": "1"}, {}):
        assert len(start(checkout, PIP_FAILS="1", TMPDIR=str(tmp_path), **torch_is_there).stderr.splitlines()) == 1


def test_where_pip_fails_without_a_folder_for_temporary_files_nothing_is_said_of_it(
    checkout: Path, tmp_path: Path
) -> None:
    done = start(checkout, PIP_FAILS="1", TMPDIR=str(tmp_path / "none"))
    assert done.returncode == 7
    assert "none" not in done.stderr
    assert "number" not in done.stderr  # of a comparison with nothing


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_checkout_that_cannot_be_written_is_used_as_it_is_or_refused_in_one_line(checkout: Path) -> None:
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    read_only = ("unshare", "--mount", "sh", "-c", mount, str(checkout))
    done = start(checkout, before=read_only)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"launch.sh: {checkout}/.venv is not set up, and {checkout} cannot be written; ")
    start(checkout)
    done = start(checkout, before=read_only)
    assert (done.returncode, done.stdout, done.stderr) == (0, "-P -m senet.launch train\n", "")
    remedy = f", and {checkout} cannot be written; copy it to a folder of your own\n"
    done = start(checkout, "report", "runs/a", before=read_only)
    assert (done.returncode, done.stderr) == (2, f"launch.sh: {checkout}/.venv lacks what report needs{remedy}")
    (checkout / ".venv" / "bin" / "python").chmod(0o644)  # of another user
    done = start(checkout, before=read_only)
    assert (done.returncode, done.stderr) == (2, f"launch.sh: {checkout}/.venv/bin/python cannot be run by you{remedy}")


def test_the_extras_of_setup_are_those_of_the_project(checkout: Path) -> None:
    known = list(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    [words] = re.findall('^setup_extras="(.*)"$', (REPOSITORY / "launch.sh").read_text(), re.M)
    assert sorted(words.split()) == sorted(known)
    assert f"setup        [{' | '.join(words.split())}]\n" in start(checkout, "help").stdout
    done = start(checkout, "setup", "test")
    assert (done.returncode, done.stderr) == (2, f"launch.sh: setup test: no such extra; there is: {words}\n")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["help", "nonsense"], "help takes one verb, or nothing"),
        (["setup", "dev", "extra"], "setup takes one extra at a time, found: dev extra"),
        (["setup", "dev report"], "setup dev report: no such extra"),
        (["train predict"], "'train predict' is neither a verb nor "),
    ],
)
def test_words_that_no_verb_takes_are_refused(arguments: list[str], why: str, checkout: Path) -> None:
    (checkout / "configs").mkdir()
    done = start(checkout, *arguments)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"launch.sh: {why}")
    assert installs(checkout) == []


def test_a_verb_that_only_the_list_knows_is_refused(checkout: Path) -> None:
    script = checkout / "launch.sh"
    script.write_text(script.read_text().replace('\nverbs="', '\nverbs="fly '))
    assert start(checkout, "fly").returncode == 2


@pytest.mark.parametrize(
    ("gpus", "batch", "accumulate", "expected"),
    [
        (8, 64, 1, 8),
        (7, 64, 1, 4),
        (6, 64, 1, 4),
        (3, 64, 1, 2),
        (8, 96, 3, 8),
        (6, 96, 4, 6),
        (0, 64, 1, 2),
        (0, 63, 1, 1),
    ],
)
def test_without_nproc_it_takes_the_most_ranks_that_divide_the_batch_and_says_so(
    gpus: int,
    batch: int,
    accumulate: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setattr(launch, "count_gpus", lambda: gpus)
    assert launch.choose_ranks(Config(train=TrainConfig(global_batch_size=batch, accumulate=accumulate))) == expected
    note = capsys.readouterr().err
    assert (note == "") == (expected == (gpus or 2))
    if note:
        assert f"launch.sh: {expected} rank(s) " in note
        assert f"train.global_batch_size={batch}" in note


def test_nproc_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "count_gpus", lambda: 8)
    monkeypatch.setenv("NPROC", "")
    assert launch.choose_ranks(Config(train=TrainConfig(device="cpu"))) == 2
    monkeypatch.setenv("NPROC", "4")
    assert launch.choose_ranks(Config()) == 4
    monkeypatch.setenv("NPROC", "3")
    with pytest.raises(ConfigError, match="use a multiple of 3"):
        launch.choose_ranks(Config())
    for wrong in ("two", "0", "-1", "1.5"):
        monkeypatch.setenv("NPROC", wrong)
        with pytest.raises(ConfigError, match=f"NPROC={wrong} is not a number of ranks"):
            launch.choose_ranks(Config())


def test_an_option_that_ends_as_a_file_does_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[list[str]] = []

    def torchrun(_ranks: int, command: list[str], *_: object) -> tuple[int, str]:
        started.append(command[1:])
        return 1, "nothing was begun"

    monkeypatch.setattr(os, "environ", dict(os.environ))  # it sets what the ranks inherit
    monkeypatch.setattr(launch, "run_ranks", torchrun)
    (tmp_path / "own.yml").write_text("train: {epochs: 1}\n")
    for arguments in (["data.root=own.yml"], [], [str(tmp_path / "own.yml")]):
        assert launch.main(["train", *arguments], StopFlag()) == 1
    quickstart = str(REPOSITORY / "configs" / "quickstart.yaml")
    assert started == [[quickstart, "data.root=own.yml"], [quickstart], [str(tmp_path / "own.yml")]]


def test_the_doctor_has_nproc_ranks_whether_or_not_they_can_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[int, list[str]]] = []

    def run_ranks(ranks: int, command: list[str], *_: object) -> tuple[int, str]:
        started.append((ranks, command))
        return 0, ""

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(launch, "run_ranks", run_ranks)
    for ranks in (3, 2):
        os.environ["NPROC"] = "3" if ranks == 3 else ""
        assert launch.main(["doctor", "train.device=cpu", "--json", "--max-seconds", "5"], StopFlag()) == 0
    quickstart = str(REPOSITORY / "configs" / "quickstart.yaml")
    command = ["-m", "senet.doctor", quickstart, "train.device=cpu", "--json", "--max-seconds", "5"]
    assert started == [(3, command), (2, command)]


@pytest.mark.parametrize(
    ("received", "code", "expected", "said"),
    [
        ("SIGINT", -1, 130, []),  # as one process ends
        ("SIGTERM", -1, 1, ["launch.sh: evaluate: stopped by SIGTERM"]),
        ("", -1, 1, ["launch.sh: evaluate: failed: no ports; torchrun says:", "Traceback", "words"]),
        ("", 2, 2, []),  # a rank has said why
    ],
)
def test_an_evaluation_by_several_ranks_ends_as_that_by_one_or_says_all_that_is_known(
    received: str,
    code: int,
    expected: int,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def torchrun(_ranks: int, _command: list[str], _folder: str, words: io.StringIO, stop: StopFlag) -> tuple[int, str]:
        stop.signal_name = received
        words.write("Traceback\nwords")
        return code, "no ports"

    monkeypatch.setattr(os, "environ", dict(os.environ))  # it sets what the ranks inherit
    monkeypatch.setattr(launch, "run_ranks", torchrun)
    assert launch.main(["evaluate", "run"], StopFlag()) == expected
    assert capsys.readouterr().err.splitlines() == said


def test_the_recipes_beside_the_launcher_are_found_from_any_folder_but_do_not_win(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    recipe = REPOSITORY / "configs" / "fast.yaml"
    monkeypatch.chdir(tmp_path)
    for verb in ("train", "slurm"):
        assert with_recipe(verb, ["seed=1", "configs/fast.yaml"], said.append) == ["seed=1", str(recipe)]
    assert said == 2 * [f"configs/fast.yaml is not in this folder; taken from {recipe}"]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "fast.yaml").write_text("seed: 2\n")
    own = ["configs/fast.yaml", "configs/none.yaml"]
    assert with_recipe("train", own, said.append) == own
    assert len(said) == 2


def test_own_images_without_a_recipe_are_refused_with_the_command_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENET_COMMAND", "../a folder/launch.sh")
    own = ["data.source=imagefolder", "data.folder=my images"]
    with pytest.raises(ConfigError) as refused:
        with_recipe("slurm", own, print)
    typed = "'../a folder/launch.sh' slurm configs/cifar10.yaml data.source=imagefolder 'data.folder=my images'"
    assert str(refused.value).endswith(f"type: {typed} run_dir=runs/NAME")
    with pytest.raises(ConfigError, match=r"run_dir=x$"):
        with_recipe("train", [*own, "run_dir=x"], print)
    assert with_recipe("train", ["data.root=elsewhere"], print)[1:] == ["data.root=elsewhere"]
