"""python tests/ldm/svg_fuzz.py [--cases 10000] [--seed 0] [--first 0]: parses damaged and hostile SVG texts.

A case is well if it is parsed, or if ValueError is raised with one line, within 2 s of CPU and 500 MB, and if meanwhile
nothing is opened, connected to, started, compiled or executed (as Python's audit hooks report). Every other case is
printed with its number, and `--first NUMBER --cases 1` repeats it. Exits with 1 if there is any.
"""

import argparse
import random
import resource
import sys
import time
from collections import Counter

from ldm.svg.drawing import to_svg
from ldm.svg.parsing import LONGEST, parse

SECONDS, MEMORY = 2.0, 500 * 2**20
FORBIDDEN = ("open", "socket.", "urllib.", "subprocess.", "os.", "exec", "compile", "import", "ctypes.", "shutil.")
HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 24 24">'
WHOLE = [
    f'{HEAD}<path d="M1 1h10v10a5 3 20 0 1-4 4zM3 3q2 2 4 0t4 0s1 1 2 2z" fill-rule="evenodd"/></svg>',
    f'{HEAD}<g fill="none" stroke="red" stroke-width="2"><path d="M3 12h.01M5.5.5.25 6e-1"/><circle r="2"/></g></svg>',
    f'{HEAD}<rect x="1" y="2" width="9" height="7" rx="2" transform="rotate(30 12 12) scale(.5)"/></svg>',
    f'{HEAD}<title>an icon</title><polygon points="1,1 20,3 7 19"/><ellipse cx="9" cy="9" rx="4" ry="2"/></svg>',
    f'{HEAD}<g stroke="#000" style="fill:none;stroke-width:1.5px"><line x1="1" y1="2" x2="3" y2="9"/></g></svg>',
]
FILE = "/etc/passwd"
HOST = "http://localhost:9/"
ENTITIES = '<!DOCTYPE svg [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
)
HOSTILE = [
    f"{ENTITIES}]><svg>&j;</svg>",
    f'<!DOCTYPE svg [<!ENTITY a SYSTEM "file://{FILE}">]>{HEAD}<title>&a;</title></svg>',
    f'<!DOCTYPE svg SYSTEM "{HOST}x.dtd">{HEAD}</svg>',
    f'<!DOCTYPE svg [<!ENTITY % p SYSTEM "{HOST}p"> %p;]>{HEAD}</svg>',
    f'<?xml-stylesheet href="{HOST}a.css"?>{HEAD}</svg>',
    f"{HEAD}<script>alert(1)</script></svg>",
    f'{HEAD}<path d="M0 0h1v1z" onload="alert(1)"/></svg>',
    f'{HEAD}<image href="{HOST}a.png" width="9" height="9"/></svg>',
    f'{HEAD}<image xlink:href="file://{FILE}"/></svg>',
    f'{HEAD}<use href="{HOST}a.svg#b"/></svg>',
    f'{HEAD}<g id="a"><use xlink:href="#a"/><use xlink:href="#a"/></g></svg>',
    f"{HEAD}<style>@import url({HOST}a.css);</style></svg>",
    f'{HEAD}<path d="M0 0h9v9z" fill="url({HOST}a.svg#b)"/></svg>',
    f'{HEAD}<path d="M0 0h9v9z" style="fill: URL(file://{FILE})"/></svg>',
    f"{HEAD}<foreignObject><iframe src='{HOST}'/></foreignObject></svg>",
    f'{HEAD}<animate attributeName="d" to="M0 0"/></svg>',
    f"{HEAD}<text>{'a' * 1000}</text></svg>",
    HEAD + "<g>" * 30_000,
    f'{HEAD}<path d="M0 0{"h1v1" * 24_000}z"/></svg>',
    f'{HEAD}<path d="M0 0{"a1 1 0 0 1 1 1" * 7_000}z"/></svg>',
    f'{HEAD}<path d="M0 0{"h1v1" * 900}z"/></svg>',
    f'{HEAD}<path d="M0 0L{"1 " * 11_000}z"/></svg>',
    f'{HEAD}<path d="M0 0C{"1 " * 11_994}z"/></svg>',
    HEAD + '<rect width="1" height="1"/>' * 3000 + "</svg>",
    f'{HEAD}<path fill-rule="evenodd" d="{"M0 0q9 9 5 5z" * 100}"/></svg>',
    f'{HEAD}<path fill-rule="evenodd" d="{"M0 0h1v1z" * 200}"/></svg>',
    f'{HEAD}<path d="M0 0h{"9" * 90_000}v1z"/></svg>',
    f'{HEAD}<path d="{"-" * 90_000}"/></svg>',
    f'{HEAD}<path d="M0 0h1v1z" transform="{"scale(9)" * 10_000}"/></svg>',
    f'{HEAD}<polygon points="{"1 " * 45_001}"/></svg>',
    f'{HEAD}<path d="{"M0 0h1v1z" * (LONGEST // 5)}"/></svg>',
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1e308 1e308"><path d="M0 0h1v1z"/></svg>',
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1e-300 1e-300"><path d="M0 0h1v1z"/></svg>',
    f'{HEAD}<path d="M0 0A1e300 1e-300 0 1 1 9 9z"/></svg>',
    f'{HEAD}<path d="M0 0h9v9z" transform="matrix(1e300 1e300 1e300 1e300 0 0)"/></svg>',
    f'{HEAD}<path d="M0 0h9v9z" transform="matrix(0 0 0 0 0 0)"/></svg>',
    "",
    "\x00",
    "\ud800",
    "<",
    "not an svg",
    "<html/>",
]
ODD = [
    "",
    "-",
    "1e999",
    "nan",
    "inf",
    "0",
    "-1",
    "9" * 400,
    "1e-400",
    "%",
    "5%",
    "2em",
    "none",
    "url(#a)",
    "\n",
    "é",
    "M",
    "z",
]


def case(number: int, seed: int) -> str:
    """Returns the text of a case: a hostile one as it is or damaged, or a whole one that is damaged."""
    draw = random.Random(f"{seed} {number}")
    if number < len(HOSTILE):
        return HOSTILE[number]
    if draw.random() < 0.05:
        text = draw.choice([text for text in HOSTILE if 0 < len(text) < 5000])
    else:
        text = draw.choice(WHOLE)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        i, length = draw.randrange(len(text) + 1), draw.choice((1, 1, 2, 5, 30))
        match draw.randrange(7):
            case 0:
                text = text[:i] + chr(draw.randrange(1, 128)) + text[i + 1 :]
            case 1:
                text = text[:i] + text[i + length :]
            case 2:
                text = text[:i] + text[i : i + length] * draw.choice((2, 3, 50)) + text[i + length :]
            case 3:
                text = text[:i] + draw.choice(ODD) + text[i:]
            case 4:
                words = text.split('"')
                j = draw.randrange(len(words))
                words[j] = draw.choice(ODD)
                text = '"'.join(words)
            case 5:
                numbers = [j for j, letter in enumerate(text) if letter.isdigit()]
                if numbers:
                    j = draw.choice(numbers)
                    text = text[:j] + draw.choice(ODD) + text[j + 1 :]
            case 6:
                other = draw.choice(WHOLE)
                j = draw.randrange(len(other))
                text = text[:i] + other[j : j + length] + text[i:]
        text = text or "<"
    return text


HEARD: list[str] = []  # events while a case is parsed
LISTENING = [False]


def listen(event: str, arguments: tuple[object, ...]) -> None:
    if LISTENING[0] and event.startswith(FORBIDDEN):
        HEARD.append(event)


def outcome(text: str) -> tuple[str, str]:
    """Parses a text. Returns "parsed", "refused" or what is wrong, and the message."""
    before, start, kind, message = peak(), time.process_time(), "parsed", ""
    HEARD.clear()
    LISTENING[0] = True
    try:
        drawing = parse(text)
        again = parse(to_svg(drawing)) if drawing.paths else drawing
        if (again.stroke is None) != (drawing.stroke is None):
            kind = "is written as another"
    except ValueError as error:
        kind, message = "refused", str(error)
        if len(message.splitlines()) != 1 or not message.isprintable() or len(message) > 300:
            kind = "not one readable line"
    except Exception as error:
        kind, message = type(error).__name__, str(error)
    LISTENING[0] = False
    if HEARD:
        kind = f"reached out: {', '.join(sorted(set(HEARD)))}"
    if time.process_time() - start > SECONDS:
        kind = f"{time.process_time() - start:.1f} s"
    if peak() - before > MEMORY:
        kind = f"{(peak() - before) / 2**20:.0f} MB"
    return kind, message


def peak() -> int:
    """Returns the most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(first: int, cases: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Returns how often each outcome was, and a line for each case that is not well."""
    for text in WHOLE:
        parse(text)  # whatever is imported at the first use
    sys.addaudithook(listen)
    counts, bad = Counter[str](), []
    for number in range(first, first + cases):
        kind, message = outcome(case(number, seed))
        counts[kind] += 1
        if kind not in ("parsed", "refused"):
            bad.append(f"{number}: {kind}: {message[:300]!r}")
    return counts, bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("cases", 10_000), ("seed", 0), ("first", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    counts, bad = run(given.first, given.cases, given.seed)
    print(*bad[:100], *(f"{count} {kind}" for kind, count in counts.most_common()), sep="\n")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
