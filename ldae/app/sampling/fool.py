"""Measure how often people take generated pictures for real ones: SR3's fool rate, by two-alternative forced choice.

    ldae fool out=PAGE.html restored=RUN/restored              # pairs of original and result of `ldae restore`
    ldae fool out=PAGE.html restored=RUN/restored reference=low   # ... below the picture that was enlarged
    ldae fool out=PAGE.html real=FOLDER fake=RUN/samples/samples.npz
    ldae fool answers=ANSWERS.json                             # or a folder with the files of several participants

Writes one page that needs no network. It shows each pair for three seconds and asks which picture is real; the answers
stay in the browser until its button saves them as JSON. The fool rate is the fraction of answers that name the
generated picture: 50 % where it cannot be told from a real one (Sec. 4, arXiv 2104.07636). Its interval is Wilson's,
for independent answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ldae.app.compose import compose, resolved
from ldae.app.sampling.forced_choice import Answers, Pairs, build_page, read_answers
from ldae.app.sampling.image_arrays import as_output, images_of
from ldae.app.session import root_settings
from ldae.core.errors import ConfigError, DataError, OutputError
from ldae.core.files import open_atomic, read_json
from ldae.core.types import Count, Natural, Positive
from ldae.data.folder import list_flat
from linear_probe.results import markdown

PAIRS = 50  # per participant, as in SR3
REAL = ("original", "input")  # columns of `ldae restore` with real pictures


@dataclass(frozen=True)
class FoolSettings:
    """Configure a forced-choice test: the pictures, the number of pairs, or the answers to evaluate.

    Attributes:
        out: the page to write.
        real: real pictures: a folder or an .npz.
        fake: generated pictures: a folder or an .npz.
        restored: folder of `ldae restore`, in place of `real` and `fake`.
        column: restored: the column that is judged.
        reference: restored: a column to show above each pair.
        pairs: number of pairs; 50, or as many as there are, if None.
        seconds: time for which a pair is shown.
        seed: seed of the pairs and of their sides.
        answers: a file, or a folder of files, that the page saved.
    """

    out: str | None
    real: str | None
    fake: str | None
    restored: str | None
    column: str | None
    reference: str | None
    pairs: Count | None
    seconds: Positive
    seed: Natural
    answers: str | None

    def __post_init__(self) -> None:
        if bool(self.out) == bool(self.answers):
            raise ConfigError("out", self.out, "and answers: give one of them, out=PAGE.html or answers=FILE")
        if self.answers:
            return
        if Path(str(self.out)).suffix != ".html":
            raise ConfigError("out", self.out, "is the page to write; its name must end in .html")
        if self.restored and (self.real or self.fake):
            raise ConfigError("restored", self.restored, "replaces real= and fake=; leave them out")
        if not self.restored and not (self.real and self.fake):
            raise ConfigError("real", self.real, "and fake: give two folders of pictures, or restored=FOLDER")
        for key in ("column", "reference"):
            if not self.restored and (value := getattr(self, key)):
                raise ConfigError(key, value, "names a column of restored=FOLDER, which is not set")


def main(argv: Sequence[str]) -> None:
    """Run `ldae fool`."""
    settings: FoolSettings = root_settings(FoolSettings, resolved(compose("fool", argv)))
    if settings.answers:
        print(table(read_all(settings.answers)))
        return
    pairs = pairs_of_restored(settings) if settings.restored else pairs_of_sets(settings)
    page = build_page(pairs.drawn(settings.pairs or min(PAIRS, len(pairs)), settings.seed), settings.seconds)
    out = Path(str(settings.out)).expanduser()
    if not out.parent.is_dir():
        raise OutputError(f"out={settings.out}: its folder {out.parent} does not exist; make it, or give another")
    with open_atomic(out) as file:
        file.write(page.encode())
    print(f"{out}: {settings.pairs or min(PAIRS, len(pairs))} pairs; then: ldae fool answers=FILE")


def pairs_of_restored(settings: FoolSettings) -> Pairs:
    """Return the pairs of original and result of `ldae restore`.

    Raises:
        DataError: the folder holds no result.
        ConfigError: there is no such column.
    """
    folder = Path(str(settings.restored)).expanduser()
    path = folder / "restored.npz"
    if not path.is_file():
        raise DataError(f"restored={folder} holds no restored.npz; give the folder that ldae restore wrote (out=)")
    columns = read_arrays("restored", path)
    measured = read_json(folder / "restored.json").get("measured") or [""]
    column = settings.column or measured[-1]
    real = next((name for name in REAL if name in columns), None)
    if real is None:
        raise DataError(f"restored={folder} has no real pictures to compare with; it has: {', '.join(columns)}")
    for key, name in (("column", column), ("reference", settings.reference)):
        if name is not None and (name not in columns or name == real):
            names = ", ".join(name for name in columns if name != real)
            raise ConfigError(key, name, f"is no column to compare; there are: {names}")
    reference = columns[settings.reference] if settings.reference else None
    return Pairs(columns[real], columns[column], reference)


def pairs_of_sets(settings: FoolSettings) -> Pairs:
    """Return the pairs of two sets: of the same file names if every generated picture has one, else at random.

    Real pictures are cropped at the centre and resized to the size of the generated ones.

    Raises:
        DataError: there is no picture, or one cannot be read.
    """
    fake_files, real_files = (picture_files(key, str(getattr(settings, key))) for key in ("fake", "real"))
    fake = pictures_in("fake", str(settings.fake), fake_files, None)
    named = {path.stem: path for path in real_files}
    if fake_files and all(path.stem in named for path in fake_files):
        files = [named[path.stem] for path in fake_files]
        return Pairs(pictures_in("real", str(settings.real), files, fake.shape[1]), fake)
    generator = np.random.default_rng(settings.seed)
    if real_files:  # no more than are needed are read
        chosen = generator.permutation(len(real_files))[: len(fake)]
        real_files = [real_files[i] for i in sorted(chosen)]
    real = pictures_in("real", str(settings.real), real_files, fake.shape[1])
    count = min(len(real), len(fake))
    return Pairs(real[generator.permutation(len(real))[:count]], fake[generator.permutation(len(fake))[:count]])


def picture_files(key: str, source: str) -> list[Path]:
    """Return the pictures of a folder, at any depth; none for an .npz.

    Raises:
        DataError: there is no picture.
    """
    path = Path(source).expanduser()
    if path.suffix == ".npz":
        return []
    if not path.is_dir():
        raise DataError(f"{key}={source} is no folder and no .npz of pictures")
    return [path / name for name in list_flat(path).files]


def pictures_in(key: str, source: str, files: Sequence[Path], size: int | None) -> np.ndarray:
    """Return square pictures (N, size, size, 3) uint8 of files, or of an .npz if there are none.

    Args:
        key: name of the setting, for messages.
        source: the folder or .npz.
        files: paths of the pictures, or empty.
        size: side in pixels; the shorter side of the smallest picture if None.
    """
    if not files:
        arrays = read_arrays(key, Path(source).expanduser())
        images = next((arrays[name] for name in ("arr_0",) if name in arrays), None)
        if images is None or images.ndim != 4 or images.dtype != np.uint8 or not len(images):
            raise DataError(f"{key}={source} holds no pictures; arr_0 must be (N, H, W, 3) uint8")
        images = images if images.shape[-1] == 3 else np.repeat(images, 3, -1)
        return np.asarray(as_output(images_of(key, images, size or min(images.shape[1:3])), "numpy"))
    if size is None:
        size = min(min(images_of(key, path, None).shape[2:]) for path in files)
    return np.asarray(as_output(torch.cat([images_of(key, path, size) for path in files]), "numpy"))


def read_arrays(key: str, path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and numpy raise many types
        raise DataError(f"{key}={path} cannot be read ({error})") from None


def read_all(source: str) -> list[Answers]:
    """Return the answers of a file, or of all files of a folder.

    Raises:
        DataError: there is none, one is damaged, or two are of the same participant.
    """
    path = Path(source).expanduser()
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise DataError(f"answers={source} is no file and no folder of files that the page's button saved (.json)")
    answers = [read_answers(file) for file in files]
    seen: dict[tuple[str, str], Path] = {}
    for one, file in zip(answers, files, strict=True):
        first = seen.setdefault((one.page, one.participant), file)
        if first is not file:
            raise DataError(f"{file} is of the same participant as {first}; leave one of them out")
    return answers


def table(answers: Sequence[Answers]) -> str:
    """Return a Markdown table with a row for each participant and one for all of them."""
    rows = [["participant", "answers", "fooled", "fool rate (%)", "95 % interval"]]
    total = Answers("", "all", [fooled for one in answers for fooled in one.fooled])
    for one in [*answers, *([total] if len(answers) > 1 else [])]:
        low, high = one.interval()
        rate = 100 * sum(one.fooled) / len(one.fooled)
        counts = [str(len(one.fooled)), str(sum(one.fooled))]
        rows.append([one.participant[:8], *counts, f"{rate:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"])
    return markdown(rows)
