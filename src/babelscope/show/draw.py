"""What `describe` found, for people."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from babelscope.models.families import FAMILIES
from babelscope.progress import clean
from babelscope.show.describe import SKIPPED, damage_explained
from babelscope.show.studied import draw_study_run
from babelscope.show.terminal import Screen, cells, human_bytes, label, wrapped


def draw(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """What `describe` found, for people."""
    drawing: dict[str, Callable[[Mapping[str, Any], Screen], list[str]]] = {
        "neurons": _draw_neurons,
        "atlas": _draw_atlas,
        "run": _draw_atlas if content.get("state") != "unfinished" else _draw_unfinished,
        "neuron files": lambda found, where: draw_sets(found["sets"], where),
        "model": _draw_model,
        "study": draw_study_run,
        "other run": _draw_other_run,
    }
    with damage_explained(content.get("file") or content.get("folder")):
        return drawing[content["artefact"]](content, screen)


def _pairs(settings: Mapping[str, Any]) -> str:
    """Settings in a line, without those that are unset."""

    def value(found: Any) -> str:
        if isinstance(found, bool):
            return "yes" if found else "no"
        if isinstance(found, list | tuple):
            return " ".join(map(str, found))
        return json.dumps(found) if isinstance(found, dict) else str(found)

    return ", ".join(
        f"{name.replace('_', ' ')} {value(found)}" for name, found in settings.items() if found is not None
    )


def _model_line(model: Mapping[str, Any]) -> str:
    parts = [str(model.get("name", "unknown"))]
    parts += [f"revision {model['revision']}"] if model.get("revision") else []
    parts += [f"{model[name]}" for name in ("model_type",) if model.get(name)]
    return ", ".join([*parts, f"fingerprint {str(model.get('fingerprint') or 'missing')[:12]}"])


def _number(value: float) -> str:
    """Three significant digits."""
    if math.isnan(value):
        return "-"
    if not 0.001 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:.{2 - math.floor(math.log10(abs(value)))}f}" if abs(value) < 100 else f"{value:.0f}"


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %" if share >= 0.0995 or share == 0 else f"{share * 100:.2g} %"


def _draw_neurons(content: Mapping[str, Any], screen: Screen) -> list[str]:
    provenance = content["provenance"]
    corpora = "; ".join(
        f"{record.get('name')}: {record.get('documents', 0):,} documents, {record.get('tokens', 0):,} tokens"
        for record in provenance.get("corpus") or []
    )
    lines = screen.heading("Neuron file " + content["file"])
    lines += screen.fields(
        [
            ("language", label(content["language"]) if content["language"] else ""),
            ("neurons", f"{content['neurons']:,} of {content['units']:,} units ({_percent(content['share'])})"),
            ("model", _model_line(provenance.get("model") or {})),
            ("detector", provenance.get("detector")),
            ("selection", _pairs(provenance.get("selection") or {})),
            ("measured", _pairs(provenance.get("measurement") or {})),
            ("beside", " ".join(map(str, provenance.get("languages") or []))),
            ("corpus", corpora),
            ("derived", json.dumps(provenance["derived"]) if provenance.get("derived") else ""),
            ("made by", f"babelscope {provenance['version']}" if provenance.get("version") else ""),
        ]
    )
    slots = content["by_slot"]
    rows = {slot: found["by_layer"] for slot, found in slots.items()}
    rows["all"] = [sum(layer) for layer in zip(*rows.values(), strict=True)]
    units = {slot: found["units"] for slot, found in slots.items()} | {"all": content["units"]}
    wide = len(f"{max(map(sum, rows.values())):,}")
    beside = {
        slot: f"{sum(layers):>{wide},} ({_percent(sum(layers) / max(1, units[slot]))})"
        + (f", most in layer {layers.index(max(layers))}: {max(layers):,}" if any(layers) else "")
        for slot, layers in rows.items()
    }
    lines += ["", *screen.heading("Neurons by layer", "each row to its own scale"), *screen.strips(rows, beside)]
    if content["top"]:
        lines += ["", *screen.heading(f"The top {len(content['top'])} of {content['neurons']:,} by score")]
        best = [
            (place, t["slot"], t["layer"], t["unit"], _number(t["score"])) for place, t in enumerate(content["top"], 1)
        ]
        lines += screen.table(("", "slot", "layer", "unit", "score"), best, left=0)
    family = (provenance.get("measurement") or {}).get("family")
    if any(row.experts and row.name == family for row in FAMILIES):
        lines += wrapped("Units of ffn count through the experts: expert x width of an expert + unit.", screen.width)
    return lines


def draw_languages(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """What was read of each language: documents, tokens, and what was skipped by reason."""
    languages = content["languages"]
    reasons = [name for name in SKIPPED if any(each["skipped"][name] for each in languages.values())]
    rows = [
        [label(code), f"{each['documents']:,}", f"{each['tokens']:,}", *(f"{each['skipped'][r]:,}" for r in reasons)]
        for code, each in languages.items()
    ]
    lines = screen.table(("language", "documents", "tokens", *(SKIPPED[reason] for reason in reasons)), rows)
    halved = sum(each["batches_halved"] for each in languages.values())
    return lines + ([f"  {halved} batches were halved for want of memory"] if halved else [])


def units_line(units: Mapping[str, Sequence[int]]) -> str:
    """Units by slot in a line."""
    layers = len(next(iter(units.values()), ()))
    total = sum(map(sum, units.values()))
    each = ", ".join(f"{slot} {sum(widths):,}" for slot, widths in units.items())
    return f"{each}: {total:,} in {layers} layers"


def _draw_atlas(content: Mapping[str, Any], screen: Screen) -> list[str]:
    title = f"Run {content['folder']}" if "folder" in content else f"Atlas {content['file']}"
    lines = screen.heading(title, "finished" if "folder" in content else "")
    corpora = [(label(code), " + ".join(each["corpora"])) for code, each in content["languages"].items()]
    lines += screen.fields(
        [
            ("model", _model_line(content["model"])),
            ("settings", _pairs(content["settings"])),
            ("units", units_line(content["units"])),
        ]
    )
    lines += ["", *screen.heading("Documents read"), *draw_languages(content, screen)]
    lines += ["", *screen.heading("Corpora"), *screen.fields(corpora)]
    impacts = content["mean_impact"].values()
    rows = {
        slot: [sum(layer) / len(layer) for layer in zip(*(each[slot] for each in impacts), strict=True)]
        for slot in content["units"]
    }
    beside = {slot: f"{_number(min(layers))} to {_number(max(layers))}" for slot, layers in rows.items()}
    lines += ["", *screen.heading("Mean impact of a unit by layer", "over all languages, each row to its own scale")]
    lines += screen.strips(rows, beside)
    return lines + (["", *draw_sets(content["sets"], screen)] if "sets" in content else [])


def draw_sets(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """Several sets: a table of sizes, and one of overlaps."""
    files: Mapping[str, Any] = content["files"]
    names = {
        name: label(each["language"]) if name == each["language"] else
        f"{clean(name)} ({label(each['language'])})" if each["language"] else clean(name)
        for name, each in files.items()
    }  # fmt: skip
    slots = list(dict.fromkeys(slot for each in files.values() for slot in each["by_slot"]))
    rows = []
    for name, each in files.items():
        by_slot = [f"{each['by_slot'].get(slot, {}).get('neurons', 0):,}" for slot in slots]
        rows.append([names[name], f"{each['neurons']:,}", _percent(each["share"]), *by_slot])
    lines = screen.heading("Neurons", content.get("folder", ""))
    lines += screen.table(("language", "neurons", "share", *slots), rows)
    selections = {_pairs(each["provenance"].get("selection") or {}) for each in files.values()}
    lines += screen.fields([("selected by", selection) for selection in sorted(selections)])
    if len(selections) > 1:
        lines += wrapped("These sets were selected in different ways: compare them with care.", screen.width)
    if "note" in content:
        lines += wrapped(clean(content["note"]), screen.width)
    if len(files) > 1 and "overlap" in content:
        lines += ["", *_draw_overlap(content, names, screen)]
    return lines


def _draw_overlap(content: Mapping[str, Any], names: Mapping[str, str], screen: Screen) -> list[str]:
    """|N_row & N_column| / |N_column|, in blocks of columns that fit the screen, and what chance makes of it."""
    chances = [value for row in content["chance"].values() for value in row.values()]
    if not chances:
        return ["No overlaps: the sets are empty."]
    selections = [each["provenance"].get("selection") or {} for each in content["files"].values()]
    if all(each.get("rule") == "contrast" and each.get("rest_statistic") == "max" for each in selections):
        text = (
            "No overlaps: this rule gives a unit to the language that needs it most. --rule minimum lets sets overlap."
        )
        return wrapped(text, screen.width)
    lines = screen.heading("Overlap", "share of the column's neurons that the row has too, in %")
    columns = list(names)
    wide = max(3, *(cells(clean(name)) for name in columns))
    fit = max(1, (screen.width - 2 - max(map(cells, names.values()))) // (wide + 2))
    fit = math.ceil(len(columns) / math.ceil(len(columns) / fit))  # blocks of like width
    for start in range(0, len(columns), fit):
        part = columns[start : start + fit]
        rows = [
            [full, *("·" if row == name else _cell(content["overlap"][row].get(name)) for name in part)]
            for row, full in names.items()
        ]
        lines += screen.table(("", *(clean(name).rjust(wide) for name in part)), rows)
    low, mean, high = min(chances), sum(chances) / len(chances), max(chances)
    text = f"By chance, for sets with the same counts per layer and slot: {_percent(mean)} on average"
    return lines + ["  " + line for line in wrapped(f"{text} ({_percent(low)} to {_percent(high)}).", screen.width - 2)]


def _cell(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:.0f}" if share >= 0.0995 or not share else f"{share * 100:.1f}"


def _draw_unfinished(content: Mapping[str, Any], screen: Screen) -> list[str]:
    record, states = content["record"], content["languages"]
    asked = record.get("asked") or {}
    done = sum(state == "finished" for state in states.values())
    lines = screen.heading(f"Run {content['folder']}", f"unfinished: {done} of {len(states)} languages finished")
    lines += screen.fields(
        [
            ("last written", content["last_written"]),
            ("asked", _pairs({name: asked.get(name) for name in ("command", "documents", "seed", "shard")})),
            ("settings", _pairs(asked.get("settings") or {})),
            ("model", f"fingerprint {str(asked.get('model', 'missing'))[:12]}"),
            ("made by", f"babelscope {(record.get('environment') or {}).get('babelscope', '?')}"),
        ]
    )
    lines += [
        "",
        *screen.table(("language", "state"), [(label(code), state) for code, state in states.items()], left=2),
    ]
    return [*lines, "", "If no process is at work on it, the same command goes on where it stopped."]


def _draw_other_run(content: Mapping[str, Any], screen: Screen) -> list[str]:
    lines = screen.heading(f"Run {content['folder']}", content["state"])
    return lines + screen.fields([("command", content["command"]), ("files", ", ".join(content["files"]))])


def _draw_model(content: Mapping[str, Any], screen: Screen) -> list[str]:
    row = next((each for each in FAMILIES if each.name == content["family"]), None)
    verdict = {
        True: "yes, by its layout; loading it for detection checks the formulas on its weights too",
        False: f"no: {content.get('reason')}",
        None: f"unknown, transformers can't build it: {content.get('reason')}",
    }[content["supported"]]
    lines = screen.heading(f"Model {content['folder']}")
    lines += screen.fields(
        [
            ("family", f"{row.name}: {row.examples}" if row else content["family"] or "not in the table"),
            ("model type", content["model_type"]),
            ("notes", row.note if row else ""),
            ("supported", " ".join(verdict.split())),
            ("parameters", f"{content['parameters']:,}" if "parameters" in content else ""),
        ]
    )
    if content["supported"]:
        rows = [
            (slot, f"{min(w):,}" if min(w) == max(w) else f"{min(w):,} to {max(w):,}", f"{sum(w):,}")
            for slot, w in content["units"].items()
        ]
        experts = f", {content['experts']} experts in ffn" if content["experts"] else ""
        lines += ["", *screen.heading("Units", f"{content['layers']} layers{experts}")]
        lines += screen.table(("slot", "per layer", "together"), rows)
        if content["unscored"]:
            lines += wrapped(f"Matrices of a layer that hold no unit: {', '.join(content['unscored'])}.", screen.width)
    return lines


# What commands say at their end


def _asked(documents: int | Mapping[str, int] | None) -> str:
    """Documents that are asked for, per language or by language."""
    if documents is None:
        return "all there are"
    if isinstance(documents, Mapping):
        return ", ".join(f"{label(code)} {number:,}" for code, number in documents.items())
    return f"{documents:,} per language"


def draw_plan(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """What detection would do."""
    total = sum(content["units"].values())
    documents = content["documents"]
    languages = {1: "1 language"}.get(len(content["corpora"]), f"{len(content['corpora'])} languages")
    lines = screen.heading(f"Would detect {languages}", "nothing was scored or written")
    lines += screen.fields(
        [
            ("model", f"{content['model']['name']}, {content['family']}, {content['layers']} layers"),
            ("units", ", ".join(f"{slot} {n:,}" for slot, n in content["units"].items()) + f": {total:,} together"),
            ("documents", _asked(documents)),
            ("cut to", f"{content['max_tokens']:,} tokens"),
            ("batches", f"up to {content['token_budget']:,} tokens, padding included"),
            ("device", content["device"]),
            ("kernel", content["kernel"] if {"q", "k"} & content["units"].keys() else ""),
            ("statistics", f"{human_bytes(content['statistics_bytes'])} in memory and on disk"),
            ("each batch", f"about {human_bytes(content['batch_bytes'])} more than a plain forward pass"),
        ]
    )
    lines += ["", *screen.heading("Corpora")]
    return lines + screen.fields(
        [(label(language), " + ".join(names)) for language, names in content["corpora"].items()]
    )


def draw_detected(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """What detection read, where it is, and what to type next."""
    number = len(content["languages"])
    title = {
        "new": f"Detected {number} language{'s' * (number > 1)} in {content['seconds']:.0f} s",
        "resumed": f"Detected {number} language{'s' * (number > 1)}, {content['seconds']:.0f} s since resuming",
        "finished before": "This run was finished already; nothing was computed",
    }[content["state"]]
    return draw_read(title, content["out"], content, screen)


def draw_selected(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """The sets, and what to type next."""
    first = f"{content['folder']}/{next(iter(content['files']))}.safetensors"
    return [*draw_sets(content, screen), "", f"next:  babelscope show {clean(shlex.quote(first))}"]


def draw_read(title: str, place: str, content: Mapping[str, Any], screen: Screen) -> list[str]:
    """A new atlas: what is in it, where it is, and what to type next."""
    lines = [*screen.heading(title, units_line(content["units"])), "", *draw_languages(content, screen), ""]
    # On lines of their own and never wrapped: they are for copying.
    return [*lines, f"atlas: {clean(content['file'])}", f"next:  babelscope select {clean(shlex.quote(place))}"]


def draw_demo(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """The table of damage, two answers, and where everything lies."""
    lines = screen.heading(
        f"Switching off {_percent(content['budget'])} of Tinybabel's {content['units']:,} neurons",
        "change in bits per byte: on the language's own texts / on those of the nine others",
    )
    rules = [rule for rule in content["damage"][0] if rule not in ("language", "random")]
    rows = []
    for row in content["damage"]:
        cells_ = [f"{row[rule]['own']:+.3f} / {row[rule]['others']:+.3f}" for rule in rules]
        rows.append([label(row["language"]), *cells_, f"{row['random']['own']:+.3f}"])
    lines += screen.table(["neurons of", *rules, "random, own"], rows)
    for answer in content["answers"]:
        lines += ["", *screen.heading(answer["question"], label(answer["language"]))]
        lines += screen.fields(
            [("intact", answer["intact"]), ("without its neurons", answer["without"] or "(nothing)")]
        )
    return [*lines, "", *screen.fields([("folder", content["folder"])])]
