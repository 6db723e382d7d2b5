"""Packages for a machine that can fetch nothing: ``python -m tests.gpu.wheels FOLDER`` where there is an index.

Ray's wheel loses what is not needed to run actors (its libraries, Java, the dashboard's pages), half of its size.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "ray", "tenacity", "zlib-ng", "jsonschema", "jsonschema-specifications", "referencing", "rpds-py",
)  # fmt: skip
"""What distconv and Ray need besides what comes with PyTorch and Transformers."""
PYTHON = "3.12"
PLATFORMS = tuple(f"manylinux{name}_x86_64" for name in ("_2_28", "_2_27", "_2_17", "2014", "1"))
NOT_NEEDED = tuple(
    f"ray/{name}/" for name in ("jars", "rllib", "data", "serve", "tune", "train", "llm", "air", "dashboard/client")
)  # fmt: skip


def fetch(folder: Path) -> None:
    """Fetch the wheels, of the versions that constraints.txt names, and make Ray's smaller."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder,
            "--python-version", PYTHON, "--implementation", "cp", *platforms, "--constraint", ROOT / "constraints.txt",
            *PACKAGES,
        ],
        check=True,
    )  # fmt: skip
    for wheel in folder.glob("ray-*.whl"):
        slim(wheel)
    for wheel in sorted(folder.glob("*.whl")):
        print(f"{wheel.stat().st_size / 2**20:6.1f} MiB  {wheel.name}")


def slim(wheel: Path) -> None:
    """Write a wheel again without what is not needed, packed as tightly as zip can."""
    smaller = wheel.with_suffix(".new")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(smaller, "w", zipfile.ZIP_LZMA) as new:
        for entry in old.infolist():
            if not entry.filename.startswith(NOT_NEEDED):
                content = old.read(entry)
                entry.compress_type = zipfile.ZIP_LZMA
                new.writestr(entry, content)
    smaller.replace(wheel)


def unpack(folder: Path, into: Path) -> list[str]:
    """Unpack wheels so that Python finds their modules there; gives the paths for it to look in."""
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                path = archive.extract(entry, into)
                # Ray starts programs, and extract drops the permission to.
                if mode := entry.external_attr >> 16 & 0o777:
                    Path(path).chmod(mode | 0o600)
    return [str(into)] if wheels else []


if __name__ == "__main__":
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    fetch(target)
