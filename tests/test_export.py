"""GGUF files as llama.cpp, gguf's own code and upstream's layout see them."""

import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import gguf
import morfessor
import numpy as np
import pytest
import sentencepiece
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import processors

import tdbook.corpus.tokenizer
import tdbook.corpus.tokenizer_files
from tdbook.export import cards, chat, gguf_check, gguf_file, gguf_tokenizer, llama_cpp
from tdbook.runs.estimates import describe
from tdlib import data, hard_set, teacher
from tdlib.files import MARK
from tdlib.model import SHAPES, Llama, LlamaConfig
from tests import upstream
from tests.test_release import PLAIN, hugging_face, trained

BPE = PLAIN | dict(model_type="bpe", byte_fallback=True)
SHAPE = dict(layers=2, heads=4, dim=64, mlp_dim=96, context=48)


def saved(folder: Path, tokenizer: Path, vocab_size: int, seed: int = 0, **change) -> Llama:
    """A model whose weights are so large that places of tokens matter, with a tokenizer's file."""
    torch.manual_seed(seed)
    model = Llama(LlamaConfig(vocab_size, **SHAPE | change)).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.uniform_(0.5, 1.5)
        else:
            weight.normal_(0, (1.5 if "_proj" in name else 0.5) / weight.shape[1] ** 0.5)
    model.save(folder, {tokenizer.name: tokenizer})
    return model


@pytest.fixture(scope="module")
def made(tokenizer, tmp_path_factory) -> tuple[Path, Llama]:
    folder = tmp_path_factory.mktemp("models") / "50m"
    return folder, saved(folder, tokenizer.path, tokenizer.size)


@pytest.fixture(scope="module")
def files(made, tmp_path_factory) -> dict[str, Path]:
    """Every format of that model."""
    out = tmp_path_factory.mktemp("gguf")
    paths = {q: out / f"50m-{q}.gguf" for q in gguf_file.QUANTIZATIONS}
    for quantization, path in paths.items():
        gguf_file.to_gguf(made[0], path, quantization)
    return paths


# --- weights


@pytest.mark.parametrize(
    "change",
    [
        {}, {"kv_heads": 1, "tied": False, "head_dim": 24},
        {"kv_heads": 2, "mlp_dim": 1408, "rope_theta": 500000.0, "norm_eps": 1e-3},
        {"dim": 640, "heads": 10, "layers": 1},
    ],
    ids=str,
)  # fmt: skip
def test_f16_in_llama_cpp_is_the_model_in_pytorch_on_200_prompts(change, tokenizer, tmp_path):
    model = saved(tmp_path / "m", tokenizer.path, tokenizer.size, **change)
    path = tmp_path / "m-F16.gguf"
    gguf_file.to_gguf(tmp_path / "m", path, "F16")
    prompts = gguf_check.prompts(model.config, None)
    assert len({*map(len, prompts)}) > 25 and max(map(len, prompts)) == 48
    found = gguf_check.check(tmp_path / "m", path, prompts)
    assert found.agreement >= 0.99 and found.largest <= 0.02 and found.prompts == 200


def test_rope_in_the_other_order_is_seen_and_not_shipped(made, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "neighbours", lambda weight_OD, heads: weight_OD)
    path = tmp_path / "wrong.gguf"
    gguf_file.to_gguf(made[0], path, "F16")
    found = gguf_check.check(made[0], path, gguf_check.prompts(made[1].config, None, 20))
    assert found.agreement < 0.9 and found.largest > 1
    with pytest.raises(ValueError, match=r"agrees with .* nothing is shipped"):
        gguf_file.ship(made[0], tmp_path / "out" / "50m")
    assert not any((tmp_path / "out").iterdir())


def test_q_and_k_lie_in_upstreams_own_order(made, files):
    state = upstream.state_of(made[1])
    tensors = {t.name: t for t in gguf.GGUFReader(files["F16"]).tensors}
    for i in range(2):
        fused = state[f"transformer.h.{i}.attn.c_attn.weight"].half().numpy()
        for name, rows in zip("qkv", np.split(fused, 3), strict=True):
            assert (tensors[f"blk.{i}.attn_{name}.weight"].data == rows).all()


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0"])
def test_blocks_are_those_of_ggufs_own_reference(quantization, made, files):
    tensors = {t.name: t for t in gguf.GGUFReader(files[quantization]).tensors}
    ours = made[1].state_dict()
    kind = gguf.GGMLQuantizationType[quantization]
    for theirs, name in (
        ("token_embd", "embed_tokens"), ("blk.0.ffn_down", "layers.0.mlp.down_proj"),
        ("blk.1.attn_output", "layers.1.self_attn.o_proj"),
    ):  # fmt: skip
        tensor, weight = tensors[f"{theirs}.weight"], ours[f"{name}.weight"].numpy()
        assert tensor.tensor_type == kind
        assert (tensor.data == gguf.quants.quantize(weight, kind)).all()
    assert (tensors["output_norm.weight"].data == ours["norm.weight"].numpy()).all()


def test_what_has_no_whole_blocks_is_kept_as_llama_cpp_keeps_it(tokenizer, tmp_path):
    def of(quantization: str, **change) -> dict[str, str]:
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        saved(folder, tokenizer.path, tokenizer.size, layers=1, **change)
        gguf_file.to_gguf(folder, folder / "x.gguf", quantization)
        tensors = gguf.GGUFReader(folder / "x.gguf").tensors
        return {t.name.removesuffix(".weight"): t.tensor_type.name for t in tensors}

    wide = of("Q4_0_DEFAULT", dim=256)
    assert wide["token_embd"] == "Q6_K" and wide["blk.0.ffn_down"] == "Q4_0"
    wide = of("Q4_0_DEFAULT", dim=256, tied=False)
    assert wide["token_embd"] == "Q4_0" and wide["output"] == "Q6_K"
    assert of("Q4_0_DEFAULT", dim=640, heads=10)["token_embd"] == "Q8_0"
    assert of("Q4_0", mlp_dim=1408)["blk.0.ffn_down"] == "Q4_0"
    odd = of("Q4_0", dim=72, heads=2, head_dim=32, mlp_dim=96)
    assert odd["token_embd"] == odd["blk.0.ffn_up"] == "F16"
    assert odd["blk.0.ffn_down"] == odd["blk.0.attn_output"] == "Q4_0"
    last = max(tmp_path.iterdir(), key=lambda path: int(path.name))
    found = gguf_check.check(last, last / "x.gguf", [[3, 300, 5, 60, 7]])
    assert found.mean < 0.3  # it runs


def test_q6_k_rounds_to_a_hundredth(tmp_path):
    weight = np.random.default_rng(0).normal(size=(8, 512)).astype(np.float32)
    blocks = llama_cpp.quantize(weight, gguf.GGMLQuantizationType.Q6_K)
    back = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q6_K)
    assert np.sqrt(((back - weight) ** 2).mean()) < 0.02  # 6 bits of ±3: steps of a tenth at most


def test_a_sharded_bfloat16_folder_of_transformers_gives_the_same_file(made, tmp_path):
    theirs = transformers.LlamaForCausalLM.from_pretrained(made[0], dtype=torch.bfloat16)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    theirs.save_pretrained(tmp_path / "whole")
    assert len([*(tmp_path / "shards").glob("*.safetensors")]) > 2
    for name in ("shards", "whole"):
        shutil.copy(made[0] / "tokenizer.model", tmp_path / name)
        gguf_file.to_gguf(tmp_path / name, tmp_path / f"{name}.gguf", "F16")
    one, two = (gguf.GGUFReader(tmp_path / f"{name}.gguf") for name in ("shards", "whole"))
    assert [t.name for t in one.tensors] == [t.name for t in two.tensors]
    assert all((a.data == b.data).all() for a, b in zip(one.tensors, two.tensors, strict=True))


def test_the_50m_shape_is_within_31_mb_in_4_bits(tmp_path):
    config = LlamaConfig(51_800, **SHAPES["student-50m"])
    special = {name: i for i, name in enumerate(("<pad>", "<unk>", "<bos>", "<eos>"))}
    pieces = [chr(0x0C05 + i % 50) + chr(0x0C05 + i // 50 % 50) + str(i) for i in range(51_800)]
    table = special | {piece: i for i, piece in enumerate(pieces) if i > 3}
    content = {"type": "morfessor_bpe_telugu", "separator": "@@", "bpe_merges": [],
               "special_tokens": special, "token_to_id": table}  # fmt: skip
    (tmp_path / "morfessor.json").write_text(json.dumps(content), encoding="utf8")
    with torch.device("meta"):
        model = Llama(config)
    model = model.to_empty(device="cpu").bfloat16().requires_grad_(False)
    for weight in model.parameters():
        weight.fill_(0.01)
    model.save(tmp_path / "50m", {"morfessor.json": tmp_path / "morfessor.json"})
    with pytest.warns(UserWarning, match="takes ids"):
        gguf_file.to_gguf(tmp_path / "50m", tmp_path / "x.gguf", "Q4_0")
    size, weights = (tmp_path / "x.gguf").stat().st_size, describe(config)["q4_0_bytes"]
    # of each piece its bytes with ▁, their number (8) and its type (4)
    words = sum(len(f"{piece}▁".encode()) + 12 for piece in pieces)
    assert size == pytest.approx(weights + words, abs=8000) and size <= 31e6


def test_weights_that_f16_or_blocks_cannot_hold_are_refused_by_name(tokenizer, tmp_path):
    model = saved(tmp_path / "m", tokenizer.path, tokenizer.size)
    model.layers[1].mlp.up_proj.weight[3, 4] = 1e5
    model.save(tmp_path / "large", {"tokenizer.model": tokenizer.path})
    model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    model.save(tmp_path / "nan", {"tokenizer.model": tokenizer.path})
    for name, quantization in (("large", "F16"), ("nan", "F16"), ("nan", "Q4_0")):
        with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight"):
            gguf_file.to_gguf(tmp_path / name, tmp_path / "x.gguf", quantization)
    assert not [*tmp_path.glob("*gguf*")] and not [*tmp_path.glob(".*")]


# --- metadata


def test_metadata_says_the_shape_and_what_the_card_says(made, tmp_path):
    folder = tmp_path / "50m-merged"
    shutil.copytree(made[0], folder)
    front = "license: apache-2.0\nlanguage: te\nbase_model: someone/telugu-300m\ntags: [telugu]"
    (folder / "README.md").write_text(f"---\n{front}\n---\n# telugu-50m-merged\n\nText.\n")
    name = gguf_file.file_name(folder, "Q8_0")
    assert name == "telugu-115K-50m-merged-Q8_0.gguf"
    gguf_file.to_gguf(folder, tmp_path / name, "Q8_0")
    fields = {k: f.contents() for k, f in gguf.GGUFReader(tmp_path / name).fields.items()}
    wanted = {
        "general.architecture": "llama", "general.type": "model",
        "general.name": "Telugu 50m Merged", "general.license": "apache-2.0",
        "general.languages": ["te"], "general.base_model.0.name": "Telugu 300m",
        "general.file_type": 7, "general.quantization_version": 2, "llama.vocab_size": 700,
        "llama.context_length": 48, "llama.embedding_length": 64, "llama.block_count": 2,
        "llama.feed_forward_length": 96, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 4, "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0, "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.eos_token_id": 3, "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.unknown_token_id": 1, "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_space_prefix": True, "tdlib.raw_text": True,
    }  # fmt: skip
    assert {name: fields.get(name) for name in wanted} == wanted
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)


# --- the tokenizer


def test_a_file_makes_sentencepieces_ids_of_real_lines_all_telugu_and_emoji(lines, tmp_path):
    ours = tdbook.corpus.tokenizer_files.train(lines, 3000, tmp_path / "tokenizer.model")
    saved(tmp_path / "m", ours.path, ours.size, layers=1)
    gguf_file.to_gguf(tmp_path / "m", path := tmp_path / "m.gguf", "Q8_0")
    judge = sentencepiece.SentencePieceProcessor(model_file=str(ours.path))
    telugu = [chr(i) for i in range(0x0C00, 0x0C80)]
    texts = [*lines, *telugu, *(f"రా{c}జు {c}" for c in telugu), "👍🏽 😀", "👨‍👩‍👧 ఒక"]
    texts += cards.EDGES
    file, wanted = llama_cpp.Model(path), judge.encode(texts)
    assert [file.tokenize(text) for text in texts] == wanted
    assert [file.text([3, *ids]).removeprefix(" ") for ids in wanted[:1000]] == lines


def test_a_hugging_face_bpe_takes_raw_text_too(lines, tmp_path):
    one = hugging_face(lines, tmp_path / "bytes", None)
    bpe = trained(lines, tmp_path / "tokenizer.model", **BPE)
    (tmp_path / "marked").mkdir()
    cards.tokenizer_files(bpe, tmp_path / "marked", 48)
    for path in (one.path, tmp_path / "marked" / "tokenizer.json"):
        ours = tdbook.corpus.tokenizer_files.open(path)
        saved(folder := path.parent / "m", path, ours.size, ours.eos, layers=1, eos_id=ours.eos)
        gguf_file.to_gguf(folder, file := path.parent / "x.gguf", "Q8_0")
        model, wanted = llama_cpp.Model(file), ours.encode(lines[::4])
        assert [model.tokenize(line) for line in lines[::4]] == wanted
        assert model.text(wanted[0]).removeprefix(" ") == lines[0]


@pytest.mark.parametrize(
    "kind, why",
    [
        ("unigram", "other ids of"), ("no bytes", "ends llama.cpp's process"),
        ("normalised", "other ids of"), ("bytes without a rule", "other ids of"),
    ],
)  # fmt: skip
def test_of_other_tokenizers_it_says_first_that_the_file_takes_ids(kind, why, lines, tmp_path):
    options = {
        "unigram": dict(model_type="unigram"),
        "no bytes": dict(byte_fallback=False),
        "normalised": dict(normalization_rule_name="nfkc"),
    }
    if kind in options:
        ours = trained(lines, tmp_path / "sentencepiece.model", **BPE | options[kind])
    else:
        ours = hugging_face(lines, tmp_path, None, regex=False)
    out = tmp_path / "out"
    model = saved(tmp_path / "m", ours.path, ours.size, layers=1, eos_id=ours.eos)
    out.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=f"takes ids, no raw text .*{why}"):
            gguf_file.to_gguf(tmp_path / "m", out / "x.gguf", "F16")
    assert not [*out.iterdir()]  # it was said first
    with pytest.warns(UserWarning):
        gguf_file.to_gguf(tmp_path / "m", out / "x.gguf", "F16")
    file = llama_cpp.Model(out / "x.gguf")
    with pytest.raises(ValueError, match=r"takes ids, no raw text: .*run_gguf"):
        file.tokenize("క")
    ids = ours.encode([lines[5]])[0]
    assert file.text(ids).removeprefix(" ") == ours.decode(ids)
    assert run(out, lines[5][:12]).startswith(lines[5][:12])
    assert model.config.vocab_size == file.vocab_size


def run(folder: Path, *arguments: str) -> str:
    """run_gguf.py as its owner runs it, far from this repository."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "run_gguf.py", *arguments], cwd=folder, env=environment, text=True,
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- @@


@pytest.fixture(scope="module")
def joined(lines, tmp_path_factory) -> tuple[Path, Path]:
    """A model folder with upstream's tokenizer, and its GGUF file."""
    root = tmp_path_factory.mktemp("joined")
    upstream.write(root / "up", lines, 900)
    (root / "up" / "tokenizer.json").rename(root / "morfessor.json")
    saved(root / "50m", root / "morfessor.json", 900)
    with pytest.warns(UserWarning, match=r"takes ids, no raw text \(its pieces are joined by @@"):
        gguf_file.to_gguf(root / "50m", root / "gguf" / "x.gguf", "Q8_0")
    return root / "50m", root / "gguf" / "x.gguf"


def test_an_upstream_file_decodes_as_upstream_does(joined, lines):
    ours, file = (
        tdbook.corpus.tokenizer_files.open(joined[0] / "morfessor.json"),
        llama_cpp.Model(joined[1]),
    )
    for line in lines[::50]:
        ids = ours.encode([" ".join(upstream.segmented(line))])[0]
        if ours.unk not in ids:
            assert file.text([3, *ids]).rstrip(" ") == ours.decode(ids) == " ".join(line.split())
    pieces = gguf.GGUFReader(joined[1]).fields["tokenizer.ggml.tokens"].contents()
    table = json.loads((joined[0] / "morfessor.json").read_text("utf8"))["token_to_id"]
    assert pieces[table["క@@"]] == "క" and pieces[table["క"]] == "క▁"


def test_the_script_beside_it_makes_the_books_own_ids_and_runs(joined, lines, tmp_path):
    words = [
        w for line in lines[:150] for w in line.split() if tdbook.corpus.tokenizer.TELUGU.match(w)
    ]
    model = morfessor.BaselineModel()
    model.load_data([(1, word) for word in words])
    model.train_batch(max_epochs=1)
    segmenter = tmp_path / "m.bin"
    morfessor.MorfessorIO().write_binary_model_file(str(segmenter), model)
    folder = joined[1].parent
    source = importlib.util.spec_from_file_location("run_gguf", folder / "run_gguf.py")
    source.loader.exec_module(script := importlib.util.module_from_spec(source))
    raw = tdbook.corpus.tokenizer_files.open(joined[0] / "morfessor.json", segmenter)
    cut = tdbook.corpus.tokenizer_files.open(joined[0] / "morfessor.json")
    for line in lines[::10]:
        assert script.encode(script.segmented(line, [str(segmenter)])) == raw.encode([line])[0]
        segmented = " ".join(upstream.segmented(line))
        assert script.encode(segmented) == cut.encode([segmented])[0]
    assert "tdlib" not in (folder / "run_gguf.py").read_text("utf8")
    assert run(folder, "ఒక ఊరి@@ లో").startswith("ఒక ఊరిలో ")
    assert run(folder, "ఒక ఊరిలో", str(segmenter)).startswith("ఒక ఊరిలో ")


# --- which tokenizer is the model's, and what begins a text

WORDS = ["అమ్మ", "ఊరు", "నుంచి", "వచ్చాడు"]


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A tokenizer.model without Telugu, and the tokenizer.json made of it to which words are added;
    and one over bytes, with words added."""
    place = tmp_path_factory.mktemp("extended")
    english = [f"the king went to the river {i}" for i in range(200)]
    options = {f"{name}_piece": f"<{name}>" for name in ("pad", "bos", "eos")}
    base = trained(english, place / "tokenizer.model", **BPE, vocab_size=300, **options)
    cards.tokenizer_files(base, place, 48)
    shutil.copy(place / "tokenizer.json", place / "base.json")
    (place / "tokenizer_config.json").unlink()
    for path in (place / "tokenizer.json", hugging_face(english, place / "bytes", None).path):
        words = tokenizers.Tokenizer.from_file(str(path))
        words.add_tokens(WORDS)
        words.save(str(path))
    return place


def test_added_words_are_the_models_own_in_the_file_and_in_chat(extended, tmp_path):
    json_, line = tdbook.corpus.tokenizer_files.open(extended / "tokenizer.json"), " ".join(WORDS)
    saved(tmp_path / "m", extended / "tokenizer.json", json_.size, layers=1)
    shutil.copy(extended / "tokenizer.model", tmp_path / "m")
    with pytest.warns(UserWarning) as said:
        gguf_file.to_gguf(tmp_path / "m", tmp_path / "x.gguf", "F16")
    assert re.search("tokenizer.json and tokenizer.model, with other ids", str(said[0].message))
    assert re.search("takes ids, .*; 4 of its pieces are words added", str(said[1].message))
    wanted = transformers.AutoTokenizer.from_pretrained(tmp_path / "m").encode(line)
    with pytest.warns(UserWarning, match="as AutoTokenizer does"):
        own = chat._tokenizer(tmp_path / "m", "")
    assert own.encode([line])[0] == wanted == [300, 301, 302, 303]
    assert llama_cpp.Model(tmp_path / "x.gguf").text(wanted) == own.decode(wanted)
    assert run(tmp_path, "అమ్మ").startswith("అమ్మ")


def test_of_a_bpe_over_bytes_llama_cpp_makes_the_ids_of_added_words_too(extended, tmp_path):
    json_ = tdbook.corpus.tokenizer_files.open(extended / "bytes" / "tokenizer.json")
    saved(tmp_path / "m", json_.path, json_.size, layers=1, eos_id=json_.eos)
    gguf_file.to_gguf(tmp_path / "m", tmp_path / "x.gguf", "F16")
    lines = [" ".join(WORDS), "the అమ్మఊరు king", "కఅమ్మక"]
    file = llama_cpp.Model(tmp_path / "x.gguf")
    judge = tokenizers.Tokenizer.from_file(str(json_.path))
    found = [file.tokenize(line) for line in lines]
    assert found == [x.ids for x in judge.encode_batch(lines, add_special_tokens=False)]
    assert [file.text(ids) for ids in found] == lines


def test_of_two_tokenizers_the_one_that_fits_is_taken_and_one_said_twice_is_one(
    extended, tmp_path, recwarn
):
    for name in ("tokenizer.model", "base.json"):
        shutil.copy(extended / name, tmp_path / name.replace("base", "tokenizer"))
    assert gguf_tokenizer.beside(tmp_path, rows=300).path.name == "tokenizer.model" and not recwarn
    shutil.copy(extended / "tokenizer.json", tmp_path)
    assert gguf_tokenizer.beside(tmp_path, rows=304).path.name == "tokenizer.json"
    assert gguf_tokenizer.beside(tmp_path, rows=300).path.name == "tokenizer.model"
    assert "for the embedding has 300 rows" in str(recwarn[-1].message)


LACKS = r"lacks 4 words .*save_pretrained\(folder\)"
ADDED = [
    ("tokenizer.model", "added_tokens.json", LACKS),
    ("tokenizer.model", "tokenizer_config.json", LACKS),
    ("base.json", "added_tokens.json", LACKS),
    ("base.json", "tokenizer_config.json", "'అమ్మ' .id 300. otherwise .*make both say what the mo"),
]


@pytest.mark.parametrize("base, file, said", ADDED)
def test_words_added_in_a_file_of_their_own_are_said_with_a_remedy_that_works(
    base, file, said, extended, tmp_path
):
    shutil.copy(extended / base, tmp_path / base.replace("base", "tokenizer"))
    entries = {str(300 + i): {"content": w, "special": False} for i, w in enumerate(WORDS)}
    added = {w: 300 + i for i, w in enumerate(WORDS)} | {"<pad>": 304}
    config = {"eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    if file == "added_tokens.json":
        (tmp_path / file).write_text(json.dumps(added))
    else:
        config |= {"added_tokens_decoder": entries}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        gguf_tokenizer.beside(tmp_path, rows=304)
    one = transformers.AutoTokenizer.from_pretrained(tmp_path)
    one.save_pretrained(tmp_path)
    found = gguf_tokenizer.beside(tmp_path)
    line = "అమ్మ the ఊరు"
    assert found.encode([line])[0] == one.encode(line, add_special_tokens=False)


AROUND = {
    "no bos": ({"add_bos_token": False}, None), "bos is asked": ({"add_bos_token": True}, None),
    "a template": ({}, "<eos> $A"), "a template of three": ({}, "<eos> <pad> $A"),
    "an end": ({}, "$A <eos>"), "no config": (None, None),
    "a template and no bos": ({"add_bos_token": False}, "<eos> $A <eos>"),
}  # fmt: skip


@pytest.mark.parametrize("config, template", AROUND.values(), ids=AROUND)
def test_a_file_begins_and_ends_a_text_as_transformers_does(config, template, extended, tmp_path):
    words = tokenizers.Tokenizer.from_file(str(extended / "base.json"))
    if template:
        named = [(name, words.token_to_id(name)) for name in ("<eos>", "<pad>") if name in template]
        words.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    words.save(str(tmp_path / "tokenizer.json"))
    if config is not None:
        config |= {"bos_token": "<eos>", "eos_token": "<eos>"}
        config |= {"tokenizer_class": "LlamaTokenizerFast"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "bos_token_id": 3}')
    own = gguf_tokenizer.beside(tmp_path)
    begin, end = gguf_tokenizer.around(tmp_path, own)
    judge = transformers.AutoTokenizer.from_pretrained(tmp_path)
    bare = judge.encode("the river", add_special_tokens=False)
    assert [*begin, *bare, *end] == judge.encode("the river")


def test_a_file_says_whether_bos_comes_first_and_all_that_end_a_text(extended, tmp_path):
    path = extended / "base.json"
    (tmp_path / "t").mkdir()
    shutil.copy(path, tmp_path / "t" / "tokenizer.json")
    model = saved(tmp_path / "m", tmp_path / "t" / "tokenizer.json", 300, layers=1)
    config = {"bos_token": "<eos>", "eos_token": "<eos>", "add_bos_token": False}
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(config))
    ends = [3, 260, 261, 262]
    asked = {"eos_token_id": ends, "suppress_tokens": [5], "top_p": 1.0, "temperature": 0.6}
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(asked))
    wanted = r"asks for suppress_tokens \[5\], temperature 0.6, eos_token_id 262, which no GGUF"
    with pytest.warns(UserWarning, match=wanted):
        gguf_file.to_gguf(tmp_path / "m", tmp_path / "x.gguf", "F16")
    file = llama_cpp.Model(tmp_path / "x.gguf")
    assert file.begin == [] and [i for i in ends if file.ends(i)] == ends[:3]
    assert not file.ends(5) and model.config.eos_id == 3
    (tmp_path / "m" / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<eos>", "eos_token": "<eos>", "split_special_tokens": True})
    )  # as this book releases it
    own = gguf_tokenizer.vocabulary(tmp_path / "m")
    assert own.begin == (3,) and "ids = [3, *tokenizer" in gguf_tokenizer.script(own)
    assert "ids = [*tokenizer" in gguf_tokenizer.script(replace(own, begin=()))


# --- damage

VALUE, TEXT_, LIST = struct.Struct("<I").pack, 8, 9


def text(given: str) -> bytes:
    return struct.pack("<Q", len(given)) + given.encode()


def values(kind: int, count: int) -> bytes:
    return VALUE(LIST) + struct.pack("<IQ", kind, count)


LLAMA = text("general.architecture") + VALUE(TEXT_) + text("llama")
WEIGHT = text("token_embd.weight") + VALUE(2)
PIECES = text("tokenizer.ggml.model") + VALUE(TEXT_) + text("llama") + text("tokenizer.ggml.tokens")
HEADERS = {  # entries, weights, and what is said of them
    "endless": ([text("x") + values(0, 2**60)], [], "1,152,921,504,606,846,976 values .* in 'x'"),
    "endless texts": ([text("x") + values(TEXT_, 2**60)], [], "at most 4,194,304"),
    "many that are there": ([text("x") + values(0, 2**23) + bytes(2**23)], [], "8,388,608 values"),
    "a long text": ([text("x") + VALUE(TEXT_) + struct.pack("<Q", 2**50)], [], "in a file of 4,"),
    "lists in a list": ([text("x") + values(LIST, 2) + values(0, 1) * 2], [], "plain ones"),
    "another kind": ([text("x") + VALUE(99)], [], "kind 99"),
    "wide": ([LLAMA], [WEIGHT + struct.pack("<QQIQ", 2**32, 2**32, 0, 0)], "weights of 73,786"),
    "far away": ([LLAMA], [WEIGHT + struct.pack("<QQIQ", 8, 8, 0, 2**50)], "weights of 1,125"),
    "many axes": ([LLAMA], [text("x") + VALUE(2**31)], "2,147,483,648 axes"),
    "another model": ([LLAMA.replace(b"llama", b"qwen2")], [], "architecture is 'qwen2', only"),
    "no model": ([text("x") + VALUE(4) + VALUE(0)], [], "architecture is 'not said'"),
    "no vocabulary": ([LLAMA], [], "holds no vocabulary"),
    "an empty vocabulary": ([LLAMA, PIECES + values(TEXT_, 0)], [], "holds no vocabulary"),
}


@pytest.mark.parametrize("entries, weights, said", HEADERS.values(), ids=HEADERS)
def test_what_a_header_claims_is_held_against_the_files_size(entries, weights, said, tmp_path):
    counts = struct.pack("<QQ", len(weights), len(entries) + (PIECES in b"".join(entries)))
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + VALUE(3) + counts + b"".join([*entries, *weights]) + bytes(4000))
    began = time.perf_counter()
    with pytest.raises(ValueError, match=rf"x\.gguf.*{said}") as error:
        llama_cpp.read(path)
    assert time.perf_counter() - began < 1 and "\n" not in str(error.value)


def test_counts_that_no_file_holds_are_refused_where_a_file_is_chosen(tmp_path, monkeypatch):
    path = tmp_path / "x.gguf"
    for counts in ((2**40, 0), (0, 2**40)):
        path.write_bytes(b"GGUF" + VALUE(3) + struct.pack("<QQ", *counts) + bytes(4000))
        for reader in (llama_cpp.Model, lambda p: gguf_file.find(str(p))):
            with pytest.raises(ValueError, match=r"1,099,511,627,776 .* at most 65,536"):
                reader(path)


def test_a_head_that_is_stored_and_not_in_the_file_is_seen(made, files, tmp_path):
    assert gguf_check.other_weights(made[0], files["F16"]) == ""
    stored = load_file(made[0] / "model.safetensors")
    for name, rows in (("lm_head.weight", "model.embed_tokens.weight"),
                       ("model.norm.weight", "model.norm.weight")):  # fmt: skip
        save_file(stored | {name: stored[rows] + 0.5}, tmp_path / "model.safetensors")
        assert gguf_check.other_weights(tmp_path, files["F16"]) == name
    save_file(stored | {"lm_head.weight": stored["model.embed_tokens.weight"].clone()},
              tmp_path / "model.safetensors")  # fmt: skip
    assert gguf_check.other_weights(tmp_path, files["F16"]) == ""


WIDTHS = {
    "none": (dict(dim=40, heads=2, mlp_dim=36), "Nothing in Q4_0 is in 4 bits: rows of 36", 3),
    "some": (dict(dim=64, mlp_dim=100), r"9\d\.\d% of Q4_0 is in 4 bits: rows of 100", 0),
    "others": (dict(dim=48, heads=3, mlp_dim=96), r"\d\.\d% of Q4_0 is in 4 bits: rows of 48", 0),
    "all": (dict(dim=64, mlp_dim=96), "^Q4_0 is 4-bit throughout. Q4_0_DEFAULT keeps the emb", 0),
    "untied": (dict(dim=256, mlp_dim=96, tied=False), "Q4_0_DEFAULT keeps the head finer", 0),
}  # fmt: skip


@pytest.mark.parametrize("shape, said, same", WIDTHS.values(), ids=WIDTHS)
def test_what_is_in_4_bits_is_told_by_the_weights_themselves(
    shape, said, same, tokenizer, tmp_path
):
    model = saved(tmp_path, tokenizer.path, tokenizer.size, layers=1, **shape)
    found = gguf_file._in_words(gguf_file._weights(tmp_path, model.config), model.config)
    assert re.search(said, found)
    assert ("The weights of F16, Q8_0, Q4_0, Q4_0_DEFAULT are the same" in found) == bool(same)
    if "Nothing" in said:
        with pytest.warns(UserWarning, match=said):
            gguf_file.to_gguf(tmp_path, tmp_path / "x.gguf", "Q4_0")


def test_a_tokenizer_larger_than_the_embedding_is_refused_and_a_smaller_one_filled_up(
    tokenizer, tmp_path
):
    saved(tmp_path / "less", tokenizer.path, tokenizer.size - 1)
    saved(tmp_path / "more", tokenizer.path, tokenizer.size + 5)
    with pytest.raises(ValueError, match=r"has 700 pieces, the embedding 699 rows"):
        gguf_file.to_gguf(tmp_path / "less", tmp_path / "x.gguf", "Q8_0")
    assert not (tmp_path / "x.gguf").exists()
    gguf_file.to_gguf(tmp_path / "more", tmp_path / "x.gguf", "Q8_0")
    assert llama_cpp.Model(tmp_path / "x.gguf").vocab_size == 705


def test_a_file_cut_short_or_damaged_is_refused_in_a_line_and_this_process_lives(files, tmp_path):
    whole, path = files["Q4_0"].read_bytes(), tmp_path / "x.gguf"
    header = gguf.GGUFReader(files["Q4_0"]).data_offset
    for size in (0, 3, 30, header // 2, header - 1, header + 100, len(whole) - 100):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"x\.gguf is no whole GGUF file .*again$"):
            llama_cpp.Model(path)
    at = whole.index(b"llama.block_count") + len("llama.block_count") + 4
    path.write_bytes(whole[:at] + b"\x07" + whole[at + 1 :])  # more layers than there are
    with pytest.raises(ValueError, match=r"llama.cpp cannot run .*x\.gguf .*: make it again"):
        llama_cpp.Model(path)
    path.write_bytes(whole.replace(b"llama.embedding_length", b"llama.embedding_lengtx"))
    with pytest.raises(ValueError, match=r"llama.cpp cannot run .*x\.gguf .*: make it again"):
        llama_cpp.Model(path)
    draw = np.random.default_rng(0)
    for _ in range(8):
        damaged = bytearray(whole)
        for at in draw.integers(0, header, 3):
            damaged[at] = draw.integers(256)
        path.write_bytes(damaged)
        try:
            llama_cpp.Model(path)
        except ValueError as error:
            assert "x.gguf" in str(error) and "\n" not in str(error)


def test_what_llama_cpp_cannot_take_is_an_error_and_not_its_end(files):
    file = llama_cpp.Model(files["Q8_0"])
    with pytest.raises(ValueError, match="id 700 is none of the 700"):
        file.logits([3, 700])
    with pytest.raises(ValueError, match="49 tokens are more than the context of 48"):
        file.logits([3] * 49)
    with pytest.raises(ValueError, match="more than the context"):
        file.generate([3] * 40, 10)
    assert len(file.generate([3] * 40, 9)) == 9


def test_an_unknown_quantization_and_a_missing_tokenizer_are_said(made, tmp_path):
    with pytest.raises(ValueError, match="'q4' is unknown: give one of F16, Q8_0, Q4_0"):
        gguf_file.to_gguf(made[0], tmp_path / "x.gguf", "q4")
    made[1].save(tmp_path / "bare")
    with pytest.raises(FileNotFoundError, match="bare holds no tokenizer"):
        gguf_file.to_gguf(tmp_path / "bare", tmp_path / "x.gguf", "F16")


# --- what llama.cpp says


def test_generating_is_one_forward_after_another(files):
    file = llama_cpp.Model(files["F16"])
    new = file.generate([3, 300, 5], 20)
    everything = [3, 300, 5, *new]
    assert new == file.logprobs(everything).argmax(1)[2:-1].tolist()
    drawn = [file.generate([3], 20, temperature=1.0, seed=s) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_costs_are_those_of_the_dequantized_weights(made, files, tmp_path):
    """llama.cpp rounds activations too, to 8 bits, so the two are near and not equal."""
    model = made[1]
    stream = np.array([i for ids in gguf_check.prompts(model.config, None) for i in ids])
    windows = data.Windows(stream[: 48 * 6 + 1], 48)
    rows = gguf_check.costs(made[0], [files["Q8_0"], files["Q4_0"]], windows, 6)
    assert [row["format"] for row in rows] == ["PyTorch float32", "Q8_0", "Q4_0"]
    loss = float(hard_set.window_loss(model, windows, range(6), "cpu").mean())
    assert rows[0]["loss"] == pytest.approx(loss, abs=1e-4)
    assert rows[0]["kl"] == 0 and rows[0]["agreement"] == 1
    assert rows[1]["kl"] < 0.1 * rows[2]["kl"] and rows[2]["agreement"] < rows[1]["agreement"]
    tensors = {t.name: t for t in gguf.GGUFReader(files["Q4_0"]).tensors}
    copy, names = Llama.load(made[0]), gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, weight in copy.named_parameters():
        tensor = tensors[names.get_name(f"model.{name}", (".weight",))]
        found = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        if "q_proj" in name or "k_proj" in name:
            found = teacher.halves(found, 4)
        weight.data = found.reshape(weight.shape).clone()
    ids_BT, _ = windows.batch(range(6))
    log_p, log_q = (m(ids_BT).log_softmax(-1) for m in (model, copy))
    kl = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    assert rows[2]["kl"] == pytest.approx(kl, rel=0.1)


# --- exports/<model>


def test_a_model_folder_becomes_a_folder_to_ship(made, tmp_path, capsys):
    def make(*pairs: str) -> tuple[int, str]:
        return gguf_file.main([f"OUT={tmp_path / 'exports'}", *pairs]), capsys.readouterr().out

    code, said = make(f"MODEL={made[0]}")
    assert code == 0 and "files take raw text" in said
    assert [line.split()[0] for line in said.splitlines()[3:7]] == [*gguf_file.QUANTIZATIONS]
    out = tmp_path / "exports" / "50m"
    names = {f"50m-115K-{q}.gguf" for q in gguf_file.QUANTIZATIONS} | {
        "README.md",
        "tokenizer.model",
    }
    assert {path.name for path in out.iterdir() if path.name != MARK} == names
    card = (out / "README.md").read_text("utf8")
    assert all(name in card for name in names - {"README.md", "tokenizer.model"})
    assert '-p "ఒక ఊరిలో"' in card and "begins each prompt after `<eos>`" in card
    assert make()[0] == 2
    for given in ("50n", "more/50m"):
        code, said = make(f"MODEL={made[0].parent / given}")
        assert code == 1 and said.endswith(f"did you mean {made[0]}?\n") and said.count("\n") == 1


def test_an_upstream_model_is_shipped_with_its_script(joined, tmp_path):
    with pytest.warns(UserWarning, match="run_gguf.py beside it"):
        rows = gguf_file.ship(joined[0], tmp_path / "50m")
    assert rows[0]["likeliest"] >= 0.99 and rows[0]["largest"] <= 0.02
    assert {"run_gguf.py", "morfessor.json"} <= {path.name for path in (tmp_path / "50m").iterdir()}
    card = (tmp_path / "50m" / "README.md").read_text("utf8")
    assert "take token ids, no raw text" in card and "llama-cli -no-cnv" not in card
    assert "pip install xllamacpp morfessor" in card
