"""The contract of a stage: one step of a study, from its settings to a result that a report shows.

A stage is one file with one class. Everything that walks over stages (the plan, the keys that decide whether a stage
runs again, the dry run, the study file and its template, `--only`, the order of the report) reads this contract alone.
Another package adds a stage by the entry point group `babelscope.stages` (docs/extend/stage.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from babelscope.options import Options, Refused
from babelscope.plugins import Registry

if TYPE_CHECKING:
    from babelscope.report.results import Section
    from babelscope.stages.job import Job
    from babelscope.stages.study import Study

Settings = TypeVar("Settings", bound=Options)


@dataclass(frozen=True)
class Cost:
    """The work of a stage for one model, for estimates."""

    cells: int = 0
    read: float = 0.0
    """Tokens that the model reads."""
    steps: float = 0.0
    """Steps of generation, each of one batch."""
    trained: float = 0.0
    """Tokens that it is trained on."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.cells + other.cells,
            self.read + other.read,
            self.steps + other.steps,
            self.trained + other.trained,
        )


class Stage(ABC, Generic[Settings]):
    """One step of a study. A subclass has no state: everything it works with is in the job and in its settings."""

    name: ClassVar[str]
    """The name in study files, in folders and behind `--only`."""
    title: ClassVar[str]
    """The heading in the report."""
    options: ClassVar[type[Options]]
    """The settings: the section of the study file that has the stage's name."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Names of the stages whose results it reads."""
    texts: ClassVar[tuple[str, ...]] = ()
    """The kinds of the study's texts that it reads: `detect`, `held_out`, `validation`."""
    also_reads: ClassVar[tuple[str, ...]] = ()
    """The kinds that it reads besides, where its settings ask for them."""
    decides: ClassVar[tuple[str, ...]] = ()
    """Other parts of the study that decide its numbers: `seed`, `select.rule`."""

    def required(self, study: Study) -> tuple[str, ...]:
        """Names of the stages that it reads in a given study."""
        return self.needs

    def sources(self, options: Settings, study: Study) -> dict[str, dict[str, str]]:
        """Kind -> language -> source of its texts: those of `texts`, and others that settings name."""
        return {kind: study.corpus(kind) for kind in self.texts}

    def tasks(self, options: Settings) -> tuple[str, ...]:
        """Names of the tasks that it asks the model, whose items must be there."""
        return ()

    def check(self, options: Settings, study: Study) -> Iterator[Refused]:
        """Settings that contradict each other or the study, though each value alone is right."""
        yield from ()

    @abstractmethod
    def cost(self, options: Settings, study: Study) -> Cost:
        """The work for one model, from the settings alone."""

    @abstractmethod
    def run(self, job: Job, options: Settings) -> Section:
        """Does the work, and says what was found."""


STAGES: Registry[type[Stage[Any]]] = Registry(
    "stage",
    "babelscope.stages",
    {
        "detect": "babelscope.stages.detect:Detect",
        "select": "babelscope.stages.select:Select",
        "lens": "babelscope.stages.lens:Lens",
        "search": "babelscope.stages.search:Search",
        "damage": "babelscope.stages.damage:Damage",
        "grid": "babelscope.stages.grid:Grid",
        "evaluation": "babelscope.stages.evaluation:Evaluation",
        "steering": "babelscope.stages.steering:Steering",
        "tuning": "babelscope.stages.tuning:Tuning",
    },
)
"""The stages in the order in which they run and are reported."""
