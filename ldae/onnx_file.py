"""An encoder as an ONNX file: images in [0, 1] to features, everything between them in the graph."""

from __future__ import annotations

import importlib
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ldae.errors import ConfigError
from ldae.export import Encoder

NEEDED = ("onnx", "onnxscript", "onnxruntime")
ONE_FILE = 1 << 31  # bytes that protobuf holds; the weights of larger networks lie beside the graph
INPUT, OUTPUT = "images", "features"


def check_onnx() -> None:
    """Whether the packages are there.

    Raises:
        ConfigError: one is not.
    """
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            raise ConfigError("format", "onnx", f"needs {name}: pip install {' '.join(NEEDED)}") from None


def write_onnx(path: Path, encoder: Encoder, shape: tuple[int, int, int]) -> None:
    """Writes the graph of Encoder.forward, with a batch of any size.

    Args:
        encoder: on a CPU, in fp32.
        shape: (3, H, W) of its images.

    Raises:
        ConfigError: its input is noised: a graph draws no noise.
    """
    check_onnx()
    if encoder.noised:
        raise ConfigError("noised", True, "cannot be exported: a graph draws no noise")
    example = torch.rand(2, *shape)
    large = 4 * sum(p.numel() for p in encoder.parameters()) >= ONE_FILE
    quiet = logging.getLogger("torch.onnx")
    before, quiet.level = quiet.level, logging.ERROR
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                encoder,
                (example,),
                str(path),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=large,
                verbose=False,
            )
    finally:
        quiet.level = before


class OnnxFeatures:
    """Such a file in onnxruntime, on the CPU: images (B, 3, H, W) in [0, 1] -> features (B, D)."""

    def __init__(self, path: Path):
        check_onnx()
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> Tensor:
        (found,) = self.session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(found)
