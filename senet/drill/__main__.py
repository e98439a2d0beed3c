"""Train a little, kill it, resume, compare: ``./launch.sh drill [FILE.yaml ...] [key=value ...] [drill.steps=60]``."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from senet.command import Parser, end
from senet.config.load import load_config
from senet.config.options import Config
from senet.config.recipes import with_recipe
from senet.config.shares import check_split
from senet.distributed.devices import count_gpus
from senet.drill.plan import take_options
from senet.errors import FAILED_EXIT_CODE, ConfigError
from senet.launch import choose_ranks, refuse_other_packages
from senet.verbs import typed


def main(argv: Sequence[str]) -> int:
    """0: the same bits; 1: a difference, or a start failed; 2: bad input."""
    size, words = take_options(_parser().parse_intermixed_args(argv).words)
    refuse_other_packages()
    words = with_recipe("drill", words, _say)
    config = load_config(words)
    gpus = count_gpus() if config.train.device != "cpu" else 0
    size = replace(size, ranks=size.ranks or _usual_ranks(config, gpus))
    for ranks in size.ranks:
        check_split(config, ranks)
        if gpus and ranks > gpus:
            given = f"{ranks} rank(s) (drill.ranks, or NPROC)"
            raise ConfigError(f"{given} need as many GPUs, and there are {gpus}; use fewer, or train.device=cpu")
    for each in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) != signal.SIG_IGN:  # nohup ignores one
            signal.signal(each, lambda *_: sys.exit(FAILED_EXIT_CODE))  # the start that runs is ended first
    scratch = _scratch_folder()
    _say(f"{size.steps} updates of {config.model.name}, unbroken, and again with two kills; in {scratch}")
    from senet.drill.starts import carry_out
    from senet.drill.trials import Trials, drill_all  # takes seconds: torch

    wanted = True  # what the starts have left, where there is a difference or a failure
    try:
        wanted = not drill_all(Trials(words, config, size, scratch, carry_out, _say))
    except (ConfigError, KeyboardInterrupt, SystemExit) as error:
        wanted = False
        if not isinstance(error, ConfigError):
            _say("stopped; nothing is kept, the same command begins again")
        raise
    finally:
        if not wanted:
            shutil.rmtree(scratch, ignore_errors=True)
    return FAILED_EXIT_CODE if wanted else 0


def _usual_ranks(config: Config, gpus: int) -> tuple[int, ...]:
    """What a training would take, and with shards another number, if there are GPUs for it."""
    ranks = choose_ranks(config)
    if config.train.shards < 2:
        return (ranks,)
    if gpus == 1 and ranks == 1:
        _say("on 1 GPU it drills 1 rank only, not another number of ranks")
        return (1,)
    return (ranks, ranks // 2) if ranks > 1 else (1, 2)


def _scratch_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="senet-drill-"))
    except OSError as error:
        text = f"no folder for temporary files: {error}; name one that can be written with TMPDIR"
        raise ConfigError(text) from None


def _say(what: object) -> None:
    print(f"drill: {what}", file=sys.stderr, flush=True)


def _parser() -> Parser:
    parser = Parser(
        prog=typed("drill"),
        description="Trains your network on your images with your options for a while, in a folder of its own: once "
        "undisturbed, once with two SIGKILLs, and compares all tensors and scores bit by bit. Where they differ, it "
        "looks for the cause.",
        epilog="Exit code: 0 the same bits, 1 a difference or a failure, 2 bad input.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        default=(),
        metavar="FILE.yaml | key=value",
        help="as of train; besides, drill.steps=60: updates, 8 or more; drill.ranks=1,2: numbers of ranks, each "
        "drilled; default: what train takes",
    )
    return parser


if __name__ == "__main__":
    end("drill", main)
