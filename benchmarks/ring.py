"""How long gloo's all-reduce takes here, and, ON PAPER, what an all-reduce would leave of 8 to 1,024 GPUs.

    .venv/bin/python benchmarks/ring.py [--ranks 2,4] [--note TEXT]
    .venv/bin/python benchmarks/ring.py --paper [--gpu-images-per-s 10000] [--bandwidth 25] [--latency-us 10]

Measured: the time of ``dist.all_reduce`` of 4 KB to 64 MB of fp32 over processes of this machine, the median of
--repeats, the sizes in turn. Fitted to it, with the least sum of squared relative errors: a ring of W ranks (Patarasuk
and Yuan, 2009), t = 2 (W - 1) latency + 2 (W - 1) / W bytes / bandwidth. Appends rows to results.jsonl per number of
ranks.

Not measured, and no promise: the second table. It puts ASSUMED figures of other hardware, all of them options, into
the same formula, for the gradients of SENet18 in fp32 and compressed (train.comm_hook=bf16), and divides the time to
compute by the time to compute and wait. Between two bounds: nothing is hidden behind the backward pass, or all that
fits into it. Left out: data, the buckets' own starts, slower ranks, the network's topology, NCCL's other algorithms. It
is printed, and never appended.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from common import record, torchrun

from senet.distributed.devices import set_threads
from senet.models.senet import SENet18

SIZES = [4 << (10 + 2 * power) for power in range(8)]  # bytes: 4 KB, 16 KB, ... 64 MB
GPUS = [8, 16, 32, 64, 128, 256, 512, 1024]
BACKWARD_SHARE = 2 / 3  # of a step's computation: a convolution's backward pass is two products of its forward's size


class Ring(NamedTuple):
    """What a link of a ring is like."""

    latency_s: float  # of a hop
    bandwidth: float  # bytes a second that a rank sends

    def all_reduce_s(self, size: float, ranks: int) -> float:
        """Of ``size`` bytes on each rank: each sends 2 (W - 1) messages of a W-th of them."""
        hops = 2 * (ranks - 1)
        return hops * self.latency_s + hops / ranks * size / self.bandwidth


def fit(sizes: Sequence[int], seconds: Sequence[float], ranks: int) -> Ring:
    """The ring with the least sum of squared relative errors. A negative latency says that it is no ring."""
    hops = 2 * (ranks - 1)
    terms = np.array([[hops, hops / ranks * size] for size in sizes]) / np.array(seconds)[:, None]
    (latency_s, per_byte), *_ = np.linalg.lstsq(terms, np.ones(len(sizes)), rcond=None)
    return Ring(float(latency_s), float(1 / per_byte))


def efficiency(ring: Ring, ranks: int, size: float, compute_s: float) -> tuple[float, float]:
    """Of a step of ``compute_s``: with nothing hidden behind the backward pass, and with all that fits into it."""
    waits_s = ring.all_reduce_s(size, ranks)
    exposed_s = max(0.0, waits_s - BACKWARD_SHARE * compute_s)
    return compute_s / (compute_s + waits_s), compute_s / (compute_s + exposed_s)


def be_a_rank(repeats: int) -> None:
    """Measure; rank 0 prints the medians in seconds, one per size, of the slowest rank each time."""
    set_threads(0, int(os.environ["LOCAL_WORLD_SIZE"]))
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    tensors = [torch.zeros(size // 4) for size in SIZES]
    times_s = torch.zeros(repeats + 1, len(SIZES), dtype=torch.float64)
    for row_s in times_s:
        for index, tensor in enumerate(tensors):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(tensor)
            row_s[index] = time.perf_counter() - began
    dist.all_reduce(times_s, op=dist.ReduceOp.MAX)
    if dist.get_rank() == 0:
        print(json.dumps([statistics.median(column[1:].tolist()) for column in times_s.T]), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def measure(ranks: int, repeats: int, note: str) -> None:
    """Print the times beside the fitted ones, append."""
    seconds = torchrun("ring.py", "--rank", f"--repeats={repeats}", ranks=ranks)
    ring = fit(SIZES, seconds, ranks)
    fitted = [ring.all_reduce_s(size, ranks) for size in SIZES]
    off = [one / other - 1 for one, other in zip(fitted, seconds, strict=True)]
    print(f"measured: gloo, {ranks} ranks of this machine, median of {repeats}")
    print(f"{'KB':>8} {'ms':>10} {'fitted ms':>10} {'off':>7}")
    for size, measured_s, fitted_s, wrong in zip(SIZES, seconds, fitted, off, strict=True):
        print(f"{size >> 10:8} {1000 * measured_s:10.3f} {1000 * fitted_s:10.3f} {wrong:+7.0%}")
    what = f"all-reduce, {ranks} ranks"
    for unit, value, digits in (("us a hop", 1e6 * ring.latency_s, 0), ("GB/s", ring.bandwidth / 1e9, 2)):
        record("ring.py", f"{what}, fitted", [value], unit, n=repeats, of="repeats", digits=digits, note=note)
    parts = {f"{size >> 10} KB": round(1000 * value, 3) for size, value in zip(SIZES, seconds, strict=True)}
    record(
        "ring.py",
        f"{what} of {SIZES[-1] >> 20} MB",
        [1000 * seconds[-1]],
        "ms",
        n=repeats,
        of="repeats",
        parts=parts,
        note=note,
    )


def project(ring: Ring, gpu_images_per_s: float) -> None:
    """Print the table of what has not been measured."""
    size = 4 * sum(p.numel() for p in SENet18().parameters())
    print("ON PAPER, nothing of this was measured. Assumed:")
    print(f"  {gpu_images_per_s:,.0f} images/s of one GPU alone, of which {BACKWARD_SHARE:.0%} is the backward pass")
    print(f"  {ring.bandwidth / 1e9:g} GB/s that each GPU sends, {1e6 * ring.latency_s:g} us a hop, one ring over all")
    print(f"  {size / 1e6:.1f} MB of gradients in fp32, {size / 2e6:.1f} MB in bf16")
    print("efficiency, from nothing hidden behind the backward pass to all that fits into it:\n")
    columns = [(batch, kind, share) for batch in (128, 512) for kind, share in (("fp32", 1.0), ("bf16", 0.5))]
    heads = "".join(f"{f'{batch} a GPU, {kind}':>19}" for batch, kind, _ in columns)
    print(f"{'GPUs':>5} {'fp32 ms':>9} {'bf16 ms':>9}{heads}")
    for gpus in GPUS:
        cells = ""
        for batch, _, share in columns:
            low, high = efficiency(ring, gpus, share * size, batch / gpu_images_per_s)
            cells += f"{f'{low:.0%} to {high:.0%}':>19}"
        times = "".join(f"{1000 * ring.all_reduce_s(share * size, gpus):9.2f} " for share in (1.0, 0.5))
        print(f"{gpus:5} {times.rstrip()}{cells}")


def main() -> None:
    """Measure, print, append; then the table on paper."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", default="2,4", help="numbers of ranks to measure with")
    parser.add_argument("--repeats", type=int, default=30, help="of each size, after one that is left out")
    parser.add_argument("--note", default="", help="for the rows: what else ran")
    parser.add_argument("--paper", action="store_true", help="measure nothing, only the table on paper")
    parser.add_argument("--gpu-images-per-s", type=float, default=10_000, help="ASSUMED: of one GPU alone")
    parser.add_argument(
        "--bandwidth", type=float, default=25, help="ASSUMED: GB/s that each GPU sends (25: 200 Gbit/s)"
    )
    parser.add_argument("--latency-us", type=float, default=10, help="ASSUMED: of a hop of the ring")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)  # this process is one
    args = parser.parse_args()
    if args.rank:
        return be_a_rank(args.repeats)
    if not args.paper:
        for ranks in args.ranks.split(","):
            measure(int(ranks), args.repeats, args.note)
    project(Ring(args.latency_us / 1e6, args.bandwidth * 1e9), args.gpu_images_per_s)
    return None


if __name__ == "__main__":
    main()
