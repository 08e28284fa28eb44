"""Any corpus that manifests describe: your own, or one that was prepared."""

from pathlib import Path

from ticketkit_asr.corpora.assembly import Listing, assemble
from ticketkit_asr.corpora.corpus import SpeechCorpus
from ticketkit_asr.corpora.file_options import FileCorpusOptions
from ticketkit_asr.corpora.manifest import read_manifest


class ManifestOptions(FileCorpusOptions):
    """Which manifest lists which split. Texts are taken as they are, and no utterance is left out, unless asked."""

    train: Path
    """A file of JSON lines, the utterances to train on; paths in it are absolute, or relative to it."""
    dev: Path | None = None
    """The same for dev; a corpus without it cannot choose epochs."""
    test: Path | None = None
    """The same for test."""


def open_manifest(*, options: ManifestOptions) -> SpeechCorpus:
    """Utterances listed in JSON lines, one file for each split; also lines as NeMo writes them.

    Raises `DataError` naming every bad line of a manifest, and every sound file that is missing.
    """
    paths = {"train": options.train, "dev": options.dev, "test": options.test}
    listings = {
        split: Listing(read_manifest(path), folder=str(path.parent))
        for split, path in paths.items()
        if path is not None
    }
    return assemble("manifest", listings, options)
