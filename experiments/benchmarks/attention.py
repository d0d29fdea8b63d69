"""Attention behind a shared prefix, forward and backward, beside concatenation and torch.

    python -m experiments.benchmarks.attention
    JAX_PLATFORMS=cuda python -m experiments.benchmarks.attention

On the CPU in float32: 8 heads on 4 kv heads of 32, a prefix of 128 slots, rows of one segment each
or packed with segments of about 350; against torch's `scaled_dot_product_attention` on the same
arrays. On a GPU in bfloat16: 32 heads on 8 kv heads of 128 behind 2,048 slots, as Llama-3.1-8B has
them; against cuDNN on concatenated keys, and against torch's FlexAttention with the same mask. On
both against the prefix concatenated to every row's keys and `jax.nn.dot_product_attention`.

All run in turn, `--repeats` times; beside them the time that the visible products alone would take
at the speed of a large matrix product. About five minutes on two cores. Results are committed as
experiments/results/attention.json and attention_gpu.json.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags, logging
from torch.nn.attention import flex_attention as flex

from cartridges_jax.attention import Mask, attention
from cartridges_jax.sharding import DATA, MODEL, TOKENS_BT, make_mesh, place
from experiments.benchmarks.measure import alternate, product_flops, spread
from experiments.record import write_result

_OUT = flags.DEFINE_string(
    "out", "", "Result file; empty: experiments/results/attention.json, attention_gpu.json on GPU."
)
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed runs of each form, in turn.")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured on a kind of machine."""

    N: int
    K: int
    H: int
    slots: int
    dtype: str
    cases: dict[str, tuple[int, int, int]]  # rows, tokens, tokens of a segment
    product_side: int  # of the matrix product that tells the machine's speed
    error: float  # between two forms, of the norm


SETTINGS = {
    "cpu": Setting(
        8, 4, 32, 128, "float32",
        {
            "B 32, T 256": (32, 256, 256),
            "B 8, T 1024": (8, 1024, 1024),
            "B 4, T 2048, packed": (4, 2048, 350),
        },
        2048, 1e-4,
    ),
    "gpu": Setting(
        32, 8, 128, 2048, "bfloat16",
        {
            "B 32, T 512": (32, 512, 512),
            "B 8, T 2048": (8, 2048, 2048),
            "B 8, T 2048, packed": (8, 2048, 350),
        },
        8192, 2e-2,
    ),
}  # fmt: skip


def arrays_of(s: Setting, rows: int, tokens: int, segment: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "q": (rows, tokens, s.N, s.H), "k": (rows, tokens, s.K, s.H), "v": (rows, tokens, s.K, s.H),
        "prefix_k": (s.slots, s.K, s.H), "prefix_v": (s.slots, s.K, s.H),
        "d_out": (rows, tokens, s.N, s.H),
    }  # fmt: skip
    made = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    start = np.arange(tokens) // segment * segment
    return made | {"start": np.broadcast_to(start, (rows, tokens)).astype(np.int32)}


def visible(start: np.ndarray, slots: int) -> np.ndarray:
    """The mask [B, 1, T, P + T] that concatenation needs."""
    rows, tokens = start.shape
    key = np.arange(tokens)
    own = (key <= key[:, None]) & (key >= start[:, :, None])
    live = np.ones((rows, tokens, slots), bool)
    return np.concatenate([live, own], axis=-1)[:, None]


def jax_forms(s: Setting, x: dict[str, np.ndarray], mesh: Any) -> dict[str, Any]:
    """Compiled functions and their arguments, by name."""
    heads, slots = jax.P(DATA, None, MODEL, None), jax.P(None, MODEL, None)
    names = ("q", "k", "v", "prefix_k", "prefix_v")
    with jax.set_mesh(mesh):
        specs = [slots if name.startswith("prefix") else heads for name in names]
        placed = [
            place(mesh, x[name], spec).astype(s.dtype)
            for name, spec in zip(names, specs, strict=True)
        ]
        masks = (
            place(mesh, x["start"], TOKENS_BT),
            place(mesh, visible(x["start"], s.slots), jax.P(DATA, None, None, None)),
        )
        d_out = place(mesh, x["d_out"], heads).astype(s.dtype)

    def ours(start, mask, q, k, v, *prefix):
        del mask
        return attention(q, k, v, Mask(start), prefix=prefix, scale=s.H**-0.5)

    def concatenated(start, mask, q, k, v, *prefix, implementation: Any = "xla"):
        def behind(slots, own):
            shape = (own.shape[0], *slots.shape)
            repeated = jnp.broadcast_to(slots, shape, out_sharding=heads)
            return jnp.concatenate([repeated, own], axis=1)

        del start
        keys, values = (behind(s, own) for s, own in zip(prefix, (k, v), strict=True))
        return jax.nn.dot_product_attention(
            q, keys, values, mask=mask, implementation=implementation
        )

    arguments = (masks, d_out, placed)  # none closed over: large constants compile for minutes

    def passes(name: str, form: Callable[..., jax.Array]) -> Any:
        logging.info("compiling %s", name)

        def both(masks, d_out, placed):
            out, pull = jax.vjp(functools.partial(form, *masks), *placed)
            return out, *pull(d_out)

        with jax.set_mesh(mesh):
            return jax.jit(both).lower(*arguments).compile()

    forms = {"ours": ours, "concatenation": concatenated}
    if jax.default_backend() == "gpu":
        forms["concatenation, cuDNN"] = functools.partial(concatenated, implementation="cudnn")
    return {name: (passes(name, form), arguments) for name, form in forms.items()}


def torch_attention(s: Setting, x: dict[str, np.ndarray], device: str) -> Callable[..., Any]:
    """FlexAttention on a GPU, else SDPA: values [B, N, T, H] of queries, keys and values."""
    if device == "cpu":
        mask = torch.tensor(visible(x["start"], s.slots))
        sdpa = torch.nn.functional.scaled_dot_product_attention
        return functools.partial(sdpa, attn_mask=mask, enable_gqa=True)
    start = torch.tensor(x["start"], device=device)

    def sees(b: Any, h: Any, query: Any, key: Any) -> Any:
        del h
        own = key - s.slots
        return (own < 0) | ((own <= query) & (own >= start[b, query]))

    rows, tokens = start.shape
    blocks = flex.create_block_mask(sees, rows, None, tokens, s.slots + tokens, device=device)
    compiled = torch.compile(flex.flex_attention, dynamic=False)
    return functools.partial(compiled, block_mask=blocks, enable_gqa=True)


def torch_form(s: Setting, x: dict[str, np.ndarray]) -> Callable[[], list[torch.Tensor]]:
    names = ("q", "k", "v", "prefix_k", "prefix_v")
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    on_device = {"device": device, "dtype": getattr(torch, s.dtype)}
    leaves = [torch.tensor(x[n], requires_grad=True, **on_device) for n in names]
    d_out, attend = torch.tensor(x["d_out"], **on_device), torch_attention(s, x, device)

    def both() -> list[torch.Tensor]:
        q, k, v, prefix_k, prefix_v = leaves
        for leaf in leaves:
            leaf.grad = None
        keys, values = (
            torch.cat([slots.expand(len(own), *slots.shape), own], dim=1).transpose(1, 2)
            for slots, own in ((prefix_k, k), (prefix_v, v))
        )
        out = attend(q.transpose(1, 2), keys, values).transpose(1, 2)
        out.backward(d_out)
        if device == "cuda":
            torch.cuda.synchronize()
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    return both


def check(form: str, ours: Any, other: Any, error: float) -> None:
    """Raises if two forms' values or gradients differ by more than `error` of their norm."""
    for i, (a, b) in enumerate(zip(ours, other, strict=True)):
        b = b.float().cpu() if isinstance(b, torch.Tensor) else b
        a, b = (np.asarray(y, np.float32) for y in (a, b))
        found = np.linalg.norm(a - b) / np.linalg.norm(b)
        if not found <= error:
            raise AssertionError(f"output {i} of {form} is off by {found:.1e} of its norm")


def main(_) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    platform = jax.default_backend()
    s = SETTINGS[platform]
    by_torch_name = "torch SDPA" if platform == "cpu" else "torch FlexAttention"
    mesh, peak = make_mesh(1, 1), product_flops(s.product_side, s.dtype)
    result = {}
    for name, sizes in s.cases.items():
        x = arrays_of(s, *sizes)
        compiled, by_torch = jax_forms(s, x, mesh), torch_form(s, x)
        found = {form: c(*arrays) for form, (c, arrays) in compiled.items()}
        logging.info("compiling %s", by_torch_name)
        for form, other in (found | {by_torch_name: by_torch()}).items():
            check(form, found["ours"], other, s.error)
        del found

        def runner(c: Any, arrays: tuple[Any, ...]) -> Callable[[], object]:
            return lambda: jax.block_until_ready(c(*arrays))

        forms = {form: runner(*pair) for form, pair in compiled.items()}
        times = alternate(forms | {by_torch_name: by_torch}, _REPEATS.value)
        pairs = int(visible(x["start"], s.slots).sum()) * s.N
        rows = {form: spread(t) for form, t in times.items()}
        for form, (c, _) in compiled.items():
            rows[form]["temporary_mib"] = round(c.memory_analysis().temp_size_in_bytes / 2**20, 1)
        ours = rows["ours"]["median_ms"]
        result[name] = {
            "forms": rows,
            "ratio": {f: round(r["median_ms"] / ours, 2) for f, r in rows.items() if f != "ours"},
            "limit_ms": round(2 * 7 * pairs * s.H / peak * 1e3, 2),
        }
        print(name, result[name], flush=True)
    shape = {"N": s.N, "K": s.K, "H": s.H, "slots": s.slots, "dtype": s.dtype}
    versions = {"torch": torch.__version__, "product_gflops": round(peak / 1e9)}
    out = "attention.json" if platform == "cpu" else f"attention_{platform}.json"
    write_result(
        _OUT.value or f"experiments/results/{out}",
        {"shape": shape | {"repeats": _REPEATS.value}, **versions, "cases": result},
    )


if __name__ == "__main__":
    app.run(main)
