"""The genres: what they are about, which facts they state, in which words.

Those of `TRAINING`, and genres made up for one document. `MUSEUM` is held out whole: no training
text is a catalogue, nor has donors or origins ("hall" may name a made-up fact).
"""

import dataclasses
import random
from collections.abc import Callable

from experiments.embedded_world.world import pools
from experiments.embedded_world.world.schema import Attribute, Genre, Kind


def _number(low: int, high: int, unit: str):
    return lambda rng: f"{rng.randrange(low, high)} {unit}"


def _one_of(pool):
    return lambda rng: rng.choice(pool)


def _pair(heads, tails):
    return lambda rng: f"{rng.choice(heads)} {rng.choice(tails)}"


def _titled(words):
    return [word.capitalize() for word in words]


def _function_name(rng: random.Random) -> str:
    return f"{rng.choice(pools.VERBS)}_{rng.choice(pools.CODE_NOUNS)}"


PERSONNEL = Genre(
    name="personnel register",
    thing="person",
    things="people",
    titles=("Register of {place}", "Staff of {place}", "People of {place}"),
    intros=("This is the register of {place}.", "{place} keeps this register of its staff."),
    draw_name=pools.person,
    persons=True,
    attributes=(
        Attribute(
            "job", "open", _one_of(pools.JOBS),
            ("{S} works as a {V}.", "{S} is a {V} by trade."), ("{S} earns a living as a {V}, a job for life.",),
            ("What does {E} work as?",), ("What is {E} by trade?",),
            reverse_questions=("Who works as a {V}?",),
        ),
        Attribute(
            "city", "open", pools.city,
            ("{S} lives in {V}.", "{S} has a flat in {V}."), ("{S} calls {V} a home city.",),
            ("Where does {E} live?",), ("In which city does {E} live?",),
            reverse_questions=("Who lives in {V}?",),
        ),
        Attribute(
            "birth year", "year", lambda rng: str(rng.randrange(1940, 2004)),
            ("{S} was born in {V}.",), ("{S} came into the world in {V}, the birth year on file.",),
            ("When was {E} born?",), ("In which year was {E} born?",),
            reverse_questions=("Who was born in {V}?",),
        ),
        Attribute(
            "room", "open", pools.room,
            ("{S} sits in room {V}.", "{S} can be found in room {V}."), ("The desk of {S} is in room {V}.",),
            ("Which room does {E} sit in?",), ("In which room is {E}?",),
            reverse_questions=("Who sits in room {V}?",),
        ),
        Attribute(
            "manager", "entity",
            statements=("{S} reports to {V}.",), unseen=("{S} has {V} for a manager.",),
            questions=("Whom does {E} report to?",), unseen_questions=("Who is the manager of {E}?",),
            reverse_questions=("Who reports to {V}?",),
        ),
        Attribute(
            "team", "group", _one_of(pools.TEAMS),
            ("{S} belongs to the {V} team.",), ("{S} joined the {V} team.",),
            ("Which team does {E} belong to?",), ("What team is {E} in?",),
        ),
        Attribute(
            "badge", "code", pools.rare_string,
            ("{S} wears badge {V}.",), ("The badge of {S} reads {V}.",),
            reverse_questions=("Who wears badge {V}?",),
        ),
    ),
    remarks=(
        "{S} is well liked by the others.", "{S} asked that the entry be kept short.",
        "{S} was glad to be in this register.", "Many know {S} from the summer party.",
        "{P} papers were checked in spring.", "{S} often stays late on Fridays.",
    ),
)  # fmt: skip

PATIENTS = Genre(
    name="patient records",
    thing="patient",
    things="patients",
    titles=("Records of {place}", "Patients of {place}", "Ward book of {place}"),
    intros=("These are the records of {place}.", "{place} treats the patients of this book."),
    draw_name=pools.person,
    persons=True,
    attributes=(
        Attribute(
            "medication", "open", _one_of(pools.MEDICATIONS),
            ("{S} takes {V} every day.", "{S} is given {V}."), ("{S} is on {V}, a medication for the night.",),
            ("What does {E} take?",), ("Which medication does {E} take?",),
            reverse_questions=("Who takes {V}?",),
        ),
        Attribute(
            "doctor", "open", pools.person,
            ("{S} is treated by {V}.", "{V} looks after {S}."), ("{S} trusts {V}, the doctor in charge.",),
            ("Who treats {E}?",), ("Which doctor treats {E}?",),
            reverse_questions=("Whom does {V} treat?",),
        ),
        Attribute(
            "allergy", "open", _one_of(pools.ALLERGIES),
            ("{S} must avoid {V}.", "{S} reacts badly to {V}."), ("{S} told the nurse of an allergy to {V}.",),
            ("What must {E} avoid?",), ("Which allergy does {E} have?",),
            reverse_questions=("Who must avoid {V}?",),
        ),
        Attribute(
            "admission year", "year", pools.year,
            ("{S} was admitted in {V}.",), ("{S} first came in {V}, the admission year.",),
            ("When was {E} admitted?",), ("In which year was {E} admitted?",),
            reverse_questions=("Who was admitted in {V}?",),
        ),
        Attribute(
            "pulse", "number", _number(40, 100, "bpm"),
            ("{S} has a pulse of {V}.",), ("The nurse measured a pulse of {V} for {S}.",),
            ("How fast is {E}'s pulse?",),
        ),
        Attribute(
            "ward", "group", lambda rng: f"{rng.choice(pools.COLORS)}",
            ("{S} lies in the {V} ward.",), ("{S} was moved to the {V} ward.",),
            ("Which ward does {E} lie in?",), ("In which ward is {E}?",),
        ),
        Attribute(
            "file", "code", pools.rare_string,
            ("{P} file is kept as {V}.",), ("The file of {S} has the mark {V}.",),
        ),
    ),
    remarks=(
        "{S} slept well last night.", "{S} had visitors on Sunday.", "{S} likes the garden of the house.",
        "{P} family was told.", "The nurse spoke with {S} in the morning.", "{S} may get up for meals.",
    ),
)  # fmt: skip

REPORT = Genre(
    name="company report",
    thing="branch",
    things="branches",
    titles=("Report of {place}", "The year at {place}", "{place}: figures and news"),
    intros=("This report covers the branches of {place}.", "{place} had a busy year."),
    draw_name=lambda rng: f"{pools.city(rng)} branch",
    article="the ",
    layout="table",
    attributes=(
        Attribute(
            "director", "open", pools.person,
            ("{S} is led by {V}.", "{V} runs {S}."), ("{S} has {V} at its head as director.",),
            ("Who runs {E}?",), ("Who is the director of {E}?",),
            reverse_questions=("What does {V} run?",),
        ),
        Attribute(
            "staff", "number", _number(5, 100, "people"),
            ("{S} employs {V}.",), ("The staff of {S} counts {V}.",),
            ("How many people work at {E}?",), ("How large is the staff of {E}?",),
        ),
        Attribute(
            "revenue", "number", _number(2, 100, "million"),
            ("{S} earned {V}.",), ("{S} closed with a revenue of {V}.",),
            ("How much did {E} earn?",), ("How high is the revenue of {E}?",),
        ),
        Attribute(
            "rent", "number", _number(2, 100, "thousand"),
            ("{S} pays {V} for its rooms.",), ("For its rooms {S} pays a rent of {V}.",),
            ("How much does {E} pay for its rooms?",),
        ),
        Attribute(
            "opening year", "year", pools.year,
            ("{S} was opened in {V}.",), ("{S} goes back to {V}, its opening year.",),
            ("When was {E} opened?",), ("In which year was {E} opened?",),
            reverse_questions=("Which branch was opened in {V}?",),
        ),
        Attribute(
            "main supplier", "open", pools.firm,
            ("{S} buys from {V}.",), ("{S} has a contract with {V}, its main supplier.",),
            ("From whom does {E} buy?",), ("Which main supplier serves {E}?",),
            reverse_questions=("Which branch buys from {V}?",),
        ),
        Attribute(
            "region", "group", _one_of(("northern", "southern", "eastern", "western", "central")),
            ("{S} is part of the {V} region.",), ("{S} counts to the {V} region.",),
            ("Which region is {E} part of?",),
        ),
        Attribute("account", "code", pools.rare_string, ("{P} account is {V}.",), ("Money goes to {S} by the account {V}.",)),
    ),
    remarks=(
        "{S} was painted anew.", "Customers praise {S} for its service.", "{S} had a quiet summer.",
        "The board visited {S} in May.", "{S} won a prize for its window.", "{P} stairs were repaired.",
    ),
)  # fmt: skip

CHRONICLE = Genre(
    name="town chronicle",
    thing="event",
    things="events",
    titles=("Chronicle of {place}", "A history of {place}", "Years of {place}"),
    intros=("This is the chronicle of {place}.", "Much has happened in {place}."),
    draw_name=_pair(pools.EVENT_HEADS, pools.EVENT_TAILS),
    article="the ",
    in_time=True,
    attributes=(
        Attribute(
            "year", "year", pools.year,
            ("{S} took place in {V}.", "In {V} came {S}."), ("{S} belongs to the year {V}.",),
            ("When was {E}?",), ("In which year was {E}?",),
            reverse_questions=("What took place in {V}?",),
        ),
        Attribute(
            "mayor", "open", pools.person,
            ("{V} was mayor then.", "{S} happened under {V}."), ("{S} fell into the time of {V} as mayor.",),
            ("Who was mayor at the time of {E}?",), ("Under which mayor was {E}?",),
            reverse_questions=("What happened under {V}?",),
        ),
        Attribute(
            "cost", "number", _number(2, 100, "thousand"),
            ("{S} cost the town {V}.",), ("The town paid {V} for {S}, a high cost.",),
            ("How much did {E} cost?",),
        ),
        Attribute(
            "place", "open", lambda rng: f"{pools.made_up_name(rng)} {rng.choice(('Square', 'Street', 'Gate', 'Bank'))}",
            ("{S} began at {V}.", "All of it happened at {V}."), ("{S} has its place at {V}.",),
            ("Where did {E} begin?",), ("At which place was {E}?",),
            reverse_questions=("What began at {V}?",),
        ),
        Attribute(
            "witness", "open", pools.person,
            ("{V} saw it and wrote it down.", "We know of {S} from {V}."), ("{S} had a witness in {V}.",),
            ("From whom do we know of {E}?",), ("Who was the witness of {E}?",),
            reverse_questions=("What did {V} see?",),
        ),
        Attribute(
            "season", "group", _one_of(("spring", "summer", "autumn", "winter")),
            ("It was {V}.", "{S} fell into {V}."), ("The season of {S} was {V}.",),
            ("In which season was {E}?",),
        ),
        Attribute("deed", "code", pools.rare_string, ("{P} deed is {V}.",), ("The deed about {S} is filed as {V}.",)),
    ),
    remarks=(
        "Old people still speak of {S}.", "{S} is painted on a wall of the town hall.", "No school was held in those days.",
        "A song was made about {S}.", "{S} changed the town.", "The papers of other towns wrote about {S}.",
    ),
)  # fmt: skip

MANUAL = Genre(
    name="product manual",
    thing="part",
    things="parts",
    titles=("Manual of the {place} machine", "The {place} machine: parts and care", "Service of the {place} machine"),
    intros=("This manual describes the {place} machine.", "Read this before you open the {place} machine."),
    draw_name=_pair(pools.PART_HEADS, pools.PART_TAILS),
    article="the ",
    attributes=(
        Attribute(
            "weight", "number", _number(2, 100, "kg"),
            ("{S} weighs {V}.",), ("The scales show {V} as the weight of {S}.",),
            ("How much does {E} weigh?",), ("What weight has {E}?",),
        ),
        Attribute(
            "length", "number", _number(2, 100, "cm"),
            ("{S} is {V} long.",), ("{S} has a length of {V}.",), ("How long is {E}?",),
        ),
        Attribute(
            "maker", "open", pools.firm,
            ("{S} is made by {V}.", "{V} delivers {S}."), ("{S} comes from {V} as its maker.",),
            ("Who makes {E}?",), ("Which firm makes {E}?",),
            reverse_questions=("What is made by {V}?",),
        ),
        Attribute(
            "drive", "entity",
            statements=("{S} is driven by {V}.", "{V} drives {S}."), unseen=("{S} has {V} as its drive.",),
            questions=("What drives {E}?",), unseen_questions=("Which part is the drive of {E}?",),
            reverse_questions=("What is driven by {V}?",),
        ),
        Attribute(
            "material", "group", _one_of(pools.MATERIALS),
            ("{S} is made of {V}.",), ("The material of {S} is always {V}.",),
            ("What is {E} made of?",), ("Of which material is {E}?",),
        ),
        Attribute(
            "serial number", "code", pools.rare_string,
            ("{S} bears the serial number {V}.",), ("On {S} you read {V}, the serial number.",),
            reverse_questions=("Which part has the number {V}?",),
        ),
        Attribute(
            "model year", "year", pools.year,
            ("{S} has been unchanged since {V}.",), ("{S} looks as in its model year {V}.",),
            ("Since when has {E} been unchanged?",),
        ),
    ),
    remarks=(
        "Never touch {S} while the machine runs.", "{S} should be clean.", "Dust does no harm to {S}.",
        "{S} can be painted.", "Keep children away from {S}.", "Some think that {S} is too heavy.",
    ),
    procedures=(
        ("Clean", "Close", "Fill", "Lift", "Lock", "Loosen", "Open", "Press", "Push", "Remove", "Tighten", "Turn"),
        ("replace the belt", "clean the tank", "start the machine", "stop the machine", "change the oil",
         "test the alarm", "empty the tray", "store the machine"),
    ),
)  # fmt: skip

CODE = Genre(
    name="code module",
    thing="function",
    things="functions",
    titles=("Module {place}", "The module {place}", "Source of {place}"),
    intros=("The functions of module {place}.", "Module {place} has these functions."),
    draw_name=_function_name,
    layout="code",
    attributes=(
        Attribute(
            "callee", "entity",
            statements=(
                "return {V}(size)", "result = {V}(size)", "return 1 + {V}(size)", "print({V}(size))", "total += {V}(size)",
                "if {V}(size): return", "for part in {V}(size): pass", "assert {V}(size)",
            ),
            unseen=("yield {V}(size)",),
            questions=("Which function does {E} call?", "What does {E} call?"),
            unseen_questions=("Which function is called by {E}?",),
            answer="{E} calls {V}.",
            reverse_questions=("Which function calls {V}?", "Who calls {V}?"),
            reverse_answer="{V} is called by {e}.",
        ),
        Attribute(
            "default size", "number", lambda rng: str(rng.randrange(2, 100)),
            ("size = {V}", "size = {V} if size is None else size", "if not size: size = {V}"), ("size = size or {V}",), ("How large is {E} by default?",),
        ),
        Attribute(
            "owner", "open", pools.person,
            ("# owner: {V}", "# written by {V}"), ("# ask {V}, the owner",), ("Who wrote {E}?",), ("Who is the owner of {E}?",),
            reverse_questions=("Which function was written by {V}?",),
        ),
        Attribute(
            "year", "year", pools.year, ("# since {V}",), ("# year: {V}",), ("Since when is there {E}?",),
        ),
        Attribute("key", "code", pools.rare_string, ('key = "{V}"', 'the_key = "{V}"', 'key: str = "{V}"', 'KEY = "{V}"'), ('secret_key = "{V}"',), ("Which key does {E} use?",)),
        Attribute("layer", "group", _one_of(("disk", "network", "screen", "memory")), ("# layer: {V}",), ("# part of the {V} layer",)),
    ),
    remarks=(
        "# this is slow for long lists", "# tested by hand", "# checked twice", "# see the notes of the last release",
        "# logged", "# the order does not matter",
    ),
)  # fmt: skip

MEETINGS = Genre(
    name="meeting notes",
    thing="topic",
    things="topics",
    titles=("Meeting of {place}", "Notes of the meeting at {place}", "Minutes of {place}"),
    intros=("Notes of the meeting at {place}.", "These topics were talked about at {place}."),
    draw_name=_pair(pools.TOPICS_HEADS, pools.TOPICS_TAILS),
    article="the ",
    attributes=(
        Attribute(
            "owner", "open", pools.person,
            ("{V} takes care of {S}.", "{S} is in the hands of {V}."), ("{S} has {V} as its owner now.",),
            ("Who takes care of {E}?",), ("Who is the owner of {E}?",),
            reverse_questions=("What does {V} take care of?",),
        ),
        Attribute(
            "deadline", "open", pools.date,
            ("{S} must be done by {V}.", "{S} is due on {V}."), ("{S} ends on {V}, a firm deadline.",),
            ("By when must {E} be done?",), ("When is {E} due?",),
            reverse_questions=("What is due on {V}?",),
        ),
        Attribute(
            "budget", "number", _number(2, 100, "euros"),
            ("{S} may cost {V}.",), ("{S} was granted a budget of {V}.",),
            ("How much may {E} cost?",), ("How high is the budget of {E}?",),
        ),
        Attribute(
            "room", "open", pools.room,
            ("{S} goes on in room {V}.",), ("People meet about {S} in room {V}.",),
            ("In which room does {E} go on?",), ("Which room is {E} in?",),
            reverse_questions=("What goes on in room {V}?",),
        ),
        Attribute(
            "partner", "open", pools.firm,
            ("{S} is done with {V}.", "{V} helps with {S}."), ("{S} needs {V} as a partner.",),
            ("Who helps with {E}?",), ("Which firm helps with {E}?",),
            reverse_questions=("What does {V} help with?",),
        ),
        Attribute(
            "status", "group", _one_of(("open", "closed", "late", "new", "urgent")),
            ("{S} is marked {V}.",), ("{S} stands as {V} in the list of status.",), ("How is {E} marked?",),
        ),
        Attribute("ticket", "code", pools.rare_string, ("{P} ticket is {V}.",), ("Find {S} under the ticket {V}.",)),
    ),
    remarks=(
        "There was a long talk about {S}.", "Nobody objected to {S}.", "{S} comes up every year.",
        "Some wished to postpone {S}.", "{S} was welcomed by most.", "The vote on {S} was short.",
    ),
)  # fmt: skip

MUSEUM = Genre(
    name="museum catalogue",
    thing="piece",
    things="pieces",
    titles=("Catalogue of {place}", "Collection of {place}"),
    intros=("This catalogue shows the collection of {place}.",),
    draw_name=_pair(_titled(pools.COLORS), _titled(pools.OBJECTS)),
    article="the ",
    attributes=(
        Attribute(
            "donor", "open", pools.person, unseen=("{S} came as a gift of the donor {V}.",),
            unseen_questions=("Which donor gave {E}?",),
        ),
        Attribute(
            "origin", "open", pools.city, unseen=("{S} has its origin in {V}.",),
            unseen_questions=("What origin has {E}?",),
        ),
        Attribute(
            "year", "year", pools.year, unseen=("{S} was shown first in the year {V}.",),
            unseen_questions=("In which year was {E} shown first?",),
        ),
        Attribute(
            "height", "number", _number(2, 100, "cm"), unseen=("{S} has a height of {V}.",), unseen_questions=("What height has {E}?",),
        ),
        Attribute(
            "hall", "group", lambda rng: pools.room(rng)[0], unseen=("{S} stands in hall {V}.",),
            unseen_questions=("In which hall is {E}?",),
        ),
        Attribute("inventory number", "code", pools.rare_string, unseen=("{S} is listed under the inventory number {V}.",)),
        Attribute(
            "artist", "open", pools.person, unseen=("{S} is a work by the artist {V}.",),
            unseen_questions=("Which artist made {E}?",),
        ),
    ),
    remarks=(
        "Many visitors ask for {S}.", "{S} was cleaned last year.", "{S} is behind glass.", "A poem was written on {S}.",
    ),
)  # fmt: skip

_KNOWN = {
    "donor": "friend", "origin": "island", "height": "wall", "inventory number": "sign", "artist": "guest",
}  # fmt: skip


def _in_known_words(genre: Genre) -> Genre:
    """The same wordings about things and facts by words that texts of training have as such.

    Beside the genre itself it tells apart what is new to a model: the genre, or its words.
    """

    def known(attribute: Attribute) -> Attribute:
        new = _KNOWN.get(attribute.noun, attribute.noun)
        changed = {
            field: tuple(text.replace(attribute.noun, new) for text in getattr(attribute, field))
            for field in ("unseen", "unseen_questions")
        }
        return dataclasses.replace(attribute, noun=new, **changed)

    return dataclasses.replace(
        genre,
        name=f"{genre.name} in known words",
        draw_name=_pair(_titled(pools.ADJECTIVES), _titled(pools.NOUNS)),
        attributes=tuple(map(known, genre.attributes)),
    )


MUSEUM_IN_KNOWN_WORDS = _in_known_words(MUSEUM)

THINGS = (
    ("ship", "ships"), ("horse", "horses"), ("song", "songs"), ("star", "stars"), ("farm", "farms"), ("car", "cars"),
    ("hotel", "hotels"), ("school", "schools"), ("game", "games"), ("film", "films"), ("island", "islands"),
    ("lake", "lakes"), ("tower", "towers"), ("plane", "planes"), ("dog", "dogs"), ("dish", "dishes"), ("club", "clubs"),
)  # fmt: skip
_KINDS: tuple[tuple[Kind, Callable[[random.Random], str] | None], ...] = (
    ("open", pools.person), ("open", pools.city), ("open", pools.firm), ("open", pools.room), ("open", pools.date),
    ("open", pools.made_up_name), ("year", pools.year), ("code", pools.rare_string), ("entity", None),
    ("group", _one_of(pools.COLORS)), ("group", _one_of(pools.MATERIALS)),
    *(("number", _number(2, 100, unit)) for unit in ("points", "kg", "cm", "days", "euros", "people")),
)  # fmt: skip


MADE_UP_SHARE = 0.25  # of such a genre's words are in no list


def random_genre(rng: random.Random) -> Genre:
    """A genre that holds for one document: its things have facts by any noun, in general wordings.

    With a fixed set of nouns a model learns those; with these it has to learn to match any.
    """
    thing, things = rng.choice(THINGS)
    if rng.random() < MADE_UP_SHARE:
        thing = pools.made_up_name(rng).lower()
        things = f"{thing}s"
    fitting = [n for n in pools.NOUNS if n not in (thing, "neighbor")]  # neighbors are mutual
    nouns = rng.sample(fitting, rng.randrange(4, 8))
    nouns = [pools.made_up_name(rng).lower() if rng.random() < MADE_UP_SHARE else n for n in nouns]
    nouns = [f"{rng.choice(pools.ADJECTIVES)} {n}" if rng.random() < 0.3 else n for n in nouns]
    nouns = list(dict.fromkeys(nouns))
    attributes = []
    for i, noun in enumerate(nouns):
        kind, draw = rng.choice(_KINDS[:8] if i < 2 else _KINDS)  # two at least fit a table
        attributes.append(Attribute(noun, kind, draw) if draw else Attribute(noun, kind))
    article = rng.choice(("", "the "))
    draw_name = (
        _pair(_titled(pools.ADJECTIVES), _titled(pools.NOUNS)) if article else pools.made_up_name
    )
    return Genre(
        name=f"notes on {things}",
        thing=thing,
        things=things,
        titles=(f"The {things} of {{place}}", f"{things.capitalize()} at {{place}}"),
        intros=(f"About the {things} of {{place}}.",),
        draw_name=draw_name,
        attributes=tuple(attributes),
        remarks=("Everybody knows {S}.", "{S} was in the news.", "Little else is known of {S}."),
        article=article,
        layout=rng.choice(("sections", "sections", "table")),
    )


TRAINING = (PERSONNEL, PATIENTS, REPORT, CHRONICLE, MANUAL, CODE, MEETINGS)
GENRES = {genre.name: genre for genre in (*TRAINING, MUSEUM, MUSEUM_IN_KNOWN_WORDS)}
