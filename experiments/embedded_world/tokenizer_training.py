"""Makes the embedded model's tokenizer: SentencePiece BPE with byte fallback.

It is trained on procedural documents, so common words of that world are one token; anything else
falls back to bytes and still round-trips. Role markers are control symbols, which no text encodes
to; the line feed is a symbol of its own, because bytes inside running text cost much.
"""

import io
import json
import random
from typing import Any

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers

from experiments.embedded_world.world import genres
from experiments.embedded_world.world.asking import draw_turn
from experiments.embedded_world.world.seeding import draw_seed_turn
from experiments.embedded_world.world.writing import write_document

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


def to_tokenizer_json(model_bytes: bytes) -> str:
    """The same tokenizer for the tokenizers library, as the text of a `tokenizer.json`.

    transformers' own conversion of a `tokenizer.model` knows no symbols that stay alone, and puts
    a space behind every line feed.
    """
    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # generated
    proto.ParseFromString(model_bytes)
    vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    normal = [p for p in proto.pieces if p.type == proto.SentencePiece.NORMAL]
    merges = []
    for piece in sorted(normal, key=lambda p: -p.score):  # the best piece is merged first
        splits = [(piece.piece[:i], piece.piece[i:]) for i in range(1, len(piece.piece))]
        splits = [(a, b) for a, b in splits if a in vocab and b in vocab]
        merges += sorted(splits, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    bpe = models.BPE(vocab, merges, byte_fallback=True, unk_token=proto.trainer_spec.unk_piece)
    tokenizer = tokenizers.Tokenizer(bpe)
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(spaces)  # type: ignore[assignment]
    alone = tokenizers.Regex("[" + "".join(f"\\x{{{ord(c):02x}}}" for c in OWN_SYMBOLS) + "]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(alone, "isolated")  # type: ignore[assignment]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)  # type: ignore[assignment]
    tokenizer.add_special_tokens([PAD, BEGIN, END, *ROLES])
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=0) + "\n"
