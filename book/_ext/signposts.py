"""Sphinx extension: letters for the pages beside the road, links from docstrings to pages, glossary terms by each name.

Pages of numbered parts get numbers, one after the other. A page whose file does not begin with a digit is no chapter:
it gets a letter instead, A, B and so on, and so do its figures and exercises. In docstrings "chapter 4" and "appendix
on speed" become links, and what a function returns may have a colon in it.
"""

import re
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from docutils import nodes

APPENDICES = {"real data": "appendix_real", "the hall": "appendix_hall", "speed": "appendix_speed"}


def relabel(numbers: dict[Any, Any], letter: str) -> None:
    """Change the first part of each number of a page: (12, 3) becomes ("C", 3)."""
    for key, number in numbers.items():
        numbers[key] = number and (letter, *number[1:])


def letter_the_rest(app: Any, env: Any) -> list[str]:
    """Letter the pages that are no chapters; returns them, to be written anew."""
    beside = [page for page in env.toc_secnumbers if not Path(page).name[0].isdigit()]
    for page, letter in zip(beside, ascii_uppercase, strict=False):
        relabel(env.toc_secnumbers[page], letter)
        for numbers in env.toc_fignumbers.get(page, {}).values():
            relabel(numbers, letter)
        for node in (env.titles[page], *env.tocs[page].findall(nodes.reference)):
            node["secnumber"] = (letter, *node["secnumber"][1:])
    return beside


def link_chapters(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn "chapters 5 and 6" and "appendix on speed" into links, also where a line ends in between."""
    chapters = {int(page.name[:2]): page.name for page in Path(app.srcdir, "book").glob("[0-9][0-9]_*")}

    def chapter(found: re.Match) -> str:
        page = Path(chapters[int(found["number"])]).stem
        return f":doc:`{' '.join(found[0].split())} </book/{page}>`"

    def appendix(found: re.Match) -> str:
        return f":doc:`{' '.join(found[0].split())} </book/{APPENDICES[' '.join(found[1].split())]}>`"

    def run(found: re.Match) -> str:
        return re.sub(r"(?:chapters?\s+)?(?P<number>\d+)", chapter, found[0])

    text = re.sub(r"\bchapters?\s+\d+(?:(?:,\s+\d+)*\s+and\s+\d+)?", run, "\n".join(lines))
    text = re.sub(r"\bappendix\s+on\s+(real\s+data|the\s+hall|speed)", appendix, text)
    lines[:] = text.split("\n")


def keep_colons(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in the first line of "Returns" for a type; an empty one is left out."""
    for place, line in enumerate(lines[:-1]):
        if line.strip() in ("Returns:", "Yields:"):
            text = lines[place + 1].lstrip()
            lines[place + 1] = f"{lines[place + 1][: -len(text)]}: {text}"


def name_terms(app: Any, doctree: nodes.document) -> None:
    """Let {term} find an entry of the glossary that has several names, "EMA, exponential moving average", by each."""
    for term in doctree.findall(nodes.term):
        names = term.astext().split(", ")
        for name in names if len(names) > 1 and term["ids"] else ():
            app.env.domains["std"].note_object("term", name, term["ids"][0], location=term)


def setup(app: Any) -> dict[str, bool]:
    app.connect("doctree-read", name_terms)
    app.connect("env-get-updated", letter_the_rest, priority=900)  # after Sphinx has numbered
    app.connect("autodoc-process-docstring", keep_colons, priority=100)  # before Napoleon
    app.connect("autodoc-process-docstring", link_chapters, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
