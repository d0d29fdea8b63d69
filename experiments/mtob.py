"""A cartridge of the grammar book of MTOB, with the paper's settings (arXiv 2506.06266, section 4).

    python -m experiments.mtob --out=runs/mtob --num_slots=4096 [--distributed]
    python -m experiments.mtob --smoke              # a made book of one page and a small model

The book has 484k tokens in LaTeX, of which the plain text is a part: more than a window of 128k.
Llama-3.1-8B-Instruct, 2 x 65,536 conversations, rows of 1,024 tokens, 128 a step, a rate of 1e-2.
Translations from Kalamang into English and back are scored by chrF (sacrebleu).

Training takes 0.6 h and $12 on v5e-16 by `cartridges plan --topology=v5e-16 --num_slots=4096
--rows_per_step=128 --row_length=1024 --conversations=131072` (2026-11-30); self-study comes before
it and takes longer. To expect: 33.5 chrF (the paper; 24.9 by next-token prediction). Not run yet.
"""

from absl import app

from cartridges_jax import distributed, files
from cartridges_jax.cartridge import Cartridge
from cartridges_jax.corpus import Document
from cartridges_jax.language_model import LanguageModel
from experiments import paper_run
from experiments.public_sets import records_of
from experiments.public_sets.mtob import SPLITS, Mtob

SETTINGS = paper_run.Settings(
    model="meta-llama/Llama-3.1-8B-Instruct",
    study={"num_conversations": 131_072, "chunk_min_tokens": 512, "chunk_max_tokens": 4096},
    training={"rows_per_step": 128, "row_length": 1024, "num_steps": 1000, "learning_rate": 1e-2},
)
LANGUAGES = {"ke": ("Kalamang", "English"), "ek": ("English", "Kalamang")}


def translated(model: LanguageModel, cartridge: Cartridge | None, pairs: list, split: str) -> float:
    """The chrF of greedy translations, with a cartridge or without."""
    import sacrebleu  # of the extra `experiments`

    source, target = LANGUAGES[split]
    asked = [
        f"Translate this sentence from {source} into {target}; answer with the translation alone: "
        f"{pair['source'].decode()}"
        for pair in pairs
    ]
    said = [answer.text for answer in model.generate(asked, cartridge, max_new_tokens=64)]
    return sacrebleu.corpus_chrf(said, [[pair["target"].decode() for pair in pairs]]).score


def main(_) -> None:
    models = paper_run.start(SETTINGS)
    builder = Mtob(
        config="made" if paper_run.SMOKE.value else "published", data_dir=paper_run.DATA_DIR.value
    )
    [book] = records_of(builder, "book")
    documents = [Document("book", "A Grammar of Kalamang", book["source"].decode())]
    cartridge, folder = paper_run.make_cartridge(models, documents, SETTINGS)
    if distributed.is_primary():
        scores = {}
        for split in SPLITS:
            pairs = list(records_of(builder, split))
            for name, context in (("cartridge", cartridge), ("no context", None)):
                score = translated(models[0], context, pairs, split)
                scores[f"{split}, {name}"] = {"chrf": score, "sentences": len(pairs)}
                print(f"{split} {name:<12} chrF {score:.1f} ({len(pairs)} sentences)")
        files.write_json(folder / "results.json", scores)
    distributed.barrier("evaluated")


if __name__ == "__main__":
    app.run(main)
