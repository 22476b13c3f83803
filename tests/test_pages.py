"""The glossary and the page of the package: sorted, complete, and each entry leads to the page that explains it."""

import json
import re
from importlib import import_module, util
from inspect import getdoc, isclass, isfunction
from pathlib import Path
from types import ModuleType

import pytest

BOOK = Path(__file__).parents[1] / "book"
API = (BOOK / "api.md").read_text(encoding="utf-8")
DIRECTIVES = re.findall(r"^\.\. (auto\w+|py:function):: ([\w.]+).*\n((?:   :.*\n)*)", API, re.MULTILINE)
CHAPTERS = {int(path.name[:2]) for path in BOOK.glob("[0-9][0-9]_*.ipynb")}


def signposts() -> ModuleType:
    spec = util.spec_from_file_location("signposts", BOOK / "_ext" / "signposts.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entries() -> dict[str, object]:
    """Name on the page -> function or class; of a class the listed members must be there."""
    found = {}
    for kind, name, options in DIRECTIVES:
        listed = re.search(r":members: *(.*)", options)
        members = re.split(r",\s*", listed[1]) if listed and listed[1] else []
        if kind == "automodule":
            module = import_module(name)
            if listed and not members:
                members = [name for name, value in vars(module).items() if defined_there(value, module)]
            found |= {f"{name}.{member}": getattr(module, member) for member in members}
        else:
            parent, _, last = name.rpartition(".")
            found[name] = getattr(import_module(parent), last)
            assert all(hasattr(found[name], member) for member in members), f"{name}: {members}"
    return found


def defined_there(value: object, module: ModuleType) -> bool:
    return (isfunction(value) or isclass(value)) and value.__module__ == module.__name__ and value.__name__[0] != "_"


def test_each_entry_of_the_package_names_the_page_that_explains_it():
    appendices, silent = signposts().APPENDICES, []
    assert all((BOOK / f"{page}.ipynb").is_file() for page in appendices.values())
    for name, what in entries().items():
        words = " ".join((getdoc(what) or "").split())
        chapters = re.findall(r"\bchapters? (\d+)(?: and (\d+))?", words)
        known = all(int(number) in CHAPTERS for numbers in chapters for number in numbers if number)
        named = chapters or any(f"appendix on {subject}" in words for subject in appendices)
        if not (named and known) and name != "osscl_lite.replace":  # dataclasses', explained on the page itself
            silent.append(name)
    assert not silent, f"no chapter or appendix of the book in the docstring of {', '.join(silent)}"


def test_what_the_notebooks_import_stands_on_the_page():
    names, absent = set(entries()), set()
    given = {getattr(what, "__qualname__", "") + getattr(what, "__module__", "") for what in entries().values()}
    modules = {name.rpartition(".")[0] for name in names}
    for path in BOOK.glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        for source, words in re.findall(r"^ *from (osscl_lite[\w.]*) import \(?([\w\s,]+)", code, re.MULTILINE):
            for name in re.findall(r"\w+", words.partition("\n\n")[0] if "(" in words else words.splitlines()[0]):
                what = getattr(import_module(source), name, None) or import_module(f"{source}.{name}")
                if isinstance(what, ModuleType):
                    absent |= {what.__name__} - modules
                elif (isfunction(what) or isclass(what)) and what.__qualname__ + what.__module__ not in given:
                    absent.add(f"{source}.{name}")
    assert not absent, f"not on the page of the package: {', '.join(sorted(absent))}"


def test_the_glossary_is_sorted_and_leads_on():
    words = re.search(r"```\{glossary\}\n(.+?)\n```", (BOOK / "glossary.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    terms = [entry.splitlines() for entry in words.split("\n\n")]
    names = [lines[0] for lines in terms]
    assert names == sorted(set(names), key=str.casefold)
    for name, *text in terms:
        assert re.search(r"\]\(\w+\.ipynb\)\.?$", text[-1]), f"{name}: ends with no page of the book"


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("Explained in chapter 4.", ":doc:`chapter 4 </book/04_"),
        ("Explained in\nchapters 5 and 6.", ":doc:`6 </book/06_"),
        ("in the appendix on\nspeed.", ":doc:`appendix on speed </book/appendix_speed>`"),
    ],
)
def test_a_docstring_links_the_page(text, link):
    lines = text.split("\n")
    signposts().link_chapters(type("App", (), {"srcdir": BOOK.parent}), "function", "f", None, None, lines)
    assert link in "\n".join(lines)
