"""The trainer's own time per step: a network of one linear layer, beside a bare loop of the same layer.

    .venv/bin/python benchmarks/overhead.py

train_ddp.py, one rank with all cores of the CPU, bf16, and everything on: metrics, a row each 20 steps, TensorBoard,
averaged weights, the comparison of ranks and a checkpoint each 200 steps; one rank has nobody to vote with. 51,200
random images of 32x32 in a store of their own, two epochs, of which the second counts (evaluation left out):
milliseconds a step, its mean, less that of ``loops.py bare`` in the same repetition. Augmentation off and on, batches
of 128 and 512. Target: at most 0.7 ms with batches of 128 and augmentation off. Then, by ``parts.py``, where the time
of that step goes, and the places in the code where the host waits for a device. Prints tables and appends rows to
results.jsonl. Nothing else should run meanwhile.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from common import arguments, lay_store, measured, record, spread, train

from senet import REPOSITORY

TARGET = "<= 0.7"  # ms
NETWORK = "benchmarks.networks:linear"
OFF = ["augment.crop_padding=0", "augment.flip=false", "augment.cutout=0"]
CASES = {
    f"batch {batch}, augmentation {'off' if off else 'on'}": (batch, off) for batch in (128, 512) for off in (OFF, [])
}
JUDGED = next(iter(CASES))


def options(data_root: str, batch: int, augment: list[str]) -> list[str]:
    """Of the trainer."""
    return [
        "configs/cifar10.yaml", f"data.root={data_root}", "train.epochs=2", f"train.global_batch_size={batch}",
        f"model.name={NETWORK}", "train.amp=bf16", "train.device=cpu", *augment,
    ]  # fmt: skip


def own_ms(data_root: str, batch: int, augment: list[str], steps: int) -> float:
    """Of one run of the trainer, less the bare loop's."""
    with tempfile.TemporaryDirectory() as run_dir:
        rows = train(Path(run_dir), *options(data_root, batch, augment))
    step_ms = 1000 * [row for row in rows if row["kind"] == "epoch"][-1]["epoch_s"] / steps
    loop = ["bare", f"--model={NETWORK}", f"--batch={batch}", f"--data-root={data_root}", f"--steps={2 * steps}"]
    return float(step_ms - 1000 * statistics.mean(measured("loops.py", *loop)["step_s"][steps:]))


def parts(data_root: str) -> dict[str, float]:
    """Milliseconds a step, by part."""
    with tempfile.TemporaryDirectory() as run_dir:
        return measured("parts.py", "--json", *options(data_root, *CASES[JUDGED]), f"run_dir={run_dir}")


def sync_points() -> list[str]:
    """What the code says of the places where the host waits."""
    found = []
    for path in sorted((REPOSITORY / "senet").rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if "sync point" in line.lower():
                found.append(f"{path.name}:{number}: {line.strip()}")
    return found


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=51_200, help="of an epoch; fewer to try it out")
    args = parser.parse_args()
    times: dict[str, list[float]] = {case: [] for case in CASES}
    by_part: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as data_root:
        lay_store(Path(data_root), args.images)
        for pair in range(args.pairs):
            for case, (batch, augment) in CASES.items():
                times[case].append(own_ms(data_root, batch, augment, args.images // batch))
            by_part.append(parts(data_root))
            print(f"{pair + 1}: " + ", ".join(f"{c} {v[-1]:.2f}" for c, v in times.items()), "ms", flush=True)
    print("\nmilliseconds a step, less those of a bare loop")
    for case, values in times.items():
        print(f"{case:32} {spread(values)}")
    print(f"\nwhere the step's time goes ({JUDGED}), ms")
    for label in by_part[0]:
        print(f"{label:32} {spread([each[label] for each in by_part], 3)}")
    print("\nwhere the host waits\n" + "\n".join(sync_points()))
    for case, values in times.items():
        record("overhead.py", case, values, "ms", target=TARGET if case == JUDGED else None, note=args.note)
    mean = {label: round(statistics.median(each[label] for each in by_part), 3) for label in by_part[0]}
    whole = mean.pop("whole step")
    record("overhead.py", f"{JUDGED}, whole step", [whole], "ms", n=args.pairs, parts=mean, note=args.note)


if __name__ == "__main__":
    main()
