"""A small English of a few hundred words: digit strings, spelled words, dates, times and short commands."""

import re
from collections.abc import Iterator
from random import Random

LISTS = {
    "digit": "zero one two three four five six seven eight nine",
    "few": "one two three four five six seven eight nine",
    "teen": "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen",
    "tens": "twenty thirty forty fifty sixty seventy eighty ninety",
    "ordinal": "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth",
    "hour": "one two three four five six seven eight nine ten eleven twelve",
    "weekday": "monday tuesday wednesday thursday friday saturday sunday",
    "month": "january february march april may june july august september october november december",
    "name": "anna david emma george helen jack laura martin peter robert sarah victor",
    "noun": "apple bird box chair dog fish house jazz milk queen river velvet",
    "room": "kitchen bedroom bathroom garden garage hall office cellar",
    "thing": "lamp light heater fan radio television computer oven",
    "opening": "window door gate curtain box",
    "colour": "red green blue yellow white black orange purple",
    "media": "song album story book film",
    "unit": "seconds minutes hours days weeks",
    "errand": "shopping cooking washing swimming school lunch dinner breakfast",
    "goods": "apples shirts bottles bags",
    "place": "station airport hospital market",
    "switch": "on off",
    "open": "open close",
    "do": "stop start repeat",
    "side": "left right",
    "past": "past to",
    "more": "warmer colder brighter darker",
    "part": "morning afternoon evening",
}

FRAMES = {
    "sentence": [
        *["{digits}"] * 6,
        *["{command}"] * 6,
        *["{date}"] * 3,
        *["{time}"] * 3,
        *["{spelled}"] * 2,
    ],
    "digits": [
        "{string}",
        "{string}",
        "call {string}",
        "the number is {string}",
        "my code is {string}",
    ],
    "string": [" ".join(["{digit}"] * length) for length in (3, 4, 5, 6, 7)],
    "spelled": [
        "{letters}",
        "spell {letters} for {name}",
        "{name} spells {letters}",
        "the word is {letters}",
    ],
    "letters": [f"{word} {' '.join(word)}" for word in f"{LISTS['noun']} {LISTS['name']}".split()],
    "number": ["{few}", "{teen}", "{tens}", "{tens} {few}", "{tens} {few}"],
    "year": ["nineteen {tens} {few}", "twenty {teen}", "twenty {tens} {few}"],
    "date": [
        "{weekday} the {ordinal} of {month}",
        "the {ordinal} of {month} {year}",
        "{month} the {ordinal} {year}",
        "remind me on {weekday} the {ordinal}",
        "{name} was born in {month} {year}",
    ],
    "minutes": ["{few}", "{teen}", "twenty", "twenty {few}", "a quarter"],
    "clock": ["{minutes} {past} {hour}", "{minutes} {past} {hour}", "half past {hour}"],
    "time": [
        "it is {clock} in the {part}",
        "wake me at {clock} on {weekday}",
        "{errand} starts at {hour} o'clock in the {part}",
        "set an alarm for {hour} {teen} in the {part}",
        "meet {name} at {clock}",
    ],
    "command": [
        "turn {switch} the {thing} in the {room}",
        "switch the {colour} {thing} {switch}",
        "{open} the {opening} in the {room} please",
        "play the {media} number {number}",
        "{do} the {media} in the {room}",
        "set a timer for {number} {unit}",
        "make the {room} {more} by {number} percent",
        "send a message to {name} about {errand}",
        "go {side} then {side} after {few} hundred meters",
        "add {number} {colour} {goods}",
        "how far is the {place} from the {place}",
    ],
}

RULES = {name: words.split() for name, words in LISTS.items()} | FRAMES


def sentences(seed: int) -> Iterator[str]:
    """An endless line of sentences in lower case, no two of them equal."""
    random = Random(seed)

    def expand(rule: str) -> str:
        return re.sub(r"{(\w+)}", lambda found: expand(found[1]), random.choice(RULES[rule]))

    said: set[str] = set()
    while True:
        sentence = expand("sentence")
        if sentence not in said:
            said.add(sentence)
            yield sentence
