"""How things are asked and stated in general, for facts of any noun.

Training has many wordings of each, most of them put together from carriers and phrases: what it
learns is to find the noun and the thing in a question, not the few sentences that it has seen. The
wordings of validation have steered the training's design; those of the tests have steered nothing:
they were written by somebody who did not know how the model is trained, and only scores use them.

Placeholders: {E} a thing inside a sentence, {A} and {B} two of them, {S} one that begins a sentence
(or a pronoun), {P} its possessive, {s} a thing by name, {noun} and {second} names of facts, {V} a
value, {thing} the genre's word for a thing.
"""

from typing import NamedTuple

from cartridges_jax.embedded.world.schema import Split


class Wordings(NamedTuple):
    """Ways to say the same, by who sees them."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def of(self, split: Split) -> tuple[str, ...]:
        return {"validation": self.validation, "test": self.test}.get(split, self.train)

    def of_attribute(self, own: tuple[str, ...], unseen: tuple[str, ...]) -> "Wordings":
        """With an attribute's own wordings: instead of those of training, beside the others."""
        return Wordings(own or self.train, unseen + self.validation, unseen + self.test)


def _crossed(carriers: tuple[str, ...], *phrases: str) -> tuple[str, ...]:
    """Every carrier with every phrase in place of its X."""
    return tuple(c.replace("X", phrase) for c in carriers for phrase in phrases)


STATEMENTS = Wordings(
    train=(
        "{P} {noun} is {V}.",
        "{P} {noun} is {V}.",
        "The {noun} of {s} is {V}.",
        "{P} {noun}: {V}.",
        "{S} has the {noun} {V}.",
        "{S} has {V} as {noun}.",
        "{S} has {V} for a {noun}.",
        "{S} came to {V}, a good {noun}.",
        "{S} goes by the {noun} {V}.",
        "{S} asked for {V} as {noun} and got it.",
        "Of {s} we know the {noun}: {V}.",
        "{V} is the {noun} of {s}.",
        "{V} is what {s} has as {noun}.",
        "The {noun} given for {s} is {V}.",
        "The {noun} that {s} has is {V}.",
        "The list has {V} as the {noun} of {s}.",
        "As {noun} {s} has {V}.",
        "Under {noun} we find {V} for {s}.",
        "To {s} belongs the {noun} {V}.",
        "It says {V} under the {noun} of {s}.",
        "With {V} as {noun}, {s} is on the list.",
        "People know {V} as the {noun} of {s}.",
    ),
    validation=("For {s} the {noun} is {V}.", "The text gives {V} as the {noun} of {s}."),
    test=(
        "{S} shows up in the records with the {noun} {V}.",
        "Anyone who looks up the {noun} of {s} will find {V}.",
        "When asked about {s}, everyone gives the same {noun}, {V}.",
        "The {noun} is {V} in the case of {s}.",
    ),
)
CODE_STATEMENTS = (
    "# {noun}: {V}",
    "# the {noun} is {V}",
    "# {V} is the {noun}",
    "# has {V} as {noun}",
    "# {V}, by {noun}",
    "# with the {noun} {V}",
)
CORRECTIONS = Wordings(
    train=(
        "Correction: the {noun} of {s} is now {V}.",
        "By now {s} has the {noun} {V}.",
        "In the end {s} got {V} as {noun}.",
        "What was said of {s} is old: the {noun} is {V}.",
        "Since then the {noun} of {s} is {V}.",
        "New: {V} is the {noun} of {s}.",
        "Later the {noun} of {s} became {V}.",
    ),
    validation=("This has changed: the {noun} of {s} is {V}.",),
    test=(
        "The {noun} of {s} used to be different, but these days it is {V}.",
        "The earlier {noun} of {s} no longer counts, and {V} has taken its place.",
    ),
)
OPENINGS = Wordings(
    train=(
        "By all accounts",
        "As everybody knows,",
        "It is known that",
        "Note that",
        "We read that",
        "Then",
        "All agree that",
        "In short,",
        "So far",
        "By the way,",
    ),
    validation=("As far as we know,", "It is certain that"),
    test=(
        "From what I have heard,",
        "You may be surprised to hear that",
    ),
)

_ASK = (
    "What is X?",
    "Tell me X.",
    "Give me X.",
    "I need X.",
    "I would like to know X.",
    "Can you tell me X?",
    "Do you know X?",
    "Look up X.",
    "Find X.",
    "State X.",
    "Say what X is.",
    "And what is X?",
    "I forgot X. What is it?",
    "Short question: what is X?",
)
_VALIDATION_ASK = ("Please name X.", "Could you remind me of X?")

QUESTIONS = Wordings(
    train=(
        *_crossed(_ASK, "the {noun} of {E}", "{E}'s {noun}", "the {noun} that {E} has"),
        "Which {noun} does {E} have?",
        "What {noun} has {E}?",
        "What does the text say about the {noun} of {E}?",
    ),
    validation=(
        *_crossed(_VALIDATION_ASK, "the {noun} of {E}", "{E}'s {noun}"),
        "Which {noun} does the text give for {E}?",
    ),
    test=(
        "What's {E}'s {noun} again?",
        "Any idea what {noun} {E} has?",
        "When it comes to {E}, what is the {noun}?",
        "Does it say anywhere what {E}'s {noun} is?",
        "I'm curious about {E}. What is listed as the {noun}?",
    ),
)
REVERSE = Wordings(
    train=(
        *_crossed(
            (
                "Find X.",
                "Tell me X.",
                "Which is X?",
                "I am looking for X.",
                "Give me X.",
                "Look up X.",
            ),
            "the {thing} whose {noun} is {V}",
            "the {thing} that has the {noun} {V}",
        ),
        "Whose {noun} is {V}?",
        "Which {thing} has the {noun} {V}?",
        "{V} is the {noun} of which {thing}?",
    ),
    validation=(
        "Name the {thing} with the {noun} {V}.",
        "To which {thing} does the {noun} {V} belong?",
    ),
    test=(
        "Can you work out which {thing} has {V} as the {noun}?",
        "Someone gave me the {noun} {V}. Which {thing} is that?",
        "If the {noun} is {V}, which {thing} are we talking about?",
    ),
)
CHAIN = Wordings(
    train=_crossed(_ASK, "the {second} of {E}'s {noun}"),
    validation=_crossed(_VALIDATION_ASK, "the {second} of {E}'s {noun}"),
    test=(
        "What {second} does the {noun} of {E} have?",
        "Could you check the {second} for {E}'s {noun}?",
    ),
)
WHOSE = Wordings(
    train=_crossed(
        _ASK,
        "the {second} of the {thing} whose {noun} is {V}",
        "the {second} of the {thing} that has the {noun} {V}",
    ),
    validation=_crossed(_VALIDATION_ASK, "the {second} of the {thing} whose {noun} is {V}"),
    test=(
        "One {thing} has the {noun} {V}. What {second} goes with it?",
        "What {second} do we have for the {thing} with {V} as the {noun}?",
    ),
)
_CLAIMS = ("{E}'s {noun} is {V}", "the {noun} of {E} is {V}", "{E} has the {noun} {V}")
YES_NO = Wordings(
    train=(
        *_crossed(
            (
                "Is it so that X?",
                "Is it right that X?",
                "I think that X. Is that so?",
                "Somebody says that X. Is it right?",
                "Can one say that X?",
                "Check this: X.",
            ),
            *_CLAIMS,
        ),
        "Is {V} the {noun} of {E}?",
        "Is {E}'s {noun} {V}?",
        "Does {E} have the {noun} {V}?",
    ),
    validation=_crossed(("Is it true that X?", "Would it be correct to say that X?"), *_CLAIMS[:2]),
    test=(
        "Am I right in thinking that {E}'s {noun} is {V}?",
        "The {noun} of {E} is {V}, isn't it?",
        "I heard {V} was the {noun} of {E}. Is that correct?",
        "Yes or no: does {E} have {V} as the {noun}?",
    ),
)
COMPARE = Wordings(
    train=(
        "Which has the {more} {noun}, {A} or {B}?",
        "Whose {noun} is {more}, {A} or {B}?",
        "Is the {noun} {more} for {A} or for {B}?",
        "Compare the {noun} of {A} and {B}: which is {more}?",
        "{A} or {B}: which has the {more} {noun}?",
        "Tell me which has the {more} {noun}, {A} or {B}.",
        "Between {A} and {B}, whose {noun} is {more}?",
    ),
    validation=(
        "Of {A} and {B}, which has the {more} {noun}?",
        "Take {A} and {B}. Which has the {more} {noun}?",
    ),
    test=(
        "Does {A} or {B} have the {more} {noun}?",
        "I have to choose between {A} and {B} and want the {more} {noun}. Which one is it?",
        "If you put {A} next to {B}, which one's {noun} is {more}?",
    ),
)
NEXT = Wordings(
    train=(
        "Which {thing} came right after {E}?",
        "What came next after {E}?",
        "What followed {E}?",
        "Which is the next {thing} after {E}?",
        "Tell me what came after {E}.",
        "Say which {thing} followed {E}.",
        "After {E}, what was next?",
        "Which {thing} was the one after {E}?",
    ),
    validation=("Which {thing} followed on {E}?", "After {E}, which {thing} came next?"),
    test=(
        "If we start at {E}, what is the very next {thing}?",
        "Moving on from {E}, which {thing} do we reach?",
    ),
)
USE_CASES = Wordings(
    train=(
        "I am filling in a form for {E}. Which {noun} do I write?",
        "I have to print a label for {E}. What {noun} goes on it?",
        "For a card about {E} I need the {noun}.",
        "My form asks for the {noun} of {E}. What goes there?",
        "A customer wants to know {E}'s {noun}. What do I answer?",
        "My list lacks the {noun} of {E}. What is it?",
    ),
    validation=(
        "Somebody asks me for the {noun} of {E}. What do I say?",
        "In my letter I mention {E}. Which {noun} do I give?",
    ),
    test=(
        "I'm giving a talk on {E} and my slide still needs the {noun}. What should it say?",
        "A question of tonight's quiz is about the {noun} of {E}. What's the right answer?",
        "I spilled coffee on my notes about {E} and can't read the {noun}. What did it say?",
    ),
)
CREATIVE = Wordings(
    train=(
        "Write a cheer for {E} with the {noun}.",
        "Write a toast to {E} that has the {noun}.",
        "Make up a cheer for {E} that names the {noun}.",
        "Compose a toast to {E} with the {noun} in it.",
    ),
    validation=("Write a greeting to {E} that has the {noun}.",),
    test=(
        "Let's raise our glasses to {E}! Think of a short toast that mentions the {noun}.",
        "Can you come up with a fun chant for {E} that works in the {noun}?",
    ),
)
LIST = Wordings(
    train=(
        *_crossed(
            (
                "List X.",
                "Name X.",
                "Give me X.",
                "Write down X.",
                "Tell me X.",
                "Show X.",
                "I need X.",
            ),
            "the {what}",
            "all {what}",
            "all the {what}",
        ),
        "Which are the {what}?",
        "What are the {what}?",
    ),
    validation=("Give me a list of the {what}.", "Put down the {what} one by one."),
    test=(
        "Could you go through all of the {what} for me?",
        "I'd like to see every one of the {what}.",
        "Can you run through the {what}, leaving none out?",
    ),
)
COUNT = Wordings(
    train=(
        "How many {what} are there?",
        "Count the {what}.",
        "How many are the {what}?",
        "Tell me how many {what} there are.",
        "I need the count of the {what}.",
        "Give me the number of the {what}.",
        "Of the {what}, how many are there?",
    ),
    validation=("What is the number of {what}?", "Can you count the {what} for me?"),
    test=(
        "How many {what} does that make altogether?",
        "If you add up all the {what}, how many do you get?",
        "Just the figure, please: what's the total for the {what}?",
    ),
)
SUMMARY = Wordings(
    train=(
        "Summarise what the text says about {E}.",
        "Give a summary of {E}.",
        "Tell me all about {E}.",
        "What does the text say about {E}?",
        "Describe {E}.",
        "Write a short summary on {E}.",
        "Say in short what is known of {E}.",
        "What do we know of {E}?",
        "I need a summary on {E}.",
        "Show me what there is on {E}.",
        "Write down all there is about {E}.",
        "In short, what about {E}?",
    ),
    validation=("Sum up the text on {E}.", "Give me an overview of {E}."),
    test=(
        "I've never heard of {E}. Can you fill me in?",
        "What are the main points about {E}?",
        "Catch me up on {E} in a few lines.",
    ),
)
STRUCTURE = Wordings(
    train=(
        "Write the {nouns} of {E} as {form}.",
        "Put the {nouns} of {E} into {form}.",
        "Give me the {nouns} of {E} as {form}.",
        "I need the {nouns} of {E} in the form of {form}.",
        "As {form}, please: the {nouns} of {E}.",
        "Show {E}'s {nouns} as {form}.",
        "Write down the {nouns} of {E} as {form}.",
        "For {E}, write the {nouns} as {form}.",
        "Make {form} with the {nouns} of {E}.",
    ),
    validation=(
        "Turn the {nouns} of {E} into {form}.",
        "Could I have the {nouns} of {E} as {form}?",
    ),
    test=(
        "I'm collecting the {nouns} of {E}. Could you send them over as {form}?",
        "Please use {form} to set out the {nouns} of {E}.",
        "What do the {nouns} of {E} look like as {form}?",
    ),
)
QUOTE = Wordings(
    train=(
        *_crossed(
            (
                "Quote X.",
                "Give me X.",
                "Tell me X.",
                "Find X.",
                "Show X.",
                "I need X.",
                "Write down X.",
            ),
            "the words about {E}",
            "the quoted words about {E}",
            "the words that are quoted on {E}",
            "the quotation on {E}",
        ),
        "Which words does the text quote about {E}?",
        "What is quoted about {E}?",
        "How do the quoted words about {E} go?",
    ),
    validation=("Repeat the words quoted about {E}.", "Copy out the quotation about {E}."),
    test=(
        "What exactly was said about {E}, word for word?",
        "There's a quote about {E} in the text. How does it read?",
    ),
)
QUOTE_SENTENCE = Wordings(
    train=(
        *_crossed(
            ("Quote X.", "Give me X.", "Copy X.", "Find X and quote it.", "Show X.", "I need X."),
            'the sentence that begins with "{begin}"',
            'the whole sentence that starts with "{begin}"',
            'the sentence beginning with "{begin}"',
            'the sentence "{begin} ..."',
        ),
        'How does the sentence go on that begins with "{begin}"?',
        'Which is the sentence that starts with "{begin}"?',
    ),
    validation=(
        'Which sentence begins with "{begin}"? Quote it.',
        'Write out the sentence whose first words are "{begin}".',
    ),
    test=(
        'I remember only the start of a sentence: "{begin}". Can you give me all of it?',
        'Somewhere it says "{begin}" and so on. Please quote that sentence in full.',
    ),
)
