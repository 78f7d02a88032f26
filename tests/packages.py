"""Icon packages of our own making: plain shapes in Iconify's JSON layout, and the world of scenes made of them."""

import json
import tarfile

from experiments.emoji.world import World

SHAPES = {
    "square": '<rect x="1" y="1" width="8" height="8" fill="{}"/>',
    "disc": '<circle cx="5" cy="5" r="4" fill="{}"/>',
    "bar": '<rect x="3" y="0" width="4" height="10" fill="{}"/>',
    "lemon-half": '<path d="M0 5 A5 5 0 0 1 10 5 Z" fill="{}"/>',
}


WORLD = World(
    name="shapes",
    image_size=32,
    concepts={"square": "square", "disc": "disc", "bar": "bar", "half lemon": "lemon-half"},
    styles={"warm": "warm-set", "icy": "icy-set"},
    colours={"red": (220, 0, 0), "olive": (110, 120, 0)},
    backgrounds={"white": (255, 255, 255), "green": (0, 128, 0), "black": (0, 0, 0)},
    sizes_one={"small": (12,), "large": (20, 28)},
    sizes_more={"small": (8,), "large": (12, 16)},
    layouts={"one": 0.4, "beside": 0.2, "above": 0.2, "three": 0.2},
    templates={
        "one": ("{0}",),
        "beside": ("{0} to the left of {1}", "{1} to the right of {0}"),
        "above": ("{0} above {1}", "{1} below {0}"),
        "three": ("{0} and {1} above {2}",),
    },
    grounds=("", " on a {background} background"),
    share_sized=0.5,
    share_held_out=0.25,
)


def write_package(folder, package, colour, packed):
    """What `npm pack` brings, or that unpacked."""
    icons = {name: {"body": body.format(colour)} for name, body in SHAPES.items()}
    inside = folder / f"iconify-json-{package}-1.0.0" / "package"
    inside.mkdir(parents=True)
    (inside / "icons.json").write_text(json.dumps({"prefix": package, "icons": icons, "width": 10, "height": 10}))
    if packed:
        with tarfile.open(f"{inside.parent}.tgz", "w:gz") as archive:
            archive.add(inside / "icons.json", "package/icons.json")
        (inside / "icons.json").unlink()
        inside.rmdir()
        inside.parent.rmdir()
