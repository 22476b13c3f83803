"""Whether the book was built: Jupyter Book 1, and a page for each entry of _toc.yml. Version 2 would build nothing here
and exit with 0."""

import re
import sys
from pathlib import Path

import jupyter_book

if not jupyter_book.__version__.startswith("1."):
    sys.exit(f"Jupyter Book {jupyter_book.__version__} is another program: install requirements.txt")
listed = re.findall(r"(?:root|file): (\S+)", Path("_toc.yml").read_text(encoding="utf-8"))
missing = [page for page in listed if not Path("_build/html", page + ".html").is_file()]
sys.exit(f"pages not built: {missing}" if missing or not listed else 0)
