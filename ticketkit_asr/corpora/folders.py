"""Where a corpus lies on disk, and its lists as text."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ticketkit import DataError


def find_folder(corpus: str, root: Path | None, places: Sequence[str], *, holding: Sequence[str], advice: str) -> Path:
    """Return the first of `places` below `root` (by default the environment variable TICKETKIT_DATA) that is there.

    A place counts when it is a folder that holds all of `holding`. Raises `DataError` naming the folders that were
    tried, what the nearest of them lacks, and `advice` on how to get the corpus.
    """
    base = root or Path(os.environ.get("TICKETKIT_DATA", ""))
    missing = {base / place: [name for name in holding if not (base / place / name).exists()] for place in places}
    for folder, names in missing.items():
        if not names:
            return folder
    nearest = min(missing, key=lambda folder: len(missing[folder]))
    raise DataError(
        f"corpus {corpus!r} needs a folder with {', '.join(holding)}; {nearest.absolute()} lacks "
        f"{', '.join(missing[nearest])} (tried {', '.join(str(folder) for folder in missing)}); {advice}, then set the "
        "corpus option root, or the environment variable TICKETKIT_DATA, to the folder that holds them"
    )


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and content of each line of a UTF-8 file that is not blank.

    Raises `DataError` naming the file when it cannot be read, and the line that is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}, line {number} is not UTF-8: {error.reason}") from error
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
