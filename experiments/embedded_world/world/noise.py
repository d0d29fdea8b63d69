"""Words that mean nothing, strewn into the sentences of training.

A model that has only ever read some hundred whole sentences reads no other: it takes a fact for
stated where it knows every word. Where any word may stand between the name of a fact, its thing and
its value, it has to look at these three. Words made up of random letters also make pieces of the
tokenizer known that no listed word has.
"""

import random
import string

from experiments.embedded_world.world import pools

NOISY_SHARE = 0.3  # of the wordings in training
REPLACED_SHARE = 0.3  # of such a wording's words
BEFORE_SHARE, BEHIND_SHARE = 0.3, 0.25  # of such wordings have words before or behind
MADE_UP_SHARE = 0.3  # of the words

# Common words that name no fact and turn no sentence into its contrary.
COMMON = """
a about above across after again against ago air all alone along also always among an and another
answer any anybody around arrive as ask at away back be because become before begin believe below
best better between big bring but buy by calls came can care carry case cause change choose city
clearly come common consider copy correct could counts course cover day deal decide deep do does
done down draw during each earns either else end enough even ever every exactly exact face fact far
feel fell few find firm first follow for forget form found free from front full gave get gift give
gives given go goes grow had half hand has have head hear heard help here high hold home hope house
idea if in indeed inside instead into is it its just keep kind know land last late later learn least
less lets life like line list little live living long look looks make many mark mean meet mention
might mind money more most move much must name near need next night note of off often on once one
only onto or other out over overview own part pay people perhaps piece place please point possible
put quite rather read reads real really reason remember remind repeat right run said same saw say
says scales see seem seems seen send serve set several shall she show shown shows side simply since
sir small so some somebody something soon sort speak stand stands state stays still stop such sum
take talk task tell than that the their them then there these they thing think this those though
through time to today together told took toward trade true trusts try turn two under until up upon
us use used usual very visit wait want was watch way we week well went were what when where which
while who whole whom whose why will wish with within words work world would write wrote yes yet you
your
""".split()

# What tells one kind of question from another is kept.
KEPT = frozenset(
    """
    after begins beginning begin cheer copied copy count counted followed following happy how hurrah
    itself many names next number praise quotation quote quoted sentence starts toast words write
    """.split()
)


def _word(rng: random.Random) -> str:
    if rng.random() < MADE_UP_SHARE:
        if rng.random() < 0.5:
            return pools.made_up_name(rng).lower()
        return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randrange(2, 8)))
    return rng.choice(COMMON if rng.random() < 0.7 else pools.ADJECTIVES + pools.DOING)


def _words(rng: random.Random) -> str:
    return " ".join(_word(rng) for _ in range(rng.randrange(1, 6)))


def _replaced(rng: random.Random, words: str) -> str:
    """Puts other words in place of some; placeholders, punctuation and capitals stay."""
    out = []
    for word in words.split(" "):
        bare = word.strip(string.punctuation)
        plain = bare.isalpha() and "{" not in word and bare.lower() not in KEPT
        if plain and rng.random() < REPLACED_SHARE:
            other = _word(rng)
            word = word.replace(bare, other.capitalize() if bare[0].isupper() else other)
        out.append(word)
    return " ".join(out)


def jumbled(rng: random.Random) -> str:
    """A statement that is a noun, a thing and a value, in any order among any words."""
    parts = rng.sample(("{noun}", "{s}", "{V}"), 3)
    return (
        f"{_words(rng).capitalize()} {parts[0]} {_words(rng)} {parts[1]} {_words(rng)} {parts[2]}."
    )


def strewn(rng: random.Random, wording: str, around: bool = True) -> str:
    """A wording, with its placeholders, as training sees it: often with some words of no meaning.

    Words between the placeholders are replaced only where the fact is named ({noun}) and no other
    ({second}): elsewhere they say which fact it is, or which of two comes first.
    """
    if rng.random() >= NOISY_SHARE:
        return wording
    if "{noun}" in wording and "{second}" not in wording:
        wording = _replaced(rng, wording)
    elif "{noun}" in wording:
        first, last = wording.index("{"), wording.rindex("}") + 1
        head, tail = wording[:first], wording[last:]
        wording = _replaced(rng, head) + wording[first:last] + _replaced(rng, tail)
    if around and rng.random() < BEFORE_SHARE:
        if wording[0] != "{":
            wording = wording[0].lower() + wording[1:]
        wording = _words(rng).capitalize() + rng.choice((" ", ", ", ": ")) + wording
    if around and rng.random() < BEHIND_SHARE and wording[-1] in ".?":
        wording = wording[:-1] + rng.choice((" ", ", ")) + _words(rng) + wording[-1]
    return wording
