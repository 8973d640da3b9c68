"""The words of the field: phrases that a reader would not search for are not used."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLACES = ("probssl/**/*.py", "models/*.py", "docs/**/*.md", "*.md", "notebooks/*.ipynb")
FILES = sorted(path for place in PLACES for path in ROOT.glob(place))

# A pattern, and what is written in its place.
BANNED = {
    r"\bway back\b": "backward pass",
    r"\bslow (teacher|copy)\b": "momentum encoder, or EMA of the encoder",
    r"\bask(s|ed)?( of)? the host\b": "synchronise with the host",
    r"(?<![a-z])slopes?(?![a-z])": "gradient, derivative",
    r"\btak(e|es|en|ing) for zero\b": "flush to zero",
    r"\blikeliest\b": "maximum likelihood",
    r"\b(is|are|was|were) told\b": "is given, is distinguished",
    r"\boverheard\b|(?<![a-z])(ear|heard)(?![a-z])": "intermediate output",
    r"\bmade again\b": "recomputed, built again",
    r"\bwhat of\b": "a clause with a subject",
    r"\bsaid once\b": "warned once",
    r"\bNone is none\b": "None means",
    r"\bas (it|they) lies?\b": "unchanged",
    r"\bthere is to\b": "a clause with a subject",
    r"\bresamples lie\b": "bootstrap interval",
    r"\bgoing back\b": "backward pass",
    r"\bwhat is behind\b": "projection head, projector",
    r"\bfind(s|ing)? the image\b": "reconstruct",
}
# Places where a word has its plain sense: of a line; an argument of zuko.
ALLOWED = {"slope": ("probssl/linear/", "guides/flow.py", "notebooks/2-limits")}


def prose(path: Path) -> str:
    """The text of a file; of a notebook its sources, without the output."""
    text = path.read_text()
    if path.suffix != ".ipynb":
        return text
    return "".join("".join(c["source"]) + "\n" for c in json.loads(text)["cells"])


@pytest.mark.parametrize("pattern", BANNED)
def test_the_word_of_the_field_is_used(pattern):
    found = []
    for path in FILES:
        name = str(path.relative_to(ROOT))
        for number, line in enumerate(prose(path).splitlines(), 1):
            for match in re.finditer(pattern, line, re.IGNORECASE):
                places = ALLOWED.get(match[0].lower().removesuffix("s"), ())
                if not any(place in name for place in places):
                    found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not found, f"write {BANNED[pattern]}:\n" + "\n".join(found)
