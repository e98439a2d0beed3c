"""Every option: its type, default, range and meaning; ``defaults <- YAML files <- key=value``.

The only module that knows OmegaConf. It imports neither torch nor numpy, so that ``--help`` and the check before a
launch answer at once. ``python -m senet.config [arguments of train_ddp.py]`` checks them and prints the result.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import math
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from senet.reading import Quoted, as_path, as_type, parse, plain, shown, unquoted

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = REPOSITORY / "configs" / "cifar10.yaml"

CIFAR_RESNETS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
TORCHVISION_RESNETS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip
_WITH_TWINS = (*TORCHVISION_RESNETS, "googlenet", "inception_v3", *CIFAR_RESNETS)
NETWORKS = ("senet18", "preact_resnet18", *_WITH_TWINS, *(f"se_{name}" for name in _WITH_TWINS))
"""What ``model.name`` may be, besides somebody's own function; ``senet.zoo`` builds them."""

T = TypeVar("T")


class ConfigError(ValueError):
    """A user's mistake: one line that names the value, the rule and the remedy. Ends in exit code 2."""


class RunError(RuntimeError):
    """A known reason why a run cannot go on: one line, exit code 1."""

    reporter = 0
    """The rank that prints it."""
    guess = False
    """Whether it is only what ranks think of another: what that one knows of itself comes before it."""


def option(
    default: T,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    free: bool = False,
    path: bool = False,
) -> T:
    """A dataclass field with a range: ``low <= x <= high``, ``above < x``; ``free`` ones may change on resume; a
    ``path`` may begin with ``~``."""
    return field(default=default, metadata={"low": low, "high": high, "above": above, "free": free, "path": path})


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

    source: Literal["cifar10", "cifar100", "fashion_mnist", "imagefolder", "digits"] = "cifar10"
    """cifar10, cifar100, fashion_mnist are downloaded once; digits (1,797 images) comes with scikit-learn;
    imagefolder reads ``<data.folder>/train/<class>/*`` and ``test/<class>/*``."""
    root: str = option("data", free=True, path=True)
    """Folder for downloads and for decoded images (one file per split, mapped into memory by all ranks)."""
    folder: str = option("", free=True, path=True)
    """The folder of data.source=imagefolder."""
    image_size: int = option(32, low=16, high=1024)
    """Height and width in pixels; other sizes are scaled and cropped to the centre when decoded."""
    mean: tuple[float, float, float] = option((0.4914, 0.4822, 0.4465), low=0, high=1)
    """Per RGB channel, of pixels scaled to 0..1; subtracted."""
    std: tuple[float, float, float] = option((0.2470, 0.2435, 0.2616), above=0, high=1)
    """Per RGB channel, of pixels scaled to 0..1; divided by."""
    holdout: int = option(0, low=0, high=1_000_000_000)
    """Training images, as many of each class as its share, that are not trained on but evaluated in place of the test
    images: to choose a recipe without looking at those. 0: none."""
    resident: Literal["auto", "on", "off"] = option("auto", free=True)
    """Keep all decoded images on the GPU, where batches are gathered too: no copy in any step. auto: where they take at
    most a quarter of its memory. On a CPU the mapped files are in memory as it is."""
    decode_threads: int = option(0, low=0, high=256, free=True)
    """Threads that decode an image folder; 0: one per core that the process may use."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images, a pure function of (seed, epoch, sample index)."""

    crop_padding: int = option(4, low=0, high=256)
    """Pixels of zero padding around the image before a random crop of the old size; 0: off."""
    flip: bool = True
    """Mirror left and right with probability 1/2."""
    alternate_flip: bool = False
    """With flip: by chance in an image's first epoch only, then in every other epoch, so that two epochs in a row show
    each image both ways (Jordan 2024, arXiv:2404.00498, sec. 3.6)."""
    cutout: int = option(8, low=0, high=1024)
    """Side in pixels of a square set to the mean, its centre anywhere in the image; 0: off."""
    small_size: int = option(32, low=16, high=1024)
    """Height and width to which training images are scaled at last, in the first small_epochs epochs."""
    small_epochs: int = option(0, low=0, high=1_000_000)
    """Epochs that begin a training with smaller images, for a fraction of the work; 0: none."""


@dataclass(frozen=True)
class ModelConfig:
    """Which network."""

    name: str = "senet18"
    """senet18; preact_resnet18, the same without gates. Of torchvision, untrained: resnet18, resnet34, resnet50,
    resnet101, resnet152, resnext50_32x4d, resnext101_32x8d, resnext101_64x4d, wide_resnet50_2, wide_resnet101_2,
    googlenet, inception_v3 (from 75 pixels on), both without auxiliary heads. For 32x32 images (He et al. 2016, sec.
    4.2, shortcuts without parameters): resnet20, resnet32, resnet44, resnet56, resnet110. All these but the first two
    with gates: se_resnet18, se_googlenet, se_resnet20 and so on. Or ``package.module:function``, called as
    ``function(num_classes=...)``, returning a torch.nn.Module that takes float NCHW images with 3 channels and returns
    logits [N, num_classes]."""
    reduction: int = option(16, low=1)
    """Channels per hidden unit of a gate, of senet18 and the se_ networks."""
    small_stem: bool = False
    """Of torchvision's residual networks, for small images: begin with a 3x3 convolution instead of 7x7 with stride 2
    and pooling."""
    whiten: bool = False
    """Set the first convolution to the whitening of the training images' patches, and keep it so (Jordan 2024,
    arXiv:2404.00498, sec. 3.2)."""
    init_from: str = option("", path=True)
    """What to begin from at a fresh start: a checkpoint or the best one of a run directory (its raw weights), or a file
    of weights by name. The last layer is new where the number of classes differs, the gates where the file has none."""


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    epochs: int = option(30, low=1, high=1_000_000)
    """Passes over the training images."""
    global_batch_size: int = option(128, low=1, high=1_048_576)
    """Images per update, over all ranks and micro-batches. Never rescaled in silence."""
    accumulate: int = option(1, low=1, high=4096)
    """Micro-batches per update and rank."""
    eval_batch_size: int = option(256, low=1, high=65_536, free=True)
    """Images per rank and forward pass in evaluation."""
    label_smoothing: float = option(0.1, low=0, high=1)
    """Weight of the uniform distribution in the target."""
    clip_norm: float = option(0.0, low=0)
    """Largest 2-norm of all gradients together, after unscaling; 0: off."""
    ema_decay: float = option(0.999, low=0, high=0.999999)
    """Exponential moving average of weights and running statistics, per update; less in the first updates, (1 + n) /
    (10 + n); 0: off. From 5 / (1 - ema_decay) updates on the averaged weights are the result of the run, before that
    the raw ones: they choose the best checkpoint, and predict, evaluate, export and report take them."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Automatic mixed precision. auto: bf16 where the hardware has it natively, else off. fp16 uses a GradScaler. On a
    GPU what is left in fp32 uses TF32."""
    channels_last: bool = True
    """Keep weights and activations in NHWC memory order."""
    compile: bool = False
    """torch.compile the network."""
    sync_bn: bool = False
    """Batch statistics over all ranks instead of one (CUDA only)."""
    comm_hook: Literal["none", "bf16", "fp16"] = "none"
    """Compress gradients to this type for the all-reduce; one rank has none."""
    desync_check_every: int = option(200, low=0, high=1_000_000, free=True)
    """Updates between comparisons of all weights, bit by bit, over the ranks; also before each checkpoint. Ranks that
    have drifted apart (a broken GPU, a change on one rank) end the run. 0: off."""
    deterministic: bool = True
    """Deterministic kernels, no cudnn.benchmark, no sums inside NVSwitch (NCCL_ALGO, unless it is set). The promise of
    equal bits on a GPU needs it."""
    device: Literal["auto", "cpu", "cuda"] = option("auto", free=True)
    """auto: CUDA where a GPU is visible. A change on resume changes the numbers and is warned about."""
    threads_per_rank: int = option(0, low=0, high=1024, free=True)
    """CPU threads of each rank; 0: the cores this process may use, divided by the ranks on the node. Another number
    may change the last bits, so a change on resume is warned about."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer."""

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
    """What is kept."""

    every_steps: int = option(200, low=1, free=True)
    """Updates between checkpoints; one is also written at the end of each epoch and at a stop."""
    keep: int = option(3, low=1, high=10_000, free=True)
    """Newest checkpoints to keep; the best one (test accuracy) is kept besides."""


@dataclass(frozen=True)
class LogConfig:
    """What one sees."""

    every_steps: int = option(20, low=1, free=True)
    """Updates between rows of metrics.jsonl. The one host-device synchronisation of logging happens here."""
    tensorboard: bool = option(True, free=True)
    """Write event files beside metrics.jsonl."""


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
    """The job that slurm/submit.py sends. No part of the training: train_ddp.py reads none of it."""

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
    setup: tuple[str, ...] = option((), free=True)
    """Shell lines that the batch script runs first: module load ..., conda activate ..."""
    python: str = option("", free=True)
    """Command that starts Python on the nodes, e.g. 'apptainer exec --nv image.sif python3'; empty: the one that runs
    submit.py."""
    environment: dict[str, str] = field(default_factory=dict, metadata={"free": True})
    """Variables for the batch script and the ranks: slurm.environment.NCCL_DEBUG=INFO"""
    sbatch: dict[str, Any] = field(default_factory=dict, metadata={"free": True})
    """Any other sbatch option by its long name: slurm.sbatch.exclusive=true, slurm.sbatch.reservation=maint"""
    snapshot: bool = option(True, free=True)
    """Run a copy of the code as it was submitted, kept in the run directory; false: the checkout as it is by then."""


@dataclass(frozen=True)
class Config:
    """The whole run."""

    run_dir: str = option("", free=True, path=True)
    """Folder of checkpoints, metrics and status; empty: ``runs/<name of the first YAML file>``."""
    seed: int = option(0, low=0, high=2**31 - 1)
    """Of initial weights, sample order, augmentation, and any other random number."""
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


def load_config(argv: Sequence[str], world_size: int = 1) -> Config:
    """Merge defaults, the YAML files and the ``key=value`` pairs of ``argv``, each later one over the earlier.

    Without a YAML file, ``configs/cifar10.yaml`` is the first.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of range, a file missing or malformed, options that
            contradict each other, or a global batch that ``world_size`` ranks cannot share.
    """
    files, overrides = sort_arguments(argv)
    sources = [(f"{shown(name)}: ", _read_yaml(name)) for name in files or [str(DEFAULT_CONFIG)]]
    config = _merge([*sources, *(("", _read_override(pair)) for pair in overrides)])
    if not config.run_dir:
        config = dataclasses.replace(config, run_dir=f"runs/{Path(files[0] if files else DEFAULT_CONFIG).stem}")
    _check_ranges(config)
    _check_together(config)
    check_split(config.train, world_size)
    return config


def sort_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """YAML files, and ``key=value`` pairs. The path of a file may hold a ``=``: /data/exp=3/a.yaml."""
    files, overrides = [], []
    for argument in (each.strip() for each in argv):  # a script with Windows line ends adds one to the last argument
        key, equals, _ = argument.partition("=")
        is_yaml = argument.endswith((".yaml", ".yml"))
        is_file = is_yaml and not _find_option(key.strip())[0] and ("/" in key or Path(argument).is_file())
        if equals and not is_file:
            overrides.append(argument)
        elif is_yaml:
            files.append(argument)
        else:
            shipped = {path.stem: path.relative_to(REPOSITORY) for path in DEFAULT_CONFIG.parent.rglob("*.yaml")}
            near = f"did you mean '{shipped[argument]}'?" if argument in shipped else _near_option(argument)
            raise ConfigError(
                f"argument {argument!r} is neither key=value nor a YAML file; {near or '--help lists the options'}"
            )
    return files, overrides


def _merge(sources: Sequence[tuple[str, dict[str, Any]]]) -> Config:
    """The defaults, and over them each source's values; keys and types are checked, ranges are not.

    Args:
        sources: what was written, and where, for messages: "file: ", or "" for the command line.
    """
    written: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, content in sources:
        here = set()
        for key, value in _flatten(origin, content):
            name, entry = _find_option(key)
            if not name:
                raise ConfigError(f"{origin}unknown option {key!r}; {_near_option(key) or 'see --help'}")
            if key in here:
                raise ConfigError(f"{origin}{key} is given twice; leave one out")
            here.add(key)
            value = {entry: value} if entry else value
            earlier = written.get(name)
            written[name] = earlier | value if isinstance(earlier, dict) and isinstance(value, dict) else value
            origins[name] = origin
    groups: dict[str, dict[str, Any]] = {}
    paths = {name for name, spec in _options() if spec.metadata.get("path")}
    for name, value in _interpolate(written, origins).items():
        group, _, last = name.rpartition(".")
        try:
            typed = as_type(value, _hints()[name])
            groups.setdefault(group, {})[last] = as_path(typed) if name in paths else typed
        except ValueError as error:
            raise ConfigError(f"{origins[name]}{name}={shown(value)} {error}") from None
    parts = {group: cls(**groups.get(group, {})) for cls, group in _groups() if group}
    return Config(**groups.get("", {}), **parts)


def _flatten(origin: str, content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """``train: {epochs: 5}`` and ``train.epochs: 5`` alike."""
    groups = {group for _, group in _groups() if group}
    for name, value in content.items():
        if name not in groups:
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        elif value or not origin:  # in a file a group is empty when all its lines are comments
            some = next(key for key, _ in _options() if key.startswith(f"{name}."))
            raise ConfigError(f"{origin}{name}={shown(value)}: {name} is a group; set its options, e.g. {some}")


def _find_option(key: str) -> tuple[str, str]:
    """The option, and the entry where it is a mapping (slurm.environment.NAME); ("", "") where there is none."""
    if key in dict(_options()):
        return key, ""
    group, name, entry = (*key.split(".", 2), "", "")[:3]
    is_mapping = get_origin(_hints().get(f"{group}.{name}")) is dict
    return (f"{group}.{name}", entry) if entry and is_mapping else ("", "")


def _interpolate(written: Mapping[str, Any], origins: Mapping[str, str]) -> dict[str, Any]:
    """``${group.option}`` and ``${oc.env:VARIABLE}`` replaced."""
    values, tree = dict(written), dict[str, Any]()
    marked = [name for name, value in written.items() if "${" in str(value)]
    for name, spec in _options() if marked else ():
        group, _, last = name.rpartition(".")
        default = {} if spec.default is dataclasses.MISSING else spec.default
        (tree.setdefault(group, {}) if group else tree)[last] = plain(written.get(name, default))
    name = ""
    try:
        for name in marked:
            OmegaConf.create([plain(written[name])])  # well formed?
        whole = OmegaConf.create(tree)
        for name in marked:
            found = OmegaConf.select(whole, name)
            found = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
            values[name] = Quoted(found) if isinstance(found, str) else found
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0].rpartition("resolving interpolation: ")[2][:80]
        raise ConfigError(
            f"{origins[name]}{name}={shown(written[name])}: {reason}; write ${{group.option}}, "
            f"${{oc.env:VARIABLE}} or ${{oc.env:VARIABLE,default}}"
        ) from None
    return values


def named_path(text: str) -> Path:
    """A path that a person typed; ConfigError where ``~name`` is nobody."""
    try:
        return Path(as_path(text))
    except ValueError as error:
        raise ConfigError(f"{text} {error}") from None


def restore_data(saved: Mapping[str, Any], overrides: Sequence[str] = ()) -> DataConfig:
    """The group ``data`` of a flat configuration from a file, with ``data.key=value`` pairs over it.

    What is saved may be anybody's: it is taken as it stands, not as YAML, and nothing in it is interpolated. What it
    does not know (it is older) has its default, what is not known here (it is younger) is left out.

    Raises:
        ConfigError: a wrong type, a value out of range, or no folder for data.source=imagefolder.
    """
    values: dict[str, Any] = {}
    for spec in dataclasses.fields(DataConfig):
        value = saved.get(f"data.{spec.name}", spec.default)
        value = tuple(value) if isinstance(value, list) else value
        fits = type(value) is type(spec.default)
        if fits and isinstance(value, tuple):
            fits = len(value) == 3 and all(type(each) in (int, float) for each in value)
        if not fits or (spec.name == "source" and value not in get_args(get_type_hints(DataConfig)["source"])):
            raise ConfigError(f"data.{spec.name}={value!r} is no value of this option; --help of train_ddp.py shows it")
        values[spec.name] = value
    given = _merge([("", _read_override(pair)) for pair in overrides])
    names = [pair.partition("=")[0].strip().removeprefix("data.") for pair in overrides]
    data = DataConfig(**(values | {name: getattr(given.data, name) for name in names}))
    _check_ranges(Config(data=data))
    _check_together(Config(data=data))
    return data


def to_flat(config: Config) -> dict[str, Any]:
    """``{"optim.lr": 0.1, ...}`` in the order of the option manual; tuples become lists, as in JSON.

    Without the group ``slurm``: no part of the training, and its environment may hold what not everybody should read.
    """
    return {key: value for key, value in _flat(config).items() if not key.startswith("slurm.")}


def to_yaml(config: Config) -> str:
    """The resolved configuration as a YAML file that ``load_config`` reads back."""
    content = plain(dataclasses.asdict(config), escaped=True)
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=math.inf))


def changed_options(saved: Mapping[str, Any], config: Config) -> list[tuple[str, Any, Any]]:
    """``(key, saved value, value now)`` of the options that change numbers and differ.

    An option that ``saved`` does not know (it is younger) counts as saved with its default.
    """
    now, defaults = to_flat(config), to_flat(Config())
    free = {key for key, spec in _options() if spec.metadata.get("free")}
    return [
        (key, saved.get(key, defaults[key]), value)
        for key, value in now.items()
        if key not in free and saved.get(key, defaults[key]) != value
    ]


def check_split(train: TrainConfig, world_size: int) -> None:
    """Raise ConfigError unless the global batch can be shared equally by ranks and micro-batches."""
    unit = world_size * train.accumulate
    if train.global_batch_size % unit:
        nearest = max(unit, round(train.global_batch_size / unit) * unit)
        raise ConfigError(
            f"train.global_batch_size={train.global_batch_size} cannot be split over {_count(world_size, 'rank')} x "
            f"{_count(train.accumulate, 'micro-batch')}; use a multiple of {unit}, e.g. {nearest}"
        )


def help_text() -> str:
    """The option manual, from the doc strings of the dataclasses above."""
    lines = [
        "usage: train_ddp.py [FILE.yaml ...] [key=value ...]",
        "",
        "Train a network with DistributedDataParallel; type the same command again to resume.",
        "Defaults <- YAML files <- key=value, later wins. Without a file: configs/cifar10.yaml.",
        "Values: a text as it stands, a number in decimal digits, true or false, a list in brackets. A ~ that begins a",
        "path is home; ${oc.env:VARIABLE} and ${group.option} are replaced.",
        "Options marked * may change on resume; the others change the numbers and are refused.",
        "Exit codes of a rank: 0 finished, 2 bad input, 85 stopped and resumable, else failed.",
    ]
    for cls, group in _groups():
        lines += ["", *group_help(cls, group)]
    return "\n".join(lines)


def group_help(cls: type, group: str) -> list[str]:
    """The lines of one group in the option manual."""
    lines = [f"{group or 'top level'}: {inspect.getdoc(cls)}"]
    docs = _field_docs(cls)
    hints = get_type_hints(cls)
    for spec in dataclasses.fields(cls):
        if spec.name not in docs:
            continue
        key = f"{group}.{spec.name}" if group else spec.name
        mark = "*" if spec.metadata.get("free") else ""
        kind = _type_name(hints[spec.name]) + _range_text(spec)
        default = {} if spec.default is dataclasses.MISSING else spec.default
        lines.append(f"  {key}{mark} = {_yaml_value(default)}   ({kind})")
        lines += textwrap.wrap(docs[spec.name], 108, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def _groups() -> Iterator[tuple[type, str]]:
    """Each dataclass with the name of its group; the top level ("") first."""
    yield Config, ""
    for name, hint in get_type_hints(Config).items():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield hint, name


def _options() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for cls, group in _groups():
        for spec in dataclasses.fields(cls):
            if "free" in spec.metadata or spec.default is not dataclasses.MISSING:
                yield (f"{group}.{spec.name}" if group else spec.name), spec


@functools.cache
def _hints() -> dict[str, Any]:
    """The type of each option."""
    return {
        f"{group}.{name}" if group else name: hint
        for cls, group in _groups()
        for name, hint in get_type_hints(cls).items()
    }


def _flat(config: Config) -> dict[str, Any]:
    flat = {}
    for key, _ in _options():
        group, _, name = key.rpartition(".")
        value = getattr(getattr(config, group) if group else config, name)
        flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


def _read_yaml(name: str) -> dict[str, Any]:
    path = named_path(name)
    try:
        content = parse(path.read_bytes())
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise ConfigError(
            f"{shown(name)}: no such file; {_did_you_mean(str(path), near) or 'check the path'}"
        ) from None
    except OSError as error:
        raise ConfigError(f"{shown(name)}: not a readable YAML file: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{shown(name)}: not a readable YAML file: {error}") from None
    if content and not isinstance(content, dict):
        kind = "list" if isinstance(content, list) else "text"
        raise ConfigError(f"{shown(name)}: expected a mapping such as 'train: {{epochs: 5}}', found a {kind}")
    return content or {}


def _read_override(pair: str) -> dict[str, Any]:
    """The value of an option that is a list or a mapping is YAML; any other is the text itself."""
    key, _, text = (part.strip() for part in pair.partition("="))
    is_group = key in {group for _, group in _groups() if group}
    if not is_group and get_origin(_hints().get(key)) not in (tuple, dict):
        return {key: unquoted(text)}
    try:
        return {key: parse(text)}
    except ValueError as error:
        raise ConfigError(f"{key}={shown(text)} cannot be read: {error}") from None


def _near_option(key: str) -> str:
    """A hint; the same name in another group comes before a similar one."""
    known = [name for name, _ in _options()]
    key = key.lstrip("-+").replace("-", "_").lower()
    last = key.rpartition(".")[2]
    near = [name for name in known if name.rpartition(".")[2] == last]
    near = near or [name for name in known if name.endswith(f"_{last}")]
    return f"did you mean {' or '.join(map(repr, near))}?" if near else _did_you_mean(key, known)


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else ""


def _check_ranges(config: Config) -> None:
    flat = _flat(config)
    for key, spec in _options():
        rule = _range_text(spec).lstrip(", ")
        for value in flat[key] if isinstance(flat[key], list) else [flat[key]]:
            if isinstance(value, str) and not value.replace("\t", " ").isprintable():
                raise ConfigError(f"{key}={value!r} has characters that cannot be printed; leave them out")
            if isinstance(value, bool | str | dict):
                continue
            low, high, above = (spec.metadata.get(name) for name in ("low", "high", "above"))
            fits = (
                (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
            )
            if not (fits and math.isfinite(value)):
                raise ConfigError(f"{key}={flat[key]} is out of range: it must be {rule or 'finite'}")


def _check_together(config: Config) -> None:
    if config.optim.name == "sgd" and config.optim.nesterov and config.optim.momentum == 0:
        raise ConfigError("optim.nesterov=true needs optim.momentum > 0; set optim.nesterov=false")
    if config.schedule.name == "multistep" and not config.schedule.milestones:
        raise ConfigError("schedule.name=multistep needs schedule.milestones, e.g. schedule.milestones=[10,20]")
    if list(config.schedule.milestones) != sorted(set(config.schedule.milestones)):
        raise ConfigError(f"schedule.milestones={list(config.schedule.milestones)} must rise, each epoch once")
    if config.schedule.warmup_epochs >= config.train.epochs:
        raise ConfigError(
            f"schedule.warmup_epochs={config.schedule.warmup_epochs} must be below train.epochs={config.train.epochs}"
        )
    if config.augment.small_epochs:
        _check_small(config)
    if config.optim.bias_lr and config.optim.decay_norms_and_biases:
        raise ConfigError(
            f"optim.bias_lr={config.optim.bias_lr} is for norms and biases that do not decay; set "
            f"optim.decay_norms_and_biases=false"
        )
    if config.model.whiten and config.model.init_from:
        raise ConfigError(
            f"model.whiten=true would replace the first layer of model.init_from={config.model.init_from}; "
            f"set model.whiten=false"
        )
    if config.data.source == "imagefolder" and not config.data.folder:
        raise ConfigError("data.source=imagefolder needs data.folder=<folder with train/<class>/* and test/<class>/*>")
    if not config.data.root:
        raise ConfigError("data.root= is empty; name a folder, e.g. data.root=data")
    if config.train.sync_bn and config.train.device == "cpu":
        raise ConfigError("train.sync_bn=true needs CUDA, but train.device=cpu; set train.sync_bn=false")
    _check_mapping("slurm.environment", config.slurm.environment, r"[A-Za-z_]\w*", (str,))
    _check_mapping("slurm.sbatch", config.slurm.sbatch, r"[a-z][a-z0-9_-]*", (str, int, float))
    _check_model(config.model, config.data.image_size)


def _check_small(config: Config) -> None:
    small, size = config.augment, config.data.image_size
    if small.small_size >= size:
        raise ConfigError(f"augment.small_size={small.small_size} must be below data.image_size={size}")
    if small.small_epochs >= config.train.epochs:
        raise ConfigError(f"augment.small_epochs={small.small_epochs} must be below train.epochs={config.train.epochs}")
    if config.train.compile:
        raise ConfigError("augment.small_epochs with train.compile=true would not resume bit for bit; choose one")
    if config.model.name.removeprefix("se_") == "inception_v3" and small.small_size < 75:
        raise ConfigError(f"augment.small_size={small.small_size}: {config.model.name} needs 75 pixels or more")


def _check_model(model: ModelConfig, image_size: int) -> None:
    name, plain_name = model.name, model.name.removeprefix("se_")
    if ":" not in name and name not in NETWORKS:
        hint = _did_you_mean(name.lower(), NETWORKS) or "--help lists them"
        raise ConfigError(f"model.name={name!r} is neither a network here nor package.module:function; {hint}")
    if ":" in name and ("/" in name or name.partition(":")[0].endswith(".py")):
        raise ConfigError(f"model.name={name} names a file; write package.module:function, e.g. my.networks:build")
    if model.reduction != ModelConfig.reduction and (":" in name or not name.startswith(("senet18", "se_"))):
        raise ConfigError(f"model.reduction={model.reduction} is of senet18 and se_ networks, not of model.name={name}")
    if model.small_stem and plain_name not in TORCHVISION_RESNETS:
        raise ConfigError(
            f"model.small_stem=true is of torchvision's residual networks (resnet18, ...), not of model.name={name}; "
            f"set model.small_stem=false"
        )
    if plain_name == "inception_v3" and image_size < 75:
        raise ConfigError(f"model.name={name} needs images of 75 pixels or more; set data.image_size=75")


def _check_mapping(name: str, values: Mapping[str, Any], key_rule: str, kinds: tuple[type, ...]) -> None:
    for key, value in values.items():
        if not re.fullmatch(key_rule, key) or not isinstance(value, kinds) or "\n" in str(value):
            raise ConfigError(
                f"{name}.{key}={value!r}: a name that matches {key_rule}, and one line of text or a number"
            )


def _field_docs(cls: type) -> dict[str, str]:
    """The string literal under each field, which Python itself does not keep."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for statement, below in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            assert isinstance(statement.target, ast.Name)
            docs[statement.target.id] = " ".join(str(below.value.value).split())
    return docs


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    if get_origin(hint) is tuple:
        return f"list of {get_args(hint)[0].__name__}"
    if get_origin(hint) is dict:
        return "mapping"
    return str(hint.__name__)


def _range_text(spec: dataclasses.Field[Any]) -> str:
    low, high, above = (spec.metadata.get(name) for name in ("low", "high", "above"))
    parts = [f">= {low}" if low is not None else "", f"> {above}" if above is not None else ""]
    parts.append(f"<= {high}" if high is not None else "")
    return "".join(f", {part}" for part in parts if part)


def _yaml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value) or "''"


def _count(number: int, noun: str) -> str:
    plural = {"rank": "ranks", "micro-batch": "micro-batches"}[noun]
    return f"{number} {noun if number == 1 else plural}"


def main(argv: Sequence[str]) -> int:
    """Check a command line as the launcher does: print the resolved options, or one line and exit code 2."""
    if {"-h", "--help"} & set(argv):
        print(help_text())
        return 0
    try:
        print(to_yaml(load_config(argv)), end="")
    except ConfigError as error:
        print(f"train_ddp: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
