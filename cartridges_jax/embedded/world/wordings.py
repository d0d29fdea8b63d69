"""How things are asked and stated in general, for facts of any noun.

Wordings named `UNSEEN_...` are for tests alone. Training has many of each, most of them put
together from carriers and phrases: what it learns is to find the noun and the thing in a question,
not the few sentences that it has seen.

Placeholders: {E} a thing inside a sentence, {A} and {B} two of them, {S} one that begins a sentence
(or a pronoun), {P} its possessive, {s} a thing by name, {noun} and {second} names of facts, {V} a
value, {thing} the genre's word for a thing.
"""


def _crossed(carriers: tuple[str, ...], *phrases: str) -> tuple[str, ...]:
    """Every carrier with every phrase in place of its X."""
    return tuple(c.replace("X", phrase) for c in carriers for phrase in phrases)


STATEMENTS = (
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
)
CODE_STATEMENTS = (
    "# {noun}: {V}",
    "# the {noun} is {V}",
    "# {V} is the {noun}",
    "# has {V} as {noun}",
    "# {V}, by {noun}",
    "# with the {noun} {V}",
)
UNSEEN_STATEMENTS = ("For {s} the {noun} is {V}.", "The text gives {V} as the {noun} of {s}.")
CORRECTIONS = (
    "Correction: the {noun} of {s} is now {V}.",
    "By now {s} has the {noun} {V}.",
    "In the end {s} got {V} as {noun}.",
    "What was said of {s} is old: the {noun} is {V}.",
    "Since then the {noun} of {s} is {V}.",
    "New: {V} is the {noun} of {s}.",
    "Later the {noun} of {s} became {V}.",
)
UNSEEN_CORRECTIONS = ("This has changed: the {noun} of {s} is {V}.",)
OPENINGS = (
    "By all accounts", "As everybody knows,", "It is known that", "Note that", "We read that",
    "Then", "All agree that", "In short,", "So far", "By the way,",
)  # fmt: skip
UNSEEN_OPENINGS = ("As far as we know,", "It is certain that")

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
_UNSEEN_ASK = ("Please name X.", "Could you remind me of X?")

QUESTIONS = (
    *_crossed(_ASK, "the {noun} of {E}", "{E}'s {noun}", "the {noun} that {E} has"),
    "Which {noun} does {E} have?",
    "What {noun} has {E}?",
    "What does the text say about the {noun} of {E}?",
)
UNSEEN_QUESTIONS = (
    *_crossed(_UNSEEN_ASK, "the {noun} of {E}", "{E}'s {noun}"),
    "Which {noun} does the text give for {E}?",
)
REVERSE = (
    *_crossed(
        ("Find X.", "Tell me X.", "Which is X?", "I am looking for X.", "Give me X.", "Look up X."),
        "the {thing} whose {noun} is {V}",
        "the {thing} that has the {noun} {V}",
    ),
    "Whose {noun} is {V}?",
    "Which {thing} has the {noun} {V}?",
    "{V} is the {noun} of which {thing}?",
)
UNSEEN_REVERSE = (
    "Name the {thing} with the {noun} {V}.",
    "To which {thing} does the {noun} {V} belong?",
)
CHAIN = _crossed(_ASK, "the {second} of {E}'s {noun}")
UNSEEN_CHAIN = _crossed(_UNSEEN_ASK, "the {second} of {E}'s {noun}")
WHOSE = _crossed(
    _ASK,
    "the {second} of the {thing} whose {noun} is {V}",
    "the {second} of the {thing} that has the {noun} {V}",
)
UNSEEN_WHOSE = _crossed(_UNSEEN_ASK, "the {second} of the {thing} whose {noun} is {V}")
_CLAIMS = ("{E}'s {noun} is {V}", "the {noun} of {E} is {V}", "{E} has the {noun} {V}")
YES_NO = (
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
)
UNSEEN_YES_NO = _crossed(("Is it true that X?", "Would it be correct to say that X?"), *_CLAIMS[:2])
COMPARE = (
    "Which has the {more} {noun}, {A} or {B}?",
    "Whose {noun} is {more}, {A} or {B}?",
    "Is the {noun} {more} for {A} or for {B}?",
    "Compare the {noun} of {A} and {B}: which is {more}?",
    "{A} or {B}: which has the {more} {noun}?",
    "Tell me which has the {more} {noun}, {A} or {B}.",
    "Between {A} and {B}, whose {noun} is {more}?",
)
UNSEEN_COMPARE = (
    "Of {A} and {B}, which has the {more} {noun}?",
    "Take {A} and {B}. Which has the {more} {noun}?",
)
NEXT = (
    "Which {thing} came right after {E}?",
    "What came next after {E}?",
    "What followed {E}?",
    "Which is the next {thing} after {E}?",
    "Tell me what came after {E}.",
    "Say which {thing} followed {E}.",
    "After {E}, what was next?",
    "Which {thing} was the one after {E}?",
)
UNSEEN_NEXT = ("Which {thing} followed on {E}?", "After {E}, which {thing} came next?")
USE_CASES = (
    "I am filling in a form for {E}. Which {noun} do I write?",
    "I have to print a label for {E}. What {noun} goes on it?",
    "For a card about {E} I need the {noun}.",
    "My form asks for the {noun} of {E}. What goes there?",
    "A customer wants to know {E}'s {noun}. What do I answer?",
    "My list lacks the {noun} of {E}. What is it?",
)
UNSEEN_USE_CASES = (
    "Somebody asks me for the {noun} of {E}. What do I say?",
    "In my letter I mention {E}. Which {noun} do I give?",
)
CREATIVE = (
    "Write a cheer for {E} with the {noun}.",
    "Write a toast to {E} that has the {noun}.",
    "Make up a cheer for {E} that names the {noun}.",
    "Compose a toast to {E} with the {noun} in it.",
)
UNSEEN_CREATIVE = ("Write a greeting to {E} that has the {noun}.",)
LIST = (
    *_crossed(
        ("List X.", "Name X.", "Give me X.", "Write down X.", "Tell me X.", "Show X.", "I need X."),
        "the {what}",
        "all {what}",
        "all the {what}",
    ),
    "Which are the {what}?",
    "What are the {what}?",
)
UNSEEN_LIST = ("Give me a list of the {what}.", "Put down the {what} one by one.")
COUNT = (
    "How many {what} are there?",
    "Count the {what}.",
    "How many are the {what}?",
    "Tell me how many {what} there are.",
    "I need the count of the {what}.",
    "Give me the number of the {what}.",
    "Of the {what}, how many are there?",
)
UNSEEN_COUNT = ("What is the number of {what}?", "Can you count the {what} for me?")
SUMMARY = (
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
)
UNSEEN_SUMMARY = ("Sum up the text on {E}.", "Give me an overview of {E}.")
STRUCTURE = (
    "Write the {nouns} of {E} as {form}.",
    "Put the {nouns} of {E} into {form}.",
    "Give me the {nouns} of {E} as {form}.",
    "I need the {nouns} of {E} in the form of {form}.",
    "As {form}, please: the {nouns} of {E}.",
    "Show {E}'s {nouns} as {form}.",
    "Write down the {nouns} of {E} as {form}.",
    "For {E}, write the {nouns} as {form}.",
    "Make {form} with the {nouns} of {E}.",
)
UNSEEN_STRUCTURE = (
    "Turn the {nouns} of {E} into {form}.",
    "Could I have the {nouns} of {E} as {form}?",
)
QUOTE = (
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
)
UNSEEN_QUOTE = ("Repeat the words quoted about {E}.", "Copy out the quotation about {E}.")
QUOTE_SENTENCE = (
    *_crossed(
        ("Quote X.", "Give me X.", "Copy X.", "Find X and quote it.", "Show X.", "I need X."),
        'the sentence that begins with "{begin}"',
        'the whole sentence that starts with "{begin}"',
        'the sentence beginning with "{begin}"',
        'the sentence "{begin} ..."',
    ),
    'How does the sentence go on that begins with "{begin}"?',
    'Which is the sentence that starts with "{begin}"?',
)
UNSEEN_QUOTE_SENTENCE = (
    'Which sentence begins with "{begin}"? Quote it.',
    'Write out the sentence whose first words are "{begin}".',
)
