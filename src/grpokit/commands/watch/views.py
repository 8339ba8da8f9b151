"""What the page asks for, as data: what has changed, a run, several runs, completions, tokens."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...runs.report.settings import Setting, facts_of, settings_of
from ...runs.report.summary import cards_of
from ...runs.token_states import STATES
from .completions import Wanted, in_full, listed
from .discover import find_runs
from .run import WatchedRun
from .series import panels, side_by_side
from .tokens import place_of, read_tokens, tokens_of

TOKENS = 2048  # most tokens of one answer
Data = dict[str, Any]


class Views:
    """The runs at some places, and the answers about them. Runs that appear later are found too.

    Example: `Views([Path("runs")]).changes()["runs"][0]["state"]`
    """

    def __init__(self, places: Sequence[Path]) -> None:
        self.places = places
        self.lock = threading.Lock()
        self.runs: dict[str, WatchedRun] = {}

    def _find(self) -> dict[str, WatchedRun]:
        with self.lock:
            found = find_runs(self.places)
            known = {name: run for name, run in self.runs.items() if found.get(name) == run.folder}
            self.runs = {name: known.get(name) or WatchedRun(name, folder) for name, folder in found.items()}
            return self.runs

    def _run(self, name: str) -> WatchedRun:
        """Returns a run. Its name is looked up, so that no name leads to another directory."""
        found = self.runs.get(name) or self._find().get(name)
        if found is None:
            raise ValueError(f"run {name!r}: there is none of that name; there are {', '.join(self.runs)}")
        return found

    def changes(self) -> Data:
        """Returns the status of every run, and a version of each view of it."""
        return {"runs": [_summary(run) for run in self._find().values()]}

    def overview(self, name: str) -> Data:
        """Returns a run's advice, cards, panels, plan and settings."""
        run = self._run(name)
        with run.lock:
            run.refresh()
            tables = run.tables()
            return {
                **_head(run),
                "facts": facts_of(run.config),
                "advice": [asdict(said) for said in run.advice()],
                "cards": [card._asdict() for card in cards_of(tables)] if run.metrics else [],
                "panels": panels(tables),
                "about": run.about,
                "settings": [setting._asdict() for setting in settings_of(run.config)],
                "problems": run.problems(),
            }

    def side_by_side(self, names: Sequence[str]) -> Data:
        """Returns the panels of several runs with a line for each, and the settings in which they differ."""
        tables, options = {}, {}
        for name in names:
            run = self._run(name)
            with run.lock:
                run.refresh()
                tables[name] = run.tables()
                options[name] = {setting.name: setting for setting in settings_of(run.config)}
        return {"panels": side_by_side(tables), "differing": _differing(options)}

    def completions(self, name: str, step: int | None, wanted: Wanted) -> Data:
        """Returns a page of the completions of a step (None: the newest), and which steps have some."""
        run = self._run(name)
        with run.lock:
            run.completions.refresh()
            steps = run.completions.steps()
            shown = step if step is not None else steps[-1] if steps else 0
            return {"steps": steps, "step": shown, **listed(run.completions.groups(shown), wanted)}

    def completion(self, name: str, step: int, group: int, generation: int) -> Data:
        """Returns a completion in full.

        Args:
            name: the run.
            step: the step.
            group: the group's place among those that the step has recorded.
            generation: the completion's place in its group.
        """
        run = self._run(name)
        with run.lock:
            run.completions.refresh()
            groups = run.completions.groups(step)
            found = in_full(groups, group, generation)
            return {**found, "tokens": place_of(run.folder, step, groups[group].get("group"), generation)}

    def recorded(self, name: str, step: int | None) -> Data:
        """Returns the steps whose tokens were recorded, and the completions of the one nearest to `step` (None: the newest)."""
        run = self._run(name)
        with run.lock:
            run.refresh()
            steps = run.shown_token_steps()
            if not steps:
                return {"steps": [], "step": None, "completions": []}
            shown = steps[-1] if step is None else min(steps, key=lambda each: abs(each - step))
            file = read_tokens(run.folder, shown)
            rows = [
                {key: value for key, value in told.items() if key != "prompt"} | {"length": length}
                for told, length in zip(file.completions, file.lengths, strict=True)
            ]
            return {"steps": steps, "step": shown, "completions": rows, "states": STATES}

    def tokens(self, name: str, step: int, place: int, first: int) -> Data:
        """Returns some tokens of a completion, with the numbers of each.

        Args:
            name: the run.
            step: the step.
            place: the completion's place among those whose tokens were recorded.
            first: the first token.
        """
        run = self._run(name)
        with run.lock:
            file = read_tokens(run.folder, step)
            columns = tokens_of(file, place, first, TOKENS)
            told = file.completions[place]
            return {"first": first, "most": TOKENS, "length": file.lengths[place], **told, "columns": columns}


def _head(run: WatchedRun) -> Data:
    status = run.status()
    return {
        "name": run.name,
        "state": status.state,
        "text": status.text,
        "step": status.step,
        "maxSteps": status.max_steps,
        "secondsLeft": status.seconds_left,
        "stepSeconds": run.step_seconds(),
    }


def _summary(run: WatchedRun) -> Data:
    with run.lock:
        run.refresh()
        _, rewards = run.metrics.series("reward")
        recent = rewards[-10:]
        return {
            **_head(run),
            "reward": sum(recent) / len(recent) if recent else None,
            "versions": run.versions(),
        }


def _differing(options: dict[str, dict[str, Setting]]) -> list[Data]:
    """Returns the options that have several values among the runs."""
    names = dict.fromkeys(name for settings in options.values() for name in settings)
    rows = [
        {
            "name": name,
            "values": [settings[name].value if name in settings else "–" for settings in options.values()],
        }
        for name in names
        if name != "output_dir"
    ]
    return [row for row in rows if len(set(row["values"])) > 1]
