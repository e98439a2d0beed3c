"""Pictures decoded: what counts of a file; in threads, some batches ahead; the same pixels for any number of them."""

from __future__ import annotations

import hashlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from senet.config.options import AugmentConfig, Config, DataConfig, TrainConfig
from senet.data import decoding
from senet.data.augment import Preprocess
from senet.data.balance import BalancedSampler
from senet.data.crops import Box, center_box, random_box
from senet.data.decoding import AHEAD, Crops, Task, decode_ahead
from senet.data.draws import mix
from senet.data.keys import random_bits
from senet.data.samplers import ImageData, ResumableSampler, ShardSampler, load_batches, open_data
from senet.data.sources.pictures import fit_image, read_image
from senet.data.splits import PictureSplit, upload_ahead
from senet.distributed.ranks import Ranks
from senet.drill.probe import _some_of
from senet.errors import RunError
from senet.rundir.checkpoint import find_checkpoint, read_checkpoint
from senet.rundir.files import read_json
from senet.training.feed import Feed, build_sampler
from senet.training.trainer import Observer, Trainer
from tests.conftest import Train
from tests.harness import StopAt, payload, tiny, train, without_clock
from tests.test_predict import odd_images


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


def photo(path: Path, width: int, height: int, seed: int, **options: Any) -> None:
    """Something smooth with edges, as a photograph has them."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path, **options)


@pytest.fixture
def photos(tmp_path: Path) -> DataConfig:
    """Of two classes, 26 for training and 9 for testing: JPEG in several sizes, some turned, PNG and WebP."""
    turned = Image.Exif()
    turned[0x0112] = 6
    for number in range(35):
        split, name = "test" if number > 25 else "train", "ant" if number % 3 else "bee"
        suffix = ("jpg", "jpg", "png", "webp")[number % 4]
        size = ((120, 90), (90, 120), (400, 300), (64, 64), (300, 40))[number % 5]
        options = {"exif": turned} if number % 7 == 0 else {}
        photo(tmp_path / f"photos/{split}/{name}/{number:02}.{suffix}", *size, number, **options)
    folder, root = str(tmp_path / "photos"), str(tmp_path / "data")
    return DataConfig(
        source="imagefolder",
        folder=folder,
        root=root,
        image_size=32,
        center_crop=0.875,
        store="encoded",
        decode_threads=2,
    )


def split_of(config: DataConfig) -> PictureSplit:
    split = open_data(config).train
    assert isinstance(split, PictureSplit)
    return split


def decoding_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("decode")]


AUGMENT = AugmentConfig(
    crop_padding=0, cutout=8, crop_area=(0.08, 1.0), color_jitter=(0.4, 0.4, 0.4, 0.1), trivial=True, erase=0.3,
    mixup=0.2, cutmix=1.0,
)  # fmt: skip


def global_batches(
    config: DataConfig, ranks: int, threads: int, first: int = 0, *, balance: float = 0.0, epoch: int = 1
) -> list[str]:
    """The sha256 of each batch of an epoch, decoded by these ranks one after the other, and augmented."""
    device = torch.device("cpu")
    preprocess = Preprocess(AUGMENT, mean=config.mean, std=config.std, seed=3, device=device)
    crops = Crops(32, AUGMENT.crop_area, partial(preprocess.keys, epoch=epoch))
    parts = list[list[Tensor]]()
    for rank in range(ranks):
        split = split_of(replace(config, decode_threads=threads))
        share: dict[str, Any] = {"global_batch_size": 8, "rank": rank, "world_size": ranks, "seed": 3}
        sampler = BalancedSampler(split, balance=balance, **share) if balance else ResumableSampler(split, **share)
        sampler.start_at(epoch, first)
        batches = load_batches(split, sampler, device, repeats=sampler.repeats, crops=crops)
        parts.append([preprocess.train(images, numbers, epoch) for images, _, numbers in batches])
    return [
        hashlib.sha256(torch.cat(batch).contiguous().numpy().tobytes()).hexdigest()
        for batch in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_batches_are_the_same_for_any_number_of_threads_and_ranks_from_any_of_them_on(
    photos: DataConfig, balance: float
) -> None:
    expected = global_batches(photos, 1, 1, balance=balance)
    assert len(set(expected)) == 3
    for ranks, threads in ((1, 2), (1, 8), (2, 1), (2, 8), (4, 2)):
        assert global_batches(photos, ranks, threads, balance=balance) == expected
    assert global_batches(photos, 4, 2, first=1, balance=balance) == expected[1:]
    assert not set(global_batches(photos, 1, 2, balance=balance, epoch=2)) & set(expected)


def test_what_a_training_is_fed_has_the_crops_of_its_seed_and_epoch(photos: DataConfig) -> None:
    ranks, data = Ranks(0, 1, 0, 1, torch.device("cpu")), open_data(photos)
    config = Config(seed=3, data=photos, augment=AUGMENT, train=TrainConfig(global_batch_size=8))
    feed = Feed.build(config, ranks, data, build_sampler(config, data, ranks))
    for epoch in (0, 1):
        crops = Crops(32, AUGMENT.crop_area, partial(random_bits, mix(3, epoch)))
        for images, _, numbers in feed.train(epoch, 1):
            [(expected, _, _)] = split_of(photos).batches([numbers], crops)
            assert torch.equal(images, expected)


def test_an_image_that_is_drawn_twice_has_a_crop_of_its_own_each_time(photos: DataConfig) -> None:
    split = split_of(photos)
    crops = Crops(32, (0.08, 1.0), partial(random_bits, mix(0, 0)))
    number = torch.tensor([2, 2 + len(split), 2])
    [(images, labels, numbers)] = split.batches([number], crops)
    assert (labels == split.labels[2]).all()
    assert torch.equal(numbers, number)
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])


def test_a_crop_is_torchvisions_of_the_whole_picture_but_for_the_scaling_of_jpegs(photos: DataConfig) -> None:
    split = split_of(photos)
    crops = Crops(32, (0.08, 1.0), partial(random_bits, mix(0, 0)))
    [(images, _, _)] = split.batches([torch.arange(len(split))], crops)
    for index, key in enumerate(random_bits(mix(0, 0), torch.arange(len(split))).tolist()):
        picture = read_image(Path(photos.folder, split.name(index)))
        box = random_box(*picture.size, key, (0.08, 1.0))
        left, top, right, bottom = map(int, box)
        expected = v2.functional.resized_crop(picture, top, left, bottom - top, right - left, [32, 32])
        difference = np.abs(images[index].numpy() - np.asarray(expected).astype(int))
        assert difference.mean() < 10  # of a scaled JPEG a crop may be half a pixel aside
        assert difference.max() <= 1 or split.name(index).endswith(".jpg")


@pytest.mark.parametrize("tag", [1, 6])
@pytest.mark.parametrize("share", [1.0, 0.6, 0.3, 0.1])
def test_of_a_jpeg_no_more_is_decoded_than_a_crop_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, tag: int
) -> None:
    tags = Image.Exif()
    tags[0x0112] = tag
    photo(tmp_path / "a.jpg", 1999, 1501, 0, exif=tags, quality=95)
    as_shown, sizes = decoding.as_shown, []

    def seen(picture: Any) -> Image.Image:
        shown = as_shown(picture)
        sizes.append(shown.size)
        return shown

    monkeypatch.setattr(decoding, "as_shown", seen)
    box: Callable[[int, int], Box] = partial(center_box, share=share)
    found = decoding._part((tmp_path / "a.jpg").read_bytes(), 100, box)
    expected = fit_image(read_image(tmp_path / "a.jpg"), 100, share).astype(int)
    assert np.abs(found - expected).mean() < 1.5
    [(width, height)] = sizes
    side = share * min(width, height)
    assert side >= 100
    assert side < 200 or share == 1.0  # libjpeg gives an eighth at least
    assert (width < height) == (tag == 6)


def saved(picture: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


NOISE = Image.effect_noise((301, 203), 90)
BAND = NOISE.convert("RGB")
BAND.paste((0, 0, 0), (0, 90, 301, 160))
WHITE = NOISE.convert("CMYK")
WHITE.paste((0, 0, 0, 0), (0, 90, 301, 203))
UPRIGHT = Image.Exif()
UPRIGHT[0x0112] = 1
JPEGS: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    "4:2:0": (NOISE.convert("RGB"), {"subsampling": "4:2:0"}),
    "4:4:4": (NOISE.convert("RGB"), {"subsampling": "4:4:4"}),
    "progressive": (NOISE.convert("RGB"), {"progressive": True}),
    "restarts": (NOISE.convert("RGB"), {"restart_marker_rows": 1}),
    "grey": (NOISE, {}),
    "CMYK": (NOISE.convert("CMYK"), {}),
    "black in the middle": (BAND, {}),
    "white below": (WHITE, {}),
    "two pictures": (NOISE.convert("RGB"), {"format": "MPO", "save_all": True, "append_images": [BAND]}),
    "tag": (NOISE.convert("RGB"), {"exif": UPRIGHT}),
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("size", [12, 25, 50, 100])  # decoded to an eighth, a quarter, a half, and in full
def test_what_a_jpeg_has_below_a_crop_is_not_decoded_and_changes_no_pixel(
    kind: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, options = JPEGS[kind]
    content = saved(picture, quality=90, **options)
    opened = decoding.open_picture
    for bottom in (105, 128, 152, 202, 203):
        box, opens = (20, bottom - 100, 120, bottom), []
        monkeypatch.setattr(decoding, "open_picture", lambda file, opens=opens: opens.append(1) or opened(file))
        found, found_box = decoding.drafted(content, size, lambda *_, box=box: box)
        assert len(opens) == 1  # none is taken for a broken one
        whole, whole_box = decoding.drafted(content, size, lambda *_, box=box: box, to_its_end=True)
        assert found_box == whole_box
        rows = round(found_box[3])
        np.testing.assert_array_equal(np.asarray(found)[:rows], np.asarray(whole)[:rows])
        left = np.asarray(found.convert("RGB"))[rows:]
        assert not left[left < 255].any()  # zero, which is white in CMYK


def test_a_jpeg_is_refused_if_what_a_crop_needs_is_broken_or_cut_off() -> None:
    content = saved(NOISE.convert("RGB"), progressive=True)
    tables = content.rindex(b"\xff\xc4")
    broken = content[:tables] + b"\xff\xc4\x00\x14\xff" + content[tables + 5 :]
    with pytest.raises(OSError, match="broken data stream"):
        decoding.drafted(broken, 32, lambda *_: (0, 0, 100, 100))
    for mode in ("RGB", "L", "CMYK"):
        content = saved(NOISE.convert(mode))
        half = content[: len(content) // 2]
        decoding.drafted(half, 32, lambda *_: (0, 0, 60, 60))
        with pytest.raises(OSError, match="truncated"):
            decoding.drafted(half, 32, lambda *_: (0, 120, 60, 180))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_evaluation_is_equal_bit_for_bit_through_both_stores(tmp_path: Path) -> None:
    for split in ("train", "test"):
        odd_images(tmp_path / f"images/{split}/a")
        photo(tmp_path / f"images/{split}/b/large.jpg", 700, 500, 1)
        photo(tmp_path / f"images/{split}/b/large.webp", 300, 500, 2)
    both = []
    for store in ("pixels", "encoded"):
        config = DataConfig(
            source="imagefolder", folder=str(tmp_path / "images"), root=str(tmp_path), image_size=24, center_crop=0.875
        )
        both.append(open_data(replace(config, store=store)))  # type: ignore[arg-type]
    pixels, encoded = both
    assert pixels.classes == encoded.classes
    for decoded, packed in ((pixels.train, encoded.train), (pixels.test, encoded.test)):
        assert len(decoded) == len(packed) == 23
        expected, found = decoded[torch.arange(23)], packed[torch.arange(23)]
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)
        batches = list(load_batches(packed, ShardSampler(23, batch_size=5, rank=1, world_size=2), torch.device("cpu")))
        assert torch.equal(torch.cat([images for images, _, _ in batches]), decoded[torch.arange(1, 23, 2)][0])


def test_parts_of_packed_images_are_held_out_or_drilled_as_those_of_decoded_ones(photos: DataConfig) -> None:
    packed, decoded = (
        open_data(replace(photos, holdout=6, store=store))  # type: ignore[arg-type]
        for store in ("encoded", "pixels")
    )
    assert packed.fingerprint.partition("+")[2] == decoded.fingerprint.partition("+")[2]
    for ours, theirs in ((packed.train, decoded.train), (packed.test, decoded.test), *_fewer(packed, decoded)):
        assert len(ours) == len(theirs)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours[torch.tensor([3, 0])][0], theirs[torch.tensor([3, 0])][0])
    assert isinstance(packed.test, PictureSplit)
    expected = fit_image(read_image(Path(photos.folder, packed.test.name(1))), 32, 0.875)
    np.testing.assert_array_equal(packed.test[torch.tensor([1])][0][0], expected)


def _fewer(packed: ImageData, decoded: ImageData) -> list[Any]:
    return [(_some_of(packed.train, 7), _some_of(decoded.train, 7))]


def numbered(count: int) -> Iterator[tuple[int, list[Task]]]:
    for number in range(count):
        yield number, [lambda number=number: np.full((4, 4, 3), number, np.uint8)] * 5  # type: ignore[misc]


def test_a_slow_consumer_has_no_more_batches_in_memory_than_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    empty, made, most = torch.empty, list[weakref.ref[Tensor]](), 0

    def counted(*args: Any, **options: Any) -> Tensor:
        nonlocal most
        images = empty(*args, **options)
        made.append(weakref.ref(images))
        most = max(most, sum(each() is not None for each in made))
        return images

    monkeypatch.setattr(decoding.torch, "empty", counted)
    with closing(decode_ahead(numbered(30), 4, 3)) as batches:
        for number, (what, images) in enumerate(batches):
            assert what == number
            assert (images == number).all()
            time.sleep(0.002)
            assert sum(each() is not None for each in made) <= AHEAD + 1
            assert len(made) <= number + 1 + AHEAD
    assert number == 29
    assert most == AHEAD + 2
    assert not decoding_threads()


def test_an_early_end_leaves_no_thread_and_begins_nothing_more() -> None:
    done, may_go_on = list[int](), threading.Event()

    def slow() -> np.ndarray:
        may_go_on.wait(0.2)
        done.append(1)
        return np.zeros((4, 4, 3), np.uint8)

    batches = decode_ahead(((number, [slow] * 50) for number in range(10)), 4, 2)
    next(batches)
    assert decoding_threads()
    batches.close()
    assert not decoding_threads()
    count = len(done)
    assert 50 <= count < 100
    time.sleep(0.4)
    assert len(done) == count


def damage(config: DataConfig, *names: str) -> None:
    """PNG files whose pixels are no zlib stream, of the right length and with a right end."""
    for name in names:
        path = Path(config.folder, name)
        content = path.read_bytes()
        start = content.index(b"IDAT") + 4
        path.write_bytes(content[:start] + bytes(40) + content[start + 40 :])


def test_a_damaged_picture_ends_the_training_with_its_name(
    photos: DataConfig, train_here: Train, tmp_path: Path
) -> None:
    named = r"train/ant/10\.png cannot be decoded \(broken data stream"
    damage(photos, "train/ant/10.png")
    with pytest.raises(
        RunError,
        match=f"^{named} .*; put one in its place .* data prepare CONFIG --anyway, .* resume.allow_changes=true",
    ):
        list(split_of(photos).batches([torch.arange(20), torch.arange(6)], Crops(32, (1.0, 1.0), lambda n: n)))
    assert not decoding_threads()
    with pytest.raises(RunError, match=named):
        split_of(photos)[torch.arange(26)]
    with pytest.raises(RunError, match=named):
        train_here(tmp_path / "run", *options_of(photos))
    assert not decoding_threads()


@pytest.mark.slow
def test_where_one_rank_meets_a_damaged_picture_all_end(photos: DataConfig, tmp_path: Path) -> None:
    damage(photos, "train/ant/10.png")
    done = train(2, *tiny(*options_of(photos), f"run_dir={tmp_path / 'run'}"))
    assert done.returncode
    assert "train/ant/10.png cannot be decoded" in read_json(tmp_path / "run/status.json")["reason"]


def options_of(config: DataConfig) -> list[str]:
    changed = {
        name: getattr(config, name) for name in ("source", "folder", "root", "image_size", "center_crop", "store")
    }
    return [
        *(f"data.{key}={value}" for key, value in changed.items()),
        "augment.crop_padding=0", "augment.crop_area=[0.08,1]", "augment.color_jitter=[0.4,0.4,0.4,0.1]",
        "augment.trivial=true", "augment.erase=0.3", "augment.mixup=0.2", "augment.cutmix=1",
        "augment.small_epochs=1", "augment.small_size=24", "train.global_batch_size=8", "train.epochs=2",
        "schedule.warmup_epochs=0", "train.amp=off", "log.every_steps=1",
    ]  # fmt: skip


def test_a_training_that_is_stopped_in_the_middle_of_an_epoch_ends_with_the_same_bits(
    photos: DataConfig, train_here: Train, tmp_path: Path
) -> None:
    options = options_of(photos)
    whole = train_here(tmp_path / "whole", *options, "data.decode_threads=1")
    assert whole.state == "finished"
    for stop_after in (4, 5, 10**6):
        train_here(tmp_path / "parts", *options, "data.decode_threads=8", stop=StopAt(stop_after))
        assert not decoding_threads()
    one, other = (without_clock(payload(tmp_path / name)) for name in ("whole", "parts"))
    assert one["state"] == other["state"]
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name


def test_small_epochs_decode_to_their_size(photos: DataConfig, train_here: Train, tmp_path: Path) -> None:
    seen = list[tuple[int, int]]()

    def observe(trainer: Trainer) -> Observer:
        for epoch in (0, 1):
            with closing(trainer.feed.train(epoch, 0)) as batches:
                images, _, numbers = next(batches)
            seen.append((images.shape[1], trainer.feed.preprocess.train(images, numbers, epoch).shape[-1]))
        return lambda: None

    train_here(tmp_path / "run", *options_of(photos), observe=observe)
    assert seen == [(24, 24), (32, 32)]
    assert not decoding_threads()


def test_what_decodes_is_a_fact_of_a_run(photos: DataConfig, train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path / "run", *options_of(photos))
    path = find_checkpoint(tmp_path / "run")
    assert read_checkpoint(path).manifest["facts"]["pillow"].startswith(Image.__version__)


def test_on_a_gpu_each_batch_is_copied_while_the_one_before_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of calls; no GPU is asked."""
    done, streams = list[str](), ["compute"]

    class Stream:
        def __init__(self, _device: torch.device) -> None: ...

        def record_event(self) -> str:
            done.append("copy begun")
            return "copied"

        def __enter__(self) -> None:
            streams.append("side")

        def __exit__(self, *_: object) -> None:
            streams.pop()

        def wait_event(self, event: str) -> None:
            assert streams == ["compute"]
            done.append(f"compute waits until {event}")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda side: side)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(Tensor, "record_stream", lambda *_: done.append("kept"), raising=False)
    batches = (tuple(torch.tensor([10 * number + part]) for part in range(3)) for number in range(3))
    for number, batch in enumerate(upload_ahead(batches, torch.device("cpu"))):  # type: ignore[arg-type]
        assert [tensor.item() for tensor in batch] == [10 * number + part for part in range(3)]
        done.append(f"step {number}")
    arrives = ["compute waits until copied", *["kept"] * 3]
    copy = "copy begun"
    assert done == [copy, copy, *arrives, "step 0", copy, *arrives, "step 1", *arrives, "step 2"]
