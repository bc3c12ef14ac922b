"""From the words of a command line to one dataclass of options.

``--epochs 10``, ``--epochs=10`` and ``epochs=10`` mean the same, ``--batch-size`` is ``--batch_size``, and names that
other tools use for the same thing are in ``ALIASES``. A list is given as ``--classes a,b``, ``--classes [a,b]`` or
``--classes a --classes b``; words without a name are added to a list that is the last positional. jsonargparse checks
the values against the types of the fields.
The text below each field is its help.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

ALIASES = {
    "lr0": "lr",
    "batch_size": "batch",
    "dataset_dir": "data",
    "dataset": "data",
    "output_dir": "project",
    "threshold": "conf",
    "img_size": "imgsz",
    "num_workers": "workers",
    "grad_accum_steps": "accumulate",
    "num_queries": "queries",
}
"""other tools' name -> ours"""

TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


class UsageError(ValueError):
    """The command line cannot be understood."""


class Options(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T", bound=Options)


def parse(options: type[T], words: Sequence[str], positionals: Sequence[str] = ()) -> T:
    """Read ``words`` into an instance of the dataclass ``options``.

    Args:
        options: the dataclass; a field without a default is required. Besides its fields, ``--config FILE`` reads a
            YAML file of options, over which the command line wins.
        words: the command line after the command's name.
        positionals: fields that words without a name fill, in this order; the last takes the rest when it is a list.

    Raises:
        UsageError: an unknown option (the nearest name is suggested), a missing one, or a value of the wrong type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(options, as_group=False, instantiate=False)
    files, words = _config_files(words)
    given = normalise(options, words, positionals)
    named = {name for name, _ in given}
    for file in files:
        given = [pair for pair in _from_file(file, options) if pair[0] not in named] + given
    try:
        found = parser.parse_args([f"--{name}={value}" for name, value in given])
    except ArgumentError as error:
        raise UsageError(_explain(str(error), options, dict(given))) from None
    return options(**{field.name: found[field.name] for field in fields(options)})


def _config_files(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files named by ``--config``, the last first, and the other words."""
    files: list[str] = []
    others: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, _, value = word.removeprefix("--").partition("=")
        if name != "config" or word == "config":
            others.append(word)
        elif "=" in word or queue:
            files.insert(0, value or queue.pop(0))
        else:
            raise UsageError("--config needs a file. See --help.")
    return files, others


def _from_file(file: str, options: type[Options]) -> list[tuple[str, str]]:
    """Options of a YAML file, under our names or aliases; an ``args.yaml`` of a run keeps them below ``options``."""
    import yaml

    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(f"{file}: not a YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UsageError(f"{file}: expected lines such as 'epochs: 74'")
    content = content.get("options", content)
    types = kinds(options)
    named = [
        (_resolve(str(name), types)[0], value if isinstance(value, str) else json.dumps(value))
        for name, value in content.items()
        if value is not None
    ]
    return _pairs(named, [], types)


def normalise(options: type[Options], words: Sequence[str], positionals: Sequence[str]) -> list[tuple[str, str]]:
    """Name and value, as jsonargparse takes them: a list is one pair with JSON, however often it was given."""
    types = kinds(options)
    queue = list(words)
    named: list[tuple[str, str]] = []
    bare: list[str] = []
    while queue:
        word = queue.pop(0)
        match = re.match(r"--([\w-]+)(?:=(.*))?$|([A-Za-z_]\w*)=(.*)$", word, re.DOTALL)
        if match is None:
            bare.append(word)
            continue
        asked, value = match[1] or match[3], match[2] if match[1] else match[4]
        name, negated = _resolve(asked, types)
        if negated:
            value = "false"
        elif value is None:
            value = _take(name, types, queue)
        named.append((name, value))
    given = {name for name, _ in named}
    free = [name for name in positionals if name not in given or types[name].startswith("list")]
    return _pairs(named, list(_placed(bare, free, types)), types)


def kinds(options: type[Options]) -> dict[str, str]:
    """The types of the fields as text, such as ``int | None``."""
    return {f.name: f.type if isinstance(f.type, str) else getattr(f.type, "__name__", "") for f in fields(options)}


def _placed(bare: list[str], free: list[str], types: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Words without a name, given to the free positionals in order; a list takes all that are left."""
    for word in bare:
        if word.startswith("-") or not free:
            raise UsageError(f"unexpected {word!r}. Options look like --name value or name=value; see --help.")
        yield (free[0] if types[free[0]].startswith("list") else free.pop(0)), word


def _resolve(asked: str, types: dict[str, str]) -> tuple[str, bool]:
    """Our name of an option, and whether it was ``--no-name``."""
    name = asked.replace("-", "_")
    name = ALIASES.get(name, name) if name not in types else name
    if name in types:
        return name, False
    if name.startswith("no_") and types.get(name[3:], "").startswith("bool"):
        return name[3:], True
    known = [*types, *(alias for alias, ours in ALIASES.items() if ours in types)]
    near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    hint = f"Did you mean --{ALIASES.get(near[0], near[0])}?" if near else f"Known: {', '.join(types)}."
    raise UsageError(f"unknown option --{asked}. {hint}")


def _take(name: str, types: dict[str, str], queue: list[str]) -> str:
    """The value of an option that was given as ``--name``: the next word, or true for a switch."""
    following, kind = queue[0] if queue else "--", types[name]
    named = re.match(r"([A-Za-z_]\w*)=", following)
    # a list may hold options of something else: --train epochs=20
    option = following.startswith("--") or bool(named and kind != "list[str]")
    if kind == "bool" and following.lower() not in TRUE + FALSE:
        return "true"
    if option and kind.startswith("bool"):
        return "true"
    if option:
        raise UsageError(f"--{name} needs a value. See --help.")
    return queue.pop(0)


def _pairs(named: list[tuple[str, str]], placed: list[tuple[str, str]], types: dict[str, str]) -> list[tuple[str, str]]:
    """Options that were ``named`` or ``placed`` by position, in the form that jsonargparse reads.

    The value of a list is taken apart if it was named: a word by itself is one element, such as a file ``a,b.jpg``.
    """
    lists: dict[str, list[str]] = {}
    found = []
    for name, value in named + placed:
        if types[name].startswith("list"):
            lists.setdefault(name, [])
            lists[name] += _elements(value) if (name, value) in named else [value]
        else:
            found.append((name, _scalar(value, types[name])))
    return found + [(name, json.dumps(values, ensure_ascii=False)) for name, values in lists.items()]


def _elements(value: str) -> list[str]:
    """What a list holds that is written as ``a,b`` or ``[a, b]``, the latter with YAML's quotes."""
    import yaml

    if value.startswith("[") and value.endswith("]"):
        with suppress(yaml.YAMLError):
            found = yaml.load(value, Loader=yaml.BaseLoader)  # leaves every element the text that it is
            if isinstance(found, list) and all(isinstance(each, str) for each in found):
                return found
        value = value[1:-1]
    outside_brackets = r",(?![^\[]*\])"
    return [each.strip() for each in re.split(outside_brackets, value) if each.strip()]


def _scalar(value: str, kind: str) -> str:
    """Switches and sizes in the form that jsonargparse reads: ``384,640`` and ``384x640`` become ``[384,640]``."""
    if kind == "bool" and value.lower() in TRUE + FALSE:
        return str(value.lower() in TRUE).lower()
    if "list[int]" in kind and re.fullmatch(r"\d+\s*[x,]\s*\d+", value):
        return f"[{','.join(re.findall('[0-9]+', value))}]"
    return value


def _explain(error: str, options: type[Options], given: dict[str, str]) -> str:
    """One line for a person from jsonargparse's message."""
    key = re.search(r'Parser key "(\w+)"', error)
    if key and key[1] in given:
        kind = kinds(options)[key[1]].replace(" | ", " or ")
        return f"--{key[1]} {given[key[1]]}: expected {kind}. See --help."
    missing = re.search(r"arguments are required: (.*)", error)
    if missing:
        return f"missing {', '.join('--' + name.strip() for name in missing[1].split(','))}. See --help."
    return " ".join(error.split())


def help_text(options: type[Options], usage: str, examples: str) -> str:
    """What ``edgecrafter COMMAND --help`` prints: every option with type, default and doc line, then examples."""
    lines = [f"usage: {usage}", "", *textwrap.wrap(inspect.getdoc(options) or "", 100), "", "options:"]
    helps, types = docs_of(options), kinds(options)
    for field in fields(options):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        default = ",".join(str(each) for each in default) if isinstance(default, list) else default
        note = " (required)" if default is MISSING else "" if default in (None, "") else f" [{default}]"
        kind = "" if types[field.name] == "bool" else f" {types[field.name].replace(' | None', '')}"
        lines.append(f"  --{field.name}{kind}{note}")
        lines += textwrap.wrap(helps.get(field.name, ""), 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    lines += ["  --config FILE", "      YAML file of options; what is given on the command line wins"]
    lines += ["  --debug", "      show the full traceback of an error"]
    return "\n".join([*lines, "", "examples:", *(f"  {line}" for line in examples.splitlines())])


def docs_of(options: type[Options]) -> dict[str, str]:
    """The text below each field of a dataclass; below that of a parent, where it has none of its own."""
    found: dict[str, str] = {}
    for part in reversed(options.__mro__[:-1]):
        found |= _docs_in(ast.parse(textwrap.dedent(inspect.getsource(part))).body[0])
    return found


def _docs_in(tree: ast.stmt) -> dict[str, str]:
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node, following in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(following, ast.Expr):
            found[node.target.id] = " ".join(str(ast.literal_eval(following.value)).split())
    return found
