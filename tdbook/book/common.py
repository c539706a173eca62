"""What every notebook does: open the tokens, measure a model, let it write, name what it made.

`this` is the run (`runs.running.Run`) of the notebook that calls.
"""

import contextlib
import tempfile
from pathlib import Path

from tdbook.analysis import intervals
from tdbook.corpus import token_files
from tdbook.export import cards, inference, model_tokenizer
from tdbook.runs import notebooks, units
from tdbook.runs.running import Run
from tdbook.runs.sweeps import Folder
from tdbook.workflow import plan
from tdlib import data, evaluate, files, generate
from tdlib.hard_set import known_mean
from tdlib.model import Llama


def folder_of(this: Run) -> Folder:
    """What the run folder holds, read once for each run that asks."""
    if "folder" not in vars(this):
        this.folder = Folder(this.out, this.run, this.parameters.get("sweeps", ""))
    return this.folder


def row_of(this: Run, name: str) -> dict:
    """The metrics of a model, from this run or the one that made it."""
    return this.models[name] if name in this.models else folder_of(this).metrics(name)


def open_tokens(this: Run) -> data.Tokens:
    """The folder's tokens. Prints an estimate of what this run will cost, and records it."""
    tokens = token_files.open_tokens(this.path("tokens"))
    estimate = this.once("estimate", plan.estimate, this.parameters, this.out, this.device)
    span = units.duration(estimate["seconds_low"], estimate["seconds_high"])
    memory, flop = estimate["peak_memory_mib"], estimate["flop"]
    print(f"Estimated: {span}, {memory:,.0f} MiB at most, {flop:.2g} FLOP.")
    return tokens


def save(net: Llama, folder: Path, tokens: data.Tokens, like: Path) -> None:
    """A folder to release: the model, and a tokenizer that transformers loads where it can; a chat
    model, where its teacher `like` is one."""
    with tempfile.TemporaryDirectory() as place:
        how = dict(context=net.config.context, like=like)
        net.save(folder, model_tokenizer.tokenizer_files(tokens.tokenizer, Path(place), **how))


def measure(this: Run, name: str, net: Llama, tokens: data.Tokens, teacher: Llama) -> dict:
    """Every metric of one model on the validation split, recorded; arrays go to scores/val."""

    def evaluated() -> dict:
        fixed = this.parameters["fixed_windows"]
        how = dict(fixed=fixed, device=this.device, progress=this.progress)
        found = evaluate.evaluate(net, tokens.val, teacher, **how)
        found.save(this.path("scores", "val"), name)
        parameters = sum(p.numel() for p in net.parameters())
        sizes = (tokens.bytes_per_token(unit=unit) for unit in ("bytes", "characters"))
        return {"parameters": parameters} | found.row(*sizes)

    row = this.models[name] = this.once(f"row of {name}", evaluated)
    if this.path("models", name).is_dir():  # an adapter has none
        nets = {name: net} | ({} if this.notebook == notebooks.TEACHER else {"teacher": teacher})
        this.once(f"card of {name}", write_card, this, name, tokens, row, nets)
    return row


def write_card(this: Run, name: str, tokens: data.Tokens, row: dict, nets: dict) -> None:
    """README.md of a model, beside its weights; the owner's own card stays. `nets` write in it."""
    record, rows, folder = this.provenance(), {name: row}, this.path("models", name)
    if this.notebook != notebooks.TEACHER:
        rows["teacher"] = row_of(this, this.parameters["teacher"])
    for run in folder_of(this).records.values():  # as large, from the text alone
        made = run["models"] if run["parameters"].get("ce_weight") == 1 else {}
        same = [x for n, x in made.items() if n != name and x["parameters"] == row["parameters"]]
        rows |= {"scratch": same[0]} if same else {}
    for run in folder_of(this).of(notebooks.LORA):  # which tells of its merged model too
        record = run if f"{run['parameters']['adapter']}-merged" == name else record
    texts = {own: samples(net, tokens, count=1) for own, net in nets.items()}
    card = cards.card(folder, tokens, rows, record, texts)
    with contextlib.suppress(FileExistsError):
        files.own(folder / "README.md")
        files.write_whole(folder / "README.md", card)
        files.mark(folder, "README.md")


def file_costs(folder: Path, paths: dict, tokens: data.Tokens, count: int, teacher=None) -> list:
    """A row a format of a model, two of PyTorch and those of its files (format → path), on `count`
    windows of validation text: the means of inference.qualities, and of each its change against the
    model in float32, which comes first, with its 95 % interval over documents, paired."""
    rows_W = evaluate.fixed_rows(tokens.val, count)
    found = inference.qualities(folder, paths, tokens.val, rows_W, teacher)
    document_W, own = token_files.origins(tokens, "val")[0][rows_W], found[inference.FLOAT]
    rows = []
    for name, each in found.items():
        row = {"format": name, "windows": len(rows_W)} | {n: known_mean(x) for n, x in each.items()}
        changes = {n: intervals.change(x, own[n], document_W) for n, x in each.items()}
        rows.append(row | {"changes": changes})
    return rows


def samples(net: Llama, tokens: data.Tokens, count: int = 3, length: int = 0) -> list[str]:
    """Texts after the beginnings of validation windows, the same for every model, half a window
    long. Drawn by a generator of their own: training draws the same numbers with and without."""
    t, texts = tokens.context, []
    for i, window in enumerate(w for w in (1, 5, 9)[:count] if w < len(tokens.val)):
        ids = tokens.val.ids[window * t :][:8].tolist()
        new = generate.generate(net, ids, length or t // 2, temperature=0.8, seed=i)
        prompt, whole = (tokens.tokenizer.decode(x) for x in (ids, [*ids, *new]))
        texts.append(f"{prompt} ▸ {whole[len(prompt) :].strip()}")
    return texts
