"""The Pallas kernels compiled by Mosaic for chips that are not here, alone and on 4x4 slices.

Compiles serially in one process: libtpu takes a lock.
"""

import jax
import pytest

pytest.importorskip("libtpu", reason="the extra `tpu` is not installed: no TPU compiler")

from cartridges_jax.attention.pallas_tpu.plan import MIB, SIZES, sizes_of_chip
from cartridges_jax.planning.tpu_compiler import compile_attention, slice_mesh
from experiments.model_shapes import LLAMA_3_1_8B, LLAMA_3_2_1B, LLAMA_3_2_3B, QWEN3_4B

MODELS = {
    "Llama-3.2-3B": LLAMA_3_2_3B,
    "Llama-3.1-8B": LLAMA_3_1_8B,
    "Qwen3-4B": QWEN3_4B,
}
SLICES = ("v5e:4x4", "v6e:4x4", "v5p:2x2x4", "tpu7x:2x2x2")  # 16 devices each
ALONE, SHARDED = (1, 1), (4, 4)


def compiled(topology, mesh_shape, config, rows=4, num_tokens=2048, num_slots=2048):
    return compile_attention(
        slice_mesh(topology, *mesh_shape),
        rows=rows,
        num_tokens=num_tokens,
        num_slots=num_slots,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
    )


@pytest.mark.parametrize("topology", SLICES)
@pytest.mark.parametrize("mesh_shape", [ALONE, SHARDED])
@pytest.mark.parametrize("model", MODELS)
def test_compiles_with_few_temporaries(topology, mesh_shape, model):
    """Forward and backward are one kernel each; 8,192 tokens at the shape of a trial."""
    found = compiled(topology, mesh_shape, MODELS[model])
    assert found.text.count("tpu_custom_call") == 2
    assert found.temporary_bytes < 100 * MIB
    if mesh_shape == SHARDED:
        # One sum over the rows for both gradients of the prefix, and nothing is gathered.
        assert "all-reduce" in found.text and "all-gather" not in found.text


@pytest.mark.parametrize(
    ("num_tokens", "num_slots"), [(40, 0), (130, 100), (1920, 8192), (16_384, 4096)]
)
def test_any_length_compiles(num_tokens, num_slots):
    """Ragged ones are padded; keys beyond VMEM are taken in chunks."""
    found = compiled("v5e:4x4", ALONE, LLAMA_3_1_8B, 1, num_tokens, num_slots)
    assert found.text.count("tpu_custom_call") >= 2


@pytest.mark.parametrize(("num_heads", "head_dim"), [(128, 128), (16, 256), (8, 64)])
def test_large_groups_and_heads_compile(num_heads, head_dim):
    """Llama-3.1-405B's groups of 16, heads of 256, and one query head for each kv head."""
    found = compile_attention(
        slice_mesh("v5e:4x4", *ALONE), rows=1, num_tokens=2048, num_slots=2048, num_kv_heads=8,
        num_heads=num_heads, head_dim=head_dim,
    )  # fmt: skip
    assert found.text.count("tpu_custom_call") == 2


def test_small_vmem_takes_smaller_blocks_and_chunks():
    """A v4 core has 16 MiB where the others have 64 or 128."""
    found = compiled("v4:2x2x4", ALONE, LLAMA_3_1_8B, rows=1, num_tokens=8192)
    assert found.text.count("tpu_custom_call") > 2  # the backward kernel runs once a chunk
    with jax.sharding.use_abstract_mesh(slice_mesh("v5e:4x4", *ALONE).abstract_mesh):
        assert sizes_of_chip() == SIZES[128 * MIB]


def test_heads_that_the_axis_does_not_divide_are_replicated():
    """4 kv heads over 8 devices: the kernels run on all of them, without an error."""
    mesh = slice_mesh("v5e:4x4", 2, 8)
    shape = {"rows": 2, "num_tokens": 256, "num_slots": 128, "head_dim": 64}
    found = compile_attention(mesh, num_heads=12, num_kv_heads=4, **shape)
    assert found.text.count("tpu_custom_call") == 2
    config = LLAMA_3_2_1B
    assert compiled("v5e:4x4", SHARDED, config).text.count("tpu_custom_call") == 2
