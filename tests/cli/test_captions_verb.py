"""Test `captions` on the command line: a server with faults, kills and resumption, batches and local models."""

from __future__ import annotations

import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from language_models import write_llama
from language_server import FAULTS, LanguageServer, say, words_of
from lines import Line, wait_for
from ran import Ran, Run, refused

from corecli.captions import server as server_module
from corecli.data.captions import read_captions


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits of the server backend."""
    monkeypatch.setattr(server_module, "_FIRST_WAIT_SEC", 0.01)


def line(server: LanguageServer, *more: object) -> tuple[object, ...]:
    return ("captions", "--backend", "server", "--model", "m", "--url", server.url, "-q", *more)


def read(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in Path(path).read_text().split("\n") if text]


def numbers(records: list[dict[str, Any]]) -> list[int]:
    return [int(record["id"]) for record in records]


def often(body: dict[str, Any], number: int) -> str | None:
    """Let half of all requests fail at first, in every possible way."""
    draw = zlib.crc32(f"{words_of(body)}{body['seed']}".encode())
    return FAULTS[draw % 10] if draw % 10 < 5 and number < 1 + draw % 2 else None


# Streams


def test_captions_go_to_a_pipe_as_json_lines_and_to_a_terminal_as_text(tmp_path: Path) -> None:
    """Neither imports torch."""
    program = "import sys; from corecli.cli.app import run_line; code = run_line(sys.argv[1:])"
    program += "; sys.exit(code or len({'torch', 'transformers'} & set(sys.modules)))"
    words = [sys.executable, "-c", program, "captions", "--num", "3", "--out", "-"]
    piped = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    records = [json.loads(text) for text in piped.stdout.splitlines()]
    assert [record["id"] for record in records] == ["000000000", "000000001", "000000002"]
    assert "corecli captions: kept 3 of 3; 3 answers in" in piped.stderr
    ours, theirs = pty.openpty()
    subprocess.run(words, stdout=theirs, stderr=subprocess.DEVNULL, check=True, cwd=tmp_path)
    os.close(theirs)
    assert os.read(ours, 4096).decode().splitlines() == [record["caption"] for record in records]
    os.close(ours)
    assert not list(tmp_path.iterdir())


def test_stopped_without_a_file_nothing_is_saved(tmp_path: Path) -> None:
    for number, code in ((signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)):
        with LanguageServer(lambda body, number: "late") as server:
            server.late_sec = 30
            running = Line(line(server, "--num", 5), folder=tmp_path)
            wait_for(lambda faults=server.faults: faults["late"] >= 1, running)
            running.signal(number)
            assert running.end(timeout=20).code == code


# The server


def test_a_server_with_every_fault_loses_and_doubles_nothing(run: Run, quick: None) -> None:
    with LanguageServer() as server:
        assert run(*line(server, "--num", "120", "--out", "good.jsonl")).code == 0
        first = len(server.bodies)
        server.tries.clear()
        server.fault, server.late_sec = often, 0.3
        ran = run(*line(server, "--num", "120", "--timeout-sec", "0.15", "--concurrency", "32", "--out", "bad.jsonl"))
    assert (ran.code, ran.out) == (0, "bad.jsonl\n"), ran.err
    assert server.faults.keys() == set(FAULTS)
    assert Path("bad.jsonl").read_bytes() == Path("good.jsonl").read_bytes()
    assert len(server.bodies) == 2 * first
    records = read("bad.jsonl")
    assert numbers(records) == sorted(set(numbers(records)))
    assert {record["attempt"] for record in records} >= {0, 1}
    captions = read_captions(Path("bad.jsonl"))
    assert captions.ids == [record["id"] for record in records] == sorted(captions.ids)
    assert captions.texts[0] == records[0]["caption"]


def test_a_record_holds_all_that_it_was_made_of(run: Run) -> None:
    with LanguageServer() as server:
        ran = run(*line(server, "--num", "40", "--concurrency", "1"))
    records = [json.loads(text) for text in ran.out.splitlines()]
    by_seed = {body["seed"]: body for body in server.bodies}
    for record in records:
        body = by_seed[record["seed"]]
        assert (record["raw"], record["finish_reason"]) == say(body)
        assert record["caption"] == record["raw"].strip(' "')
        assert words_of(body) == ", ".join(filter(None, (record["concept"], record["second"])))
        assert (record["backend"], record["model"], record["source"]) == ("server", "m", "everyday")
        assert record["checks"] == {"concept": True, "duplicate": False}
        assert len(record["examples"]) == 3
    names = {"temperature": 0.8, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.0, "max_tokens": 100}
    assert records[0]["params"] == {"api": "completions", **names}


def test_all_options_of_decoding_are_sent(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    options = ("--temperature", "0.5", "--top-p", "0.7", "--top-k", "9", "--repetition-penalty", "1.1")
    with LanguageServer() as server:
        more = (*options, "--max-tokens", "33", "--key-env", "MY_KEY", "--num", "1", "--templates", "1,0,0")
        assert run(*line(server, *more)).code == 0
        assert run(*line(server, *more, "--api", "chat", "--no-extensions")).code == 0
        assert run(*line(server, "--num", "1")).code == 0
    completion, chat, plain = server.bodies
    expected = {
        "temperature": 0.5,
        "top_p": 0.7,
        "top_k": 9,
        "repetition_penalty": 1.1,
        "max_tokens": 33,
        "stop": ["\n"],
    }
    assert completion.items() >= expected.items()
    assert completion["prompt"].count(" => ") == 3
    assert plain["top_k"] == -1
    assert "top_k" not in chat and "repetition_penalty" not in chat and "stop" not in chat
    assert [turn["role"] for turn in chat["messages"]][:3] == ["system", "user", "assistant"]
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert "Authorization" not in server.headers[2]


def test_shards_make_the_whole_with_any_number_of_requests_at_a_time(run: Run) -> None:
    more = ("--num", "60", "--on-duplicate", "keep", "--concurrency")
    with LanguageServer() as server:
        assert run(*line(server, *more, "1", "--out", "whole.jsonl")).code == 0
        for i in range(3):
            assert run(*line(server, *more, "30", "--shard", f"{i}/3", "--out", f"{i}.jsonl")).code == 0
    shards = [read(f"{i}.jsonl") for i in range(3)]
    assert all(number % 3 == i for i, shard in enumerate(shards) for number in numbers(shard))
    assert sorted((r for shard in shards for r in shard), key=lambda r: r["id"]) == read("whole.jsonl")


def test_a_server_that_is_down_at_the_start(run: Run, quick: None) -> None:
    with LanguageServer() as server:
        pass
    ran = run(*line(server, "--num", "3", "--tries", "2", "--out", "o.jsonl"))
    assert (ran.code, ran.out) == (69, "")
    down = f"{server.url}: no answer in 2 tries: connection refused"
    assert f"{down} (the answers so far are kept; run the same line again to resume)" in ran.err
    assert not Path("o.jsonl").exists()
    ran = run(*line(server, "--num", "3", "--tries", "2"))
    assert (ran.code, ran.out) == (69, "")
    assert f"{down} (with --out FILE, the answers so far would be kept)" in ran.err


def num_requested(server: LanguageServer) -> int:
    """Return the number of requests; one that a slow machine sent twice counts once."""
    return len({(body["prompt"], body["seed"]) for body in server.bodies})


def test_a_server_that_goes_down_midway(run: Run, quick: None) -> None:
    with LanguageServer() as server:
        server.dies_after = 25
        ran = run(*line(server, "--num", "60", "--tries", "2", "--out", "o.jsonl"))
        refused(ran, "captions", 69, f"{server.url}: no answer in 2 tries: ", "run the same line again to resume)")
        assert not Path("o.jsonl").exists()
        kept = len(read("o.jsonl.d/answers.jsonl"))
        assert 0 < kept <= 25
        differing = run(*line(server, "--num", "60", "--seed", "1", "--out", "o.jsonl"))
        assert differing.code == 73
        assert "seed: 0 there, 1 now" in differing.err
        server.dies_after = float("inf")
        server.bodies.clear()
        assert run(*line(server, "--num", "60", "--out", "o.jsonl")).code == 0
        resumed = num_requested(server)
        server.bodies.clear()
        assert run(*line(server, "--num", "60", "--out", "alone.jsonl")).code == 0
        assert resumed == num_requested(server) - kept
    assert Path("o.jsonl").read_bytes() == Path("alone.jsonl").read_bytes()


@pytest.mark.parametrize(("fault", "message"), [("refused", "HTTP 401: no such key"), ("lost", "HTTP 404")])
def test_a_permanent_failure_ends_the_run_at_once(run: Run, fault: str, message: str) -> None:
    with LanguageServer(lambda body, number: fault) as server:
        ran = run(*line(server, "--num", "1"))
    assert (ran.code, sum(server.tries.values())) == (69, 1)
    assert f"no answer: {message}" in ran.err
    assert "not the URL of a server" in run(*line(server, "--url", "localhost:8000")).err


def test_a_server_is_given_the_time_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert server_module._wait_sec("7") == 7
    assert server_module._wait_sec("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    monkeypatch.setattr(time, "time", lambda: 1445412470.0)
    assert server_module._wait_sec("Wed, 21 Oct 2015 07:28:00 GMT") == 10
    assert [server_module._wait_sec(header) for header in ("3600", "soon", None)] == [60, 0, 0]


# Servers that are not to be trusted


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/v1", "http://[::1/v1", "http://a b/v1", "http://h:0/v1"])
def test_malformed_urls_are_refused(run: Run, url: str) -> None:
    ran = run("captions", "--backend", "server", "--model", "m", "--num", "1", "--url", url, "--out", "o")
    refused(ran, "captions", 2, f"{url}: not the URL of a server (write http://localhost:8000/v1)")


@pytest.mark.parametrize("fault", ["drips", "drips headers"])
def test_a_dripping_server_runs_out_of_time(run: Run, fault: str) -> None:
    with LanguageServer(lambda body, number: fault) as server:
        started = time.monotonic()
        ran = run(*line(server, "--num", "1", "--tries", "1", "--timeout-sec", "0.5", "--out", "o"))
        assert time.monotonic() - started < 6
    refused(ran, "captions", 69, f"{server.url}: no answer in 1 tries: timed out")


def test_a_huge_response_is_not_read_whole(run: Run) -> None:
    with LanguageServer(lambda body, number: "huge") as server:
        ran = run(*line(server, "--num", "1", "--out", "o"))
    refused(ran, "captions", 69, "no answer: the response is larger than 16 MB")
    assert server.poured < 64


@pytest.mark.parametrize("fault", ["echo", "echo as status"])
def test_a_key_that_the_server_echoes_is_not_printed(run: Run, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-Secret+123\n")
    with LanguageServer(lambda body, number: fault) as server:
        url = server.url.replace("//", "//someone:pass-word@")
        ran = run(*line(server, "--num", "1", "--tries", "1", "--url", url, "--out", "o"))
    assert server.headers[0]["Authorization"] == "Bearer sk-Secret+123"
    refused(ran, "captions", 69, f"error: {server.url}: no answer", "***")
    for secret in ("sk-s", "pass-word", "someone"):
        assert secret not in ran.err.lower()


def test_secrets_are_in_no_traceback_file_or_plan(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("CORECLI_DEBUG", "1")
    with LanguageServer(lambda body, number: "echo as status" if len(server.headers) == 1 else None) as server:
        words = line(server, "--num", "2", "--tries", "1", "--concurrency", "1", "--out", "o")
        words = (*words, "--url", server.url.replace("//", "//someone:pass-word@"))
        shown = [run(*words), run(*words), run(*words, "--dry-run", "--json"), run(*words, "--dry-run")]
    assert [ran.code for ran in shown] == [69, 0, 0, 0]
    assert "Traceback" in shown[0].err
    texts = [text for ran in shown for text in (ran.out, ran.err)]
    texts += [path.read_text() for path in Path().rglob("*") if path.is_file()]
    assert len(texts) > 10
    for secret in ("sk-secret", "pass-word"):
        assert not [text for text in texts if secret in text]


def test_a_key_that_no_header_holds_is_refused_without_printing_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one\nsk-two")
    ran = run("captions", "--backend", "server", "--model", "m", "--num", "1", "--out", "o")
    refused(ran, "captions", 2, "the key in OPENAI_API_KEY has characters that no header can hold")
    assert "sk-" not in ran.err


def test_redirects_are_refused(run: Run) -> None:
    with LanguageServer() as other, LanguageServer(lambda body, number: "redirect") as server:
        server.elsewhere = f"{other.url}/completions"
        ran = run(*line(server, "--num", "1", "--out", "o"))
    refused(ran, "captions", 69, "no answer: HTTP 307 redirects elsewhere; give the final URL")
    assert (other.headers, len(server.headers)) == ([], 1)


def test_connection_errors_name_the_url_without_user(run: Run) -> None:
    url = "http://someone:pass-word@127.0.0.1:1/v1?token=abc"
    ran = run(
        "captions", "--backend", "server", "--model", "m", "--num", "1", "--tries", "1", "--url", url, "--out", "o"
    )
    refused(ran, "captions", 69, "error: http://127.0.0.1:1/v1: no answer in 1 tries: connection refused")
    assert "pass-word" not in ran.err
    assert "abc" not in ran.err


# Kills


def kill_and_resume(folder: Path, num: int, *, kills: int, least: int) -> None:
    """Kill a run several times after some of its answers; the result must equal that of an undisturbed run."""
    draw = random.Random(0)
    with LanguageServer(lambda body, number: often(body, number) if body["seed"] % 20 == 0 else None) as server:
        server.late_sec = 0.1
        words = line(server, "--num", num, "--concurrency", "32", "--timeout-sec", "5", "--out")
        for _ in range(kills):
            before, wanted = len(server.bodies), draw.randint(least, 2 * least)
            running = Line([*words, folder / "o.jsonl"], folder=folder)
            wait_for(lambda: len(server.bodies) - before >= wanted, running)  # noqa: B023
            running.signal(signal.SIGKILL)
            assert running.end().code == -signal.SIGKILL
            assert not (folder / "o.jsonl").exists()
        ended = Line([*words, folder / "o.jsonl"], folder=folder).end()
        assert (ended.code, ended.out) == (0, f"{folder / 'o.jsonl'}\n"), ended
        requested = len(server.bodies)
        alone = Line([*words, folder / "alone.jsonl"], folder=folder).end()
        assert alone.code == 0, alone
        assert (
            requested - (len(server.bodies) - requested) <= kills * 2 * 32
        )  # only requests in flight at a kill are repeated
    assert (folder / "o.jsonl").read_bytes() == (folder / "alone.jsonl").read_bytes()
    records, report = read(folder / "o.jsonl"), json.loads((folder / "o.jsonl.d/report.json").read_text())
    assert numbers(records) == sorted(set(numbers(records)))
    assert len(records) + sum(report["dropped"].values()) == num
    assert report["retried"].keys() == {"empty", "truncated"}


def test_killed_three_times(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 500, kills=3, least=50)


@pytest.mark.slow
def test_ten_thousand_captions_killed_three_times(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 10_000, kills=3, least=1000)


def test_a_signal_saves_and_the_same_line_resumes(tmp_path: Path) -> None:
    """Even while the server does not answer."""
    with LanguageServer() as server:
        server.fault, server.late_sec = (lambda body, number: "late" if len(server.bodies) >= 20 else None), 30
        words = (*line(server, "--num", 50), "--out", tmp_path / "o.jsonl")
        running = Line(words, folder=tmp_path)
        wait_for(lambda: server.faults["late"] >= 1, running)
        time.sleep(0.2)
        running.signal(signal.SIGTERM)
        ended = running.end(timeout=20)
        assert (ended.code, ended.out) == (75, "")
        assert "stopped, every answer is kept (the same line resumes)" in ended.err
        assert len(read(tmp_path / "o.jsonl.d/answers.jsonl")) == 20
        server.fault = lambda body, number: None
        assert Line(words, folder=tmp_path).end().code == 0
    assert len(read(tmp_path / "o.jsonl")) > 45


# Quality


def test_what_is_not_good_is_retried_dropped_or_warned_of(run: Run) -> None:
    """Ten bare words, and ninety captions planned."""

    def outcome(*more: str) -> tuple[Ran, dict[str, Any]]:
        ran = run("captions", "--num", "90", "--concepts", "digits", "--templates", "1,0,0", "--form", "words", *more)
        return ran, json.loads(ran.out.splitlines()[-1]) if ran.out else {}

    ran, counts = outcome("--out", "kept.jsonl", "--json")
    assert counts["captions"] == 10
    assert counts["dropped"] == {"duplicate": 80}
    assert counts["retried"] == {"duplicate": 240}
    row = {"planned": 90, "kept": 10, "retried": counts["retried"], "dropped": counts["dropped"], "warned": {}}
    assert counts["templates"] == {"c": row}
    assert counts["sources"].keys() == {"digits"}
    assert "kept 10 of 90; retried 240 duplicate; dropped 80 duplicate; " in ran.err
    assert "corecli captions: source digits: kept 10 of 90" in ran.err
    assert outcome("--out", "d.jsonl", "--json", "--on-duplicate", "drop")[1]["retried"] == {}
    every = outcome("--out", "k.jsonl", "--json", "--on-duplicate", "keep")[1]
    assert (every["captions"], every["warned"]) == (90, {"duplicate": 80})
    nothing = outcome("--min-words", "3")[0]
    assert (nothing.code, nothing.out) == (65, "")
    assert "no caption was kept: dropped 90 short" in nothing.err


def test_captions_without_their_concept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoken(body: dict[str, Any], *, flawed: bool) -> tuple[str, str]:
        forgetful = body["seed"] % 3 == 0
        return (f"Nothing to see in {body['seed']}.", "stop") if forgetful else say(body, flawed=False)

    monkeypatch.setattr("language_server.say", spoken)
    kept = {}
    with LanguageServer() as server:
        for way in ("warn", "retry", "drop"):
            more = ("--num", "60", "--retries", "5", "--on-missing", way, "--json", "--out", f"{way}.jsonl")
            kept[way] = json.loads(run(*line(server, *more)).out)
    assert kept["warn"]["captions"] == 60
    assert 58 <= kept["retry"]["captions"] == 60 - sum(kept["retry"]["dropped"].values())
    assert kept["warn"]["warned"] == kept["drop"]["dropped"]
    assert kept["drop"]["captions"] == 60 - kept["drop"]["dropped"]["missing"] < 60
    assert kept["retry"]["retried"]["missing"] >= kept["drop"]["dropped"]["missing"]
    without = [r for r in read("warn.jsonl") if not r["checks"]["concept"]]
    assert len(without) == kept["warn"]["warned"]["missing"]
    assert all(r["checks"]["concept"] for r in read("retry.jsonl"))


def test_a_changed_or_foreign_target_is_not_touched(run: Run) -> None:
    Path("o.jsonl").write_text("mine\n")
    ran = run("captions", "--num", "5", "--out", "o.jsonl", "-q")
    assert (ran.code, Path("o.jsonl").read_text()) == (73, "mine\n")
    assert "was not made by this command line (--force replaces it)" in ran.err
    assert run("captions", "--num", "5", "--out", "o.jsonl", "-q", "--force").code == 0
    with open("o.jsonl", "a") as file:
        file.write("\n")
    assert "was changed after it was made" in run("captions", "--num", "5", "--out", "o.jsonl").err


def test_lists_and_examples_of_ones_own(run: Run) -> None:
    Path("c.txt").write_text("okapi\nquagga\nokapi\n")
    incomplete = run("captions", "--concepts", "c.txt", "--num", "5", "--dry-run")
    refused(
        incomplete,
        "captions",
        65,
        "everyday: 2 concepts have no backgrounds: okapi, quagga (add them to the file of --backgrounds",
    )
    Path("bg.json").write_text('{"okapi": ["forest"]}')
    incomplete = run("captions", "--concepts", "c.txt", "--backgrounds", "bg.json")
    refused(
        incomplete, "captions", 65, "bg.json: 1 concepts have no backgrounds: quagga", "or use --ask-backgrounds or"
    )
    Path("e.csv").write_text(
        "pool,concept,caption\n" + "".join(f"object,emu,An emu of number {i}.\n" for i in range(3))
    )
    own = ("captions", "--concepts", "c.txt", "--examples", "e.csv", "--num", "5", "--out", "o.jsonl")
    assert (
        "--examples: too few examples of the pool background (every pool in use needs 3"
        in run(*own, "--backgrounds", "places").err
    )
    ran = run(*own, "--templates", "1,0,0")
    assert "c.txt: merged 1 concepts that are listed more than once: okapi" in ran.err
    assert {name for r in read("o.jsonl") for name in r["examples"]} == {"object-00", "object-01", "object-02"}
    Path("c.txt").write_text("\n")
    empty = "c.txt: the file has no concepts (write one concept per line, or CSV with the column concept)"
    refused(run("captions", "--concepts", "c.txt"), "captions", 65, empty)
    refused(run("captions", "--concepts", "d.txt"), "captions", 66, "d.txt: no such file", "one of digits, everyday")
    refused(run("captions", "--concepts", ""), "captions", 66, "no such file", "one of digits, everyday")


# Backgrounds that are requested


def test_backgrounds_are_requested_once_and_kept(run: Run) -> None:
    Path("c.txt").write_text("okapi\nquagga\nibis\n")
    Path("bg.json").write_text('{"ibis": ["lake"]}')
    with LanguageServer() as server:
        more = ("--concepts", "c.txt", "--backgrounds", "bg.json", "--ask-backgrounds", "--num", "20")
        assert run(*line(server, *more, "--out", "o.jsonl")).code == 0
        requested = [body for body in server.bodies if body["prompt"].startswith("List ten")]
        assert sorted(map(words_of, requested)) == ["okapi", "quagga"]
        found = ["forest", "the old town", "shore"]
        assert json.loads(Path("bg.json").read_text()) == {"ibis": ["lake"], "okapi": found, "quagga": found}
        assert not Path("bg.json.d").exists()
        before = len(server.bodies)
        assert run(*line(server, *more, "--out", "o.jsonl")).code == 0
        assert len(server.bodies) == before
    assert {r["second"] for r in read("o.jsonl") if r["template"] == "c+background"} <= {"lake", *found}


# Batches


def answered(path: str, out: str, *, failing: int = 0) -> list[dict[str, Any]]:
    """Write what an offline run returns for a file of requests; the first ones fail."""
    requests = read(path)
    lines = []
    for number, request in enumerate(requests):
        text, reason = say(request["body"])
        response = {"status_code": 200, "body": {"choices": [{"text": text, "finish_reason": reason}]}}
        failed = {"response": None, "error": {"message": "out of memory"}}
        whole = failed if number < failing else {"response": response, "error": None}
        lines.append(json.dumps({"id": f"b{number}", "custom_id": request["custom_id"], **whole}))
    Path(out).write_text("\n".join(reversed(lines)) + "\n")  # in any order
    return requests


def test_a_batch_ends_as_a_server_would(run: Run) -> None:
    batch = ("captions", "--backend", "batch", "--model", "m", "--num", "60", "-q", "--out", "o.jsonl")
    ran = run(*batch, "--write-requests", "r0.jsonl")
    assert (ran.code, ran.out) == (0, "r0.jsonl\n")
    requests = answered("r0.jsonl", "a0.jsonl", failing=5)
    assert len(requests) == 60
    assert requests[0].keys() == {"custom_id", "method", "url", "body"}
    assert requests[0]["url"] == "/v1/completions"
    incomplete = run(*batch, "--ingest", "a0.jsonl")
    assert incomplete.code == 65
    assert "5 captions have no answer yet (write their requests with --write-requests FILE" in incomplete.err
    rounds = 0
    while not Path("o.jsonl").exists():
        ran = run(*batch, "--write-requests", f"r{rounds + 1}.jsonl", "--ingest", f"a{rounds}.jsonl")
        assert ran.code == 0, ran.err
        rounds += 1
        if ran.out != "o.jsonl\n":
            answered(f"r{rounds}.jsonl", f"a{rounds}.jsonl")
    assert 2 <= rounds <= 6
    with LanguageServer() as server:
        assert run(*line(server, "--num", "60", "--out", "s.jsonl")).code == 0
    assert [{**r, "backend": "server"} for r in read("o.jsonl")] == read("s.jsonl")


def test_backgrounds_by_a_batch_come_first(run: Run) -> None:
    Path("c.txt").write_text("okapi\nquagga\n")
    batch = ("captions", "--backend", "batch", "--model", "m", "--num", "9", "-q", "--out", "o.jsonl")
    batch += ("--concepts", "c.txt", "--backgrounds", "bg.json", "--ask-backgrounds", "--retries", "9")
    assert run(*batch, "--write-requests", "b.jsonl").out == "b.jsonl\n"
    assert [words_of(request["body"]) for request in answered("b.jsonl", "ab.jsonl")] == ["okapi", "quagga"]
    assert not Path("bg.json").exists()
    assert run(*batch, "--ingest", "ab.jsonl", "--write-requests", "r.jsonl").out == "r.jsonl\n"
    assert json.loads(Path("bg.json").read_text()).keys() == {"okapi", "quagga"}
    assert len(answered("r.jsonl", "a.jsonl")) == 9
    ran = run(*batch, "--ingest", "a.jsonl", "--write-requests", "again.jsonl")
    assert (ran.code, ran.out) in ((0, "o.jsonl\n"), (0, "again.jsonl\n"))


def test_waits_between_tries_grow_and_spread() -> None:
    """Doubled each time, times a factor that is a function of the seed, the caption and the try."""
    request: Any = SimpleNamespace(index=3, attempt=0)

    def waits(seed: int) -> list[float]:
        settings: Any = SimpleNamespace(url="http://a/v1", key_env="NO_KEY", seed=seed)
        return [server_module.Server(settings)._back_off(request, number) for number in range(9)]

    assert waits(0) == waits(0) != waits(1)
    for number, wait in enumerate(waits(0)):
        assert 0.5 <= wait / min(0.5 * 2**number, 60) < 1.5


def test_answers_that_belong_to_something_else(run: Run) -> None:
    batch = ("captions", "--backend", "batch", "--model", "m", "--num", "5", "-q", "--out", "o.jsonl")
    assert run(*batch, "--write-requests", "r.jsonl").code == 0
    answered("r.jsonl", "a.jsonl")
    ran = run(*batch[:-2], "--seed", "1", "--out", "p.jsonl", "--ingest", "a.jsonl")
    assert (ran.code, "a.jsonl: line 1 belongs to another run" in ran.err) == (65, True)
    Path("a.jsonl").write_text("{}\n")
    ran = run(*batch, "--ingest", "a.jsonl")
    assert (ran.code, "a.jsonl: line 1 is not an answer of a batch" in ran.err) == (65, True)
    assert run(*batch, "--ingest", "nowhere.jsonl").code == 66


# Local models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random language model of one layer that reads and writes bytes."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("model")
    write_llama(folder)
    return folder


def test_a_local_model_writes_what_its_seeds_say(run: Run, model: Path) -> None:
    words = ("captions", "--backend", "transformers", "--model", model, "--num", "6", "--min-words", "1", "-q")
    words += ("--retries", "9", "--max-tokens", "40", "--out")
    ran = run(*words, "a.jsonl", "--batch-size", "6")
    assert (ran.code, ran.err) == (0, "")
    assert run(*words, "b.jsonl", "--batch-size", "1").code == 0
    records = read("a.jsonl")
    assert records
    assert [r["raw"] for r in records] == [r["raw"] for r in read("b.jsonl")]
    assert all("\n" not in r["raw"] and r["finish_reason"] == "stop" for r in records)
    assert records[0]["params"]["temperature"] == 0.8
    assert run(*words, "c.jsonl", "--api", "chat", "--on-missing", "warn", "--temperature", "0.2").code in (0, 65)


def test_greedy_decoding_is_the_most_likely_word(model: Path) -> None:
    """Against a loop that takes the largest logit each time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from corecli.captions.parts.backend import Request, Settings
    from corecli.captions.parts.prompts import Prompt
    from corecli.captions.transformers import Local

    decoding = {"temperature": 0, "top_p": 1, "top_k": 0, "repetition_penalty": 1, "max_tokens": 8}
    settings: Any = dict.fromkeys(Settings.__dataclass_fields__)
    settings |= {"api": "completions", "model": str(model), **decoding, "batch_size": 2, "device": "cpu"}
    prompts = [Prompt(instruction="Write.", examples=(), words=words) for words in ("dog", "water lily, in")]
    requests = [Request(index=i, attempt=0, seed=i, prompt=prompt) for i, prompt in enumerate(prompts)]
    answers = [answer.raw for _, answer in Local(Settings(**{**settings, "precision": "fp32"})).answers(iter(requests))]
    net, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = tokenizer(prompt.text(), return_tensors="pt").input_ids
        start = tokens.shape[1]
        for _ in range(8):
            tokens = torch.cat([tokens, net(tokens).logits[:, -1:].argmax(-1)], dim=1)
        assert answer == tokenizer.decode(tokens[0, start:]).split("\n")[0].split("</s>")[0]


def test_noise_on_logits_samples_their_softmax() -> None:
    import torch
    from scipy import stats

    from corecli.captions.transformers import _Gumbel

    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, -float("inf")])
    drawn = _Gumbel(list(range(4000)))(torch.zeros(0), logits.expand(4000, -1)).argmax(-1)
    counts = torch.bincount(drawn, minlength=5)
    assert counts[4] == 0
    assert stats.chisquare(counts[:4], logits[:4].double().softmax(0) * 4000).pvalue > 1e-3


def add_a_layer(folder: Path) -> None:
    """Add a layer to the config; its weights are in no file."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))


@pytest.mark.parametrize(
    ("file", "message"),
    [("config.json", "config.json is missing"), ("tokenizer.json", "the tokenizer is missing"),
     ("model.safetensors", "the weights model.safetensors are missing")],
)  # fmt: skip
def test_a_folder_of_a_model_that_is_not_whole(run: Run, model: Path, file: str, message: str) -> None:
    shutil.copytree(model, "model")
    (Path("model") / file).unlink()
    for more in ((), ("--dry-run",)):
        ran = run("captions", "--backend", "transformers", "--model", "model", "--num", "1", *more)
        refused(ran, "captions", 65, "model: ", message, "(copy or download the whole folder)")
    Path("model.txt").write_text("")
    for name in ("model.txt", "model.tx"):
        ran = run("captions", "--backend", "transformers", "--model", name, "--num", "1")
        refused(ran, "captions", 66, f"{name}: no such folder")
    refused(run("captions", "--backend", "transformers", "--model", ""), "captions", 2, "needs --model")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: os.truncate(folder / "model.safetensors", 300), "cannot be loaded: "),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot be loaded: "),
        (add_a_layer, "cannot be loaded: 9 weights are missing: model.layers.1."),
    ],
    ids=["weights", "tokenizer", "layer"],
)
def test_a_folder_of_a_model_that_is_damaged(run: Run, model: Path, damage: Any, message: str) -> None:
    """There is one line of error, and no output of the library."""
    shutil.copytree(model, "model")
    damage(Path("model"))
    ran = run("captions", "--backend", "transformers", "--model", "model", "--num", "1", "-q")
    refused(ran, "captions", 65, f"model: {message}", "(copy or download the whole folder)")
