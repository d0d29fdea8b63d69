"""How things are asked and stated in general, for facts of any noun.

Training has many wordings of each, some put together from carriers and phrases: what it learns is
to find the noun and the thing in a question, not the few sentences that it has seen. The wordings
of validation have steered the training's design; those of the tests were written by somebody who
did not know how the model is trained, and only scores use them. Errors in them showed that training
had too few forms of questions. It got more: `paraphrases.json` is by another author, who was told
what is asked and saw none of the wordings here; what happened to be one of the tests' was dropped.

Placeholders: {E} a thing inside a sentence, {A} and {B} two of them, {S} one that begins a sentence
(or a pronoun), {P} its possessive, {s} a thing by name, {noun} and {second} names of facts, {V} a
value, {thing} the genre's word for a thing.
"""

import importlib.resources
import json
from typing import NamedTuple

from experiments.embedded_world.world.schema import Split


class Wordings(NamedTuple):
    """Ways to say the same, by who sees them."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def of(self, split: Split) -> tuple[str, ...]:
        return {"validation": self.validation, "test": self.test}.get(split, self.train)

    def of_attribute(self, own: tuple[str, ...], unseen: tuple[str, ...]) -> "Wordings":
        """With an attribute's own wordings for training and validation; tests have general ones."""
        return Wordings(own or self.train, unseen + self.validation, self.test)


def _crossed(carriers: tuple[str, ...], *phrases: str) -> tuple[str, ...]:
    """Every carrier with every phrase in place of its X."""
    return tuple(c.replace("X", phrase) for c in carriers for phrase in phrases)


_PARAPHRASES: dict[str, list[str]] = json.loads(
    importlib.resources.files("experiments.embedded_world.world")
    .joinpath("paraphrases.json")
    .read_text()
)

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
        "For {s}, {V} was written down as the {noun}.",
        "Ask for the {noun} of {s} and you hear {V}.",
        "{V} was entered as {noun} for {s}.",
        "The {noun}? For {s} it is {V}.",
        "Everybody gives {V} as the {noun} of {s}.",
        "There is a {noun} for {s}: {V}.",
        "{S} was given the {noun} {V}.",
        "{S}, with {V} as {noun}, is well known.",
        "The {noun} was {V} for {s}.",
        "On {s} the notes have the {noun} {V}.",
        "{S} is down for the {noun} {V}.",
        "{S} can be found under the {noun} {V}.",
        "{S} got the {noun} {V}.",
        "{P} {noun} turned out to be {V}.",
        "Nobody doubts that {V} is the {noun} of {s}.",
        "Let it be said that {s} has the {noun} {V}.",
        "We all know the {noun} of {s}, which is {V}.",
        "They put {V} down as {noun} when they came to {s}.",
        "If you want the {noun} of {s}, take {V}.",
        "{S} comes with the {noun} {V}.",
        "{S} stands there, {noun} {V}.",
        "{V}, that is the {noun} of {s}.",
        *_PARAPHRASES["statements"],
    ),
    validation=("For {s} the {noun} is {V}.", "The text gives {V} as the {noun} of {s}."),
    test=(
        "{S} shows up in the records with the {noun} {V}.",
        "Anyone who looks up the {noun} of {s} will find {V}.",
        "When asked about {s}, everyone gives the same {noun}, {V}.",
        "The {noun} is {V} in the case of {s}.",
    ),
)
CODE_TESTS = (
    "# The {noun} of this function is {V}.",
    "# NOTE: uses {V} as its {noun}",
    "# NB - for this one, {noun} = {V}",
)
CODE_STATEMENTS = (
    "# {noun}: {V}",
    "# the {noun} is {V}",
    "# {V} is the {noun}",
    "# has {V} as {noun}",
    "# {V}, by {noun}",
    "# with the {noun} {V}",
    *_PARAPHRASES["code_statements"],
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
        "The {noun} of {s} was changed to {V}.",
        "From then on the {noun} of {s} was {V}.",
        "Instead of what stood there before, {s} has the {noun} {V}.",
        "Today {V} is the {noun} of {s}.",
        "It is no longer so: {s} now has {V} as {noun}.",
        "After all, the {noun} of {s} is {V} now.",
        *_PARAPHRASES["corrections"],
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
        "Some say that",
        "Everyone here knows that",
        "The notes say that",
        "It seems that",
        "Let us not forget that",
        "To be exact,",
        "Of course",
        "Once more:",
        *_PARAPHRASES["openings"],
    ),
    validation=("As far as we know,", "It is certain that"),
    test=(
        "From what I have heard,",
        "You may be surprised to hear that",
    ),
)

# Around a question of any kind, in training: what is said beside it does not change it.
FRAMES = (
    "Hello. X",
    "Hi there! X",
    "X Thank you.",
    "X Thanks a lot.",
    "Please help me. X",
    "One more thing. X",
    "I was asked this: X",
    "X It matters to me.",
    "I have a question. X",
    "X I really need it.",
    "Good morning! X",
    "Now to something else. X",
    "X I could not find it myself.",
    "Listen. X",
    "I am new here. X",
    "Be so kind: X",
    "X Take your time.",
    "My friend wants to know. X",
    "All right, next one. X",
    "X That is all.",
    "Sorry to ask. X",
    *_PARAPHRASES["frames"],
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
    "Could you say what X is?",
    "Would you tell me X?",
    "I want to know X.",
    "I wonder what X is.",
    "Let me know X.",
    "Do you happen to know X?",
    "Does the text tell us X?",
    "Help me with X.",
    "What would X be?",
    "So what is X?",
    "What is X, please?",
    "Does anybody know X?",
    "Have you seen X in the text? Tell me.",
    "Check X for me.",
    "X, please.",
    "Is it written down what X is?",
    "I have to know what X is.",
    "Is there a word on X? What is it?",
    "Let us see what X is.",
    "What was X?",
)
_VALIDATION_ASK = ("Please name X.", "Could you remind me of X?")

QUESTIONS = Wordings(
    train=(
        *_crossed(_ASK, "the {noun} of {E}", "{E}'s {noun}", "the {noun} that {E} has"),
        "Which {noun} does {E} have?",
        "What {noun} has {E}?",
        "What does the text say about the {noun} of {E}?",
        "For {E}, what is the {noun}?",
        "{E}: what is the {noun}?",
        "About {E}: which {noun} is given?",
        "What do we have as {noun} for {E}?",
        "Which {noun} goes with {E}?",
        "I read about {E}. Which {noun} was it?",
        "Has {E} got a {noun}? Which?",
        "Take {E}. What is the {noun}?",
        "What {noun} do they give for {E}?",
        "I know {E}, but not the {noun}. What is it?",
        *_PARAPHRASES["questions"],
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
        "Which {thing} goes with the {noun} {V}?",
        "Here is a {noun}: {V}. Of which {thing}?",
        "For which {thing} is {V} the {noun}?",
        "Who or what has the {noun} {V}?",
        "Do you know the {thing} whose {noun} is {V}?",
        "With {V} as {noun}, which {thing} is meant?",
        "I have the {noun} {V} and need the {thing}.",
        "Which {thing} is down for the {noun} {V}?",
        "The {noun} {V}: whose is it?",
        "I wonder which {thing} has {V} as {noun}.",
        "Is there a {thing} with the {noun} {V}? Which?",
        "Could you find out whose {noun} is {V}?",
        *_PARAPHRASES["reverse"],
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
    train=(*_crossed(_ASK, "the {second} of {E}'s {noun}"), *_PARAPHRASES["chain"]),
    validation=_crossed(_VALIDATION_ASK, "the {second} of {E}'s {noun}"),
    test=(
        "What {second} does the {noun} of {E} have?",
        "Could you check the {second} for {E}'s {noun}?",
    ),
)
WHOSE = Wordings(
    train=(
        *_crossed(
            _ASK,
            "the {second} of the {thing} whose {noun} is {V}",
            "the {second} of the {thing} that has the {noun} {V}",
        ),
        *_PARAPHRASES["whose"],
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
                "Can you confirm that X?",
                "They told me that X. True?",
                "Could it be that X?",
                "Tell me if X.",
                "I believe X. Correct?",
                "X, true or not?",
                "Would you agree that X?",
                "So X?",
                "Do I remember it well, X?",
                "Let me check: X?",
            ),
            *_CLAIMS,
        ),
        "Is {V} the {noun} of {E}?",
        "Is {E}'s {noun} {V}?",
        "Does {E} have the {noun} {V}?",
        "{V} is the {noun} of {E}. Is this so?",
        "Has {E} {V} as {noun}?",
        "Did I read {V} as the {noun} of {E}?",
        "For {E}, is the {noun} {V}?",
        *_PARAPHRASES["yes_no"],
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
        "I want the {more} {noun}: {A} or {B}?",
        "Who wins with the {more} {noun}, {A} or {B}?",
        "Is it {A} or {B} that has the {more} {noun}?",
        "Look at {A} and {B}. Whose {noun} is {more}?",
        "Find out which of the two has the {more} {noun}: {A} or {B}.",
        "{A} and {B}: who has the {more} {noun}?",
        "I wonder whether {A} or {B} has the {more} {noun}.",
        "Here are {A} and {B}; tell me whose {noun} is {more}.",
        *_PARAPHRASES["compare"],
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
        "And then, after {E}?",
        "Name the {thing} that came directly after {E}.",
        "What was the {thing} after {E}?",
        "I wonder what came after {E}.",
        "Once {E} was over, what came?",
        "Could you tell me the next {thing} after {E}?",
        *_PARAPHRASES["next"],
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
        "I am packing a box for {E} and must put the {noun} on it. What is it?",
        "In my report on {E} one field is empty, the {noun}. What goes in?",
        "A visitor asks about the {noun} of {E}. What do I tell them?",
        "We make a poster of {E}. Which {noun} do we print?",
        "For my diary I need to know the {noun} of {E}.",
        "At the desk they want the {noun} of {E} from me. What is it?",
        "My boss wants to hear the {noun} of {E}. Help me.",
        "On the phone I was asked for the {noun} of {E}. What shall I say?",
        "I lost the page on {E} and need the {noun}. Which is it?",
        "I draw a map with {E} on it and write the {noun} beside it. Which?",
        *_PARAPHRASES["use_cases"],
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
        "Cheer for {E}, please, and name the {noun}.",
        "I need a toast to {E}. Put the {noun} in.",
        "Praise {E} in one line with the {noun}.",
        "Let us cheer {E}: name the {noun}.",
        "Think up a hurrah for {E} that has the {noun}.",
        "A happy line on {E} with the {noun}, please.",
        *_PARAPHRASES["creative"],
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
                "Could you list X?",
                "Read out X.",
                "Say X one after another.",
                "I want to see X.",
                "Line by line, X.",
                "X, please.",
                "Do you have X?",
                "Put X on a list.",
            ),
            "the {what}",
            "all {what}",
            "all the {what}",
        ),
        "Which are the {what}?",
        "What are the {what}?",
        *_PARAPHRASES["list"],
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
        "Can you say how many {what} there are?",
        "What number of {what} do we have?",
        "I want to know how many {what} the text has.",
        "So how many {what}?",
        "How large is the number of {what}?",
        "Give me a count of all {what}.",
        "The {what}: how many?",
        "Number of {what}, please.",
        *_PARAPHRASES["count"],
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
        "Who or what is {E}?",
        "Explain {E} to me.",
        "I want to know everything about {E}.",
        "What should I know about {E}?",
        "Tell me more about {E}.",
        "Bring together what is said of {E}.",
        "Everything on {E}, please.",
        "A few words on {E}, please.",
        "What is there to say about {E}?",
        "I know nothing of {E}. Tell me.",
        *_PARAPHRASES["summary"],
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
        "{form} with the {nouns} of {E}, please.",
        "Can you write the {nouns} of {E} as {form}?",
        "My program reads {form}. Give it the {nouns} of {E}.",
        "What would the {nouns} of {E} be in {form}?",
        "Format the {nouns} of {E} as {form}.",
        "I want {form} that has the {nouns} of {E}.",
        "Use {form} for the {nouns} of {E}.",
        *_PARAPHRASES["structure"],
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
                "Can you quote X?",
                "Read me X.",
                "I want X exactly.",
            ),
            "the words about {E}",
            "the quoted words about {E}",
            "the words that are quoted on {E}",
            "the quotation on {E}",
        ),
        "Which words does the text quote about {E}?",
        "What is quoted about {E}?",
        "How do the quoted words about {E} go?",
        "How does the note on {E} read?",
        "What did they write about {E}? Quote it.",
        "Which note is there on {E}? Quote it.",
        *_PARAPHRASES["quote"],
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
            (
                "Quote X.",
                "Give me X.",
                "Copy X.",
                "Find X and quote it.",
                "Show X.",
                "I need X.",
                "Can you give me X?",
                "Please quote X.",
                "Say X in full.",
                "Complete X.",
            ),
            'the sentence that begins with "{begin}"',
            'the whole sentence that starts with "{begin}"',
            'the sentence beginning with "{begin}"',
            'the sentence "{begin} ..."',
        ),
        'How does the sentence go on that begins with "{begin}"?',
        'Which is the sentence that starts with "{begin}"?',
        'It starts with "{begin}". How does the sentence go on?',
        'Go on with the sentence "{begin}".',
        'There is a sentence with "{begin}" at its beginning. Quote it.',
        *_PARAPHRASES["quote_sentence"],
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
