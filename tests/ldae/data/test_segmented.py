"""Images with figure-ground masks: listed, cut, cached and augmented alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ldae.config.build import Parts
from ldae.core.errors import ConfigError, DataError
from ldae.data.cache import Context
from ldae.data.datasets import Division, ImageFolder
from ldae.data.loader import Loader, RankSlice, in_order
from ldae.data.segmented import Segmented
from ldae.data.transforms import Centre, Flip, PadCrop, RandomResizedCrop

CPU = torch.device("cpu")
AUGMENTATIONS = (Centre(), Flip(), PadCrop(2), RandomResizedCrop())


def blob(generator, width, height):
    """A mask (height, width) of 0 and 255: a filled ellipse somewhere."""
    y, x = np.mgrid[:height, :width]
    cy, cx = generator.uniform(0.3, 0.7, 2) * (height, width)
    ry, rx = generator.uniform(0.15, 0.4, 2) * (height, width)
    return (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1).astype(np.uint8) * 255


def write(folder, stem, figure, generator, suffix=".png"):
    """An image whose red is its mask, the rest noise; and the mask."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    noise = generator.integers(0, 256, (*figure.shape, 2), np.uint8)
    Image.fromarray(np.concatenate([figure[..., None], noise], -1)).save(folder / "images" / f"{stem}{suffix}")
    Image.fromarray(figure).save(folder / "masks" / f"{stem}.png")


@pytest.fixture
def root(tmp_path):
    """30 images of 16 x 16 pixels in train/ and 6 in test/."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 6)):
        for i in range(count):
            write(tmp_path / "figures" / split, f"{i:02d}", blob(generator, 16, 16), generator, ".bmp")
    return tmp_path / "figures"


@pytest.fixture
def context(tmp_path):
    return Context(tmp_path / "cache", workers=0, max_bad=0.0)


def figures(root, size=16, **division):
    return Segmented(size, Division(**division), str(root))


def whole(images):
    (batch,) = in_order(images, len(images), CPU)
    return batch


def test_every_image_has_the_mask_of_its_name(root, context):
    splits = figures(root, holdout=0.2).open(context)
    assert (len(splits.train), len(splits.holdout), len(splits.test)) == (24, 6, 6)
    assert not set(splits.train.ids) & set(splits.holdout.ids)
    assert list(splits.classes) == ["figure"]
    for images in (splits.train, splits.holdout, splits.test):
        batch = whole(images)
        assert (batch.labels == 0).all()
        assert batch.masks.shape == (len(images), 1, 16, 16)
        assert torch.equal(batch.masks, batch.images[:, :1])  # red is the mask, 0 or 1
    assert splits.test.name(3) == "images/03.bmp"
    other = figures(root, holdout=0.2, split_seed=1).open(context)
    assert not np.array_equal(other.holdout.ids, splits.holdout.ids)


def test_without_a_test_split_one_is_set_aside(root, context):
    for path in sorted(root.glob("test/*/*")):
        path.unlink()
    for path in (*root.glob("test/*"), root / "test"):
        path.rmdir()
    splits = figures(root, holdout=0.25, test=0.2).open(context)
    assert (len(splits.train), len(splits.holdout), len(splits.test)) == (18, 6, 6)


@pytest.mark.parametrize("augment", AUGMENTATIONS, ids=lambda a: type(a).__name__)
def test_crops_and_flips_are_those_of_the_image(root, context, augment):
    """Red is the mask: whatever is done to one is done to the other, pixel by pixel."""
    images = figures(root, holdout=0.0).open(context).train
    stream, moved = Loader(images, augment, 10, 0, CPU).batches(0), 0
    for _ in range(6):
        batch = next(stream)
        assert torch.equal(batch.masks, (batch.images[:, :1] > 0.5).float())
        moved += int((batch.masks != whole(images).masks[batch.index]).flatten(1).any(1).sum())
    assert (moved > 20) == (augment.n > 0)


def test_images_are_augmented_as_they_would_be_without_masks(root, context):
    images = figures(root, holdout=0.0).open(context).train
    division = Division(holdout=0.0, test=0.0)
    alone = ImageFolder(16, division, str(root / "train"), "memory", only=["images"]).open(context).train
    for augment in AUGMENTATIONS:
        with_masks, without = (next(Loader(x, augment, 10, 0, CPU).batches(2)) for x in (images, alone))
        assert torch.equal(with_masks.images, without.images)
        assert without.masks is None


def test_any_step_can_be_the_first_and_shares_make_up_the_batch(root, context):
    images = figures(root).open(context).train
    stream = Loader(images, RandomResizedCrop(), 10, 3, CPU).batches(0)
    straight = [next(stream) for _ in range(5)]
    late = next(Loader(images, RandomResizedCrop(), 10, 3, CPU).batches(4))
    assert torch.equal(late.masks, straight[4].masks)
    halves = [next(Loader(images, RandomResizedCrop(), 10, 3, CPU, RankSlice(r, 2)).batches(4)) for r in (0, 1)]
    assert torch.equal(torch.cat([h.masks for h in halves]), straight[4].masks)
    assert torch.equal(straight[4].rows(2, 5).masks, straight[4].masks[2:5])


def test_the_mask_is_cut_where_its_image_is_and_stays_sharp(tmp_path, context):
    generator = np.random.default_rng(1)
    for i, (width, height) in enumerate([(90, 60), (50, 120), (64, 64)]):
        write(tmp_path / "train", str(i), blob(generator, width, height), generator)
    batch = whole(figures(tmp_path, 32, holdout=0.0, test=0.0).open(context).train)
    assert set(batch.masks.unique().tolist()) == {0.0, 1.0}
    agree = (batch.masks == (batch.images[:, :1] > 0.5)).float().mean((1, 2, 3))
    assert agree.min() > 0.98  # but for the edge: bicubic there, nearest here
    square = np.asarray(Image.open(tmp_path / "train" / "masks" / "0.png"))[:, 15:75]
    nearest = square[np.ix_(*(((np.arange(32) + 0.5) * 60 / 32).astype(int),) * 2)]
    assert np.array_equal(batch.masks[0, 0].numpy() * 255, nearest)


def test_128_and_more_is_figure_however_a_mask_is_stored(tmp_path, context):
    generator, ramp = np.random.default_rng(0), np.arange(256, dtype=np.uint8).reshape(16, 16)
    kinds = {
        "grey": Image.fromarray(ramp),
        "deep": Image.fromarray(ramp.astype(np.uint16) * 257),
        "colour": Image.fromarray(np.stack([0 * ramp, ramp, 0 * ramp], -1)),
        "one": Image.fromarray(ramp >= 128),
    }
    for name, mask in kinds.items():
        write(tmp_path / "train", name, ramp, generator)
        mask.save(tmp_path / "train" / "masks" / f"{name}.png")
    masks = whole(figures(tmp_path, holdout=0.0, test=0.0).open(context).train).masks
    assert torch.equal(masks, torch.from_numpy(ramp >= 128).float().expand_as(masks))


def test_a_changed_mask_makes_another_set(root, context):
    before = figures(root).open(context)
    assert figures(root).open(context).fingerprint == before.fingerprint
    Image.new("L", (16, 16), 255).save(root / "train" / "masks" / "00.png")
    after = figures(root, holdout=0.0).open(context)
    assert after.fingerprint != before.fingerprint
    assert whole(after.train).masks[0].min() == 1


def test_damaged_images_and_masks_are_left_out_counted_and_named(root, tmp_path):
    (root / "train" / "images" / "03.bmp").write_bytes(b"")
    (root / "train" / "masks" / "05.png").write_text("<html>")
    splits = figures(root, holdout=0.0).open(Context(tmp_path / "cache", workers=0, max_bad=0.1))
    assert len(splits.train) == 28
    assert [name for name, _ in splits.bad] == ["images/03.bmp", "images/05.bmp"]
    assert splits.bad[1][1].startswith("its mask 05.png: is no image")
    batch = whole(splits.train)
    assert torch.equal(batch.masks, batch.images[:, :1])
    with pytest.raises(DataError, match=r"2 of 30 images .* more than data\.max_bad=0\.05"):
        figures(root).open(Context(tmp_path / "cache", workers=0, max_bad=0.05))


def small_mask(train):
    Image.new("L", (16, 15), 255).save(train / "masks" / "07.png")


def second_mask(train):
    Image.new("L", (16, 16), 255).save(train / "masks" / "07.bmp")


def no_figure(train):
    for path in train.glob("masks/*"):
        Image.new("L", (16, 16), 1).save(path)


def no_images(train):
    for path in train.glob("images/*"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: (t / "masks" / "07.png").unlink(), r"07\.bmp has no mask; .*masks/07\.png is needed \(1 of 30"),
        (small_mask, r"masks/07\.png is 16 x 15, its image 07\.bmp is 16 x 16"),
        (second_mask, r"07\.bmp and .*07\.png are masks of one name"),
        (no_figure, "no mask below .* has foreground: values of 128 and more"),
        (no_images, "images holds no images"),
        (lambda t: (t / "masks").rename(t / "labels"), "has no folder masks/; .*masks/NAME.png are needed"),
    ],
    ids=["no mask", "another size", "two masks", "no figure", "no images", "no folder"],
)
def test_masks_that_do_not_fit_are_named(root, context, spoil, message):
    spoil(root / "train")
    with pytest.raises(DataError, match=message):
        figures(root).open(context)
    assert not list((context.cache / "images").glob(".tmp-*"))


def test_a_root_that_is_not_set_says_what_is_needed(context, tmp_path):
    with pytest.raises(ConfigError, match=r"root=null is not set; give data\.root=FOLDER with train/images/NAME"):
        Segmented(16, Division()).open(context)
    with pytest.raises(DataError, match="is missing; a folder is needed"):
        figures(tmp_path / "none").open(context)


@pytest.mark.parametrize("name", ["horses", "segmentation"])
def test_configs_open_such_a_folder(root, context, config, name):
    parts = Parts(config("pretrain", f"data={name}", f"data.root={root}", "data.size=16", "task=segmentation"))
    x0, cond = parts.task(whole(parts.data.open(context).test))
    assert torch.equal((x0 + 1) / 2, (cond.image[:, :1] + 1) / 2)


def test_horses(real_data, tmp_path):
    """327 photographs; horses fill three tenths of theirs, and its middle rather than its top."""
    folder = real_data / "weizmann-horses"
    if not folder.is_dir():
        pytest.skip("LDAE_DATA has no weizmann-horses/{train,test}/{images,masks}")
    splits = figures(folder, 64, holdout=0.1).open(Context(tmp_path, workers=0, max_bad=0.0))
    assert (len(splits.train), len(splits.holdout), len(splits.test)) == (250, 28, 49)
    masks = whole(splits.train).masks
    share = masks.mean((1, 2, 3))
    assert share.mean().item() == pytest.approx(0.3, abs=0.03)
    assert ((share > 0.05) & (share < 0.6)).all()
    assert masks[:, :, 24:40, 24:40].mean() > 2 * masks[:, :, :8].mean()


@pytest.fixture
def classes_root(tmp_path):
    """Images whose red is 60 times the class of their mask (0 to 2), 180 where it has none; palette and grey masks."""
    generator = np.random.default_rng(1)
    for split, count in (("train", 30), ("test", 6)):
        for i in range(count):
            index = (blob(generator, 16, 16) > 0).astype(np.uint8) + (blob(generator, 16, 16) > 0)
            index[0, :4] = 255
            write(
                tmp_path / "classes" / split,
                f"{i:02d}",
                np.where(index == 255, 180, 60 * index).astype(np.uint8),
                generator,
            )
            picture = Image.fromarray(index)
            if i % 2:
                picture.putpalette(list(generator.permutation(768) % 256))
            picture.save(tmp_path / "classes" / split / "masks" / f"{i:02d}.png")
    return tmp_path / "classes"


def of_classes(root, classes=3, size=16, **division):
    return Segmented(size, Division(**division), str(root), classes)


def test_masks_of_several_classes_are_one_hot(classes_root, context):
    splits = of_classes(classes_root, holdout=0.2).open(context)
    for images in (splits.train, splits.holdout, splits.test):
        batch = whole(images)
        assert batch.masks.shape == (len(images), 3, 16, 16)
        red = (batch.images[:, 0] * 255).round() / 60
        for k in range(3):
            assert torch.equal(batch.masks[:, k], (red == k).float())
        assert torch.equal(batch.masks.sum(1), (red != 3).float())  # nothing where there is no class


@pytest.mark.parametrize("augment", AUGMENTATIONS, ids=lambda a: type(a).__name__)
def test_augmented_masks_of_several_classes_stay_one_hot(classes_root, context, augment):
    splits = of_classes(classes_root).open(context)
    batch = next(Loader(splits.train, augment, 20, 0, CPU).batches(0))
    assert set(batch.masks.unique().tolist()) == {0, 1}
    assert batch.masks.sum(1).max() == 1
    red = batch.images[:, 0] * 255 / 60
    inside = batch.masks.bool() & ((red[:, None] - torch.arange(3).reshape(1, 3, 1, 1)).abs() < 0.3)
    agree = inside.sum() / batch.masks.sum()
    assert agree > (0.85 if isinstance(augment, RandomResizedCrop) else 0.95)  # borders of red are blurred


def test_a_class_that_is_not_there_is_named(classes_root, context):
    with pytest.raises(DataError, match=r"masks/\d+.png has the class 2; data.classes=2 are 0 to 1, and 255 for none"):
        of_classes(classes_root, 2).open(context)
    picture = classes_root / "train" / "masks" / "00.png"
    Image.open(picture).convert("RGB").save(picture)
    splits = of_classes(classes_root, 3).open(Context(context.cache, workers=0, max_bad=0.1))
    assert "its mask 00.png: has the mode RGB; save class indices as a grey or palette PNG" in splits.bad[0][1]


def test_the_task_has_a_channel_for_each_class(classes_root, context, config):
    argv = (f"data.root={classes_root}", "data.size=16", "experiment=segdiff/classes_cpu")
    parts = Parts(config("pretrain", *argv))
    batch = whole(parts.data.open(context).test)
    x0, _ = parts.task(batch)
    assert torch.equal(x0, 2 * batch.masks - 1)
    assert parts.tokenizer.shape == (3, 16, 16)
    wrong = Parts(config("pretrain", *argv, "task.classes=4"))
    with pytest.raises(ConfigError, match=r"task.classes=4 is not the number of classes of the masks, 3"):
        wrong.task(batch)
