"""Perceptual distances: laws, LPIPS against torchmetrics, files that are absent."""

from __future__ import annotations

import pytest
import torch

from ldae.config.build import Parts
from ldae.core.errors import CheckpointError, ConfigError
from ldae.nn.perceptual import LPIPS, Classifier


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """VGG16 with random weights, as torchvision would store it."""
    from torchvision.models import vgg16

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save({k: v.half() if "classifier" in k else v for k, v in vgg16(weights=None).state_dict().items()}, path)
    return path


def networks(vgg_file):
    torch.manual_seed(0)
    return [Classifier(10, [8, 16]).eval(), LPIPS(str(vgg_file))]


def test_equal_images_are_at_distance_zero_and_order_does_not_matter(vgg_file):
    x, y = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    for network in networks(vgg_file):
        assert network(x, x).abs().max().item() == 0
        torch.testing.assert_close(network(x, y), network(y, x))
        assert (network(x, y) > 0).all()


def test_lpips_equals_torchmetrics_with_the_same_weights(vgg_file):
    from torchmetrics.functional.image.lpips import _LPIPS

    ours = LPIPS(str(vgg_file))
    theirs = _LPIPS(pretrained=True, net="vgg", pnet_rand=True, pnet_tune=True).eval()
    slices = [getattr(theirs.net, f"slice{i}") for i in range(1, 6)]
    own = [layer for stage in slices for layer in stage]
    for mine, other in zip(ours.features, own, strict=False):
        other.load_state_dict(mine.state_dict())
    x, y = torch.rand(2, 4, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(ours(x, y), theirs(x, y).flatten(), rtol=1e-4, atol=1e-6)


def test_absent_weights_are_one_sentence_that_names_both_ways(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"vgg.*hub/checkpoints.*this key.*tokenizer=vqgan"):
        LPIPS()
    with pytest.raises(ConfigError, match="nowhere"):
        LPIPS("nowhere")


def test_other_files_are_refused(tmp_path, vgg_file):
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match="vgg16"):
        LPIPS(str(tmp_path / "other.pth"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        LPIPS(str(vgg_file), str(tmp_path / "text.pth"))


def test_with_factor_zero_no_network_is_made(config, monkeypatch, tmp_path):
    """So that neither a file nor a cache is needed, and none changes the result."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    argv = ["tokenizer=imagenet_kl_f8", "data=imagefolder", "data.size=64", "tokenizer.channels=8"]
    with pytest.raises(ConfigError, match=r"tokenizer\.fit\.perceptual\.vgg"):
        _ = Parts(config("train_tokenizer", *argv)).objective
    objective = Parts(config("train_tokenizer", *argv, "tokenizer.fit.perceptual.factor=0")).objective
    assert objective.perceptual is None
    assert not any("feature" in name or "stage" in name for name in objective.state_dict())


def test_a_classifier_tells_features_and_probabilities_and_is_what_it_was():
    torch.manual_seed(0)
    network, x = Classifier(10, [8, 16]).eval(), torch.rand(4, 3, 16, 16) * 2 - 1
    features, probabilities = network.features_and_probabilities(x)
    assert features.shape == (4, 16)
    assert torch.equal(features, network.features(x))
    assert torch.equal(network.head(features), network.logits(x))
    torch.testing.assert_close(probabilities, network.logits(x).softmax(1))
    assert set(dict(network.named_children())) == {"blocks", "head"}
