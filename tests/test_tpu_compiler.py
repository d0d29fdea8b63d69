"""What runs on a TPU pod, compiled by the TPU compiler for 16 chips; no TPU is needed.

Without ALLOW_MULTIPLE_LIBTPU_LOAD=1 (`conftest.py`) libtpu lets one process at a time compile.
"""

import re

import pytest

pytest.importorskip("libtpu", reason="the extra `tpu` is not installed: no TPU compiler")

from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.planning.compiler import (
    compile_decode,
    compile_prefill,
    compile_train_step,
    slice_mesh,
)
from experiments.model_shapes import LLAMA_3_1_8B, LLAMA_3_2_1B
from experiments.tpu_parts import compile_loss

GIB = 2**30


@pytest.fixture(scope="module")
def mesh():
    return slice_mesh("v5e:4x4", data=8, model=2)


@pytest.mark.full  # `test_plan` compiles a smaller one for every change
@pytest.mark.parametrize("fsdp", [False, True])
def test_a_training_step_of_a_1b_model_fits_16_chips(mesh, fsdp):
    """32,768 tokens a step, 2,048 slots, bfloat16 base, float32 slots: under 16 GiB a v5e chip."""
    step = compile_train_step(
        LLAMA_3_2_1B,
        mesh,
        TrainConfig(num_slots=2048, rows_per_step=16, row_length=2048),
        fsdp=fsdp,
    )
    assert (0.5 if fsdp else 1.0) * GIB < step.hbm_bytes < 16 * GIB, f"{step.hbm_bytes / GIB:.2f}"
    assert "all-reduce" in step.text  # the prefix gradient is summed over rows
    # Two kernels: the forward one is not run again by rematerialisation.
    assert step.text.count("tpu_custom_call") == 2
    gathered = re.findall(r"= bf16\[([\d,]+)\]\S* all-gather(?:-start)?\(", step.text)
    if fsdp:  # a layer's matrices at a time, and the LM head; never a whole stack
        layers = [shape for shape in gathered if shape.startswith("1,")]
        assert len(layers) >= 7 and set(gathered) - set(layers) <= {"64128,2048"}, gathered
        assert step.argument_bytes < 0.6 * GIB
    else:
        assert not gathered


def test_the_loss_keeps_no_logits(mesh):
    """Forward and backward: under a fifth of what the logits of a device's tokens would take."""
    rows, length = 16, 2048
    loss = compile_loss(
        LLAMA_3_2_1B, mesh, rows=rows, row_length=length, targets_per_row=length // 2
    )
    local_logits = rows // 8 * length * LLAMA_3_2_1B.vocab_size // 2 * 4
    assert loss.temporary_bytes < 0.2 * local_logits


def test_a_decoding_step_of_an_8b_model_copies_no_pages(mesh):
    """64 rows share one cartridge; a step writes a token of each, and never moves the pool."""
    rows, tokens = 64, 1024
    step = compile_decode(LLAMA_3_1_8B, mesh, rows=rows, row_tokens=tokens, num_slots=2048)
    pages = 1 + 16 + rows // 8 * (tokens // 128)
    pool_bytes = 2 * 2 * 32 * pages * 128 * 4 * 128  # keys and values of a chip's four kv heads
    assert step.temporary_bytes < 0.05 * pool_bytes
    assert step.output_bytes < 0.01 * pool_bytes  # it is updated in place
    whole_pool = re.compile(rf"= \S*\[32,{pages},4,128,128\]\S* copy\(")
    assert f"[32,{pages},4,128,128]" in step.text and not whole_pool.search(step.text)


def test_int8_halves_the_weights_on_a_chip(mesh):
    """Prefill of 2,048 tokens: the matrices are a byte a weight, and never cast as a whole."""
    shape = {"rows": 8, "num_tokens": 2048}
    full = compile_prefill(LLAMA_3_2_1B, mesh, **shape)
    small = compile_prefill(LLAMA_3_2_1B, mesh, **shape, quantization="int8")
    weights = full.argument_bytes
    assert small.argument_bytes < 0.52 * weights
    assert small.temporary_bytes < full.temporary_bytes + 0.25 * weights
