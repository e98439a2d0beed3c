"""Stores, sources and samplers."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import sklearn.model_selection
import torch
import torchvision
from PIL import Image

from senet.config.options import DataConfig
from senet.data.samplers import ImageData, ResumableSampler, ShardSampler, load_batches, open_data
from senet.data.sources.pictures import read_image
from senet.data.splits import Split
from senet.errors import ConfigError
from senet.rundir.files import read_json, write_json
from tests.harness import run_ranks


def sampler(length: int, batch: int, rank: int = 0, world_size: int = 1, seed: int = 0) -> ResumableSampler:
    split = Split(np.zeros((length, 2, 2, 3), np.uint8), np.zeros(length, np.int64))
    return ResumableSampler(split, global_batch_size=batch, rank=rank, world_size=world_size, seed=seed)


def global_batches(length: int, batch: int, world_size: int, epoch: int, first: int = 0) -> list[list[int]]:
    shares = []
    for rank in range(world_size):
        one = sampler(length, batch, rank, world_size)
        one.start_at(epoch, first)
        shares.append([indices.tolist() for indices in one])
        assert len(one) == len(shares[-1])
    return [[index for part in parts for index in part] for parts in zip(*shares, strict=True)]


def test_global_batches_are_the_same_for_any_number_of_ranks() -> None:
    whole = global_batches(103, 12, 1, epoch=3)
    assert [len(batch) for batch in whole] == [12] * 8
    assert len({index for batch in whole for index in batch}) == 96  # each at most once, 7 left out
    for world_size in (2, 3, 4):
        assert global_batches(103, 12, world_size, epoch=3) == whole


def test_an_epoch_can_be_entered_anywhere() -> None:
    assert global_batches(103, 12, 2, epoch=1, first=5) == global_batches(103, 12, 2, epoch=1)[5:]
    assert global_batches(103, 12, 2, epoch=1, first=8) == []


def test_epochs_and_seeds_differ_and_drop_other_tails() -> None:
    tails = [set(range(103)) - {i for b in global_batches(103, 12, 1, epoch=e) for i in b} for e in range(3)]
    assert len({frozenset(tail) for tail in tails}) == 3
    one, other = sampler(103, 12, seed=0), sampler(103, 12, seed=1)
    other.start_at(0, 0)
    one.start_at(1, 0)  # seed + epoch would be the same
    assert next(iter(one)).tolist() != next(iter(other)).tolist()


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than the 10 training images"):
        sampler(10, 11)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 7, 10, 103])
def test_test_shards_hold_each_image_once_in_equally_many_batches(length: int, world_size: int) -> None:
    shards = [list(ShardSampler(length, batch_size=4, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(torch.cat([i for shard in shards for i in shard]).tolist()) == list(range(length))
    assert len({len(shard) for shard in shards}) == 1


def test_iterating_leaves_the_global_generator_alone(digits: ImageData) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for _ in load_batches(digits.train, ShardSampler(20, batch_size=8, rank=0, world_size=1), torch.device("cpu")):
        pass
    assert torch.equal(torch.rand(3), expected)


def test_digits_are_split_by_class_and_always_the_same(digits: ImageData, tmp_path: Path) -> None:
    assert (len(digits.train), len(digits.test), digits.classes) == (1437, 360, tuple("0123456789"))
    counts = torch.bincount(digits.test.labels)
    assert int(counts.min()) >= 34
    assert int(counts.max()) <= 37
    images, labels, indices = digits.train[torch.tensor([5, 3])]
    assert (images.dtype, images.shape) == (torch.uint8, (2, 16, 16, 3))
    assert labels.tolist() == [digits.train.labels[5], digits.train.labels[3]]
    assert indices.tolist() == [5, 3]
    again = open_data(DataConfig(source="digits", image_size=16, root=str(tmp_path)))
    assert again.fingerprint == digits.fingerprint


def test_a_damaged_description_of_a_store_is_named(data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root / "stores", tmp_path / "stores")
    (tmp_path / "stores/digits-16/meta.json").write_text("{}")
    for local_rank in (0, 1):
        with pytest.raises(ConfigError, match=r"meta\.json is damaged"):
            open_data(DataConfig(source="digits", image_size=16, root=str(tmp_path)), local_rank=local_rank)


@pytest.mark.parametrize("name", ["train.images.npy", "test.labels.npy"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "pickle"])
def test_a_damaged_store_is_named(data_root: Path, tmp_path: Path, name: str, damage: str) -> None:
    shutil.copytree(data_root / "stores", tmp_path / "stores")
    path = tmp_path / "stores/digits-16" / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-5] ^= 4
    elif damage == "truncate":
        del content[len(content) // 2 :]
    path.unlink()
    if damage == "pickle":
        np.save(path, np.array([print], dtype=object), allow_pickle=True)
    elif damage != "remove":
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=name):
        open_data(DataConfig(source="digits", image_size=16, root=str(tmp_path)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, images of several modes and sizes."""
    root = tmp_path / "images"
    for split, count in (("train", 5), ("test", 3)):
        for label, name in enumerate(("ant", "bee")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                mode = ("RGB", "L", "RGBA", "P", "1")[number]
                picture = Image.new("RGB", (20 + number, 30), (0, 120 * label, 10 * number))
                picture.convert(mode).save(root / split / name / f"{number}.png")
    return root


def folder_config(folder: Path, tmp_path: Path) -> DataConfig:
    return DataConfig(source="imagefolder", folder=str(folder), image_size=16, root=str(tmp_path / "data"))


def test_an_image_folder_is_decoded_and_cached(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = folder_config(folder, tmp_path)
    data = open_data(config)
    assert (data.classes, len(data.train), len(data.test)) == (("ant", "bee"), 10, 6)
    assert data.train.labels.tolist() == [0] * 5 + [1] * 5
    images, _, _ = data.train[torch.tensor([0, 5])]
    assert images[0, 8, 8].tolist() == [0, 0, 0]
    assert images[1, 8, 8].tolist() == [0, 120, 0]
    monkeypatch.setattr(Image, "open", None)  # the second time nothing is decoded
    assert open_data(config).fingerprint == data.fingerprint


def test_a_changed_image_folder_gives_another_store(folder: Path, tmp_path: Path) -> None:
    before = open_data(folder_config(folder, tmp_path))
    Image.new("RGB", (16, 16), (9, 9, 9)).save(folder / "train/bee/new.png")
    after = open_data(folder_config(folder, tmp_path))
    assert (len(before.train), len(after.train)) == (10, 11)
    assert before.fingerprint != after.fingerprint


def test_a_bad_image_folder_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    config = folder_config(folder, tmp_path)
    (folder / "train/bee/broken.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"1 of 17 files cannot be read as images: train/bee/broken\.png \(.+\)"):
        open_data(config)
    content = (folder / "train/bee/0.png").read_bytes()
    (folder / "train/bee/broken.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=r"1 of 17 files cannot be read as images: train/bee/broken\.png \(.+\)"):
        open_data(config)
    (folder / "train/bee/broken.png").unlink()
    shutil.move(folder / "test/bee", folder / "test/wasp")
    with pytest.raises(ConfigError, match="no training images and cannot be learned: wasp; add"):
        open_data(config)
    shutil.rmtree(folder / "test")
    with pytest.raises(ConfigError, match="test: no such folder"):
        open_data(config)
    (folder / "test").mkdir()
    with pytest.raises(ConfigError, match="has no class folders"):
        open_data(config)


def test_cifar10_is_downloaded_once(small_cifar: Path, tmp_path: Path) -> None:
    config = DataConfig(root=str(tmp_path / "data"))
    data = open_data(config)
    assert (len(data.train), len(data.test), data.classes) == (20, 10, tuple("abcdefghij"))
    raw = pickle.loads((tmp_path / "cifar-10-batches-py/data_batch_2").read_bytes())["data"][3]
    assert np.array_equal(data.train.images[13], raw.reshape(3, 32, 32).transpose(1, 2, 0))
    small_cifar.unlink()
    assert open_data(config).fingerprint == data.fingerprint


def test_without_network_one_line_says_what_to_do(small_cifar: Path, tmp_path: Path) -> None:
    archive = small_cifar.read_bytes()
    small_cifar.unlink()
    with pytest.raises(ConfigError) as caught:
        open_data(DataConfig(root=str(tmp_path / "data")))
    message = str(caught.value)
    for part in ("cifar-10-python.tar.gz", str(tmp_path / "data/downloads"), "imagefolder", "digits"):
        assert part in message
    assert "\n" not in message
    (tmp_path / "data/downloads/cifar-10-python.tar.gz").write_bytes(archive)  # as the line says
    assert len(open_data(DataConfig(root=str(tmp_path / "data"))).train) == 20


def test_a_damaged_archive_is_not_opened(small_cifar: Path, tmp_path: Path) -> None:
    content = bytearray(small_cifar.read_bytes())
    content[len(content) // 2] ^= 1
    small_cifar.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be downloaded"):
        open_data(DataConfig(root=str(tmp_path / "data")))


def test_a_file_with_another_hash_is_named_and_left_alone(small_cifar: Path, tmp_path: Path) -> None:
    small_cifar.unlink()
    folder = tmp_path / "data/downloads"
    (folder / "cifar-10-batches-py").mkdir(parents=True)
    (folder / "cifar-10-python.tar.gz").write_bytes(b"half")
    (folder / "cifar-10-batches-py/test_batch").write_bytes(b"half")
    with pytest.raises(ConfigError) as caught:
        open_data(DataConfig(root=str(tmp_path / "data")))
    md5 = hashlib.md5(b"half").hexdigest()
    assert f"{folder} has cifar-10-python.tar.gz with MD5 {md5}, not " in str(caught.value)
    assert f"cifar-10-batches-py/test_batch with MD5 {md5}, not " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (folder / "cifar-10-python.tar.gz").read_bytes() == b"half"


def test_a_failed_download_of_several_files_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = torchvision.datasets.FashionMNIST
    monkeypatch.setattr(dataset, "mirrors", ["http://127.0.0.1:9/", "http://127.0.0.1:9/other/"])
    monkeypatch.setattr("senet.data.download.time.sleep", lambda _: None)
    raw = tmp_path / "downloads/FashionMNIST/raw"
    raw.mkdir(parents=True)
    for name, _ in dataset.resources:
        (raw / name.removesuffix(".gz")).write_bytes(b"unpacked by half")  # by a process that was killed
    (raw / dataset.resources[0][0]).write_bytes(b"half")
    with pytest.raises(ConfigError) as caught:
        open_data(DataConfig(source="fashion_mnist", root=str(tmp_path)))
    assert "\n" not in str(caught.value)
    assert f"has FashionMNIST/raw/{dataset.resources[0][0]} with MD5" in str(caught.value)
    assert {path.name for path in raw.parent.parent.iterdir()} == {"FashionMNIST"}


def _open_and_count(root: str) -> int:
    return len(open_data(DataConfig(source="digits", image_size=16, root=root)).train)


@pytest.mark.ranks
def test_four_cold_processes_build_one_store(tmp_path: Path) -> None:
    assert run_ranks(4, _open_and_count, str(tmp_path / "data"), tmp_path=tmp_path) == [1437] * 4
    assert [path.name for path in (tmp_path / "data/stores").iterdir() if path.is_dir()] == ["digits-16"]


def _growth(root: str, folder: str, rank_count: int) -> int:
    """Bytes of proportional set size that this rank gained by reading every image, all ranks at once."""
    import os

    from tests.harness import wait_until

    def meet(name: str) -> None:
        Path(folder, f"{name}-{os.environ['RANK']}").touch()
        wait_until(lambda: len(list(Path(folder).glob(f"{name}-*"))) == rank_count)

    process = psutil.Process()
    meet("imported")
    before = process.memory_full_info().pss
    data = open_data(DataConfig(source="digits", image_size=16, root=root), local_rank=int(os.environ["LOCAL_RANK"]))
    for indices in ShardSampler(len(data.train), batch_size=128, rank=0, world_size=1):
        data.train[indices]
    meet("read")
    after = process.memory_full_info().pss
    meet("measured")
    return after - before


@pytest.mark.ranks
def test_four_ranks_hold_the_pixels_once(data_root: Path, tmp_path: Path) -> None:
    store = tmp_path / "data/stores/digits-16"
    shutil.copytree(data_root / "stores/digits-16", store)
    write_store(store, {"train": 120_000, "test": 10})  # 92 MB
    (tmp_path / "meet").mkdir()
    size = (store / "train.images.npy").stat().st_size
    growth = run_ranks(4, _growth, str(tmp_path / "data"), str(tmp_path / "meet"), 4, tmp_path=tmp_path)
    assert 0.9 * size < sum(growth) < 1.2 * size, f"{sum(growth) / size:.3f} times the store"


def write_store(store: Path, counts: dict[str, int]) -> None:
    """Fill a store with that many noisy images per split."""
    generator = np.random.default_rng(1)
    for split, count in counts.items():
        np.save(store / f"{split}.images.npy", generator.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8))
        np.save(store / f"{split}.labels.npy", generator.integers(0, 10, count))
    meta = read_json(store / "meta.json")
    meta["sha256"] = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in store.glob("*.npy")}
    write_json(store / "meta.json", meta)


def test_what_is_held_out_is_evaluated_and_not_trained_on(data_root: Path) -> None:
    whole = open_data(DataConfig(source="digits", image_size=16, root=str(data_root)))
    part = open_data(DataConfig(source="digits", image_size=16, root=str(data_root), holdout=200))
    assert (len(part.train), len(part.test)) == (len(whole.train) - 200, 200)
    shares = torch.bincount(whole.train.labels) * 200 / len(whole.train)
    assert (torch.bincount(part.test.labels) - shares).abs().max() < 1
    seen = [split[torch.arange(len(split))][:2] for split in (part.train, part.test, whole.train)]
    content = [{(i.numpy().tobytes(), int(n)) for i, n in zip(*pair, strict=True)} for pair in seen]
    assert content[0] | content[1] == content[2]
    assert not content[0] & content[1]
    again = open_data(DataConfig(source="digits", image_size=16, root=str(data_root), holdout=200))
    assert torch.equal(again.test.labels, part.test.labels)


def test_which_images_are_held_out_is_part_of_the_fingerprint(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(source="digits", image_size=16, root=str(data_root))
    whole, part = open_data(config), open_data(replace(config, holdout=200))
    assert part.fingerprint == open_data(replace(config, holdout=200)).fingerprint != whole.fingerprint
    assert part.same_images(whole.fingerprint)
    split = sklearn.model_selection.train_test_split
    another = lambda *args, **options: split(*args, **(options | {"random_state": 1}))  # noqa: E731 # another version's
    monkeypatch.setattr(sklearn.model_selection, "train_test_split", another)
    other = open_data(replace(config, holdout=200))
    assert torch.equal(other.train.labels.bincount(), part.train.labels.bincount())
    assert other.fingerprint != part.fingerprint


@pytest.mark.parametrize("count", [3, 1437])
def test_a_part_that_cannot_be_held_out_is_refused(data_root: Path, count: int) -> None:
    with pytest.raises(ConfigError, match=f"data.holdout={count} of 1437 training images"):
        open_data(DataConfig(source="digits", image_size=16, root=str(data_root), holdout=count))


def test_pixels_of_more_than_8_bits_are_scaled_or_refused(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey * 256 + 255 - grey).save(tmp_path / "16 bits.png")
    assert (np.asarray(read_image(tmp_path / "16 bits.png"))[..., 1] == grey).all()
    for values in (grey.astype(np.int32) * 257, -grey.astype(np.int32), grey.astype(np.float32) / 255, grey * np.nan):
        Image.fromarray(values.astype(np.int32 if values.dtype == np.int32 else np.float32)).save(tmp_path / "a.tif")
        with pytest.raises(ValueError, match=r"numbers from .* not from 0 to 255; store 8 bits"):
            read_image(tmp_path / "a.tif")
    Image.fromarray(grey).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"16 bits, but none is above 255; store 8 bits"):
        read_image(tmp_path / "a.png")


def test_a_central_share_makes_a_store_of_its_own(folder: Path, tmp_path: Path) -> None:
    Image.effect_noise((60, 40), 90).save(folder / "train/ant/noise.png")
    whole = folder_config(folder, tmp_path)
    before = open_data(whole)
    part = open_data(replace(whole, center_crop=0.5))
    assert part.fingerprint != before.fingerprint
    assert len(list((tmp_path / "data/stores").glob("*/meta.json"))) == 2
    assert open_data(whole).fingerprint == before.fingerprint
