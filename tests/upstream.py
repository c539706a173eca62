"""The owner's files as the upstream repository leaves them, written from FACTS 1 without tdlib:
a tokenizer.json with @@, train.bin, val.bin and meta.json, and a checkpoint."""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

ENDINGS = ("లలో", "లకు", "లను", "లో", "కు", "ను", "లు", "గా", "తో", "ని", "పై", "వారు")
RUNS = re.compile(r"[\u0c00-\u0c7f\u200c\u200d]+|[A-Za-z]+|\d+|.")
# upstream's names of a layer's weights → ours, but for Q, K and V
NAMES = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm"}
NAMES |= {"attn.c_proj": "self_attn.o_proj", "mlp.w_gate": "mlp.gate_proj"}
NAMES |= {"mlp.w_up": "mlp.up_proj", "mlp.w_down": "mlp.down_proj"}


def segmented(line: str) -> list[str]:
    """`దేశాలలో 2024లో.` → దేశా@@ లలో 2024@@ లో@@ . as a Morfessor model might."""
    tokens = []
    for word in line.split():
        parts = []
        for run in RUNS.findall(word):
            ending = next((e for e in ENDINGS if run.endswith(e) and len(run) > len(e) + 1), "")
            parts += [run[: len(run) - len(ending)], ending] if ending else [run]
        tokens += [f"{part}@@" for part in parts[:-1]] + parts[-1:]
    return tokens


def table(lines: list[str], size: int) -> dict[str, int]:
    """Specials, every character joined and not, then the most frequent tokens."""
    counts = Counter(token for line in lines for token in segmented(line))
    characters = sorted({c for line in lines for c in line if not c.isspace()})
    names = ["<pad>", "<unk>", "<bos>", "<eos>"]
    names += [c + joint for c in characters for joint in ("", "@@")]
    names += [token for token, _ in counts.most_common() if token not in set(names)]
    return {name: i for i, name in enumerate(names[:size])}


def encoded(line: str, ids: dict[str, int]) -> list[int]:
    found = []
    for token in segmented(line):
        joint = "@@" if token.endswith("@@") else ""
        bare = token.removesuffix("@@")
        parts = [token] if token in ids else [c + "@@" for c in bare[:-1]] + [bare[-1] + joint]
        found += [ids[part] for part in parts]
    return found


def write(folder: Path, lines: list[str], size: int, val_share: float = 0.1) -> dict[str, int]:
    """data/ and tokenizer.json in a folder; returns the table of pieces."""
    ids = table(lines, size)
    stream = [i for line in lines for i in [*encoded(line, ids), 3]]
    cut = round(len(stream) * (1 - val_share))  # validation is the tail, wherever it falls
    parts = {"train": stream[:cut], "val": stream[cut:]}
    (folder / "data").mkdir(parents=True)
    for name, part in parts.items():
        np.array(part, "<u4").tofile(folder / "data" / f"{name}.bin")
    meta = {"vocab_size": len(ids), "block_size": 2048, "dtype": "uint32", "unk_rate": 0.0}
    meta |= {f"{name}_tokens": len(part) for name, part in parts.items()}
    words = sum(len(segmented(line)) + 1 for line in lines)  # fewer, where a word fell to pieces
    (folder / "data" / "meta.json").write_text(json.dumps(meta | {"total_tokens": words}))
    special = {"<pad>": 0, "<unk>": 1, "<bos>": 2, "<eos>": 3}
    content = {"version": "2.0", "type": "morfessor_bpe_telugu", "vocab_size": len(ids)}
    content |= {"separator": "@@", "special_tokens": special, "token_to_id": ids, "bpe_merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), "utf8")
    return ids


def questions(folder: Path, size: int, context: int) -> None:
    """Makes of token files those of instruction tuning: four lines an example, of which the last is
    learnt, so that some windows have no target."""
    for path in [*folder.glob("*.bin")]:
        ids = np.fromfile(path, "<u4")
        line_S = np.cumsum(ids == 3) - (ids == 3)
        (line_S % 4 == 3).astype("u1").tofile(path.with_suffix(".mask.bin"))
        starts = [*np.flatnonzero(np.diff(line_S // 4, prepend=-1)).tolist(), len(ids)]
        rows = [{"start": start, "length": end - start} for start, end in pairwise(starts)]
        path.with_suffix(".offsets.json").write_text(json.dumps(rows))
    meta = {"vocab_size_original": size - 4, "vocab_size_with_special": size}
    (folder / "meta.json").write_text(json.dumps(meta | {"max_seq_len": context}))


def state_of(model) -> dict[str, torch.Tensor]:
    """Our weights by upstream's names, RoPE's neighbours paired, row by row: Q, K and V fused, or
    with QK norms as in the second version."""
    state, ours, c = {}, model.state_dict(), model.config
    for i in range(c.layers):
        at, parts, half = f"transformer.h.{i}", {}, c.head_dim // 2
        for name in ("q_proj", "k_proj", "v_proj", *(("q_norm", "k_norm") if c.qk_norm else ())):
            weight = ours[f"layers.{i}.self_attn.{name}.weight"]
            if name != "v_proj":
                other = torch.empty_like(weight)
                for head in range(0, len(weight), 2 * half):
                    for j in range(half):
                        other[head + 2 * j] = weight[head + j]
                        other[head + 2 * j + 1] = weight[head + half + j]
                weight = other
            parts[f"{at}.attn.{name}.weight"] = weight
        state |= parts if c.qk_norm else {f"{at}.attn.c_attn.weight": torch.cat([*parts.values()])}
        for theirs, mine in NAMES.items():
            state[f"{at}.{theirs}.weight"] = ours[f"layers.{i}.{mine}.weight"]
    state["transformer.ln_f.weight"] = ours["norm.weight"]
    return state | {"transformer.wte.weight": ours["embed_tokens.weight"]}


def checkpoint(model) -> dict:
    """One of our models as upstream's best.pt holds it, its head stored twice."""
    state, c = state_of(model), model.config
    state["lm_head.weight"] = state["transformer.wte.weight"]
    shape = {"block_size": c.context, "vocab_size": c.vocab_size, "n_layer": c.layers}
    shape |= {"n_head": c.heads, "n_embd": c.dim, "dropout": 0.1, "bias": False}
    shape |= dict(n_kv_head=c.kv_heads, use_qk_norm=True, tie_embeddings=True) if c.qk_norm else {}
    made = {"model": {f"_orig_mod.{name}": weight for name, weight in state.items()}}
    made |= {"optimizer": None, "config": shape | {"rope_theta": 10000.0}}
    return made | {"architecture": "llama", "step": 45000, "val_loss": None}
