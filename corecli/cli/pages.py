"""Man pages and completion scripts, generated from the options of the verbs.

`python -m corecli.cli.pages man completions` writes both folders.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any, Literal

from corecli import __version__
from corecli.base import config as cfg
from corecli.cli.verbs import SUMMARY, VERBS, help_text, options_of

SHELLS = {"bash": "corecli", "zsh": "_corecli", "fish": "corecli.fish"}
_DATE = "2026-11-20"
_EXIT_STATUS = (
    ("0", "success, or the target is already finished"),
    ("1", "runtime failure or bug"),
    ("2", "usage error: an unknown verb, option, preset, method or sampler, or options that contradict each other"),
    ("65", "malformed, damaged or mismatched data"),
    ("66", "missing input"),
    ("69", "unavailable GPU, package or weight file"),
    ("73", "the output exists with another configuration or cannot be created"),
    ("74", "input/output error, such as a full disk"),
    ("75", "interrupted after saving, or another job is writing the output; run the same line again"),
    ("78", "invalid configuration file or environment variable"),
    ("130, 143", "stopped by SIGINT or SIGTERM, with nothing saved"),
    ("141", "broken pipe"),
)
_COMMON = "Every verb has these options and ignores those that do not apply to it."
_ENVIRONMENT = (
    ("CORECLI_OPTION", "default of --option for every verb that has it, for example CORECLI_DEVICE=cpu"),
    ("NO_COLOR", "no color in help and progress"),
    ("CORECLI_DEBUG", "show the traceback of errors; that of a bug is also in OUT.d/traceback.txt, if OUT.d/ exists"),
)


def main(argv: list[str]) -> None:
    """Write the man pages to the first folder in `argv` and the completion scripts to the second."""
    man, completions = map(Path, argv)
    for name, text in man_pages().items():
        (man / name).write_text(text)
    for shell, name in SHELLS.items():
        (completions / name).write_text(completion(shell) + "\n")


def man_pages() -> dict[str, str]:
    """Return {file name: roff text} of all pages."""
    return {"corecli.1": _top_page(), **{f"corecli-{verb}.1": _verb_page(verb) for verb in VERBS}}


def completion(shell: str) -> str:
    """Return the static completion script of bash, zsh or fish."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]()


def _top_page() -> str:
    parts = [_head("corecli", SUMMARY), _section("SYNOPSIS"), r"\fBcorecli\fR \fIVERB\fR [\fIOPTIONS\fR]"]
    parts += [
        _section("DESCRIPTION"),
        _escape(SUMMARY),
        ".PP",
        _escape(
            "Verbs exchange only files; see corecli-design(7). What they trust and check is in corecli-security(7)."
        ),
    ]
    parts.append(_section("COMMANDS"))
    parts += [_item(rf"\fBcorecli-{_escape(verb)}\fR(1)", summary) for verb, summary in VERBS.items()]
    parts += [_table("EXIT STATUS", _EXIT_STATUS), _table("ENVIRONMENT", _ENVIRONMENT)]
    return _page(parts)


def _verb_page(verb: str) -> str:
    module = options_of(verb)
    summary, _, description = (module.__doc__ or "").strip().partition("\n")
    options = cfg.described(module.Config)
    own = {n: d for n, d in options.items() if n not in cfg.described(cfg.Common)}
    shared = {n: d for n, d in options.items() if n not in own}
    positional = "".join(
        rf" \fI{_escape(cfg.metavar(opt, hint))}\fR" for _, opt, hint in own.values() if opt.positional
    )
    parts = [_head(f"corecli-{verb}", summary), _section("SYNOPSIS")]
    parts += [rf"\fBcorecli {_escape(verb)}\fR{positional} [\fIOPTIONS\fR]", _section("DESCRIPTION"), _escape(summary)]
    parts += [f".PP\n{_escape(' '.join(p.split()))}" for p in description.strip().split("\n\n") if p.strip()]
    parts += [_section("OPTIONS"), *_options(own)]
    if shared:
        parts += [_section("COMMON OPTIONS"), _escape(_COMMON), *_options(shared)]
    parts += [_table(title, rows) for title, rows in getattr(module, "tables", dict)().items()]
    parts += _presets(module.PRESETS, options) + _examples(verb, getattr(module, "EXAMPLES", ()))
    return _page(
        [*parts, _section("SEE ALSO"), r"\fBcorecli\fR(1), \fBcorecli\-design\fR(7), \fBcorecli\-security\fR(7)"]
    )


def _options(options: dict[str, Any]) -> list[str]:
    items = []
    for name, (f, opt, hint) in options.items():
        value = "" if cfg.scalar(hint) is bool else rf" \fI{_escape(cfg.metavar(opt, hint))}\fR"
        spelled = ", ".join(rf"\fB{_escape(spelling)}\fR" for spelling in cfg.spellings(name, f, opt, hint))
        items.append(_item(value.lstrip() if opt.positional else spelled + value, help_text(f, opt)))
    return items


def _presets(presets: dict[str, cfg.Preset], options: dict[str, Any]) -> list[str]:
    if not presets:
        return []
    items = [
        _item(rf"\fB{_escape(name)}\fR", " ".join(w for n, v in values.items() for w in _words(n, v, *options[n])))
        for name, values in presets.items()
    ]
    return [_section("PRESETS"), *items]


def _words(name: str, value: Any, f: Field[Any], opt: cfg.Option, hint: Any) -> list[str]:
    """Return the words of the command line that give an option its value; none for the default None."""
    kind, many, _ = cfg.kind_of(hint)
    if value is None:
        return []
    if kind is bool:
        return [cfg.spellings(name, f, opt, hint)[0 if value else 1]]
    if many and kind is str and not opt.names():
        return [f"{cfg.flag(name)} {item}" for item in value]
    return [f"{cfg.flag(name)} {','.join(map(str, value)) if many else value}"]


def _examples(verb: str, examples: tuple[tuple[str, str], ...]) -> list[str]:
    if not examples:
        return []
    blocks = [f"{_escape(title)}:\n.PP\n.nf\n{_escape(f'corecli {verb} {line}')}\n.fi" for title, line in examples]
    return [_section("EXAMPLES"), "\n.PP\n".join(blocks)]


def _head(name: str, summary: str) -> str:
    title = f'.TH {name.upper()} 1 {_DATE} "corecli {__version__}" "User Commands"'
    return f"{title}\n{_section('NAME')}\n{_escape(name)} \\- {_escape(summary.rstrip('.'))}"


def _section(name: str) -> str:
    return f".SH {name}" if " " not in name else f'.SH "{name}"'


def _item(term: str, text: str) -> str:
    return f".TP\n{term}\n{_escape(text)}"


def _table(title: str, rows: tuple[tuple[str, str], ...]) -> str:
    return "\n".join([_section(title), *(_item(rf"\fB{_escape(term)}\fR", text) for term, text in rows)])


def _escape(text: str) -> str:
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return "\n".join(rf"\&{line}" if line.startswith((".", "'")) else line for line in text.splitlines())


def _page(parts: list[str]) -> str:
    return "\n".join(parts) + "\n"


@dataclass(frozen=True, kw_only=True)
class _Flag:
    """An option in a completion script; `value` is the kind of word that follows it."""

    names: tuple[str, ...]
    help: str
    value: Literal["nothing", "choice", "path", "word"]
    choices: tuple[str, ...] = ()
    repeatable: bool = False


def _flags(verb: str) -> Iterator[_Flag]:
    module = options_of(verb)
    for name, (f, opt, hint) in cfg.described(module.Config).items():
        if opt.positional:
            continue
        kind, many, _ = cfg.kind_of(hint)
        choices = tuple(module.PRESETS) if name == "preset" else opt.names()
        value = "word"
        if kind is bool:
            value = "nothing"
        elif choices:
            value = "choice"
        elif kind is Path or opt.role in ("input", "output"):
            value = "path"
        yield _Flag(
            names=cfg.spellings(name, f, opt, hint), help=opt.help, value=value, choices=choices, repeatable=many
        )
    yield _Flag(names=("--help", "-h"), help="show the help", value="nothing")


def _positional(verb: str) -> tuple[bool, tuple[str, ...]]:
    """Return (whether the verb has an argument, its choices); an argument without choices is a path."""
    found = [opt for _, opt, _ in cfg.described(options_of(verb).Config).values() if opt.positional]
    return bool(found), found[0].names() if found else ()


def _bash() -> str:
    choices, paths, others, words = [], [], [], []
    for verb in VERBS:
        flags = list(_flags(verb))
        for flag in flags:
            place = "|".join(f"{verb}:{name}" for name in flag.names)
            if flag.value == "choice":
                choices.append(f'    {place}) words="{" ".join(flag.choices)}" ;;')
            elif flag.value != "nothing":
                (paths if flag.value == "path" else others).append(place)
        takes, named = _positional(verb)
        offered = " ".join(name for flag in flags for name in flag.names)
        other = f' [[ $current == -* ]] || words="{" ".join(named)}"' if named else " files=yes" if takes else ""
        words.append(f'    {verb}) words="{offered}"{";" if named else ""}{other} ;;')
    return "\n".join(
        [
            "# bash completion for corecli",
            "_corecli() {",
            '  local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"',
            '  local verb="${COMP_WORDS[1]}" words="" files=""',
            "  COMPREPLY=()",
            '  if [[ $current == "=" ]]; then current=""; fi',
            '  if [[ $previous == "=" ]]; then previous="${COMP_WORDS[COMP_CWORD-2]}"; fi',
            '  case "$verb:$previous" in',
            *choices,
            f"    {'|'.join(paths)}) files=only ;;",
            f"    {'|'.join(others)}) return ;;",
            "  esac",
            "  if ((COMP_CWORD == 1)); then",
            f'    words="{" ".join(VERBS)} --help --version"',
            "  elif [[ -z $words$files ]]; then",
            '    case "$verb" in',
            *(f"  {line}" for line in words),
            "    esac",
            "  fi",
            '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
            "  if [[ $files == only || ( -n $files && $current != -* ) ]]; then",
            "    local IFS=$'\\n'",
            "    compopt -o filenames 2>/dev/null",
            '    COMPREPLY=($(compgen -f -- "$current"))',
            "  fi",
            "}",
            "complete -F _corecli corecli",
        ]
    )


def _zsh() -> str:
    lines = ["#compdef corecli", "_corecli() {", "  local -a verbs=("]
    lines += [f"    {_quoted(f'{verb}:{summary}')}" for verb, summary in VERBS.items()]
    lines += ["  )", "  if ((CURRENT == 2)); then _describe verb verbs; return; fi", "  case $words[2] in"]
    for verb in VERBS:
        lines.append(f"    {verb}) _arguments \\")
        lines += [f"      {_quoted(spec)} \\" for flag in _flags(verb) for spec in _zsh_specs(flag)]
        takes, named = _positional(verb)
        rest = f":word:({' '.join(named)})" if named else ":file:_files" if takes else ": :"
        lines.append(f"      ':verb:' {_quoted(rest)} ;;")
    # If autoloaded from fpath, the file is the body of the function; if sourced, it registers the function.
    lines += [
        "  esac",
        "}",
        'if [[ $funcstack[1] == _corecli ]]; then _corecli "$@"; else compdef _corecli corecli; fi',
    ]
    return "\n".join(lines)


def _zsh_specs(flag: _Flag) -> Iterator[str]:
    text = re.sub(r"([\[\]:\\])", r"\\\1", flag.help)
    value = {"nothing": "", "choice": f":value:({' '.join(flag.choices)})", "path": ":file:_files", "word": ":value: "}
    for name in flag.names:
        equals = "=" if flag.value != "nothing" and name.startswith("--") else ""
        yield f"{'*' if flag.repeatable else ''}{name}{equals}[{text}]{value[flag.value]}"


def _quoted(text: str) -> str:
    """Return the text in single quotes, for zsh."""
    return "'" + text.replace("'", r"'\''") + "'"


def _fish() -> str:
    lines = ["# fish completion for corecli"]
    for verb, summary in VERBS.items():
        lines.append(f"complete -c corecli -n __fish_use_subcommand -f -a {verb} -d {_fish_quoted(summary)}")
    for verb in VERBS:
        seen = f"complete -c corecli -n '__fish_seen_subcommand_from {verb}'"
        takes, named = _positional(verb)
        if named or not takes:
            lines.append(f"{seen} -f" + (f" -a '{' '.join(named)}'" if named else ""))
        for flag in _flags(verb):
            value = {"nothing": "", "choice": f" -x -a '{' '.join(flag.choices)}'", "path": " -r -F", "word": " -x"}
            names = (f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
            lines += [f"{seen} {name}{value[flag.value]} -d {_fish_quoted(flag.help)}" for name in names]
    return "\n".join(lines)


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", r"\\").replace("'", r"\'") + "'"


if __name__ == "__main__":
    main(sys.argv[1:])
