"""Emoji: which images show one thing, in which split that is, and how they look."""

import re
import string

import numpy as np
import pytest
from PIL import Image

from indm.workbench.data import stack
from research.data.emoji import concept, is_flag, load_emoji, split_by_concept

SPLITS = ("train", "valid", "test")
TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
RUNNERS = [
    "1f3c3",
    *(f"1f3c3-{tone}-200d-2640-fe0f-200d-27a1-fe0f" for tone in TONES),
    "1f3c3-200d-2642-fe0f",
]
SHOWN = {  # what is drawn → names of its drawings, written down by hand
    "runner": RUNNERS,
    "farmer": [f"{who}-{tone}-200d-1f33e" for who in ("1f468", "1f469", "1f9d1") for tone in TONES],
    "child": ["1f466", "1f467-1f3fd", "1f9d2-1f3fe"],
    "elder": ["1f474", "1f475-1f3fb", "1f9d3"],
    "family": ["1f46a", "1f468-200d-1f469-200d-1f466", "1f9d1-200d-1f9d1-200d-1f9d2"],
    "couple": ["1f469-1f3fb-200d-2764-fe0f-200d-1f468-1f3fd", "1f468-200d-2764-fe0f-200d-1f468"],
    "adult": ["1f468-1f3fc", "1f469", "1f9d1-1f3ff", "1f471", "1f471-200d-2640-fe0f"],
    "frown": ["1f64d", "1f64e-1f3fb-200d-2640-fe0f"],
    "heart": ["2764-fe0f"],
    "arrow": ["27a1-fe0f"],
    "pirates": ["1f3f4-200d-2620-fe0f"],
    "letter": ["1f170-fe0f"],
    "cool": ["1f192"],
} | {f"face {n:x}": [f"1f6{n:02x}"] for n in range(0x3F)}
PATTERNS = ("au hm", "us um", "no bv sj", "fr cp mf", "io dg", "es ea", "sa cq")  # one flag each


def code(country):
    return "-".join(f"{0x1F1E6 + ord(letter) - ord('a'):x}" for letter in country)


FLAGS = [code(f"{a}{b}") for a in "de" for b in string.ascii_lowercase] + [
    f"1f3f4-e0067-e0062-{tag}-e007f" for tag in ("e0065-e006e-e0067", "e0073-e0063-e0074")
]  # fmt: skip
OWNER = {name: what for what, names in SHOWN.items() for name in names}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Two packages of the same names and other drawings: opaque, half transparent and clear pixels
    of one colour.
    """
    root, random = tmp_path_factory.mktemp("emoji"), np.random.default_rng(0)
    for package in ("google", "twitter"):
        folder = root / package / "package" / "img" / package / "64"
        folder.mkdir(parents=True)
        for name in [*OWNER, *FLAGS]:
            pixels = np.tile(random.integers(0, 256, 4, dtype=np.uint8), (64, 64, 1))
            pixels[:, :21, 3], pixels[:, 21:42, 3] = 255, 0
            Image.fromarray(pixels).save(folder / f"{name}.png", compress_level=1)
        (folder.parent / "sheet.txt").write_text("")
    return root


@pytest.mark.parametrize("seed", range(8))
def test_what_is_shown_is_in_one_split_and_once_to_validate_and_test(seed):
    names = sorted(OWNER)
    parts = split_by_concept(names, seed)
    shown = {part: [OWNER[names[i]] for i in positions] for part, positions in parts.items()}
    train, valid, test = (set(shown[part]) for part in SPLITS)
    assert not (train & valid or train & test or valid & test) and train | valid | test == set(
        SHOWN
    )
    assert len(shown["valid"]) == len(valid) and len(shown["test"]) == len(test), (
        "one image of each"
    )
    assert sorted(names[i] for i in parts["train"]) == sorted(
        name for what in train for name in SHOWN[what]
    )
    assert 2 <= len(valid) < len(test) < len(train)
    backwards = split_by_concept(names[::-1], seed)
    # the order of the names does not decide which example is where
    for part, positions in parts.items():
        assert [names[i] for i in positions] == [names[::-1][i] for i in backwards[part]]
    assert split_by_concept(names, seed, 3)["train"].tolist() == parts["train"].tolist()[:3]


def test_things_are_told_apart_and_flags_of_one_pattern_are_not():
    names = {what: {concept(name) for name in names} for what, names in SHOWN.items()}
    assert all(len(found) == 1 for found in names.values()) and len(
        set.union(*names.values())
    ) == len(SHOWN)
    assert [len({concept(code(c)) for c in pattern.split()}) for pattern in PATTERNS] == [1] * len(
        PATTERNS
    )
    assert len({concept(code(c)) for pattern in PATTERNS for c in pattern.split()}) == len(PATTERNS)
    # the modifiers themselves
    assert [concept(f"{tone}") for tone in (*TONES, "2640-fe0f")] == [""] * 6
    assert not any(map(is_flag, OWNER)) and all(map(is_flag, FLAGS))


def test_packages_have_the_same_splits_of_their_own_images(packages):
    google, twitter = (load_emoji(path=packages / name) for name in ("google", "twitter"))
    assert google.fingerprint == twitter.fingerprint and google.shape == twitter.shape == (
        3,
        32,
        32,
    )
    for part in SPLITS:
        one, other = getattr(google, part), getattr(twitter, part)
        assert [file.name for file in one.files] == [file.name for file in other.files]
        assert (stack(one) != stack(other)).any()
    folder = packages / "google" / "package" / "img" / "google" / "64"
    for path in (folder, packages / "google" / "package"):
        assert load_emoji(path=path).test.files[0] == google.test.files[0]


@pytest.mark.parametrize("size", [32, 64])
def test_pixels_are_on_white_and_those_of_32_are_means(packages, size):
    examples = load_emoji(path=packages / "google", size=size).train
    for file, image in zip(list(examples.files)[:5], stack(examples, 5).numpy(), strict=True):
        rgba = np.asarray(Image.open(file), dtype=float)
        share = rgba[..., 3:] / 255
        rgb = share * rgba[..., :3] + (1 - share) * 255
        block = 64 // size
        expected = rgb.reshape(size, block, size, block, 3).mean((1, 3)).transpose(2, 0, 1)
        assert image.dtype == np.uint8 and np.abs(image - expected).max() <= 1
        assert (image[:, :, 31 * size // 64] == 255).all()


def test_flags_are_apart(packages):
    found = {}
    for flags in ("without", "only", "with"):
        data = load_emoji(path=packages / "twitter", flags=flags, size=64)
        found[flags] = {file.stem for part in SPLITS for file in getattr(data, part).files}
    assert found["only"] <= set(FLAGS) and found["without"] <= set(OWNER)
    assert (
        found["only"] <= found["with"]
        and found["without"] <= found["with"] == found["only"] | found["without"]
    )
    assert len(found["only"]) > 20


@pytest.mark.parametrize(
    "options, message",
    [
        ({"path": "{}/gogle"}, "is not a folder.*npm pack emoji-datasource-google@16.0.0"),
        ({"path": "{}/all"}, "holds 2 sets of images: name one of them, such as .*apple"),
        ({"path": "{}/other"}, "named by code points, as 1f600.png, got .*cat"),
        ({"path": "{}/few"}, "1 concepts are too few: none is in the split"),
        ({"path": "{}/google", "size": 48}, "size must be 32 or 64, got 48"),
    ],
)
def test_what_cannot_be_used_is_refused(packages, options, message):
    for place in ("all/img/apple/64/1f600", "all/img/google/64/1f600", "other/cat", "few/1f600"):
        file = packages / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (64, 64)).save(file)
    with pytest.raises(ValueError) as error:
        load_emoji(**options | {"path": options["path"].format(packages)})
    assert re.search(message, str(error.value))
