"""Weights & Biases, where a run names a project: the rows of a training as they stand in logs/.

Upstream's names: train/loss, train/lr, train/tokens_per_sec, val/loss, val/samples, …, by step.
Where it goes, and whether anything is sent, is wandb's own affair (`wandb login`, WANDB_MODE,
WANDB_ENTITY). What fails there costs a training nothing. Imports wandb only when asked.
"""

import contextlib
import html
import secrets
from collections.abc import Generator, Iterator
from pathlib import Path

from tdlib.files import write_whole


@contextlib.contextmanager
def logging(project: str, out: Path, name: str, folder: Path, parameters: dict) -> Iterator:
    """Gives a function that takes rows. The run's id lies beside the checkpoint, so a training that
    goes on from there goes on in W&B, and one that starts over is another run."""
    about = dict(project=project, dir=out, name=name, group=out.name, config=parameters)
    sender = _sender(about, folder / "wandb.id")
    next(sender)
    try:
        yield sender.send
    finally:
        sender.send(None)


def _sender(about: dict, run_id: Path) -> Generator[None, dict | None, None]:
    """Is sent rows, and None after the last. Without a project they go nowhere."""
    try:
        if about["project"]:
            import wandb

            if not run_id.exists():
                write_whole(run_id, secrets.token_hex(8))
            quiet = wandb.Settings(console="off", silent=True, save_code=False, disable_git=True)
            run = wandb.init(**about, id=run_id.read_text(), resume="allow", settings=quiet)
            while (row := (yield)) is not None:
                if texts := row.get("val/samples"):
                    text = html.escape("\n".join(texts))
                    row = row | {"val/samples": wandb.Html(f"<pre>{text}")}
                run.log({n: value for n, value in row.items() if n != "step"}, step=row["step"])
            run.finish()
    except Exception as error:  # any: wandb's share no base, and none may end a training
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        line = f"W&B: {about['name']} is not logged there: {why}; logs/ has every row"
        print(f"{line}, the training goes on", flush=True)
    while True:
        yield
