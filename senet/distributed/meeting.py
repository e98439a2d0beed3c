"""Before there are process groups: the ranks compare options, versions and data; all of them start, or none.

Through the store; no collectives.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from senet.config.load import to_flat
from senet.config.options import Config
from senet.distributed.devices import refuse_shared_gpu
from senet.distributed.findings import is_of_others, judge_without_store, peer_failed
from senet.distributed.ranks import PeerFailed, Ranks, open_store
from senet.distributed.roster import Process, Roster
from senet.distributed.watchdog import Watchdog
from senet.errors import ConfigError
from senet.rundir.commit import code_hash

T = TypeVar("T")
Facts = Mapping[str, Any]  # plain values, as in JSON
_PATHS = {"run_dir", "data.root", "data.folder", "data.table"}  # may differ between hosts
_FOR_EVER = timedelta(days=365)  # the watchdog ends the wait
_READ_TIMEOUT = timedelta(seconds=3)


def meet(
    ranks: Ranks,
    watchdog: Watchdog,
    facts: Facts,
    prepare: Callable[[], T],
    facts_of: Callable[[T], Facts] = lambda _: {},
) -> tuple[Store, T]:
    """Run ``prepare`` on every rank; return only if it succeeded on all of them, with equal facts.

    Args:
        facts: what must be equal on all ranks and is known before ``prepare``.
        facts_of: what must be equal in the result of ``prepare``.

    Returns:
        A store with the keys of this start only, and the result of ``prepare``.

    Raises:
        ConfigError: ``prepare`` raised one on some rank (the lowest is reported); or the ranks differ.
        PeerFailed: ``prepare`` failed on another rank for another reason; or the host of the store is gone.
        RunError: there is no store at MASTER_ADDR:MASTER_PORT.
    """
    watchdog.phase("meeting the other ranks")
    with _store_of(ranks):
        store = open_store(ranks, watchdog.limit_s)
        if ranks.world_size > 1:
            store = _of_this_start(store, ranks, watchdog)
            watchdog.share(store, ranks.roster)
        verdict = _verdict(store, "here", ranks, ["", "", facts])
    _raise(verdict)
    watchdog.phase("preparing data and network", alone=True)
    failure: Exception | None = None
    try:
        refuse_shared_gpu(ranks.device, ranks.rank, ranks.roster, store)
        result = prepare()
        outcome = ["", "", facts_of(result)]
    except Exception as error:
        failure = error
        outcome = ["refused" if isinstance(error, ConfigError) else "failed", str(error), {}]
    watchdog.phase("waiting until all ranks are prepared")
    with _store_of(ranks, failure):
        verdict = _verdict(store, "prepared", ranks, outcome)
    if failure is not None and not isinstance(failure, ConfigError):
        raise failure
    _raise(verdict)
    return store, result


@contextlib.contextmanager
def _store_of(ranks: Ranks, own: Exception | None = None) -> Iterator[None]:
    """If it breaks off: raise PeerFailed, which names the rank that hosted it; or ``own``, the error of this rank."""
    try:
        yield
    except dist.DistError as error:
        if own is not None and not is_of_others(own):
            raise own from error
        raise peer_failed(judge_without_store(ranks), error, ranks) from error


def must_be_equal(ranks: Ranks, options: Facts) -> Facts:
    """What must be equal on all ranks before they prepare anything: options, versions, kind of device."""
    return {
        **options,
        "number of ranks": ranks.world_size,
        "kind of device": ranks.device.type,
        "torch": torch.__version__,
        "code of the project": code_hash(),
    }


def options_of(config: Config) -> Facts:
    """All options but paths; also those that may change on resume, since some of them control collectives."""
    return {key: value for key, value in to_flat(config).items() if key not in _PATHS}


def _of_this_start(store: Store, ranks: Ranks, watchdog: Watchdog) -> Store:
    """The store with a prefix for this start, drawn at random by rank 0; fills the roster.

    torchrun's store outlives its restarts, and no variable tells these apart: each agent counts its own. So every rank
    asks with a random token, and rank 0 answers under that token. It answers the tokens of earlier starts too, which
    no rank reads.
    """
    own: Store
    if not ranks.is_main:
        token = secrets.token_hex(8)
        store.set(f"asks/{ranks.rank}", token)
        store.wait([f"answer/{token}"], _FOR_EVER)
        own = PrefixStore(store.get(f"answer/{token}").decode(), store)
        own.set(f"process/{ranks.rank}", json.dumps(ranks.roster[ranks.rank]))
    else:
        own = _answer(store, ranks, watchdog)
    own.wait(["roster"], _FOR_EVER)
    ranks.roster.update(enumerate(Process(*each) for each in json.loads(own.get("roster"))))
    return own


def _answer(store: Store, ranks: Ranks, watchdog: Watchdog) -> Store:
    """On rank 0: give all others the prefix, and the roster when all are there."""
    start = secrets.token_hex(8)
    own = PrefixStore(start, store)
    missing, answered = set(range(1, ranks.world_size)), set()
    while missing:
        for rank in sorted(missing):
            if own.check([f"process/{rank}"]):
                missing.discard(rank)
                watchdog.phase(f"meeting {ranks.roster.name(missing)}" if missing else "comparing the ranks")
            elif store.check([f"asks/{rank}"]) and (token := store.get(f"asks/{rank}").decode()) not in answered:
                store.set(f"answer/{token}", start)
                answered.add(token)
        time.sleep(0.02)
    others = [json.loads(own.get(f"process/{rank}")) for rank in range(1, ranks.world_size)]
    own.set("roster", json.dumps([ranks.roster[0], *others]))
    return own


def _verdict(store: Store, key: str, ranks: Ranks, mine: Sequence[Any]) -> tuple[str, str]:
    """Send rank 0 [kind of failure or "", message, facts]; it decides for all: (kind, message), ("", "") for none."""
    store.set(f"{key}/{ranks.rank}", json.dumps(mine))
    if ranks.is_main:
        keys = [f"{key}/{rank}" for rank in range(ranks.world_size)]
        for each in keys:
            store.wait([each], _FOR_EVER)
        kind, message = _judge([json.loads(store.get(each)) for each in keys], ranks.roster)
        store.set(f"{key}/all", json.dumps([kind, message]))
        if kind:  # this process may host the store, and must not end before the others have read it
            with contextlib.suppress(RuntimeError):
                store.wait([f"{key}/read/{rank}" for rank in range(1, ranks.world_size)], _READ_TIMEOUT)
    else:
        store.wait([f"{key}/all"], _FOR_EVER)
        kind, message = json.loads(store.get(f"{key}/all"))
        store.set(f"{key}/read/{ranks.rank}", "")
    return kind, message


def _judge(reports: Sequence[Sequence[Any]], roster: Roster) -> tuple[str, str]:
    """The failure of the lowest rank that failed, else the lowest rank whose facts differ from those of rank 0."""
    for rank, (kind, message, _) in enumerate(reports):
        if kind == "refused":
            return kind, message if rank == 0 else f"{roster.name([rank])}: {message}"
        if kind:
            return kind, f"{roster.name([rank])} could not start: {message}"
    ours = reports[0][2]
    for rank, (_, _, theirs) in enumerate(reports):
        unlike = [key for key in (*ours, *(theirs.keys() - ours.keys())) if ours.get(key) != theirs.get(key)]
        if unlike:
            has, has_rank_0 = (", ".join(f"{key}={facts.get(key)}" for key in unlike[:5]) for facts in (theirs, ours))
            more = f" (and {len(unlike) - 5} more differ)" * (len(unlike) > 5)
            return "refused", (
                f"{roster.name([rank])} has {has}; {roster.name([0])} has {has_rank_0}{more}: start all ranks with the "
                f"same options, code, versions and data"
            )
    return "", ""


def _raise(verdict: tuple[str, str]) -> None:
    kind, message = verdict
    if kind:
        raise ConfigError(message) if kind == "refused" else PeerFailed(message)
