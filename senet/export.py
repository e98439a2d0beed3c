"""Write a trained network as safetensors, ONNX, torch.export, or a folder of the Hugging Face hub:
``python -m senet.export RUN_DIR --format onnx``.

The file holds class names, normalisation, image size, the network's options and the sha256 of its checkpoint. Before it
gets its name it is opened again, and its logits are compared with the checkpoint's.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from senet.command import Parser, end, path_argument, printable
from senet.errors import ConfigError
from senet.verbs import typed


def main(argv: Sequence[str]) -> int:
    """Export as the command line says; print the file and how much its logits differ from the checkpoint's."""
    arguments = _parser().parse_intermixed_args(argv)
    from senet.distributed.devices import set_threads
    from senet.inference.folder import WEIGHTS, export_folder
    from senet.inference.formats import CHECKED_IMAGES, SUFFIXES, export  # takes seconds: torch
    from senet.inference.network import load_trained

    set_threads(0, 1)
    trained = load_trained(arguments.network, model_name=arguments.model, device="cpu")
    output = arguments.output or Path(_name(trained.checkpoint, arguments) + SUFFIXES.get(arguments.format, ""))
    replaces = output.exists()
    if replaces and not arguments.output:
        raise ConfigError(f"{output} exists already; remove it, or name it with --output to replace it")
    if arguments.format == "hf":
        if arguments.with_preprocessing:
            raise ConfigError("--format hf holds weights only; leave out --with-preprocessing, or use onnx")
        difference, weights = export_folder(trained, output), output / WEIGHTS
    else:
        difference = export(trained, arguments.format, output, with_preprocessing=arguments.with_preprocessing)
        weights = output
    line = (
        f"{output}{' (replaced)' if replaces else ''}: {weights.stat().st_size:,} bytes, from {trained.checkpoint} "
        f"(step {trained.manifest['step']}); the logits of {CHECKED_IMAGES} random images differ by at most "
        f"{difference:.2g}"
    )
    print(printable(line))
    return 0


def _name(checkpoint: Path, arguments: Namespace) -> str:
    """The file's name without suffix: run, checkpoint, kind of input."""
    folder = checkpoint.absolute().parent
    run = (folder.parent if folder.name == "checkpoints" else folder).name
    return f"{run}-{checkpoint.stem}{'-with-preprocessing' * arguments.with_preprocessing}"


def _parser() -> Parser:
    parser = Parser(
        prog=typed("export"),
        description="Write a trained network with its classes and normalisation as one file, and check it.",
        epilog="Needs ./launch.sh setup export. Exit code: 0 written, 1 the logits differ or torch cannot export the "
        "network, 2 bad input.",
    )
    parser.add_network("a run directory (its best checkpoint) or a checkpoint")
    parser.add_argument("--format", required=True, choices=("safetensors", "onnx", "torch_export", "hf"))
    parser.add_argument(
        "--output",
        type=path_argument,
        metavar="FILE",
        help="replaced where it exists; a new folder for hf; default: a name from run and checkpoint, in the working "
        "directory",
    )
    parser.add_argument(
        "--with-preprocessing",
        action="store_true",
        help="the graph takes uint8 [N, H, W, 3]; without: float32 [N, 3, H, W], normalised",
    )
    return parser


if __name__ == "__main__":
    end("export", main)
