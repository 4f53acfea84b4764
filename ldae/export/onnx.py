"""Export of encoders to ONNX: one graph from images in [0, 1] to features."""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.export.encoder import Encoder
from ldae.export.program import program_of

NEEDED = ("onnx", "onnxscript", "onnxruntime")
ONE_FILE = 1 << 31  # bytes, the limit of protobuf; larger weights go to a second file next to the graph
INPUT, OUTPUT = "images", "features"


def check_onnx(key: str = "format", value: str | None = "onnx") -> None:
    """Check that the packages of the export are installed.

    Args:
        key, value: what needs them.

    Raises:
        ConfigError: one is missing.
    """
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            raise ConfigError(key, value, f"needs {name}: pip install {' '.join(NEEDED)}") from None


def write_onnx(path: Path, encoder: Encoder, shape: tuple[int, int, int]) -> None:
    """Write the graph of Encoder.forward, with a dynamic batch size.

    Args:
        path: of the file.
        encoder: on a CPU, in fp32.
        shape: (3, H, W) of its images.

    Raises:
        ConfigError: its input is noised; a graph has no random numbers.
    """
    check_onnx()
    large = 4 * sum(p.numel() for p in encoder.parameters()) >= ONE_FILE
    with _quietly():
        program = program_of(encoder, shape)
        program = program.run_decompositions({torch.ops.aten.scaled_dot_product_attention.default: attention})
        torch.onnx.export(
            program, (), str(path), input_names=[INPUT], output_names=[OUTPUT], external_data=large, verbose=False
        )


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute attention by matrix products; torch's ONNX translation of the fused one needs heads, (B, h, N, c)."""
    assert attn_mask is None
    assert not dropout_p
    assert not is_causal
    assert not enable_gqa
    scaled = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.softmax(scaled @ k.transpose(-2, -1), dim=-1) @ v


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence the exporter's log while the block lasts; the caller compares the outputs."""
    log = logging.getLogger("torch.onnx")
    before, log.level = log.level, logging.ERROR
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.level = before


class OnnxFeatures:
    """ONNX encoder in onnxruntime on the CPU: images (B, 3, H, W) in [0, 1] -> features (B, D)."""

    def __init__(self, path: Path):
        check_onnx()
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> Tensor:
        (features,) = self.session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(features)
