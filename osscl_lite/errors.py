"""What is raised when something given cannot be used. Each message is one line: the file, then what to do."""

from collections.abc import Mapping


class BadInput(ValueError):
    """Input that cannot be used. The message is one line that names the file and says what to do.
    Explained in chapter 1.
    """


class BadClips(BadInput):
    """Some rows of a table of clips cannot be used; the others can. Explained in chapter 1.

    Attributes:
        problems: row position in the table (0, 1, ...) -> the line about that row.
    """

    def __init__(self, problems: Mapping[int, str]):
        self.problems = dict(sorted(problems.items()))
        first = next(iter(self.problems.values()))
        more = f" (and {len(self.problems) - 1} more clips)" if len(self.problems) > 1 else ""
        super().__init__(first + more)
