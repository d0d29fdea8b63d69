"""Attention kernels. They know "a prefix k, v", not cartridges."""

from cartridges_jax.attention.api import attention
from cartridges_jax.attention.mask import Mask
from cartridges_jax.attention.vjp import SAVED_NAMES

__all__ = ["SAVED_NAMES", "Mask", "attention"]
