"""What makes another number, or none, of the number beside it. In every text here the number is written as 0."""

import re
import unicodedata

# Words that count wherever they stand.
NEGATION = (
    r"not|never|nope|neither|nor|none|cannot|wrong|incorrect|false|mistake\w*|impossible|invalid|except|excluding|without"
    r"|instead|rather|unlike|but|no longer|too|wait|actually|i mean"
)
HEDGE = (
    r"approx\w*|roughly|nearly|almost|circa|ca|close|maybe|perhaps|possibly|probably|likely|might|may be|could be|ish"
    r"|guess\w*|estimated?|give or take|hardly|barely|virtually|practically|region|vicinity|ballpark|neighbou?rhood"
    r"|suppos\w*|assum\w*|unsure|uncertain|unclear"
)
BOUND = r"at (?:the )?(?:very )?(?:least|most)|than|up to|(?:min|max)imum of|exceed\w*|shy|short of|counting"
CHOICE = r"or|either|if|unless|otherwise|whether"
PART = (
    r"hal(?:f|ve)[ds]?|(?:third|quarter|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|\w+teen|\w+tie|hundred"
    r"|thousand|million|billion)th)s?|(?:doubl|tripl)e[ds]?|twice|thrice|root|point"
)
OPERATION = (
    r"plus|minus|less(?!\W*$)|divided|multiplied|squared|cubed|mod|base|choose|log|ln|sin|cos|tan|exp|abs|sqrt|factorial"
    r"|pi|(?:square|cube|product) of|reciprocal|inverse|opposite"
)
ANYWHERE = re.compile(
    rf"\b(?:{NEGATION}|{HEDGE}|{BOUND}|{CHOICE}|{PART}|{OPERATION})\b|n['’]t\b|\dish\b", re.IGNORECASE
)
# Words that count before the number only, for "18 books about cats" and "18 min" name one.
BEFORE = re.compile(
    r"\b(?:from|over|under|below|above|beyond|past|after|before|between|min|max)\W+0"
    r"|\b(?:about|around|near|some)\b(?:\W+\w+)?\W+0|\b(?:about|around)\W*$",
    re.IGNORECASE,
)
# "18 times", "18x as many" name a number; "18 times the price" and 18x + 2 name another one that is not known.
TIMES = r"(?!\W*$| (?:as|a|an|per|each|every|more|in)\b)"
AFTER = re.compile(
    rf"0 ?(?:times|x)\b{TIMES}|0 x\b|0 (?:grand|gross|score|minimum|maximum|(?:two|five|ten)s|\w+ties)\b"
    r"|0[- ](?:first|second)\b|0 \w+(?:illion|and|red)-|0 and\b|0\b.*\bno\b"
    r"|0[abefijnqruyz]\b|0 ?[-+*/×÷·−–]? ?[yzni]\b|0 ?[-+*/×÷·−–] ?x\b",
    re.IGNORECASE,
)
SIGNS = re.compile(
    r"[<>≤≥≠≈~±√∛π∞^_|⌊⌈]|\*\*|!=|\+/-|[/×÷·] ?0\b|—\W*0|\btimes\W+0|[a-z]\(\W*0|0 ?[+*/×÷·] ?[a-z]", re.IGNORECASE
)


def is_doubtful(text: str) -> bool:
    """Whether the text around a number changes the number or withdraws it."""
    other_digits = any(unicodedata.category(character) in ("No", "Nl") for character in text)
    return other_digits or any(pattern.search(text) for pattern in (ANYWHERE, BEFORE, AFTER, SIGNS))
