"""Reads every file of a data set and says what is there and what is wrong with it.

  python -m jaxad.data.check --root=FOLDER [--category=NAME|all] [--dataset=folder|mvtec_ad|visa|images|...]
  python -m jaxad.data.check --config=configs/patchcore.py --config.data.dataset=folder --config.data.root=FOLDER

Prints images per split and defect type, masks, sizes, channels and bit depth, and every unreadable file and mask that
does not fit. Exit code 0: nothing wrong; 2: problems found.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from jaxad.errors import UserError, exit_code
from jaxad.flags import debug_asked, parse

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from jaxad.data.builders import AnomalyBuilder
    from jaxad.data.listing import Listing, Sample


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: this process's) and returns its exit code."""
    argv = sys.argv if argv is None else argv

    def body() -> None:
        config = _config(argv)
        if config is None:
            return
        from jaxad.data import catalog

        problems = 0
        for name in catalog.categories(config):
            report = check(config, name)
            print("\n".join(report.lines()), flush=True)
            problems += len(report.problems)
        if problems:
            raise UserError(
                f"{problems} problem{'s' if problems > 1 else ''} found, listed above; repair or remove them"
            )

    return exit_code(body, debug_asked(argv))


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found in one category. rows: (split, defect, images, masks, sizes, channels) as printed."""

    title: str
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The report as printed."""
        yield self.title
        table = [("split", "defect", "images", "masks", "width x height", "channels"), *self.rows]
        widths = [max(len(row[column]) for row in table) for column in range(6)]
        for row in table:
            cells = (
                cell.rjust(w) if i in (2, 3) else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            yield ("  " + "  ".join(cells)).rstrip()
        yield from (f"  note: {note}" for note in self.notes)
        yield from (f"  problem: {problem}" for problem in self.problems)


def check(config: ConfigDict, category: str) -> Report:
    """Decodes every image and mask of one of `jaxad.data.catalog.categories(config)`."""
    from jaxad.data import builders, catalog

    listing = catalog.list_category(config, category)
    builder = builders.BUILDERS[config.data.dataset]
    if not builder.needs_root():
        return Report(f"{category} ({builder.name}, generated)", _rows(listing, {}), listing.notes, listing.problems)
    everything = [sample for samples in listing.splits.values() for sample in samples]
    with ThreadPoolExecutor() as pool:
        looks = pool.map(lambda sample: _look(builder, listing.root, sample), everything)
        found = dict(zip(everything, looks, strict=True))
    problems = [*listing.problems, *(problem for seen in found.values() for problem in seen.problems)]
    notes = [*listing.notes, *_notes(listing, found)]
    return Report(f"{category} ({builder.name}, {listing.root})", _rows(listing, found), tuple(notes), tuple(problems))


@dataclasses.dataclass(frozen=True)
class _Seen:
    size: tuple[int, int] | None = None  # width, height
    kind: str = "unreadable"
    digest: bytes = b""
    problems: tuple[str, ...] = ()


def _look(builder: type[AnomalyBuilder], root: Path, sample: Sample) -> _Seen:
    from jaxad.data import images
    from jaxad.data.builders import base

    path = root / sample.path
    try:
        data = base.read(path)
        (height, width), kind = images.describe(data, str(path))
        images.decode(data, str(path))
    except UserError as error:
        return _Seen(problems=(str(error),))
    problems = []
    try:
        if sample.mask is not None:
            place = root / sample.mask
            mask = images.decode_mask(base.read(place), str(place), above=builder.MASK_ABOVE)
            base.check_size(place, mask.shape, path, (height, width))
            if sample.label and not mask.any():
                problems.append(f"{place} is empty but its image {path} is anomalous; draw the defect or remove both")
            elif not sample.label and mask.any():
                problems.append(f"{place} marks a defect but its image {path} is normal; move or remove one")
    except UserError as error:
        problems.append(str(error))
    try:
        builder.check_more(root, sample, (height, width))
    except UserError as error:
        problems.append(str(error))
    return _Seen((width, height), kind, hashlib.sha256(data).digest(), tuple(problems))


def _rows(listing: Listing, found: dict[Sample, _Seen]) -> tuple[tuple[str, ...], ...]:
    rows = []
    for split, samples in listing.splits.items():
        for defect in sorted({sample.defect for sample in samples}, key=lambda name: (name != "good", name)):
            group = [sample for sample in samples if sample.defect == defect]
            masks = sum(sample.mask is not None for sample in group)
            seen = [found[sample] for sample in group if sample in found]
            kinds = Counter(one.kind for one in seen)
            rows.append((split, defect, str(len(group)), str(masks), _sizes(seen), _summary(kinds)))
    return tuple(rows)


def _sizes(seen: Sequence[_Seen]) -> str:
    counts = Counter(one.size for one in seen if one.size)
    if len(counts) <= 2:
        return _summary(Counter({f"{width} x {height}": number for (width, height), number in counts.items()}))
    ranges = (f"{min(sides)}..{max(sides)}" for sides in zip(*counts, strict=True))
    return " x ".join(ranges) + f" ({len(counts)} sizes)"


def _summary(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({number})" if len(counts) > 1 else name for name, number in counts.most_common())


def _notes(listing: Listing, found: dict[Sample, _Seen]) -> Iterator[str]:
    kinds = {seen.kind for seen in found.values()} - {"unreadable"}
    if len(kinds) > 1:
        yield f"channels differ between images ({', '.join(sorted(kinds))}); all are read as 8-bit RGB"
    elif any("16-bit" in kind for kind in kinds):
        yield "16-bit images are scaled by their full range to 8 bits"
    digests = {found[sample].digest: sample for sample in listing.splits.get("train", ())}
    twins = [sample for sample in listing.splits.get("test", ()) if found[sample].digest in digests]
    twins = [sample for sample in twins if found[sample].digest]
    if twins:
        twin = digests[found[twins[0]].digest]
        yield f"{len(twins)} test images are training images, byte for byte, such as {twins[0].path} and {twin.path}"
    if listing.ignored:
        yield f"{len(listing.ignored)} image files are not read, such as {listing.ignored[0]}"


def _config(argv: Sequence[str]) -> ConfigDict | None:
    from jaxad import config as configs

    own = flags.FlagValues()
    if any(argument.startswith(("--config", "-config")) for argument in argv[1:]):
        parsed = parse(argv, own, __doc__)
        return parsed and parsed[0]
    flags.DEFINE_string("dataset", "folder", "the layout of the folder", flag_values=own)
    flags.DEFINE_string("root", "", "the folder that holds the data set", flag_values=own)
    flags.DEFINE_string(
        "category", None, "a name, a comma list, or all; none: root itself, or all in it", flag_values=own
    )
    if any(argument in ("--help", "-help", "-h", "--helpshort", "--helpfull") for argument in argv[1:]):
        parse(argv, own, __doc__)
        return None
    flags.DEFINE_bool("debug", False, "show a traceback when something fails", flag_values=own)
    try:
        rest = own(argv)
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; the folder is given as --root={rest[1]}")
    config = configs.default("patchcore")
    config.data.dataset, config.data.root = own.dataset, own.root
    config.data.category = "all" if own.category is None else own.category
    return config


if __name__ == "__main__":
    sys.exit(main())
