"""Pictures decoded in threads, some batches ahead of the one that is used.

At most ``AHEAD`` batches are decoded, or being decoded, while one is used; until the next one has taken its place there
is one more. Beside them each thread holds one picture, as large as it is decoded, in up to 16 bytes a pixel:
Pillow's pixels have four, a picture that is turned is there twice, and the crop is copied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import BytesIO
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.ImageFile import ImageFile
from torch import Tensor

from senet.data.crops import Box, center_box, random_box
from senet.data.sources.pictures import TURNS, as_shown, fit_image, open_picture, orientation, read_image, reason_of
from senet.data.stores.encoded import Pictures
from senet.errors import RunError

AHEAD = 2  # batches
_LARGEST_SHRINK = 8  # of what libjpeg's inverse transform gives less of
_MARK = (113, 59, 201, 17)  # a row of this color alone is in no photograph; one that has it is decoded twice
T = TypeVar("T")
Task = Callable[[], np.ndarray]
"""Returns the pixels of one image, uint8 [size, size, 3]."""


class Crops(NamedTuple):
    """What is shown of each training image, in one epoch."""

    size: int
    area: tuple[float, float]
    """``augment.crop_area``; (1, 1): the central square."""
    keys: Callable[[Tensor], Tensor]
    """64 random bits for each of a sampler's indices, int64."""


def decode_whole(pictures: Pictures, row: int, size: int, center_crop: float) -> np.ndarray:
    """As it is evaluated, through any store and by predict. Raises RunError: it cannot be decoded."""
    content = _read(pictures, row)
    try:
        return fit_image(read_image(BytesIO(content)), size, center_crop)
    except Exception as error:  # each decoder raises its own
        raise _refused(pictures, row, error) from None


def decode_part(pictures: Pictures, row: int, size: int, box_of: Callable[[int, int], Box]) -> np.ndarray:
    """As it is trained on: what a box shows, of a JPEG from no more pixels than that needs.

    Args:
        box_of: from width and height of the picture, upright.

    Raises:
        RunError: it cannot be decoded.
    """
    content = _read(pictures, row)
    try:
        return _part(content, size, box_of)
    except Exception as error:  # each decoder raises its own
        raise _refused(pictures, row, error) from None


def _part(content: bytes, size: int, box_of: Callable[[int, int], Box]) -> np.ndarray:
    picture, box = drafted(content, size, box_of)
    left, top, right, bottom = (round(edge) for edge in box)
    crop = np.array(picture.crop((left, top, right, bottom)))  # a copy, since torch wants memory that may be written
    images_NCHW = torch.from_numpy(crop)[None].permute(0, 3, 1, 2)
    # torchvision's crop and resize, in half of Pillow's time
    scaled_NCHW = F.interpolate(images_NCHW, (size, size), mode="bilinear", antialias=True)
    return scaled_NCHW[0].permute(1, 2, 0).numpy()


def drafted(
    content: bytes, size: int, box_of: Callable[[int, int], Box], *, to_its_end: bool = False
) -> tuple[Image.Image, Box]:
    """A picture in RGB, upright, and the box in its pixels. Of a JPEG a half, a quarter or an eighth of what the file
    has each way, where the box is then still at least ``size``; and where the file has the picture upright, no rows
    below the box, unless ``to_its_end``."""
    with open_picture(BytesIO(content)) as picture:
        if picture.format not in ("JPEG", "MPO"):
            shown = as_shown(picture)  # its tags may come after its pixels
            return shown, box_of(*shown.size)
        width, height = picture.size
        left, top, right, bottom = box_of(*((height, width) if orientation(picture) > 4 else (width, height)))
        shrink = max(1, min(_LARGEST_SHRINK, int(min(right - left, bottom - top) / size)))
        found = picture.draft("RGB", (width // shrink, height // shrink))
        shrunk = width / found[1][2] if found else 1.0
        box = (left / shrunk, top / shrunk, right / shrunk, bottom / shrunk)
        if not to_its_end and orientation(picture) not in TURNS and not _load_rows(picture, round(box[3])):
            return drafted(content, size, box_of, to_its_end=True)
        return as_shown(picture), box


def _load_rows(picture: ImageFile, bottom: int) -> bool:
    """Decode the rows of a JPEG down to ``bottom``, and not those below. False: that has failed.

    Pillow's decoder ends with an error here, since rows are left; of a broken file it ends with the same. They are told
    apart by the last row: where it is still as it was before, the file is broken.
    """
    if bottom >= picture.height:
        return True
    last = (0, bottom - 1, picture.width, bottom)
    mark = _MARK[: len(picture.getbands())] if len(picture.getbands()) > 1 else _MARK[0]
    try:
        picture.load_prepare()
        picture.im.paste(mark, last)
        picture.tile = [picture.tile[0]._replace(extents=(0, 0, picture.width, bottom))]
        picture.load()
    except Exception:  # OSError; a release of Pillow that takes no shorter tile may raise another
        if picture.tile:
            return False
    return picture.crop(last).getcolors(1) != [(picture.width, mark)]


def _read(pictures: Pictures, row: int) -> bytes:
    try:
        return pictures.read(row)
    except OSError as error:
        raise RunError(
            f"{pictures.name(row)} cannot be read ({error}); ./launch.sh data verify CONFIG says what is damaged, data "
            f"prepare CONFIG packs that again from the same files, and the run goes on"
        ) from None


def _refused(pictures: Pictures, row: int, error: Exception) -> RunError:
    return RunError(
        f"{pictures.name(row)} cannot be decoded ({reason_of(error)}); put one in its place that can, type ./launch.sh "
        f"data prepare CONFIG --anyway, and go on with resume.allow_changes=true; data verify CONFIG finds all such"
    )


def whole_tasks(pictures: Pictures, rows: Sequence[int], size: int, center_crop: float) -> list[Task]:
    """For ``decode_ahead``."""
    return [partial(decode_whole, pictures, row, size, center_crop) for row in rows]


def part_tasks(
    pictures: Pictures, rows: Sequence[int], numbers: Tensor, crops: Crops, center_crop: float
) -> list[Task]:
    """For ``decode_ahead``. ``numbers``: the sampler's indices of the rows, of which ``crops`` makes keys."""
    if crops.area == (1.0, 1.0):
        box = partial(center_box, share=center_crop)
        return [partial(decode_part, pictures, row, crops.size, box) for row in rows]
    return [
        partial(decode_part, pictures, row, crops.size, partial(random_box, key=key, area=crops.area))
        for row, key in zip(rows, crops.keys(numbers).tolist(), strict=True)
    ]


def decode_ahead(
    batches: Iterable[tuple[T, Sequence[Task]]], size: int, threads: int, *, pin: bool = False
) -> Generator[tuple[T, Tensor]]:
    """Yield what came with each batch, and its images, uint8 [N, size, size, 3], in their order.

    No thread is left when this ends, by whatever way; close it where it is not used up.

    Args:
        pin: in memory from which a GPU copies by itself.

    Raises:
        RunError: of the first image, in the order of the batches, that cannot be decoded.
    """
    begun: deque[tuple[T, Tensor, list[Future[None]]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for what, tasks in batches:
            images = torch.empty((len(tasks), size, size, 3), dtype=torch.uint8, pin_memory=pin)
            places = images.numpy()
            begun.append((what, images, [pool.submit(_fill, places[n], task) for n, task in enumerate(tasks)]))
            del images, places  # this frame keeps no batch alive
            if len(begun) > AHEAD:
                yield _finished(begun.popleft())
        while begun:
            yield _finished(begun.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _fill(place: np.ndarray, task: Task) -> None:
    place[:] = task()


def _finished(batch: tuple[T, Tensor, list[Future[None]]]) -> tuple[T, Tensor]:
    what, images, futures = batch
    for future in futures:
        future.result()
    return what, images
