"""Random images with random labels, for timing where no data is at hand. Accuracy on them means nothing.

Ours. The content is fixed, whatever a run's seed: two runs see the same pixels.
"""

from __future__ import annotations

import numpy as np
import torch

from bench.data.base import AugmentPolicy, DataSet, content_fingerprint
from bench.seeding import numpy_generator

NAME = "synthetic"
NUM_CLASSES = 10
IN_CHANNELS, IMAGE_SIZE = 3, 32
TRAIN_IMAGES, TEST_IMAGES = 2048, 512
CONTENT_SEED = 0
# Of uniform pixels: a half, and the root of a twelfth.
MEAN, STD = (0.5,) * IN_CHANNELS, (0.2887,) * IN_CHANNELS
AUGMENTATION = AugmentPolicy(padding=4, flip=True)  # the work that CIFAR's costs
SOURCE = "random pixels and labels (synthetic: accuracy means nothing)"


def make_synthetic(image_size: int | None) -> DataSet:
    """Uniform random pixels, uniform random labels.

    Args:
        image_size: height and width in pixels; none: 32.

    Returns:
        A data set with (2048, 3, H, H) training and (512, 3, H, H) test images, uint8 from 0 to 255.
    """
    size = IMAGE_SIZE if image_size is None else image_size
    generator = numpy_generator(CONTENT_SEED, "synthetic_data")
    tensors = []
    for count in (TRAIN_IMAGES, TEST_IMAGES):
        tensors.append(torch.from_numpy(generator.integers(0, 256, (count, IN_CHANNELS, size, size), dtype=np.uint8)))
        tensors.append(torch.from_numpy(generator.integers(0, NUM_CLASSES, count, dtype=np.int64)))
    return DataSet(
        name=NAME,
        train_images=tensors[0],
        train_labels=tensors[1],
        test_images=tensors[2],
        test_labels=tensors[3],
        num_classes=NUM_CLASSES,
        full_scale=255.0,
        mean=MEAN,
        std=STD,
        augmentation=AUGMENTATION,
        synthetic=True,
        source=SOURCE,
        fingerprint=content_fingerprint(NAME, *tensors),
    )
