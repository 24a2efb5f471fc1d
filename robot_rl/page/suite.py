"""The page about a suite: scores with intervals, each task beside public learners, actions, and every run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import msgspec
import numpy as np

from robot_rl import statistics
from robot_rl.page import html
from robot_rl.page.figures import Axis, Chart, intervals, number, span
from robot_rl.page.plots import PUBLIC, RECIPES, Row
from robot_rl.page.scores import Comparison, mean_curve
from robot_rl.run import RunConfig
from robot_rl.suite import Result, chosen_options

_LIGHTER = (("#8ba6ff", "#ff8c60", "#48c4ae", "#d08cf0", "#eeeeee", "#f0c75e", "#f5a9dc"),
            ("#d0ab62", "#a3b1c4", "#e39cc6", "#8fca8f", "#7fcde4", "#c4c4c4"))


class Page:
    """The parts of the page; figures over all tasks are computed once, here."""

    def __init__(self, folder: Path, found: Sequence[Result], compared: Comparison, baseline: str | None) -> None:
        self.folder, self.found, self.compared = folder, found, compared
        at, recipes = compared.at, compared.recipes if compared.scored else []
        scores = {recipe: compared.scores(recipe, at) for recipe in recipes}
        self.iqms: list[Row] = [(r, k, float(statistics.iqm(np.concatenate(s))), statistics.stratified_bootstrap_ci(s))
                                for k, (r, s) in enumerate(scores.items())]
        first = baseline or next(iter(recipes), None)
        self.improvements: list[Row] = [
            (f"{r} over {first}", k, statistics.probability_of_improvement(s, scores[first]),
             statistics.improvement_ci(s, scores[first])) for k, (r, s) in enumerate(scores.items())
            if first is not None and r != first]
        grid = compared.grid() if compared.scored else []
        self.efficiency = {r: np.array([self._spread(r, step) for step in grid]) for r in recipes if len(grid) > 1}

    def _spread(self, recipe: str, step: int) -> tuple[float, float, float, float]:
        """Step, low, interquartile mean, high."""
        scores = self.compared.scores(recipe, step)
        low, high = statistics.stratified_bootstrap_ci(scores, resamples=500) or (np.nan, np.nan)
        return step, low, float(statistics.iqm(np.concatenate(scores))), high

    def text(self, made: str) -> str:
        """The whole page; `made` says when and where it was written."""
        parts = [("result", "Over all tasks", self._result()), ("public", f"Beside public learners, at {self._at}",
                                                                self._beside()),
                 ("curves", "Learning curves", self._curves()), ("actions", "Actions and time", self._actions()),
                 ("runs", "Every run", self._runs()), ("commands", "Run it again", self._commands())]
        shown = [part for part in parts if part[2]]
        links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in shown)
        body = (f'<p class="eyebrow">robot-rl suite report on <code>{escape(str(self.folder))}</code></p>'
                f"<h1>{escape(_list(self.compared.recipes))} on {self._count(self.compared.tasks, 'task')}</h1>"
                + html.paragraph(self._lead(), "lead") + html.paragraph(made, "eyebrow") + f"<nav>{links}</nav>"
                + self._gaps() + "\n".join(html.section(*part) for part in shown))
        return html.page(f"suite: {', '.join(self.compared.tasks)}", body, _style())

    @property
    def _at(self) -> str:
        return f"{number(self.compared.at)} environment steps"

    @staticmethod
    def _count(things: Sequence[object], word: str) -> str:
        return f"{len(things)} {word}{'s' * (len(things) != 1)}"

    def _lead(self) -> str:
        finished = sum(r.finished for r in self.found)
        seeds = {r.config.seed for r in self.found}
        text = f"{finished} of {self._count(self.found, 'run')} finished, with {self._count(sorted(seeds), 'seed')}."
        said = [f"{value:.3f} for {name}" + (f" (95% interval {interval[0]:.3f} to {interval[1]:.3f})" if interval else
                                             "") for name, _, value, interval in self.iqms]
        return f"{text} The interquartile mean of the scores at {self._at} is {_list(said)}." if said else text

    def _gaps(self) -> str:
        compared, lines = self.compared, []
        running = [r for r in self.found if not r.finished]
        if running:
            lines.append("the ends of runs that are not finished: " + ", ".join(
                f"{r.task} {r.config.recipe} seed {r.config.seed} (at step {r.steps[-1] if len(r.steps) else 0:,})"
                for r in running[:8]) + (f" and {len(running) - 8} more" if len(running) > 8 else ""))
        unknown = [task for task in compared.tasks if not compared.public[task]]
        if unknown:
            lines.append(f"public curves of {', '.join(unknown)}")
        out = [task for task in compared.tasks if task not in compared.scored]
        if out:
            lines.append(f"{', '.join(out)} in the figures over all tasks: a recipe has no run there that came to "
                         f"{self._at}, or no public mean gives a score its unit")
        if self.iqms and any(interval is None for *_, interval in self.iqms):
            lines.append("intervals: they need two seeds of a task at least")
        return "<h3>Not here</h3>" + html.bullets(lines) if lines else ""

    def _result(self) -> str:
        compared = self.compared
        if not self.iqms:
            return ""
        rows = []
        for name, k, value, interval in self.iqms:
            scores = compared.scores(name, compared.at)
            rows.append([f"<b>{_named(k, name)}</b>", f"<b>{value:.3f}</b>",
                         f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "",
                         f"{np.mean([s.mean() for s in scores]):.3f}", str(sum(map(len, scores))),
                         *(self._over_tasks(name, key) for key in ("evaluate/action_rate", "evaluate/energy"))])
        rows += [[escape(name), "", "", f"{mean:.3f}", "", "", ""] for name, mean in sorted(
            compared.public_scores().items(), key=lambda item: -item[1])]
        table = html.table(["", "Interquartile mean", "95% interval", "Mean over tasks", "Runs", "Action rate",
                            "Energy"], rows)
        note = html.paragraph(
            f"Scores at {self._at} on {', '.join(compared.scored)}. In the dm_control suite a score is the return over "
            "1000; elsewhere it is the return over the best public mean at the same step. The interquartile mean "
            "leaves out the lowest and the highest quarter of all runs; intervals are percentiles of a bootstrap that "
            "draws seeds anew within each task, and with two or three seeds they are too narrow. Of public "
            "learners only means are known, so only the mean over tasks compares with them: with those that have a "
            "figure on each of these tasks.", "soft")
        drawn = [f'<div class="wide">{table}<p></p>{note}</div>', self._iqm_chart(), self._efficiency_chart(),
                 self._improvement_chart()]
        return html.columns(part for part in drawn if part)

    def _over_tasks(self, recipe: str, key: str) -> str:
        """Mean over the scored tasks of the seeds' mean at their last evaluation; nothing where a task has none."""
        every = [[r.last[key] for r in self.compared.of(task, recipe) if key in r.last] for task in
                 self.compared.scored]
        return f"{np.mean([np.mean(values) for values in every]):.3f}" if all(every) else ""

    def _iqm_chart(self) -> str:
        rows = [(name, _series(k), *_around(value, interval)) for name, k, value, interval in self.iqms]
        axis = Axis(0, max(1.0, *(row[4] for row in rows)) if len(rows) else 1.0, "score")
        return html.figure("Interquartile mean", intervals(rows, "score", "interquartile means: " + "; ".join(
            f"{name} {value:.3f}" for name, _, value, _ in self.iqms), axis),
            "The whisker is the 95% interval." if any(i for *_, i in self.iqms) else "")

    def _improvement_chart(self) -> str:
        if not self.improvements:
            return ""
        rows = [(name, _series(k), *_around(value, interval))
                for name, k, value, interval in self.improvements]
        return html.figure("Probability of improvement", intervals(
            rows, "probability", "; ".join(f"{name} {value:.0%}" for name, _, value, _ in self.improvements)),
            "How likely a run of the one returns more than a run of the other, on a task drawn at random. Where the "
            "whisker spans 50%, these runs do not tell the two apart.")

    def _efficiency_chart(self) -> str:
        if not self.efficiency:
            return ""
        every = np.concatenate(list(self.efficiency.values()))
        chart = Chart(Axis(0, float(every[:, 0].max()), "environment steps"),
                      Axis(*span(every[:, 1:], include=(0.0,)), "score"))
        for k, rows in enumerate(self.efficiency.values()):
            chart.band(rows[:, 0], rows[:, 1], rows[:, 3], _series(k))
            chart.line(rows[:, 0], rows[:, 2], _series(k))
        return html.figure("Sample efficiency", chart.svg("interquartile mean of scores against environment steps"),
                           "Interquartile mean over the same tasks with its 95% interval, at the steps at which each "
                           "score has a unit.", self._legend())

    def _beside(self) -> str:
        compared, rows, shown = self.compared, [], ""
        for task in compared.tasks:
            best = compared.best(task, compared.at)
            for k, recipe in enumerate(compared.recipes):
                ours = compared.returns(task, recipe, compared.at)
                if not len(ours):
                    continue
                named = f" on {best.task}" if best and best.task != task else ""
                share = f"<b>{ours.mean() / best.mean:.2f}</b>" if best and best.mean > 0 else ""
                known = f"{_return(best.mean)} <small>{escape(best.algorithm + named)}</small>" if best else ""
                first, shown = task != shown, task  # what a task's rows have in common stands in the first
                rows.append([escape(task) if first else "", _named(k, recipe), _spread(ours, _return), str(len(ours)),
                             known if first else "", share])
        note = html.paragraph("Mean return over seeds, ± their standard deviation; the best public mean on the task at "
                              "the same number of the simulator's steps; and the one over the other. Between two "
                              "evaluations, returns are taken on a straight line.", "soft")
        return note + html.table(["Task", "Recipe", "Ours", "Seeds", "Best public mean", "Ours / best"], rows, 2)

    def _curves(self) -> str:
        legend = html.key([*self._legend(), *((f"p{k % len(PUBLIC)} dashed", name)
                                                 for k, name in enumerate(self.compared.algorithms))])
        note = html.paragraph("Thick: mean over seeds, as far as all of them came, in a band from the lowest to "
                              "the highest; thin: each seed. Dashed: public means. A dot is an evaluation; hold the "
                              "pointer over it for its figure.", "soft")
        return note + legend + html.columns(self._curve(task) for task in self.compared.tasks)

    def _curve(self, task: str) -> str:
        compared = self.compared
        runs = {recipe: compared.of(task, recipe) for recipe in compared.recipes}
        ours = [r for chosen in runs.values() for r in chosen]
        last = max(max(r.steps[-1] for r in ours), compared.at)
        public = [(p, p.steps <= last) for p in compared.public[task]]
        tops = [p.mean[near] for p, near in public] + [r.returns for r in ours]
        chart = Chart(Axis(0, 1.02 * float(last), "environment steps"), Axis(*span(*tops, include=(0.0,)), "return"))
        for p, near in public:
            series, x, y = f"p{compared.algorithms.index(p.algorithm) % len(PUBLIC)}", p.steps[near], p.mean[near]
            chart.line(x, y, f"{series} dashed")
            titles = [f"{p.algorithm}, {number(s)} steps: {_return(m)} ± {_return(d)} over {n:.0f} seeds"
                      for s, m, d, n in zip(x, y, p.std[near], p.seeds[near], strict=True)]
            chart.dots(x, y, series, titles, 3.2)
        for k, (recipe, chosen) in enumerate(runs.items()):
            for run in chosen if len(chosen) > 1 else ():
                chart.line(run.steps, run.returns, f"{_series(k)} thin", f"{recipe}, seed {run.config.seed}")
            if chosen:
                steps, mean, low, high = mean_curve(chosen)
                titles = [f"{recipe}, {number(s)} steps: {_return(m)}" for s, m in zip(steps, mean, strict=True)]
                chart.band(steps, low, high, _series(k))
                chart.line(steps, mean, _series(k))
                chart.dots(steps, mean, _series(k), titles)
        other = {p.task for p, _ in public} - {task}
        return html.figure(task, chart.svg(f"returns on {task} against environment steps"),
                           f"Public curves are of {', '.join(other)}." if other else "")

    def _actions(self) -> str:
        compared, rows, shown = self.compared, [], ""
        for task in compared.tasks:
            for k, recipe in enumerate(compared.recipes):
                lines = [r.last for r in compared.of(task, recipe)]
                rate, energy, seconds = (np.array([line[key] for line in lines if key in line]) for key in
                                         ("evaluate/action_rate", "evaluate/energy", "time/seconds"))
                if lines:
                    first, shown = task != shown, task
                    rows.append([escape(task) if first else "", _named(k, recipe), _spread(rate), _spread(energy),
                                 f"{seconds.mean() / 60:.1f}" if len(seconds) else ""])
        note = html.paragraph("Of the last evaluation, mean over seeds ± standard deviation. Action rate: mean change "
                              "of an action from one decision to the next; energy: mean squared action. Both per part "
                              "of the action, which lies in [-1, 1]. Time: wall time of a run, evaluations included.",
                              "soft")
        return note + html.table(["Task", "Recipe", "Action rate", "Energy", "Minutes a run"], rows, 2)

    def _runs(self) -> str:
        rows = [[escape(r.task), escape(r.config.recipe), str(r.config.seed),
                 f"{r.steps[-1]:,}" if len(r.steps) else "", _return(r.returns[-1]) if len(r.steps) else "",
                 "yes" if r.finished else "no"] for r in self.found]
        return ("<details><summary>All runs</summary>" + html.table(
            ["Task", "Recipe", "Seed", "Environment steps", "Last return", "Finished"], rows, 2) + "</details>"
            + html.paragraph("returns.csv holds every evaluation of every run, runs.csv a line for each run.", "soft"))

    def _commands(self) -> str:
        groups: dict[bytes, list[RunConfig]] = {}
        for result in self.found:
            config = msgspec.structs.replace(result.config, options=chosen_options(result))
            alike = msgspec.structs.replace(config, task="", recipe="", seed=0)
            groups.setdefault(msgspec.json.encode(alike), []).append(config)
        return (html.paragraph("The same command continues a suite that was interrupted, and does what is missing.")
                + html.code(*(_command(group, self.folder) for group in groups.values()),
                            shlex.join(["robot-rl", "suite", "report", str(self.folder)])))

    def _legend(self) -> list[tuple[str, str]]:
        return [(_series(k), recipe) for k, recipe in enumerate(self.compared.recipes)]


def _command(group: Sequence[RunConfig], folder: Path) -> str:
    """The suite command of runs that differ in task, recipe and seed only."""
    one, (tasks, recipes, seeds) = group[0], (list(dict.fromkeys(getattr(c, key) for c in group)) for key in
                                              ("task", "recipe", "seed"))
    words = ["robot-rl", "suite", "run", "--out", str(folder), "--seeds", ",".join(map(str, sorted(seeds)))]
    words += [w for name, chosen in (("--task", tasks), ("--recipe", recipes)) for w in (name, ",".join(chosen))]
    for key in ("steps", "learn_after", "evaluate_every", "evaluation_episodes", "checkpoint_every", "action_repeat"):
        words += [f"--{key.replace('_', '-')}", str(getattr(one, key))]
    return shlex.join(words + [w for k, v in one.options.items() for w in ("--set", f"{k}={json.dumps(v)}")])


def _list(words: Sequence[str]) -> str:
    """Words as a sentence lists them."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _around(value: float, interval: tuple[float, float] | None) -> tuple[float, float, float]:
    low, high = interval or (value, value)
    return low, value, high


def _return(value: float) -> str:
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}").replace("-", "\N{MINUS SIGN}")


def _spread(values: np.ndarray, text: Callable[[float], str] = "{:.3f}".format) -> str:
    """Mean ± standard deviation; one value has none."""
    if not len(values):
        return ""
    return text(values.mean()) + (f" ± {text(values.std(ddof=1))}" if len(values) > 1 else "")


def _named(k: int, recipe: str) -> str:
    """A recipe's name in its colour."""
    return f'<span class="{_series(k)}">{escape(recipe)}</span>'


def _series(k: int) -> str:
    """The class of the k-th recipe's colour."""
    return f"r{k % len(RECIPES)}"


def _style() -> str:
    """A colour for each recipe (r0, …) and public learner (p0, …), lighter ones on a dark ground."""
    light, dark = ("".join(f".{letter}{k} {{ color: {colour}; }}\n" for letter, colours in zip("rp", both, strict=True)
                           for k, colour in enumerate(colours)) for both in ((RECIPES, PUBLIC), _LIGHTER))
    return (f"{light}@media (prefers-color-scheme: dark) {{ {dark} }}\n"
            ".line.thin { stroke-width: 1; opacity: .55; }\n"
            ".line.dashed { stroke-width: 1.3; stroke-dasharray: 4 3; }\n"
            ".legend .dashed::before { background: none; border-top: 2px dashed; height: 0; }\n"
            "td small { color: var(--soft); }\npre { white-space: pre-wrap; }\n")
