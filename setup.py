from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="atgrpo_jax",
    version="0.1.0",
    description="On-policy reinforcement learning for teams of LLM agents (AT-GRPO), in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["atgrpo_jax", "atgrpo_jax.*"]),
    package_data={"atgrpo_jax.tasks": ["templates/*/*/*.txt"]},
    install_requires=[
        "absl-py>=2.1",
        "aiohttp>=3.11,<4",
        "flax>=0.12",
        "gin-config==0.5.0",  # config.py walks its parsed bindings, so the version is fixed
        "jax>=0.10,<0.13",
        "jinja2>=3.1.6",  # prompts, and the chat templates of models: older sandboxes leak
        "matplotlib>=3.8",
        "numpy>=2.0",
        "optax>=0.2.6",
        "packaging>=23",
        "orbax-checkpoint>=0.12,<0.13",
        "safetensors>=0.5",
        "scipy>=1.14",  # quantiles of intervals; JAX brings it, too
        "tensorboard>=2.20",
        "tokenizers>=0.21",  # of model folders
        "tqdm>=4.66",
        "transformers>=4.57",  # reads back what ``export`` writes; it needs no torch for that
    ],
    extras_require={
        "gpu": ["jax[cuda13]>=0.10,<0.13"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        # To start SGLang servers from the same environment; launch/serve_sglang.sh makes one of their own.
        "sglang": ["sglang==0.5.23"],
        # For ``SGLangJaxConfig``: Python >= 3.12. These fix jax, flax, numpy, optax and transformers.
        "sglang-tpu": ["sglang-jax[tpu]==0.1.0rc0"],
        "sglang-cpu": ["sglang-jax[cpu]==0.1.0rc0"],
        "math": ["sympy>=1.13,<2"],  # compares answers to mathematical problems
        "patterns": ["outlines-core>=0.2.14,<0.3"],  # for ``Sampling.pattern``
        "packaged": ["gguf>=0.19"],  # for ``python -m atgrpo_jax.tools.model_folder --name=smollm2-135m``
        # libtpu: kernels and updates are compiled for TPUs; torch: models are compared with transformers'
        "test": [
            *(
                "gguf>=0.19",
                "hypothesis>=6.100",
                "libtpu==0.0.52",
                "mypy==2.4.1",
                "outlines-core>=0.2.14,<0.3",
                "peft>=0.17",
            ),
            *("pytest>=8", "pytest-xdist>=3.7", "ruff==0.17.6", "sympy>=1.13,<2", "torch==2.13.0"),
        ],
    },
)
