"""The command line: only the verb that runs is imported, and torch only while it runs."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from corecli import __version__
from corecli.base import claim, registry
from corecli.base import config as cfg
from corecli.base.errors import CorecliError, ReportedElsewhere, StorageError
from corecli.base.files import unreadable
from corecli.base.outcome import Outcome, escaped, to_json_line, without_user
from corecli.cli.verbs import SUMMARY, VERBS, command_of, help_text, options_of
from corecli.engine.signals import die_with_launcher

# The usage error of typer's parser, whose module differs between versions.
_PARSER_ERROR: Any = typer.BadParameter.__bases__[0]
_LONGEST_REASON = 300  # characters of an unexpected error on its line


def main() -> None:
    """Run the `corecli` command."""
    # A stream that the caller has closed is None; opening a file now takes its file descriptor.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    die_with_launcher()
    sys.exit(run_line(sys.argv[1:]))


def run_line(argv: list[str]) -> int:
    """Run one command line and return its exit code."""
    verb = next((word for word in argv if not word.startswith("-")), None)
    debug = "CORECLI_DEBUG" in os.environ
    parsed = None
    try:
        if verb is not None:
            options_of(verb)
        parsed = _parsed(verb, argv)
        return parsed if verb is None or isinstance(parsed, int) else dispatch(verb, parsed, argv)
    except _PARSER_ERROR as error:
        return _fail(verb, _owners(verb, error) or str(error.format_message()).rstrip("."), 2)
    except ReportedElsewhere as error:
        return error.exit_code
    except CorecliError as error:
        _trace(error, shown=debug)
        return _fail(verb, str(error), error.exit_code)
    except BrokenPipeError:
        _drop_stdout()
        return 141
    except OSError as error:
        _trace(error, shown=debug)
        explained = unreadable(error)
        return _fail(verb, str(explained), explained.exit_code)
    except KeyboardInterrupt:
        return _fail(verb, "interrupted, nothing saved", 130)
    except BaseException as error:  # noqa: BLE001, the last resort: no error of any kind ends in a bare traceback
        return _fail(verb, _unexpected(error, parsed, debug=debug), 1)


def _parsed(verb: str | None, argv: list[str]) -> Any:
    """Return the Config of a line, or an exit code. Errors: BrokenPipeError."""
    try:
        return build_app(verb)(argv, prog_name="corecli", standalone_mode=False)
    except SystemExit as error:  # typer exits only when the pipe that reads its help is closed
        raise BrokenPipeError from error


def build_app(verb: str | None) -> typer.Typer:
    """Return the typer application with the options of `verb`; the other verbs have their names only."""
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ
    app = typer.Typer(
        help=SUMMARY,
        add_completion=False,
        rich_markup_mode=None if plain else "rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_top)
    for name, summary in VERBS.items():
        if name == verb:
            module = options_of(name)
            app.command(name, help=inspect.getdoc(module))(_command(module))
        else:
            app.command(name, help=summary)(_name_only)
    return app


def _owners(verb: str | None, error: Any) -> str:
    """Return the message for an unknown option that methods or families of the verb have, or nothing."""
    folder = getattr(options_of(verb), "PARTS", None) if verb is not None else None
    if folder is None or not hasattr(error, "possibilities"):  # only errors of unknown options have them
        return ""
    option = error.option_name.lstrip("-")
    options = {part: registry.constants(folder, part)["Options"] for part in registry.choices(folder)}
    owners = ", ".join(part for part, names in options.items() if option.replace("-", "_") in names)
    return f"--{option} is an option of {owners} (write --set {option}=VALUE)" if owners else ""


def _name_only() -> None:
    """Stand for a verb that does not run."""


def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"corecli {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


def _command(module: ModuleType) -> Callable[..., Any]:
    """Return a typer command that returns the verb's Config. Its parameters are the fields; unset ones are None."""

    def command(**given: Any) -> Any:
        values = {k: v for k, v in given.items() if v is not None and v != []}
        return cfg.resolve(module.Config, values, presets=module.PRESETS)

    parameters = [_parameter(n, *described) for n, described in cfg.described(module.Config).items()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _parameter(name: str, f: Any, opt: cfg.Option, hint: Any) -> inspect.Parameter:
    kind, many, _ = cfg.kind_of(hint)
    parsed = bool if kind is bool else str  # cfg.resolve converts and checks values of all sources
    text = help_text(f, opt)
    if opt.positional:
        info: Any = typer.Argument(help=text, metavar=cfg.metavar(opt, hint), show_default=False)
    else:
        spelled = cfg.spellings(name, f, opt, hint)
        long = "/".join(word for word in spelled if word.startswith("--"))  # --flip/--no-flip
        short = [word for word in spelled if not word.startswith("--")]
        shown = None if kind is bool else cfg.metavar(opt, hint)
        info = typer.Option(long, *short, help=text, metavar=shown, show_default=False)
    annotation = Annotated[list[parsed] | None if many else parsed | None, info]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def dispatch(verb: str, config: Any, argv: list[str]) -> int:
    """Check the options of a verb, then run it: in this process, among the processes of this run, or in new ones."""
    module = command_of(verb)
    shared = config if isinstance(config, cfg.Common) else cfg.Common()
    from corecli.engine import launch  # imports NumPy, which help does not need

    if shared.nproc != "auto":
        launch.num_processes(shared)
    with _stdout_for_results():
        plan = module.check(config)
    if shared.dry_run:
        _print(_dry(verb, config, plan), as_json=shared.json)
        return 0
    is_alone = getattr(module, "IS_ALONE", False)  # such a verb runs in one process and imports torch only where needed
    with _stdout_for_results():
        needs_processes = not is_alone and launch.needed(shared)
    if needs_processes:
        return launch.launch(shared, argv)
    with _stdout_for_results():
        if is_alone:
            with launch.alone(config), _claimed(verb, module, config):
                outcome, is_main = module.run(config), True
        else:
            with launch.joined(config) as world, _claimed(verb, module, config):
                launch.wait_for_main(world)  # which may wait for another job
                outcome, is_main = module.run(config, world), world.is_main
    if is_main:
        _report(verb, shared, outcome)
    return 0


def _claimed(verb: str, module: ModuleType, config: Any) -> contextlib.AbstractContextManager[None]:
    """Return a context that locks what a verb writes: its `targets(config)`, else the values of its output options.

    Only the main process locks.
    """

    def note(text: str) -> None:
        if not config.quiet:
            print(f"corecli {verb}: {text}", file=sys.stderr, flush=True)

    from corecli.engine.environment import find_launch  # imports NumPy

    if find_launch(os.environ).rank > 0:
        return contextlib.nullcontext()
    targets = getattr(module, "targets", cfg.outputs)
    return claim.claimed(targets(config), note=note)


def _report(name: str, config: Any, outcome: Outcome) -> None:
    for note in () if config.quiet else outcome.notes:
        print(f"corecli {name}: {escaped(note)}", file=sys.stderr)
    _print(outcome, as_json=config.json)
    if outcome.failure is not None:
        raise outcome.failure


def _dry(name: str, config: Any, plan: dict[str, Any]) -> Outcome:
    """Return what --dry-run prints: the value of every option, then what the verb would read and write."""
    values = cfg.values(config).items()
    resolved = {key: without_user(value) if isinstance(value, str) else value for key, value in values}
    lines = (f"{key}\t{_shown(value)}" for key, value in {**resolved, **plan}.items() if value is not None)
    return Outcome(lines=tuple(lines), records=({"verb": name, "config": resolved, **plan},))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class _stdout_for_results:
    """A context in which everything that a verb or a library prints goes to stderr: stdout has the result only."""

    def __enter__(self) -> None:
        sys.stdout.flush()
        self.kept = os.dup(1)
        os.dup2(2, 1)

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        os.dup2(self.kept, 1)
        os.close(self.kept)


def _print(outcome: Outcome, *, as_json: bool) -> None:
    as_json = as_json or (outcome.for_people and not sys.stdout.isatty())
    lines = map(to_json_line, outcome.records) if as_json else map(escaped, outcome.lines)
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop_stdout()
        raise StorageError((error.strerror or str(error)).lower(), where="standard output") from error


def _drop_stdout() -> None:
    """Redirect stdout to nowhere, so that Python's final flush succeeds."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unexpected(error: BaseException, config: Any, *, debug: bool) -> str:
    """Return the message for a bug. Its traceback goes to the run folder if there is one, with `debug` to stderr."""
    text = _trace(error, shown=debug)
    out = getattr(config, "out", None)
    file = None if out is None else Path(f"{out}.d", "traceback.txt")
    hint = "this is a bug" if debug else "this is a bug; set CORECLI_DEBUG=1 for the traceback"
    if file is not None and file.parent.is_dir():
        with contextlib.suppress(OSError):
            file.write_text(text, errors="backslashreplace")
            hint += f"; it is in {file}" if debug else f", which is also in {file}"
    reason = next(iter(str(error).splitlines()), "")[:_LONGEST_REASON]
    return f"unexpected {type(error).__name__}{f': {reason}' if reason else ''} ({hint})"


def _trace(error: BaseException, *, shown: bool) -> str:
    """Return the traceback of an error, and print it to stderr if it is `shown`."""
    text = "".join(traceback.format_exception(error))
    if shown:
        print("\n".join(map(escaped, text.splitlines())), file=sys.stderr)
    return text


def _fail(verb: str | None, message: str, code: int) -> int:
    name = f"corecli {verb}" if verb in VERBS else "corecli"
    print(f"{name}: error: {escaped(' '.join(message.split()))}", file=sys.stderr)
    return code
