"""YAML with the line number of every value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from labvoice.errors import UsageError

_DEEPEST: Final = 50
_HINT: Final = "`docs/scenarios.md` lists every key"


class ScenarioError(UsageError):
    """A scenario cannot be used.

    Args:
        observed: What is wrong with it, one sentence.
        path: The file; None of a scenario that was made in Python.
        line: The line, from 1; None if unknown.
    """

    def __init__(
        self, observed: str, hint: str = _HINT, *, path: Path | None = None, line: int | None = None
    ) -> None:
        self.path = path
        self.line = line
        place = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(place + observed, hint)


class Document:
    """One YAML document.

    Attributes:
        data: What it says, in Python's types.
    """

    def __init__(self, path: Path, node: yaml.Node) -> None:
        self.path = path
        self._node = node
        self.data: Any = self._value(node, 0)

    @classmethod
    def read(cls, path: Path) -> Document:
        """Reads a file.

        Raises:
            ScenarioError: It cannot be read, or is no YAML.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            words = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ScenarioError(
                f"it cannot be read: {words}", "check the path", path=path
            ) from None
        try:
            node = yaml.compose(text, yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = None if mark is None else mark.line + 1
            raise ScenarioError(
                f"it is no YAML: {error.problem}",
                "a text with a colon, a `#` or quotes in it stands in quotes",
                path=path,
                line=line,
            ) from None
        except yaml.YAMLError as error:
            raise ScenarioError(f"it is no YAML: {error}", path=path) from None
        if node is None:
            raise ScenarioError("it is empty", path=path)
        return cls(path, node)

    def _value(self, node: yaml.Node, depth: int) -> Any:
        if depth > _DEEPEST:  # an alias that contains itself
            raise ScenarioError("it is nested too deeply", path=self.path, line=_line(node))
        if isinstance(node, yaml.SequenceNode):
            return [self._value(each, depth + 1) for each in node.value]
        if not isinstance(node, yaml.MappingNode):
            return self._scalar(node)
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self._value(key_node, depth + 1)
            if not isinstance(key, str):
                raise ScenarioError(
                    f"the key {key!r} is no text", path=self.path, line=_line(key_node)
                )
            if key in found:
                raise ScenarioError(
                    f"the key {key!r} stands there twice", path=self.path, line=_line(key_node)
                )
            found[key] = self._value(value_node, depth + 1)
        return found

    def _scalar(self, node: yaml.Node) -> Any:
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            words = getattr(error, "problem", None) or error
            raise ScenarioError(
                f"a value cannot be read: {words}", path=self.path, line=_line(node)
            ) from None
        finally:
            loader.dispose()

    def line_of(self, place: Sequence[str | int]) -> int:
        """Returns the line of a value, or of the innermost value around it that exists.

        Args:
            place: Keys and indices from the root; names that are no keys are passed over.
        """
        node, line = self._node, _line(self._node)
        for part in place:
            if isinstance(node, yaml.MappingNode):
                for key_node, value_node in node.value:
                    if getattr(key_node, "value", None) == part:
                        node, line = value_node, _line(key_node)
                        break
            elif (
                isinstance(node, yaml.SequenceNode)
                and isinstance(part, int)
                and part < len(node.value)
            ):
                node = node.value[part]
                line = _line(node)
        return line


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
