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

EMPLOYER_HEADS = """
Amber Anchor Arrow Beacon Birch Bridge Cedar Cobalt Copper Coral Crown Delta Eagle Falcon Garnet
Granite Harbor Hazel Ivory Juniper Lantern Lotus Maple Meadow Nova Onyx Orbit Pearl Pine Prairie
Quartz Raven River Saffron Silver Summit Thunder Tulip Velvet Willow
""".split()

EMPLOYER_TAILS = """
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

SYLLABLES = """
ba be bran cor da del dor dra el fen gar gol hal han ja ka kel kor la len lin lor ma mar mel mir
na nel nor ol or pel per ra ran ren ri ros sal sel sha sti ta tan tor tri va val ven vik wen yor
zan zel
""".split()

MADE_UP_SHARE = 0.15  # share of last names and cities that are in no list


def made_up_name(rng: random.Random) -> str:
    """Draws a name of two or three syllables, such as "Kelmarvik"."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3)))).capitalize()


def pick_name(rng: random.Random, pool: Sequence[str]) -> str:
    """Draws from `pool`, or sometimes makes a name up."""
    return made_up_name(rng) if rng.random() < MADE_UP_SHARE else rng.choice(pool)
