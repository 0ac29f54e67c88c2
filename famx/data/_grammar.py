"""A small grammar of English: digit strings, spelled words, dates, times and short commands."""

import re
from collections.abc import Iterator
from random import Random

# rule -> its words
WORDS = {
    "digit": "zero one two three four five six seven eight nine",
    "nonzero_digit": "one two three four five six seven eight nine",
    "teen": "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen",
    "tens": "twenty thirty forty fifty sixty seventy eighty ninety",
    "ordinal": "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth "
    "thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth "
    "thirtieth",
    "hour": "one two three four five six seven eight nine ten eleven twelve",
    "weekday": "monday tuesday wednesday thursday friday saturday sunday",
    "month": "january february march april may june july august september october november "
    "december",
    "name": "anna david emma george helen jack laura martin peter robert sarah victor",
    "noun": "apple bird box chair dog fish house jazz milk queen river velvet",
    "room": "kitchen bedroom bathroom garden garage hall office cellar",
    "thing": "lamp light heater fan radio television computer oven",
    "movable": "window door gate curtain box",
    "colour": "red green blue yellow white black orange purple",
    "media": "song album story book film",
    "unit": "seconds minutes hours days weeks",
    "errand": "shopping cooking washing swimming school lunch dinner breakfast",
    "goods": "apples shirts bottles bags",
    "destination": "station airport hospital market",
    "switch": "on off",
    "move": "open close",
    "playback": "stop start repeat",
    "direction": "left right",
    "before_or_after": "past to",
    "change": "warmer colder brighter darker",
    "part_of_day": "morning afternoon evening",
}

SPELLED_WORDS = [*WORDS["noun"].split(), *WORDS["name"].split()]
# strings of three to seven digits
DIGIT_STRINGS = ["{digit}" + (length - 1) * " {digit}" for length in (3, 4, 5, 6, 7)]
# words followed by their letters
SPELLINGS = [f"{word} {' '.join(word)}" for word in SPELLED_WORDS]

# rule -> its templates; {digit} is replaced by a word or a template of the rule `digit`. A template
# that is listed twice is twice as likely.
TEMPLATES = {
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
    "string": DIGIT_STRINGS,
    "spelled": [
        "{letters}",
        "spell {letters} for {name}",
        "{name} spells {letters}",
        "the word is {letters}",
    ],
    "letters": SPELLINGS,
    "number": [
        "{nonzero_digit}",
        "{teen}",
        "{tens}",
        "{tens} {nonzero_digit}",
        "{tens} {nonzero_digit}",
    ],
    "year": ["nineteen {tens} {nonzero_digit}", "twenty {teen}", "twenty {tens} {nonzero_digit}"],
    "date": [
        "{weekday} the {ordinal} of {month}",
        "the {ordinal} of {month} {year}",
        "{month} the {ordinal} {year}",
        "remind me on {weekday} the {ordinal}",
        "{name} was born in {month} {year}",
    ],
    "minutes": ["{nonzero_digit}", "{teen}", "twenty", "twenty {nonzero_digit}", "a quarter"],
    "clock": [
        "{minutes} {before_or_after} {hour}",
        "{minutes} {before_or_after} {hour}",
        "half past {hour}",
    ],
    "time": [
        "it is {clock} in the {part_of_day}",
        "wake me at {clock} on {weekday}",
        "{errand} starts at {hour} o'clock in the {part_of_day}",
        "set an alarm for {hour} {teen} in the {part_of_day}",
        "meet {name} at {clock}",
    ],
    "command": [
        "turn {switch} the {thing} in the {room}",
        "switch the {colour} {thing} {switch}",
        "{move} the {movable} in the {room} please",
        "play the {media} number {number}",
        "{playback} the {media} in the {room}",
        "set a timer for {number} {unit}",
        "make the {room} {change} by {number} percent",
        "send a message to {name} about {errand}",
        "go {direction} then {direction} after {nonzero_digit} hundred meters",
        "add {number} {colour} {goods}",
        "how far is the {destination} from the {destination}",
    ],
}

RULES: dict[str, list[str]] = {rule: words.split() for rule, words in WORDS.items()} | TEMPLATES


def sentences(seed: int) -> Iterator[str]:
    """Yields endless distinct sentences in lower case."""
    random = Random(seed)

    def expand(rule: str) -> str:
        template = random.choice(RULES[rule])
        return re.sub(r"{(\w+)}", expand_match, template)

    def expand_match(match: re.Match[str]) -> str:
        return expand(match[1])

    yielded: set[str] = set()
    while True:
        sentence = expand("sentence")
        if sentence not in yielded:
            yielded.add(sentence)
            yield sentence
