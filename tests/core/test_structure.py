"""The inside keeps its shape: imports run one way, names are unique, nothing grows too large."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

import pytest_hfbudget

PACKAGE = "pytest_hfbudget"
FOLDER = Path(pytest_hfbudget.__file__).parent
TESTS = Path(__file__).parents[1]
# The emulator is the oracle of the tests: a world of its own, beside the rooms. The suite of
# `hfbudget demo` is code as a user writes it, which nothing imports.
APART = {"emulator", "demo_suite"}

# To be lowered with every merge of two modules that are one idea.
MOST_MODULES = 125
MOST_LINES = 400
MOST_ATTRIBUTES = 15
MOST_PARAMETERS = 7
# The one signature that is wide on purpose: what a marker and a block take.
WIDE = {"budget.__init__", "budget_args"}


@cache
def modules() -> dict[str, Path]:
    """The path of every module that is not `APART`, by its dotted name."""
    found = {}
    for path in sorted(FOLDER.rglob("*.py")):
        parts = path.relative_to(FOLDER.parent).with_suffix("").parts
        if APART.isdisjoint(parts):
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


@cache
def imported(module: str) -> frozenset[str]:
    """The modules of ours that one imports anywhere, in functions and for type checking too."""
    names: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in modules() else node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return frozenset(name for name in names if name in modules() and name != module)


def reached(module: str) -> set[str]:
    seen: set[str] = set()
    todo = list(imported(module))
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += imported(name)
    return seen


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for module in modules():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.ClassDef):
                yield module, node


def is_record(owner: ast.ClassDef) -> bool:
    """Whether its values never change: a frozen dataclass, or a named tuple."""
    frozen = any(
        isinstance(decorator, ast.Call)
        and any(
            word.arg == "frozen" and ast.unparse(word.value) == "True"
            for word in decorator.keywords
        )
        for decorator in owner.decorator_list
    )
    return frozen or any(ast.unparse(base) in ("NamedTuple", "Protocol") for base in owner.bases)


def attributes(owner: ast.ClassDef) -> set[str]:
    """The names that a class sets on itself: what its methods assign, and fields that may change.

    A frozen record may have as many fields as there are facts: it knows things, it does nothing.
    """
    fields = {
        node.target.id
        for node in owner.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    if is_record(owner):
        fields.clear()
    for node in ast.walk(owner):
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
            continue
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            fields.add(node.attr)
    return fields


def functions(module: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    def below(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            name = f"{prefix}{child.name}" if named else prefix  # type: ignore[attr-defined]
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield name, child  # type: ignore[misc]
            yield from below(child, f"{name}." if named else prefix)

    return below(tree(module), "")


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def test_no_module_imports_itself_through_others() -> None:
    circles = [module for module in modules() if module in reached(module)]
    assert not circles, "these import each other in a circle, lazy imports included"


def test_there_are_few_modules() -> None:
    assert len(modules()) <= MOST_MODULES


@pytest.mark.parametrize("module", modules())
def test_a_module_can_be_read_in_one_sitting(module: str) -> None:
    assert len(modules()[module].read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for module, found in classes():
        places.setdefault(found.name, []).append(module)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_no_class_knows_everything() -> None:
    large = {
        found.name: sorted(attributes(found))
        for _, found in classes()
        if len(attributes(found)) > MOST_ATTRIBUTES
    }
    assert large == {}


def test_no_function_takes_too_many_parameters() -> None:
    wide = {
        f"{module}:{name}": parameters(function)
        for module in modules()
        for name, function in functions(module)
        if len(parameters(function)) > MOST_PARAMETERS and not WIDE & {name, f"{module}:{name}"}
    }
    assert wide == {}


# Names that are also ours: of tuples, of huggingface_hub and of httpx.
OF_OTHERS = {"_replace", "_inner_post", "_client", "_providers", "_transport"}


@cache
def private_names() -> frozenset[str]:
    """The names with one leading underscore that the package gives to anything."""
    names: set[str] = set()
    for node in chain.from_iterable(ast.walk(tree(module)) for module in modules()):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return frozenset(name for name in names if re.match("_[^_]", name)) - OF_OTHERS


def reached_names(path: Path) -> Iterator[str]:
    """What a test takes from other objects and modules, also in the code that it writes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            if not isinstance(node.value, ast.Name) or node.value.id not in ("self", "cls"):
                yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"\b(?!self\.)\w+\.(_[a-z]\w*)", node.value)


@pytest.mark.parametrize("folder", sorted({p.parent.name for p in TESTS.glob("*/*.py")}))
def test_the_tests_of_a_folder_reach_no_private_name_of_the_package(folder: str) -> None:
    reached = {
        path.name: sorted(names)
        for path in (TESTS / folder).rglob("*.py")
        if (names := private_names().intersection(reached_names(path)))
    }
    assert reached == {}


PATHS = re.compile(r"`((?:\w+/)+\w*(?:\.py)?)`")


def test_the_architecture_names_places_that_exist() -> None:
    text = (FOLDER.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(PATHS.findall(text))
    assert len(named) > 30
    gone = {
        name
        for name in named
        if not (FOLDER / name).exists() and not (FOLDER.parent / name).exists()
    }
    assert gone == set()


# "`name` in `file`", and "`name`, `other` and `third` in `file`".
IN_FILE = re.compile(r"((?:`\w+`(?:, | and |, and )?)+) (?:in|of) `((?:\w+/)*\w+\.py)`")


def test_the_architecture_names_what_its_files_have() -> None:
    text = " ".join((FOLDER.parent / "ARCHITECTURE.md").read_text(encoding="utf-8").split())
    pairs = [
        (name, place)
        for names, place in IN_FILE.findall(text)
        for name in re.findall(r"\w+", names)
    ]
    assert len(pairs) > 50
    gone = [
        (name, place)
        for name, place in pairs
        if not re.search(rf"\b{name}\b", (FOLDER / place).read_text(encoding="utf-8"))
    ]
    assert gone == []
