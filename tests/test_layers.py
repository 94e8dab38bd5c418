"""The house: which file may import which, held over the syntax trees. A rule that breaks says the file and the line."""

import ast
import collections
import functools

from helpers import ROOT

SCRIPTS = (*("dataset", "model", "loss", "face_crop", "train", "train_kfold", "inference", "pseudo_label", "ensemble"),)
# from the ground up: a file imports what stands before it, or beside it in the same folder, never what stands after it
ORDER = (
    *(
        "foldface.runtime",
        "foldface.files",
        "foldface.urls",
        "foldface.registry",
        "foldface.names",
        "foldface.head",
        "foldface.task",
        "foldface.score",
        "foldface.scorers",
        "foldface.metrics",
    ),
    *("foldface.predictions", "foldface.blend", "foldface.oof", "foldface.settings", "foldface.head_fields"),
    *("foldface.usage", "foldface.rules", "foldface.unpacked", "foldface.cli", "foldface.runs"),
    *(
        "foldface.tracking",
        "foldface.trackers",
        "foldface.ranks",
        "foldface.devices",
        "foldface.data",
        "foldface.shared",
        "foldface.persons",
        "foldface.stack",
        "foldface.submission",
        "foldface.faces",
        "foldface.nn",
        "foldface.report",
    ),
    *SCRIPTS,
    *("tools", "demo"),
)
WITHOUT_TORCH = (
    *("foldface.data", "foldface.settings", "foldface.cli", "foldface.task", "foldface.metrics"),
    *("foldface.predictions", "foldface.blend", "foldface.submission", "foldface.shared", "foldface.stack"),
    "foldface.persons",
)
MAY_IMPORT_TORCH = "foldface.data.loader"
LOCAL_IMPORTS = 40  # of packages that are optional, or once in a script's main so that --help needs no torch
LONGEST = 400  # lines of a file
PATCHED_TESTS = 10  # that replace something of ours (conftest.py aside), though a test should type what a user types
OF_OTHERS = {"shutil", "time", "np", "Path", "multiprocessing", "mmap", "functional"}  # modules.NAME that is not ours
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
UNREAD = "foldface.settings"  # jsonargparse reads its annotations


def sources():
    """{module: path} of all files but tests."""
    folders = (ROOT / name for name in ("foldface", "tools", "demo"))
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    return {name: path for path, name in names.items()}


@functools.cache
def tree(path):
    return ast.parse(path.read_text())


def imports(path, nodes=None):
    """(module, line) of what a file imports, its functions included; of ours the module, of others the package."""
    ours = sources()
    for node in ast.walk(tree(path)) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.name if alias.name in ours else alias.name.split(".")[0]), node.lineno
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (
                    next((name for name in (whole, node.module) if name in ours), node.module.split(".")[0]),
                    node.lineno,
                )


def layer(module):
    """The place in ORDER of a module, or of the folder that it lies in."""
    return next(place for place, name in enumerate(ORDER) if module == name or module.startswith(name + "."))


def arrows():
    """(importing module, imported module, where) for all imports among our own files."""
    ours = sources()
    for module, path in ours.items():
        for other, line in imports(path):
            if other in ours and other != module:
                yield module, other, f"{path.relative_to(ROOT)}:{line} imports {other}"


def test_the_scripts_at_the_top_are_the_chain():
    assert sorted(path.stem for path in ROOT.glob("*.py")) == sorted(SCRIPTS)


def test_every_file_has_its_place():
    known = {
        module: [name for name in ORDER if module == name or module.startswith(name + ".")] for module in sources()
    }
    assert [module for module, places in known.items() if not places and module != "foldface"] == []


def test_the_package_imports_no_script_no_tool_and_no_demo():
    above = (*SCRIPTS, "tools", "demo")
    assert [
        where for one, other, where in arrows() if one.startswith("foldface") and other.split(".")[0] in above
    ] == []


def test_no_file_imports_one_that_stands_above_it():
    assert [where for one, other, where in arrows() if other != "foldface" and layer(other) > layer(one)] == []


def test_there_is_no_cycle():
    below = {module: set() for module in sources()}
    for one, other, _ in arrows():
        below[one].add(other)
    while leaves := [module for module, others in below.items() if not others & below.keys()]:
        for module in leaves:
            del below[module]
    assert below == {}  # what is left imports itself in a circle, or imports such a file


def test_tables_settings_and_scores_need_no_torch():
    ours = sources()

    def torch_of(module, seen):
        """How torch is reached from a module's own imports at its top; "" if it isn't."""
        for other, line in imports(ours[module], tree(ours[module]).body):
            if other == "torch":
                return f"{module}:{line}"
            if other in ours and other not in seen:
                seen.add(other)
                if way := torch_of(other, seen):
                    return f"{module}:{line} -> {way}"
        return ""

    free = [name for name in ours if any(name == one or name.startswith(one + ".") for one in WITHOUT_TORCH)]
    free.remove(MAY_IMPORT_TORCH)
    assert [f"{name}:{line}" for name in free for other, line in imports(ours[name]) if other == "torch"] == []
    assert [way for name in free if (way := torch_of(name, {name}))] == []


def test_few_imports_stand_inside_functions():
    inside = set()
    for path in sources().values():
        for function in ast.walk(tree(path)):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found = [node for node in ast.walk(function) if isinstance(node, (ast.Import, ast.ImportFrom))]
                inside |= {f"{path.relative_to(ROOT)}:{node.lineno}" for node in found}
    assert len(inside) <= LOCAL_IMPORTS, sorted(inside)


def replaces_ours(call, ours):
    """Is it monkeypatch.setattr(something of ours, ...)? ours: names that a test file imports from us."""
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or call.func.attr != "setattr":
        return False
    target, outer = call.args[0], ""
    while isinstance(target, ast.Attribute):
        target, outer = target.value, target.attr
    return isinstance(target, ast.Name) and target.id in ours and outer not in OF_OTHERS


def test_tests_type_what_a_user_types_and_replace_little_of_ours():
    own, patched = set(sources()), set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        ours = set()
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom):
                ours |= {name.name for name in node.names if node.module in own or f"{node.module}.{name.name}" in own}
            elif isinstance(node, ast.Import):
                ours |= {name.asname or name.name for name in node.names if name.name in own}
        for function in [node for node in tree(path).body if isinstance(node, FUNCTION)]:
            if any(replaces_ours(node, ours) for node in ast.walk(function)):
                patched.add(f"{path.relative_to(ROOT)}: {function.name}")
    assert len(patched) <= PATCHED_TESTS, "\n".join(sorted(patched))


def test_no_file_is_longer_than_a_reader_can_hold():
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources().values()}
    del lines["foldface/settings.py"]  # all settings, each with its explanation
    assert {name: count for name, count in lines.items() if count > LONGEST} == {}


# attributes of objects of torch and timm that are called like ours
OF_LIBRARIES = {
    ("foldface/files.py", "columns"),  # of a DataFrame
    ("foldface/nn/from_timm.py", "about"),
    ("foldface/faces/pack.py", "name"),
    ("foldface/faces/pack.py", "size"),
    ("foldface/nn/batchnorm.py", "momentum"),
    ("foldface/nn/batchnorm.py", "weight"),
    ("foldface/nn/mixup.py", "num_classes"),
}
TO_BE_CUT = {"demo/gan_training.py"}  # writes the counters of its GanTrainer


def attributes_written(node, to_self):
    """(name, line) of the attributes that a statement writes to `self`, or else to anything that is not `self`."""
    targets = node.targets if isinstance(node, (ast.Assign, ast.Delete)) else []
    targets = [node.target] if isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.For)) else targets
    for part in (part for target in targets for part in ast.walk(target)):
        written = isinstance(part, ast.Attribute) and not isinstance(part.ctx, ast.Load)
        if written and (isinstance(part.value, ast.Name) and part.value.id == "self") == to_self:
            yield part.attr, part.lineno


def test_only_its_own_file_writes_an_objects_attributes():
    """obj.x = ... stands in the file of the class that has x, and nowhere else."""
    files = {str(path.relative_to(ROOT)): list(ast.walk(tree(path))) for path in sources().values()}
    owners = collections.defaultdict(set)
    for name, nodes in files.items():
        for node in nodes:
            fields = node.body if isinstance(node, ast.ClassDef) else []
            own = [field.target.id for field in fields if isinstance(field, ast.AnnAssign)]
            for attribute in [*own, *(attribute for attribute, _ in attributes_written(node, True))]:
                owners[attribute].add(name)
    wrong = [
        f"{name}:{line} writes .{attribute} of {', '.join(sorted(owners[attribute]))}"
        for name, nodes in files.items()
        for node in nodes
        for attribute, line in attributes_written(node, False)
        if owners[attribute] and name not in owners[attribute] | TO_BE_CUT and (name, attribute) not in OF_LIBRARIES
    ]
    assert wrong == []


def used_elsewhere():
    """({(module, name) that another file imports or reads from it}, {name of an attribute: modules that read it})."""
    ours, used, read = sources(), set(), collections.defaultdict(set)
    for module, path in ours.items():
        nodes, modules = list(ast.walk(tree(path))), {}
        for node in nodes:
            if isinstance(node, ast.Import):
                modules |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name in ours}
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    modules |= {alias.asname or alias.name: whole} if whole in ours else {}
                    used.add((node.module, alias.name))
        for node in nodes:
            if isinstance(node, ast.Attribute):
                read[node.attr].add(module)
                used.add((modules.get(getattr(node.value, "id", None)), node.attr))
    return used, read


def test_what_other_files_call_is_annotated():
    """Functions that another file uses, the __init__ of classes that another file makes, and public methods with a name
    that another file reads."""
    used, read = used_elsewhere()
    wrong = []
    for module, path in sources().items():
        if module.startswith(("tools", "demo")) or module == UNREAD:
            continue
        classes = {node: node.name for node in tree(path).body if isinstance(node, ast.ClassDef)}
        public = {node for node in tree(path).body if isinstance(node, FUNCTION) and (module, node.name) in used}
        for method, name in ((part, name) for node, name in classes.items() for part in node.body):
            if isinstance(method, FUNCTION) and method.name == "__init__" and (module, name) in used:
                public.add(method)
            if isinstance(method, FUNCTION) and method.name[0] != "_" and read[method.name] - {module}:
                public.add(method)
        for function in public:
            taken = function.args
            taken = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs, taken.vararg, taken.kwarg]
            taken = [one for one in taken if one and one.arg not in ("self", "cls")]
            bare = [one.arg for one in taken if one.annotation is None]
            bare += ["what it returns"] if function.returns is None and function.name != "__init__" else []
            where = f"{path.relative_to(ROOT)}:{function.lineno}"
            wrong += [f"{where} {function.name}: {', '.join(bare)}"] if bare else []
    assert wrong == []
