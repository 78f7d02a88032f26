"""The emoji world on icon packages of our own making: plain shapes in Iconify's JSON layout."""

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
from packages import WORLD, write_package

from experiments.emoji import world as emoji
from experiments.emoji.judge import JudgeOutput
from experiments.emoji.truth import colours_seen
from experiments.emoji.world import EmojiScenes, batch_of, collate, combinations, is_held_out, load_atlas
from ldm.text import Tokenizer


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
    for i in range(80):
        scene = EmojiScenes(WORLD, atlas)[i]
        ground = torch.tensor(WORLD.backgrounds[scene.background], dtype=torch.uint8)[:, None, None]
        painted = (scene.image != ground).any(dim=0)
        masks = torch.stack([thing.mask for thing in scene.objects])
        assert masks.sum(dim=0).max() == 1, "objects overlap"
        assert not (masks.any(dim=0) & ~painted).any()
        # what is painted outside the masks is an edge: pixels covered by half or less, beside a mask
        reach = torch.nn.functional.max_pool2d(masks.any(dim=0)[None].float(), 3, 1, 1)[0] > 0
        assert not (painted & ~reach).any()
        for thing in scene.objects:
            rows, columns = np.nonzero(thing.mask.numpy())
            assert thing.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            red, green, blue = (scene.image[c][thing.mask].float().mean() for c in range(3))
            if thing.colour is None:
                assert (red > blue) == (thing.style == "warm")
            else:
                assert abs(red - green) < 40 if thing.colour == "olive" else red > 2 * green
            sides = (WORLD.sizes_one if scene.layout == "one" else WORLD.sizes_more)[thing.size]
            assert max(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) <= max(sides)


def test_objects_stand_as_the_layout_says_and_captions_tell_it(atlas):
    counts = {"one": 0, "beside": 0, "above": 0, "three": 0}
    for i in range(400):
        scene = EmojiScenes(WORLD, atlas)[i]
        counts[scene.layout] += 1
        lefts, tops = ([thing.box[k] for thing in scene.objects] for k in (0, 1))
        if scene.layout == "beside":
            assert lefts == sorted(lefts)
            assert (" left of " in scene.caption) == (spoken(scene) == [0, 1])
        if scene.layout == "above":
            assert tops == sorted(tops)
            assert (" above " in scene.caption) == (spoken(scene) == [0, 1])
        if scene.layout == "three":
            assert lefts[0] < lefts[1]
            assert max(tops[:2]) < tops[2]
        told = [word for word in WORLD.backgrounds if f"a {word} background" in scene.caption]
        assert told in ([], [scene.background])
        for thing in scene.objects:
            assert thing.colour is None or f"{thing.colour} " in scene.caption
    assert all(abs(counts[layout] / 400 - share) < 0.08 for layout, share in WORLD.layouts.items())


def spoken(scene):
    """The scene's objects in the order in which its caption names them."""
    return sorted(range(len(scene.objects)), key=lambda i: scene.objects[i].tokens)


def test_an_objects_tokens_are_its_words_in_the_caption(atlas):
    tokenizer = Tokenizer(0)
    looks = set()
    for i in range(200):
        scene = EmojiScenes(WORLD, atlas)[i]
        ids = tokenizer([scene.caption]).ids[0].tolist()
        for thing in scene.objects:
            words = tokenizer.bpe.decode(ids[slice(*thing.tokens)]).split()
            article, *rest = words
            assert article in ("a", "an")
            allowed = [thing.size, thing.colour, thing.style, *thing.label.split()]
            assert rest == [word for word in allowed if word in rest]
            assert " ".join(rest).endswith(thing.label) and thing.words == " ".join(words)
            looks.add((thing.size in rest, thing.style in rest, thing.colour in rest))
    assert len(looks) == 8, "each of size, style and colour is told at times, and at times not"


def test_a_tinted_object_keeps_its_shape_and_takes_the_colour():
    flat = np.float32([[[0.9, 0.1, 0.1, 1.0], [0.9, 0.1, 0.1, 0.0]]])
    tinted = emoji.tint(flat, (0, 0, 255))
    assert np.allclose(tinted[0, 0], (0, 0, 1, 1))
    assert tinted[0, 1, 3] == 0
    shaded = np.float32([[[0.1, 0.1, 0.1, 1], [0.5, 0.5, 0.5, 1], [0.9, 0.9, 0.9, 1]]])
    dark, middle, light = emoji.tint(shaded, (200, 100, 50))[0, :, :3]
    assert (dark < middle).all()
    assert (middle < light).all()
    assert np.allclose(middle, np.float32([200, 100, 50]) / 255)


def test_captions_can_be_had_without_an_atlas(atlas):
    drawn, told = EmojiScenes(WORLD, atlas, "held_out"), EmojiScenes(WORLD, {}, "held_out")
    for i in range(30):
        caption, looks = told.caption(i)
        assert caption == drawn[i].caption
        assert [look.label for look in looks] == [thing.label for thing in drawn[i].objects]


def test_scenes_can_be_narrowed_to_a_kind(atlas):
    scenes = EmojiScenes(WORLD, atlas, "held_out", layouts=("beside", "above"), tinted=True)
    kinds = {(scenes[i].layout, *(thing.colour is not None for thing in scenes[i].objects)) for i in range(40)}
    assert kinds == {("beside", True, True), ("above", True, True)}
    assert all(look.colour is None for i in range(40) for look in EmojiScenes(WORLD, {}, tinted=False).caption(i)[1])


def test_held_out_combinations_and_captions_never_appear_in_training():
    def seen(split):
        scenes = EmojiScenes(WORLD, {}, split)
        plans = [scenes.plan(i)[2:] for i in range(1500)]
        told = {scenes.caption(i)[0] for i in range(1500)}
        return [combinations(looks, background) for looks, background in plans], told

    train, train_captions = seen("train")
    held, held_captions = seen("held_out")
    ours = {combination for scene in train for combination in scene}
    assert len(held_captions) > 50
    assert all(any(combination not in ours for combination in scene) for scene in held)
    assert not train_captions & held_captions
    assert not any(is_held_out(WORLD, combination) for combination in ours)
    assert any(combination[0] == "pair" and combination[3] == "red" for scene in held for combination in scene)
    elsewhere = replace(WORLD, split_seed=1)
    assert any(is_held_out(elsewhere, combination) for combination in ours), "split_seed changes nothing"


def test_of_a_strict_scene_every_combination_is_held_out(atlas):
    world = replace(WORLD, share_held_out=0.6)
    scenes = EmojiScenes(world, atlas, "strict", layouts=("one", "beside", "above"), tinted=True)
    twice = EmojiScenes(world, atlas, "strict", layouts=("one", "beside", "above"), tinted=True)
    counts = set()
    for i in range(60):
        _, layout, looks, background = scenes.plan(i)
        assert all(is_held_out(world, combination) for combination in combinations(looks, background))
        assert len({look.label for look in looks}) == len(looks) == emoji.LAYOUTS[layout]
        assert all(look.colour for look in looks)
        assert f"{background} background" in scenes.caption(i)[0]
        assert torch.equal(scenes[i].image, twice[i].image)
        counts.add(len(looks))
    assert counts == {1, 2}
    plain = EmojiScenes(world, {}, "strict", layouts=("one",), tinted=False)
    assert all(look.colour is None for i in range(20) for look in plain.plan(i)[2])


def test_batches_are_in_the_networks_range_and_hold_the_truth(atlas):
    scenes = EmojiScenes(WORLD, atlas)
    some = batch_of(scenes, range(5, 13))
    assert some.pixels().shape == (8, 3, 32, 32)
    assert some.captions[2] == scenes[7].caption
    assert torch.equal(((some.pixels()[2] + 1) * 127.5).round().byte(), scenes[7].image)
    for b, i in enumerate(range(5, 13)):
        masks = [thing.mask for thing in scenes[i].objects]
        assert torch.equal(some.labels[b] > 0, torch.stack(masks).any(dim=0))
        for thing in scenes[i].objects:
            assert some.labels[b][thing.mask].unique().tolist() == [1 + list(WORLD.concepts).index(thing.label)]
            colour = 0 if thing.colour is None else 1 + list(WORLD.colours).index(thing.colour)
            assert some.colours[b][thing.mask].unique().tolist() == [colour]


def test_the_atlas_is_rendered_once(icons, tmp_path, atlas, monkeypatch):
    def fail(*_):
        raise AssertionError("rendered again")

    monkeypatch.setattr(emoji, "render", fail)
    again = load_atlas(WORLD, icons, tmp_path / "cache")
    assert again.keys() == atlas.keys()
    assert all(np.array_equal(again[key], atlas[key]) for key in atlas)
    with pytest.raises(AssertionError, match="rendered again"):
        load_atlas(replace(WORLD, sizes_one={"large": (20, 30)}), icons, tmp_path / "cache")


def test_the_cache_follows_what_is_in_the_packages_and_nothing_else(icons, tmp_path, atlas, monkeypatch):
    write_package(tmp_path / "other", "warm-set", "#0000ff", packed=True)
    packed = "iconify-json-warm-set-1.0.0.tgz"
    (tmp_path / "other" / packed).replace(icons / packed)
    again = load_atlas(WORLD, icons, tmp_path / "cache")
    assert (again["square", "warm", 12] != atlas["square", "warm", 12]).any()
    assert np.array_equal(again["square", "icy", 12], atlas["square", "icy", 12])

    monkeypatch.setattr(emoji, "render", None)
    (icons / "notes.txt").write_text("on something else")
    again_from_cache = load_atlas(WORLD, icons, tmp_path / "cache")
    assert all(np.array_equal(again_from_cache[key], again[key]) for key in again)


def test_two_processes_begin_with_an_empty_cache(icons, tmp_path):
    """Ten times, at the same moment; each finds whole atlases, and no temporary file stays."""
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(2)

    def load():
        for i in range(10):
            barrier.wait(10)
            assert len(load_atlas(WORLD, icons, tmp_path / f"cache{i}")) == 40

    processes = [fork.Process(target=load) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert {path.suffix for path in tmp_path.glob("cache*/*")} == {".npz"}


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
    with pytest.raises(ValueError, match="layouts: shares"):
        replace(WORLD, layouts={"one": 0.5, "four": 0.5})
    with pytest.raises(ValueError, match="do not fit"):
        replace(WORLD, sizes_more={"large": (12, 17)})


class Oracle(torch.nn.Module):
    """A judge that knows the scenes it is shown; it takes what has no tint for olive in the icy style, else for red."""

    def __init__(self, scenes):
        super().__init__()
        self.scenes, self.shown, self.weight = scenes, 0, torch.nn.Parameter(torch.zeros(1))

    def forward(self, pixels):
        some = [self.scenes[self.shown + i] for i in range(len(pixels))]
        self.shown += len(pixels)
        batch = collate(some, WORLD)
        words = batch.colours.long() - 1
        for i, scene in enumerate(some):
            for thing in scene.objects:
                if thing.colour is None:
                    words[i][thing.mask] = int(thing.style == "icy" and thing.label == "disc")
        labels = 40.0 * torch.nn.functional.one_hot(batch.labels.long(), 5).permute(0, 3, 1, 2)
        colours = 40.0 * torch.nn.functional.one_hot(words.clamp(min=0), 2).permute(0, 3, 1, 2)
        return JudgeOutput(torch.zeros(len(pixels), 4), labels, colours, torch.zeros(len(pixels), 1))


def test_what_a_judge_sees_of_colours_by_nature(atlas):
    scenes = EmojiScenes(WORLD, atlas, layouts=("beside", "above"))
    seen = colours_seen(Oracle(scenes), scenes, 60, 0.1)
    for label, shares in seen.natural.items():
        assert shares["red"] == pytest.approx(1, abs=1e-3)
        assert shares["olive"] == pytest.approx(float(label == "disc"), abs=1e-3)  # the most of any style
    things = [(o, p) for i in range(60) for o, p in zip(scenes[i].objects, scenes[i].objects[::-1], strict=True)]
    strange = [(o, p) for o, p in things if o.label != "disc"]  # of which olive is foreign, and red is not
    assert len(seen.tinted) == sum(o.colour == "olive" for o, _ in strange) > 0
    assert len(seen.alien) == sum(o.colour is None and p.colour == "olive" for o, p in strange) > 0
    assert min(seen.tinted) > 0.999
    assert max(seen.alien) < 0.001
