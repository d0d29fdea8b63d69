"""The HTML report: tables and plots of results.json in one file without outside parts."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import matplotlib
from etils import epath

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from cartridges_jax import files
from cartridges_jax.evaluation.arms import (
    CARTRIDGE,
    FULL_CONTEXT,
    FULL_KV,
    NO_CONTEXT,
    TRUNCATED,
)

_TEMPLATE = epath.Path(__file__).parent / "report.html.jinja"
EXAMPLES = 14  # questions shown with all answers
_COLORS = {
    NO_CONTEXT: "#b0b0b0",
    TRUNCATED: "#d8a24a",
    CARTRIDGE: "#2a6fb0",
    FULL_CONTEXT: "#3b8f57",
    FULL_KV: "#8cc3a0",
}


def _svg(draw: Callable[[Any], None], width: float = 6.4, height: float = 3.4) -> str:
    """Draws one plot and returns it as inline SVG; the same data gives the same bytes."""
    with plt.rc_context({"svg.hashsalt": "cartridges", "font.size": 10, "axes.grid": True,
                         "grid.alpha": 0.3, "axes.spines.top": False,
                         "axes.spines.right": False, "text.parse_math": False}):  # fmt: skip
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
        plt.close(figure)
    return out.getvalue().split("?>", 1)[-1].split('dtd">', 1)[-1]


def _percent(share: dict[str, Any]) -> str:
    if share["n"] == 0:
        return "–"
    return f"{100 * share['value']:.1f} % ({100 * share['low']:.0f}–{100 * share['high']:.0f})"


def times_smaller(full: int, own: int) -> str:
    """How many times less memory than the full context; a context of nothing has no number."""
    return f"{full / own:.1f}x" if own else "-"


def human_bytes(count: int | float) -> str:
    """Bytes with a binary unit."""
    if count < 1024:
        return f"{count:.0f} B"
    unit = min(int(math.log2(count)) // 10, 3)
    return f"{count / 1024**unit:.1f} {('KiB', 'MiB', 'GiB')[unit - 1]}"


def accuracy_plot(results: dict[str, Any]) -> str:
    """Accuracy by question type, a bar for each arm."""
    accuracy, kinds = results["accuracy"], sorted(results["chance"])

    def draw(axes: Any) -> None:
        width = 0.8 / len(accuracy)
        for i, (arm, scores) in enumerate(accuracy.items()):
            shares = [scores["by_type"][kind] for kind in kinds]
            x = [j + i * width for j in range(len(kinds))]
            values = [100 * s["value"] for s in shares]
            error = [
                [max(0.0, 100 * (s["value"] - s["low"])) for s in shares],
                [max(0.0, 100 * (s["high"] - s["value"])) for s in shares],
            ]
            axes.bar(x, values, width, label=arm, color=_COLORS.get(arm), yerr=error,
                     error_kw={"lw": 0.7, "alpha": 0.6})  # fmt: skip
        axes.set_xticks([j + 0.4 - width / 2 for j in range(len(kinds))], kinds)
        axes.set_ylabel("right answers, %")
        axes.set_ylim(0, 105)
        axes.legend(ncols=len(accuracy), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.15))

    return _svg(draw, width=9.0, height=3.8)


def training_plot(runs: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Loss (KL to the teacher) over steps, one line a run."""

    def draw(axes: Any) -> None:
        for name, rows in runs.items():
            axes.plot([r["step"] for r in rows], [r["kl"] for r in rows], label=name, lw=1)
        axes.set_xlabel("step")
        axes.set_ylabel("KL to the teacher, nats a token")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)

    return _svg(draw)


def bar_plot(values: dict[str, float], label: str) -> str:
    """One bar an arm, with its number."""

    def draw(axes: Any) -> None:
        names = list(values)
        bars = axes.barh(
            names, list(values.values()), color=[_COLORS.get(n, "#2a6fb0") for n in names]
        )
        axes.bar_label(bars, fmt="{:,.0f}", padding=3)
        axes.set_xlabel(label)
        axes.margins(x=0.18)

    return _svg(draw, height=0.8 + 0.5 * len(values))


def write_report(
    path: epath.Path,
    results: dict[str, Any],
    *,
    title: str = "Evaluation of a cartridge",
    notes: Sequence[str] = (),
    extra_plots: Sequence[tuple[str, str]] = (),
) -> None:
    """Writes the report of one evaluation.

    Args:
      path: of the HTML file.
      results: as `evaluate` returns.
      title: heading.
      notes: sentences a reader must know to judge the figures.
      extra_plots: (caption, SVG) shown before the tables.
    """
    plots = list(extra_plots)
    if "accuracy" in results:
        plots.append(("Accuracy by question type, with 95 % intervals", accuracy_plot(results)))
    memory = {name: arm["kv_bytes"] / 1024 for name, arm in results["arms"].items()}
    plots.append(("Memory: KV cache of one context", bar_plot(memory, "KiB")))
    rates = {
        name: arm["decode_tokens_per_s"]["median"]
        for name, arm in results["arms"].items()
        if "decode_tokens_per_s" in arm
    }
    if rates:
        batch = max(
            a.get("decode_tokens_per_s", {}).get("batch", 0) for a in results["arms"].values()
        )
        caption = f"Throughput: decoding for {batch} requests at once"
        plots.append((caption, bar_plot(rates, "tokens a second, all requests together")))
    environment = jinja2.Environment(autoescape=True)
    environment.filters |= {
        "percent": _percent,
        "bytes": human_bytes,
        "times_smaller": times_smaller,
    }
    page = environment.from_string(_TEMPLATE.read_text()).render(
        title=title,
        results=results,
        notes=[*notes, *(f"{n}: {a['note']}." for n, a in results["arms"].items() if a["note"])],
        plots=plots,
        examples=examples(results),
    )
    files.write_bytes(path, page.encode())


def examples(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Picks questions of every type in turn."""
    by_type: dict[str, list[dict[str, Any]]] = {}
    for row in results.get("answers", []):
        by_type.setdefault(row["type"], []).append(row)
    rounds = [rows[i] for i in range(EXAMPLES) for rows in by_type.values() if i < len(rows)]
    return rounds[:EXAMPLES]


def summary_table(results: dict[str, Any]) -> str:
    """The arms of an evaluation as a table for the terminal."""
    full = results["arms"][FULL_CONTEXT]["kv_bytes"]
    head = ["context", "tokens", "KV cache", "smaller"]
    with_marks = "accuracy" in results
    head += ["accuracy (95 %)", "agreement (95 %)", "KL"] if with_marks else ["KL", "log-ppl"]
    with_rate = any("decode_tokens_per_s" in arm for arm in results["arms"].values())
    rows = [[*head, "tok/s"] if with_rate else head]
    for name, arm in results["arms"].items():
        cells = [
            name,
            str(arm["tokens"]),
            human_bytes(arm["kv_bytes"]),
            times_smaller(full, arm["kv_bytes"]),
        ]
        if with_marks:
            marks = results["accuracy"][name]
            cells += [_percent(marks["all"]), _percent(marks["agreement"])]
            cells.append(f"{arm['in_context']['kl']:.3f}" if "in_context" in arm else "")
        else:
            held = arm["held_out"]
            cells += [f"{held['kl']:.4f}", f"{held['log_perplexity']:.4f}"]
        if with_rate:
            rate = arm.get("decode_tokens_per_s", {}).get("median")
            cells.append(f"{rate:,.0f}" if rate else "")
        rows.append(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [""]
    for row in rows:
        first, *rest = (c.ljust(w) if not i else c.rjust(w) for i, (c, w) in
                        enumerate(zip(row, widths, strict=True)))  # fmt: skip
        lines.append("  ".join([first, *rest]).rstrip())
    if with_marks:
        n = results["accuracy"][FULL_CONTEXT]["all"]["n"]
        lines.append(
            f"({n} questions with known answers; agreement: both right, or the same words as with "
            "the full\n context; KL in nats a token to the full context, over its own answers)"
        )
        known = results["accuracy"][CARTRIDGE]["where_reference_is_right"]
        lines.append(
            f"Of the {known['n']} questions that the full context gets right, the cartridge gets "
            f"{_percent(known)}."
        )
    elif "held_out" in results:
        held = results["held_out"]
        lines.append(
            f"({held['conversations']} held-out conversations; KL and log-perplexity in nats a "
            "token, against the teacher, which reads\n just the chunk that each is about: the full "
            "context is not 0)"
        )
    lines += [f"note: {n}: {a['note']}" for n, a in results["arms"].items() if a["note"]]
    return "\n".join(lines)
