"""Define the comparisons of `python tools/bench`: l-DAE and its competitors on the same work."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from interleaved import Competitor
from peers import installed

# settings of glibc that make competitors' training steps faster; ldae applies them itself (ldae/engine/runtime.py)
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": "268435456"}


# torch's names of the precisions
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def product(precision: str) -> Competitor:
    """Return a square matrix product in `fp32` or `bf16`: the machine's limit."""
    return Competitor("matrix product", "competitors:matmul", {"size": 2048, "precision": DTYPES[precision]})


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: name of the row.
        unit: unit of rates.
        ours: implementation of this project.
        peers: implementations to compare with.
        marks: {peer: target of the ratio ours / peer}.
        peak: measurement of the machine's peak, or None.
        share: target fraction of the peak, or None.
        least: target of our rate, or None.
        same: `module:function` that returns the percentage of our predictions that equal the first peer's, or None.
    """

    name: str
    unit: str
    ours: Competitor
    peers: Sequence[Competitor]
    marks: Mapping[str, float] = field(default_factory=dict)
    peak: Competitor | None = None
    share: float | None = None
    least: float | None = None
    same: str | None = None

    @property
    def competitors(self) -> list[Competitor]:
        """Return all competitors of the row."""
        return [self.ours, *self.peers, *([self.peak] if self.peak else [])]


def training_rows(mae: str | None, precision: str) -> list[Row]:
    """Compare training steps at 32 px in patches of 4; rates are in FLOP/s, so that sizes compare.

    Args:
        mae: folder of a checkout of facebookresearch/mae, or None.
        precision: `fp32` or `bf16`, for all competitors.
    """
    wide, narrow = (0.72, 0.62) if precision == "bf16" else (0.78, 0.78)
    sizes = (192, 12, 3, "vit_192x12", wide, mae), (128, 8, 4, "vit_128x8", narrow, None)
    return [*(_training(*size, precision) for size in sizes), *([_dropping(mae, precision)] if mae else [])]


def _dropping(mae: str, precision: str) -> Row:
    """Compare pretraining with dropped tokens, by the recipe of ldae/cifar10, with MAE; encoders of 192 x 12."""
    argv = [
        "experiment=ldae/cifar10_cpu",
        "denoiser=vit_192x12",
        "denoiser.encoder_depth=12",
        "denoiser.decoder_depth=2",
    ]
    argv += ["denoiser.keep=0.25", "train.batch=128", f"train.precision={precision}", "train.compile=true"]
    official = {"folder": mae, "batch": 128, "precision": precision, "compiled": True}
    peer = Competitor("MAE at its best", "competitors:official_mae", {**official, "per_image": True}, MALLOC)
    ours = Competitor("l-DAE, a quarter of the tokens", "competitors:training", {"argv": argv, "per_image": True})
    return Row("pretraining, 192 x 12", "images/s", ours, [peer], {peer.name: 1.3})


def start_rows(precision: str) -> list[Row]:
    """Compare the whole time of a compiled training of one step, with saved code and without.

    Args:
        precision: `fp32` or `bf16`, for both.
    """
    argv = ["experiment=ldae/cifar10_cpu", "data=photos", f"train.precision={precision}"]
    ours, peer = (
        Competitor(name, "competitors:first_step", {"argv": argv, "saved": saved})
        for name, saved in (("code of an earlier start", True), ("compiled anew", False))
    )
    return [Row("compiled training, one step", "starts/s", ours, [peer], least=0.2)]


def gpu_rows(precision: str) -> list[Row]:
    """Compare training steps of the paper's networks at 256 px, 256 tokens, on a GPU; rates are in FLOP/s.

    All competitors are on the GPU at once: a batch of 256 of ViT-B took 61 GiB in each process.

    Args:
        precision: `fp32` or `bf16`, for all competitors.
    """
    return [
        _paper_size("ViT-B", "imagenet_vit_b", 96, {"width": 768, "depth": 12, "heads": 12}, 0.5, precision),
        _paper_size("ViT-L", "imagenet_vit_l", 48, {"width": 1024, "depth": 24, "heads": 16}, 0.55, precision),
    ]


def _paper_size(name: str, experiment: str, batch: int, sizes: Mapping[str, int], share: float, precision: str) -> Row:
    argv = [f"experiment=ldae/{experiment}", f"train.batch={batch}", f"train.precision={precision}"]
    ours = {"input": False, "images": batch}
    timm = {**sizes, "pixels": 256, "patch": 16, "batch": batch, "precision": precision, "compiled": False}
    return Row(
        f"training step, {name} at 256 px, the same batch again",
        "FLOP/s",
        Competitor("l-DAE, compiled", "competitors:training", {**ours, "argv": [*argv, "train.compile=true"]}),
        [
            Competitor("l-DAE, not compiled", "competitors:training", {**ours, "argv": [*argv, "train.compile=false"]}),
            Competitor("timm as it ships", "competitors:vit", {**timm, "fused": True}),
        ],
        {"timm as it ships": 1.1},
        product(precision),
        share,
    )


def _training(width: int, depth: int, heads: int, network: str, share: float, mae: str | None, precision: str) -> Row:
    argv = ["experiment=ldae/cifar10_cpu", f"denoiser={network}", "train.batch=64", f"train.precision={precision}"]
    argv += ["objective=denoise", "denoiser.keep=1", f"denoiser.decoder_depth={depth // 2}", "optim=adamw"]  # as timm
    timm = {"width": width, "depth": depth, "heads": heads, "precision": precision}
    ships, best = {"batch": 128, "fused": True, "compiled": False}, {"batch": 64, "fused": False, "compiled": True}
    peers = [
        Competitor("l-DAE, not compiled", "competitors:training", {"argv": [*argv, "train.compile=false"]}),
        Competitor("timm as it ships", "competitors:vit", {**timm, **ships}),
        Competitor("timm at its best", "competitors:vit", {**timm, **best}, MALLOC),
    ]
    if mae:
        given = {"folder": mae, "batch": 128, "precision": precision, "compiled": True}
        peers.append(Competitor("MAE at its best", "competitors:official_mae", given, MALLOC))
    return Row(
        f"training step, {width} x {depth}",
        "FLOP/s",
        Competitor("l-DAE, compiled", "competitors:training", {"argv": [*argv, "train.compile=true"]}),
        peers,
        {"timm as it ships": 1.8, "timm at its best": 1.1, "MAE at its best": 1.1},
        product(precision),
        share,
    )


def load_rows(precision: str) -> list[Row]:
    """Compare training steps of ldae/cifar10_cpu, not compiled, alone and with one busy process.

    Args:
        precision: `fp32` or `bf16`, for all competitors.
    """
    argv = ["experiment=ldae/cifar10_cpu", "train.compile=false", f"train.precision={precision}"]

    def steps(name: str, busy: int, adapted: bool) -> Competitor:
        return Competitor(name, "competitors:training_under_load", {"argv": argv, "busy": busy, "adapted": adapted})

    adapted, fixed = "adapted threads", "fixed threads"
    alone, loaded = steps(f"{fixed}, alone", 0, False), steps(f"{fixed}, with it", 1, False)
    return [
        Row("training step, alone", "images/s", steps(adapted, 0, True), [alone], {alone.name: 0.97}),
        Row("... with one busy process", "images/s", steps(adapted, 1, True), [alone, loaded], {alone.name: 0.45}),
    ]


def unet_rows(site: str | None, precision: str) -> list[Row]:
    """Return the U-Net of DDPM on CIFAR-10, training and sampling; SegDiff's image encoder.

    Args:
        site: folder where peers are installed, in addition to importable ones.
        precision: `fp32` or `bf16`, for all competitors.
    """
    argv, batch = ["experiment=ddpm/cifar10", "train.batch=32"], {"batch": 32, "precision": precision}
    training, sampling = [], []
    if _found("diffusers", site):
        for name, last in (("diffusers", False), ("diffusers, channels last", True)):
            given = {**batch, "last": last, "site": site}
            training.append(Competitor(name, "competitors_unet:diffusers_training", given, MALLOC))
            sampling.append(Competitor(name, "competitors_unet:diffusers_ddim", given, MALLOC))
    if _found("denoising_diffusion_pytorch", site):
        name, given = "lucidrains, channels last", {**batch, "last": True, "site": site}
        compiled = {**given, "compiled": True}
        training.append(Competitor(f"{name}, compiled", "competitors_unet:lucidrains_training", compiled, MALLOC))
        sampling.append(Competitor(name, "competitors_unet:lucidrains_ddim", given, {**MALLOC, "TQDM_DISABLE": "1"}))
    ours = Competitor("ldae", "competitors:training", {"argv": [*argv, f"train.precision={precision}"]})
    drawing = Competitor("ldae", "competitors_unet:ddim", {"argv": argv, **batch})
    rows = [
        Row("U-Net, training step", "FLOP/s", ours, training, _even(training), product(precision), 0.75),
        Row("U-Net, DDIM steps", "FLOP/s", drawing, sampling, _even(sampling), product(precision), 0.83),
    ]
    given = {"argv": ["experiment=segdiff/horses_cpu"], "batch": 4, "precision": precision}
    once, each = ({**given, "once": once} for once in (True, False))
    peer = Competitor("at every step", "competitors_unet:segmenting", each)
    ours = Competitor("G(I) once", "competitors_unet:segmenting", once)
    return [*(row for row in rows if row.peers), Row("SegDiff, sampling", "steps/s", ours, [peer], _even([peer]))]


def cold_rows(folder: str | None, site: str | None) -> list[Row]:
    """Compare the blur with that of Cold Diffusion's code.

    Args:
        folder: of a checkout of arpitbansal297/Cold-Diffusion-Models; no rows without.
        site: as in `unet_rows`; torchgeometry is needed.
    """
    if folder is None:
        return []
    batch, theirs = {"batch": 32}, {"batch": 32, "folder": folder, "site": site}
    ours = [Competitor("ldae", f"competitors_cold:{name}", batch) for name in ("blur", "trajectory")]
    peers = [
        Competitor("Cold Diffusion", f"competitors_cold:official_{name}", theirs) for name in ("blur", "trajectory")
    ]
    return [
        Row("blur to random steps", "images/s", ours[0], peers[:1], {"Cold Diffusion": 50.0}),
        Row("trajectory of 50 steps, without a network", "images/s", ours[1], peers[1:], _even(peers)),
    ]


def input_rows(images: str | None, jpegs: str | None, precision: str) -> list[Row]:
    """Compare the loading of images.

    Args:
        images: folder of class folders of small images, for torchvision to read.
        jpegs: the same of full-size ones.
        precision: `fp32` or `bf16`, of training steps.
    """
    rows = []
    if images:
        for augment, least in (("pad_crop", 60e3), ("random_resized_crop", None)):
            ours = Competitor("ldae", "competitors_data:small", {"augment": augment, "batch": 128})
            given = {"folder": images, "batch": 128}
            peers = [Competitor("torchvision", "competitors_data:small_torchvision", given)]
            rows.append(Row(f"32 px, {augment}", "images/s", ours, peers, _even(peers), least=least))
    argv = ["experiment=ldae/cifar10_cpu", "train.batch=64", f"train.precision={precision}"]
    step, bare = ({"argv": argv, "input": reads_input} for reads_input in (True, False))
    peer = Competitor("the same batch again", "competitors:training", bare)
    rows.append(
        Row(
            "training with its input",
            "FLOP/s",
            Competitor("ldae", "competitors:training", step),
            [peer],
            {peer.name: 0.98},
        )
    )
    if jpegs:
        ours = Competitor("ldae", "competitors_data:large", {"folder": jpegs, "batch": 64, "size": 224})
        peers = [Competitor("Pillow, decoding alone", "competitors_data:decoded", {"folder": jpegs, "batch": 57})]
        rows.append(Row("JPEG files cut to 224 px", "images/s", ours, peers, {peers[0].name: 0.95}))
        size: dict[str, Any] = {"folder": jpegs, "batch": 64, "size": 256}
        ours = Competitor("ldae", "competitors_data:read_and_summed", {**size, "patch": 16})
        peers = [
            Competitor("reading alone", "competitors_data:read_alone", size),
            Competitor("scikit-learn", "competitors_data:read_and_summed_sklearn", {**size, "patch": 16}),
        ]
        rows.append(Row("PCA of 16 x 16 patches", "images/s", ours, peers, {"reading alone": 0.95}))
    return rows


def _even(peers: Sequence[Competitor]) -> dict[str, float]:
    return {peer.name: 1.0 for peer in peers}


def _found(name: str, site: str | None) -> bool:
    present = installed(name, site)
    if not present:
        print(f"{name} is not installed, nor in site={site}: left out", file=sys.stderr)
    return present


def knn_rows() -> list[Row]:
    """Compare kNN of 10,000 queries in a bank of 50,000, k = 20."""
    rows = []
    for dimensions in (192, 384, 768):
        size = {"bank": 50000, "queries": 10000, "dimensions": dimensions, "k": 20}
        peers = [
            Competitor("faiss IndexFlatIP", "competitors_probe:knn_faiss", size),
            Competitor("scikit-learn", "competitors_probe:knn_sklearn", size),
        ]
        ours = Competitor("ldae", "competitors_probe:knn", size)
        aim = 1.0 if dimensions < 384 else 1.3
        row = Row(f"kNN, D = {dimensions}", "queries/s", ours, peers, {"faiss IndexFlatIP": aim})
        rows.append(replace(row, same="competitors_probe:agreement"))
    return rows


def probe_rows(precision: str) -> list[Row]:
    """Compare linear probes on 50,000 x 384 features of 10 classes; reading features in `fp32` or `bf16`."""
    read = {"images": 2048, "precision": precision}
    size = {"images": 50000, "dimensions": 384}
    one, all_ = ({**size, "epochs": 2.0, "together": together} for together in (False, True))
    return [
        Row(
            "13 rates",
            "images x rates/s",
            Competitor("together", "competitors_probe:sweep", all_),
            [Competitor("one after the other", "competitors_probe:sweep", one)],
            {"one after the other": 4.5},
        ),
        Row(
            "feature extraction",
            "images/s",
            Competitor("ldae", "competitors_probe:extraction", {**read, "bare": False}),
            [Competitor("bare forward", "competitors_probe:extraction", {**read, "bare": True})],
            {"bare forward": 0.97},
        ),
        *(_logistic(size, correlated) for correlated in (True, False)),
    ]


def _logistic(size: Mapping[str, Any], correlated: bool) -> Row:
    given = {**size, "correlated": correlated}
    peer = Competitor("scikit-learn", "competitors_probe:lbfgs_sklearn", given)
    name = f"logistic regression, {'correlated' if correlated else 'independent'} features"
    return Row(name, "images/s", Competitor("ldae", "competitors_probe:lbfgs", given), [peer], {peer.name: 1.5})
