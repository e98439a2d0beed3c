"""Images read by threads, since a network file system answers late; whole stores verified."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from senet.data.stores.encoded import EncodedStore, Pictures

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], most: int
) -> Iterator[Result]:
    """As ``pool.map``, but no more than ``most`` results wait in memory."""
    waiting = deque[Future[Result]]()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def damaged_images(store: EncodedStore, threads: int, packs: Collection[str] | None = None) -> list[str]:
    """Read all images, or those in some packs. Returns the names of those whose bytes are not the ones that were
    packed, or cannot be read."""

    def check(at: tuple[Pictures, int]) -> str:
        split, row = at
        try:
            split.read(row, patience_s=0)
        except OSError:
            return split.name(row)
        return ""

    found = []
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(store.train) + len(store.test), desc="verifying", unit="image", disable=None) as bar,
    ):
        for split in (store.train, store.test):
            rows = ((split, row) for row in range(len(split)) if packs is None or split.pack(row) in packs)
            for name in ahead(pool, check, rows, 4 * threads):
                found += [name] if name else []
                bar.update()
    return found
