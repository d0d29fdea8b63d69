"""Attention over a shared prefix and a row's own keys. Kernels know "a prefix", not cartridges."""

from cartridges_jax.attention.api import attention

__all__ = ["attention"]
