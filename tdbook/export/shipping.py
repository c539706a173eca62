"""exports/<model>/: a model in every format, each run in llama.cpp and held against PyTorch, and a
card with what was measured."""

import shutil
from importlib import metadata
from pathlib import Path

import gguf
import yaml
from tabulate import tabulate

from tdbook.corpus import token_files
from tdbook.corpus.hugging_face import CONFIGS
from tdbook.export import cards, gguf_check, gguf_file, model_tokenizer
from tdbook.export.gguf_file import QUANTIZATIONS, Source
from tdbook.export.gguf_tokenizer import SCRIPT, released_name
from tdbook.runs.parameters import ROOT, nearest
from tdlib import data
from tdlib.files import whole_folder
from tdlib.shapes import read_config

WINDOWS = 32  # on which what a file costs is measured
FRONT = ("license", "license_name", "license_link", "base_model", "datasets")
FORMS = {"likeliest": ".2%", "mean": ".2g", "largest": ".2g", "loss": ".4f", "kl": ".2g"}


def export(pairs: dict[str, str]) -> None:
    """MODEL=folder [OUT= TOKENS=] of the command line."""
    if not pairs.get("MODEL"):
        raise ValueError("give a model folder: make export MODEL=outputs/tiny/models/50m")
    folder = find(pairs["MODEL"])
    tokens = _tokens(folder, pairs.get("TOKENS", ""))
    out = Path(pairs.get("OUT") or ROOT / "exports") / folder.resolve().name
    print(f"{folder}: each format is written and run in llama.cpp", flush=True)
    rows = ship(folder, out, tokens)
    takes = f"token ids alone; {SCRIPT} encodes" if (out / SCRIPT).is_file() else "raw text"
    print(tabulate(_in_words(rows), headers="keys", disable_numparse=True))
    print(f"{out}: checked in llama.cpp {metadata.version('xllamacpp')}; its files take {takes}")


def find(given: str) -> Path:
    """What MODEL= means: a model folder, or a .gguf file. FileNotFoundError names the nearest that
    is there."""
    path = Path(given).expanduser()
    path = path if path.is_absolute() or path.exists() else ROOT / path
    if (path if path.suffix == ".gguf" else path / "config.json").is_file():
        return path
    places = [path.parent, path.parent.parent, *ROOT.glob("exports/*")]
    places += [*ROOT.glob("outputs/*/models"), *ROOT.glob("outputs/*/exports/*")]
    others = {file.parent for place in places for file in place.glob("*/config.json")}
    others |= {file for place in places for file in place.glob("*.gguf")}
    names = sorted(str(p.relative_to(ROOT) if p.is_relative_to(ROOT) else p) for p in others)
    alike = next((f"did you mean {name}?" for name in names if Path(name).name == path.name), "")
    alike = nearest(given, names, alike or f"there are {', '.join(names) or 'none yet'}", 0.5)
    raise FileNotFoundError(f"MODEL={given} is no model folder and no .gguf file: {alike}")


def _tokens(folder: Path, given: str) -> data.Tokens | None:
    """TOKENS=, or those of the run folder that a model lies in; None where they are another's."""
    config, path = read_config(folder), Path(given or folder.resolve().parents[1] / "tokens")
    if not given and not (path / "meta.json").is_file():
        return None
    tokens = token_files.open_tokens(path)
    fit = tokens.vocab_size == config.vocab_size and tokens.context <= config.context
    if given and not fit:
        theirs = f"a vocabulary of {tokens.vocab_size:,} and windows of {tokens.context}"
        ours = f"{config.vocab_size:,} and {config.context}"
        raise ValueError(f"{path} has {theirs}, the model {ours}: give its own tokens")
    return tokens if fit else None


def ship(folder: str | Path, out: str | Path, tokens: data.Tokens | None = None) -> list[dict]:
    """Makes `out`, whole or not at all: the files, the tokenizer's and a card; with `tokens`, what
    each file costs too. A row a file. ValueError: F16 is another model than the folder's."""
    folder, out = Path(folder), Path(out)
    model_place, place = folder.resolve(), out.resolve()
    if model_place.is_relative_to(place) or (place.exists() and place.is_relative_to(model_place)):
        raise ValueError(f"{out} is, or holds, the model itself ({folder}): give another OUT=")
    model = gguf_file.read(folder)
    gguf_file.warn(model, str(folder), "Q4_0")
    prompts = gguf_check.prompts(model.config, tokens)
    with whole_folder(out) as beside:
        rows = [_write_checked(model, beside, name, prompts) for name in QUANTIZATIONS]
        if tokens:
            files = {row["format"]: beside / row["file"] for row in rows}
            _, *costs = gguf_check.costs(folder, files, tokens.val, WINDOWS)
            for row, cost in zip(rows, costs, strict=True):
                row |= {"loss": cost["loss"], "kl": cost["kl"]}
        tokenizers = model_tokenizer.equals(folder, model.vocabulary.tokenizer)
        for path in (*(t.path for t in tokenizers), *(folder / name for name in CONFIGS)):
            if path.is_file():
                shutil.copy(path, beside)
        card = _card(model, rows, prompts, WINDOWS if tokens else 0)
        (beside / "README.md").write_text(card, encoding="utf8")
    return rows


def _write_checked(model: Source, place: Path, quantization: str, prompts: list) -> dict:
    """The row of a file. F16 alone must be the model itself; the others lose what they lose."""
    exact, path = quantization == "F16", place / model.file_name(quantization)
    gguf_file.write(model, path, quantization)
    other = exact and gguf_check.other_weight(model.folder, path)
    row = {"format": quantization, "file": path.name, "bytes": path.stat().st_size}
    row |= gguf_check.check(model.folder, path, prompts if exact else prompts[::4])
    if other or (exact and row["likeliest"] < 0.99 and row["largest"] > 0.02):
        share = f"agrees with {model.folder} on {row['likeliest']:.1%} of next tokens alone"
        fault = f"has not the {other} that {model.folder} holds" if other else share
        raise ValueError(f"{path.name} {fault}: nothing is shipped, report it")
    return row


def _in_words(rows: list[dict]) -> list[dict[str, str]]:
    rows = [row | {"bytes": f"{row['bytes'] / 1e6:.1f} MB"} for row in rows]
    return [{name: format(x, FORMS.get(name, "")) for name, x in row.items()} for row in rows]


def _card(model: Source, rows: list[dict], prompts: list[list[int]], windows: int) -> str:
    parts, tokenizer = cards.templates("export.yaml"), model.vocabulary.tokenizer
    front = {"language": "te", "pipeline_tag": "text-generation", "tags": ["telugu", "gguf"]}
    given = gguf.Metadata.load_model_card(model.folder)
    front |= {name: given[name] for name in FRONT if name in given}
    table = tabulate(_in_words(rows), headers="keys", tablefmt="github", disable_numparse=True)
    kinds = {q: gguf_file.kinds(model, q) for q in QUANTIZATIONS}
    front = yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()
    values = dict(front=front, model=model, files=table, prompts=prompts, windows=windows)
    values |= dict(coarse=gguf_file.coarse(model, "Q4_0"), best=rows[2]["file"], script=SCRIPT)
    values |= dict(finer=kinds["Q4_0_DEFAULT"] != kinds["Q4_0"])
    values |= dict(same=[q for q in QUANTIZATIONS if kinds[q] == kinds["Q4_0"]])
    values |= dict(lines=len(model_tokenizer.trial_lines(tokenizer)))
    return cards.fill(parts["card"], values | parts["ways"][released_name(tokenizer)])
