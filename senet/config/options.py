"""Every option: its type, default, range and meaning. The doc strings are the manual."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_type_hints

CIFAR_RESNETS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
TORCHVISION_RESNETS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip
_WITH_TWINS = (*TORCHVISION_RESNETS, "googlenet", "inception_v3", *CIFAR_RESNETS)
NETWORKS = ("senet18", "preact_resnet18", *_WITH_TWINS, *(f"se_{name}" for name in _WITH_TWINS))
"""What ``model.name`` may be, besides somebody's own function; ``senet.models.zoo`` builds them."""

HUBS = ("torchvision:", "timm:")
"""What ``model.init_from`` may begin with, where it is no path."""

KEYS = {"WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "DATABRICKS_TOKEN"}
"""Variables of the services in ``log.to`` whose values belong into no file."""

Argument = bool | int | float | str | list[Any] | dict[str, Any] | None
"""A value whose type is not known: what looks like a number, true, false or null is one, the rest is text."""

T = TypeVar("T")


def option(
    default: T,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    path: bool = False,
    **kinds: bool,
) -> T:
    """A dataclass field with a range: ``low <= x <= high``, ``above < x``; a ``path`` may begin with ``~``; for
    ``kinds`` see ``properties``."""
    return field(
        default=default, metadata={"low": low, "high": high, "above": above, "path": path} | properties(**kinds)
    )


def properties(*, free: bool = False, compared: bool | None = None, in_card: bool | None = None) -> dict[str, bool]:
    """What an option is, beside its value. Whatever may not change on resume is compared, and is in the card.

    Args:
        free: it may change on resume.
        compared: runs that differ in it are compared with each other, rather than taken for the same but for chance.
        in_card: the card of a trained network tells it, where it is not the default.
    """
    return {
        "free": free,
        "compared": not free if compared is None else compared,
        "in_card": not free if in_card is None else in_card,
    }


@dataclass(frozen=True)
class ResumeConfig:
    """What a start does with what an earlier one left in the run directory."""

    mode: str = option("auto", free=True, path=True)
    """auto: go on from the newest valid checkpoint, or start anew where there is none. never: refuse a run directory
    that holds checkpoints. Anything else names a checkpoint file to begin from, weights, optimizer and counters; once
    the run directory has checkpoints of its own beyond it, those are used."""
    allow_changes: bool = option(False, free=True)
    """Accept options that differ from the checkpoint's and change the numbers."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are normalised."""

    source: Literal["cifar10", "cifar100", "fashion_mnist", "imagefolder", "table", "webdataset", "digits"] = "cifar10"
    """cifar10, cifar100, fashion_mnist are downloaded once; digits (1,797 images) comes with scikit-learn;
    imagefolder reads ``<data.folder>/train/<class>/*`` and ``test/<class>/*``, table the files that data.table names,
    webdataset the shards ``<data.folder>/train-*.tar`` and ``test-*.tar``."""
    root: str = option("data", free=True, path=True)
    """Folder for downloads and for images, packed or decoded (one file per split, mapped into memory by all ranks).
    ./launch.sh data list shows what is there."""
    folder: str = option("", free=True, compared=True, path=True)
    """The folder of data.source=imagefolder or webdataset. Of table: what the paths in it are relative to, where that
    is not its own folder."""
    table: str = option("", free=True, compared=True, path=True)
    """The table of data.source=table: a CSV file whose first line names the columns, among them path, label, split."""
    columns: dict[str, str] = field(default_factory=dict, metadata=properties())
    """Names of the columns path, label, split, where the table has others: data.columns.label=species. Of webdataset
    label alone: the key in each .json."""
    splits: dict[str, str] = field(default_factory=dict, metadata=properties())
    """Names of the two splits, where the files have others: data.splits.test=dev. Without it, test is test or else val,
    valid or validation."""
    image_size: int = option(32, low=16, high=1024)
    """Height and width in pixels; other sizes are scaled and cropped to the centre when decoded."""
    center_crop: float = option(1.0, above=0, high=1)
    """Share of the shorter side that the central square of an image has, of which all pixels come where no random crop
    is drawn, and in evaluation. 0.875 is usual for photographs."""
    store: Literal["auto", "pixels", "encoded"] = "auto"
    """How images are kept below data.root. pixels: decoded once, to image_size. encoded: their files as they are,
    packed into one and decoded for each batch: photographs. auto: encoded where the images are files and image_size is
    above 64, else pixels."""
    stage: str = option("", free=True, path=True)
    """Folder on each node's own disk to which what is kept below data.root is copied once and checked; empty: none."""
    mean: tuple[float, float, float] = option((0.4914, 0.4822, 0.4465), low=0, high=1)
    """Per RGB channel, of pixels scaled to 0..1; subtracted."""
    std: tuple[float, float, float] = option((0.2470, 0.2435, 0.2616), above=0, high=1)
    """Per RGB channel, of pixels scaled to 0..1; divided by."""
    holdout: int = option(0, low=0, high=1_000_000_000)
    """Training images, as many of each class as its share, that are not trained on but evaluated in place of the test
    images: to choose a recipe without looking at those. 0: none."""
    balance: float = option(0.0, low=0, high=1)
    """Draw images of smaller classes more often: a class of n images has a share of n ** (1 - balance) of each epoch,
    which has as many images as before. 0: each image once; 1: as many of each class. An image that is drawn twice in an
    epoch has other random changes the second time."""
    resident: Literal["auto", "on", "off"] = option("auto", free=True)
    """Keep all decoded images on the GPU, where batches are gathered too: no copy in any step. auto: where they take at
    most a quarter of its memory; never of an encoded store. On a CPU the mapped files are in memory as it is."""
    decode_threads: int = option(0, low=0, high=256, free=True)
    """Threads that decode images; 0: one per core that the process may use, of which the ranks on a node have equal
    shares where images are decoded for each batch."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images, a pure function of (seed, epoch, sample index): crops, flip, trivial,
    color_jitter, cutout, erase, mixup or cutmix, extra, in this order."""

    crop_padding: int = option(4, low=0, high=256)
    """Pixels of zero padding around the image before a random crop of the old size; 0: off."""
    flip: bool = True
    """Mirror left and right with probability 1/2."""
    alternate_flip: bool = False
    """With flip: by chance in an image's first epoch only, then in every other epoch, so that two epochs in a row show
    each image both ways (Jordan 2024, arXiv:2404.00498, sec. 3.6)."""
    cutout: int = option(8, low=0, high=1024)
    """Side in pixels of a square set to the mean, its centre anywhere in the image; 0: off."""
    crop_area: tuple[float, float] = option((1.0, 1.0), above=0, high=1)
    """Random resized crop: a rectangle anywhere in the image, whose area is a share of the image's between these two
    and its ratio between 3/4 and 4/3, scaled to image_size (Szegedy et al. 2014, arXiv:1409.4842, sec. 6). [0.08, 1] is
    usual for photographs; data.store=encoded only. [1, 1]: off."""
    color_jitter: tuple[float, float, float, float] = option((0.0, 0.0, 0.0, 0.0), low=0, high=1)
    """Largest random changes of brightness, contrast, saturation and hue (that at most 0.5), in an order drawn for each
    image, as torchvision's ColorJitter. 0.4: by factors from 0.6 to 1.4; of hue: by up to 0.4 of a turn."""
    trivial: bool = False
    """One random change of random strength for each image, of colours or of shape (TrivialAugment: Mueller & Hutter
    2021, arXiv:2103.10158, wide), as torchvision's TrivialAugmentWide."""
    erase: float = option(0.0, low=0, high=1)
    """Probability that a random rectangle, 0.02 to 0.33 of the image, is set to the mean (random erasing: Zhong et al.
    2017, arXiv:1708.04896), as torchvision's RandomErasing."""
    mixup: float = option(0.0, low=0, high=100)
    """Mix each image and its target with those of its neighbour in the batch, in shares drawn from Beta(mixup, mixup)
    for each pair (Zhang et al. 2017, arXiv:1710.09412). The own share is the larger one, and the training accuracy
    counts the own label. Micro-batches must have an even number of images. 0: off."""
    cutmix: float = option(0.0, low=0, high=100)
    """The same, but by a rectangle of the other image (Yun et al. 2019, arXiv:1905.04899); with mixup too, each pair of
    images has one of the two; 0: off."""
    extra: str = ""
    """``package.module:function``, called as ``function(images=, keys=)`` at last, before images are made smaller:
    float32 [N, 3, size, size], normalised, on the device, and 64 random bits of each image in this epoch, int64 [N];
    returns such images. Draws are ``senet.data.augment.draw_below``, those from 100 on are free. Empty: none."""
    small_size: int = option(32, low=16, high=1024)
    """Height and width to which training images are scaled at last, in the first small_epochs epochs; of an encoded
    store they are decoded to it, and then changed."""
    small_epochs: int = option(0, low=0, high=1_000_000)
    """Epochs that begin a training with smaller images, for a fraction of the work; 0: none."""


@dataclass(frozen=True)
class ModelConfig:
    """Which network, and what it begins from."""

    name: str = "senet18"
    """senet18; preact_resnet18, the same without gates. Of torchvision, untrained: resnet18, resnet34, resnet50,
    resnet101, resnet152, resnext50_32x4d, resnext101_32x8d, resnext101_64x4d, wide_resnet50_2, wide_resnet101_2,
    googlenet, inception_v3 (from 75 pixels on), both without auxiliary heads. For 32x32 images (He et al. 2016, sec.
    4.2, shortcuts without parameters): resnet20, resnet32, resnet44, resnet56, resnet110. All these but the first two
    with gates: se_resnet18, se_googlenet, se_resnet20 and so on. Or ``package.module:function``, called as
    ``function(num_classes=...)``, returning a torch.nn.Module that takes float NCHW images with 3 channels and returns
    logits [N, num_classes]. Or ``timm:NAME``, a network of timm, untrained (./launch.sh setup timm)."""
    args: dict[str, Argument] = field(default_factory=dict, metadata=properties())
    """More arguments of the function in model.name, or of timm's create_model: model.args.width=64. A text that looks
    like a number is written in quotes inside quotes: model.args.name='"64"'."""
    reduction: int = option(16, low=1)
    """Channels per hidden unit of a gate, of senet18 and the se_ networks."""
    small_stem: bool = False
    """Of torchvision's residual networks, for small images: begin with a 3x3 convolution instead of 7x7 with stride 2
    and pooling."""
    whiten: bool = False
    """Set the first convolution to the whitening of the training images' patches, and keep it so (Jordan 2024,
    arXiv:2404.00498, sec. 3.2)."""
    init_from: str = option("", path=True)
    """What to begin from at a fresh start: a checkpoint or the best one of a run directory (its raw weights); a file of
    weights by name, also .safetensors; or torchvision:NAME:DEFAULT, timm:NAME.TAG, which are downloaded once. The last
    layer is new where the number of classes differs, the gates where there are none."""


@dataclass(frozen=True)
class TrainConfig:
    """The loop: epochs, batch, precision, device."""

    epochs: int = option(30, low=1, high=1_000_000)
    """Passes over the training images."""
    patience: int = option(0, low=0, high=1_000_000)
    """Epochs in a row without a better accuracy on the held-out images (data.holdout) after which the run has
    finished, though train.epochs are not done. The learning rate is that of train.epochs all the same: a shape that
    ends at 0 (onecycle, cosine) may not get there. 0: off."""
    global_batch_size: int = option(128, low=1, high=1_048_576)
    """Images per update, over all ranks and micro-batches. Never rescaled in silence."""
    accumulate: int = option(1, low=1, high=4096)
    """Micro-batches per update and rank, or per shard."""
    shards: int = option(0, low=0, high=4096)
    """Parts of the global batch, a power of two: the run then has the same bits on any number of ranks that divides it,
    also if that changes on resume. Each part is computed by itself, with its own batch statistics (the running ones
    are of the first) and random numbers, and the gradients are added up in one order. That holds for one kind of
    processor, one number of threads_per_rank (0: that of the first start) and one version of torch. 0: one part per
    rank, by DistributedDataParallel."""
    eval_batch_size: int = option(256, low=1, high=65_536, free=True)
    """Images per rank and forward pass in evaluation. With shards the last bits of the test loss depend on it."""
    loss: str = ""
    """``package.module:function``, called as ``function(logits=, targets=, keys=)``: float32 [N, K], int64 [N], 64
    random bits of each image in this epoch (those of augment.extra) int64 [N]; returns the loss of each image [N], of
    which the mean over the global batch is taken. With augment.mixup or cutmix it is called for the targets of the
    images and those of their neighbours. Empty: cross entropy, by which test images are judged in any case."""
    class_weights: dict[str, float] = field(default_factory=dict, metadata=properties())
    """Weights of the losses of classes, by name, in proportion: {cat: 2}, or train.class_weights.cat=2; 1 for those
    that are not named. All are divided by their mean over the images of an epoch, so that the learning rate keeps its
    scale; in a batch the weights need not sum to its size."""
    class_balance: float = option(0.0, low=0, high=1)
    """The same weights from the sizes of the classes: n ** -class_balance for a class of n training images, times
    class_weights. 0: none; 1: each class counts as much as any other."""
    label_smoothing: float = option(0.1, low=0, high=1)
    """Weight of the uniform distribution in the target."""
    clip_norm: float = option(0.0, low=0)
    """Largest 2-norm of all gradients together, after unscaling; 0: off."""
    ema_decay: float = option(0.999, low=0, high=0.999999)
    """Exponential moving average of weights and running statistics, per update; less in the first updates, (1 + n) /
    (10 + n); 0: off. From 5 / (1 - ema_decay) updates on the averaged weights are the result of the run, before that
    the raw ones: they choose the best checkpoint, and predict, evaluate, export and report take them."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Automatic mixed precision. auto: on GPUs bf16 where all have it natively, else off; on CPUs that all have
    bf16 the faster of bf16 and off, measured at the first start of a run with 1 to 2 s of one core (more where a pass
    of two images takes as long), and kept when it is resumed; off where torch computes wrong gradients in bf16, for
    images that become too small. fp16 uses a GradScaler. On a GPU what is left in fp32 uses TF32."""
    channels_last: bool = True
    """Keep weights and activations in NHWC memory order."""
    compile: bool = False
    """torch.compile the network."""
    sync_bn: bool = False
    """Batch statistics over all ranks instead of one (CUDA only, without shards)."""
    comm_hook: Literal["none", "bf16", "fp16"] = "none"
    """Compress gradients to this type for the all-reduce; one rank has none. Without shards only."""
    desync_check_every: int = option(200, low=0, high=1_000_000, free=True)
    """Updates between comparisons of all weights, bit by bit, over the ranks; also before each checkpoint. Ranks that
    have drifted apart (a broken GPU, a change on one rank) end the run. 0: off."""
    deterministic: bool = True
    """Deterministic kernels, no cudnn.benchmark, no sums inside NVSwitch (NCCL_ALGO, unless it is set). The promise of
    equal bits on a GPU needs it."""
    device: Literal["auto", "cpu", "cuda"] = option("auto", free=True)
    """auto: CUDA where a GPU is visible. A change on resume changes the numbers and is warned about."""
    threads_per_rank: int = option(0, low=0, high=1024, free=True)
    """CPU threads of each rank; 0: slurm.cpus_per_task in a job that has it, else the cores this process may use,
    divided by the ranks on the node. Another number may change the last bits, so a change on resume is warned about."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, its rates and its weight decay."""

    name: Literal["sgd", "adamw", "muon"] = "sgd"
    """Stochastic gradient descent; Adam with decoupled weight decay; or Muon (torch.optim.Muon) for convolution kernels
    larger than 1x1 and SGD for all other parameters."""
    lr: float = option(0.1, low=0)
    """Learning rate at the schedule's factor 1."""
    bias_lr: float = option(0.0, low=0)
    """The same for one-dimensional parameters (norms, biases), where they do not decay; 0: as optim.lr."""
    muon_lr: float = option(0.05, above=0)
    """The same for Muon's kernels: about the spectral norm of an update (times sqrt(C_out / (C_in h w)) where that is
    above 1)."""
    muon_momentum: float = option(0.9, low=0, high=0.9999)
    """Of Muon (Nesterov)."""
    muon_weight_decay: float = option(0.0, low=0)
    """Of Muon, decoupled."""
    muon_ns_steps: int = option(5, low=1, high=99)
    """Newton-Schulz iterations of Muon; each costs three matrix products per kernel and update."""
    momentum: float = option(0.9, low=0, high=0.9999)
    """Of SGD."""
    nesterov: bool = True
    """Nesterov momentum, of SGD."""
    betas: tuple[float, float] = option((0.9, 0.999), low=0, high=0.999999)
    """Of AdamW."""
    weight_decay: float = option(5e-4, low=0)
    """Added to the gradient by SGD (L2), decoupled in AdamW."""
    decay_norms_and_biases: bool = False
    """Apply weight decay to one-dimensional parameters too."""
    freeze: tuple[str, ...] = option(())
    """Parameters that keep the values they begin with, by name, as in a state dict: [conv1,layer1.*]. * stands for any
    characters (quote a name that begins with it), the name of a module for all below it. A BatchNorm whose parameters
    are all frozen runs in evaluation mode and keeps its running statistics."""
    lr_scale: dict[str, float] = field(default_factory=dict, metadata=properties())
    """Factors of the learning rate for parameters by name, in the same way, beside optim.lr, bias_lr or muon_lr:
    {layer4.*: 0.1}, or optim.lr_scale.fc=10. No parameter may have two."""


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate as a function of the step; a plateau's factor is multiplied on top."""

    name: Literal["constant", "multistep", "cosine", "onecycle"] = "onecycle"
    """Shape after the warm-up. cosine ends at 0; onecycle rises linearly, then falls linearly to 0."""
    warmup_epochs: float = option(0.0, low=0)
    """Linear rise from 0 in front of any shape, in epochs."""
    peak_at: float = option(0.2, above=0, high=0.99)
    """onecycle: where the peak lies, as a fraction of the steps after the warm-up."""
    milestones: tuple[int, ...] = option((), low=1)
    """multistep: epochs at whose end the rate is multiplied by schedule.gamma."""
    gamma: float = option(0.1, above=0, high=1)
    """multistep: the factor."""
    plateau: bool = False
    """Multiply the rate by plateau_factor when the training loss has stopped falling (judged once per epoch)."""
    plateau_factor: float = option(0.94, above=0, high=1)
    """The factor."""
    plateau_patience: int = option(1, low=0, high=1_000_000)
    """Epochs without improvement (by 0.01 %) that are tolerated."""
    plateau_min_lr: float = option(1e-6, low=0)
    """The plateau never takes the rate below this."""


@dataclass(frozen=True)
class CheckpointConfig:
    """How often the state is saved, and how much is kept."""

    every_steps: int = option(200, low=1, free=True)
    """Updates between checkpoints; one is also written at the end of each epoch and at a stop."""
    keep: int = option(3, low=1, high=10_000, free=True)
    """Newest checkpoints to keep; the best one (test accuracy) is kept besides."""


@dataclass(frozen=True)
class LogConfig:
    """How often the numbers are written, and where they are shown."""

    every_steps: int = option(20, low=1, free=True)
    """Updates between rows of metrics.jsonl. The one host-device synchronisation of logging happens here."""
    to: tuple[Literal["tensorboard", "wandb", "mlflow", "csv"], ...] = option(("tensorboard",), free=True)
    """Where else the rows of metrics.jsonl are shown; []: nowhere. csv: metrics.csv in the run directory. wandb, mlflow
    (./launch.sh setup wandb, setup mlflow): the services, as their own variables say, WANDB_PROJECT, WANDB_MODE,
    MLFLOW_TRACKING_URI and others; without a key or a server, in the run directory. These three get a row once a
    checkpoint covers it."""
    profile_at: int = option(0, low=0, high=1_000_000_000, free=True)
    """The first update that torch.profiler records on every rank, into ``<run_dir>/profile/``; the one before it warms
    up, so it is 2 or more. 0: none; ./launch.sh profile asks a run that trains."""
    profile_steps: int = option(5, low=1, high=1000, free=True)
    """Updates that are recorded; fewer where the epoch ends before."""


@dataclass(frozen=True)
class DistributedConfig:
    """How long ranks wait for each other."""

    start_timeout_s: float = option(300.0, low=1, high=86_400, free=True)
    """Seconds without progress on any rank (a phase of the start that begins; images that are decoded) after which a
    start is given up, until its first update is done. Must exceed the longest compilation."""
    step_timeout_s: float = option(120.0, low=1, high=86_400, free=True)
    """The same while training: a rank that hangs ends the run after this long. Must exceed the longest step, and the
    ten seconds that a save waits at most for the one before."""
    eval_timeout_s: float = option(600.0, low=1, high=86_400, free=True)
    """The same while evaluating, and for the checkpoint that ends an epoch or a run."""


@dataclass(frozen=True)
class SlurmConfig:
    """The job that is sent to SLURM. No part of the training."""

    cluster: Literal["slurm", "local"] = option("slurm", free=True)
    """slurm: sbatch. local: the same job on this machine, in the background, for a machine without SLURM."""
    partition: str = option("", free=True)
    """Of the job; empty: the site's default. So too for account, qos and constraint."""
    account: str = option("", free=True)
    """Whose allocation it uses."""
    qos: str = option("", free=True)
    """Quality of service."""
    constraint: str = option("", free=True)
    """Features that the nodes must have."""
    time: str = option("4h", free=True)
    """Limit of one start: 90m, 8h, 2d, or [days-]hours:minutes:seconds. A run that needs longer is saved and
    requeued before the limit."""
    nodes: int = option(1, low=1, high=100_000, free=True)
    """Machines."""
    gpus_per_node: str = option("0", free=True)
    """GPUs on each, 4 or with the site's name for a type a100:4; 0: train on CPUs."""
    ranks_per_node: int = option(0, low=0, high=1024, free=True)
    """Tasks on each node, one per rank; 0: one per GPU, or 1 where there are none."""
    cpus_per_task: int = option(0, low=0, high=4096, free=True)
    """Cores of each rank, its threads too unless train.threads_per_rank says otherwise; 0: the site's default."""
    mem: str = option("", free=True)
    """Memory per node, e.g. 64G; empty: the site's default."""
    signal_lead_s: int = option(120, low=1, high=65_535, free=True)
    """Seconds before the time limit at which the ranks are told to save and leave. Longer than two steps and a save."""
    max_requeues: int = option(100, low=0, high=10_000, free=True)
    """Starts after the first one. Whatever this says, three starts in a row without a new checkpoint are the last."""
    max_restarts: int = option(3, low=0, high=1000, free=True)
    """Launches after a failure, inside the job, in a row without a new checkpoint; 0: a failure ends the job. A failure
    that comes twice at the same step from the same cause ends it too."""
    check: bool = option(True, free=True)
    """Have ./launch.sh doctor look at the nodes before each start, for about 15 s. Slow ones are warned of; those that
    compute wrongly or cannot write the run directory are excluded, and the job is requeued."""
    setup: tuple[str, ...] = option((), free=True)
    """Shell lines that the batch script runs first: module load ..., conda activate ..."""
    python: str = option("", free=True)
    """Command that starts Python on the nodes, e.g. 'apptainer exec --nv image.sif python3'; empty: the one that runs
    submit.py."""
    environment: dict[str, str] = field(default_factory=dict, metadata=properties(free=True))
    """Variables for the batch script and the ranks: slurm.environment.NCCL_DEBUG=INFO"""
    sbatch: dict[str, Any] = field(default_factory=dict, metadata=properties(free=True))
    """Any other sbatch option by its long name: slurm.sbatch.exclusive=true, slurm.sbatch.reservation=maint"""
    snapshot: bool = option(True, free=True)
    """Run a copy of the code as it was submitted, kept in the run directory; false: the checkout as it is by then."""


@dataclass(frozen=True)
class Config:
    """The whole run."""

    run_dir: str = option("", free=True, path=True)
    """Folder of checkpoints, metrics and status; empty: ``runs/<name of the first YAML file>``."""
    seed: int = option(0, low=0, high=2**31 - 1, compared=False)
    """Of initial weights, sample order, augmentation, and any other random number."""
    notify: str = option("", free=True)
    """Who is told when the run has finished, failed for good, or stopped and nobody starts it again: an https address,
    which gets JSON by POST, or a shell command, which gets it on its standard input. env:NAME: what the variable NAME
    holds; an address that holds a key is only taken from there, since options are written into files. Empty: nobody."""
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


def groups() -> Iterator[tuple[type, str]]:
    """Each dataclass with the name of its group; the top level ("") first."""
    yield Config, ""
    for name, hint in get_type_hints(Config).items():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield hint, name


def options() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for cls, group in groups():
        for spec in dataclasses.fields(cls):
            if "free" in spec.metadata or spec.default is not dataclasses.MISSING:
                yield (f"{group}.{spec.name}" if group else spec.name), spec


@functools.cache
def those(name: str, *, are: bool = True) -> frozenset[str]:
    """The options that are, or are not, "free", "compared" or "in_card"."""
    plain = properties()
    return frozenset(key for key, spec in options() if (plain | dict(spec.metadata))[name] == are)


@functools.cache
def types() -> dict[str, Any]:
    """The type of each option."""
    return {
        f"{group}.{name}" if group else name: hint
        for cls, group in groups()
        for name, hint in get_type_hints(cls).items()
    }


def entry_of(key: str) -> tuple[str, str]:
    """The option that is a mapping, and the entry of it, whose name may have dots: model.args, width."""
    group, name, entry = (*key.split(".", 2), "", "")[:3]
    return f"{group}.{name}", entry


def short_name(key: str) -> str:
    """Of an option, or of an entry of a mapping: lr of optim.lr, model of model.name."""
    return entry_of(key)[1] or key.removesuffix(".name").rpartition(".")[2]


def flat_values(config: Config) -> dict[str, Any]:
    flat = {}
    for key, _ in options():
        group, _, name = key.rpartition(".")
        value = getattr(getattr(config, group) if group else config, name)
        flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


def range_text(spec: dataclasses.Field[Any]) -> str:
    low, high, above = (spec.metadata.get(name) for name in ("low", "high", "above"))
    parts = [f">= {low}" if low is not None else "", f"> {above}" if above is not None else ""]
    parts.append(f"<= {high}" if high is not None else "")
    return "".join(f", {part}" for part in parts if part)
