"""Who sees what, in which order, and on which side: balanced exactly, not by coins."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")
SPACING = 5  # items between two on the same prompt
DISTANCE = 10  # items between one and its repeat


def deal(things: int, raters: int, each: int, rng: Random) -> list[list[int]]:
    """Returns the raters of each thing: `each` of them, and all raters equally many things, give or take one."""
    load = [0] * raters
    dealt = []
    for _ in range(things):
        chosen = sorted(range(raters), key=lambda rater: (load[rater], rng.random()))[:each]
        for rater in chosen:
            load[rater] += 1
        dealt.append(sorted(chosen))
    return dealt


def colours(edges: Sequence[tuple[Hashable, Hashable]], count: int, rng: Random) -> list[int]:
    """Colours the edges of a bipartite graph so that at every node all colours occur equally often, give or take one.

    Each node is cut into nodes of at most `count` edges, whose edges then get different colours: a bipartite graph of
    degree `count` needs no more (Koenig 1916). Where the two ends of an edge lack no colour in common, the path of two
    alternating colours that leaves one end is swapped.
    """
    degree = Counter[tuple[int, Hashable]]()
    at = defaultdict[tuple[int, Hashable, int], dict[int, int]](dict)  # part of a node -> colour -> edge
    ends = list[list[tuple[int, Hashable, int]]]()
    for edge in edges:
        parts = []
        for side, node in enumerate(edge):
            parts.append((side, node, degree[side, node] // count))
            degree[side, node] += 1
        ends.append(parts)
    found = [0] * len(edges)
    for i, (here, there) in enumerate(ends):
        mine, theirs = (rng.choice(sorted(set(range(count)) - at[part].keys())) for part in (here, there))
        if mine in at[there]:
            path, part, colour = list[int](), there, mine
            while colour in at[part]:
                path.append(at[part][colour])
                (part,) = (end for end in ends[path[-1]] if end != part)
                colour = theirs if colour == mine else mine
            for j in path:
                for part in ends[j]:
                    del at[part][found[j]]
            for j in path:
                found[j] = theirs if found[j] == mine else mine
                for part in ends[j]:
                    at[part][found[j]] = j
        found[i] = mine
        at[here][mine] = at[there][mine] = i
    return found


def orders(count: int) -> list[tuple[int, ...]]:
    """Returns the orders that things are shown in: all of up to four things, of more the rotations."""
    if count <= 4:
        return list(itertools.permutations(range(count)))
    return [tuple((i + first) % count for i in range(count)) for first in range(count)]


def spaced(
    things: Sequence[T], prompt: Callable[[T], Hashable], rng: Random, before: Sequence[Hashable] = ()
) -> list[T]:
    """Returns the things in a random order that keeps those on one prompt SPACING apart, as far as there are others.

    `before` are the prompts of what comes before them.
    """
    waiting = defaultdict[Hashable, list[T]](list)
    for thing in rng.sample(things, len(things)):
        waiting[prompt(thing)].append(thing)
    last, placed = dict.fromkeys(waiting, -len(before) - SPACING - 1), list[T]()
    last |= {p: i - len(before) for i, p in enumerate(before)}
    while waiting:
        free = [p for p in waiting if len(placed) - last[p] > SPACING] or [min(waiting, key=lambda p: last[p])]
        most = max(len(waiting[p]) for p in free)
        chosen = rng.choice([p for p in free if len(waiting[p]) == most]) if most > 1 else rng.choice(free)
        last[chosen] = len(placed)
        placed.append(waiting[chosen].pop())
        if not waiting[chosen]:
            del waiting[chosen]
    return placed


def repeated(things: Sequence[T], count: int, rng: Random) -> list[tuple[int, int]]:
    """Returns places of things to be repeated, and after how many things each repeat comes: DISTANCE later or more."""
    distance = min(DISTANCE, len(things) // 2)
    chosen = rng.sample(range(len(things) - distance), min(count, len(things) - distance))
    return [(place, rng.randint(place + distance + 1, len(things))) for place in sorted(chosen)]


def merged(things: Sequence[T], extras: Sequence[tuple[int, T]]) -> list[T]:
    """Returns the things with each extra after so many of them."""
    after = defaultdict[int, list[T]](list)
    for place, extra in extras:
        after[place].append(extra)
    return [*after[0], *itertools.chain.from_iterable((thing, *after[i]) for i, thing in enumerate(things, 1))]
