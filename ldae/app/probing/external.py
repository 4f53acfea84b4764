"""Probe encoders of other programs: ONNX files, and Python functions of images."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldae.app.probing.encoders import ProbedEncoder, image_encoder
from ldae.app.probing.feature_reading import Images
from ldae.app.probing.settings import FIXED_OF_OTHERS, ProbeSettings
from ldae.core.errors import ConfigError, DataError
from ldae.core.files import json_hash, sha256
from ldae.core.types import Batch
from ldae.export.onnx import check_onnx
from linear_probe.features import FeatureKey

OUTPUT = FeatureKey(pooling="output")


def onnx_encoder(images: Images, settings: ProbeSettings) -> ProbedEncoder:
    """Return a graph in ONNX as an encoder: its first input is (B, 3, H, W) in [0, 1], its first output (B, D).

    Raises:
        ConfigError: onnxruntime is not installed, or keys select layers or noise levels.
        DataError: the file cannot be read, or takes other images.
    """
    check_onnx("onnx", settings.onnx)
    _check_keys("onnx", settings)
    path = Path(settings.onnx or "").expanduser()
    session = _open_graph(path)
    name = session.get_inputs()[0].name

    def features(x: Tensor) -> Any:
        try:
            return torch.from_numpy(session.run(None, {name: x.cpu().numpy()})[0])
        except Exception as error:  # onnxruntime's errors have no common class
            reason = str(error).splitlines()[0]
            message = f"cannot encode images {tuple(x.shape)} ({reason}); it should take (B, 3, H, W) in [0, 1]"
            raise DataError(f"onnx={path} {message}") from None

    return _encoder("onnx", settings, path.stem, sha256(path), features, images)


def _open_graph(path: Path) -> Any:
    """Return the graph of a file in onnxruntime, on the CPU."""
    import onnxruntime

    if not path.is_file():
        raise DataError(f"onnx={path} does not exist; give the .onnx file of an encoder")
    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class
        raise DataError(f"onnx={path} is no graph that onnxruntime reads ({str(error).splitlines()[0]})") from None


def function_encoder(images: Images, settings: ProbeSettings) -> ProbedEncoder:
    """Return a Python function, MODULE:FUNCTION, as an encoder: images (B, 3, H, W) in [0, 1] to features (B, D).

    The module is imported from the current folder or from what is installed. Its file identifies the features, so that
    they are computed again after it has changed; modules that it imports do not count.

    Raises:
        ConfigError: there is no such function, it fails, or keys select layers or noise levels.
    """
    _check_keys("function", settings)
    function = load_function(settings.function or "")

    def features(x: Tensor) -> Any:
        try:
            return function(x)
        except Exception as error:  # any error of the user's code
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(frame.filename).name}, line {frame.lineno}"
            message = f"failed on images of shape {tuple(x.shape)}: {type(error).__name__}: {error} ({place})"
            raise ConfigError("function", settings.function, message) from None

    return _encoder("function", settings, settings.function or "", function_hash(function), features, images)


def load_function(name: str) -> Callable[[Tensor], Any]:
    """Import MODULE:FUNCTION, from the current folder or from what is installed.

    Raises:
        ConfigError: there is none.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ConfigError("function", name, "is no MODULE:FUNCTION, e.g. function=my_encoder:features")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # any error of the user's module
        message = f"cannot be imported ({type(error).__name__}: {error}); it is MODULE:FUNCTION, seen from this folder"
        raise ConfigError("function", name, message) from None
    if not callable(function):
        raise ConfigError("function", name, f"is not there: module {module} has no function {attribute}")
    return function


def function_hash(function: Callable[..., Any]) -> str:
    """Return the SHA-256 of the file that defines a function; of its name where there is no file."""
    try:
        return sha256(Path(inspect.getfile(inspect.unwrap(function))))
    except (TypeError, OSError):
        return json_hash([getattr(function, "__module__", ""), getattr(function, "__qualname__", repr(type(function)))])


def _check_keys(source: str, settings: ProbeSettings) -> None:
    for key, usual in FIXED_OF_OTHERS.items():
        if getattr(settings, key) != usual:
            message = f"selects among features, and {source}= has one output; leave {key} out"
            raise ConfigError(key, getattr(settings, key), message)


def _encoder(
    key: str, settings: ProbeSettings, name: str, hash_: str, features: Callable[[Tensor], Any], images: Images
) -> ProbedEncoder:
    """Return the encoder of a function from images to features, whose shapes are checked."""

    def encode(batch: Batch, feature_keys: Sequence[FeatureKey]) -> Mapping[FeatureKey, Tensor]:
        with torch.inference_mode():
            output = torch.as_tensor(features(batch.images))
        if output.ndim != 2 or len(output) != len(batch.images) or not output.is_floating_point():
            message = f"returned {output.dtype} of shape {tuple(output.shape)} for {len(batch.images)} images"
            raise ConfigError(key, getattr(settings, key), f"{message}; features are real numbers (B, D)")
        return {OUTPUT: output.float()}

    return image_encoder(name, f"{key}-{hash_[:16]}", [OUTPUT], encode, images, checkpoint=hash_)
