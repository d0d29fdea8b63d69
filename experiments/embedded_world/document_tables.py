"""Puts the committed results into the tables of the model card, README.md beside this file.

    python -m experiments.embedded_world.document_tables

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; what is between them is written anew
from experiments/results/embedded_world/, or says that there is no result yet. A test holds the card
to what this would write.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from absl import app
from etils import epath

from cartridges_jax import files
from experiments.embedded_world import studied_documents

ROOT = epath.Path(__file__).parent.parent.parent
RESULTS = ROOT / "experiments" / "results" / "embedded_world"
DOCUMENTS = (epath.Path(__file__).parent / "README.md",)
FULL, NONE = "full context", "no context"
SETS = ("500", "1000", "1900", "held-out genre, 1000", "known words, 1000")
RANDOM = "random vectors"
CURVE = ("curve 250", "500", "curve 750", "1000", "curve 1400", "1900")

Result = dict[str, Any]


def _percent(share: Result, interval: bool = True) -> str:
    if share["value"] is None:
        return ""
    value, low, high = (f"{100 * share[key]:.1f}" for key in ("value", "low", "high"))
    return f"{value} % ({low} to {high})" if interval else f"{value} %"


def _difference(share: Result) -> str:
    value, low, high = (f"{100 * share[key]:+.1f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _source(result: Result, more: str = "") -> str:
    made = result["made"]
    return f"`{made['command']}`, {made['date']}, {made['hardware']}{more}"


def _of_today(then: Result, now: Result) -> str:
    """Says so where a result was made with other settings than the code has today."""
    same = all(then.get(key) == value for key, value in json.loads(json.dumps(now)).items())
    return "" if same else "; settings have changed since"


def _not_measured(name: str) -> str:
    return f"(Not measured yet with this model: `python -m experiments.embedded_world.{name}`.)"


def scores(result: Result) -> str:
    """Accuracy in context by type of question and length."""
    sets = result["sets"]
    kinds = sorted(sets["500"]["types"])
    rows = []
    for kind in kinds:
        of = [sets[name]["types"].get(kind) for name in SETS]
        cells = [f"{_percent(x[FULL])}, n={x[FULL]['n']}" if x else "" for x in of]
        first = sets["500"]["types"][kind]
        # "calls" knows chance as 0, though its answer is one value and not several.
        chance = "-" if kind in ("absent", "calls") else f"{100 * first['chance']:.1f} %"
        rows.append((kind, *cells, _percent(first[NONE], False), chance))
    tokens = _mean_tokens(sets)
    head = [f"{t:.0f} tokens" for t in tokens[:3]]
    head += [f"held-out genre, {tokens[3]:.0f}", "the same in words of training"]
    table = _table(("question type", *head, "no context", "chance"), rows)
    return f"{table}\n\n({_source(result)}, one model)"


def _mean_tokens(sets: Result) -> list[float]:
    return [sum(sets[name]["tokens"]) / len(sets[name]["tokens"]) for name in SETS]


def conclusions(result: Result) -> str:
    """Questions of two answers by their conclusion alone, and what is not in the text."""
    sets = result["sets"]
    rows = []
    for kind in ("yes/no", "compare", "order"):
        of = [sets[name]["types"][kind]["conclusion"] for name in SETS[:3]]
        none = sets["500"]["types"][kind]["conclusion"][NONE]
        rows.append((kind, *(_percent(x[FULL]) for x in of), _percent(none)))
    absent = [f"{100 * sets[name]['absent']['balanced']:.1f} %" for name in SETS[:3]]
    rows.append(("not in the text, balanced accuracy", *absent, "50 % by chance"))
    head = (f"{t:.0f} tokens" for t in _mean_tokens(sets)[:3])
    return _table(("conclusion", *head, NONE), rows)


def length_curve(result: Result) -> str:
    """Accuracy over the length of the text."""
    sets = result["sets"]
    rows = []
    for name in CURVE:
        tokens = sets[name]["tokens"]
        of = [sets[name]["types"][kind][FULL] for kind in ("lookup", "reverse", "quote")]
        rows.append((f"{sum(tokens) / len(tokens):.0f}", *(_percent(x) for x in of)))
    return _table(("tokens", "lookup", "reverse", "quote"), rows)


def self_study(result: Result) -> str:
    """The model's own questions, judged by the ground truth."""
    rows = [
        (
            of["genre"], _percent(of["valid"]), f"{100 * of['distinct']:.0f} %",
            _percent(of["right"]), f"{100 * of['covered']:.0f} % of {of['facts']}",
            _skimmed(of["skimmed"]), str(of["dropped"]),
        )
        for of in result["documents"].values()
    ]  # fmt: skip
    head = ("document", "can be answered from the text", "different", "answered right",
            "facts asked about", "refused of those skimmed", "dropped")  # fmt: skip
    decode, scoring = result["speed"]["decode"], result["speed"]["scoring"]
    rate = f"{decode['median']:,.0f} ({decode['min']:,.0f} to {decode['max']:,.0f})"
    return (
        f"{_table(head, rows)}\n\nDecoding 32 answers together behind a text of "
        f"{result['study']['tokens']} tokens: {rate} tokens/s, {decode['runs']} runs; scoring: "
        f"{scoring:,.0f} tokens of conversations a second, one run.\n"
        f"({_source(result, _of_today(result['study'], vars(studied_documents.STUDY)))})"
    )


def _skimmed(of: Result) -> str:
    refused, wrongly = of["answered with not in the text"], of["though elsewhere in the text"]
    return f"{refused} of {of['conversations']} ({wrongly} wrongly)"


def _arms(accuracy: Result) -> list[str]:
    """The arms as a reader wants them: what is good at all, then cartridges, then what is not."""
    order = ("full context", "full KV", "cartridge", "templates", RANDOM, "next token", "truncated")
    first = [arm for kind in order for arm in accuracy if arm.startswith(kind)]
    return [*first, NONE]


def _named(arm: str, slots: int | None, tokens: float) -> str:
    of = f", {slots} slots" if slots else ""
    names = {
        "full KV": "full KV, the text's own cache loaded as a cartridge",
        "cartridge": f"cartridge{of}",
        "templates": f"cartridge{of}, questions by template",
        RANDOM: f"cartridge{of}, from random vectors",
        "next token": f"cartridge{of}, next-token training on the text",
        "truncated": f"text truncated to {slots} tokens ({tokens:.0f} to the end of a line)",
    }
    return next((name for start, name in names.items() if arm.startswith(start)), arm)


def cartridges(result: Result) -> str:
    """Accuracy by the size of the cartridge, beside the controls."""
    short = result["short_documents"]
    accuracy, sizes = short["accuracy"], short["sizes"]
    tokens = short["tokens"]
    mean = tokens[FULL]
    several = len(short["documents"]) > 1

    def over(arm: Result) -> list[str]:
        of = arm.get("difference_over_documents")
        return [f"{100 * of['low']:+.1f} to {100 * of['high']:+.1f}"] if of else []

    rows = []
    for arm in _arms(accuracy):
        number = re.search(r"\d+$", arm)
        slots = int(number[0]) if number else None
        if arm in (RANDOM, "next token"):
            slots = short["baseline_slots"]
        of, all_ = sizes.get(f"cartridge {slots}", {}), accuracy[arm]["all"]
        with_facts = of and not arm.startswith("truncated")
        rows.append((
            f"{arm} ({mean:.0f} tokens)" if arm == FULL else _named(arm, slots, tokens[arm]),
            f"{of['compression']:.1f}x" if of else "",
            f"{of['facts_per_slot']:.2f}" if with_facts else "",
            _percent(all_),
            "" if arm == FULL else _difference(accuracy[arm]["difference_to_reference"]),
            *over(accuracy[arm]),
        ))  # fmt: skip
    head = (
        "context",
        "smaller than the text",
        "facts per slot",
        "accuracy (95 %)",
        "difference to full context, points",
        *(["over documents"] if several else []),
    )
    n = accuracy[FULL]["all"]["n"]
    more = f"; documents: {len(short['documents'])}, questions: {n}, one training each"
    more += _of_today(result["made_with"], studied_documents.SETTINGS)
    largest = ", ".join(
        f"{f'{of:.0f}x' if of else 'none'} with {questions}"
        for questions, of in short["largest_within_5_points"].items()
    )
    return (
        f"{_table(head, rows)}\n\nLargest compression whose interval stays above -5 points: "
        f"{largest}.\n\n({_source(result, more)})"
    )


def cartridges_by_type(result: Result) -> str:
    """Accuracy by type of question, in the full text and from cartridges."""
    accuracy = result["short_documents"]["accuracy"]
    arms = [arm for arm in _arms(accuracy) if arm.startswith((FULL, "cartridge"))]
    rows = []
    for kind, full in sorted(accuracy[FULL]["by_type"].items()):
        cells = [f"{100 * accuracy[arm]['by_type'][kind]['value']:.0f} %" for arm in arms]
        rows.append((kind, str(full["n"]), *cells))
    names = [arm if arm == FULL else f"{arm.split()[-1]} slots" for arm in arms]
    return _table(("question type", "n", *names), rows)


def cartridges_by_document(result: Result) -> str:
    """Each document's differences to full context, in points."""
    short = result["short_documents"]
    arms = [a for a in _arms(short["accuracy"]) if a.startswith(("cartridge", "templates", RANDOM))]
    rows = []
    for of, differences in zip(short["documents"], short["differences_by_document"], strict=True):
        about = f"{of['genre']}, {of['tokens']} tokens, {of['facts']} facts"
        rows.append((about, str(of["questions"]), *(_difference(differences[a]) for a in arms)))
    of_size = {"cartridge": "{} slots", "templates": "{}, questions by template"}
    names = [of_size[kind].format(slots) for kind, slots in map(str.split, arms[:-1])]
    return _table(("document", "n", *names, f"{short['baseline_slots']}, {RANDOM}"), rows)


def long_document(result: Result) -> str:
    """Accuracy on a document of twice the window."""
    if "long_document" not in result:  # of a table that is not finished
        return _not_measured("cartridge_table")
    long = result["long_document"]
    rows = [(arm, _percent(long["accuracy"][arm]["all"])) for arm in long["accuracy"]]
    tokens, n = long["document"]["tokens"], long["document"]["questions"]
    return _table((f"{tokens} tokens, {n} questions", "accuracy (95 %)"), rows)


TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {
    "scores": ("scores.json", scores),
    "conclusions": ("scores.json", conclusions),
    "length curve": ("scores.json", length_curve),
    "self-study": ("self_study_quality.json", self_study),
    "cartridges": ("cartridge_table.json", cartridges),
    "cartridges by type": ("cartridge_table.json", cartridges_by_type),
    "cartridges by document": ("cartridge_table.json", cartridges_by_document),
    "long document": ("cartridge_table.json", long_document),
}


def filled(text: str) -> str:
    """The document with every table as the results have it."""
    for name, (file, make) in TABLES.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if pattern.search(text):
            result = RESULTS / file
            table = _not_measured(result.stem)
            if result.exists():
                table = make(json.loads(result.read_text()))
            text = pattern.sub(lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text)
    return text


def main(_) -> None:
    for path in DOCUMENTS:
        text = path.read_text()
        if filled(text) != text:
            files.write_bytes(path, filled(text).encode())
            print(f"{path.relative_to(ROOT)} brought up to date")


if __name__ == "__main__":
    app.run(main)
