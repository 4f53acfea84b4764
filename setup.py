"""l-DAE: pretrain vision encoders by denoising, and find out why a representation is good."""

from setuptools import find_packages, setup

setup(
    name="ldae",
    version="0.1.0",
    description="Self-supervised representation learning by denoising: the reference implementation of l-DAE",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["ldae", "ldae.*", "linear_probe", "linear_probe.*"]),
    package_data={"linear_probe.report": ["report.css", "report.js"]},  # inlined into the page
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
        "tifffile>=2024.1",  # TIFF files with more bands or other numbers than Pillow has
        "einops>=0.8",  # reshapes with named axes
        "safetensors>=0.4.5",  # weights on disk that cannot run code
        "hydra-core>=1.3.2",  # composes configs, one group for each axis
        "filelock>=3.13",  # one process for a run folder; freed when that process dies
        "tqdm>=4.66",  # progress bars
        "torchmetrics>=1.4",  # SSIM; the weights of LPIPS' stages
        "tensorboard>=2.16",  # curves and pictures
    ],
    extras_require={
        "fid": ["torch-fidelity>=0.3"],  # Inception-v3 as FID has it; its weights are the user's to fetch
        "hub": ["datasets>=4"],  # streams data sets of the Hugging Face hub; from 4 on it runs no code of theirs
        "slurm": ["hydra-submitit-launcher>=1.2"],  # ablations as jobs of a cluster
        "tiff": ["imagecodecs>=2024.1"],  # TIFF files of many bands that are compressed (LZW, JPEG, ...)
        "onnx": ["onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"],  # writes graphs (torch's way), and runs them
        "dev": [
            "datasets>=4",  # as in the extra hub
            "onnx>=1.17",  # as in the extra of that name
            "onnxscript>=0.3",
            "onnxruntime>=1.20",
            "pytest>=8",  # the tests
            "pytest-xdist>=3.5",  # on both cores
            "hypothesis>=6.100",  # laws over many inputs
            "ruff>=0.6",  # style
            "mypy>=1.11",  # types
            "selenium>=4.20",  # drives a browser through the report; its tests are skipped without one
        ],
    },
)
