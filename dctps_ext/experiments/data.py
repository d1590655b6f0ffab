"""Data sets of the experiments, in memory as uint8: scikit-learn's digits and CIFAR-10 from zipped images."""

import functools
import hashlib
import io
import logging
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from .record import write_atomically

logger = logging.getLogger(__name__)

NAMES = ("digits", "cifar10")
SIZE = 32  # height and width of every image, in pixels
PAD = 4  # pixels of zeros on each side that the random crop moves over


@dataclass(frozen=True)
class Dataset:
    """A classification data set held in memory.

    Attributes:
        title: what a table calls it ("CIFAR-10 (JPEG)").
        train_images, test_images: uint8 `[N, 3, 32, 32]`.
        train_labels, test_labels: int64 `[N]`, in `[0, num_classes)`.
        num_classes: the number of classes.
        augment: whether training crops and flips its images.
    """

    title: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    num_classes: int
    augment: bool

    @functools.cached_property
    def statistics(self):
        """`channel_statistics` of the training images, each float32 `[C, 1, 1]`; computed once."""
        return tuple(s.view(-1, 1, 1) for s in channel_statistics(self.train_images))

    def normalise(self, images):
        """uint8 images -> float32, so that each channel of the training images has mean 0 and deviation 1."""
        mean, deviation = self.statistics
        return (images.float() - mean) / deviation


def load(name, directory=None):
    """Load a data set by name.

    Args:
        name: "digits" or "cifar10".
        directory: where `cifar10-train.zip` and `cifar10-test.zip` are; unused by digits.

    Raises:
        ValueError: unknown name, or no directory for cifar10.
        FileNotFoundError: a zip is not where it should be.
    """
    if name == "digits":
        return _digits()
    if name == "cifar10":
        return _cifar10(directory)
    raise ValueError(f"dataset: expected one of {', '.join(NAMES)}, got {name!r}")


def _digits():
    # load_digits lists its writers one after the other, so every fifth image of a class is a split that is
    # stratified by class and by writer, and that no library's random stream can change.
    from sklearn.datasets import load_digits

    source = load_digits()
    images = torch.from_numpy(source.images).float()[:, None] * (255 / 16)
    images = F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    images = images.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(source.target).long()
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        test[torch.nonzero(labels == label)[::5]] = True
    return Dataset("digits", images[~test], labels[~test], images[test], labels[test], 10, augment=False)


def _cifar10(directory):
    if directory is None:
        raise ValueError(
            "data: cifar10 needs a directory with cifar10-train.zip and cifar10-test.zip (--data DIR), "
            "got none"
        )
    train, test = (_cifar10_split(Path(directory), part) for part in ("train", "test"))
    return Dataset("CIFAR-10 (JPEG)", *train, *test, 10, augment=True)


def _cifar10_split(directory, part):
    path = directory / f"cifar10-{part}.zip"
    if not path.is_file():
        raise FileNotFoundError(
            f"data: expected {path}, a zip of an image folder (airplane/0000.jpg, ...; ten classes), "
            f"found {'no such file' if directory.is_dir() else f'no directory {directory}'}"
        )
    cached = _cache_path(path)
    if not cached.is_file():
        images, labels = decode_image_zip(path)
        write_atomically(cached, lambda file: np.savez(file, images=images, labels=labels))
        logger.info("decoded %s into %s", path, cached)
    with np.load(cached) as arrays:
        return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])


def decode_image_zip(path):
    """Decode a zip laid out as `class/name.jpg` into uint8 `[N, 3, 32, 32]` and int64 labels `[N]`.

    Sorted class names give the labels, and sorted member names the order.

    Raises:
        ValueError: an image that is not 32x32, or a zip without images.
    """
    from PIL import Image

    with zipfile.ZipFile(path) as archive:
        names = sorted(
            name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png"))
        )
        if not names:
            raise ValueError(f"data: expected images named class/name.jpg in {path}, found none")
        classes = sorted({Path(name).parent.name for name in names})
        number = {label: i for i, label in enumerate(classes)}
        images = np.empty((len(names), 3, SIZE, SIZE), dtype=np.uint8)
        labels = np.empty(len(names), dtype=np.int64)
        for i, name in enumerate(tqdm(names, desc=f"decoding {path.name}", unit="image", leave=False)):
            with Image.open(io.BytesIO(archive.read(name))) as image:
                pixels = np.asarray(image.convert("RGB"))
            if pixels.shape != (SIZE, SIZE, 3):
                raise ValueError(
                    f"data: expected {SIZE}x{SIZE} images in {path}, "
                    f"{name} is {pixels.shape[1]}x{pixels.shape[0]}"
                )
            images[i] = pixels.transpose(2, 0, 1)
            labels[i] = number[Path(name).parent.name]
    return images, labels


def _cache_path(path):
    # The key holds size and modification time, so another zip under the same name is decoded afresh.
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dctps_ext"
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    return root / f"{path.stem}-{key}.npz"


def channel_statistics(images):
    """Mean and standard deviation of each channel of uint8 `[N, C, H, W]`: float32 `[C]`, in pixel units.

    Exact: taken from the 256-bin histograms of the channels.
    """
    levels = torch.arange(256, dtype=torch.float64)
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        mean = (counts @ levels) / counts.sum()
        means.append(mean)
        deviations.append(((counts @ (levels - mean) ** 2) / counts.sum()).sqrt())
    return torch.stack(means).float(), torch.stack(deviations).float()


def crop_and_flip(images, generator):
    """Random crop after zero padding by 4 pixels, and a random horizontal flip, of each image by itself.

    Args:
        images: uint8 `[B, C, H, W]`.
        generator: CPU `torch.Generator` that the offsets and flips come from.

    Returns:
        uint8 `[B, C, H, W]`.
    """
    batch, channels, height, width = images.shape
    top, left = torch.randint(0, 2 * PAD + 1, (2, batch, 1), generator=generator)
    flip = torch.randint(0, 2, (batch, 1), generator=generator, dtype=torch.bool)
    rows = top + torch.arange(height)
    columns = torch.arange(width)
    columns = left + torch.where(flip, columns.flip(0), columns)
    padded = F.pad(images, (PAD, PAD, PAD, PAD))
    return padded[
        torch.arange(batch)[:, None, None, None],
        torch.arange(channels)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
