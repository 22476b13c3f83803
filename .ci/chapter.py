"""One chapter as a page, with the glossary and the references: python .ci/chapter.py 02_features

Links to other chapters stay open, which gives warnings. The page lies under _build/one; the book's own is not touched.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
name = Path(sys.argv[1]).stem if len(sys.argv) == 2 else ""
if not any((ROOT / "book" / f"{name}{ending}").is_file() for ending in (".ipynb", ".md")):
    sys.exit(f"{' '.join(sys.argv[1:]) or 'no name'}: name a file of book/, such as 02_features")
folder = ROOT / "_build" / "one"
folder.mkdir(parents=True, exist_ok=True)
others = "".join(f"  - file: book/{other}\n" for other in ("glossary", "references") if other != name)
(folder / "_toc.yml").write_text(f"format: jb-book\nroot: book/{name}\nchapters:\n{others}", encoding="utf-8")
build = ["jupyter-book", "build", str(ROOT), "--toc", str(folder / "_toc.yml")]
failed = subprocess.run([*build, "--path-output", str(folder)]).returncode
if not failed:
    print(f"\n{folder / '_build' / 'html' / 'book' / f'{name}.html'}")
sys.exit(failed)
