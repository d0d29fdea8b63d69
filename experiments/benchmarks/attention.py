"""Attention behind a shared prefix, forward and backward, beside concatenation and torch.

    python -m experiments.benchmarks.attention

Float32 on the CPU: 8 heads on 4 kv heads of 32, a prefix of 128 slots, rows of one segment each or
packed with segments of about 350. Ours against the prefix concatenated to every row's keys and
`jax.nn.dot_product_attention`, and against torch's `scaled_dot_product_attention` on the same
arrays, in turn, `--repeats` times; beside them the time that the visible products alone would take
at the speed of a large matrix product. About five minutes on two cores. The result is committed as
experiments/results/attention.json.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags

from cartridges_jax.attention import attention
from cartridges_jax.sharding import DATA, MODEL, TOKENS_BT, make_mesh, place
from experiments.benchmarks.measure import alternate, product_flops, spread
from experiments.record import write_result

_OUT = flags.DEFINE_string("out", "experiments/results/attention.json", "Result file.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed runs of each form, in turn.")

N, K, H, SLOTS = 8, 4, 32, 128
CASES = {  # rows, tokens, tokens of a segment
    "B 32, T 256": (32, 256, 256),
    "B 8, T 1024": (8, 1024, 1024),
    "B 4, T 2048, packed": (4, 2048, 350),
}


def arrays_of(rows: int, tokens: int, segment: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "q": (rows, tokens, N, H), "k": (rows, tokens, K, H), "v": (rows, tokens, K, H),
        "prefix_k": (SLOTS, K, H), "prefix_v": (SLOTS, K, H), "d_out": (rows, tokens, N, H),
    }  # fmt: skip
    made = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    start = np.arange(tokens) // segment * segment
    return made | {"start": np.broadcast_to(start, (rows, tokens)).astype(np.int32)}


def visible(start: np.ndarray) -> np.ndarray:
    """The mask [B, 1, T, P + T] that concatenation needs."""
    rows, tokens = start.shape
    key = np.arange(tokens)
    own = (key <= key[:, None]) & (key >= start[:, :, None])
    live = np.ones((rows, tokens, SLOTS), bool)
    return np.concatenate([live, own], axis=-1)[:, None]


def jax_forms(x: dict[str, np.ndarray], mesh: Any) -> dict[str, Any]:
    """Compiled functions without arguments, by name."""
    heads, slots = jax.P(DATA, None, MODEL, None), jax.P(None, MODEL, None)
    names = ("q", "k", "v", "prefix_k", "prefix_v")
    with jax.set_mesh(mesh):
        placed = [place(mesh, x[n], slots if n.startswith("prefix") else heads) for n in names]
        d_out = place(mesh, x["d_out"], heads)
        start = place(mesh, x["start"], TOKENS_BT)
        mask = place(mesh, visible(x["start"]), jax.P(DATA, None, None, None))

    def ours(q, k, v, *prefix):
        return attention(q, k, v, prefix=prefix, segment_start=start, scale=H**-0.5)

    def concatenated(q, k, v, *prefix):
        def behind(slots, own):
            shape = (own.shape[0], *slots.shape)
            repeated = jnp.broadcast_to(slots, shape, out_sharding=heads)
            return jnp.concatenate([repeated, own], axis=1)

        keys, values = (behind(s, own) for s, own in zip(prefix, (k, v), strict=True))
        return jax.nn.dot_product_attention(q, keys, values, mask=mask, implementation="xla")

    def passes(form: Callable[..., jax.Array]) -> Any:
        def both(*arrays):
            out, pull = jax.vjp(form, *arrays)
            return out, *pull(d_out)

        with jax.set_mesh(mesh):
            return jax.jit(both).lower(*placed).compile()

    compiled = {"ours": passes(ours), "concatenation": passes(concatenated)}
    return {name: (c, placed) for name, c in compiled.items()}


def torch_form(x: dict[str, np.ndarray]) -> Callable[[], list[torch.Tensor]]:
    names = ("q", "k", "v", "prefix_k", "prefix_v")
    leaves = [torch.tensor(x[n], requires_grad=True) for n in names]
    d_out, mask = torch.tensor(x["d_out"]), torch.tensor(visible(x["start"]))

    def both() -> list[torch.Tensor]:
        q, k, v, prefix_k, prefix_v = leaves
        for leaf in leaves:
            leaf.grad = None
        keys, values = (
            torch.cat([slots.expand(len(own), *slots.shape), own], dim=1).transpose(1, 2)
            for slots, own in ((prefix_k, k), (prefix_v, v))
        )
        out = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, attn_mask=mask, enable_gqa=True
        ).transpose(1, 2)
        out.backward(d_out)
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    return both


def main(_) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    mesh, peak = make_mesh(1, 1), product_flops()
    result = {}
    for name, sizes in CASES.items():
        x = arrays_of(*sizes)
        compiled, by_torch = jax_forms(x, mesh), torch_form(x)
        found = {form: c(*arrays) for form, (c, arrays) in compiled.items()}
        for form, other in (("concatenation", found["concatenation"]), ("torch", by_torch())):
            for a, b in zip(found["ours"], other, strict=True):
                np.testing.assert_allclose(a, b, atol=2e-3, err_msg=form)

        def runner(c: Any, arrays: list[jax.Array]) -> Callable[[], object]:
            return lambda: jax.block_until_ready(c(*arrays))

        forms = {form: runner(*pair) for form, pair in compiled.items()}
        times = alternate(forms | {"torch SDPA": by_torch}, _REPEATS.value)
        pairs = int(visible(x["start"]).sum()) * N
        rows = {form: spread(t) for form, t in times.items()}
        for form, (c, _) in compiled.items():
            rows[form]["temporary_mib"] = round(c.memory_analysis().temp_size_in_bytes / 2**20, 1)
        ours = rows["ours"]["median_ms"]
        result[name] = {
            "forms": rows,
            "ratio": {f: round(r["median_ms"] / ours, 2) for f, r in rows.items() if f != "ours"},
            "limit_ms": round(2 * 7 * pairs * H / peak * 1e3, 2),
        }
        print(name, result[name], flush=True)
    shape = {"N": N, "K": K, "H": H, "slots": SLOTS, "dtype": "float32", "repeats": _REPEATS.value}
    versions = {"torch": torch.__version__, "product_gflops": round(peak / 1e9)}
    write_result(_OUT.value, {"shape": shape, **versions, "cases": result})


if __name__ == "__main__":
    app.run(main)
