"""What pyproject.toml cannot say: where the packages lie, the C filter that may fail to compile, and PyPI's README."""

import os
import re
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
# Folders beside finesteer_local/ that are installed inside it.
BESIDE = ("converters", "models")


class BuildPlainLibrary(build_ext):
    """Builds a shared library that ctypes loads, not a Python module: every Python can load the same file."""

    def get_export_symbols(self, ext):
        return ext.export_symbols  # no `PyInit_`

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")) + (".dll" if os.name == "nt" else ".so")


class PlainWheel(bdist_wheel):
    """One wheel a platform, for every Python 3."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


def readme() -> str:
    """README.md with links that hold outside of the repository: this version's files there."""
    [repository] = re.findall(r'^Repository = "(.+)"$', (HERE / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    [version] = re.findall(
        r'^__version__ = "(.+)"$', (HERE / "finesteer_local" / "__init__.py").read_text("utf-8"), re.MULTILINE
    )

    def absolute(match):
        kind = "raw" if match[1].startswith("!") else "blob"
        return f"{match[1]}({repository}/{kind}/v{version}/{match[2]})"

    text = (HERE / "README.md").read_text("utf-8")
    return re.sub(r"(!?\[[^\]]*\])\((?![a-z]+:|#)([^)]+)\)", absolute, text)


packages = find_packages(include=["finesteer_local", "finesteer_local.*"])
for folder in BESIDE:
    packages += [f"finesteer_local.{name}" for name in (folder, *(f"{folder}.{sub}" for sub in find_packages(folder)))]

setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    packages=packages,
    package_dir={f"finesteer_local.{folder}": folder for folder in BESIDE},
    ext_modules=[
        # Optional: without it runtime/tap.py does the same in Python, a few per cent slower.
        Extension("finesteer_local.runtime._tap", ["finesteer_local/runtime/_tap.c"], optional=True)
    ],
    cmdclass={"build_ext": BuildPlainLibrary, "bdist_wheel": PlainWheel},
)
