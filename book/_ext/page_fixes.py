"""Sphinx extension: mends what the theme gets wrong on every page.

The launch-button extension adds Thebe's scripts twice and from a CDN although the book does not use Thebe, and Jupyter
Book leaves the theme's mode undefined: both show up as errors in the browser's console. Beside the search field of the
side bar, the theme's parent would put a second one above the page.
"""

from typing import Any


def one_search_field(app: Any, config: Any) -> None:
    config.html_theme_options.setdefault("navbar_persistent", [])


def mend(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Take Thebe's scripts off the page and let the reader's system choose light or dark."""

    def of_thebe(script: Any) -> bool:
        inline = str(getattr(script, "attributes", {}).get("body", ""))
        return "thebe" in str(getattr(script, "filename", script)) or "THEBE_JS_URL" in inline

    context["default_mode"] = "auto"
    context["script_files"] = [script for script in context.get("script_files", []) if not of_thebe(script)]


def setup(app: Any) -> dict[str, bool]:
    app.connect("config-inited", one_search_field)
    app.connect("html-page-context", mend, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
