"""Man pages and completion scripts, written from the verbs' Config so that they cannot drift.

`python -m corecli.pages man completions` writes both folders anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corecli import __version__
from corecli.base import config as cfg
from corecli.cli import SUMMARY, VERBS, help_text, load_verb

SHELLS = {"bash": "corecli.bash", "zsh": "_corecli", "fish": "corecli.fish"}
_DATE = "2026-11-20"
_EXIT_STATUS = (
    ("0", "done, or already done"),
    ("1", "a runtime failure or a bug"),
    ("2", "usage: an unknown verb, option, preset, method or sampler"),
    ("65", "malformed, damaged or mismatched data"),
    ("66", "an input is missing"),
    ("69", "a GPU, a package or a weight file is not available"),
    ("73", "the output exists with another config, or cannot be created"),
    ("74", "input/output error such as a full disk"),
    ("75", "interrupted after saving; the same line resumes"),
    ("78", "bad configuration file or environment variable"),
    ("130, 143", "stopped by SIGINT or SIGTERM with nothing saved"),
    ("141", "broken pipe"),
)
_ENVIRONMENT = (
    ("CORECLI_OPTION", "the default of --option for every verb that has it, e.g. CORECLI_DEVICE=cpu"),
    ("NO_COLOR", "no colour in help and progress"),
    ("CORECLI_DEBUG", "show the traceback of every error"),
)


def main(argv: list[str]) -> None:
    """Write the man pages and the completion scripts into the two folders named."""
    man, completions = map(Path, argv)
    for name, text in man_pages().items():
        (man / name).write_text(text)
    for shell, name in SHELLS.items():
        (completions / name).write_text(completion(shell) + "\n")


def man_pages() -> dict[str, str]:
    """File name -> roff text of every page."""
    return {"corecli.1": _top_page(), **{f"corecli-{verb}.1": _verb_page(verb) for verb in VERBS}}


def completion(shell: str) -> str:
    """The static completion script of bash, zsh or fish."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]()


def _top_page() -> str:
    parts = [_head("corecli", SUMMARY), _section("SYNOPSIS"), r"\fBcorecli\fR \fIVERB\fR [\fIOPTIONS\fR]"]
    parts += [
        _section("DESCRIPTION"),
        _escape(SUMMARY),
        ".PP",
        _escape("Verbs meet only in files; see corecli-design(7)."),
    ]
    parts.append(_section("COMMANDS"))
    parts += [_item(rf"\fBcorecli-{_escape(verb)}\fR(1)", summary) for verb, summary in VERBS.items()]
    parts += [_table("EXIT STATUS", _EXIT_STATUS), _table("ENVIRONMENT", _ENVIRONMENT)]
    return _page(parts)


def _verb_page(verb: str) -> str:
    module = load_verb(verb)
    summary, _, description = (module.__doc__ or "").strip().partition("\n")
    options = cfg.described(module.Config)
    own = {n: d for n, d in options.items() if n not in cfg.described(cfg.Common)}
    shared = {n: d for n, d in options.items() if n not in own}
    positional = "".join(rf" \fI{_escape(_metavar(d))}\fR" for d in own.values() if d[1].positional)
    parts = [_head(f"corecli-{verb}", summary), _section("SYNOPSIS")]
    parts += [rf"\fBcorecli {_escape(verb)}\fR{positional} [\fIOPTIONS\fR]", _section("DESCRIPTION"), _escape(summary)]
    parts += [f".PP\n{_escape(' '.join(p.split()))}" for p in description.strip().split("\n\n") if p.strip()]
    parts += [_section("OPTIONS"), *_options(own)]
    if shared:
        parts += [_section("COMMON OPTIONS"), *_options(shared)]
    parts += _presets(module.PRESETS) + _examples(verb, getattr(module, "EXAMPLES", ()))
    return _page([*parts, _section("SEE ALSO"), r"\fBcorecli\fR(1), \fBcorecli\-design\fR(7)"])


def _options(options: dict[str, Any]) -> list[str]:
    items = []
    for name, described in options.items():
        f, opt, hint = described
        kind = cfg.scalar(hint)
        spelled = _metavar(described) if opt.positional else cfg.flag(name)
        short = f"{opt.short}, " if opt.short else ""
        value = "" if kind is bool or opt.positional else rf" \fI{_escape(_metavar(described))}\fR"
        items.append(_item(rf"\fB{_escape(short + spelled)}\fR{value}", help_text(f, opt)))
    return items


def _presets(presets: dict[str, cfg.Preset]) -> list[str]:
    if not presets:
        return []
    items = [
        _item(rf"\fB{_escape(name)}\fR", ", ".join(f"{cfg.flag(k)} {cfg.to_json(v)}" for k, v in values.items()))
        for name, values in presets.items()
    ]
    return [_section("PRESETS"), *items]


def _examples(verb: str, examples: tuple[tuple[str, str], ...]) -> list[str]:
    if not examples:
        return []
    blocks = [f".PP\n{_escape(title)}:\n.PP\n.nf\n{_escape(f'corecli {verb} {line}')}\n.fi" for title, line in examples]
    return [_section("EXAMPLES"), *blocks]


def _metavar(described: tuple[Any, cfg.Option, Any]) -> str:
    _, opt, hint = described
    return opt.metavar or ("|".join(opt.names()) if 0 < len(opt.names()) <= 4 else cfg.scalar(hint).__name__.upper())


def _head(name: str, summary: str) -> str:
    title = f'.TH {name.upper().replace("-", "_")} 1 {_DATE} "corecli {__version__}" "User Commands"'
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


def _flags(verb: str) -> Iterator[tuple[str, tuple[str, ...], str, bool]]:
    """(flag, choices, help, takes a value) of every option of a verb."""
    module = load_verb(verb)
    for name, (_, opt, hint) in cfg.described(module.Config).items():
        if not opt.positional:
            names = tuple(module.PRESETS) if name == "preset" else opt.names()
            yield cfg.flag(name), names, opt.help, cfg.scalar(hint) is not bool


def _positional(verb: str) -> tuple[str, ...]:
    described = cfg.described(load_verb(verb).Config).values()
    return next((opt.names() for _, opt, _ in described if opt.positional), ())


def _bash() -> str:
    flags, values = [], []
    for verb in VERBS:
        words = [f for f, *_ in _flags(verb)] + list(_positional(verb)) + ["--help"]
        flags.append(f'    {verb}) words="{" ".join(words)}" ;;')
        values += [f'    {verb}:{flag}) words="{" ".join(c)}" ;;' for flag, c, _, _ in _flags(verb) if c]
    return "\n".join(
        [
            "# bash completion for corecli",
            "_corecli() {",
            '  local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"',
            '  local verb="${COMP_WORDS[1]}" words=""',
            "  if ((COMP_CWORD == 1)); then",
            f'    COMPREPLY=($(compgen -W "{" ".join(VERBS)} --help --version" -- "$current")); return',
            "  fi",
            '  case "$verb:$previous" in',
            *values,
            "  esac",
            '  if [[ -n $words ]]; then COMPREPLY=($(compgen -W "$words" -- "$current")); return; fi',
            '  case "$verb" in',
            *flags,
            "  esac",
            "  if [[ $current == -* || $verb == completion ]]; then",
            '    COMPREPLY=($(compgen -W "$words" -- "$current"))',
            "  else",
            '    COMPREPLY=($(compgen -f -- "$current"))',
            "  fi",
            "}",
            "complete -o filenames -F _corecli corecli",
        ]
    )


def _zsh() -> str:
    lines = ["#compdef corecli", "_corecli() {", "  local -a verbs=("]
    lines += [f"    '{verb}:{summary}'" for verb, summary in VERBS.items()]
    lines += ["  )", "  if ((CURRENT == 2)); then _describe verb verbs; return; fi", "  case $words[2] in"]
    for verb in VERBS:
        lines.append(f"    {verb}) _arguments \\")
        for flag, names, text, takes in _flags(verb):
            value = f":value:({' '.join(names)})" if names else (":value:_files" if takes else "")
            lines.append(f"      '{flag}[{_zsh_text(text)}]{value}' \\")
        rest = f"'*:word:({' '.join(_positional(verb))})'" if _positional(verb) else "'*:file:_files'"
        lines.append(f"      {rest} ;;")
    return "\n".join([*lines, "  esac", "}", '_corecli "$@"'])


def _zsh_text(text: str) -> str:
    return text.replace("'", "").replace("[", "(").replace("]", ")").replace(":", " ")


def _fish() -> str:
    lines = ["# fish completion for corecli"]
    for verb, summary in VERBS.items():
        lines.append(f"complete -c corecli -n __fish_use_subcommand -f -a {verb} -d '{summary}'")
    for verb in VERBS:
        seen = f"complete -c corecli -n '__fish_seen_subcommand_from {verb}'"
        if _positional(verb):
            lines.append(f"{seen} -f -a '{' '.join(_positional(verb))}'")
        for flag, names, text, takes in _flags(verb):
            value = f" -x -a '{' '.join(names)}'" if names else (" -r" if takes else "")
            plain = text.replace("'", "")
            lines.append(f"{seen} -l {flag[2:]}{value} -d '{plain}'")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
