"""Start weights that already hold the beginning of induction heads.

A model this small does not find in-context recall by itself in the minutes that two CPU cores give
it: without this, the trial stood at chance after 5 million tokens, with it lookup was at 0.9 after
1.5 million. Layer 0 gets heads that look 1, 2, 3 and about 5 tokens back and write what they see
into subspaces of their own; layer 1 gets heads that match "this token" with "the token before that
one" and copy. Everything stays trainable, and the result is plain Llama weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cartridges_jax.models.config import ModelConfig
from cartridges_jax.models.rope import rope_frequencies
from cartridges_jax.models.transformer import Transformer, initialize

EMBEDDING_SCALE = 0.08
CONSTANT = 4.0  # the constant embedding component, in units of EMBEDDING_SCALE
OFFSETS = (1, 2, 3, 5)
# Their wavelengths, in tokens, of which the nearest of the rope's frequencies are taken.
OFFSET_WAVELENGTHS = ((6, 20, 63, 200),) * 3 + ((36, 112, 353, 628),)
PEAK_SCORE = 24.0  # attention score at the wanted offset
STORED = 3.0  # strength of "the token d back" against the token itself
FIRST_LOW_WAVELENGTH = 6000  # tokens; to frequencies from here on distance matters little
DAMPING = 0.25  # of the ordinary start values in the heads touched here


def induction_initialize(config: ModelConfig, seed: int) -> Transformer:
    """Returns a transformer with at least 2 layers and 4 heads = kv heads on the current mesh."""
    D, H, N = config.hidden_size, config.head_dim, config.num_heads
    if config.num_layers < 2 or N < 4 or config.num_kv_heads != N:
        raise ValueError(f"needs L >= 2, N = K >= 4; got {config}")
    R = min(H, D // 4)  # dimensions of each subspace: of the token, and of what is d tokens back
    freq = rope_frequencies(config.rope, H)
    low = np.flatnonzero(2 * np.pi / freq > FIRST_LOW_WAVELENGTH)
    if 2 * len(low) < R:
        raise ValueError(f"{len(low)} frequencies are low, {R / 2} are needed; raise rope theta")
    model = initialize(config, seed)
    rng = np.random.default_rng(seed)
    weights = jax.tree.map(np.array, nnx.as_pure(nnx.state(model)))
    matrices = ("q", "k", "v", "o", "gate", "up", "down")
    blocks = {name: weights["blocks"][name]["weight"] for name in matrices}  # changed in place
    for name in matrices:
        blocks[name] *= 0.5 * D**-0.5 / blocks[name].std()
    for name in ("o", "down"):
        blocks[name] *= (2 * config.num_layers) ** -0.5
    embedding = rng.normal(size=weights["embedding"]["weight"].shape) * EMBEDDING_SCALE
    embedding[:, 0] = CONSTANT * EMBEDDING_SCALE
    weights["embedding"]["weight"] = embedding
    c = CONSTANT / np.sqrt((CONSTANT**2 + D - 1) / D)  # that component after the first norm

    basis = np.zeros((D, D))
    basis[1:, 1:] = np.linalg.qr(rng.normal(size=(D - 1, D - 1)))[0]
    token = basis[:, 1 : 1 + R]  # U: how a token is read
    stores = [basis[:, 1 + R * i : 1 + R * (i + 1)] for i in (1, 2)]
    stores += [np.linalg.qr(_without_constant(rng, D, R))[0] for _ in range(2)]

    # Layer 0: heads that look a fixed distance back (rope turns the pattern into a peak).
    for head, (offset, wavelengths) in enumerate(zip(OFFSETS, OFFSET_WAVELENGTHS, strict=True)):
        for name in ("q", "k", "v"):
            blocks[name][0, :, head] *= DAMPING
        strength = np.sqrt(PEAK_SCORE * np.sqrt(H) / len(wavelengths)) / c
        for wavelength in wavelengths:
            i = np.abs(np.log(freq * wavelength / (2 * np.pi))).argmin()
            blocks["q"][0, 0, head, i] += strength
            blocks["k"][0, 0, head, i] += strength * np.cos(freq[i] * offset)
            blocks["k"][0, 0, head, i + H // 2] += strength * np.sin(freq[i] * offset)
        blocks["v"][0, :, head, :R] = token
        blocks["o"][0, head] *= DAMPING
        blocks["o"][0, head, :R] = STORED * EMBEDDING_SCALE * stores[head].T

    # Layer 1: heads whose query and key meet where a word and its predecessor match.
    one, two, three, five = stores
    matches = (
        (3.0, ((token, one),)),
        (1.5, ((token, one), (one, two), (two, three))),
        (1.5, ((one, two), (two, three), (five, five))),
    )
    columns = np.concatenate([low, low + H // 2])
    for head, (strength, pairs) in enumerate(matches):
        mix = np.linalg.qr(rng.normal(size=(len(columns), R)))[0].T  # [R, columns]
        copy = np.linalg.qr(_without_constant(rng, D, R))[0]
        for name in ("q", "k", "v"):
            blocks[name][1, :, head] *= DAMPING
        for query, key in pairs:
            blocks["q"][1, :, head, columns] += strength * (query @ mix).T
            blocks["k"][1, :, head, columns] += strength * (key @ mix).T
        blocks["v"][1, :, head, :R] = copy
        blocks["o"][1, head] *= DAMPING
        blocks["o"][1, head, :R] = STORED * EMBEDDING_SCALE * copy.T

    state = nnx.state(model)
    placed = jax.tree.map(
        lambda old, new: jax.device_put(jnp.asarray(new, old.dtype), old.sharding),
        nnx.as_pure(state),
        weights,
    )
    return nnx.merge(nnx.graphdef(model), placed)


def _without_constant(rng: np.random.Generator, D: int, H: int) -> np.ndarray:
    matrix = rng.normal(size=(D, H))
    matrix[0] = 0.0
    return matrix
