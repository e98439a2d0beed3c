"""What the trainer is compared with: training loops, each timed step by step in the process that this file is run in.

    .venv/bin/python benchmarks/loops.py bare --data-root DIR

bare        the network, SGD, --amp, channels_last on one resident, normalised batch: forward, backward, step, no more
baseline    as scripts for CIFAR-10 are usually written: fp32, contiguous, a DataLoader with two workers, torchvision's
            crop, flip, ToTensor and Normalize image by image, loss and accuracy read in each step; torch's defaults
lightning   Lightning's Trainer with ``barebones=True``: no logging, no checkpoints, no progress bar
accelerate  Accelerate's ``prepare`` and ``backward`` in a loop of one's own
matmul      a product of two 2048 x 2048 matrices in --amp, 20 times: what the machine is capable of

lightning and accelerate are given this project's batches and augmentation, bf16 and channels_last, so that only what
they do with them differs. All but the baseline update as the trainer does (``fused=True``). One epoch of the
digits at 32x32. On a GPU (bare and matmul; of 8192 x 8192 matrices) the kernels are deterministic, as the trainer's
are, and the host waits for them each 20 steps. Prints JSON: the seconds of each step, or of each 20 their mean, and the
threads.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

from senet import REPOSITORY

WORKERS = 2  # of the baseline's DataLoader
SIZES = {"cpu": 2048, "cuda": 8192}  # of the matrices
BLOCK = {"cpu": 1, "cuda": 20}  # steps between waits for the device


class Task:
    """The network, the images, and the optimizer that all loops share."""

    def __init__(
        self, model: str, batch: int, data_root: str, steps: int, device: str = "cpu", amp: str = "bf16"
    ) -> None:
        import torch

        from senet.config.options import AugmentConfig, DataConfig
        from senet.data.samplers import open_data
        from senet.models.zoo import build_model
        from senet.training.seeds import seed_everything

        config = DataConfig(source="digits", root=data_root)
        self.data, self.batch, self.device, self.amp = open_data(config), batch, device, amp
        if batch > len(self.data.train):
            sys.exit(f"--batch={batch}: the digits are {len(self.data.train)} images")
        self.steps = steps or len(self.data.train) // batch
        self.augment, self.mean, self.std = AugmentConfig(), config.mean, config.std
        seed_everything(0)
        self.model = build_model(model, num_classes=len(self.data.classes))
        self.sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """The trainer's: shuffled uint8 images in memory, cropped, flipped and cut out a batch at a time."""
        import torch

        from senet.data.augment import Preprocess

        preprocess = Preprocess(self.augment, mean=self.mean, std=self.std, seed=0, device=torch.device("cpu"))
        order = torch.randperm(len(self.data.train))
        for indices in order[: self.steps * self.batch].split(self.batch):
            images, labels, _ = self.data.train[indices]
            yield preprocess.train(images, indices, epoch=0), labels

    def timed(self, step: Callable[[], object]) -> list[float]:
        """Seconds of each step; on a GPU, means over blocks of steps."""
        import torch

        step_s, block = [], BLOCK[self.device]
        for _ in range(self.steps // block):
            began = time.perf_counter()
            for _ in range(block):
                step()
            if self.device == "cuda":
                torch.cuda.synchronize()
            step_s.append((time.perf_counter() - began) / block)
        return step_s


def bare(task: Task) -> list[float]:
    import torch
    import torch.nn.functional as F

    model = task.model.to(task.device, memory_format=torch.channels_last).train()
    is_scaled = task.amp == "fp16"
    optimizer = task.sgd(model.parameters(), fused=not is_scaled)
    scaler = torch.GradScaler(task.device, enabled=is_scaled)
    images, labels = (tensor.to(task.device) for tensor in next(task.batches()))
    dtype = torch.float16 if is_scaled else torch.bfloat16

    def step() -> None:
        with torch.autocast(task.device, dtype, enabled=task.amp != "off"):
            logits = model(images)
        scaler.scale(F.cross_entropy(logits.float(), labels)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return task.timed(step)


def baseline(task: Task) -> list[float]:
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize(task.mean, task.std),
        ]
    )  # fmt: skip
    split = task.data.train

    class Images(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(split)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return transform(Image.fromarray(split.images[index])), int(split.labels[index])

    loader = DataLoader(Images(), batch_size=task.batch, shuffle=True, drop_last=True, num_workers=WORKERS)
    model, criterion = task.model.train(), torch.nn.CrossEntropyLoss()
    optimizer = task.sgd(model.parameters(), fused=False)
    loss_sum, correct, step_s, began = 0.0, 0, [], time.perf_counter()
    for images, labels in loader:
        optimizer.zero_grad()
        outputs = model(images)
        loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item()
        correct += outputs.max(1)[1].eq(labels).sum().item()
        step_s.append((now := time.perf_counter()) - began)
        began = now
    return step_s[: task.steps]


def lightning(task: Task) -> list[float]:
    import lightning as L
    import torch
    import torch.nn.functional as F

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = task.model.to(memory_format=torch.channels_last)
            self.ends = [time.perf_counter()]

        def training_step(self, batch: Any, _index: int) -> Any:
            images, labels = batch
            return F.cross_entropy(self.model(images).float(), labels)

        def configure_optimizers(self) -> Any:
            return task.sgd(self.parameters())

        def on_train_batch_end(self, *_: Any) -> None:
            self.ends.append(time.perf_counter())

    trainer = L.Trainer(accelerator="cpu", devices=1, precision="bf16-mixed", max_epochs=1, barebones=True)
    trainer.fit(module := Module(), task.batches())
    return [end - begin for begin, end in pairwise(module.ends)]


def accelerate(task: Task) -> list[float]:
    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = task.model.to(memory_format=torch.channels_last).train()
    model, optimizer = accelerator.prepare(model, task.sgd(model.parameters()))
    step_s, began = [], time.perf_counter()
    for images, labels in task.batches():
        accelerator.backward(F.cross_entropy(model(images), labels))
        optimizer.step()
        optimizer.zero_grad()
        step_s.append((now := time.perf_counter()) - began)
        began = now
    return step_s


def matmul(task: Task) -> list[float]:
    import torch

    dtype = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[task.amp]
    size = SIZES[task.device]
    a, b = torch.randn(2, size, size, dtype=dtype, device=task.device)
    task.steps = 20 * BLOCK[task.device]
    return task.timed(lambda: a @ b)


LOOPS = {each.__name__: each for each in (bare, baseline, lightning, accelerate, matmul)}


def main() -> None:
    """Run one loop and print its times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("--model", default="senet18", help="as model.name of train_ddp.py")
    parser.add_argument("--batch", type=int, default=128, help="images per step")
    parser.add_argument("--steps", type=int, default=0, help="0: one epoch; more than that only of bare")
    parser.add_argument("--device", choices=SIZES, default="cpu", help="of bare and matmul")
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), default="bf16", help="of bare and matmul")
    parser.add_argument("--data-root", default=str(REPOSITORY / "data"), help="where decoded images are kept")
    args = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY))  # for --model=benchmarks.networks:linear
    import torch

    from senet.distributed.devices import set_threads
    from senet.training.seeds import set_deterministic

    if args.device == "cuda":
        set_deterministic(True)  # as the trainer does, and TF32
    if args.loop != "baseline":
        set_threads(0, 1)  # as the trainer does
    task = Task(args.model, args.batch, args.data_root, args.steps, args.device, args.amp)
    step_s = LOOPS[args.loop](task)
    print(json.dumps({"step_s": step_s, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
