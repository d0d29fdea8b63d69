"""Plans decoding: requests that run together behind one cartridge."""

import dataclasses
from collections.abc import Sequence

import jax

from cartridges_jax.distillation.job import check_settings
from cartridges_jax.errors import InputError
from cartridges_jax.planning.chips import Slice
from cartridges_jax.planning.counting import head_weights, layer_weights
from cartridges_jax.planning.plan import GUESS, ROOM, Asked, mesh_of

FEW = 8  # requests of a device, at least, before weights are shared by fewer of them


@dataclasses.dataclass(frozen=True)
class Serving:
    """A decode step on a slice, in bytes and seconds of a device."""

    where: Slice
    data: int
    model: int
    requests: int
    weights: float
    cache: float  # of the requests' own tokens
    cartridge: float
    full_cache: float  # of all requests, if each had the text of so many tokens in its context
    hbm_bytes: float
    is_compiled: bool
    flops: float
    moved: float

    @property
    def step_seconds(self) -> float:
        """What peaks allow; a step gives each request a token."""
        chip = self.where.chip
        return max(self.flops / chip.flops, self.moved / chip.bandwidth)


def plan_serving(
    asked: Asked, candidates: Sequence[Slice], requests: int, request_tokens: int
) -> Serving:
    """The decode step on the first of some slices that takes it.

    Raises:
      InputError: if none does.
    """
    check_settings(asked.training)
    if asked.mesh_model < 0:
        raise InputError(f"mesh_model must not be below 0, got {asked.mesh_model}")
    if requests < 1 or request_tokens < 2:
        raise InputError("requests must be above 0, request_tokens above 1")
    total = asked.training.num_slots + request_tokens
    if total > asked.config.window:
        raise InputError(
            f"{total} slots and tokens exceed the model's window of {asked.config.window}"
        )
    reasons = []
    for where in candidates:
        for model in [asked.mesh_model] if asked.mesh_model else [1, 2, 4, 8, 16]:
            found = _on(asked, where, model, requests, request_tokens)
            if isinstance(found, Serving):
                return found
            reasons.append(f"{where.name}, mesh_model={model}: {found}")
    told = [reason for reason in reasons if "GiB" in reason] or reasons
    raise InputError(f"these requests fit nowhere asked for: {'; '.join(told[-3:])}")


def _on(asked: Asked, where: Slice, model: int, requests: int, tokens: int) -> Serving | str:
    c = asked.config
    if where.devices % model or c.vocab_size % model or c.mlp_size % model:
        return "does not divide the devices, the vocabulary or the MLP"
    if c.num_kv_heads % model and (model % c.num_kv_heads or c.num_heads % model):
        return "does not divide the heads"
    data = where.devices // model
    if requests % data:
        return f"{requests} requests cannot be shared out to {data} devices"
    size = 1.0 if asked.quantization == "int8" else 2.0
    heads = c.num_kv_heads / model if c.num_kv_heads % model == 0 else float(c.num_kv_heads)
    a_token = 2 * 2 * c.num_layers * heads * c.head_dim
    rows = requests / data
    matrices = layer_weights(c) + head_weights(c) * (2 - c.tie_embeddings)
    read = (layer_weights(c) + head_weights(c)) * size / model
    found = Serving(
        where=where, data=data, model=model, requests=requests,
        weights=matrices * size / model,
        cache=rows * tokens * a_token,
        cartridge=asked.training.num_slots * a_token,
        full_cache=rows * asked.training.num_slots * a_token,
        hbm_bytes=0.0, is_compiled=False,
        flops=rows * 2 * (layer_weights(c) + head_weights(c)) / model
        + rows * 4 * c.num_layers * c.num_heads * c.head_dim / model
        * (asked.training.num_slots + tokens / 2),
        moved=read + asked.training.num_slots * a_token + rows * tokens / 2 * a_token,
    )  # fmt: skip
    needed = found.weights + 2 * found.cache + found.cartridge
    if needed > GUESS * where.chip.memory:
        return f"needs about {needed / 2**30:.1f} GiB a device"
    if not where.is_tpu:
        return dataclasses.replace(found, hbm_bytes=needed)
    return _compiled(asked, found, tokens)


def _compiled(asked: Asked, found: Serving, tokens: int) -> Serving | str:
    from cartridges_jax.planning.compiler import compile_decode

    mesh = mesh_of(found.where, found.data, found.model)
    try:
        program = compile_decode(
            asked.config, mesh, rows=found.requests, row_tokens=tokens,
            num_slots=asked.training.num_slots, quantization=asked.quantization,
        )  # fmt: skip
    except jax.errors.JaxRuntimeError as error:
        return str(error).splitlines()[0][:120]
    if program.hbm_bytes > ROOM * found.where.chip.memory:
        return f"{program.hbm_bytes / 2**30:.1f} GiB a device, compiled"
    return dataclasses.replace(found, hbm_bytes=float(program.hbm_bytes), is_compiled=True)
