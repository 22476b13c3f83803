"""Every system of the tables by name: its recipe, and how to fit it. All answer to ``fit`` and ``score_clips``.
Explained in chapter 9.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from osscl_lite import training
from osscl_lite.baselines import clp_scf
from osscl_lite.errors import BadInput
from osscl_lite.recipe import ROWS, recipe

ANOPATCH = ("wavlm", "atst", "ast", "beats")


@dataclass(frozen=True)
class System:
    """One row of the tables. Explained in chapter 9.

    Attributes:
        name: of its recipe and of its records.
        recipe: size -> the recipe, plain data.
        fit: as ``osscl_lite.fit``: ``(recipe, clips, *, device, out, progress)``, returns a model with ``score_clips``.
        listens: whether it needs sound, and cannot learn from precomputed features.
    """

    name: str
    recipe: Callable[[str], Any]
    fit: Callable[..., Any]
    listens: bool


def _baseline(name: str, where: str, listens: bool = False, **given: Any) -> System:
    """A system in a file of its own, ``where``, imported when it is used: some need libraries of the extra ``tables``.

    What is ``given`` goes to the file's ``recipe``.
    """

    def module() -> Any:
        return import_module(f"osscl_lite.baselines.{where}")

    return System(
        name,
        lambda size: module().recipe(size, **given),
        lambda *arguments, **options: module().fit(*arguments, **options),
        listens,
    )


def _row(name: str) -> System:
    fit = clp_scf.fit if name.endswith("clp-scf") else training.fit
    return System(name, partial(recipe, name), fit, ROWS[name]["front_end"] != "logmel")


def system_of(recipe: Any) -> System:
    """The system of a recipe; a changed recipe may have a longer name, such as "logmel-osscl-long".
    Explained in chapter 9.

    Raises:
        BadInput: if its name begins with none of ``SYSTEMS``.
    """
    words = recipe.name.split("-")
    for count in range(len(words), 0, -1):
        if (name := "-".join(words[:count])) in SYSTEMS:
            return SYSTEMS[name]
    raise BadInput(f"recipe {recipe.name}: begins with the name of no system; there are {', '.join(SYSTEMS)}")


SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        *map(_row, ROWS),
        _baseline("idnn", "idnn"),
        _baseline("mobilenetv2", "mobilenetv2"),
        _baseline("glow-aff", "glow_aff"),
        _baseline("no1", "no1"),
        *(_baseline(f"anopatch-{backbone}", "anopatch", listens=True, backbone=backbone) for backbone in ANOPATCH),
    )
}
