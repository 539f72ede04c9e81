"""Verdicts on made effects, and the tables: what holds, what does not, what nobody can tell."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from babelscope.evaluation.cells import BITS
from babelscope.evaluation.claims import claims
from babelscope.evaluation.grid import Effect, rows
from babelscope.evaluation.inference import bootstrap_mean, pooled_random
from babelscope.evaluation.printed import ABLATED, BY_LANGUAGE, INTACT, RANDOM, printed
from babelscope.evaluation.tables import (
    METRICS,
    by_language,
    kind,
    summarise,
    write_csv,
)

LANGUAGES = ("fr", "zh", "sw")


def effects(
    task: str, part: str, own: float, english: float, random: float = 0.0, items: int = 60,
    random_english: float | None = None,
) -> list[Effect]:  # fmt: skip
    """Harm of about this size in every language, scattered over items."""
    metric = METRICS[kind(task)]
    sign = 1 if task == BITS else -1
    found = []
    for number, off in enumerate(LANGUAGES):
        draw = np.random.default_rng([number, len(task), len(part)])
        for language, harm in ((off, own), ("en", english)):
            before = np.full(items, 0.8)
            noise = draw.normal(0, 0.02, (4, items))
            harmless = random if language == off else random_english
            drawn = np.zeros((0, items)) if harmless is None else before + sign * (harmless + noise[1:])
            after = before + sign * (harm + noise[0])
            found.append(Effect(off, part, "zero", 10, (task, language, metric), before, after, drawn))
    return found


def verdicts(*several: list[Effect]) -> dict[str, str]:
    return {each.claim: each.verdict for each in claims([effect for some in several for effect in some])}


def test_a_claim_holds_when_the_language_is_hurt_and_neither_english_nor_random_sets_do_it():
    task, part = "tinybabel_understanding", "understand"
    claim = "Early layers understand"
    assert verdicts(effects(task, part, 0.3, 0.0))[claim] == "holds"
    assert verdicts(effects("xquad_paper", part, 0.3, 0.0))[claim] == "holds"
    assert verdicts(effects(task, part, 0.3, 0.3))[claim] == "does not hold", "English is hurt as much"
    assert verdicts(effects(task, part, 0.3, 0.0, random=0.3))[claim] == "does not hold", "as random sets hurt"
    assert verdicts(effects(task, part, 0.0, 0.0))[claim] == "does not hold", "nothing is hurt"
    assert verdicts(effects(task, part, 0.03, 0.0, items=3))[claim] == "undecided", "three items tell little"
    assert verdicts(effects(task, "generate", 0.3, 0.0))[claim] == "undecided", "not measured"
    assert verdicts(effects("tinybabel_generation", "generate", 0.3, 0.0))["Late layers generate"] == "holds"
    knowledge = effects("xcsqa", "solve-ffn", 0.3, 0.0)
    assert verdicts(knowledge)["Task-solving FFN holds the knowledge"] == "holds"


def test_reasoning_is_judged_by_what_attention_does_and_by_what_the_rest_spares():
    claim, task = "Task-solving attention reasons", "mgsm"
    hurt, rest = effects(task, "solve-attention", 0.4, 0.4), effects(task, "all-but-solve-attention", 0.3, 0.0)
    assert verdicts(hurt, rest)[claim] == "holds"
    assert verdicts(effects(task, "solve-attention", 0.0, 0.0), rest)[claim] == "does not hold"
    assert verdicts(hurt, effects(task, "all-but-solve-attention", 0.3, 0.3))[claim] == "does not hold"


def test_delta_is_set_beside_the_delta_of_random_sets():
    """Where any set as large hurts the languages more than English, the paper's delta says nothing of this one."""
    claim, hurt = "Task-solving attention reasons", effects("mgsm", "solve-attention", 0.4, 0.4)

    def rest(random: float, random_english: float | None) -> list[Effect]:
        return effects("mgsm", "all-but-solve-attention", 0.3, 0.0, random=random, random_english=random_english)

    assert verdicts(hurt, rest(0.3, None))[claim] == "holds", "random sets were not asked in English"
    assert verdicts(hurt, rest(0.3, 0.3))[claim] == "holds", "random sets hurt both alike"
    assert verdicts(hurt, rest(0.3, 0.0))[claim] == "undecided", "random sets do the same"
    made = rest(0.1, 0.05)
    contrast = next(each for each in claims(made) if each.claim == claim).contrasts[0]
    pairs = [[each for each in made if each.off == off] for off in LANGUAGES]
    deltas = [own.harm.mean() - english.harm.mean() for own, english in pairs]
    random = [own.random_harm.mean(1) - english.random_harm.mean(1) for own, english in pairs]
    assert contrast.p == pytest.approx(pooled_random(deltas, random))
    assert contrast.p == 1 / 4**3, "the largest of 4 in each of 3 languages"
    for row in rows(made):
        if row.language != "en":
            place = LANGUAGES.index(row.off)
            assert row.delta == pytest.approx(deltas[place])
            assert row.delta_random == pytest.approx(random[place].mean())
            assert row.p_delta == 1 / 4


def test_what_should_do_no_harm():
    spared, harmless = "English is spared", "Random neurons are harmless"
    found = verdicts(effects("xlsum", "all", 0.5, 0.0), effects(BITS, "all", 0.5, 0.0))
    assert (found[spared], found[harmless]) == ("holds", "holds")
    assert verdicts(effects("xlsum", "all", 0.5, 0.1))[spared] == "does not hold"
    assert verdicts(effects("xlsum", "all", 0.5, 0.02))[spared] == "undecided"
    assert verdicts(effects(BITS, "all", 0.5, 0.0, random=0.03))[harmless] == "does not hold"
    assert verdicts(effects("xlsum", "all", 0.5, 0.0, random=0.005))[harmless] == "holds"


def test_answers_that_never_change_leave_room_for_those_not_asked():
    """The rule of three: of 180 answers none changed, so at most some 3 of 180 would."""
    before = np.ones(60)
    same = [Effect(off, "all", "zero", 1, ("mgsm", "en", "flexible"), before, before, np.zeros((0, 60)))
            for off in LANGUAGES]  # fmt: skip
    (contrast,) = next(each for each in claims(same) if each.claim == "English is spared").contrasts
    assert (contrast.low, contrast.high) == pytest.approx((-3 / 180, 3 / 180))
    few = [Effect(each.off, "all", "zero", 1, each.place, before[:5], before[:5], np.zeros((0, 5))) for each in same]
    assert verdicts(few)["English is spared"] == "undecided"


def test_a_contrast_is_the_mean_over_languages_and_items():
    made = effects("mgsm", "solve-attention", 0.4, 0.1, random=0.1)
    contrast = next(each for each in claims(made) if each.claim == "Task-solving attention reasons").contrasts[0]
    own = [each for each in made if each.place[1] != "en"]
    items = np.mean([(e.before - e.after) - (e.before - e.random).mean(0) for e in own], axis=0)
    expected = bootstrap_mean(items)
    assert (contrast.effect, contrast.low, contrast.high) == (expected.value, expected.low, expected.high)
    random = [(e.before - e.random).mean(1) for e in own]
    assert contrast.p == pytest.approx(
        max(pooled_random([float((e.before - e.after).mean()) for e in own], random), 1e-5)
    )
    assert contrast.p_holm >= contrast.p
    english = [effect for effect in effects("mgsm", "solve-attention", 9.0, 9.0) if effect.off == "fr"]
    for effect in english:
        object.__setattr__(effect, "off", "en")
    assert verdicts(made, english) == verdicts(made), "English's own set is not judged"
    content = [each.as_json() for each in claims(made)]
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content[1]["effect"] == contrast.effect
    assert content[0]["contrasts"] == []


# Tables


def test_the_summary_is_the_papers_layout():
    made = [*effects("xquad", "understand", 0.3, 0.1, random=0.05), *effects(BITS, "understand", 0.3, 0.1, random=0.05)]
    table = summarise(made, "lmsys/vicuna-7b-v1.5")
    assert [(row.task, row.part) for row in table] == [
        (task, part) for task in ("xquad", BITS) for part in (INTACT, "understand", "random: understand")
    ]
    intact, off, random = table[:3]
    own = [each for each in made if each.place == ("xquad", each.off, "f1")]
    english = [each for each in made if each.place == ("xquad", "en", "f1")]
    assert (intact.english, intact.others) == pytest.approx((80, 80))
    assert off.others == pytest.approx(100 * np.mean([each.after.mean() for each in own]))
    assert off.english == pytest.approx(100 * np.mean([each.after.mean() for each in english]))
    assert off.delta == pytest.approx((off.english - 80) - (off.others - 80))
    assert random.others == pytest.approx(100 * np.mean([each.random.mean() for each in own]))
    assert math.isnan(random.english)
    assert (intact.printed_english, intact.printed_others) == (57.5, 53.9)
    assert (off.printed_english, off.printed_others) == (56.5, 46.0)
    assert (random.printed_english, random.printed_others) == (57.8, 53.9)
    assert table[4].delta == pytest.approx(table[4].others - table[4].english), "more bits are worse"


def test_each_language_stands_beside_what_the_paper_prints_of_it():
    made = effects("xlsum", "all", 0.5, 0.1, random=0.05, random_english=0.02)
    table = by_language(made, "mistralai/Mistral-7B-Instruct-v0.2")
    assert [(row.language, row.part) for row in table] == [
        (code, part) for code in LANGUAGES for part in (INTACT, "all", "random: all")
    ]
    intact, off, random = table[3:6]
    own, english = (each for each in made if each.off == "zh")
    assert (intact.others, intact.printed_others) == (pytest.approx(80), 56.4)
    assert (off.others, off.printed_others) == (pytest.approx(100 * own.after.mean()), 0.39)
    assert (random.others, random.printed_others) == (pytest.approx(100 * own.random.mean()), 55.9)
    assert off.english == pytest.approx(100 * english.after.mean())
    assert random.english == pytest.approx(100 * english.random.mean())
    assert off.delta == pytest.approx((off.english - 80) - (off.others - 80))
    assert random.delta == pytest.approx((random.english - 80) - (random.others - 80))
    assert all(math.isnan(row.printed_english) for row in table)
    assert all(math.isnan(row.printed_others) for row in table if row.language == "sw"), "not in the paper's table"


def test_tables_on_disk_are_the_rows(tmp_path: Path):
    table = rows(effects("mgsm", "all", 0.3, 0.1, random=0.05))
    write_csv(tmp_path / "grid.csv", table)
    with (tmp_path / "grid.csv").open(encoding="utf-8") as stream:
        assert [dict(row) for row in csv.DictReader(stream)] == [
            {name: str(value) for name, value in asdict(row).items()} for row in table
        ]


def test_printed_numbers_are_where_they_belong():
    assert printed("mistralai/Mistral-7B-Instruct-v0.2", "mgsm_direct", "solve").english == 38.2
    assert printed("/models/vicuna-7b-v1.5/", "xlsum", "all", random=True).others == 26.7
    assert printed("tinybabel", "xquad", "understand") is None
    assert printed("lmsys/vicuna-7b-v1.5", "tinybabel_understanding", INTACT) is None
    for model, tasks in BY_LANGUAGE.items():
        for task, parts in tasks.items():
            for part, scores in parts.items():
                told = RANDOM[model][task]["all"] if part.startswith("random") else ABLATED[model][task][part]
                digits = 2 if part == "all" else 1
                assert np.mean(list(scores.values())) == pytest.approx(told.others, abs=0.51 * 10**-digits)
    assert printed("mistral-7b-instruct-v0.2", "xlsum_paper", "all", random=True, language="ru").others == 21.2
    assert printed("mistral-7b-instruct-v0.2", "xlsum", "generate", language="ru") is None
    assert printed("mistral-7b-instruct-v0.2", "xlsum", "all", language="sw") is None
    for model, tasks in ABLATED.items():
        assert set(tasks) == set(RANDOM[model]) == {"xquad", "mgsm", "xcsqa", "xlsum"}
        for task, parts in tasks.items():
            assert all(each.others <= parts[INTACT].others for each in parts.values()), "nothing gets better"
            assert set(RANDOM[model][task]) <= {"all", "understand"}
