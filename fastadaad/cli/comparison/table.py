"""Table of a comparison: students and methods against attacks, with mean and spread over the seeds."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastadaad.cli.comparison.experiment import Experiment
from fastadaad.evaluation import AttackResult
from fastadaad.evaluation.plots import Series, plot_methods
from fastadaad.evaluation.report import attack_title, csv_bytes, percent, table_title
from fastadaad.runtime.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One line of the table: a student and a method over all seeds, or the teacher."""

    student: str
    """Name of the network, also on the teacher's line."""
    method: str
    """Label of the experiments."""
    results: tuple[tuple[AttackResult, ...], ...]
    """Results of all seeds, for each attack."""
    train_seconds: float | None

    def mean(self, attack: int) -> float:
        """Mean accuracy under an attack over the seeds."""
        return statistics.fmean(result.accuracy for result in self.results[attack])

    def spread(self, attack: int) -> float | None:
        """Sample standard deviation over the seeds; None for a single seed."""
        accuracies = [result.accuracy for result in self.results[attack]]
        return statistics.stdev(accuracies) if len(accuracies) > 1 else None


def summarize(experiments: Iterable[Experiment]) -> list[Summary]:
    """Returns one summary per student and method, in the order of the experiments."""
    groups: dict[tuple[str, str], list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault((experiment.network, experiment.label), []).append(experiment)
    return [_summary(student, method, group) for (student, method), group in groups.items()]


def _summary(student: str, method: str, experiments: Sequence[Experiment]) -> Summary:
    seconds = [experiment.training.seconds for experiment in experiments if experiment.training is not None]
    return Summary(
        student=student,
        method=method,
        results=tuple(zip(*(experiment.results for experiment in experiments), strict=True)),
        train_seconds=statistics.fmean(seconds) if seconds else None,
    )


def comparison_title(summaries: Sequence[Summary]) -> str:
    """Title of the table: measurement, number of images, and meaning of the figures after ±."""
    first, num_seeds = summaries[-1].results[0][0], len(summaries[-1].results[0])
    title = f"{table_title(first)}; margin of the images alone: at most ± {100 * 0.98 / first.num_images**0.5:.1f}"
    if num_seeds > 1:
        title += f"; mean ± standard deviation over {num_seeds} seeds"
    return title


def table_columns(summaries: Sequence[Summary]) -> list[str]:
    """Returns the titles of the columns."""
    attacks = [attack_title(results[0]) for results in summaries[0].results]
    return ["student", "method", *attacks, "training"]


def table_rows(summaries: Sequence[Summary], bold: str) -> list[list[str]]:
    """Rows of the table as text, with the best figure of each student and attack in `bold`, a format with one {}."""
    rows = []
    for line in summaries:
        rivals = [other for other in summaries if other.student == line.student]
        figures = []
        for attack in range(len(line.results)):
            best = len(rivals) > 1 and line.mean(attack) == max(rival.mean(attack) for rival in rivals)
            spread = line.spread(attack)
            figure = percent(line.mean(attack)) + (f" ± {percent(spread)}" if spread is not None else "")
            figures.append(bold.format(figure) if best else figure)
        rows.append([line.student, line.method, *figures, _duration(line.train_seconds)])
    return rows


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} min"


def accuracy_series(summaries: Sequence[Summary]) -> list[Series]:
    """Returns one series per attack over the lines of the table, for a plot."""
    return [
        Series(
            label=attack_title(results[0]),
            accuracies=[line.mean(attack) for line in summaries],
            spreads=[line.spread(attack) for line in summaries],
        )
        for attack, results in enumerate(summaries[0].results)
    ]


def plot_comparison(path: Path, summaries: Sequence[Summary], title: str) -> None:
    """Draws the table as a picture; the first summary is the teacher's."""
    teacher, *lines = summaries
    students = dict.fromkeys(line.student for line in lines)
    of_student = {name: [line for line in lines if line.student == name] for name in students}
    panels = {name: ([line.method for line in own], accuracy_series(own)) for name, own in of_student.items()}
    dashed = {series.label: series.accuracies[0] for series in accuracy_series([teacher])}
    plot_methods(path, panels, dashed, title)


def print_table(console: Console, summaries: Sequence[Summary]) -> None:
    """Prints the table."""
    table = Table(title=comparison_title(summaries))
    for column in table_columns(summaries):
        table.add_column(column, justify="left" if column in ("student", "method") else "right")
    previous = None
    for line, row in zip(summaries, table_rows(summaries, "[bold]{}[/bold]"), strict=True):
        if previous not in (None, line.student):
            table.add_section()
        previous = line.student
        table.add_row(*row)
    console.print(table)


def write_markdown(path: Path, summaries: Sequence[Summary]) -> None:
    """Writes the table as Markdown."""
    columns = table_columns(summaries)
    lines = [columns, ["---"] * len(columns), *table_rows(summaries, "**{}**")]
    text = "\n".join(f"| {' | '.join(row)} |" for row in lines)
    write_atomically(path, f"{text}\n\n{comparison_title(summaries)}; best of each student in bold.\n".encode())


def result_rows(experiments: Iterable[Experiment]) -> list[dict[str, object]]:
    """Returns one row per experiment and attack."""
    rows = []
    for experiment in experiments:
        training = {} if experiment.training is None else asdict(experiment.training)
        facts = {
            "student": experiment.network,
            "method": experiment.label,
            "seed": experiment.config.seed,
            "train_epsilon": "" if experiment.is_teacher else experiment.config.inner.threat_model.epsilon,
            "best_epoch": training.get("best_epoch", ""),
            "train_images_per_s": training.get("images_per_s", ""),
            "train_seconds": training.get("seconds", ""),
        }
        rows += [facts | result.row() for result in experiment.results]
    return rows


def write_csv(path: Path, experiments: Iterable[Experiment]) -> None:
    """Writes one row per experiment and attack."""
    write_atomically(path, csv_bytes(result_rows(experiments)))
