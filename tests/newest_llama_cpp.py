"""Try a release of llama-cpp-python that is not the installed one.

    python tests/newest_llama_cpp.py [RELEASE] [-- ARGUMENTS OF PYTEST]

compiles it, the newest unless given, into a folder of its own below build/, and runs the tests of what must be exact
with it, in this process and on a worker. Where all of them pass, the range of tested releases in pyproject.toml is
widened by it, and constraints.txt pins it; not where pytest's arguments may have left some out.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = "llama-cpp-python"
ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / PACKAGE
ALWAYS = ("test_compat.py", "test_amx.py")


def exact_tests() -> list[str]:
    """The test files whose tests run on several devices: those of what must be exact."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if 'usefixtures("device")' in file.read_text("utf-8")]


def fetch(release: str) -> str:
    """Compile a release into `FOLDER`; returns its number."""
    wanted = f"{PACKAGE}=={release}" if release else PACKAGE
    options = ("--no-deps", "--upgrade", "--no-binary", PACKAGE, "--target", str(FOLDER))
    environment = {**os.environ, "CMAKE_ARGS": f"{os.environ.get('CMAKE_ARGS', '')} -DGGML_RPC=on".strip()}
    subprocess.run([sys.executable, "-m", "pip", "install", *options, wanted], check=True, env=environment)
    [found] = importlib.metadata.distributions(name=PACKAGE, path=[str(FOLDER)])
    return found.version


def passes(arguments: list[str]) -> bool:
    """Whether the tests pass with the release in `FOLDER`."""
    places = [str(FOLDER), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    exact = exact_tests()
    look = [sys.executable, "-c", "import finesteer_local.runtime"]  # says in its last line what is missing
    here = [*("-m", "pytest", "-q"), *(f"tests/{name}" for name in ALWAYS), *exact]
    there = ["-m", "pytest", "-q", "--device", "rpc", *exact]
    commands = (look, *([sys.executable, *command, *arguments] for command in (here, there)))
    return all(subprocess.run(command, cwd=ROOT, env=environment).returncode == 0 for command in commands)


def widened(requirement: str, release: str) -> str:
    """A requirement of llama-cpp-python whose range reaches to `release`."""
    least = re.search(r">=([\d.]+)", requirement)
    *front, last = release.split(".")
    return f"{PACKAGE}>={least[1] if least else release},<{'.'.join([*front, str(int(last) + 1)])}"


def write(release: str) -> None:
    """Write that `release` was tested."""
    project, pins = ROOT / "pyproject.toml", ROOT / "constraints.txt"
    text = project.read_text("utf-8")
    project.write_text(
        re.sub(rf'(?<="){PACKAGE}[^"]*', lambda found: widened(found[0], release), text, count=1), "utf-8"
    )
    pins.write_text(re.sub(rf"(?m)^{PACKAGE}==\S+", f"{PACKAGE}=={release}", pins.read_text("utf-8")), "utf-8")


def main() -> int:
    own, _, rest = " ".join(sys.argv[1:]).partition("--")
    release = fetch(own.strip())
    if not passes(rest.split()):
        print(f"{PACKAGE} {release}: what must be exact is not, or something is missing; see above")
        return 1
    if rest:
        print(f"{PACKAGE} {release}: what was run passes")
        return 0
    write(release)
    print(f"{PACKAGE} {release}: all that must be exact is; pyproject.toml and constraints.txt say so")
    return 0


if __name__ == "__main__":
    sys.exit(main())
