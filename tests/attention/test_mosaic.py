"""The Pallas kernels compiled by Mosaic for chips that are not here, alone and on 4x4 slices.

Without ALLOW_MULTIPLE_LIBTPU_LOAD=1 (`conftest.py`) libtpu lets one process at a time compile.
"""

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("libtpu", reason="the extra `tpu` is not installed: no TPU compiler")

from cartridges_jax.attention.pallas_tpu.plan import MIB, SIZES, sizes_of_chip
from cartridges_jax.planning.compiler import slice_mesh
from experiments.model_shapes import (
    LLAMA_3_1_8B,
    LLAMA_3_1_70B,
    LLAMA_3_2_1B,
    LLAMA_3_2_3B,
    QWEN3_4B,
)
from experiments.tpu_parts import compile_attention, compile_paged_decode

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
@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=() if "8B" in m else pytest.mark.full) for m in MODELS]
)
def test_compiles_with_few_temporaries(topology, mesh_shape, model):
    """Forward and backward are one kernel each; four rows of 2,048 tokens."""
    found = compiled(topology, mesh_shape, MODELS[model])
    assert found.text.count("tpu_custom_call") == 2
    assert found.temporary_bytes < 100 * MIB
    if mesh_shape == SHARDED:
        # One sum over the rows for both gradients of the prefix, and nothing is gathered.
        assert "all-reduce" in found.text and "all-gather" not in found.text


@pytest.mark.parametrize(("num_tokens", "num_slots"), [(9, 0), (130, 100), (1920, 8192)])
def test_any_length_compiles(num_tokens, num_slots):
    """Ragged ones are padded; the shortest that is not one product (`api._SHORT`) among them."""
    found = compiled("v5e:4x4", ALONE, LLAMA_3_1_8B, 1, num_tokens, num_slots)
    assert found.text.count("tpu_custom_call") == 2


@pytest.mark.parametrize(
    ("topology", "config", "num_tokens", "num_slots", "chunks"),
    [
        ("v5e:4x4", LLAMA_3_1_8B, 16_384, 4096, 1),
        ("v5p:2x2x4", LLAMA_3_1_8B, 16_384, 4096, 2),
        ("tpu7x:2x2x2", LLAMA_3_2_1B, 16_384, 8192, 2),  # heads of 64 take the room of 128
        ("v4:2x2x4", LLAMA_3_2_1B, 2048, 2048, 2),
        ("v4:2x2x4", LLAMA_3_1_8B, 12_300, 2048, 5),  # 97 blocks of 128, a prime number
    ],
)
def test_keys_beyond_vmem_are_taken_in_few_chunks(topology, config, num_tokens, num_slots, chunks):
    """The backward kernel runs once a chunk, the forward one is one kernel in any case."""
    found = compiled(topology, ALONE, config, 1, num_tokens, num_slots)
    assert 1 + 1 <= found.text.count("tpu_custom_call") <= 1 + chunks


@pytest.mark.parametrize(
    "topology",
    [
        *("v5e:4x4", "v4:2x2x4"),
        *(pytest.param(t, marks=pytest.mark.full) for t in ("v6e:4x4", "v5p:2x2x4", "tpu7x:2x2x2")),
    ],
)
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "dtype"),
    [
        (128, 8, 128, jnp.bfloat16),  # Llama-3.1-405B
        (14, 2, 64, jnp.bfloat16),  # Qwen2.5-0.5B
        (16, 8, 256, jnp.bfloat16),
        (8, 8, 64, jnp.bfloat16),
        (32, 8, 128, jnp.float32),
    ],
)
def test_heads_of_all_kinds_compile(topology, num_heads, num_kv_heads, head_dim, dtype):
    found = compile_attention(
        slice_mesh(topology, *ALONE), rows=1, num_tokens=2048, num_slots=2048, dtype=dtype,
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
    )  # fmt: skip
    assert found.text.count("tpu_custom_call") == 2 or topology.startswith("v4")


def test_float16_is_served_without_the_kernels():
    """Mosaic loads no such vectors."""
    found = compile_attention(
        slice_mesh("v5e:4x4", *ALONE), rows=1, num_tokens=256, num_slots=128, dtype=jnp.float16,
        num_heads=4, num_kv_heads=2, head_dim=128, implementation=None,
    )  # fmt: skip
    assert "tpu_custom_call" not in found.text


def test_sizes_are_those_of_the_chip_that_is_compiled_for():
    with jax.sharding.use_abstract_mesh(slice_mesh("v5e:4x4", *ALONE).abstract_mesh):
        assert sizes_of_chip() == SIZES[128 * MIB]
    with jax.sharding.use_abstract_mesh(slice_mesh("v4:2x2x4", *ALONE).abstract_mesh):
        assert sizes_of_chip() == SIZES[16 * MIB]


@pytest.mark.parametrize(("num_heads", "on_a_device"), [(16, 2), (12, 12)])
def test_kv_heads_that_the_axis_does_not_divide(num_heads, on_a_device):
    """4 kv heads over 8 devices: two share the queries of each, or the kernels run on all."""
    mesh = slice_mesh("v5e:4x4", 2, 8)
    shape = {"rows": 2, "num_tokens": 256, "num_slots": 128, "head_dim": 64}
    found = compile_attention(mesh, num_heads=num_heads, num_kv_heads=4, **shape)
    kernels = [line for line in found.text.splitlines() if "tpu_custom_call" in line]
    assert len(kernels) == 2
    group = on_a_device if on_a_device < 4 else on_a_device // 4
    kv = on_a_device // group
    assert all(f"bf16[1,{kv},{group},256,64]" in line for line in kernels)


def test_models_of_few_kv_heads_compile_over_more_devices():
    config = LLAMA_3_2_1B
    assert compiled("v5e:4x4", SHARDED, config).text.count("tpu_custom_call") == 2


@pytest.mark.parametrize("topology", ["v5e:4x4", "v6e:4x4"])
@pytest.mark.parametrize("mesh_shape", [ALONE, (2, 8)])
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(c, id=n, marks=() if "8B" in n else pytest.mark.full)
        for n, c in (MODELS | {"70B": LLAMA_3_1_70B, "1B": LLAMA_3_2_1B}).items()
    ],
)
def test_decoding_over_pages_compiles_and_copies_no_page(topology, mesh_shape, config):
    """One kernel for what 64 rows share and what is their own; the pool stays where it is."""
    found = compile_paged_decode(
        slice_mesh(topology, *mesh_shape), rows=64, row_tokens=1024, num_slots=2048, num_layers=2,
        num_heads=config.num_heads, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim,
    )  # fmt: skip
    assert found.text.count("tpu_custom_call") == 1
    if config.head_dim % 128 == 0:  # heads of 64 have another layout outside of the kernel
        assert found.temporary_bytes < 0.05 * found.argument_bytes
