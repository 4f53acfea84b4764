"""Keys of a config: those of its files, and those that a constructor has beside them."""

from __future__ import annotations

import pytest

from ldae.core.errors import ConfigError


def test_parameters_that_a_file_leaves_to_the_constructor_are_keys_and_off_otherwise(config):
    assert "keep" not in config("pretrain", "denoiser=vit_64x4")["denoiser"]
    spec = config("pretrain", "denoiser=vit_64x4", "denoiser.keep=0.5", "denoiser.gelu=tanh")["denoiser"]
    assert (spec["keep"], spec["gelu"], spec["width"]) == (0.5, "tanh", 64)


@pytest.mark.parametrize("key", ["denoiser.kep", "denoiser.classes", "denoiser.schedule", "optim.layer_decay"])
def test_keys_of_no_parameter_and_parameters_that_other_parts_determine_are_refused(config, key):
    with pytest.raises(ConfigError, match=f"{key}=3 is not a key of this config"):
        config("pretrain", "denoiser=vit_64x4", f"{key}=3")


def test_the_hint_names_the_parameters_too(config):
    with pytest.raises(ConfigError, match=r"denoiser has: .*width.*keep"):
        config("pretrain", "denoiser=vit_64x4", "denoiser.fraction=3")


def test_what_an_experiment_sets_for_a_part_goes_with_it(config):
    assert config("pretrain", "experiment=segdiff/horses_cpu")["augment"]["low"] == 0.5
    replaced = config("pretrain", "experiment=segdiff/horses_cpu", "augment=centre", "train.epochs=2")
    assert "low" not in replaced["augment"]  # a setting of random_resized_crop
    assert replaced["train"]["batch"] == 4
    kept = config("pretrain", "experiment=cold_mask/cifar10_cpu", "denoiser=unet_64")["denoiser"]
    assert kept["dropout"] == 0.1  # the experiment's, and a setting of this network too
    with pytest.raises(ConfigError, match=r"augment.low=0.3 is not a key of this config"):
        config("pretrain", "experiment=segdiff/horses_cpu", "augment=centre", "augment.low=0.3")
