"""From stored uint8 batches to network input, on the device; for training with random changes.

The random numbers are a pure function of (seed, epoch, sample index), so the same global batch has the same pixels
for any number of ranks and after any number of restarts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from senet.config.options import AugmentConfig
from senet.data.changes.color import ColorJitter
from senet.data.changes.erasing import Erasing, rectangles
from senet.data.changes.mixing import Mixing
from senet.data.changes.trivial import TrivialAugment
from senet.data.draws import mix
from senet.data.keys import draw_below, random_bits
from senet.errors import ConfigError


class Preprocess:
    """uint8 NHWC in, float32 NCHW out (channels_last strides unless ``channels_last=False``), normalised.

    Args:
        mean, std: per channel, of pixels scaled to 0..1.
        seed: of the random numbers of ``train``.
        extra: what ``augment.extra`` names.
    """

    def __init__(
        self,
        config: AugmentConfig,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        device: torch.device,
        channels_last: bool = True,
        extra: Callable[..., Tensor] | None = None,
    ) -> None:
        self._config = config
        self._scale = 1 / (255 * torch.tensor(std, device=device))
        self._shift = -torch.tensor(mean, device=device) / torch.tensor(std, device=device)
        self._seed = seed
        self._channels_last = channels_last
        self._extra = extra
        self._trivial = TrivialAugment(device) if config.trivial else None
        self._jitter = ColorJitter(config.color_jitter, device) if any(config.color_jitter) else None
        self._erasing = Erasing(config.erase, device) if config.erase else None
        self._mixing = Mixing(config.mixup, config.cutmix, device) if config.mixup or config.cutmix else None
        self._does_nothing = not (
            any((config.crop_padding, config.flip, config.cutout, extra))
            or any((self._trivial, self._jitter, self._erasing, self._mixing))
        )

    def test(self, images_NHWC: Tensor) -> Tensor:
        """Normalise only."""
        width = images_NHWC.shape[2]  # whole rows: on a CPU an inner loop over three channels takes longer
        shift, scale = self._shift.repeat(width, 1), self._scale.repeat(width, 1)
        pixels_NHWC = images_NHWC.to(torch.float32, copy=True)
        torch.addcmul(shift, pixels_NHWC, scale, out=pixels_NHWC)  # in place: less memory traffic
        images_NCHW = pixels_NHWC.permute(0, 3, 1, 2)
        return images_NCHW if self._channels_last else images_NCHW.contiguous()

    def train(self, images_NHWC: Tensor, indices_N: Tensor, epoch: int, keys_N: Tensor | None = None) -> Tensor:
        """Crop and flip, trivial, color_jitter, normalise, cutout, erase, mixup or cutmix, ``augment.extra``, make
        smaller: what is switched on, in this order.

        Args:
            images_NHWC: square; with mixup or cutmix an even number, see ``senet.data.changes.mixing``.
            indices_N: indices of the images in the training split, int64.
            keys_N: what ``keys`` returned for them, where it was called already.
        """
        config, size = self._config, images_NHWC.shape[1]
        smaller = epoch < config.small_epochs and size != config.small_size  # some stores decode to that size
        if self._does_nothing and not smaller:
            return self.test(images_NHWC)
        keys_N = self.keys(indices_N, epoch) if keys_N is None else keys_N
        if config.crop_padding or config.flip:
            padding = config.crop_padding
            top_N = draw_below(2 * padding + 1, keys_N, 0)
            left_N = draw_below(2 * padding + 1, keys_N, 1)
            flip_N = self._flips(indices_N, epoch, keys_N)
            images_NHWC = _crop_and_flip(images_NHWC, top_N, left_N, flip_N, padding)
        images_NCHW = self.test(self._other_values(images_NHWC, keys_N))
        if config.cutout:
            y_N, x_N = draw_below(size, keys_N, 3), draw_below(size, keys_N, 4)
            images_NCHW.masked_fill_(_square(y_N, x_N, config.cutout, size), 0.0)  # 0 is the mean
        if self._erasing is not None:
            images_NCHW = self._erasing(images_NCHW, keys_N)
        if self._mixing is not None:
            images_NCHW = self._mixing(images_NCHW, keys_N)
        if self._extra is not None:
            images_NCHW = self._changed(images_NCHW, keys_N)
        if smaller:
            images_NCHW = F.interpolate(images_NCHW, config.small_size, mode="bilinear", antialias=True)
        return images_NCHW

    def shares(self, keys_N: Tensor, size: int) -> Tensor | None:
        """The weights of the images' own labels, where ``train`` was given images of this height and width; None
        without mixup and cutmix. See ``Mixing.shares``."""
        return None if self._mixing is None else self._mixing.shares(keys_N, size)

    def keys(self, indices_N: Tensor, epoch: int) -> Tensor:
        """64 random bits for each image in this epoch, int64."""
        return random_bits(mix(self._seed, epoch), indices_N)

    def _other_values(self, images_NHWC: Tensor, keys_N: Tensor) -> Tensor:
        """By trivial and color_jitter; uint8 as they are."""
        if self._trivial is None and self._jitter is None:
            return images_NHWC
        images_NCHW = images_NHWC.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
        for change in (self._trivial, self._jitter):
            images_NCHW = images_NCHW if change is None else change(images_NCHW, keys_N)
        return images_NCHW.permute(0, 2, 3, 1).contiguous()

    def _changed(self, images_NCHW: Tensor, keys_N: Tensor) -> Tensor:
        """By ``augment.extra``; in the same memory layout."""
        assert self._extra is not None
        changed = self._extra(images=images_NCHW, keys=keys_N)
        found, expected = (
            (tuple(each.shape), each.dtype) if isinstance(each, Tensor) else type(each)
            for each in (changed, images_NCHW)
        )
        if found != expected:
            raise ConfigError(
                f"augment.extra={self._config.extra} returned {found} for images {expected}; have it return images of "
                f"the same shape and dtype"
            )
        return changed.contiguous(memory_format=torch.channels_last if self._channels_last else torch.contiguous_format)

    def _flips(self, indices_N: Tensor, epoch: int, keys_N: Tensor) -> Tensor:
        if self._config.alternate_flip:
            return self._config.flip * ((draw_below(2, random_bits(mix(self._seed, 0), indices_N), 2) + epoch) & 1)
        return self._config.flip * draw_below(2, keys_N, 2)


def _crop_and_flip(images_NHWC: Tensor, top_N: Tensor, left_N: Tensor, flip_N: Tensor, padding: int) -> Tensor:
    count, size, _, _ = images_NHWC.shape
    if not padding and images_NHWC.is_cpu:  # in a fifth of the time of torch.where
        pairs = zip(images_NHWC, flip_N.tolist(), strict=True)
        return torch.stack([image_HWC.flip(1) if flip else image_HWC for image_HWC, flip in pairs])
    if not padding:  # in a third of the time of what follows
        return torch.where(flip_N[:, None, None, None] == 1, images_NHWC.flip(2), images_NHWC)
    padded = F.pad(images_NHWC, (0, 0, padding, padding, padding, padding))
    pixels = torch.arange(size, device=images_NHWC.device)
    columns = torch.where(flip_N[:, None] == 1, size - 1 - pixels, pixels) + left_N[:, None]
    rows = pixels + top_N[:, None]
    numbers = torch.arange(count, device=images_NHWC.device)
    return padded[numbers[:, None, None], rows[:, :, None], columns[:, None, :]]


def _square(y_N: Tensor, x_N: Tensor, side: int, size: int) -> Tensor:
    """Mask [N, 1, size, size] of squares around centres, cut at the border (DeVries & Taylor, 2017, sec. 3.2)."""
    sides_N = torch.full_like(y_N, side)
    return rectangles(y_N - side // 2, x_N - side // 2, sides_N, sides_N, size)
