"""The distribution `ldae`: the packages ldae and linear_probe, the configs, and the command `ldae`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
(VERSION,) = re.findall(r'^__version__ = "([^"]+)"$', (HERE / "ldae" / "core" / "version.py").read_text(), flags=re.M)
SLURM = ["submitit>=1.5"]  # ablations as jobs of a cluster
HUB = [
    "datasets>=4",  # streams data sets of the Hugging Face hub; from 4 on it runs no code of theirs
    "huggingface_hub>=0.30",  # uploads and downloads encoders
]
PARQUET = ["pyarrow>=15"]  # tables of features (ldae embed out=FILE.parquet)
MEDMNIST = ["medmnist>=3.0"]  # reads and downloads the data sets of MedMNIST
SWEEP = ["optuna>=4"]  # proposes the trials of ldae sweep, and keeps them in SQLite
ONNX = ["onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"]  # writes graphs as torch does, and runs them
WANDB = ["wandb>=0.17"]  # curves and pictures of trainings at Weights & Biases
MLFLOW = ["mlflow-skinny>=2.14", "sqlalchemy>=2", "alembic>=1.9"]  # the same in MLflow; with its store in SQLite
DOCS = [
    "mkdocs-material>=9.5",  # the site
    "mkdocstrings[python]>=0.26",  # its API reference, from the docstrings
]

setup(
    name="ldae",
    version=VERSION,
    description="Self-supervised representation learning by denoising: the reference implementation of l-DAE",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The l-DAE authors",
    license="MIT",
    project_urls={"Paper": "https://arxiv.org/abs/2401.14404"},
    keywords=["self-supervised learning", "representation learning", "diffusion", "denoising autoencoder", "ViT"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=[*find_packages(include=["ldae", "ldae.*", "linear_probe", "linear_probe.*"]), "ldae.configs"],
    package_dir={"ldae.configs": "configs"},
    package_data={
        "ldae": ["py.typed", "zoo/*/*", "app/sampling/templates/*"],
        "ldae.configs": ["*.yaml", "**/*.yaml"],
        "linear_probe": ["py.typed"],
        "linear_probe.report": ["templates/*"],  # of the page, its style and script
    },
    entry_points={"console_scripts": ["ldae = ldae.app.cli:main"]},
    zip_safe=False,
    install_requires=[
        "torch>=2.11",  # tensors, autograd, distributed training
        "torchvision",  # downloads CIFAR when a user asks for it; VGG16's layers for LPIPS
        "timm>=1.0.20",  # the plain ViT that an exported encoder is loaded into
        "numpy>=1.26",  # memory-mapped images and features
        "scipy>=1.11",  # L-BFGS for logistic regression
        "threadpoolctl>=3.1",  # keeps L-BFGS' short sums on one thread
        "scikit-learn>=1.4",  # the embedded digits; two photographs; what the probes are tested against
        "scikit-image>=0.22",  # ten of the photographs of data=photos lie in its wheel
        "faiss-cpu>=1.8",  # exact nearest neighbours
        "pillow>=10.1",  # decodes images; torchvision's decoder crashes on malformed PNGs
        "simplejpeg>=1.9",  # decodes JPEG files by libjpeg-turbo: Pillow's pixels in two thirds of its time
        "tifffile>=2024.1",  # TIFF files with more bands or other numbers than Pillow has
        "einops>=0.8",  # reshapes with named axes
        "safetensors>=0.4.5",  # weights on disk that cannot run code
        "hydra-core>=1.3.2",  # composes configs, one group for each axis
        "argcomplete>=3.3",  # completes commands and keys in a shell
        "filelock>=3.13",  # one process for a run folder; freed when that process dies
        "tqdm>=4.66",  # progress bars
        "torchmetrics>=1.4",  # SSIM; the weights of LPIPS' stages
        "tensorboard>=2.16",  # curves and pictures
        "matplotlib>=3.8",  # figures of reports and probes; plots of schedules and tokenizers
        "jinja2>=3.1.3",  # fills and escapes the page of a report
    ],
    extras_require={
        "fid": ["torch-fidelity>=0.4"],  # Inception-v3 as FID has it; its weights are the user's to fetch
        "hub": HUB,
        "slurm": SLURM,
        "wandb": WANDB,
        "mlflow": MLFLOW,
        "trackio": ["trackio>=0.30"],  # the same in trackio
        "medmnist": MEDMNIST,
        "tiff": ["imagecodecs>=2024.1"],  # TIFF files of many bands that are compressed (LZW, JPEG, ...)
        "onnx": ONNX,
        "parquet": PARQUET,
        "sweep": SWEEP,
        "docs": DOCS,
        "dev": [
            *HUB,
            *SLURM,
            *ONNX,
            *PARQUET,
            *SWEEP,
            *MEDMNIST,
            *WANDB,
            *MLFLOW,
            *DOCS,
            "pytest>=8",  # the tests
            "pytest-xdist>=3.7",  # on both cores, in our order of files
            "hypothesis>=6.100",  # laws over many inputs
            "nbclient>=0.10",  # executes the notebooks of docs/
            "jupytext>=1.16",  # reads them: they are Python files with cells
            "ipykernel>=6.29",  # the kernel that they run in
            "ruff>=0.6",  # style
            "mypy>=1.11",  # types
            "selenium>=4.20",  # drives a browser through the report; its tests are skipped without one
        ],
    },
)
