"""Plans as people read them, and as JSON."""

import dataclasses
from typing import Any

from cartridges_jax.planning import chips
from cartridges_jax.planning.plan import Asked, Plan
from cartridges_jax.planning.serve import Serving

GIB = 2**30


def training(
    asked: Asked, found: Plan, share: float, price: float | None
) -> tuple[list[str], dict[str, Any]]:
    """The plan of a training job, in lines and in fields."""
    where, layout, settings, work = found.where, found.layout, found.training, found.work
    steps = settings.num_steps
    seconds = found.step_seconds(share)
    hours = steps * seconds / 3600
    price = where.price if price is None else price
    money = None if price is None else hours * price
    bound = max(found.seconds(share), key=lambda name: found.seconds(share)[name])
    at_once = settings.rows_at_once or settings.rows_per_step
    memory = dataclasses.asdict(found.memory)
    fields = {
        "slice": where.name,
        "chips": where.chips,
        "devices": where.devices,
        "model_parameters": asked.config.num_params(),
        "mesh": {"data": layout.data, "model": layout.model, "fsdp": layout.fsdp},
        "rows_at_once": at_once,
        "largest_rows_at_once": found.largest_rows_at_once,
        "save_products": layout.save_products,
        "cartridges": layout.cartridges,
        "fits": True,
        "by": "the TPU compiler" if found.compiled else "arithmetic",
        "hbm_gib": round(found.hbm_bytes / GIB, 2),
        "device_gib": round(where.chip.memory / GIB, 1),
        "counted_gib": {kind: round(size / GIB, 2) for kind, size in memory.items()},
        "compiled": found.compiled,
        "flops_per_device": work.flops,
        "bytes_moved_per_device": work.bytes_moved,
        "roofline_step_s": found.seconds(),
        "step_s": seconds,
        "bound_by": bound,
        "tokens_per_s_per_chip": {
            "roofline": round(found.tokens_per_chip()),
            f"at {share:.0%} of peak": round(found.tokens_per_chip(share)),
        },
        "steps": steps,
        "hours": hours,
        "dollars": money,
        "prices_of": chips.prices()["date"],
    }
    kinds = ", ".join(f"{kind} {size / GIB:.1f}" for kind, size in memory.items())
    how = f"{'FSDP, ' if layout.fsdp else ''}{at_once} rows at once, "
    how += "products saved" if layout.save_products else "layers computed again"
    received = found.compiled.get("received", {})
    links = ", ".join(f"{kind} {size / 1e9:.1f} GB" for kind, size in received.items())
    roof = found.seconds()
    lines = [
        f"slice:     {where.name}: {where.chips} chips"
        + (f", {where.devices} devices" if where.devices != where.chips else ""),
        f"step:      {layout.cartridges} x {settings.num_slots} slots, {settings.rows_per_step} "
        f"rows of {settings.row_length} tokens{' for each' if layout.cartridges > 1 else ''}",
        f"layout:    mesh {layout.data} x {layout.model} (rows x weights), {how}",
        f"memory:    {found.hbm_bytes / GIB:.1f} of {where.chip.memory / GIB:.0f} GiB a device, by "
        f"{fields['by']}: fits (counted: {kinds}); about {found.largest_rows_at_once} rows at once "
        "would",
        f"roofline:  {', '.join(f'{name} {roof[name]:.2f} s' for name in roof)}"
        + (f" ({links})" if links else ""),
        f"speed:     {seconds:.2f} s a step at {share:.0%} of peak, bound by {bound}; "
        f"{found.tokens_per_chip(share):,.0f} tokens/s/chip (roofline "
        f"{found.tokens_per_chip():,.0f})",
        f"training:  {steps:,} steps, {work.tokens * steps / 1e6:,.0f} M tokens: {hours:.1f} h"
        + _money(money, price),
        f"flags:     {_flags(layout, settings)}",
    ]
    return lines, fields


def _money(money: float | None, price: float | None) -> str:
    if money is None:
        return " (no price is known; give --price)"
    return f", ${money:,.0f} at ${price:,.2f} an hour (list of {chips.prices()['date']})"


def _flags(layout: Any, settings: Any) -> str:
    given = [f"--mesh_data={layout.data}", f"--mesh_model={layout.model}"]
    given += ["--fsdp"] if layout.fsdp else []
    given.append(f"--rows_at_once={settings.rows_at_once or settings.rows_per_step}")
    given.append(f"--recompute={'nothing' if layout.save_products else 'layers'}")
    return " ".join(given)


def serving(found: Serving) -> tuple[list[str], dict[str, Any]]:
    """The plan of a decode step, in lines and in fields."""
    fields = dataclasses.asdict(found)
    fields["where"] = found.where.name
    rate = found.requests / found.step_seconds
    fields |= {"step_s": found.step_seconds, "tokens_per_s": rate}
    by = "the TPU compiler" if found.is_compiled else "arithmetic"
    lines = [
        f"slice:     {found.where.name}: {found.where.chips} chips, mesh {found.data} x "
        f"{found.model} (requests x weights)",
        f"memory:    {found.hbm_bytes / GIB:.1f} of {found.where.chip.memory / GIB:.0f} GiB a "
        f"device, by {by}: fits (weights {found.weights / GIB:.1f}, requests' own tokens "
        f"{found.cache / GIB:.1f}, cartridge {found.cartridge / GIB:.2f})",
        f"roofline:  {1e3 * found.step_seconds:.1f} ms a step, {rate:,.0f} tokens/s in all",
        f"unshared:  {found.full_cache / GIB:.1f} GiB a device if each had a cartridge of its own",
    ]
    return lines, fields
