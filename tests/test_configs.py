"""Every config composes, every part is built, neighbours on the path differ in the named keys alone."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import itertools
import re
from pathlib import Path

import pytest
import torch
import yaml

from ldae.app.compose import CONFIGS, compose, resolved
from ldae.app.listing import summary
from ldae.config.build import DIVIDING, GROUPS, HINTS, READING, Parts
from ldae.config.choices import CLASSES, choices_of, class_of, settings_of
from ldae.config.schema import construct
from ldae.core.errors import ConfigError, UsageError
from ldae.diffusion.samplers import StepRule
from ldae.diffusion.schedules import NoiseSchedule
from ldae.diffusion.spacing import Spacing
from ldae.engine.run_folder import flatten as flat
from ldae.engine.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted(
    p.relative_to(CONFIGS / "experiment").with_suffix("").as_posix() for p in CONFIGS.glob("experiment/*/*.yaml")
)
PARTS = [f"{group}/{choice}" for group in sorted(GROUPS) for choice in choices_of(group)]
# what a trained network is used with: composed by sample.yaml
USED = {"sampler", "spacing", "init", "sampling_schedule"}
HUGE = {"vit_b", "vit_l12", "vit_l", "mae_b", "mae_l"}

# what each step of the path changes; the config diff is the paper's argument
PATH = {
    "01_no_labels": {"task"},
    "02_no_perceptual": {"tokenizer"},
    "03_no_adversarial": {"tokenizer"},
    "04_linear_gamma2": {"schedule"},
    "05_patch_vae": {"tokenizer"},
    "06_patch_ae": {"tokenizer"},
    "07_patch_pca": {"tokenizer"},
    "08_clean_latent": {"target", "weight"},
    "09_no_input_scaling": {"schedule", "weight"},
    "10_image_input": {"input"},
    "11_image_output": {"output"},
    "12_ldae": {"output", "loss"},
}


@functools.cache
def composed(root, argv):
    return resolved(compose(root, list(argv)))


@pytest.fixture
def config():
    """Composes the config of a tool as the fixture of all tests does; of equal arguments once."""
    return lambda root, *argv: copy.deepcopy(composed(root, argv))


def build(config):
    """All parts of a pretraining config, large networks without their memory."""
    widest = config["denoiser"].get("width") or config["denoiser"]["channels"] * max(config["denoiser"]["multipliers"])
    parts, large = Parts(config), widest >= 512
    parts.build("augment", "optim")
    with torch.device("meta" if large else "cpu"):
        return parts.denoiser if large else parts.objective


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_can_be_built(config, name):
    composed = config("pretrain", f"experiment={name}")
    build(composed)
    construct(TrainSettings, composed["train"], {})
    assert composed["experiment"] == name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_opens_with_source_command_and_measurement(name):
    head = [line for line in (CONFIGS / "experiment" / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    text = "\n".join(head)
    assert head[0] == "# @package _global_"
    assert f"experiment={name}" in text
    assert "# Measured:" in text


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_figures_of_a_header_stand_in_the_file_that_it_names(name):
    lines = (CONFIGS / "experiment" / f"{name}.yaml").read_text().partition("# Measured:")[2].splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines[1:])
    text = " ".join([lines[0], *(line.lstrip("# ") for line in comment)])
    figures = re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", text)
    named = [(ROOT / file).read_text() for file in re.findall(r"(?:docs|results)/[\w/]+\.md", text)]
    assert all(any(re.search(rf"(?<![\d.]){figure}(?!\d)", file) for file in named) for figure in figures), figures
    assert named or "not yet" in text or "not measured" in text or "not known" in text


@pytest.mark.parametrize("name", PARTS)
def test_every_part_is_what_its_group_promises(config, name):
    group, choice = name.split("/")
    roots = {"outliers": "probe", **dict.fromkeys(USED, "sample")}
    root = "train_tokenizer" if choice == "reconstruct" else roots.get(group, "pretrain")
    spec = config(root, f"{group}={choice}", *(["data=cifar10"] if group == "blend_dataset" else []))[group]
    part = getattr(importlib.import_module(spec["part"].rpartition(".")[0]), spec["part"].rpartition(".")[2])
    known = {"part", *inspect.signature(part).parameters, *HINTS, *READING, *DIVIDING}
    assert set(spec) - known <= {"weights", "fit"}


@pytest.mark.parametrize(
    "name", [p for p in PARTS if p.split("/")[0] in {"sampler", "spacing", "sampling_schedule", "schedule"}]
)
def test_every_sampler_spacing_and_schedule_can_be_built(config, name):
    group, choice = name.split("/")
    part = getattr(Parts(config("sample" if group in USED else "pretrain", f"{group}={choice}")), group)
    assert isinstance(part, {"sampler": StepRule, "spacing": Spacing}.get(group, NoiseSchedule))


@pytest.mark.parametrize("name", [p for p in PARTS if p.split("/")[1] not in HUGE])
def test_every_choice_says_what_it_is(name):
    group, choice = name.split("/")
    assert len(summary(choices_of(group)[choice])) >= 8


def test_a_class_needs_no_file_where_its_constructor_has_all_settings():
    for group, classes in CLASSES.items():
        for choice, path in classes.items():
            assert class_of(path).__name__ == path.rpartition(".")[2]
            assert not (CONFIGS / group / f"{choice}.yaml").exists()
    for group in CLASSES:
        for path in (CONFIGS / group).glob("[!_]*.yaml"):
            spec = yaml.safe_load(path.read_text())
            assert "${" in path.read_text() or "defaults" in spec or settings_of(spec["part"]) != spec


def test_neighbours_on_the_path_differ_in_the_named_keys_alone(config):
    names = sorted(n.split("/")[1] for n in EXPERIMENTS if n.startswith("deconstruct/"))
    assert names[1:] == list(PATH)
    before = config("pretrain", f"experiment=deconstruct/{names[0]}")
    for name in names[1:]:
        after = config("pretrain", f"experiment=deconstruct/{name}")
        a, b = dict(flat(before)), dict(flat(after))
        differing = {key.split(".")[0] for key in a.keys() | b.keys() if a.get(key) != b.get(key)} - {"experiment"}
        assert differing == PATH[name]
        before = after


def test_the_tokenizers_of_the_first_steps_differ_in_one_loss_alone(config):
    """Same network, same length, same seed: only the perceptual, then only the adversarial term goes."""
    kinds = [
        dict(flat(config("pretrain", f"tokenizer={name}", "data=cifar10"))) for name in ("vqgan", "kl_gan", "conv_vae")
    ]
    for before, after, part in ((kinds[0], kinds[1], "perceptual"), (kinds[1], kinds[2], "discriminator")):
        differing = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert differing
        assert all(key.startswith(f"tokenizer.fit.{part}") for key in differing)


def test_paper_scale_configs_hold_the_papers_hyperparameters(config):
    for name, width, depth in (("imagenet_vit_b", 768, 12), ("imagenet_12l", 1024, 12), ("imagenet_vit_l", 1024, 24)):
        cfg = config("pretrain", f"experiment=ldae/{name}")
        assert (cfg["denoiser"]["width"], cfg["denoiser"]["encoder_depth"]) == (width, depth)
        assert cfg["denoiser"]["decoder_depth"] == depth
        assert (cfg["train"]["batch"], cfg["train"]["epochs"]) == (2048, 400)
        assert (cfg["optim"]["blr"], cfg["optim"]["weight_decay"]) == (1e-4, 0)
        assert cfg["optim"]["warmup"] * cfg["train"]["epochs"] == 100
        assert (cfg["data"]["size"], cfg["tokenizer"]["patch"]) == (256, 16)
        text = (CONFIGS / "experiment" / "ldae" / f"{name}.yaml").read_text()
        assert "not measured" in text
        assert "Own choices, which the paper does not print: betas" in text
        assert "at t = 10" in text
        cut = "ldae.data.transforms." + ("Centre" if name == "imagenet_12l" else "RandomResizedCrop")
        assert cfg["augment"]["part"] == cut  # the accuracies of ViT-B and ViT-L are of random crops


@pytest.mark.parametrize(
    ("name", "warmup", "usual"),
    [("ldae/imagenet_vit_b", 100, 400), ("ldae/imagenet_12l", 100, 400), ("mae/imagenet_vit_l", 40, 800)],
)
def test_a_longer_training_warms_up_for_as_many_epochs(config, name, warmup, usual):
    def share(*argv):
        return config("pretrain", f"experiment={name}", *argv)["optim"]["warmup"]

    assert share() * usual == warmup
    assert share("train.epochs=1600") * 1600 == warmup
    assert share("train.epochs=10") == share("train.steps=1000") == warmup / usual
    assert share("train.epochs=1600", "optim.warmup=0.3") == 0.3


@pytest.mark.parametrize(("name", "decay"), [("vit_b", 0.85), ("vit_l", 0.65)])
def test_paper_scale_fine_tuning_holds_the_papers_hyperparameters(config, name, decay):
    cfg = config("finetune", f"recipe={name}")
    train, optim, augment = cfg["train"], cfg["optim"], cfg["augment"]
    assert (train["batch"], train["epochs"], train["ema"], train["clip"]) == (1024, 100, 0.9999, 0)
    construct(TrainSettings, train, {})
    assert Parts(cfg).optim.peak(train["batch"]) == pytest.approx(4e-3)
    assert (optim["layer_decay"], optim["weight_decay"]) == (decay, 0.05)
    assert (cfg["drop_path"], cfg["mixup"], cfg["cutmix"]) == (0.1, 0.8, 1.0)
    assert (augment["magnitude"], augment["deviation"]) == (9, 0.5)
    assert config("finetune")["optim"]["layer_decay"] == 0.75


def test_the_published_tokenizers_differ_in_one_loss_alone(config):
    """Steps 01 to 03 at the paper's size: the perceptual, then the adversarial loss goes, and nothing else."""
    argv = ("imagenet_kl_f8", "tokenizer.fit.perceptual=null"), ("imagenet_conv_vae_f8",)
    with_gan, without = (
        dict(flat(config("pretrain", f"tokenizer={name}", "data=cifar10", *more))) for name, *more in argv
    )
    differing = {key for key in with_gan.keys() | without.keys() if with_gan.get(key) != without.get(key)}
    assert differing
    assert all(key.startswith("tokenizer.fit.discriminator") for key in differing)


def test_dit_configs_hold_the_papers_hyperparameters(config):
    for name, width, depth in (("imagenet_b2", 768, 12), ("imagenet_xl2", 1152, 28)):
        cfg = config("pretrain", f"experiment=dit/{name}")
        denoiser, optim, train = cfg["denoiser"], cfg["optim"], cfg["train"]
        assert (denoiser["width"], denoiser["patch"]) == (width, 2)
        assert denoiser["encoder_depth"] + denoiser["decoder_depth"] == depth
        assert (train["batch"], train["steps"], train["epochs"], train["ema"]) == (256, 400_000, None, 0.9999)
        system = Parts(cfg)
        rates = {system.optim.rate(step, 400_000, 256) for step in (0, 200_000, 399_999)}
        assert rates == {1e-4}
        assert (optim["weight_decay"], optim["betas"]) == (0, [0.9, 0.999])
        with torch.device("meta"):
            assert system.tokenizer.shape == (4, 32, 32)
        assert "not measured" in (CONFIGS / "experiment" / "dit" / f"{name}.yaml").read_text()


UNUSED = {
    "tokenizer",
    "corruption",
    "schedule",
    "input",
    "output",
    "target",
    "weight",
    "loss",
    "blend_dataset",
    "timesteps",
}
DENOISING = {
    "tokenizer",
    "schedule",
    "input",
    "output",
    "target",
    "weight",
    "loss",
}


@pytest.mark.parametrize(
    ("name", "base", "keys"),
    [
        ("mae/cifar10_cpu", "ldae/cifar10_cpu", UNUSED | {"denoiser", "objective", "optim"}),
        ("mae/cifar10", "ldae/cifar10", UNUSED | {"denoiser", "objective", "optim"}),
        ("dae_pixel/cifar10_cpu", "ldae/cifar10_cpu", DENOISING | {"denoiser", "objective"}),
        ("dae_pixel/cifar10", "ldae/cifar10", DENOISING | {"denoiser", "objective"}),
        ("dae_pixel/imagenet_vit_b", "ldae/imagenet_vit_b", {"tokenizer", "loss"}),
    ],
)
def test_baselines_differ_from_ldae_in_the_named_keys_alone(config, name, base, keys):
    """Same data, augmentation, batch, epochs; where MAE has a decoder of its own, the encoder is as wide and deep."""
    composed = [config("pretrain", f"experiment={e}") for e in (name, base)]
    a, b = (dict(flat(c)) for c in composed)
    differing = {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)} - {"experiment"}
    assert {key for key in differing if not any(f"{key}.".startswith(f"{k}.") for k in keys)} == set()
    for key in ("width", "encoder_depth", "heads"):
        assert composed[0]["denoiser"][key] == composed[1]["denoiser"][key]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_takes_either_optimizer(config, name):
    own = type(Parts(config("pretrain", f"experiment={name}")).optim).__name__
    other = {"AdamW": "muon", "Muon": "adamw"}[own]
    optimizer = Parts(config("pretrain", f"experiment={name}", f"optim={other}")).optim
    assert {own, type(optimizer).__name__} == {"AdamW", "Muon"}


@pytest.mark.parametrize(("name", "width", "depth"), [("imagenet_vit_b", 768, 12), ("imagenet_vit_l", 1024, 24)])
def test_paper_scale_mae_holds_the_papers_hyperparameters(config, name, width, depth):
    cfg = config("pretrain", f"experiment=mae/{name}")
    sizes = {key: cfg["denoiser"][key] for key in ("width", "encoder_depth", "patch")}
    assert sizes == {"width": width, "encoder_depth": depth, "patch": 16}
    decoder = [cfg["denoiser"][f"decoder_{key}"] for key in ("width", "depth", "heads")]
    assert decoder == [512, 8, 16]
    assert (cfg["objective"]["ratio"], cfg["objective"]["norm_pix"], cfg["data"]["size"]) == (0.75, True, 224)
    optim, train = cfg["optim"], cfg["train"]
    assert (optim["blr"], optim["weight_decay"], optim["betas"]) == (1.5e-4, 0.05, [0.9, 0.95])
    assert (train["batch"], train["epochs"], optim["warmup"] * train["epochs"]) == (4096, 800, 40)
    assert (train["ema"], train["clip"]) == (0, 0)
    assert (cfg["augment"]["low"], cfg["augment"]["high"], cfg["augment"]["flip"]) == (0.2, 1.0, 0.5)


@pytest.mark.parametrize(
    "name",
    [
        "os.parts.Popen",
        "ldae.tokenizers.pixel",
        "torch.nn.Linear",
        "ldae.data.datasets.Digits",
        3,
        None,
        "ldae.tokenizers.x.Y",
    ],
)
def test_names_outside_their_package_are_not_resolved(config, name):
    cfg = config("pretrain")
    cfg["tokenizer"] = {**cfg["tokenizer"], "part": name}
    with pytest.raises(ConfigError, match=r"tokenizer\.part"):
        _ = Parts(cfg).tokenizer


def test_the_environment_does_not_leak_into_configs(config):
    with pytest.raises(UsageError):
        config("pretrain", "out=${oc.env:HOME}")


@pytest.mark.case("25", "YAML with !!python/object/apply")
def test_yaml_cannot_run_code(config, tmp_path):
    canary, folder = tmp_path / "canary", tmp_path / "configs" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"# @package _global_\nseed: !!python/object/apply:os.mkdir ['{canary}']\n")
    with pytest.raises(UsageError, match="python/object"):
        config("pretrain", f"--config-dir={folder.parent}", "experiment=mine")
    assert not canary.exists()


def test_whoever_gives_steps_means_not_epochs(config):
    by_steps = config("pretrain", "train.steps=3")["train"]
    assert (by_steps["steps"], by_steps["epochs"]) == (3, None)
    by_epochs = config("pretrain", "train.epochs=2")["train"]
    assert (by_epochs["steps"], by_epochs["epochs"]) == (None, 2)


def test_configs_lie_where_the_tools_look():
    assert Path(CONFIGS, "pretrain.yaml").is_file()
