"""Options: one frozen dataclass per verb defines its command line, JSON headers, config-file keys and man page.

A value comes from the first source that has it: option, `CORECLI_*` environment variable, `--config` file, preset,
default.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from corecli.base.documents import loads, loads_toml, read_bytes
from corecli.base.errors import ConfigError, UsageError, unknown_name

Role = Literal["setting", "input", "output", "runtime"]
Preset = Mapping[str, Any]
C = TypeVar("C")
_INT64 = 2**63
_LONGEST_SHOWN = 60  # characters of a bad value in an error
_MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Option:
    """What an option has beyond its type and default: help, bounds, and its role in the identity of a result.

    Roles: a `setting` changes the result; an `input` names a file or set and is compared by content; an `output` or a
    `runtime` option (device, verbosity, batch size of a forward pass) does not change the result.
    """

    help: str
    role: Role = "setting"
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] | None = None
    minimum: float | None = None
    maximum: float | None = None
    metavar: str | None = None
    short: str | None = None
    positional: bool = False
    suffix: Callable[[str], str] | None = None  # from the field's name, what help appends in place of the default
    joined: bool = False  # NAME=VALUE items of all sources are merged by name

    def names(self) -> tuple[str, ...]:
        """Return the allowed values; () if any value is allowed."""
        return tuple(self.choices() if callable(self.choices) else self.choices or ())


def option(default: Any = MISSING, **keywords: Any) -> Any:
    """Return a dataclass field for an option, which is required if it has no default. Keywords: those of `Option`."""
    return field(default=default, metadata={"option": Option(**keywords)})


@dataclass(frozen=True, kw_only=True)
class Common:
    """The options that all verbs have."""

    config: Path | None = option(None, help="read options from this JSON or TOML file", role="runtime", metavar="FILE")
    preset: str | None = option(None, help="start from a named set of options", role="runtime", metavar="NAME")
    seed: int = option(0, help="random seed; every random draw is a function of it", minimum=0)
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", help="device to compute on; auto is CUDA if available", role="runtime"
    )
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto",
        help="precision of networks; auto is bf16 on CUDA, else fp32; losses stay in float32",
    )
    nproc: str = option(
        "1", help="number of processes on this node; auto is one per GPU", role="runtime", metavar="N|auto"
    )
    nnodes: str = option("1", help="number of nodes, passed on to torchrun", role="runtime", metavar="N")
    rdzv_endpoint: str | None = option(
        None, help="address where nodes meet, passed on to torchrun", role="runtime", metavar="HOST:PORT"
    )
    json: bool = option(False, help="print the result as JSON, one object per line", role="runtime")
    quiet: bool = option(False, help="print neither progress nor notes", role="runtime", short="-q")
    force: bool = option(
        False, help="start over, replace a finished target, and accept mismatched fingerprints", role="runtime"
    )
    dry_run: bool = option(
        False, help="check everything and print what would be done, without doing it", role="runtime"
    )


def described(config_class: type[Any]) -> dict[str, tuple[Field[Any], Option, Any]]:
    """Return (field, Option, type) of every option of a Config class by name, its own before inherited ones.

    A Literal type provides the choices.
    """
    hints, by_name = typing.get_type_hints(config_class), {f.name: f for f in fields(config_class)}
    found = {}
    owned = (inspect.get_annotations(owner) for owner in config_class.__mro__)
    for name in (name for names in owned for name in names):
        opt = by_name[name].metadata["option"]
        literals = _literals(hints[name])
        found[name] = (by_name[name], dataclasses.replace(opt, choices=literals) if literals else opt, hints[name])
    return found


def flag(name: str) -> str:
    """Return the command-line spelling of a field name."""
    return "--" + name.replace("_", "-")


def spellings(name: str, f: Field[Any], opt: Option, hint: Any) -> tuple[str, ...]:
    """Return every way to write an option: `--flip` and `--no-flip`, `--quiet` and `-q`.

    A flag that is off by default and does not change the result has no negation.
    """
    negated = scalar(hint) is bool and (opt.role != "runtime" or f.default is True)
    return (flag(name), *([f"--no-{flag(name)[2:]}"] if negated else []), *([opt.short] if opt.short else []))


def metavar(opt: Option, hint: Any) -> str:
    """Return the placeholder of an option's value in help: its metavar, its choices if they are few, or its type."""
    kind, many, _ = kind_of(hint)
    if opt.metavar or 0 < len(opt.names()) <= 4:
        return opt.metavar or "|".join(opt.names())
    return kind.__name__.upper() + (",..." if many and kind is not str else "")


def resolve(
    config_class: type[C],
    given: Mapping[str, Any],
    *,
    presets: Mapping[str, Preset],
    environment: Mapping[str, str] = os.environ,
) -> C:
    """Merge the five sources of values, check them, and return the Config.

    Errors: UsageError for an unknown preset or a bad or missing option, ConfigError for the file and the environment,
    MissingInputError if there is no config file.
    """
    options = described(config_class)
    given = {n: _convert(n, value, options[n], UsageError, _spelled(n, options[n][1])) for n, value in given.items()}
    from_environment = _from_environment(options, environment)
    early = {**from_environment, **given}
    from_file = _from_file(early.get("config"), options)
    chosen = {**from_file, **early}.get("preset")
    sources = (_from_preset(chosen, presets, options), from_file, from_environment, given)
    merged = {name: value for source in sources for name, value in source.items()}
    for name, (_, opt, _) in options.items():
        if opt.joined and name in merged:
            merged[name] = _joined([source.get(name, ()) for source in sources])
    for name, (f, opt, _) in options.items():
        if f.default is MISSING and name not in merged:
            raise UsageError(f"{_spelled(name, opt)} is required")
    return config_class(**merged)


def settings(config: Any) -> dict[str, Any]:
    """Return the options that determine the result, settings and inputs as written, as JSON values."""
    return {
        name: to_json(getattr(config, name))
        for name, (_, opt, _) in described(type(config)).items()
        if opt.role in ("setting", "input")
    }


def outputs(config: Any) -> list[Path]:
    """Return the paths that the output options give; `-` is none."""
    found = [getattr(config, name) for name, (_, opt, _) in described(type(config)).items() if opt.role == "output"]
    return [path for path in found if isinstance(path, Path) and path.name not in ("", "-", "..")]


def values(config: Any) -> dict[str, Any]:
    """Return every option of a Config as a JSON value."""
    return {name: to_json(getattr(config, name)) for name in described(type(config))}


def identity(config: Any, inputs: Mapping[str, str | None]) -> dict[str, Any]:
    """Return what makes two results equal: the settings, and the fingerprint of each input in place of its path."""
    options = described(type(config))
    own = {n: to_json(getattr(config, n)) for n, (_, opt, _) in options.items() if opt.role == "setting"}
    return {**own, **inputs}


def to_json(value: Any) -> Any:
    """Return the value of a field as plain JSON."""
    if isinstance(value, Path):
        return str(value)
    return [to_json(v) for v in value] if isinstance(value, tuple) else value


def parse_fields(cls: type[Any], given: Mapping[str, str], *, where: str) -> dict[str, Any]:
    """Parse texts by name into values for the fields of a dataclass: numbers, flags, words, or tuples of these.

    Errors: UsageError for an unknown field, with the nearest name as its hint, or for a value that does not parse.
    """
    hints = typing.get_type_hints(cls)
    found = {}
    for name, text in given.items():
        if name not in hints:
            raise unknown_name(f"option of {where}", name, hints)
        kind, many, _ = kind_of(hints[name])
        parts = [_parse(part, kind, UsageError, name) for part in (text.split(",") if many else [text])]
        found[name] = tuple(parts) if many else parts[0]
    return found


def named_values(items: typing.Iterable[str], *, option: str = "--set") -> dict[str, str]:
    """Return the values of NAME=VALUE items by name, with underscores for dashes. Errors: UsageError."""
    given = {}
    for text in items:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UsageError(f"{option} {text!r} has no value", hint=f"write {option} NAME=VALUE")
        given[name.replace("-", "_")] = value
    return given


def _joined(sources: list[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the items of all sources; a later item replaces an earlier one of the same name."""
    items = {item.partition("=")[0].replace("-", "_"): item for source in sources for item in source}
    return tuple(items.values())


def kind_of(hint: Any) -> tuple[type[Any], bool, bool]:
    """Return (scalar type, whether it is a tuple of them, whether it may be None) for the annotation of a field."""
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        optional = type(None) in typing.get_args(hint)
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True, optional
    return str if typing.get_origin(hint) is Literal else hint, False, optional


def _spelled(name: str, opt: Option) -> str:
    return metavar(opt, str) if opt.positional else flag(name)


def _literals(hint: Any) -> tuple[str, ...]:
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is Literal:
            return typing.get_args(part)
    return ()


def scalar(hint: Any) -> type[Any]:
    """Return the scalar type in the annotation of a field."""
    return kind_of(hint)[0]


def _from_preset(name: str | None, presets: Mapping[str, Preset], options: Mapping[str, Any]) -> dict[str, Any]:
    if name is None:
        return {}
    if name not in presets:
        raise unknown_name("preset", name, presets)
    return {k: _convert(k, v, options[k], UsageError, f"preset {name}") for k, v in presets[name].items()}


def _from_environment(options: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for name in options:
        variable = f"CORECLI_{name.upper()}"
        if variable in environment:
            found[name] = _convert(name, environment[variable], options[name], ConfigError, variable)
    return found


def _from_file(path: Path | None, options: Mapping[str, Any]) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        text = read_bytes(path, max_bytes=_MAX_FILE_BYTES).decode()
        content = loads(text) if text.lstrip().startswith("{") else loads_toml(text)
    except ValueError as error:
        raise ConfigError(f"neither JSON nor TOML: {error}", where=path) from error
    found = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1)
            raise ConfigError(f"unknown key {key!r}", where=path, hint=f"did you mean {near[0]!r}?" if near else None)
        if isinstance(value, dict):
            raise ConfigError("expected a value, found a table", where=f"{path}: {key}")
        found[name] = _convert(name, value, options[name], ConfigError, f"{path}: {key}")
    return found


def _convert(name: str, value: Any, declared: tuple[Any, Option, Any], error: type[Any], where: str) -> Any:
    """Convert a value from any source to the type of its field, and check its bounds."""
    _, opt, hint = declared
    kind, many, optional = kind_of(hint)
    if value is None:
        if optional:
            return None
        raise error("needs a value", where=where)
    if many:
        listed = value if isinstance(value, list | tuple) else str(value).split(",")
        if kind is not str or opt.names():  # numbers and choices may also be written --channel-mult 1,2,4
            listed = [part for item in listed for part in (item.split(",") if isinstance(item, str) else [item])]
        return tuple(_check(_parse(item, kind, error, where), opt, name, error, where) for item in listed)
    return _check(_parse(value, kind, error, where), opt, name, error, where)


def _parse(value: Any, kind: type[Any], error: type[Any], where: str) -> Any:
    if kind is bool:
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if str(value).lower() in words:
            return words[str(value).lower()]
        raise error(f"{value!r} is not true or false", where=where)
    if isinstance(value, bool) or (kind is int and isinstance(value, float) and not value.is_integer()):
        raise error(f"{value!r} is not a valid {kind.__name__}", where=where)
    try:
        parsed = kind(value)
    except (TypeError, ValueError, OverflowError) as cause:
        raise error(f"{_shortened(repr(value))} is not a valid {kind.__name__}", where=where) from cause
    if kind is float and not math.isfinite(parsed):  # NaN would pass every bound
        raise error(f"{parsed} is not a finite number", where=where)
    if kind is int and not -_INT64 <= parsed < _INT64:
        raise error(f"{_shortened(str(value))} does not fit into 64 bits", where=where)
    return parsed


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _check(value: Any, opt: Option, name: str, error: type[Any], where: str) -> Any:
    names = opt.names()
    if names and value not in names:
        unknown = unknown_name(name.replace("_", " "), str(value), names)
        raise error(unknown.reason, where=None if error is UsageError else where, hint=unknown.hint)
    if opt.minimum is not None and value < opt.minimum:
        raise error(f"{value} is below {opt.minimum:g}", where=where)
    if opt.maximum is not None and value > opt.maximum:
        raise error(f"{value} is above {opt.maximum:g}", where=where)
    return value
