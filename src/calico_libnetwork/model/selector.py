"""Calico's selector language: parsed once, matched often.

    selector   = [ or ]                          nothing or blanks only select everything
    or         = and { "||" and }
    and        = not { "&&" not }
    not        = { "!" } ( "(" or ")" | "all()" | "global()" | "has(" label ")" | comparison )
    comparison = label ( "==" | "!=" | "contains" | "starts with" | "ends with" ) string
               | label ( "in" | "not in" ) "{" [ string { "," string } [ "," ] ] "}"

Words such as ``has`` and ``in`` are ordinary labels wherever a label may stand; an operator is looked for only
behind a label. Strings know no escapes. Of an absent label only ``!=`` and ``not in`` are true.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn, Protocol

from calico_libnetwork.errors import InvalidResource

LABEL_LIMIT = 512
_DEPTH_LIMIT = 100
_CACHED_SELECTORS = 8192

Labels = Mapping[str, str]
# label -> the values with which the selector can match, None for any; an absent label rules a match out
Requirements = Mapping[str, frozenset[str] | None]


class Node(Protocol):
    """A part of a parsed selector."""

    def matches(self, labels: Labels) -> bool: ...

    def canonical(self) -> str: ...

    def requirements(self) -> Requirements: ...

    def prefixed(self, prefix: str, everything: Node) -> Node: ...


@dataclass(frozen=True, slots=True)
class Everything:
    """``all()``, and ``global()``, which means something to the reader of a rule and matches everything here."""

    word: str = "all"

    def matches(self, labels: Labels) -> bool:
        return True

    def canonical(self) -> str:
        return f"{self.word}()"

    def requirements(self) -> Requirements:
        return {}

    def prefixed(self, prefix: str, everything: Node) -> Node:
        return everything


@dataclass(frozen=True, slots=True)
class Has:
    label: str

    def matches(self, labels: Labels) -> bool:
        return self.label in labels

    def canonical(self) -> str:
        return f"has({self.label})"

    def requirements(self) -> Requirements:
        return {self.label: None}

    def prefixed(self, prefix: str, everything: Node) -> Node:
        return Has(prefix + self.label)


_COMPARISONS: dict[str, Callable[[str, str], bool]] = {
    "==": str.__eq__,
    "contains": str.__contains__,
    "starts with": str.startswith,
    "ends with": str.endswith,
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """``!=`` is kept apart from the others: it is true of an absent label."""

    label: str
    operator: str
    value: str

    def matches(self, labels: Labels) -> bool:
        found = labels.get(self.label)
        if self.operator == "!=":
            return found != self.value
        return found is not None and _COMPARISONS[self.operator](found, self.value)

    def canonical(self) -> str:
        return f"{self.label} {self.operator} {_quoted(self.value)}"

    def requirements(self) -> Requirements:
        if self.operator == "!=":
            return {}
        return {self.label: frozenset((self.value,)) if self.operator == "==" else None}

    def prefixed(self, prefix: str, everything: Node) -> Node:
        return Comparison(prefix + self.label, self.operator, self.value)


@dataclass(frozen=True, slots=True)
class Membership:
    label: str
    operator: str
    values: frozenset[str]

    def matches(self, labels: Labels) -> bool:
        return (labels.get(self.label) in self.values) is (self.operator == "in")

    def canonical(self) -> str:
        return f"{self.label} {self.operator} {{{', '.join(map(_quoted, sorted(self.values)))}}}"

    def requirements(self) -> Requirements:
        return {self.label: self.values} if self.operator == "in" else {}

    def prefixed(self, prefix: str, everything: Node) -> Node:
        return Membership(prefix + self.label, self.operator, self.values)


@dataclass(frozen=True, slots=True)
class Not:
    operand: Node

    def matches(self, labels: Labels) -> bool:
        return not self.operand.matches(labels)

    def canonical(self) -> str:
        return f"!{self.operand.canonical()}"

    def requirements(self) -> Requirements:
        return {}

    def prefixed(self, prefix: str, everything: Node) -> Node:
        return Not(self.operand.prefixed(prefix, everything))


@dataclass(frozen=True, slots=True)
class And:
    operands: tuple[Node, ...]

    def matches(self, labels: Labels) -> bool:
        return all(operand.matches(labels) for operand in self.operands)

    def canonical(self) -> str:
        return f"({' && '.join(operand.canonical() for operand in self.operands)})"

    def requirements(self) -> Requirements:
        required: dict[str, frozenset[str] | None] = {}
        for operand in self.operands:
            for label, values in operand.requirements().items():
                known = required.get(label)
                required[label] = values if known is None else known if values is None else known & values
        return required

    def prefixed(self, prefix: str, everything: Node) -> Node:
        return And(tuple(operand.prefixed(prefix, everything) for operand in self.operands))


@dataclass(frozen=True, slots=True)
class Or:
    operands: tuple[Node, ...]

    def matches(self, labels: Labels) -> bool:
        return any(operand.matches(labels) for operand in self.operands)

    def canonical(self) -> str:
        return f"({' || '.join(operand.canonical() for operand in self.operands)})"

    def requirements(self) -> Requirements:
        first, *others = [operand.requirements() for operand in self.operands]
        required: dict[str, frozenset[str] | None] = {}
        for label in set(first).intersection(*others):
            values: frozenset[str] | None = frozenset()
            for branch in (first, *others):
                allowed = branch[label]
                values = None if values is None or allowed is None else values | allowed
            required[label] = values
        return required

    def prefixed(self, prefix: str, everything: Node) -> Node:
        return Or(tuple(operand.prefixed(prefix, everything) for operand in self.operands))


class Selector:
    """A parsed selector; two are equal iff their canonical texts are.

    ``requirements`` maps each label without which the selector cannot match to the values with which it can (None:
    any). It may leave out a label, it never names one wrongly, so an index may rely on it.
    """

    __slots__ = ("canonical", "matches", "requirements", "root", "unique_id")

    def __init__(self, root: Node) -> None:
        self.root = root
        self.canonical = root.canonical()
        self.matches = root.matches
        self.requirements = root.requirements()
        digest = hashlib.sha224(f"s:{self.canonical}".encode()).digest()
        self.unique_id = f"s:{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selector) and other.canonical == self.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)

    def __repr__(self) -> str:
        return f"Selector({self.canonical})"

    @property
    def is_global(self) -> bool:
        """Whether this is ``global()`` alone, as a rule's namespaceSelector may be."""
        return self.root == Everything("global")

    @property
    def mentions_global(self) -> bool:
        return _mentions_global(self.root)

    def prefixed(self, prefix: str, *, everything: Selector) -> Selector:
        """The same selector with ``prefix`` before every label and ``everything`` in place of ``all()``."""
        return Selector(self.root.prefixed(prefix, everything.root))


def conjunction(selectors: Iterable[Selector]) -> Selector:
    """What all of ``selectors`` match; everything for none of them."""
    operands = tuple(dict.fromkeys(selector.root for selector in selectors if selector.root != Everything()))
    if not operands:
        return Selector(Everything())
    return Selector(operands[0] if len(operands) == 1 else And(operands))


@lru_cache(maxsize=_CACHED_SELECTORS)
def parse(text: str) -> Selector:
    """Raises ``InvalidResource`` that names the position, counted from 1, and the reason."""
    return Selector(_Parser(text).parse())


def _quoted(value: str) -> str:
    return f"'{value}'" if '"' in value else f'"{value}"'


def _mentions_global(node: Node) -> bool:
    match node:
        case Everything():
            return node.word == "global"
        case Not():
            return _mentions_global(node.operand)
        case And() | Or():
            return any(map(_mentions_global, node.operands))
        case _:
            return False


_BLANKS = re.compile(r"[ \t]*")
_LABEL = re.compile(r"[A-Za-z0-9_./-]+")
_STRING = re.compile(r'"([^"]*)"|\'([^\']*)\'')
_CALL = re.compile(r"(has|all|global)\(")
_OPERATOR = re.compile(
    r"(==|!=)|(?:(contains)|(starts)[ \t]*with|(ends)[ \t]*with|(in)|(not)[ \t]*in)(?![A-Za-z0-9_./-])"
)
_OPERATOR_NAMES = ("==", "contains", "starts with", "ends with", "in", "not in")


class _Parser:
    """Recursive descent over the text; ``position`` is where the next token may begin."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.depth = 0

    def parse(self) -> Node:
        self._skip_blanks()
        if self.position == len(self.text):
            return Everything()
        root = self._or()
        if self.position < len(self.text):
            self._fail("expected && or || or the end")
        return root

    def _or(self) -> Node:
        self.depth += 1
        if self.depth > _DEPTH_LIMIT:
            self._fail(f"more than {_DEPTH_LIMIT} parentheses deep")
        operands = [self._and()]
        while self._take("||"):
            operands.append(self._and())
        self.depth -= 1
        return operands[0] if len(operands) == 1 else Or(tuple(operands))

    def _and(self) -> Node:
        operands = [self._not()]
        while self._take("&&"):
            operands.append(self._not())
        return operands[0] if len(operands) == 1 else And(tuple(operands))

    def _not(self) -> Node:
        negated = False
        while self._take("!"):
            negated = not negated
        operand = self._operation()
        return Not(operand) if negated else operand

    def _operation(self) -> Node:
        if self._take("("):
            inner = self._or()
            self._expect(")")
            return inner
        call = _CALL.match(self.text, self.position)
        if call is None:
            return self._comparison()
        self.position = call.end()
        self._skip_blanks()
        node: Node = Has(self._label()) if call[1] == "has" else Everything(call[1])
        self._expect(")")
        return node

    def _comparison(self) -> Node:
        label = self._label()
        operator = _OPERATOR.match(self.text, self.position)
        if operator is None:
            self._fail(f"expected an operator after label {label!r}")
        self.position = operator.end()
        self._skip_blanks()
        name = operator[1] or _OPERATOR_NAMES[(operator.lastindex or 1) - 1]
        if name in ("in", "not in"):
            return Membership(label, name, self._values())
        return Comparison(label, name, self._string())

    def _values(self) -> frozenset[str]:
        self._expect("{")
        values: list[str] = []
        while not self._take("}"):
            values.append(self._string())
            if not self._take(","):
                self._expect("}")
                break
        return frozenset(values)

    def _label(self) -> str:
        found = _LABEL.match(self.text, self.position)
        if found is None:
            self._fail("expected a label, has(), all() or '('")
        if len(found[0]) > LABEL_LIMIT:
            self._fail(f"label longer than {LABEL_LIMIT} characters")
        self.position = found.end()
        self._skip_blanks()
        return found[0]

    def _string(self) -> str:
        found = _STRING.match(self.text, self.position)
        if found is None:
            self._fail("expected a string in quotes")
        self.position = found.end()
        self._skip_blanks()
        return found[0][1:-1]

    def _take(self, token: str) -> bool:
        if not self.text.startswith(token, self.position):
            return False
        self.position += len(token)
        self._skip_blanks()
        return True

    def _expect(self, token: str) -> None:
        if not self._take(token):
            self._fail(f"expected {token!r}")

    def _skip_blanks(self) -> None:
        blanks = _BLANKS.match(self.text, self.position)
        if blanks is not None:
            self.position = blanks.end()

    def _fail(self, reason: str) -> NoReturn:
        raise InvalidResource(f"selector {self.text!r} is invalid at character {self.position + 1}: {reason}")
