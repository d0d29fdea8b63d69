"""Words that the procedural documents draw their names and values from.

Values are drawn fresh for every document, so a model can only read them, never know them. A part
of the names is put together from syllables: no list of names is complete.
"""

import random
from collections.abc import Sequence

FIRST_NAMES = """
Ada Alan Alma Amir Anna Anton Ari Bela Ben Berta Boris Carl Carla Cecil Clara Cora Dana Daniel
David Dora Edgar Edith Elena Elias Emil Emma Erik Esther Eva Felix Fiona Frank Frida George Gina
Greta Hana Hans Harold Helen Henry Hilda Hugo Ida Igor Ines Ingrid Iris Ivan Jack James Jana
Jean Jonas Julia Karim Karl Kate Klara Lara Laura Lea Leo Lina Lisa Louis Lucy Luis Magda Marco
Maria Marta Martin Max Mia Mila Mina Nadia Nina Nora Olga Oscar Otto Paul Pavel Petra Quinn
Rachel Ralph Rita Robert Rosa Ruth Sam Sara Simon Sofia Sven Tara Thomas Tina Tom Uma Vera
Victor Viola Walter Wanda Yara Yusuf Zoe
""".split()

LAST_NAMES = """
Abbott Adler Archer Baker Barlow Becker Bell Berg Bishop Black Brandt Brown Bruno Burke Carter
Castle Chan Clark Cole Cook Costa Cross Dahl Dalton Diaz Doyle Drake Dunn Ellis Falk Farrow
Fisher Flynn Ford Fox Frost Garcia Gibson Grant Gray Green Hale Hansen Hardy Hart Hayes Hill
Holm Hunt Jansen Jensen Kane Keller Kent King Klein Koch Lamb Lang Larsen Lee Lewis Lopez Lund
Marsh Mason Meyer Miller Moore Morgan Moss Murray Nash Nolan Novak Olsen Owen Page Park Patel
Perry Pope Porter Price Quist Ramos Reed Rossi Rowe Russo Sato Shaw Silva Stone Swan Tanner
Torres Vance Vogel Wagner Walsh Ward Weber West White Wolf Wood Wright York Young Zimmer
""".split()

FEMALE = frozenset(
    """
    Ada Alma Anna Bela Berta Carla Clara Cora Dana Dora Edith Elena Emma Esther Eva Fiona Frida
    Gina Greta Hana Helen Hilda Ida Ines Ingrid Iris Jana Jean Julia Kate Klara Lara Laura Lea
    Lina Lisa Lucy Magda Maria Marta Mia Mila Mina Nadia Nina Nora Olga Petra Rachel Rita Rosa
    Ruth Sara Sofia Tara Tina Uma Vera Viola Wanda Yara Zoe
    """.split()
)

JOBS = """
baker barber brewer butcher carpenter cashier chemist clerk cook courier dancer dentist designer
detective diver doctor driver farmer fisherman florist gardener geologist guard hunter jeweler
journalist judge lawyer librarian locksmith mason mechanic miner musician nurse painter
pharmacist photographer pilot plumber poet porter potter printer professor roofer sailor
sculptor singer surgeon tailor teacher translator waiter weaver welder zoologist
""".split()

FIRM_HEADS = """
Amber Anchor Arrow Beacon Birch Bridge Cedar Cobalt Copper Coral Crown Delta Eagle Falcon Garnet
Granite Harbor Hazel Ivory Juniper Lantern Lotus Maple Meadow Nova Onyx Orbit Pearl Pine Prairie
Quartz Raven River Saffron Silver Summit Thunder Tulip Velvet Willow
""".split()

FIRM_TAILS = """
Foods Mills Group Labs Motors Press Bank Works Textiles Shipping Energy Systems
""".split()

CITIES = """
Accra Algiers Ankara Antwerp Athens Auckland Baku Bari Basel Bergen Berlin Bilbao Bogota Bonn
Boston Bremen Brno Bruges Bursa Cairo Calgary Cardiff Chicago Cologne Cork Dakar Dallas Delhi
Denver Doha Dresden Dublin Durban Essen Florence Geneva Genoa Ghent Glasgow Graz Hamburg Hanoi
Havana Kiel Kyoto Lagos Leeds Leipzig Lille Lima Lisbon London Lyon Madrid Malmo Manila Miami
Milan Minsk Munich Nairobi Nantes Naples Nice Oporto Osaka Oslo Ottawa Paris Perth Plovdiv Porto
Prague Quito Riga Rome Rouen Seattle Seoul Seville Sofia Split Sydney Tallinn Tampere Tokyo
Toronto Toulouse Trieste Tunis Turin Utrecht Valencia Venice Verona Vienna Vilnius Warsaw York
Zagreb Zurich
""".split()

MEDICATIONS = """
Abiron Acetal Altozan Balvex Benzolin Cardex Celmira Corvinol Daxol Dermalin Elvira Enoxil
Fenadol Fluvane Gastrim Glucoral Hexadine Ibunova Inderal Kalvex Lipovan Loxapin Medrona
Metrazol Mirapin Nalvex Neurolin Novidex Omezal Oxaline Pantovir Paxolen Ramizol Sedalin
Simvarex Talinol Ternafil Urovan Valdexin Zentapril
""".split()

TEAMS = """
accounts archive catering design export finance garden import legal music night planning press
repair research safety sales security shipping support training transport travel welfare
""".split()

EVENT_HEADS = """
Bridge Canal Castle Church Coal Corn Dam Ferry Forest Garden Grain Harbor Harvest Hill Hotel Lake
Market Mill Mine Paper Quarry Railway River School Silk Snow Station Theater Tower Town Tram Water
Wine Wool
""".split()

EVENT_TAILS = """
Accord Ball Collapse Council Debate Exhibition Fair Festival Fire Flood Hearing Opening Parade
Reform Riot Rescue Scandal Storm Strike Survey Trial Visit
""".split()

PART_HEADS = """
back center drain drive feed filter front gas heat inner left lower main oil outer rear reserve
return right safety side steam top upper vent water
""".split()

PART_TAILS = """
arm belt bolt cable clamp cover fan flap frame gear guard handle hinge hose housing lever motor
nozzle panel pipe plate pump ring rod screen seal sensor shaft spring switch tank tray valve wheel
""".split()

MATERIALS = """
aluminum brass bronze carbon ceramic copper glass iron nickel nylon rubber steel tin zinc
""".split()

VERBS = """
build check clean close collect convert copy count create delete draw fetch fill find join list
load merge move open pack parse plan print read remove save scan send show sort split start store
sum test trim update write
""".split()

CODE_NOUNS = """
account batch block buffer cache chunk column config date entry event field file filter frame
graph header image index item key label layer line log map matrix menu node order packet page
path pixel queue record report request result route row score session shape signal state stream
string table task text token tree user value vector window word
""".split()

TOPICS_HEADS = """
annual autumn budget building canteen city client coffee computer contract customer data door
elevator energy fire floor furniture garden heating kitchen lamp library lunch machine mail night
office parking phone printer project roof server spring staff stock summer ticket visitor window
winter
""".split()

TOPICS_TAILS = """
audit auction award brochure calendar cleanup contest course delivery event fund lease list
meeting order party plan policy purchase refund renewal repair report review sale schedule survey
tour trip upgrade vote
""".split()

COLORS = """
amber black blue brown crimson gold gray green indigo ivory olive orange pink purple red silver
white yellow
""".split()

OBJECTS = """
altar armor atlas banner bell bowl box bracelet bust candle chair chest clock coin comb cradle
crown cup dagger desk drum fan flute globe goblet harp helmet jar lamp lute mask medal mirror mug
necklace pendant plate ring robe saddle scroll shield spoon statue sword tapestry throne urn vase
""".split()

ALLERGIES = """
almonds apples bees cats celery cheese dogs dust eggs fish horses kiwi latex milk mold nuts oats
onions peaches peanuts pollen rice rye sesame shrimp soy tomatoes walnuts wheat wool
""".split()

MONTHS = """
January February March April May June July August September October November December
""".split()

ADJECTIVES = """
bright busy calm careful clear cold cool curious dark dry early easy fair famous fine friendly
full gentle good happy heavy honest large late light little local long loud narrow new odd old
open plain polite proud quick quiet rare rough round sharp short simple slow small smooth soft
steady strange strong sudden tall thin tidy usual warm wide young
""".split()

NOUNS = """
bird boat book box bread card chair child clock cloud coat corner crowd desk dinner dog door
engine evening fence field floor flower friend guest hall hill horse house idea island key lamp
letter light list market meal morning music neighbor news night note paper path picture plan
poem rain road room school season shop sign song spring stair stone story street summer table
tale tea train tree visitor voice wall water weather wind window winter word
""".split()

DOING = """
became bought carried changed counted covered crossed drew followed found heard helped kept knew
left liked lost made met moved needed opened painted passed played praised reached remembered
repaired sang saw sent showed sold stayed told took touched visited wanted watched wrote
""".split()

SYLLABLES = """
ba be bran cor da del dor dra el fen gar gol hal han ja ka kel kor la len lin lor ma mar mel mir
na nel nor ol or pel per ra ran ren ri ros sal sel sha sti ta tan tor tri va val ven vik wen yor
zan zel
""".split()

MADE_UP_SHARE = 0.25  # share of last names and cities that are in no list


def made_up_name(rng: random.Random) -> str:
    """Draws a name of two or three syllables, such as "Kelmarvik"."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3)))).capitalize()


def pick_name(rng: random.Random, pool: Sequence[str]) -> str:
    """Draws from `pool`, or sometimes makes a name up."""
    return made_up_name(rng) if rng.random() < MADE_UP_SHARE else rng.choice(pool)


def person(rng: random.Random) -> str:
    return f"{rng.choice(FIRST_NAMES)} {pick_name(rng, LAST_NAMES)}"


def firm(rng: random.Random) -> str:
    return f"{pick_name(rng, FIRM_HEADS)} {rng.choice(FIRM_TAILS)}"


def city(rng: random.Random) -> str:
    return pick_name(rng, CITIES)


def year(rng: random.Random) -> str:
    return str(rng.randrange(1900, 2021))


def date(rng: random.Random) -> str:
    return f"{rng.randrange(1, 29)} {rng.choice(MONTHS)}"


def room(rng: random.Random) -> str:
    return f"{rng.choice('ABCDEFGH')}{rng.randrange(10, 60)}"


def rare_string(rng: random.Random) -> str:
    """A serial number, a key or a path in one of many forms, such as "QX-7042-bf"."""
    forms = (
        "LL-dddd",
        "dddd-LLL",
        "Ldd-Ldd",
        "hhhhhh",
        "LLdd-hhh",
        "d.dd.ddd",
        "/h/hhh",
        "LLLL-dd-h",
    )
    letters = {"L": "ABCDEFGHJKLMNPQRSTUVWXYZ", "d": "0123456789", "h": "0123456789abcdef"}
    return "".join(rng.choice(letters.get(c, c)) for c in rng.choice(forms))


def sentence(rng: random.Random) -> str:
    """A sentence about nothing, such as "the quiet boat followed a bird in the early evening"."""
    a, b = rng.choice(ADJECTIVES), rng.choice(ADJECTIVES)
    x, y, z = (rng.choice(NOUNS) for _ in range(3))
    core = f"the {a} {x} {rng.choice(DOING)} {rng.choice(('one', 'the', 'every'))} {y}"
    return rng.choice(
        (core, f"{core} near the {b} {z}", f"{core} in the {z}", f"{core} for the {b} {z}")
    )
