"""The emoji world on icon packages of our own making: plain shapes in Iconify's JSON layout."""

import json
import tarfile
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.data import emoji
from experiments.data.emoji import EmojiScenes, World, batch, combinations, is_held_out, load_atlas

SHAPES = {
    "square": '<rect x="1" y="1" width="8" height="8" fill="{}"/>',
    "disc": '<circle cx="5" cy="5" r="4" fill="{}"/>',
    "bar": '<rect x="3" y="0" width="4" height="10" fill="{}"/>',
    "lemon-half": '<path d="M0 5 A5 5 0 0 1 10 5 Z" fill="{}"/>',
}
WORLD = World(
    image_size=32,
    concepts={"square": "square", "disc": "disc", "bar": "bar", "half lemon": "lemon-half"},
    styles={"warm": "warm-set", "icy": "icy-set"},
    backgrounds={"white": (255, 255, 255), "green": (0, 128, 0), "black": (0, 0, 0)},
    sizes_one=(20, 28),
    sizes_two=(12, 16),
    templates_one=("{0}", "{0} on a {background} background"),
    templates_two=("{0} and {1}", "{0} next to {1}, {background} background"),
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


@pytest.fixture
def icons(tmp_path):
    write_package(tmp_path / "icons", "warm-set", "#ff4000", packed=True)
    write_package(tmp_path / "icons", "icy-set", "#00a0ff", packed=False)
    return tmp_path / "icons"


@pytest.fixture
def atlas(icons, tmp_path):
    return load_atlas(WORLD, icons, tmp_path / "cache")


def test_a_scene_is_a_function_of_seed_and_index(atlas):
    one, two = EmojiScenes(WORLD, atlas, seed=3), EmojiScenes(WORLD, atlas, seed=3)
    backwards = [two[i] for i in reversed(range(20))][::-1]
    for i, scene in enumerate(backwards):
        assert torch.equal(one[i].image, scene.image)
        assert one[i].caption == scene.caption
    others = [EmojiScenes(WORLD, atlas, seed=4)[i].image for i in range(20)]
    assert not all(torch.equal(scene.image, other) for scene, other in zip(backwards, others, strict=True))
    assert not torch.equal(one[0].image, one[1].image)


def test_masks_and_boxes_are_the_truth_of_the_picture(atlas):
    for i in range(60):
        scene = EmojiScenes(WORLD, atlas)[i]
        ground = torch.tensor(WORLD.backgrounds[scene.background], dtype=torch.uint8)[:, None, None]
        painted = (scene.image != ground).any(dim=0)
        masks = torch.stack([thing.mask for thing in scene.objects])
        assert masks.sum(dim=0).max() == 1, "objects overlap"
        assert not (masks.any(dim=0) & ~painted).any()
        # what is painted outside the masks is an edge: half covered pixels or less
        assert (painted & ~masks.any(dim=0)).sum() < 0.35 * masks.sum()
        for thing in scene.objects:
            rows, columns = np.nonzero(thing.mask.numpy())
            assert thing.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            warm = scene.image[0][thing.mask].float().mean() > scene.image[2][thing.mask].float().mean()
            assert warm == (thing.style == "warm")


def test_captions_name_the_objects_from_left_to_right(atlas):
    scenes = [EmojiScenes(WORLD, atlas)[i] for i in range(400)]
    for scene in scenes:
        places = [scene.caption.index(thing.label) for thing in scene.objects]
        lefts = [thing.box[0] for thing in scene.objects]
        assert places == sorted(places)
        assert lefts == sorted(lefts)
        told = [word for word in WORLD.backgrounds if word in scene.caption]
        assert told in ([], [scene.background])
    captions = {scene.caption for scene in scenes}
    assert {"a disc", "an icy disc", "a warm disc on a green background"} <= captions
    assert abs(sum(len(scene.objects) == 2 for scene in scenes) / 400 - WORLD.share_two) < 0.1


def test_held_out_combinations_and_captions_never_appear_in_training(atlas):
    def seen(split):
        scenes = [EmojiScenes(WORLD, atlas, split)[i] for i in range(1500)]
        told = [
            combinations([thing.label for thing in s.objects], [thing.style for thing in s.objects], s.background)
            for s in scenes
        ]
        return told, {scene.caption for scene in scenes}

    train, train_captions = seen("train")
    held, held_captions = seen("held_out")
    ours = {combination for scene in train for combination in scene}
    assert len(held_captions) > 10
    assert all(any(combination not in ours for combination in scene) for scene in held)
    assert not train_captions & held_captions
    assert not any(is_held_out(WORLD, combination) for combination in ours)
    elsewhere = replace(WORLD, split_seed=1)
    assert any(is_held_out(elsewhere, combination) for combination in ours), "split_seed changes nothing"


def test_batches_are_in_the_networks_range_and_scenes_come_fast(atlas):
    scenes = EmojiScenes(WORLD, atlas)
    images, captions = batch(scenes, range(5, 13))
    assert images.shape == (8, 3, 32, 32)
    assert len(captions) == 8
    assert torch.equal(((images[2] + 1) * 127.5).round().byte(), scenes[7].image)
    began = time.perf_counter()
    for i in range(300):
        scenes[i]
    assert 300 / (time.perf_counter() - began) > 500, "scenes/s"


def test_the_atlas_is_rendered_once(icons, tmp_path, atlas, monkeypatch):
    def fail(*_):
        raise AssertionError("rendered again")

    monkeypatch.setattr(emoji, "render", fail)
    again = load_atlas(WORLD, icons, tmp_path / "cache")
    assert again.keys() == atlas.keys()
    assert all(np.array_equal(again[key], atlas[key]) for key in atlas)
    with pytest.raises(AssertionError, match="rendered again"):
        load_atlas(replace(WORLD, sizes_one=(20, 30)), icons, tmp_path / "cache")


def test_a_missing_package_is_named_with_its_command(icons, tmp_path):
    (icons / "iconify-json-warm-set-1.0.0.tgz").unlink()
    with pytest.raises(ValueError, match=r"npm pack @iconify-json/warm-set") as error:
        load_atlas(WORLD, icons, tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["truncated", "no archive", "no icons"])
def test_a_damaged_package_is_named(icons, tmp_path, damage):
    packed = icons / "iconify-json-warm-set-1.0.0.tgz"
    if damage == "truncated":
        packed.write_bytes(packed.read_bytes()[:-40])
    elif damage == "no archive":
        packed.write_text("<html>not found</html>")
    else:
        packed.unlink()
        (icons / "iconify-json-warm-set-1.0.0" / "package").mkdir(parents=True)
        (icons / "iconify-json-warm-set-1.0.0" / "package" / "icons.json").write_text("{}")
    with pytest.raises(ValueError, match=r"warm-set.*damaged"):
        load_atlas(WORLD, icons, tmp_path / "cache")


def test_a_world_that_holds_nothing_out_says_so(atlas):
    with pytest.raises(ValueError, match="leaves no held_out scenes"):
        EmojiScenes(replace(WORLD, share_held_out=0.0), atlas, "held_out")[0]


def test_an_icon_that_a_package_lacks_and_sizes_that_do_not_fit_are_refused(icons, tmp_path):
    with pytest.raises(ValueError, match="warm-set has no icon unicorn"):
        load_atlas(replace(WORLD, concepts={"unicorn": "unicorn"}), icons, tmp_path / "cache")
    with pytest.raises(ValueError, match="do not fit"):
        replace(WORLD, sizes_two=(12, 17))
