"""What the documents tell people to type, typed from the top of each page to its end, in a folder of the page's own.

As it stands there, but for what ``SMALLER`` replaces, what ``NOT_RUN`` leaves out, and the recipes: in that folder
those of ``configs/`` train a small network on a hundred pictures, on one rank unless a line says how many. With the
real recipes, the options of a command are read, no more.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from senet import REPOSITORY
from senet.config.load import load_config
from senet.config.recipes import with_recipe
from senet.errors import ConfigError
from tests.conftest import Once
from tests.documents import PAGES, Block, Command, blocks, commands, name
from tests.harness import rows
from tests.soak import soak

RECIPE = """\
data: {source: imagefolder, folder: photos, image_size: 16}
model: {name: resnet20}
train: {epochs: 2, global_batch_size: 16, threads_per_rank: 1, ema_decay: 0.9, amp: off}
checkpoint: {every_steps: 5}
optim: {momentum: 0.0, nesterov: false}
log: {every_steps: 2, to: []}
"""
NETWORK = """\
from torch import nn


def function(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, num_classes))
"""
RECIPES = ("baseline", "cifar10", "fast", "imagenet", "photos", "quickstart")
PACKED = ("imagenet", "photos")
BEGIN_UNTRAINED = ("README.md", "docs/index.md")  # the others find runs/cifar10 and runs/other finished
RUN = ("./launch.sh", "NPROC=", "MLFLOW_TRACKING_URI=", "torchrun ", "python train_ddp.py")
"""How a command may begin."""
SMALLER = {
    r"^\./launch\.sh$": "./launch.sh configs/quickstart.yaml",
    r"^torchrun --nproc_per_node=4 (train_ddp\.py .*)$": (
        r"torchrun --standalone --nproc_per_node=2 \1 run_dir=runs/torchrun"
    ),
    r"^python train_ddp\.py .*$": r"\g<0> run_dir=runs/alone",
    r"^\./launch\.sh drill .*$": r"\g<0> drill.steps=8",
    r" optim\.lr=0\.05,0\.1(,0\.2)? seed=0\.\.4": " optim.lr=0.05,0.1 seed=0",
    r"sweep\.random=3": "sweep.random=1",
    r"train\.epochs=60": "train.epochs=3",
    r"timm:resnet50d": "timm:test_resnet",
    r"step_000000200": "step_000000005",
    r"/path/to/images": "photos",
}
"""Of a command, as regular expressions, what is replaced by something that takes less time."""
NOT_RUN = {
    "make (test|quick)$": "they run this test, or others",
    "(CUDA_VISIBLE_DEVICES= |GPU_TESTS_DEVICE=cpu )?make (gpu|test)": "likewise; tests/test_gpu_kit.py tries some",
    "(PYTHON|SYSTEM_TORCH|PIP_NO_INDEX)=": "installs packages: tests/test_launch_setup.py, tests/test_site_torch.py",
    "(python3 -m )?(venv|pip download) |torch-cu126/bin/pip ": "needs package indexes",
    "module load ": "needs a cluster's modules",
    "git clone REPOSITORY": "REPOSITORY is wherever it is published",
    "CUDA_VISIBLE_DEVICES=0,1 ": "needs two GPUs",
    "torchrun --nnodes=2 ": "needs two hosts: tests/hosts has two agents of torchrun",
    r"\./launch\.sh slurm (configs/cifar10\.yaml|status$|stop runs)": "needs SLURM: tests/test_slurm_cluster.py",
    r"\./launch\.sh slurm (sweep|status rates|stop rates)": "needs SLURM: tests/test_slurm_sweep.py does it",
    r"\./launch\.sh slurm (clear|doctor) ": "needs SLURM: tests/test_slurm_check.py does it",
    r"\./launch\.sh slurm .*slurm\.cluster=local": "goes on in the background: tests/test_slurm_local.py waits for it",
    r"\./launch\.sh predict .*https://": "needs the internet: tests/test_fetch.py has a server",
    r"\./launch\.sh .*init_from=torchvision:": "needs the internet: tests/test_weights.py has a cache",
    r"\./launch\.sh profile ": "needs a run that trains: tests/test_profile.py has one",
    r"\./launch\.sh tensorboard ": "serves until it is stopped",
    r"\./launch\.sh setup \w": "installs packages",
    r"\./launch\.sh sync runs/shown": "needs the services: tests/test_views_kills.py has some",
    r"\.venv/bin/python benchmarks/": "takes minutes on a machine without other work",
}
"""How a command begins that is left out, and why."""


in_own_environment = pytest.mark.skipif(
    Path(sys.prefix) != REPOSITORY / ".venv", reason="launch.sh has a virtual environment of its own: use make test"
)


def types_commands(test: Callable[..., None]) -> Callable[..., None]:
    limit = pytest.mark.timeout(3000)  # of all commands of a page
    marked: Callable[..., None] = limit(pytest.mark.ranks(pytest.mark.slow(in_own_environment(test))))
    return marked


FOLLOWED_LATER = {"drill", "notify", "profile", "report-and-tensorboard", "several-gpus-and-hosts", "sweeps", "views"}
"""Pages of features whose own tests type the same commands: 4 minutes on 2 cores."""


def is_left_out(command: str) -> bool:
    return any(re.match(start, command) for start in NOT_RUN)


def smaller(command: str) -> str:
    for text, other in SMALLER.items():
        command = re.sub(text, other, command)
    return command


def typed_commands(page: Path) -> list[Command]:
    return [command for block in blocks(page) for command in commands(block)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_is_run_or_left_out_for_a_reason(page: Path) -> None:
    lines = [command.text for command in typed_commands(page)]
    assert not [line for line in lines if not is_left_out(line) and not line.startswith(RUN)]


def test_what_is_replaced_or_left_out_stands_in_some_page() -> None:
    lines = [command.text for page in PAGES for command in typed_commands(page)]
    assert not [text for text in (*SMALLER, *NOT_RUN) if not any(re.search(text, line) for line in lines)]


def named_options(command: str) -> list[str] | None:
    """What a command gives the trainer, with the recipe that launch.sh adds; None for a command of another kind."""
    words = [word for word in shlex.split(command) if not re.match("[A-Z_]+=", word) and word != "--dry-run"]
    if "train_ddp.py" in words:
        return words[words.index("train_ddp.py") + 1 :]
    if words[1:3] in (["data", "prepare"], ["data", "verify"]):
        return words[3:]
    verb = words[1] if words[1:2] in (["train"], ["drill"], ["slurm"]) else "train"
    given = [word for word in words[1:] if word != verb and not word.startswith("drill.")]
    is_of_options = not given or "=" in given[0] or given[0].endswith(".yaml")
    return with_recipe(verb, given, pytest.fail) if words[0] == "./launch.sh" and is_of_options else None


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_real_recipes_have_every_option_that_a_command_sets(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    for command in typed_commands(page):
        ranks = int((re.match(r"NPROC=(\d+) ", command.text) or ["", "1"])[1])
        refused = (command.output or "").partition("launch.sh: ")[2].strip()
        if refused:
            with pytest.raises(ConfigError, match=f"^{re.escape(refused)}$"):
                load_config(named_options(command.text) or [], ranks)
        elif (argv := named_options(command.text)) is not None:
            load_config(argv, ranks)


def run(folder: Path, command: str, *, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Its output and errors, in the order in which they came."""
    env = {"NPROC": "1", **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}  # it stands for the checkout
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, input=stdin, timeout=300, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture(scope="session")
def untrained(once: Once) -> Path:
    """A folder as somebody has it who has cloned the repository, and has pictures."""
    return once("documents_untrained", _clone)


def _clone(folder: Path) -> None:
    folder.mkdir()
    for entry in ("launch.sh", "train_ddp.py", "slurm"):
        (folder / entry).symlink_to(REPOSITORY / entry)
    (folder / "configs").mkdir()
    for recipe in RECIPES:
        text = RECIPE.replace("image_size: 16", "image_size: 16, store: encoded") if recipe in PACKED else RECIPE
        (folder / "configs" / f"{recipe}.yaml").write_text(text)
    draw = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for label, animal in enumerate(("cat", "dog")):
            (folder / "photos" / split / animal).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(100 * label, 100 * label + 100, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / split / animal / f"{number:04}.jpg")
    images = sorted((folder / "photos").glob("*/*/*.jpg"))
    for table, header, test in (
        ("photos/labels.csv", "path,label,split", "val"),
        ("species.csv", "path,species,split", "dev"),
    ):
        rows = [f"{Path(*image.parts[-3:])},{image.parts[-2]},{image.parts[-3]}" for image in images]
        (folder / table).write_text("\n".join([header, *rows]).replace(",test", f",{test}"))
    Image.fromarray(pixels).resize((70, 50)).save(folder / "image.jpg")
    (folder / "folder").symlink_to("photos/test/cat")
    (folder / "package").mkdir()
    (folder / "package" / "module.py").write_text(NETWORK)


@pytest.fixture(scope="session")
def trained(untrained: Path, once: Once) -> Path:
    """The same with two runs that have finished, and the weights of one in a file."""

    def train(folder: Path) -> None:
        shutil.copytree(untrained, folder, symlinks=True)
        done = run(folder, "python train_ddp.py configs/cifar10.yaml")
        assert done.returncode == 0, done.stdout
        shutil.copytree(folder / "runs" / "cifar10", folder / "runs" / "other")
        code = "import sys, torch; torch.save(torch.load(sys.argv[1])['model'], 'weights.pt')"
        assert run(folder, f'python -c "{code}" runs/cifar10/checkpoints/step_000000010.g0001.pt').returncode == 0

    return once("documents_trained", train)


def follow(block: Block, folder: Path) -> list[str]:
    """Do what a block says; what went wrong."""
    if block.language == "python":
        if file := re.match(r"# (\w+\.py)\n", block.text):
            (folder / file[1]).write_text(block.text)
            return []
        done = run(folder, "python -", stdin=block.text)
        return [] if done.returncode == 0 else [f"line {block.line}: {done.stdout}"]
    found = []
    for command in commands(block):
        if not is_left_out(command.text):
            done = run(folder, smaller(command.text))
            if command.output is None and done.returncode:
                found.append(f"{command.text}\nended with {done.returncode}:\n{done.stdout}")
            elif command.output and not is_shown(done.stdout, command.output):
                found.append(f"{command.text}\nprinted\n{done.stdout}not\n{command.output}")
    return found


def is_shown(printed: str, shown: str) -> bool:
    return re.fullmatch(re.escape(shown).replace(r"\.\.\.", ".*"), printed, re.DOTALL) is not None


@types_commands
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[soak] * (page.stem in FOLLOWED_LATER)) for page in PAGES], ids=name
)
def test_a_page_can_be_followed(page: Path, untrained: Path, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(untrained if name(page) in BEGIN_UNTRAINED else trained, folder, symlinks=True)
    found = [problem for block in blocks(page) for problem in follow(block, folder)]
    assert not found, "\n\n".join(found)


@types_commands
def test_the_changes_of_the_code_can_be_made_and_do_what_they_say(untrained: Path, tmp_path: Path) -> None:
    shutil.copytree(untrained, tmp_path, symlinks=True, dirs_exist_ok=True)
    (tmp_path / "train_ddp.py").unlink()
    shutil.copy(REPOSITORY / "train_ddp.py", tmp_path)
    shutil.copytree(REPOSITORY / "senet", tmp_path / "senet", ignore=shutil.ignore_patterns("__pycache__"))
    for block in blocks(REPOSITORY / "docs/change-it.md"):
        if block.language == "diff":
            apply(block, tmp_path)
    done = run(tmp_path, "python train_ddp.py configs/cifar10.yaml schedule.name=sqrt log.every_steps=1")
    assert done.returncode == 0, done.stdout
    run_dir = tmp_path / "runs" / "cifar10"
    assert [row["lr"] for row in rows(run_dir)] == [0.1 * math.sqrt(1 - t / 10) for t in range(10)]


def apply(block: Block, folder: Path) -> None:
    """Each part, '--- file' and its lines, to the one place where the old lines stand."""
    for part in re.split(r"^--- ", block.text, flags=re.MULTILINE)[1:]:
        file, _, lines = part.partition("\n")
        changes = [(line[:1], line[1:]) for line in lines.splitlines()]
        old, new = ("".join(f"{text}\n" for mark, text in changes if mark in marks) for marks in (" -", " +"))
        before = (folder / file).read_text()
        assert before.count(old) == 1, f"{file}: {old}"
        (folder / file).write_text(before.replace(old, new))
