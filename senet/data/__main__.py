"""``python -m senet.data prepare|verify|list|prune``: the images that are kept below data.root, without a training."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from senet.command import Parser, end, printable
from senet.config.load import load_config, named_path
from senet.config.options import DataConfig
from senet.config.recipes import with_recipe
from senet.data.stores import choice
from senet.data.stores.catalog import described, in_bytes, stored_at, stored_below
from senet.data.stores.removal import remove, remove_unneeded, unneeded, why_it_stays
from senet.data.stores.uses import note_prepared
from senet.data.stores.verify import verify_store
from senet.errors import FAILED_EXIT_CODE, ConfigError, RunError, did_you_mean
from senet.verbs import by_launcher, typed

_MOST = 20  # names that are printed of what is wrong


class Command(NamedTuple):
    """One of those below, as ``--help`` tells of it."""

    does: str
    words: str
    function: Callable[[Namespace], int]
    flags: dict[str, str]


def main(argv: Sequence[str]) -> int:
    """Do what the first word says; the exit code."""
    name, *words = argv or [""]
    if name in ("-h", "--help"):
        head = f"usage: {typed('data')} COMMAND [...]; {typed('data')} COMMAND --help tells more"
        print("\n".join([head, "", *(f"  {name:<8} {command.does}" for name, command in COMMANDS.items())]))
        return 0
    if name not in COMMANDS:
        near = did_you_mean(name, list(COMMANDS)) or f"use {', '.join(COMMANDS)}"
        raise ConfigError(f"{name!r} is no command; {near}")
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr, level=logging.WARNING, force=True)
    command = COMMANDS[name]
    parser = Parser(prog=f"{typed('data')} {name}", description=f"{command.does[0].upper()}{command.does[1:]}.")
    parser.add_argument("words", nargs="*", metavar="WORD", help=command.words)
    for flag, meaning in command.flags.items():
        parser.add_argument(flag, action="store_true", help=meaning)
    return command.function(parser.parse_intermixed_args(words))


def prepare(arguments: Namespace) -> int:
    """Look at all images; build the store, or add to it."""
    began = time.monotonic()
    store, packed = choice.prepare(_options("prepare", arguments.words), anyway=arguments.anyway)
    note_prepared(store)
    stored = stored_at(store)
    left_out = f"; left out: {stored.meta['left_out']}" if stored.meta.get("left_out") else ""
    _say(f"{described(stored)[0]}; {packed}{left_out}; {time.monotonic() - began:.1f} s")
    _say(f"a training with these options opens it: {typed('train')} {shlex.join(arguments.words)}".rstrip())
    return 0


def verify(arguments: Namespace) -> int:
    """Read all of a store; 1 where anything is wrong."""
    words, threads = arguments.words, 0
    if len(words) == 1 and named_path(words[0]).is_dir():
        store = named_path(words[0])
    else:
        data = _options("verify", words)
        store, threads = choice.store_folder(data), data.decode_threads
    if not (store / "meta.json").is_file():
        raise ConfigError(f"{store}: there is no store; build it: {typed('data')} prepare CONFIG")
    began = time.monotonic()
    try:
        found = verify_store(store, threads)
    except ConfigError as error:  # it cannot be opened
        raise RunError(str(error)) from None
    for text, names in (("damaged", found.damaged), ("cannot be decoded", found.undecodable)):
        more = [f"{len(names) - _MOST:,} more"] if len(names) > _MOST else []
        for name in [*names[:_MOST], *more]:
            _say(f"{text}: {name}")
    counts = f"{len(found.damaged):,} damaged, {len(found.undecodable):,} cannot be decoded"
    _say(f"{store}: {found.read} read, {counts}; {time.monotonic() - began:.1f} s")
    again = f"{typed('data')} prepare CONFIG"
    if found.damaged:
        _say(f"remove what is damaged, and have it built again: rm -r {shlex.join(map(str, found.to_remove))}; {again}")
    if found.undecodable:
        _say(f"repair or remove these files where the images are, and then: {again}")
    return FAILED_EXIT_CODE if found.damaged or found.undecodable else 0


def show(arguments: Namespace) -> int:
    """Print all that is kept."""
    root = Path(_options("list", arguments.words).root)
    found = stored_below(root)
    if arguments.json:
        print(json.dumps([each.facts() for each in found], indent=1))
        return 0
    lines = [line for each in found for line in described(each)]
    _say(*(lines or [f"{root / 'stores'}: nothing is kept there"]))
    return 0


def prune(arguments: Namespace) -> int:
    """Print what can go; with --delete remove it."""
    named = [word for word in arguments.words if "=" not in word and not word.endswith((".yaml", ".yml"))]
    root = Path(_options("prune", [word for word in arguments.words if word not in named]).root)
    found = [stored_at(_below(word, root)) for word in named] if named else stored_below(root)
    freed, left = 0, False
    for each in found:
        _say(*described(each))
        stays, inside = why_it_stays(each, named=bool(named)), unneeded(each)
        size = sum(path.stat().st_size for path in inside) if stays else each.size
        freed += size
        if stays:
            _say(f"  stays: {stays}")
            left |= bool(named)
        if stays and inside:
            _say(f"  can go: {in_bytes(size)} in {len(inside)} files that do not count")
        if arguments.delete and (inside or not stays):
            try:
                remove_unneeded(each) if stays else remove(each, named=bool(named))
                _say(f"  removed: {in_bytes(size)}")
            except (RunError, OSError) as error:
                left = True
                _say(f"  left alone: {error}")
        elif not stays:
            _say(f"  can go: {in_bytes(size)}")
    if not arguments.delete:
        _say(f"{in_bytes(freed)} can go{'; add --delete' if freed else ''}")
    return FAILED_EXIT_CODE if left and arguments.delete else 0


def _below(word: str, root: Path) -> Path:
    """A store by its path, or by its name below ``root``."""
    path = named_path(word)
    return path if path.exists() else root / "stores" / word


def _options(command: str, words: Sequence[str]) -> DataConfig:
    """As a training reads them."""
    if by_launcher():
        words = with_recipe(f"data {command}", words, lambda line: print(line, file=sys.stderr))
    return load_config(words).data


def _say(*lines: str) -> None:
    for line in lines:
        print(printable(line))


COMMANDS = {
    "prepare": Command(
        "build what a training reads its images from, or add what is new, without training",
        "YAML files and key=value, as for a training",
        prepare,
        {"--anyway": "also where runs that have not finished need the images as they were, and so cannot go on"},
    ),
    "verify": Command(
        "read all of a store, compare its digests, decode its images",
        "YAML files and key=value, as for a training; or the folder of a store",
        verify,
        {},
    ),
    "list": Command(
        "show what is kept below data.root, and which runs use it",
        "data.root=..., or YAML files",
        show,
        {"--json": "as JSON"},
    ),
    "prune": Command(
        "show what no run uses, and what killed builds have left",
        "data.root=..., or YAML files; or stores by name or path, to look at these alone",
        prune,
        {"--delete": "remove what can go; what is not known to be used only where it is named"},
    ),
}

if __name__ == "__main__":
    end("data", main)
