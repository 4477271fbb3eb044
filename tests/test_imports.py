"""The arrows of import: who may know whom. Nothing turns back, and what needs no torch loads none."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hooke

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hooke"

MAY_IMPORT: dict[str, set[str]] = {
    # the spine: parameters, what is exchanged, where, how and when
    "flat": set(),
    "rule": set(),
    "outer": {"rule"},
    "averaged": {"rule"},
    "leader": {"rule"},
    "spec": {"flat"},
    "codec": set(),
    "rule_json": {"averaged", "leader", "outer", "rule"},
    "center": {"checkpoint", "rule", "shared_memory", "spec"},
    "shared_memory": set(),
    "replicated": {"rule", "spec"},
    "ranks": {"center"},
    "grouped": {"center", "prepared", "ranks", "rule", "run", "sentence", "spec"},
    "sharded": {"center", "flat", "rule", "spec"},
    "remote": {
        "averaged",
        "center",
        "codec",
        "flat",
        "rule",
        "rule_json",
        "sentence",
        "sharded",
        "shared_memory",
        "spec",
    },
    "staging": set(),
    "exchange": {"center", "flat", "ranks", "rule", "spec", "staging"},
    "prepared": {"center", "remote", "run"},
    "schedule": set(),
    "pacing": {"schedule"},
    "journal": {"center", "exchange", "pacing", "record", "run", "spec"},
    "setting": {"pacing", "ranks", "rule", "schedule"},
    "rehearsal": {"checkpoint", "run", "sentence"},
    "divergence": {"stability"},
    "worker": {
        "center",
        "divergence",
        "exchange",
        "flat",
        "journal",
        "pacing",
        "prepared",
        "ranks",
        "rehearsal",
        "resume",
        "rule",
        "run",
        "schedule",
        "setting",
        "spec",
    },
    # files and runs
    "checkpoint": set(),
    "record": set(),
    "run": set(),
    "sentence": set(),
    "resume": {"checkpoint", "run"},
    # shelves
    "nn": set(),
    # papers
    "claim": set(),
    # who trusts whom
    "certificate": set(),
    # before a run
    "stability": {"averaged", "outer", "rule"},
    "plan": {"launch", "pacing", "run", "stability"},
    "simulate": {"exchange", "flat", "journal", "launch", "record", "rule", "run", "spec", "worker"},
    # the command
    "launch": {"center", "certificate", "checkpoint", "record", "remote", "report", "run"},
    "report": {"claim", "record", "run"},
    "commands": {"certificate", "launch", "nn", "plan", "remote", "report"},
    "cli": {"commands", "launch"},
}
"""Every module at the top level, and the others that it may import. Whoever adds one, or an arrow, writes it here."""

WITHOUT_TORCH = [
    "certificate",
    "commands",
    "divergence",
    "pacing",
    "record",
    "run",
    "sentence",
    "report",
    "cli",
    "launch",
    "claim",
    "stability",
    "plan",
    "simulate",
]
PUBLIC_MODULES = {
    "hooke.certificate",
    "hooke.claim",
    "hooke.launch.evidence",
    "hooke.nn",
    "hooke.record",
    "hooke.run",
    "hooke.report",
    "hooke.checkpoint",
    "hooke.stability",
    "hooke.plan",
    "hooke.simulate",
    "hooke.cli",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The top-level module that a file belongs to; "" for the package itself."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports_of(tree: ast.AST, *, types_too: bool = False) -> Iterator[str]:
    """Every module that is imported, also inside functions: `a.b` and, of `from a import b`, `a.b`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif types_too or not is_for_types_only(node):
            yield from imports_of(node, types_too=types_too)


def of_hooke(names: Iterator[str]) -> set[str]:
    """The top-level modules of hooke among `names`; "" where it is the package itself."""
    parts = [name.split(".") for name in names]
    tops = {part[1] if len(part) > 1 else "" for part in parts if part[0] == "hooke"}
    return {top if top in MAY_IMPORT else "" for top in tops}


def mentions(tree: ast.AST, *names: str) -> bool:
    """Whether an attribute, a name or an import is called so."""
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return bool(found & set(names))


def test_the_table_lists_every_module_of_the_top_level() -> None:
    assert {name_of(path) for path in modules()} - {""} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_it_may(path: Path) -> None:
    name = name_of(path)
    if name:
        assert of_hooke(imports_of(tree_of(path))) - {name} <= MAY_IMPORT[name]


@pytest.mark.parametrize("name", ["flat", "rule"])
def test_flat_and_rule_know_nothing_of_hooke_not_even_its_types(name: str) -> None:
    assert of_hooke(imports_of(tree_of(PACKAGE / f"{name}.py"), types_too=True)) == set()


def test_the_arrows_never_turn_back() -> None:
    """Taking away what imports only what was taken away before must leave nothing."""
    left = dict(MAY_IMPORT)
    while free := [name for name, known in left.items() if not known & set(left)]:
        for name in free:
            del left[name]
    assert left == {}


def reaches(name: str) -> set[str]:
    known = MAY_IMPORT[name]
    return known | {far for near in known for far in reaches(near)}


@pytest.mark.parametrize("name", ["center", "replicated", "grouped", "shared_memory", "exchange", "flat", "rule"])
def test_nothing_below_the_worker_knows_it(name: str) -> None:
    assert "worker" not in reaches(name)


@pytest.mark.parametrize(
    ("outside", "only"), [("torch.distributed", {"replicated", "grouped"}), ("pyarrow", {"remote"})]
)
def test_few_modules_know_what_carries_the_exchange(outside: str, only: set[str]) -> None:
    def knows(tree: ast.Module) -> bool:
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        return any(f"{one}.".startswith(f"{outside}.") for one in [*imports_of(tree, types_too=True), *used])

    assert {name_of(path) for path in modules() if knows(tree_of(path))} == only


def test_only_the_worker_touches_optimizer_hooks() -> None:
    hooks = ("register_step_pre_hook", "register_step_post_hook")
    assert {name_of(path) for path in modules() if mentions(tree_of(path), *hooks)} == {"worker"}
    private = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "_patch_step_function")
    assert not [path for path in modules() if mentions(tree_of(path), *private)]


def test_nothing_is_pickled_or_evaluated() -> None:
    imported = {one.split(".")[0] for path in modules() for one in imports_of(tree_of(path))}
    assert not imported & {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
    for path in modules():
        calls = [node.func for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
        assert not {call.id for call in calls if isinstance(call, ast.Name)} & {"eval", "exec"}
        assert "torch.load" not in {ast.unparse(call) for call in calls}
        assert "torch.save" not in {ast.unparse(call) for call in calls}


def test_no_module_is_a_drawer_for_what_has_no_place() -> None:
    for path in modules():
        assert path.stem.strip("_") not in {"utils", "util", "core", "common", "helpers", "misc", "base"}


def loaded_by(names: list[str]) -> dict[str, bool]:
    """Whether importing each module, alone in a fresh process, loads torch."""
    code = "import importlib, sys; importlib.import_module(sys.argv[1]); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = {name: subprocess.Popen([sys.executable, "-c", code, name], env=environment) for name in names}
    return {name: bool(process.wait(60)) for name, process in started.items()}


def test_what_needs_no_torch_loads_none() -> None:
    names = [f"hooke.{name}" for name in WITHOUT_TORCH if name in MAY_IMPORT]
    assert loaded_by(["hooke", *names]) == dict.fromkeys(["hooke", *names], False)
    assert loaded_by(["hooke.rule"]) == {"hooke.rule": True}  # the test can tell


# The public names ------------------------------------------------------------------------------------------------


def test_every_public_name_is_there_and_documented() -> None:
    for name in hooke.__all__:
        assert getattr(hooke, name).__doc__
        assert name in dir(hooke)
    assert hooke.__version__
    with pytest.raises(AttributeError, match=r"^module 'hooke' has no attribute 'Trainer'$"):
        hooke.Trainer  # noqa: B018


def test_type_checkers_see_the_names_that_load_lazily() -> None:
    (block,) = (node for node in tree_of(PACKAGE / "__init__.py").body if is_for_types_only(node))
    seen = {one.rpartition(".")[2]: one.rpartition(".")[0] for one in imports_of(ast.Module([*block.body], []))}
    assert seen == {name: f"hooke.{home}" for name, home in hooke._HOME.items()}


def users() -> list[Path]:
    return sorted(path for folder in ("examples", "benchmarks", "papers") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", users(), ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_benchmarks_and_papers_use_public_names_only(path: Path) -> None:
    tree = tree_of(path)
    for one in imports_of(tree, types_too=True):
        module, _, name = one.rpartition(".")
        if one == "hooke" or not one.startswith("hooke."):
            continue
        assert one in PUBLIC_MODULES or module in PUBLIC_MODULES or (module == "hooke" and name in hooke.__all__), one
        assert not name.startswith("_"), one
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hooke":
            public = node.attr in [*hooke.__all__, "__version__"] or f"hooke.{node.attr}" in PUBLIC_MODULES
            assert public, f"hooke.{node.attr}"


def test_every_module_has_its_tests() -> None:
    """Tests mirror the package one to one; what a test of several modules covers is said here."""
    covered_elsewhere = {
        "ranks": "test_grouped",
        "shared_memory": "test_center",
        "resume": "test_worker",
        "setting": "test_worker",
        "commands": "test_cli",
        "__init__": "test_imports",
    }
    for name in MAY_IMPORT:
        mirror = covered_elsewhere.get(name, f"test_{name}")
        assert (ROOT / "tests" / f"{mirror}.py").exists() or (ROOT / "tests" / name).is_dir(), name
