"""The paper's claims, put to the measured grid: an effect with its interval, and whether the claim holds.

A claim is a few contrasts, named before anything is measured. It holds when all of them do, does not hold when one of
them does not, and is undecided otherwise. Items are averaged over the languages by their place in the task, so that
items that are translations of each other count once.

Parts are never set against each other: understand, solve and generate hold different numbers of units, in different
numbers of layers. Each is judged beside random sets of its own counts per layer and slot, and beside English under the
same units. `understand-equal` and so on are as large as each other, and comparable where a grid has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from babelscope.evaluation.cells import BITS
from babelscope.evaluation.grid import Effect, delta_of
from babelscope.evaluation.inference import Interval, bootstrap_mean, holm, paired_p, pooled_random
from babelscope.evaluation.tables import judged, kind

LEVEL = 0.05
MARGIN = 0.02
"""A harm below this is negligible: two points of a hundred."""
MARGIN_BITS = 0.01
"""The same for bits per byte."""
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"


@dataclass(frozen=True)
class Contrast:
    """One measurable part of a claim."""

    what: str
    task: str
    metric: str
    part: str
    effect: float
    low: float
    """Of the effect: 95 % bootstrap interval over items."""
    high: float
    p: float
    """That there is no effect; where random sets were measured too, the larger one of items (paired) and of sets (by
    places). NaN where the effect should be none."""
    p_holm: float
    """Corrected for all contrasts that should show an effect."""
    verdict: str


@dataclass(frozen=True)
class Claim:
    """What the paper says, and what came of it."""

    claim: str
    verdict: str
    contrasts: tuple[Contrast, ...]
    """None where the grid lacks the tasks or the parts: undecided."""

    def as_json(self) -> dict[str, Any]:
        """With the first contrast's effect as the claim's; numbers that are not finite are null."""
        contrasts = [{name: _finite(value) for name, value in asdict(each).items()} for each in self.contrasts]
        first = {name: contrasts[0][name] if contrasts else None for name in ("effect", "low", "high")}
        text = "; ".join(
            f"{each.what} {each.effect:+z.3f} [{each.low:+z.3f}, {each.high:+z.3f}] ({each.verdict})"
            for each in self.contrasts
        )
        text = text or "not measured: the grid lacks the task or the part"
        return {"claim": self.claim, "verdict": self.verdict, "text": text, **first, "contrasts": contrasts}


@dataclass(frozen=True)
class _Group:
    """The effects of one part on one task: by language, in the language and in English."""

    task: str
    metric: str
    part: str
    own: list[Effect]
    english: list[Effect]


def claims(effects: Sequence[Effect], english: str = "en", op: str = "zero") -> list[Claim]:
    """The six claims of the paper.

    Args:
        effects: of a grid.
        english: the language that should be spared; its own set is left out.
        op: the operation that is judged.

    Source: paper, sections 3.2 to 3.4 and tables 1 to 5. The criteria are ours, for the paper states none: see
    `Contrast` and the margins above.
    """
    chosen = [each for each in judged(effects) if each.op == op and each.off != english]

    def of(part: str, *kinds: str) -> list[_Group]:
        found = []
        here = [each for each in chosen if each.part == part and (not kinds or kind(each.place[0]) in kinds)]
        for task, metric in dict.fromkeys((each.place[0], each.place[2]) for each in here):
            both: tuple[list[Effect], list[Effect]] = ([], [])
            for each in here:
                if each.place[0] == task:
                    both[each.place[1] == english].append(each)
            found.append(_Group(task, metric, part, *both))
        return found

    def staged(part: str, kinds: Sequence[str], sparing: str = "") -> list[Contrast | None]:
        return [
            *(_beyond_random(group) for group in of(part, *kinds)),
            *(_more_than_english(group) for group in of(sparing or part, *kinds)),
        ]

    scores = ("understanding", "xquad", "reasoning", "mgsm", "knowledge", "xcsqa", "generation", "xlsum", BITS)
    asked = {
        "Early layers understand": staged("understand", ("understanding", "xquad")),
        "Task-solving attention reasons": staged(
            "solve-attention", ("reasoning", "mgsm"), sparing="all-but-solve-attention"
        ),
        "Task-solving FFN holds the knowledge": staged("solve-ffn", ("knowledge", "xcsqa")),
        "Late layers generate": staged("generate", ("generation", "xlsum")),
        "English is spared": [_english_spared(group) for group in of("all", *scores)],
        "Random neurons are harmless": [_random_harmless(group) for group in of("all", *scores)],
    }
    found = {claim: [each for each in contrasts if each is not None] for claim, contrasts in asked.items()}
    tested = [each for contrasts in found.values() for each in contrasts if not math.isnan(each.p)]
    corrected = dict(zip(map(id, tested), holm([each.p for each in tested]), strict=True))
    judgements = []
    for claim, contrasts in found.items():
        decided = tuple(_decided(each, corrected.get(id(each), math.nan)) for each in contrasts)
        verdicts = {each.verdict for each in decided}
        whole = FAILS if FAILS in verdicts else HOLDS if verdicts == {HOLDS} else UNDECIDED
        judgements.append(Claim(claim, whole, decided))
    return judgements


def _beyond_random(group: _Group) -> Contrast | None:
    """Harm to the languages, less that of random sets of the same counts."""
    own = [each for each in group.own if len(each.random) > 1]
    if not own:
        return None
    items = _by_item([each.harm - each.random_harm.mean(0) for each in own])
    p = pooled_random([float(each.harm.mean()) for each in own], [each.random_harm.mean(1) for each in own])
    return _contrast(group, f"{group.part} off: harm beyond that of random sets", items, p)


def _more_than_english(group: _Group) -> Contrast | None:
    """The paper's delta: harm to the languages less harm to English by the same sets; beside that of random sets."""
    if not (group.own and group.english):
        return None
    own, english = (_by_item([each.harm for each in several]) for several in (group.own, group.english))
    count = min(len(own), len(english))
    spared = {each.off: each for each in group.english}
    found = [delta_of(each, spared[each.off]) for each in group.own if each.off in spared]
    beside = [(delta, random) for delta, random in found if len(random) > 1]
    p = pooled_random([delta for delta, _ in beside], [random for _, random in beside]) if beside else 0.0
    return _contrast(group, f"{group.part} off: harm beyond that to English", own[:count] - english[:count], p)


def _english_spared(group: _Group) -> Contrast | None:
    if not group.english:
        return None
    return _contrast(group, f"{group.part} off: harm to English", _by_item([each.harm for each in group.english]))


def _random_harmless(group: _Group) -> Contrast | None:
    drawn = [each.random_harm.mean(0) for each in group.own if len(each.random)]
    if not drawn:
        return None
    return _contrast(group, "random sets as large: harm to the language", _by_item(drawn))


def _contrast(group: _Group, what: str, items: NDArray[np.float64], p: float = math.nan) -> Contrast:
    interval = bootstrap_mean(items)
    if np.ptp(items) == 0:  # nothing to draw from: the rule of three, over all answers
        room = 3 / (len(items) * max(1, len(group.own), len(group.english)))
        interval = Interval(interval.value, interval.value - room, interval.value + room)
    p = p if math.isnan(p) else max(p, paired_p(np.zeros_like(items), items))
    named = f"{kind(group.task).replace('_', ' ')}, {what}"
    values = (interval.value, interval.low, interval.high)
    return Contrast(named, group.task, group.metric, group.part, *values, p, math.nan, "")


def _decided(each: Contrast, p_holm: float) -> Contrast:
    margin = MARGIN_BITS if each.task == BITS else MARGIN
    if math.isnan(each.p):  # there should be no effect
        verdict = HOLDS if each.high < margin else FAILS if each.low > margin else UNDECIDED
    elif each.low > 0 and p_holm <= LEVEL:
        verdict = HOLDS
    else:
        verdict = FAILS if each.high < margin else UNDECIDED
    return replace(each, p_holm=p_holm, verdict=verdict)


def _by_item(several: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Mean over the languages, [n] by place in the task; where one has fewer items, of those that all have."""
    count = min(map(len, several))
    return np.asarray(np.mean([each[:count] for each in several], axis=0), dtype=np.float64)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


CRITERIA: Mapping[str, str] = {
    "holds": "an effect that should be there: its 95 % interval lies above 0 and its p-value, corrected after Holm, "
    f"is at most {LEVEL}; one that should not: its interval ends below {MARGIN} ({MARGIN_BITS} bits per byte)",
    "does not hold": "an effect that should be there: its interval ends below that margin; one that should not: its "
    "interval begins above it",
    "parts": "each part is judged beside random sets of its own size and beside English, never against another part: "
    "they differ in size",
}
"""In words, for claims.json."""
