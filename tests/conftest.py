"""Fixtures: one store of the digits for all tests, and training in this process.

What imports torch is imported by the fixtures: under ``pytest -n``, the process that shares the tests out reads this
file too, before it starts the others.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import importlib.metadata
import itertools
import os
import pickle
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

if TYPE_CHECKING:
    from senet.data.samplers import ImageData
    from senet.distributed.preemption import StopFlag
    from senet.training.state import Summary
    from tests.cluster import Cluster

Train = Callable[..., "Summary"]
Once = Callable[[str, Callable[[Path], object]], Path]


# where torch would put it itself; it would make it in a temporary folder that a test gives to a training, and looks at
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")))

# torch 2.10 warns of itself: torch.compile, writing ONNX, reading .pt2
WARNINGS_OF_2_10 = (
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning",
    "ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning",
    "ignore:The given buffer is not writable:UserWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    if importlib.metadata.version("torch").startswith("2.10."):
        for warning in WARNINGS_OF_2_10:
            config.addinivalue_line("filterwarnings", warning)


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """The variables that a test sets, such as those of a launcher in this process, do not reach the next one."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """``once(name, make)``: a path, after ``make(path)`` by whichever process of ``pytest -n`` asks for it first."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def path_of(name: str, make: Callable[[Path], object]) -> Path:
        path, made = shared / name, shared / f"{name}.made"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(path, ignore_errors=True)  # left by one that failed
                make(path)
                made.touch()
        return path

    return path_of


@pytest.fixture(scope="session")
def data_root(once: Once) -> Path:
    """``data.root`` with the store of the small run already built."""
    return once("data", _open_digits)


def _open_digits(root: Path) -> ImageData:
    from senet.config.options import DataConfig
    from senet.data.samplers import open_data

    return open_data(DataConfig(source="digits", image_size=16, root=str(root)))


@pytest.fixture
def digits(data_root: Path) -> ImageData:
    return _open_digits(data_root)


@pytest.fixture
def train_here(data_root: Path) -> Iterator[Train]:
    """Train the small run in this process with one rank: ``train_here(run_dir, "key=value", ..., stop=...)``."""
    import torch
    import torch.distributed as dist

    from senet.distributed.preemption import StopFlag
    from senet.training.run import run
    from tests.harness import tiny, tiny_config

    threads = torch.get_num_threads()

    def here(run_dir: Path, *overrides: str, stop: StopFlag | None = None, **hooks: Any) -> Summary:
        options = (f"data.root={data_root}", f"run_dir={run_dir}", *overrides)
        try:
            return run(tiny_config(*options), tiny(*options), StopFlag() if stop is None else stop, **hooks)
        finally:
            if dist.is_initialized():  # an error leaves the group to the end of the process
                dist.destroy_process_group()

    yield here
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def finished_run(train_here: Train, once: Once) -> Path:
    """The small run in fp32 to its end, trained once for all tests: to be read only."""
    return once("finished_run", lambda run_dir: train_here(run_dir, "train.amp=off"))


@pytest.fixture(scope="session")
def undisturbed(data_root: Path, once: Once) -> Callable[..., dict[str, Any]]:
    """The last checkpoint of a run with these options that nothing disturbs; ``ranks=0``: without torchrun."""
    from tests.harness import payload, tiny, train, without_clock

    def reference(ranks: int, *options: str) -> dict[str, Any]:
        def run(run_dir: Path) -> None:
            done = train(ranks, *tiny(*options, f"data.root={data_root}", f"run_dir={run_dir}"))
            assert done.returncode == 0, done.stderr

        name = hashlib.sha256(repr((ranks, options)).encode()).hexdigest()
        return without_clock(payload(once(f"undisturbed-{name[:16]}", run)))

    return reference


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An archive in CIFAR-10's format (20 training and 10 test images), served over HTTP; two requests fail.

    The status codes of the responses are in ``served.log`` beside it.
    """
    import numpy as np
    import torchvision

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)

    def write(name: str, content: object) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(count: int) -> dict[str, object]:
        pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": [i % 10 for i in range(count)]}

    train = [write(f"data_batch_{i}", batch(10)) for i in (1, 2)]
    test = [write("test_batch", batch(10))]
    name, digest = write("batches.meta", {"label_names": list("abcdefghij")})
    archive = tmp_path / "served" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    dataset = torchvision.datasets.CIFAR10
    monkeypatch.setattr(dataset, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(dataset, "train_list", train)
    monkeypatch.setattr(dataset, "test_list", test)
    monkeypatch.setattr(dataset, "meta", {"filename": name, "key": "label_names", "md5": digest})
    monkeypatch.setattr("senet.data.download.time.sleep", lambda _: None)
    with _serve(archive.parent, tmp_path / "served.log") as address:
        monkeypatch.setattr(dataset, "url", f"{address}/{archive.name}")
        yield archive


@contextlib.contextmanager
def _serve(folder: Path, log: Path) -> Iterator[str]:
    """Serve the files of a folder over HTTP, after two requests that fail; the status codes go into ``log``."""
    requests = itertools.count()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            super().do_GET() if next(requests) >= 2 else self.send_error(503)

        def log_request(self, code: Any = "-", _size: Any = "-") -> None:
            with log.open("a") as file:
                file.write(f"{int(code)}\n")

        def log_message(self, *_: object) -> None:
            """No output."""

        def copyfile(self, source: Any, outputfile: Any) -> None:
            with contextlib.suppress(BrokenPipeError):  # torchvision follows redirects with a request it does not read
                super().copyfile(source, outputfile)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A SLURM cluster for the tests of a file; those of tests/hosts have one of their own."""
    from tests.cluster import private_cluster

    with private_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster
