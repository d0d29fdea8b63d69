"""Attention kernels. They know "a prefix k, v" and pages, not cartridges."""

from cartridges_jax.attention.api import attention
from cartridges_jax.attention.mask import Mask
from cartridges_jax.attention.paged import PagedKV, Step, Visits, paged_attention
from cartridges_jax.attention.vjp import SAVED_NAMES

__all__ = [
    "SAVED_NAMES",
    "Mask",
    "PagedKV",
    "Step",
    "Visits",
    "attention",
    "paged_attention",
]
