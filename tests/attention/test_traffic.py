"""Bytes that the kernels move, counted from their grids, at the shapes of three models."""

import math

import pytest

from experiments.kernel_traffic import bytes_read, bytes_written, calls_of
from experiments.model_shapes import LLAMA_3_1_8B, LLAMA_3_2_3B, QWEN3_4B


@pytest.mark.parametrize("config", [LLAMA_3_2_3B, LLAMA_3_1_8B, QWEN3_4B])
def test_every_input_is_read_once_and_every_output_written(config):
    """Rows of 2,048 tokens behind 2,048 slots."""
    rows, length = 4, 2048
    calls = calls_of(rows, length, length, config.num_heads, config.num_kv_heads, config.head_dim)
    of_token = rows * length * config.head_dim * 2
    queries, keys = config.num_heads * of_token, config.num_kv_heads * of_token
    for direction, most in (("forward", 1.3), ("backward", 2.0)):
        [call] = calls[direction]
        once = sum(x.size * x.dtype.itemsize for x, _ in call.inputs)
        assert once > queries + 2 * keys
        assert once <= bytes_read(call) <= most * once
        out = sum(math.prod(x.shape) * x.dtype.itemsize for x, _ in call.outputs)
        assert out >= queries
        assert out <= bytes_written(call) <= 1.05 * out
