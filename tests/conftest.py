"""Eight CPU devices, float32, shapes checked by beartype; the models that tests share.

On a machine with a GPU, `JAX_PLATFORMS=cuda python -m pytest -m gpu` runs what needs one.
"""

import json
import os
import pathlib

if os.environ.get("JAX_PLATFORMS") != "cuda":
    os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling takes most of the time of the tests, so it is done without optimization.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
# No chips are held here: the TPU compiler may run in several workers at once.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

from jaxtyping import install_import_hook

# The hook must be in place before any module of the package is imported.
install_import_hook("cartridges_jax", "beartype.beartype")

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cartridges_jax.corpus import Document
from cartridges_jax.engine import memory
from cartridges_jax.evaluation.questions import Question
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.loading import load_model
from cartridges_jax.models.chat_template import ChatTemplate
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.models.rope import Rope
from cartridges_jax.models.tokenizer import Tokenizer
from cartridges_jax.models.tokenizer_files import load_tokenizer
from cartridges_jax.models.transformer import initialize
from cartridges_jax.sharding import make_mesh

memory.CPU_POOL = 2**27  # bytes: many models are alive at a time, and ask little

DATA = pathlib.Path(__file__).parent / "data"
TEST_MODEL = DATA / "test_model"
CHAT_TEMPLATE = (TEST_MODEL / "chat_template.jinja").read_text()
MESHES = ((1, 1), (4, 2), (2, 4))


@pytest.fixture(scope="session")
def trained() -> LanguageModel:
    """A small trained model: what it reads and says has a meaning; see tests/data/README.md."""
    return load_model(TEST_MODEL, dtype=jnp.float32)


def document_named(name: str) -> Document:
    """A document that `trained` can read."""
    fields = json.loads((DATA / "documents.json").read_text())[name]
    return Document(name, fields["title"], fields["text"])


def questions_named(name: str) -> list[Question]:
    """Questions about it."""
    fields = json.loads((DATA / "documents.json").read_text())[name]["questions"]
    return [Question(**one | {"answers": tuple(one["answers"])}) for one in fields]


def tiny_config(tokenizer: Tokenizer) -> ModelConfig:
    """A model small enough to run in milliseconds, with odd sizes."""
    return ModelConfig(
        family="llama",
        vocab_size=tokenizer.vocab_size,
        hidden_size=24,
        mlp_size=40,
        num_layers=3,
        num_heads=8,
        num_kv_heads=4,
        head_dim=10,
        norm_eps=3e-5,
        rope=Rope(theta=3e4, scaling=None),
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        tie_embeddings=False,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


def make_tiny_model(data: int = 1, model: int = 1, fsdp: bool = False) -> LanguageModel:
    """A random model on a mesh; weights do not depend on the mesh."""
    tokenizer = load_tokenizer(TEST_MODEL)
    mesh = make_mesh(data, model)
    with jax.set_mesh(mesh):
        transformer = initialize(tiny_config(tokenizer), seed=0, fsdp=fsdp)
    template = ChatTemplate(tokenizer, CHAT_TEMPLATE)
    return LanguageModel(transformer, tokenizer, template, mesh, name="tiny", weights_hash="tiny")


@pytest.fixture(scope="session")
def tiny() -> LanguageModel:
    return make_tiny_model()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
