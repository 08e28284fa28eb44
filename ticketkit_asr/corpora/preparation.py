"""Look at every utterance of a corpus once: what is there, what cannot be used, and manifests of the rest."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import combinations
from os.path import abspath, relpath
from pathlib import Path

from ticketkit import DataError
from ticketkit_asr.corpora.corpus import SpeechCorpus, Utterance
from ticketkit_asr.corpora.listening import Sound, heard, listen
from ticketkit_asr.corpora.manifest import UNKNOWN_SPEAKER, Line, line_bytes
from ticketkit_asr.corpora.report import Overlap, Report, SplitReport
from ticketkit_asr.corpora.stretch import Stretch
from ticketkit_asr.corpora.tally import Tally
from ticketkit_asr.sound.audio import OnBadAudio
from ticketkit_asr.storage import replacing
from ticketkit_asr.text.alphabet import ENGLISH, Alphabet

Progress = Callable[[int, int], None]
"""Called with the utterances that are done and all there are, from the calling thread."""


def validate(
    corpus: SpeechCorpus, *, alphabet: Alphabet = ENGLISH, threads: int = 1, progress: Progress | None = None
) -> Report:
    """Return what a corpus holds and what is wrong with it, after reading every utterance once.

    No more than a few utterances are in memory at a time. `threads` read at once; they never change the report.
    """
    return _survey(corpus, alphabet, partial(listen, digests=False), threads, progress, keep=None)


def validate_utterances(
    utterances: Iterable[Utterance], *, sample_rate: int, alphabet: Alphabet = ENGLISH, threads: int = 1
) -> SplitReport:
    """Return what some utterances hold and what is wrong with them; they may come one by one."""
    tally = Tally(alphabet, sample_rate)
    for utterance, sound in heard(utterances, partial(listen, digests=False), threads=threads):
        tally.add(utterance, sound)
    return tally.report({})


def prepare_corpus(
    corpus: SpeechCorpus,
    out_dir: Path,
    *,
    on_bad_audio: OnBadAudio = "fail",
    alphabet: Alphabet = ENGLISH,
    threads: int = 1,
    progress: Progress | None = None,
) -> Report:
    """Write a manifest of each split, report.json and report.md to a folder; return the report, as `validate` does.

    Manifests (train.jsonl, …) list what can be used, with normalised texts and the digest of each file; paths below
    the folder are relative, others absolute. The corpus `manifest` opens them at once, and knows the files by their
    digests.

    Raises `DataError` when utterances cannot be used and `on_bad_audio` is "fail": then the reports are written, and no
    manifest. Also when the sound of the corpus is not in files. Raises `StorageError` when a file cannot be written.
    """
    if any(not isinstance(utterance.audio, Stretch) for split in corpus.splits.values() for utterance in split):
        raise DataError(f"corpus {corpus.name!r} makes its sound in memory; only corpora of sound files are prepared")
    with ExitStack() as manifests:
        files = {split: manifests.enter_context(replacing(out_dir / f"{split}.jsonl")) for split in corpus.splits}

        def keep(split: str, utterance: Utterance, sound: Sound) -> None:
            files[split].write(line_bytes(_line(utterance, sound, out_dir)))

        report = _survey(corpus, alphabet, partial(listen, digests=True), threads, progress, keep)
        for name, content in {"report.json": report.to_json(), "report.md": report.to_markdown()}.items():
            with replacing(out_dir / name) as file:
                file.write(content.encode())
        if on_bad_audio == "fail" and (unusable := report.unusable()):
            raise DataError(
                f"{len(unusable)} utterances of corpus {corpus.name!r} cannot be used (on_bad_audio: skip, on the "
                f"command line --skip-bad, goes on without them; {out_dir / 'report.md'} lists them): "
                + "; ".join(unusable)
            )
    return report


def _survey(
    corpus: SpeechCorpus,
    alphabet: Alphabet,
    reader: Callable[[Utterance], Sound],
    threads: int,
    progress: Progress | None,
    keep: Callable[[str, Utterance, Sound], None] | None,
) -> Report:
    """Return the report; `keep` gets every utterance that can be used, in order."""
    total, done = sum(map(len, corpus.splits.values())), 0
    tallies = {}
    for split, utterances in corpus.splits.items():
        tally = tallies[split] = Tally(alphabet, corpus.sample_rate)
        for utterance, sound in heard(utterances, reader, threads=threads):
            if tally.add(utterance, sound) and keep is not None:
                keep(split, utterance, sound)
            done += 1
            if progress is not None:
                progress(done, total)
    return Report(
        corpus=corpus.name,
        sample_rate=corpus.sample_rate,
        splits={split: tally.report(corpus.dropped.get(split, {})) for split, tally in tallies.items()},
        skipped=corpus.skipped,
        shared=tuple(_overlaps(tallies)),
        facts=corpus.facts,
    )


def _overlaps(tallies: Mapping[str, Tally]) -> Iterator[Overlap]:
    """Yield what two splits share: ids, or speakers that are known."""
    for (one, first), (other, second) in combinations(tallies.items(), 2):
        for kind, names in {
            "ids": first.ids & second.ids,
            "speakers": (first.speakers & second.speakers) - {UNKNOWN_SPEAKER},
        }.items():
            if names:
                yield Overlap(kind, (one, other), tuple(sorted(names)))


def _line(utterance: Utterance, sound: Sound, folder: Path) -> Line:
    """Return the line of a manifest in `folder` for an utterance; its audio is a `Stretch`."""
    audio = utterance.audio
    if not isinstance(audio, Stretch):
        raise DataError(f"utterance {utterance.id!r} is not in a sound file")
    path, base = abspath(audio.path), abspath(folder)
    return Line(
        id=utterance.id,
        path=relpath(path, base) if path.startswith(f"{base}/") else path,
        text=utterance.text,
        speaker=utterance.speaker,
        start=audio.start,
        duration=audio.samples / audio.sample_rate,
        channel=audio.channel,
        lang=utterance.lang,
        sha256=sound.file_digest,
    )
