"""The commands of speech: `ticketkit asr prepare`, `bpe`, `transcribe`, `evaluate`, `tune`.

Heavy imports stay inside them.
"""

import json
from contextlib import nullcontext
from copy import deepcopy
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer
from rich.console import Console
from rich.progress import Progress

if TYPE_CHECKING:
    from ticketkit import ExportedTicket, Plugins, TrainedTicket
    from ticketkit_asr.backbones.bundle import SpeechBundle
    from ticketkit_asr.corpora.corpus import SpeechCorpus
    from ticketkit_asr.decoding.decoder import Decoder
    from ticketkit_asr.decoding.scoring import Scored

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Corpora, labels, and speech to text.")
console = Console(highlight=False, markup=False, soft_wrap=True)

CorpusName = Annotated[str, typer.Argument(help="a corpus: see ticketkit plugins", metavar="CORPUS")]
Root = Annotated[Path | None, typer.Option(help="where its files are")]
Settings = Annotated[list[str], typer.Option("--set", help="an option of the corpus: a=value", metavar="A=B")]
TicketFile = Annotated[Path, typer.Argument(help="a ticket file in its run directory, or an export", metavar="TICKET")]
Beam = Annotated[
    int | None, typer.Option(min=1, help="hypotheses of a beam search [default: 1, greedy; 100 with --lm]")
]
Lm = Annotated[Path | None, typer.Option(help="an n-gram language model (ARPA or KenLM binary), for CTC")]
Words = Annotated[Path | None, typer.Option(help="its words, one a line, for a binary model")]
LmWeight = Annotated[
    float | None, typer.Option(help="how much the language model counts: see ticketkit asr tune [default: 1]")
]
WordScore = Annotated[float | None, typer.Option(help="how much a word is worth, with --lm [default: 0]")]


@app.command()
def prepare(
    corpus: CorpusName,
    out: Annotated[Path, typer.Option(help="the folder for manifests and reports")],
    root: Root = None,
    settings: Settings = [],  # noqa: B006
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="leave out what cannot be used and go on")] = False,
    threads: Annotated[int, typer.Option(min=1, help="files that are read at once")] = 2,
) -> None:
    """Read every utterance of a corpus once; write a manifest of each split and a report of what is there."""
    from ticketkit_asr.corpora.preparation import prepare_corpus

    plugins, chosen = _plugins(), _chosen(corpus, root, settings)
    opened = _opened(plugins, _skipping_bad(plugins, chosen) if skip_bad else chosen)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"reading {opened.name}")
        report = prepare_corpus(
            opened,
            out,
            on_bad_audio="skip" if skip_bad else "fail",
            threads=threads,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(report.to_markdown())
    for path in sorted(out.glob("*.jsonl")):
        console.print(f"wrote {path}")
    console.print(f"wrote {out / 'report.json'} and report.md; train on it with corpus {{name: manifest, ...}}")


@app.command()
def bpe(
    corpus: CorpusName,
    to: Annotated[Path, typer.Option(help="the sentencepiece model to write")],
    size: Annotated[int, typer.Option(min=2, max=1_000_000, help="how many pieces")] = 256,
    root: Root = None,
    settings: Settings = [],  # noqa: B006
) -> None:
    """Learn pieces of words (byte-pair encoding) from the train texts of a corpus."""
    from ticketkit_asr.text.bpe import learn_pieces, save_pieces

    texts = [utterance.text for utterance in _opened(_plugins(), _chosen(corpus, root, settings)).split("train")]
    pieces = learn_pieces(texts, size=size)
    save_pieces(pieces, to)
    console.print(f"wrote {to}: {pieces.size} labels, the blank included, from {len(texts)} texts")


@app.command()
def transcribe(
    ticket: TicketFile,
    audio: Annotated[list[Path], typer.Argument(help="sound files: WAV, FLAC, MP3, Ogg, Opus, SPHERE")],
    window: Annotated[float, typer.Option(help="seconds that are heard at once")] = 20.0,
    overlap: Annotated[float, typer.Option(help="seconds that neighbouring windows share")] = 4.0,
    beam: Beam = None,
    lm: Lm = None,
    words: Words = None,
    lm_weight: LmWeight = None,
    word_score: WordScore = None,
) -> None:
    """Write what is said in sound files, one line each: the file's name, a tab, the text.

    A file that cannot be used does not stop the others: all such are named at the end.
    """
    from ticketkit import DataError
    from ticketkit_asr.decoding.recognition import transcribe_file
    from ticketkit_asr.errors import BadAudioError

    bundle, decode = _speech(_trained(_plugins(), ticket)), _decoder(beam, lm, words, lm_weight, word_score)
    faults: list[str] = []
    for path in audio:
        try:
            text = transcribe_file(bundle, path, window_seconds=window, overlap_seconds=overlap, decode=decode)
        except BadAudioError as error:
            faults.append(str(error))
        else:
            typer.echo(f"{path}\t{text}")
    if faults:
        raise DataError(f"{len(faults)} of {len(audio)} files were not transcribed: " + "; ".join(faults))


@app.command()
def evaluate(
    ticket: TicketFile,
    corpus: Annotated[str | None, typer.Argument(help="a corpus [default: that of the run]")] = None,
    root: Root = None,
    settings: Settings = [],  # noqa: B006
    split: Annotated[str, typer.Option(help="train, dev or test")] = "test",
    beam: Beam = None,
    lm: Lm = None,
    words: Words = None,
    lm_weight: LmWeight = None,
    word_score: WordScore = None,
    to: Annotated[Path | None, typer.Option(help="a file for one JSON line an utterance")] = None,
) -> None:
    """Measure WER and CER of a ticket's trained network on a split, with edits and a bootstrap interval."""
    from ticketkit_asr.decoding.evaluation import evaluate_split
    from ticketkit_asr.decoding.scoring import summarise
    from ticketkit_asr.storage import replacing

    plugins = _plugins()
    trained = _trained(plugins, ticket)
    opened = _opened(plugins, _chosen(corpus or trained.run["corpus"], root, settings))
    decode = _decoder(beam, lm, words, lm_weight, word_score)
    with replacing(to) if to else nullcontext() as file:  # a file that cannot be written is known before the work
        scored = evaluate_split(_speech(trained), opened, split, decode=decode)
        if file is not None:
            _write_lines(file, scored)
    found = summarise(scored)
    console.print(f"{opened.name} {split}: {found.utterances} utterances, {found.words} words")
    console.print(
        f"WER {found.wer:.2%} (95 % interval {found.wer_low:.2%} to {found.wer_high:.2%}): {found.substitutions} "
        f"substitutions, {found.deletions} deletions, {found.insertions} insertions; CER {found.cer:.2%}"
    )
    if to is not None:
        console.print(f"wrote {to}")


@app.command()
def tune(
    ticket: TicketFile,
    lm: Annotated[Path, typer.Option(help="an n-gram language model (ARPA or KenLM binary)")],
    corpus: Annotated[str | None, typer.Argument(help="a corpus [default: that of the run]")] = None,
    root: Root = None,
    settings: Settings = [],  # noqa: B006
    words: Words = None,
    beam: Annotated[int, typer.Option(min=1, help="hypotheses of the beam search")] = 100,
) -> None:
    """Find the weights of a language model that give the lowest WER on dev; test is never read."""
    from ticketkit_asr.decoding.language_model import LmDecoder, tune

    plugins = _plugins()
    trained = _trained(plugins, ticket)
    opened = _opened(plugins, _chosen(corpus or trained.run["corpus"], root, settings))
    found = tune(LmDecoder(lm, beam=beam, words=words), _speech(trained), opened)
    for weights, wer in found:
        console.print(f"--lm-weight {weights.lm:g} --word-score {weights.word:g}: dev WER {wer:.2%}")
    best = found[0][0]
    console.print(f"best on dev: --lm {lm} --lm-weight {best.lm:g} --word-score {best.word:g}")


def _decoder(
    beam: int | None, lm: Path | None, words: Path | None, lm_weight: float | None, word_score: float | None
) -> "Decoder":
    from ticketkit import ConfigError
    from ticketkit_asr.decoding.decoder import decoder
    from ticketkit_asr.decoding.language_model import LmDecoder, LmWeights

    weights = {"--lm-weight": lm_weight, "--word-score": word_score}
    if odd := [f"{name} {value:g}" for name, value in weights.items() if value is not None and not isfinite(value)]:
        raise ConfigError(f"{' and '.join(odd)}: a finite number is needed")
    if lm is None:
        if unused := [name for name, value in ({"--words": words} | weights).items() if value is not None]:
            raise ConfigError(f"{' and '.join(unused)} without --lm would change nothing; name a language model too")
        return decoder(beam or 1)
    return LmDecoder(lm, LmWeights(1.0 if lm_weight is None else lm_weight, word_score or 0.0), beam or 100, words)


def _write_lines(file: BinaryIO, scored: "list[Scored]") -> None:
    from dataclasses import asdict

    for one in scored:
        file.write(json.dumps(asdict(one), ensure_ascii=False).encode() + b"\n")


def _plugins() -> "Plugins":
    from ticketkit import Plugins

    return Plugins.discover()


def _chosen(corpus: Any, root: Path | None, settings: list[str]) -> dict[str, Any]:
    """Return the name of a corpus (or what a run's config says of it) with its options; later ones win."""
    from ticketkit import with_overrides

    chosen = {"name": corpus} if isinstance(corpus, str) else deepcopy(dict(corpus))
    return with_overrides(chosen | ({"root": str(root)} if root else {}), settings)


def _skipping_bad(plugins: "Plugins", chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the choice with files left out that cannot be used, where the corpus has the option."""
    from ticketkit import ConfigError

    skipping = chosen | {"on_bad_audio": "skip"}
    try:
        plugins.choose("corpus", skipping)
    except ConfigError:  # no such option, or another fault, which opening it will tell
        return chosen
    return skipping


def _opened(plugins: "Plugins", chosen: dict[str, Any]) -> "SpeechCorpus":
    """Return the opened corpus; raises `ConfigError` if it is none of speech."""
    from ticketkit import ConfigError

    opened: SpeechCorpus = plugins.choose("corpus", chosen).call()
    if not all(hasattr(opened, part) for part in ("split", "sample_rate")):
        raise ConfigError(f"corpus {chosen['name']!r} is no corpus of speech that ticketkit asr knows how to read")
    return opened


def _trained(plugins: "Plugins", ticket: Path) -> "TrainedTicket | ExportedTicket":
    """Return a ticket of a run with its trained network, or the network in the folder of an export."""
    from ticketkit import load_exported, open_trained

    return load_exported(ticket, plugins) if ticket.is_dir() else open_trained(ticket, plugins)


def _speech(trained: "TrainedTicket | ExportedTicket") -> "SpeechBundle":
    """Return the bundle of a trained ticket; raises `ConfigError` if it is none of ticketkit_asr."""
    from ticketkit import ConfigError
    from ticketkit_asr.backbones.bundle import SpeechBundle

    if not isinstance(trained.bundle, SpeechBundle):
        raise ConfigError(f"backbone {trained.run['backbone']!r} is no recogniser that ticketkit asr knows how to run")
    return trained.bundle
