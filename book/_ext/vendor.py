"""Fetch what the pages ship from others: python book/_ext/vendor.py

Takes each package of PACKAGES from npm, checks it against the registry's checksum (npm does), copies what is named and
the licence into book/_static, and writes vendored.json beside: name, version, licence, checksum of the package and of
each file. To update, change the version here, run it, and look at the pages.
"""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

STATIC = Path(__file__).parents[1] / "_static"
MANIFEST = STATIC / "vendored.json"


@dataclass(frozen=True)
class Package:
    """A package of npm: what is copied from where in it to where in ``folder``; a name that ends in / is a folder."""

    name: str
    version: str
    folder: str
    copied: dict[str, str]


PACKAGES = [
    Package(
        "mathjax",
        "3.2.2",
        "mathjax",
        {
            "LICENSE": "LICENSE",
            "es5/tex-chtml-full.js": "tex-chtml-full.js",  # whole: nothing is fetched later
            "es5/output/chtml/fonts/woff-v2/": "output/chtml/fonts/woff-v2/",
        },
    )
]


def fetch(package: Package, work: Path) -> dict:
    """Replace the package's folder in book/_static; its entry of the manifest."""
    command = [shutil.which("npm") or "npm", "pack", f"{package.name}@{package.version}", "--json", "--silent"]
    packed = json.loads(subprocess.run(command, cwd=work, check=True, stdout=subprocess.PIPE, text=True).stdout)[0]
    with tarfile.open(work / packed["filename"]) as archive:
        archive.extractall(work, filter="data")
    source, target = work / "package", STATIC / package.folder
    shutil.rmtree(target, ignore_errors=True)
    for there, here in package.copied.items():
        (target / here).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if there.endswith("/") else shutil.copyfile
        copy(source / there, target / here)
    return {
        "name": package.name,
        "version": package.version,
        "licence": json.loads((source / "package.json").read_text(encoding="utf-8"))["license"],
        "source": f"npm pack {package.name}@{package.version}",
        "integrity": packed["integrity"],
        "folder": package.folder,
        "files": checksums(target),
    }


def checksums(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        entries = [fetch(package, Path(work)) for package in PACKAGES]
    MANIFEST.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8", newline="\n")
    for entry in entries:
        print(f"{entry['name']} {entry['version']} ({entry['licence']}): {len(entry['files'])} files")


if __name__ == "__main__":
    main()
