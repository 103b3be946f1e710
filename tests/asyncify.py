"""The `async def` form of a file of programs: every function that calls a primitive awaits it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import ModuleType

PRIMITIVES = {
    "cached", "call", "deterministic", "effect", "factor", "loop", "markov", "observe", "param",
    "plate", "sample",
}  # fmt: skip


def _primitive(node: ast.AST) -> bool:
    """Whether a call is one that is awaited; a plate without a function only names scopes."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        return False
    name = node.func.id
    return name == "infer" or (name in PRIMITIVES and not (name == "plate" and len(node.args) < 3))


class _Awaits(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:  # noqa: N802
        self.generic_visit(node)
        own = [n for n in ast.walk(node) if isinstance(n, ast.Await) or _scopes(n)]
        if not own:
            return node
        return ast.copy_location(ast.AsyncFunctionDef(**vars(node)), node)

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:  # noqa: N802
        if any(_primitive(n) for n in ast.walk(node)):
            raise ValueError(f"line {node.lineno}: a lambda cannot be async; write a def")
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:  # noqa: N802
        self.generic_visit(node)
        if not _primitive(node):
            return node
        if isinstance(node.func, ast.Name) and node.func.id == "infer":
            node.func.id = "ainfer"
        return ast.copy_location(ast.Await(value=node), node)


def _scopes(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "plate"
    )


def asyncify(file: Path, name: str) -> ModuleType:
    """Import a file with its programs made async, under a name of its own."""
    tree = ast.fix_missing_locations(_Awaits().visit(ast.parse(file.read_text("utf-8"))))
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module  # dataclasses look their module up there
    exec("from lmppl.inference import ainfer", module.__dict__)
    exec(compile(tree, f"{file} (async)", "exec"), module.__dict__)
    return module
