"""Write captions of concepts, with a language model or with a grammar that needs none.

Every caption has an assignment: a concept, a template (the concept alone, with a background, or with one of ten
relations), three worked examples and a seed. The assignment of caption i is a function of --seed and i. Results
therefore do not depend on --shard, on interruptions or on the number of concurrent requests.

The output is one JSON line per caption, in the order of ids. It holds the id, the text and everything that the caption
was made of. `sample --captions` reads this file, and the images of one caption form one group. Without --out, captions
go to stdout: as plain text on a terminal, as JSON lines into a pipe.

--concepts reads text files with one concept per line, or CSV files. A CSV file has the column `concept` and may have
`source`, `kind` (object, place or texture), `weight` (relative share within the file), `hypernym` and `class` (class
name of the images, by default the concept). The lists everyday, digits, places and textures are built in. After the
file name, WEIGHT sets the share of the file, and KIND the kind of its concepts. Captions of places and textures always
use the template of the concept alone.

--backgrounds reads a JSON dictionary of lists by concept, hypernym or source, or one list for all concepts, such as
the built-in `places`. With --ask-backgrounds, a language model first names backgrounds for concepts that have none, and
they are added to the file.

--backend chooses what writes the captions; BACKENDS in corecli-captions(1) lists the options of each backend. With
--api completions, a base model continues a text. With --api chat, the examples are turns of a conversation. The same
seed may yield another text, so the text in the output is the record of a caption. With --backend batch, alternate
between --write-requests and --ingest until every caption is kept.

The first line of every answer is kept, without quotes and list marks, and then judged. A caption is bad if it is empty,
truncated, too short, too long or a duplicate, or if its concept is missing; case, plural and hyphens do not matter, and
`/` separates alternatives. A bad caption is requested again with another seed, up to --retries times, and then dropped.
The notes at the end and --json count this by template and by source.

Every answer is saved in OUT.d/ when it arrives. If a run is stopped or killed, or if its server fails, the same command
line resumes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from corecli.base import registry
from corecli.base.config import Common, Preset, flag, option, to_json

SUMMARY = "write captions of concepts, with a language model or a grammar"
PLACE = 8
PARTS = "captions"  # the registry whose options are given with --set
EXAMPLES = (
    ("Write 100 captions without a model", "--num 100 --out captions.jsonl"),
    (
        "Use your own concepts and backgrounds, and a server",
        "--concepts concepts.txt --backgrounds bg.json --backend server --model llama --out captions.jsonl",
    ),
    (
        "Use the sources of SynCLR, and request backgrounds first",
        "--preset synclr --concepts in1k.txt:0.459 --concepts in21k.txt:0.269 --concepts food.txt:0.0455 "
        "--concepts cars.txt:0.0546 --concepts aircraft.txt:0.0546 --concepts flowers.txt:0.0273 "
        "--concepts places:0.088 --concepts textures:0.002 --backgrounds bg.json --ask-backgrounds "
        "--backend server --model llama --num 1000000 --shard 0/8 --out captions-0.jsonl",
    ),
    (
        "Write the requests of an offline run",
        "--backend batch --model llama --write-requests requests.jsonl --out captions.jsonl",
    ),
    (
        "Read its answers, and write the requests to repeat",
        "--backend batch --model llama --ingest answers.jsonl --write-requests again.jsonl --out captions.jsonl",
    ),
    ("Use a local model", "--backend transformers --model DIR --num 1000 --out captions.jsonl"),
)
_WORDS: dict[str, Any] = {"backend": "grammar", "on_duplicate": "keep"}
PRESETS: dict[str, Preset] = {
    "synclr": {  # SynCLR 3.1 and synthesize_text.py: .91 objects, .088 places, .002 textures; Llama-2 7B decoding
        "concepts": ("everyday:0.91", "places:0.088", "textures:0.002"),
        "templates": (0.44, 0.45, 0.11),
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": 0,
        "repetition_penalty": 1.0,
        "max_tokens": 100,
    },
    # Ablations: the words alone; the third is Table 2, IN + h + Places.
    "class": {**_WORDS, "form": "words", "templates": (1.0, 0.0, 0.0)},
    "class-hypernym": {**_WORDS, "form": "hypernym", "templates": (1.0, 0.0, 0.0)},
    "class-hypernym-place": {**_WORDS, "form": "hypernym", "templates": (0.0, 1.0, 0.0), "backgrounds": "places"},
    "class-background": {**_WORDS, "form": "words", "templates": (0.0, 1.0, 0.0)},
}


@dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Options of `corecli captions`."""

    concepts: tuple[str, ...] = option(
        ("everyday",),
        help="list of concepts: text, CSV or a built-in name; repeatable",
        role="input",
        metavar="FILE[:WEIGHT[:KIND]]",
    )
    backgrounds: str = option(
        "everyday",
        help="JSON dictionary of backgrounds by concept, or one list for all concepts",
        role="input",
        metavar="FILE",
    )
    ask_backgrounds: bool = option(
        False, help="request missing backgrounds from the model and add them to --backgrounds", role="runtime"
    )
    examples: Path | None = option(
        None,
        help="CSV of worked examples: pool,concept,second,caption (default: built in)",
        role="input",
        metavar="FILE",
    )
    templates: tuple[float, ...] = option(
        (0.44, 0.45, 0.11),
        help="probabilities of the templates: concept alone, with background, with relation",
        minimum=0,
        metavar="C,B,R",
    )
    num: int = option(1000, help="number of captions, in all shards together", minimum=1)
    shard: str = option("0/1", help="write only the captions whose number is I modulo N", metavar="I/N")
    out: Path | None = option(
        None, help="JSON lines file to write; - is stdout (default: stdout)", role="output", metavar="FILE.jsonl"
    )
    backend: str = option(
        "grammar", help="backend that writes the captions", choices=lambda: registry.choices("captions")
    )
    set: tuple[str, ...] = option(
        (), help="option of the backend; repeatable", role="runtime", metavar="NAME=VALUE", joined=True
    )
    form: Literal["sentence", "words", "hypernym"] = option(
        "sentence", help="caption form: sentence, words (concept, background), or these with the hypernym"
    )
    model: str | None = option(
        None,
        help="name of the model on the server, or folder or hub id of a local model",
        role="input",
        metavar="NAME|DIR",
    )
    api: Literal["completions", "chat"] = option("completions", help="API of the model: continue a text, or chat")
    temperature: float = option(0.8, help="sampling temperature; 0 is greedy decoding", minimum=0)
    top_p: float = option(
        0.9, help="sample from the most likely tokens with this total probability", minimum=1e-6, maximum=1
    )
    top_k: int = option(0, help="sample from this many most likely tokens; 0 is all", minimum=0)
    repetition_penalty: float = option(1.0, help="repetition penalty; above 1 discourages repetition", minimum=1e-6)
    max_tokens: int = option(100, help="maximum length of an answer, in tokens", minimum=1)
    extensions: bool = option(True, help="send top_k and repetition_penalty, which OpenAI's own servers refuse")
    url: str = option("http://localhost:8000/v1", help="base URL of the server", role="runtime")
    key_env: str = option(
        "OPENAI_API_KEY", help="environment variable with the API key of the server", role="runtime", metavar="NAME"
    )
    concurrency: int = option(
        16, help="number of concurrent requests to the server", role="runtime", minimum=1, maximum=1024
    )
    timeout_sec: float = option(
        120.0, help="seconds to wait for an answer from the server", role="runtime", minimum=0.01, maximum=86400
    )
    tries: int = option(
        6, help="attempts per request to the server, with growing waits between them", role="runtime", minimum=1
    )
    batch_size: int = option(16, help="captions per batch of a local model", role="runtime", minimum=1)
    write_requests: Path | None = option(
        None, help="write the unanswered requests to this JSON lines file", role="output", metavar="FILE"
    )
    ingest: tuple[Path, ...] = option(
        (), help="file with answers to the requests; repeatable", role="runtime", metavar="FILE"
    )
    retries: int = option(3, help="number of times a bad caption is requested again before it is dropped", minimum=0)
    on_missing: Literal["warn", "retry", "drop"] = option(
        "warn", help="what to do with captions that do not mention their concept"
    )
    on_duplicate: Literal["keep", "retry", "drop"] = option(
        "retry", help="what to do with duplicates of earlier captions"
    )
    min_words: int | None = option(
        None, help="minimum number of words in a caption (default: 3 for sentences, else 1)", minimum=1
    )
    max_words: int = option(60, help="maximum number of words in a caption", minimum=1)


def tables() -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the table of the backends for the man page."""
    return {"BACKENDS": tuple((n, _described(registry.constants(PARTS, n))) for n in registry.choices(PARTS))}


def _described(backend: dict[str, Any]) -> str:
    from corecli.captions.parts.backend import MODEL_OPTIONS

    names = [*(("model",) if backend["NEEDS_MODEL"] else ()), *backend.get("NEEDS", ())]
    required = f" Requires {' and '.join(map(flag, names))}." if names else ""
    options = [flag(n) for n in (*(MODEL_OPTIONS if backend["NEEDS_MODEL"] else ()), *backend.get("USES", ()))]
    options += [f"--set {name}={to_json(default)}" for name, default in backend["Options"].items()]
    return f"{backend['title'].rstrip('.')}.{required} Options: {', '.join(options) or 'none'}."
