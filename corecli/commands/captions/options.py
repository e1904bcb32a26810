"""Write captions of concepts, with a language model or with a grammar that needs none.

What is asked for is a plan, and the plan of caption i is a function of (seed, i) alone: its concept, its template
(the concept alone; with a background; with a relation, one of ten), three worked examples and its own seed. So
shards, reruns and any number of requests at a time carry out the same plan. A kept caption is a JSON line with its
id, its text and all that it was made of, in the order of ids; `sample --captions` reads them, and images of one
caption are one group. They go to --out, or without it to stdout: plain text on a terminal, JSON lines into a pipe.

--concepts names text files with a concept a line, CSV files with the column `concept` and any of `source`, `kind`
(object, place or texture), `weight` (in its file), `hypernym` and `class` (the name of the class that its images are
of, if that is not the concept), or our own lists everyday, digits, places and textures. The number after the colon is
the share of a file, the word after that the kind of its concepts. Places and textures stand alone in their captions.
--backgrounds is a JSON dictionary of lists by concept, hypernym or source, a list for all concepts (`places`), or
`everyday` for our own lists. With --ask-backgrounds the backend is asked for those of concepts that have none, and they
are added to the file first.

Backends: grammar needs no model; server is any that speaks OpenAI's protocol, such as vLLM, at --url; transformers is
a causal language model in this process, a folder or an id of the hub (extra `text`); batch writes the requests of an
offline run to --write-requests and reads the answers with --ingest, as often as it takes. With --api completions a
base model continues a text; with --api chat the examples are turns of a conversation. A language model's seeds make
answers vary, they do not promise the same text again; the text that was kept is the record.

An answer is cut at its first line, freed of quotes and list marks, and judged: empty, truncated, too short or long,
its concept missing (whatever the case, number and hyphens; `/` parts alternatives), a duplicate of an earlier one of
the same file. What is not good is asked for again with another seed, --retries times, and then dropped. The notes at
the end, and --json, count all that by template and by source.

Every answer is kept in OUT.d/ when it comes. A line that was stopped or killed, or whose server went down, goes on
where it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from corecli.base import registry
from corecli.base.config import Common, Preset, option

SUMMARY = "write captions of concepts, with a language model or a grammar"
PLACE = 8
EVENTS = ("retried", "dropped", "warned")
EXAMPLES = (
    ("A hundred captions without a model", "--num 100 --out captions.jsonl"),
    (
        "Of your own concepts and backgrounds, by a server",
        "--concepts concepts.txt --backgrounds bg.json --backend server --model llama --out captions.jsonl",
    ),
    (
        "SynCLR's tree of sources, backgrounds asked for first",
        "--preset synclr --concepts in1k.txt:0.459 --concepts in21k.txt:0.269 --concepts food.txt:0.0455 "
        "--concepts cars.txt:0.0546 --concepts aircraft.txt:0.0546 --concepts flowers.txt:0.0273 "
        "--concepts places:0.088 --concepts textures:0.002 --backgrounds bg.json --ask-backgrounds "
        "--backend server --model llama --num 1000000 --shard 0/8 --out captions-0.jsonl",
    ),
    ("Offline: the requests", "--backend batch --model llama --write-requests requests.jsonl --out captions.jsonl"),
    (
        "Offline: their answers, and what is to be asked again",
        "--backend batch --model llama --ingest answers.jsonl --write-requests again.jsonl --out captions.jsonl",
    ),
    ("A local model", "--backend transformers --model DIR --num 1000 --out captions.jsonl"),
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
        ("everyday",), help="list of concepts, repeatable", role="input", metavar="FILE[:WEIGHT[:KIND]]"
    )
    backgrounds: str = option(
        "everyday", help="backgrounds by concept, or for all concepts", role="input", metavar="FILE"
    )
    ask_backgrounds: bool = option(
        False, help="ask the backend for backgrounds that --backgrounds has not, and add them to it", role="runtime"
    )
    examples: Path | None = option(
        None, help="your own worked examples: CSV of pool,concept,second,caption", role="input", metavar="FILE"
    )
    templates: tuple[float, ...] = option(
        (0.44, 0.45, 0.11), help="chances of concept alone, with background, with relation", minimum=0, metavar="C,B,R"
    )
    num: int = option(1000, help="captions to plan, over all shards", minimum=1)
    shard: str = option("0/1", help="plan only captions whose number is I modulo N", metavar="I/N")
    out: Path | None = option(
        None, help="JSON lines to write; - or nothing for stdout", role="output", metavar="FILE.jsonl"
    )
    backend: str = option("grammar", help="who writes", choices=lambda: registry.choices("captions"))
    form: Literal["sentence", "words", "hypernym"] = option(
        "sentence", help="grammar: a sentence, the bare words, or those with the hypernym"
    )
    model: str | None = option(
        None, help="model by its name on the server, or folder or hub id", role="input", metavar="NAME|DIR"
    )
    api: Literal["completions", "chat"] = option("completions", help="let a model continue a text, or converse")
    temperature: float = option(0.8, help="of decoding; 0 is greedy", minimum=0)
    top_p: float = option(0.9, help="choose among words of this probability in all", minimum=1e-6, maximum=1)
    top_k: int = option(0, help="choose among so many words; 0 is all", minimum=0)
    repetition_penalty: float = option(1.0, help="above 1 against repetition", minimum=1e-6)
    max_tokens: int = option(100, help="longest answer", minimum=1)
    extensions: bool = option(True, help="send top_k and repetition_penalty, which OpenAI's own servers refuse")
    url: str = option("http://localhost:8000/v1", help="server: its address", role="runtime")
    key_env: str = option(
        "OPENAI_API_KEY", help="server: environment variable with the key", role="runtime", metavar="NAME"
    )
    concurrency: int = option(16, help="server: requests at a time", role="runtime", minimum=1)
    timeout_sec: float = option(120.0, help="server: seconds to wait for an answer", role="runtime", minimum=0.01)
    tries: int = option(6, help="server: tries of a request, further and further apart", role="runtime", minimum=1)
    batch_size: int = option(16, help="transformers: captions at a time", role="runtime", minimum=1)
    write_requests: Path | None = option(
        None, help="batch: file for requests without an answer", role="output", metavar="FILE"
    )
    ingest: tuple[Path, ...] = option((), help="batch: file of answers, repeatable", role="runtime", metavar="FILE")
    retries: int = option(3, help="how often a caption that is not good is asked for again", minimum=0)
    on_missing: Literal["warn", "retry", "drop"] = option("warn", help="captions without their concept")
    on_duplicate: Literal["keep", "retry", "drop"] = option("retry", help="captions there are already")
    min_words: int | None = option(None, help="shortest caption (default 3; of bare words 1)", minimum=1)
    max_words: int = option(60, help="longest caption", minimum=1)
