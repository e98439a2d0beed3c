"""Write and open exported networks: safetensors, ONNX, torch.export; each file also has classes and normalisation.

``.safetensors`` and ``.onnx`` are data: opening them runs no code of theirs. A ``.pt2`` of torch.export is not: torch
unpickles parts of it without restriction (``weights_only=False``) and evaluates expressions in it, so it is opened only
with ``trust``.
"""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from senet.data.augment import Preprocess
from senet.errors import ConfigError, RunError
from senet.extras import library
from senet.inference.network import (
    Described,
    Network,
    Trained,
    assemble,
    check_facts,
    check_logits,
    load_trained,
    preprocess_of,
)
from senet.rundir.files import check_output, fsync_directory

SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "torch_export": ".pt2"}
FACTS = ("format", "classes", "config", "step", "checkpoint_sha256", "with_preprocessing")
FORMAT = 1  # all formats up to this one can be read
LARGEST_DIFFERENCE = 1e-4  # of a logit, in fp32
CHECKED_IMAGES = 64


@dataclass(frozen=True)
class Graph(Described):
    """A network from a file that holds its operations as well as its weights."""

    run: Callable[[Tensor], Tensor]
    """uint8 NHWC if the file includes the preprocessing, else normalised float32 NCHW -> logits; on the CPU."""
    preprocess: Preprocess

    @torch.inference_mode()
    def logits(self, images_NHWC: Tensor) -> Tensor:
        """uint8 [N, image_size, image_size, 3] -> float32 [N, classes], on the CPU."""
        return self.run(images_NHWC if self.manifest["with_preprocessing"] else self.preprocess.test(images_NHWC))


def open_network(path: Path, *, model_name: str = "", device: str = "auto", trust: bool = False) -> Network:
    """Open a checkpoint, the best one of a run directory, or an exported file, which is recognised by its suffix.

    Args:
        model_name, device: see ``load_trained``; graphs run on the CPU.
        trust: open a ``.pt2``, which can run its author's code.

    Raises:
        ConfigError: see ``load_trained``; or a damaged file, one that was not exported by this program, a library that
            is missing, a ``.pt2`` without trust, a graph with device=cuda.
    """
    if (path / "model.safetensors").is_file():  # a folder of the Hugging Face hub
        path = path / "model.safetensors"
    if path.suffix not in SUFFIXES.values():
        return load_trained(path, model_name=model_name, device=device)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    if path.suffix == ".pt2" and not trust:
        raise ConfigError(f"{path}: a .pt2 can run code when it is opened; say --trust if you know who made it")
    if path.suffix != ".safetensors" and device == "cuda":
        raise ConfigError(f"{path} runs on the CPU; use --device cpu, or a checkpoint or .safetensors on a GPU")
    try:
        if path.suffix == ".safetensors":
            return _open_safetensors(path, model_name, device)
        facts, run = _open_onnx(path) if path.suffix == ".onnx" else _open_torch_export(path)
    except ConfigError:
        raise
    except Exception as error:  # each library has its own errors
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path} cannot be opened ({type(error).__name__}: {reason}); export it again") from None
    graph = Graph(facts, run, preprocess_of(facts["config"], torch.device("cpu")))
    check_logits(graph, path)
    return graph


def to_strings(facts: Mapping[str, Any]) -> dict[str, str]:
    """The facts as all three formats store them: a JSON text under each name."""
    return {name: json.dumps(facts[name]) for name in FACTS}


def _from_strings(strings: Mapping[str, str | bytes], path: Path) -> dict[str, Any]:
    if not set(FACTS) <= strings.keys():
        raise ConfigError(f"{path} has no class names and normalisation in it; make it with ./launch.sh export")
    facts = {name: json.loads(strings[name]) for name in FACTS}
    if (found := facts["format"]) not in range(1, FORMAT + 1):
        raise ConfigError(f"{path} has format {found}, this version reads 1 to {FORMAT}; use the version that wrote it")
    check_facts(facts, path)
    return facts


def _open_safetensors(path: Path, model_name: str, device: str) -> Network:
    with library("safetensors", "export").safe_open(path, framework="pt") as file:
        facts = _from_strings(file.metadata() or {}, path)
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # no mapping
    return assemble(facts, weights, origin=path, model_name=model_name, device=device)


def _open_onnx(path: Path) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    # from bytes, so that the file cannot refer to other files
    runtime = library("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    facts = _from_strings(session.get_modelmeta().custom_metadata_map, path)
    return facts, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _open_torch_export(path: Path) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    extra_files: dict[str, Any] = dict.fromkeys(FACTS, "")  # load fills in the names that are given
    if not zipfile.is_zipfile(path):  # torch would log a traceback
        raise ValueError("no zip archive")
    program = torch.export.load(path, extra_files=extra_files)
    return _from_strings(extra_files, path), program.module()


def export(trained: Trained, kind: str, output: Path, *, with_preprocessing: bool) -> float:
    """Write ``trained`` (on the CPU) to a file; returns the largest difference of its logits from the checkpoint's.

    Compared on 64 images of random pixels as one batch, and the first of them alone; then the file gets its name.

    Args:
        kind: safetensors, onnx or torch_export.
        with_preprocessing: the graph takes uint8 [N, H, W, 3]; else normalised float32 [N, 3, H, W].

    Raises:
        ConfigError: a wrong suffix, safetensors with preprocessing, a missing library, or the file cannot be made.
        RunError: torch or safetensors cannot export this network, or its logits differ by more than 1e-4; no file is
            left behind.
    """
    if output.suffix != SUFFIXES[kind]:
        raise ConfigError(f"--output {output} must end in {SUFFIXES[kind]}, since the suffix tells the format")
    if with_preprocessing and kind == "safetensors":
        raise ConfigError("--format safetensors holds weights only; leave out --with-preprocessing, or use onnx")
    check_output("--output", output)
    strings = to_strings(facts_of(trained, with_preprocessing=with_preprocessing))
    with TemporaryDirectory(prefix=".export-", dir=output.parent) as folder:
        written = Path(folder) / output.name
        if kind == "safetensors":
            state = trained.model.state_dict()
            if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
                raise RunError(f"{others[0]} of this network is no tensor; safetensors holds only tensors, use onnx")
            weights = {name: value.contiguous().clone() for name, value in state.items()}
            # save_file would make a file that only its owner may read
            written.write_bytes(library("safetensors.torch", "export").save(weights, metadata=strings))
        else:
            _write_graph(trained, kind, written, strings, with_preprocessing)
        name = trained.manifest["config"]["model.name"]
        difference = _compare(trained, open_network(written, model_name=name, device="cpu", trust=True))
        if not difference <= LARGEST_DIFFERENCE:  # NaN too
            raise RunError(f"logits of the exported file differ by {difference:.2g}, more than {LARGEST_DIFFERENCE:g}")
        written.replace(output)
    fsync_directory(output.parent)
    return difference


def facts_of(trained: Trained, *, with_preprocessing: bool) -> dict[str, Any]:
    """What a file says of its network."""
    config = trained.manifest["config"]
    kept = {key for key in config if key.startswith("model.")} - {"model.init_from"}  # a path on this machine
    kept |= {"data.image_size", "data.mean", "data.std", "seed", "train.channels_last"}
    kept |= {"data.center_crop"} & config.keys()
    return {
        "format": FORMAT,
        "classes": trained.classes,
        "config": {key: config[key] for key in sorted(kept)},
        "step": trained.manifest["step"],
        "checkpoint_sha256": trained.manifest["sha256"],
        "with_preprocessing": with_preprocessing,
    }


class _WithPreprocessing(nn.Module):
    def __init__(self, preprocess: Preprocess, model: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.model = model

    def forward(self, images_NHWC: Tensor) -> Tensor:
        logits_NK: Tensor = self.model(self.preprocess.test(images_NHWC))
        return logits_NK


def _write_graph(trained: Trained, kind: str, path: Path, strings: dict[str, str], with_preprocessing: bool) -> None:
    # contiguous: torch.export.save warns of each weight in another memory order
    model = copy.deepcopy(trained.model).to(memory_format=torch.contiguous_format)
    size = trained.image_size
    images = torch.zeros(2, 3, size, size)
    if with_preprocessing:
        model = _WithPreprocessing(preprocess_of(trained.manifest["config"], trained.device), model).eval()
        images = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("batch")},)
    for name in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ():
        library(name, "export")
    try:
        if kind == "onnx":
            program = torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
            assert program is not None
            proto = program.model_proto
            for key, value in strings.items():
                proto.metadata_props.add(key=key, value=value)
            path.write_bytes(proto.SerializeToString())
        else:
            torch.export.save(torch.export.export(model, (images,), dynamic_shapes=shapes), path, extra_files=strings)
    except Exception as error:  # a network's code may do what a graph cannot express
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"torch cannot export this network: {type(error).__name__}: {reason}") from None


def _compare(trained: Trained, exported: Network) -> float:
    """The largest absolute difference of a logit."""
    images = random_images(trained.image_size)
    expected = trained.logits(images)
    found = torch.cat((exported.logits(images), exported.logits(images[:1])))
    return float((found - torch.cat((expected, expected[:1]))).abs().max())


def random_images(size: int) -> Tensor:
    """With which files are compared: uint8 [N, size, size, 3]."""
    shape = (CHECKED_IMAGES, size, size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
