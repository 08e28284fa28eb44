"""A report as one HTML page that needs nothing else."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ticketkit.errors import ConfigError
from ticketkit.study.findings import Chapter, Figure, HeatMap
from ticketkit.study.pages.drawing import figure_svg, heat_map_svg

TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class Run:
    """One run of a study, with what is needed to repeat it and to know it again."""

    id: str
    rounds: int
    command: str
    record: str
    mask: str


def html(
    chapters: Sequence[Chapter],
    *,
    title: str,
    subtitle: str,
    rules: str,
    facts: Iterable[tuple[str, str]],
    runs: Sequence[Run],
    config: str,
) -> str:
    """Return the page; raises `ConfigError` without jinja2 or matplotlib."""
    try:
        from jinja2 import Environment, PackageLoader
    except ImportError as error:
        raise ConfigError("the report's page needs jinja2; pip install 'ticketkit[study]'") from error
    environment = Environment(loader=PackageLoader("ticketkit.study", "pages"), autoescape=True, trim_blocks=True)
    return environment.get_template(TEMPLATE).render(
        title=title,
        subtitle=subtitle,
        rules=rules,
        chapters=chapters,
        drawings=_drawings(chapters),
        facts=list(facts),
        runs=runs,
        config=config,
    )


def _drawings(chapters: Sequence[Chapter]) -> Mapping[str, str]:
    drawn = {}
    for chapter in chapters:
        for part in chapter.parts:
            if isinstance(part, Figure):
                drawn[part.name] = figure_svg(part)
            elif isinstance(part, HeatMap):
                drawn[part.name] = heat_map_svg(part)
    return drawn
