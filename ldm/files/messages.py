"""What errors quote of a file: in one line, and never long."""

import reprlib

LONGEST = 400  # characters of a quoted text

QUOTE = reprlib.Repr()
QUOTE.maxlevel, QUOTE.maxlist, QUOTE.maxtuple, QUOTE.maxdict = 2, 8, 8, 4
QUOTE.maxstring = QUOTE.maxother = QUOTE.maxlong = 120


def quoted(value: object) -> str:
    """Returns the repr of a value, cut where it is long or deep."""
    return one_line(QUOTE.repr(value))


def one_line(text: object) -> str:
    """Returns a text in one line of printable characters, cut where it is long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)[: 2 * LONGEST]).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
