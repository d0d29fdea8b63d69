"""Attention kernels. They know "a prefix k, v", not cartridges."""

from cartridges_jax.attention.api import SAVED_NAMES, attention

__all__ = ["SAVED_NAMES", "attention"]
