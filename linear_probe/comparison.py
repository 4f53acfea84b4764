"""Compare encoders over data sets and protocols: table with the best marked, paired differences, mean ranks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from linear_probe.results import Result, markdown, percent, title
from linear_probe.statistics import Interval, critical_difference, paired_difference, ranks

NEAR = " ~"  # after an accuracy that is not worse than the best beyond chance


@dataclass(frozen=True, order=True)
class Column:
    """Column of a comparison.

    Attributes:
        data: name of the data set.
        task: name of the task, `all labels` or `5-shot` for example.
        protocol: name of the protocol.
    """

    data: str
    task: str
    protocol: str

    def __str__(self) -> str:
        return f"{self.data} {kind_name(self.task, self.protocol)}"


def kind_name(task: str, protocol: str) -> str:
    """Return the name of a task and protocol; that of all labels is not said."""
    return title(protocol) if task == "all labels" else f"{task} {title(protocol)}"


class Comparison:
    """Results of several encoders on the same columns.

    Args:
        encoders: names of the encoders, in the order of the table.
        results: {column: {encoder: result}}; an encoder may be missing.
    """

    def __init__(self, encoders: Sequence[str], results: Mapping[Column, Mapping[str, Result]]):
        self.encoders, self.results = list(encoders), results

    @property
    def has_one_data_set(self) -> bool:
        """Return whether all columns are of the same data set."""
        return len({column.data for column in self.results}) == 1

    def head(self, column: Column) -> str:
        """Return the head of a column, without the data set where all columns have the same."""
        return kind_name(column.task, column.protocol) if self.has_one_data_set else str(column)

    def difference(self, column: Column, a: str, b: str) -> Interval | None:
        """Return accuracy of `a` minus that of `b` in percentage points; None where images or encoders differ.

        Args:
            column: the column.
            a, b: names of the encoders.
        """
        first, second = (self.results[column].get(name) for name in (a, b))
        if first is None or second is None or not (first.has_images and second.has_images):
            return None
        if (first.data_fingerprint, first.split, first.images) != (
            second.data_fingerprint,
            second.split,
            second.images,
        ):
            return None
        return paired_difference(first.per_image(), second.per_image())

    def best(self, column: Column) -> str:
        """Return the encoder with the highest accuracy in a column."""
        results = self.results[column]
        return max(results, key=lambda name: results[name].accuracy)

    def near_best(self, column: Column) -> set[str]:
        """Return the other encoders whose difference to the best has an interval that contains 0."""
        best = self.best(column)
        differences = {name: self.difference(column, best, name) for name in self.results[column] if name != best}
        return {name for name, d in differences.items() if d is not None and d.contains_zero}

    def table(self) -> str:
        """Return accuracies in percent: the best of a column bold, those within noise of it followed by ~."""
        rows = [["encoder", *map(self.head, self.results)]]
        best = {column: self.best(column) for column in self.results}
        near = {column: self.near_best(column) for column in self.results}
        for encoder in self.encoders:
            row = [encoder]
            for column, results in self.results.items():
                text = percent(results[encoder]) if encoder in results else ""
                row.append(f"**{text}**" if encoder == best[column] else text + NEAR * (encoder in near[column]))
            rows.append(row)
        return markdown(rows)

    def further_tables(self) -> list[str]:
        """Return a table of further measures in percent for each column that has some: encoders as rows."""
        tables = []
        for column, results in self.results.items():
            names = list(dict.fromkeys(name for result in results.values() for name in result.further))
            rows = [[self.head(column), *names]]
            for encoder, result in results.items():
                values = (result.further.get(name) for name in names)
                rows.append([encoder, *("" if value is None else f"{value:.1f}" for value in values)])
            tables += [markdown(rows)] if names else []
        return tables

    def differences(self) -> str:
        """Return the first encoder minus each other one, in percentage points with 95 % intervals."""
        first, *others = self.encoders
        rows = [[f"{first} minus", *map(self.head, self.results)]]
        for encoder in others:
            intervals = [self.difference(column, first, encoder) for column in self.results]
            rows.append(
                [encoder, *("" if d is None else f"{d.mean:+.1f} [{d.low:.1f}, {d.high:.1f}]" for d in intervals)]
            )
        return markdown(rows)

    def mean_ranks(self) -> dict[tuple[str, str], tuple[dict[str, float], int]]:
        """Return {(task, protocol): (mean rank of each encoder, number of data sets)}, 1 being the best.

        Encoders that lack a result in one of the columns have no rank.
        """
        kinds = dict.fromkeys((column.task, column.protocol) for column in self.results)
        mean_ranks = {}
        for kind in kinds:
            columns = [column for column in self.results if (column.task, column.protocol) == kind]
            names = [e for e in self.encoders if all(e in self.results[column] for column in columns)]
            if len(names) > 1:
                scores = [[self.results[column][name].accuracy for column in columns] for name in names]
                mean_ranks[kind] = (dict(zip(names, ranks(scores).mean(1).tolist(), strict=True)), len(columns))
        return mean_ranks

    def rank_table(self) -> str:
        """Return the mean ranks over data sets, a column for each task and protocol, and their mean.

        The last row is the difference from which mean ranks differ by Nemenyi's test.
        """
        mean_ranks = self.mean_ranks()
        heads = [kind_name(task, protocol) for task, protocol in mean_ranks]
        rows = [["mean rank", *heads, "all"]]
        for encoder in self.encoders:
            values = [of[encoder] for of, _ in mean_ranks.values() if encoder in of]
            whole = f"{statistics.fmean(values):.2f}" if len(values) == len(mean_ranks) else ""
            rows.append(
                [encoder, *(f"{of[encoder]:.2f}" if encoder in of else "" for of, _ in mean_ranks.values()), whole]
            )
        least = [critical_difference(len(of), count) for of, count in mean_ranks.values()]
        rows.append(["critical difference", *(f"{d:.2f}" for d in least), ""])
        return markdown(rows)
