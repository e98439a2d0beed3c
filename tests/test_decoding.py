"""Pictures decoded: what counts of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from senet.data.sources.pictures import read_image


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_pictures_are_set_upright_as_their_tag_says(tmp_path: Path, suffix: str) -> None:
    values = np.zeros((24, 40, 3), np.uint8)
    values[:12, :20], values[12:, 20:] = (255, 0, 0), (0, 255, 0)
    for number in range(1, 9):
        tags = Image.Exif()
        tags[0x0112] = number
        path = tmp_path / f"{number}.{suffix}"
        Image.fromarray(values).save(path, exif=tags, quality=95)
        with Image.open(path) as opened:
            expected = ImageOps.exif_transpose(opened).convert("RGB")
        assert read_image(path).size == expected.size == ((24, 40) if number > 4 else (40, 24))
        np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_damaged_tags_turn_nothing(tmp_path: Path) -> None:
    picture = Image.effect_noise((40, 24), 90).convert("RGB")
    picture.save(tmp_path / "a.jpg")
    for tags in (
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0XX",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02",
    ):
        picture.save(tmp_path / "b.jpg", exif=tags)
        np.testing.assert_array_equal(read_image(tmp_path / "b.jpg"), read_image(tmp_path / "a.jpg"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "P in bytes", "L with a key", "RGB with a key", "GIF"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    alpha = np.zeros((16, 16), np.uint8)
    alpha[:, :8], alpha[:8, 8:] = 255, 51  # opaque, a fifth, none
    colour, path = np.full((16, 16, 3), (200, 100, 0), np.uint8), tmp_path / "a.png"
    seen = [200, 100, 0]
    if mode == "RGBA":
        Image.fromarray(np.dstack([colour, alpha])).save(path)
    elif mode == "LA":
        seen = [100] * 3
        Image.merge("LA", [Image.fromarray(colour[..., 1]), Image.fromarray(alpha)]).save(path)
    else:
        alpha = np.where(alpha == 255, 255, 0).astype(np.uint8)
        number = Image.fromarray((alpha == 0).astype(np.uint8))
        if mode.startswith("P") or mode == "GIF":
            number = Image.fromarray((alpha == 0).astype(np.uint8)).convert("P")
            number.putpalette([*seen, 9, 9, 9])
            path = path.with_suffix(".gif") if mode == "GIF" else path
            number.save(path, transparency=b"\xff\x00" if mode == "P in bytes" else 1)
        elif mode == "L with a key":
            seen = [0] * 3
            number.save(path, transparency=1)
        else:
            Image.fromarray(np.where(alpha[..., None] == 0, 7, colour).astype(np.uint8)).save(
                path, transparency=(7, 7, 7)
            )
    share = alpha[..., None] / 255
    np.testing.assert_allclose(read_image(path), share * np.array(seen) + (1 - share) * 255, atol=1)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_an_animated_file_the_first_frame_counts(tmp_path: Path, suffix: str) -> None:
    first, second = Image.new("RGB", (20, 16), (255, 0, 0)), Image.new("RGB", (20, 16), (0, 255, 0))
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], duration=100)
    with Image.open(tmp_path / f"a.{suffix}") as opened:
        assert opened.n_frames == 2
    np.testing.assert_allclose(np.asarray(read_image(tmp_path / f"a.{suffix}")), np.asarray(first), atol=2)
