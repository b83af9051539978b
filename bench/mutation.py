"""What a mutant of a module is: mutmut's operators on arithmetic, comparisons and constants, and a few of our own.

No mutant changes words (strings, f-strings, whole ``raise`` and ``warnings.warn`` statements, docstrings, ``__repr__``)
or types (annotations, ``isinstance``): the method does not depend on them. mutmut's operators that put None for a value
are left out as well: shape annotations catch most of these mutants, which would only flatter the rate.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import libcst as cst
import libcst.matchers as m
from libcst.metadata import ByteSpanPositionProvider, MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation import mutators

WORDS = m.OneOf(
    m.Annotation(), m.BaseString(), m.Raise(), m.Import(), m.ImportFrom(),
    m.FunctionDef(name=m.OneOf(m.Name("__repr__"), m.Name("extra_repr"))),
    m.Call(func=m.OneOf(m.Name("isinstance"), m.Name("cast"), m.Attribute(m.Name("warnings")))),
    m.Decorator(decorator=m.Call(func=m.Name("dataclass"))),
)  # fmt: skip
Change = tuple[cst.CSTNode, cst.CSTNode]  # a node, and what stands there instead


@dataclass(frozen=True, eq=False)
class Mutant:
    module: str
    function: str  # qualified name; "" at the level of the module
    text: str  # "line → changed line", without indentation
    source: bytes  # of the whole module
    spans: list[tuple[int, int]]  # lines that tell who meets it: its statement, function, class, …, module
    key: str  # a hash of the code around it and the change

    @property
    def name(self) -> tuple[str, str, str]:
        return self.module, self.function, self.text


def _as_mutmut_has_it(node: cst.CSTNode) -> Iterator[Change]:
    for kind, operator in (
        (cst.BaseNumber, mutators.operator_number),
        (cst.Name, mutators.operator_name),
        (cst.AugAssign, mutators.operator_augmented_assignment),
        (cst.UnaryOperation, mutators.operator_remove_unary_ops),
        (cst.CSTNode, mutators.operator_keywords),
        (cst.CSTNode, mutators.operator_swap_op),
        (cst.IfExp, mutators.operator_if_exp),
    ):
        if isinstance(node, kind):
            yield from ((node, changed) for changed in operator(node))


def _condition(node: cst.CSTNode) -> Iterator[Change]:
    """``if a:`` with ``a`` always false, and always true."""
    if isinstance(node, cst.If):
        yield node.test, cst.Name("False")
        yield node.test, cst.Name("True")


def _dropped_statement(node: cst.CSTNode) -> Iterator[Change]:
    if m.matches(node, m.Expr(value=m.Call()) | m.AugAssign()):
        yield node, cst.Pass()


def _arguments(node: cst.CSTNode) -> Iterator[Change]:
    """Two neighbouring positional arguments change places; a named argument is left out."""
    if not isinstance(node, cst.Call):
        return
    for i, (a, b) in enumerate(zip(node.args, node.args[1:], strict=False)):
        if not (a.keyword or b.keyword or a.star or b.star):
            swapped = [a.with_changes(value=b.value), b.with_changes(value=a.value)]
            yield node, node.with_changes(args=[*node.args[:i], *swapped, *node.args[i + 2 :]])
    for i, argument in enumerate(node.args):
        if argument.keyword:
            yield node, node.with_changes(args=[*node.args[:i], *node.args[i + 1 :]])


def _dropped_method(node: cst.CSTNode) -> Iterator[Change]:
    """``x.square()`` becomes ``x``."""
    if m.matches(node, m.Call(func=m.Attribute(value=~(m.Name("self") | m.Name("torch"))), args=[])):
        yield node, node.func.value


OPERATORS = (_as_mutmut_has_it, _condition, _dropped_statement, _arguments, _dropped_method)


class _Finder(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (ByteSpanPositionProvider, PositionProvider, ParentNodeProvider)

    def __init__(self):
        self.changes = []  # (first byte, length, the new code, enclosing names, line spans from the inside)

    def on_visit(self, node: cst.CSTNode) -> bool:
        if m.matches(node, WORDS):
            return False
        for operator in OPERATORS:
            for old, new in operator(node):
                span = self.get_metadata(ByteSpanPositionProvider, old)
                self.changes.append((span.start, span.length, cst.Module([]).code_for_node(new), *self._place(old)))
        return True

    def _place(self, node: cst.CSTNode) -> tuple[str, list[tuple[int, int]], bool]:
        """Its function, its spans, and whether it is part of a constant of a module or a class."""
        names, spans, constant = [], [], True
        while not isinstance(node, cst.Module):
            if isinstance(node, cst.BaseSmallStatement | cst.FunctionDef | cst.ClassDef) or (
                not spans
                and isinstance(self.get_metadata(ParentNodeProvider, node), cst.If | cst.For | cst.While | cst.With)
            ):
                position = self.get_metadata(PositionProvider, node)
                spans.append((position.start.line, position.end.line))
            if isinstance(node, cst.FunctionDef | cst.ClassDef):
                names.append(node.name.value)
                constant &= not isinstance(node, cst.FunctionDef)
            node = self.get_metadata(ParentNodeProvider, node)
        return ".".join(reversed(names)), spans, constant


def _text(old: list[str], new: list[str]) -> str:
    """The changed lines, as "old → new", without comments."""
    while old and new and old[0] == new[0]:
        old, new = old[1:], new[1:]
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    return " → ".join(
        " ".join(" ".join(re.sub(r"\s+# .*", "", line) for line in lines).split()) for lines in (old, new)
    )


def mutants(module: str, source: bytes) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    finder = _Finder()
    MetadataWrapper(cst.parse_module(source)).visit(finder)
    lines, made, seen = source.decode().splitlines(), [], Counter()
    for start, length, code, function, spans, constant in sorted(finder.changes, key=lambda change: change[:3]):
        mutated = source[:start] + code.encode() + source[start + length :]
        if mutated.split() == source.split():
            continue
        text = _text(lines, mutated.decode().splitlines())
        seen[function, text] += 1
        if seen[function, text] > 1:
            text += f" (no. {seen[function, text]})"
        first, last = spans[min(1, len(spans) - 1)]
        code = "\n".join(lines[first - 1 : last])
        key = hashlib.sha256("\0".join((module, function, code, text)).encode()).hexdigest()[:16]
        # A constant is met by the tests of what is around it: any test may have been the one that imported the module.
        around = spans[1:] if constant else spans
        made.append(Mutant(module, function, text, mutated, [*around, (1, len(lines))], key))
    return made
