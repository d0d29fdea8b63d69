"""Makes the embedded model's tokenizer: SentencePiece BPE with byte fallback.

It is trained on procedural documents, so common words of that world are one token; anything else
falls back to bytes and still round-trips. Role markers are control symbols, which no text encodes
to; the line feed is a symbol of its own, because bytes inside running text cost much.
"""

import io
import random

import sentencepiece

from cartridges_jax.embedded.world import genres
from cartridges_jax.embedded.world.asking import draw_turn
from cartridges_jax.embedded.world.seeding import draw_seed_turn
from cartridges_jax.embedded.world.writing import write_document

VOCAB_SIZE = 3584  # with fewer, years and cities are of two tokens
BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
OWN_SYMBOLS = "\n.,:;?!'\"*{}[]()-"  # always a token alone, so that "1962." is not a word
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(seed: int = 0, num_documents: int = 4000) -> bytes:
    """Returns the bytes of a `tokenizer.model`; equal seeds give equal bytes."""
    rng = random.Random(f"tokenizer {seed}")

    def sentences():
        for _ in range(num_documents):
            genre = genres.random_genre(rng) if rng.random() < 0.2 else rng.choice(genres.TRAINING)
            document = write_document(rng, genre, 1200, "noisy", 0.6)
            yield document.title
            yield from document.text.split("\n")
            for turn in [draw_turn(rng, document) for _ in range(6)] + [
                draw_seed_turn(rng, document)
            ]:
                if turn is not None:
                    yield turn.question
                    yield from turn.answer.split("\n")

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences(),
        model_writer=out,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=False,
        user_defined_symbols=list(OWN_SYMBOLS),
        control_symbols=list(ROLES),
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece=PAD,
        bos_piece=BEGIN,
        eos_piece=END,
        num_threads=1,  # more threads change the result from run to run
        minloglevel=2,
    )
    return out.getvalue()
