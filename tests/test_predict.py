"""Predictions for files, folders and addresses of the web."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image

from senet import REPOSITORY
from senet.config.options import DataConfig
from senet.data.samplers import ImageData, open_data
from senet.errors import ConfigError
from senet.inference.fetch import Limits
from senet.inference.network import load_trained
from senet.predict import expand, load, main

TINY = "tests.networks:tiny_senet"
Predict = Callable[..., int]


@pytest.fixture
def predict(finished_run: Path) -> Predict:
    return lambda *arguments: main([str(finished_run), "--model", TINY, "--device", "cpu", *map(str, arguments)])


def write_digits(folder: Path, digits: ImageData, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{index:03d}.png" for index in range(count)]
    for index, path in enumerate(paths):
        Image.fromarray(digits.test.images[index]).save(path)
    return paths


def odd_images(folder: Path) -> None:
    """One file for each way of storing pixels, none of them square."""
    folder.mkdir(parents=True)
    values = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    colour = Image.fromarray(values)
    for mode, suffix in (("1", "png"), ("L", "jpg"), ("LA", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("P", "bmp")):
        colour.convert(mode).save(folder / f"{mode}.{suffix}")
    for mode in ("YCbCr", "LAB", "F", "I"):
        colour.convert("LAB" if mode == "LAB" else mode if mode == "YCbCr" else "L").convert(mode).save(
            folder / f"{mode}.tif"
        )
    colour.quantize(16).save(folder / "transparent.png", transparency=bytes(range(0, 160, 10)))
    Image.fromarray(values[..., 0].astype(np.uint16) * 2).save(folder / "16 bits.png")
    frames = [Image.fromarray(255 - values)]
    colour.save(folder / "moving.gif", save_all=True, append_images=frames)
    Image.new("L", (400, 1), 7).save(folder / "thin.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation
    for suffix in ("jpg", "png", "webp", "tif"):
        colour.save(folder / f"turned.{suffix}", exif=turned)
    colour.save(folder / "odd tags.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff no tags")
    for suffix in ("webp", "png"):
        colour.save(folder / f"moving.{suffix}", save_all=True, append_images=frames, duration=100)


def bomb(path: Path, side: int = 20_000) -> None:
    """A PNG of 400 million pixels in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b""))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("share", [1.0, 0.875])
def test_pixels_of_any_kind_of_file_are_those_that_training_stores(tmp_path: Path, share: float) -> None:
    odd_images(tmp_path / "images/test/a")
    odd_images(tmp_path / "images/train/a")
    (tmp_path / "images/train/b").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "images/train/b/1.png")
    config = DataConfig(
        source="imagefolder", folder=str(tmp_path / "images"), root=str(tmp_path), image_size=16, center_crop=share
    )
    stored = open_data(config).test.images
    names = expand(str(tmp_path / "images/test"))
    assert len(names) == len(stored) == 21
    for name, pixels in zip(names, stored, strict=True):
        found = load(name, size=16, limits=Limits(), center_crop=share)
        assert not isinstance(found, str), found
        np.testing.assert_array_equal(found, pixels, err_msg=name)


def test_probabilities_are_the_softmax_of_the_networks_logits(
    predict: Predict, finished_run: Path, digits: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_digits(tmp_path / "some", digits, 9)
    assert predict(tmp_path / "some", "--json", "--batch-size", 4, "--top", 3) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    logits_NK = load_trained(finished_run, model_name=TINY, device="cpu").logits(torch.tensor(digits.test.images[:9]))
    expected_NK = np.exp(logits_NK.double().numpy())
    expected_NK /= expected_NK.sum(1, keepdims=True)
    assert [row["input"] for row in found] == [str(path) for path in paths]
    for row, expected_K in zip(found, expected_NK, strict=True):
        order = np.argsort(-expected_K)[:3]
        assert [each["class"] for each in row["predictions"]] == [digits.classes[index] for index in order]
        shares = [each["probability"] for each in row["predictions"]]
        np.testing.assert_allclose(shares, expected_K[order], rtol=1e-4)


def test_a_table_and_csv_say_the_same(
    predict: Predict, digits: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [path] = write_digits(tmp_path / "one, with comma", digits, 1)
    assert predict(path, "--csv", "--top", 99) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 11)]  # no more than there are
    assert {row["input"] for row in rows} == {str(path)}
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1, abs=1e-5)
    assert predict(path, "--top", 2) == 0
    [line] = capsys.readouterr().out.splitlines()
    cells = [f"{row['class']} {100 * float(row['probability']):6.2f} %" for row in rows[:2]]
    assert line == "   ".join((str(path), *cells))


def test_what_fails_costs_one_line_and_the_rest_goes_on(
    predict: Predict, digits: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_digits(tmp_path / "mixed", digits, 2)
    (tmp_path / "mixed/text.jpg").write_text("no image")
    (tmp_path / "mixed/.hidden").write_text("not looked at")
    (tmp_path / "mixed/sub\n\x1b[31m").mkdir()
    (tmp_path / "mixed/sub\n\x1b[31m/cut.png").write_bytes(good[0].read_bytes()[:60])
    (tmp_path / "empty").mkdir()
    bomb(tmp_path / "mixed/bomb.png")
    inputs = (tmp_path / "mixed", tmp_path / "empty", tmp_path / "nothing.png", "file:///etc/passwd", good[1])
    assert predict(*inputs, "--json") == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["input"] for line in out.splitlines()] == [str(good[0]), str(good[1]), str(good[1])]
    reasons = {line.split(": ")[1].removeprefix(str(tmp_path)): line.split(": ", 2)[2] for line in err.splitlines()}
    assert len(err.splitlines()) == len(reasons) == 6
    assert reasons["/mixed/text.jpg"] == "not an image"
    assert reasons["/mixed/sub??[31m/cut.png"].startswith("not a readable image")
    assert "DecompressionBombError" in reasons["/mixed/bomb.png"]
    assert reasons["/empty"] == "no files in this folder"
    assert reasons["/nothing.png"] == "no such file"
    assert "is not http" in reasons["file:///etc/passwd"]


def test_each_file_below_a_folder_is_an_input_once(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.png", "a/3.png", "4.png", ".hidden/5.png", "elsewhere/6.png", "a/labels.CSV"):
        (tmp_path / "top" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / name).touch()
    (tmp_path / "top/elsewhere").rename(tmp_path / "elsewhere")
    (tmp_path / "top/c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "top/b/round").symlink_to(tmp_path / "top")
    names = [Path(name).relative_to(tmp_path / "top").as_posix() for name in expand(str(tmp_path / "top"))]
    assert names == ["4.png", "a/3.png", "b/1.png", "b/2.png", "c/6.png"]


def test_an_image_of_more_than_50_million_pixels_is_not_decoded(tmp_path: Path) -> None:
    bomb(tmp_path / "large.png", 7072)
    found = load(str(tmp_path / "large.png"), size=16, limits=Limits())
    assert isinstance(found, str)
    assert "7072 x 7072 pixels, 50,000,000 are taken at most" in found
    bomb(tmp_path / "small.png", 7071)
    assert "pixels" not in str(load(str(tmp_path / "small.png"), size=16, limits=Limits()))


def test_what_may_not_be_looked_at_costs_one_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert expand("x" * 5000) == ["x" * 5000]
    assert "File name too long" in str(load("x" * 5000, size=16, limits=Limits()))
    for name in ("a/1.png", "locked/2.png", "z/3.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    real, real_access, locked = os.scandir, os.access, str(tmp_path / "locked")

    def scandir(path: str) -> object:  # not by mode bits, which do not bind root
        if path == locked:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked and real_access(path, mode))
    names = expand(str(tmp_path))
    assert names == [str(tmp_path / "a/1.png"), locked, str(tmp_path / "z/3.png")]
    assert load(locked, size=16, limits=Limits()) == "no permission to read it"


def test_an_address_of_the_web_is_an_input_like_any_other(
    predict: Predict, digits: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            return

    [path] = write_digits(tmp_path / "web", digits, 1)
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert predict(path, f"{url}/web/000.png", f"{url}/404.png", f"{url}/web/", "--allow-private", "--csv") == 1
        out, err = capsys.readouterr()
        assert predict(f"{url}/web/000.png") == 1
        server.shutdown()
    [from_file, from_web] = [[row[1:] for row in list(csv.reader(io.StringIO(out)))[n : n + 5]] for n in (1, 6)]
    assert from_file == from_web
    assert err.splitlines() == [f"predict: {url}/404.png: HTTP 404 Not Found", f"predict: {url}/web/: not an image"]
    assert "which is not public" in capsys.readouterr().err


def test_a_wrong_command_line_is_one_line_and_exit_code_2() -> None:
    command = [sys.executable, "-m", "senet.predict"]
    wrong = subprocess.run([*command, "run", "--top", "x"], capture_output=True, text=True, cwd=REPOSITORY)
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
    assert wrong.stderr.startswith("predict: argument --top: invalid int value: 'x'")
    with pytest.raises(ConfigError, match="no such file or folder"):
        main(["nowhere", "a.png"])
    with pytest.raises(ConfigError, match="--top and --batch-size"):
        main(["nowhere", "a.png", "--top", "0"])


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; import senet.predict, senet.evaluate, senet.export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0
