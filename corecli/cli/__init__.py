"""The command line: verbs, man pages and completions."""
