"""GGUF files as llama.cpp, gguf's own code and upstream's layout see them."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

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

from tdbook.__main__ import main
from tdbook.analysis.intervals import change
from tdbook.book import common, comparison
from tdbook.corpus import token_files, tokenizer_files
from tdbook.corpus.tokenizer import TELUGU
from tdbook.export import gguf_file, inference, llama_cpp, model_tokenizer, shipping
from tdbook.export.decoder import Decoder
from tdbook.export.gguf_file import to_gguf
from tdbook.runs.units import q4_0_bytes
from tdlib import data, evaluate, teacher
from tdlib.files import MARK
from tdlib.model import SHAPES, Llama, LlamaConfig
from tests import upstream
from tests.helpers import tiny_model, token_folder
from tests.tdbook.export.test_release import CASES, hugging_face, trained
from tests.tdlib.test_evaluate import dense

SHAPE = dict(layers=2, heads=4, dim=64, mlp_dim=96, context=48)


def saved(folder: Path, tokenizer: Path, vocab_size: int, scale=5.0, **change) -> Llama:
    """A model whose weights are so large that places of tokens matter, with a tokenizer's file."""
    model = tiny_model(vocab=vocab_size, scale=scale, **SHAPE | change).requires_grad_(False)
    model.save(folder, {tokenizer.name: tokenizer})
    return model


@pytest.fixture(scope="module", autouse=True)
def one_trial_a_vocabulary():
    """llama.cpp's ids of the same vocabulary and lines are asked for once: half a second each."""
    ask, known = llama_cpp.ids_of, {}

    def remembered(path: Path, lines: list[str] = ()) -> list[list[int]]:
        key = path.read_bytes(), *lines
        return known[key] if key in known else known.setdefault(key, ask(path, lines))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp, "ids_of", remembered)
        yield


@pytest.fixture(scope="module")
def made(tokenizer, tmp_path_factory) -> tuple[Path, Llama]:
    folder = tmp_path_factory.mktemp("made") / "models/50m"
    return folder, saved(folder, tokenizer.path, tokenizer.size)


@pytest.fixture(scope="module")
def files(made, tmp_path_factory) -> dict[str, Path]:
    """Every format of that model."""
    out = tmp_path_factory.mktemp("gguf")
    paths = {q: out / f"50m-{q}.gguf" for q in gguf_file.formats(made[1].config)}
    for quantization, path in paths.items():
        to_gguf(made[0], path, quantization)
    return paths


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {t.name.removesuffix(".weight"): t for t in gguf.GGUFReader(path).tensors}


def of_file(path: Path, like: Llama) -> dict[str, torch.Tensor]:
    """A file's weights by the names of a model's parameters, by gguf's own code."""
    names, written, weights = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 2), tensors(path), {}
    for name, weight in like.named_parameters():
        hf = name if name.startswith("lm_head") else f"model.{name}"
        tensor = written[names.get_name(hf.removesuffix(".weight"))]
        exact = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        for letter, heads in (("q", like.config.heads), ("k", like.config.kv_heads)):
            turned = f"{letter}_proj" in name and not like.config.qk_norm
            exact = teacher.halves(exact, heads) if turned else exact
        weights[name] = exact.reshape(weight.shape)
    return weights


@pytest.mark.parametrize("count, change", CASES["shapes"], ids=str)
def test_f16_in_llama_cpp_is_the_model_in_pytorch(count, change, tokenizer, tmp_path):
    model = saved(tmp_path / "m", tokenizer.path, tokenizer.size, **change)
    to_gguf(tmp_path / "m", tmp_path / "m.gguf", "F16")
    prompts = shipping.draw_prompts(model.config, None, count)
    assert len(prompts) == count and max(map(len, prompts)) == 48 and len(prompts[0]) == 1
    check = shipping.check(tmp_path / "m", tmp_path / "m.gguf", prompts)
    assert check["likeliest"] >= 0.99 and check["largest"] <= 0.02
    assert shipping.other_weight(tmp_path / "m", tmp_path / "m.gguf") == ""


def test_the_other_rope_and_a_weight_not_in_the_file_are_seen(made, files, tmp_path, monkeypatch):
    stored, path = load_file(made[0] / "model.safetensors"), tmp_path / "model.safetensors"
    embedding = stored["model.embed_tokens.weight"]
    for name, like in (("lm_head.weight", embedding), ("model.norm.weight", None)):
        save_file(stored | {name: (stored[name] if like is None else like) + 0.5}, path)
        assert shipping.other_weight(tmp_path, files["F16"]) == name
    save_file(stored | {"lm_head.weight": embedding.clone()}, path)
    assert shipping.other_weight(tmp_path, files["F16"]) == ""
    monkeypatch.setattr(teacher, "neighbours", lambda weight_OD, heads: weight_OD)
    with pytest.raises(ValueError, match=r"agrees with .* on [1-8]\d.*nothing is shipped"):
        shipping.ship(made[0], tmp_path / "out" / "50m")
    assert not any((tmp_path / "out").iterdir())


def test_blocks_are_those_of_ggufs_own_reference(made, files):
    weight = made[1].state_dict()["layers.0.mlp.down_proj.weight"].numpy()
    for quantization in ("Q8_0", "Q4_0"):
        written, kind = tensors(files[quantization]), gguf.GGMLQuantizationType[quantization]
        assert written["token_embd"].tensor_type == written["blk.0.ffn_down"].tensor_type == kind
        assert (written["blk.0.ffn_down"].data == gguf.quants.quantize(weight, kind)).all()
    weight, kind = np.random.default_rng(0).normal(size=(8, 512)), gguf.GGMLQuantizationType.Q6_K
    back = gguf.quants.dequantize(llama_cpp.quantize(weight, kind), kind)
    assert np.sqrt(((back - weight) ** 2).mean()) < 0.02  # 6 bits of ±3: steps of a tenth at most


@pytest.mark.parametrize("name", CASES["kinds"])
def test_what_has_no_whole_blocks_is_kept_as_llama_cpp_keeps_it(name, tokenizer, tmp_path):
    shape, wanted, told = CASES["kinds"][name]
    saved(tmp_path, tokenizer.path, tokenizer.size, layers=1, **shape)
    model, path = gguf_file.read(tmp_path), tmp_path / "x.gguf"
    gguf_file.write(model, path, "Q4_0_DEFAULT")
    written = {name: tensor.tensor_type.name for name, tensor in tensors(path).items()}
    names = ("token_embd", "output", "blk.0.ffn_up", "blk.0.ffn_down")
    assert " ".join(written.get(name, "-") for name in names) == wanted
    rows = [{"format": q, "file": q, "bytes": 1} for q in gguf_file.formats(model.config)]
    assert re.search(told, shipping._card(model, rows, [[3]], None))
    if "head_dim" in shape:  # it runs
        with pytest.warns(UserWarning, match=told):
            to_gguf(tmp_path, path, "Q4_0")
        assert shipping.check(tmp_path, path, [[3, 300, 5, 60, 7]])["mean"] < 0.3


def test_what_makes_no_file_is_refused_by_name_and_leaves_none(made, tokenizer, tmp_path):
    model, words = Llama.load(made[0]).requires_grad_(False), {"tokenizer.model": tokenizer.path}
    for name, value in (("large", 1e5), ("nan", torch.nan)):
        model.layers[1].mlp.up_proj.weight[3, 4] = value
        model.save(tmp_path / name, words)
    model.save(tmp_path / "bare")
    saved(tmp_path / "less", tokenizer.path, tokenizer.size - 1)
    for name, quantization, match in CASES["makes no file"]:
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            to_gguf(tmp_path / name, tmp_path / "x.gguf", quantization)
    assert not [*tmp_path.glob("*gguf*")] and not [*tmp_path.glob(".*")]


def test_metadata_says_shape_and_card_and_a_vocabulary_is_padded(tokenizer, tmp_path):
    folder = tmp_path / "50m-merged"
    saved(folder, tokenizer.path, tokenizer.size + 5)  # rows without a piece: filled up
    front = "license: apache-2.0\nlanguage: te\nbase_model: someone/telugu-300m\ntags: [telugu]"
    (folder / "README.md").write_text(f"---\n{front}\n---\n# telugu-50m-merged\n\nText.\n")
    to_gguf(folder, tmp_path / "x.gguf", "Q8_0")
    fields = {k: f.contents() for k, f in gguf.GGUFReader(tmp_path / "x.gguf").fields.items()}
    found = {name: fields.get(name) for name in CASES["metadata"]}
    assert found == CASES["metadata"]
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert llama_cpp.Model(tmp_path / "x.gguf").vocab_size == 705


def test_a_file_makes_the_packages_ids_of_all_telugu_and_emoji(extended, lines, tmp_path):
    ours = tokenizer_files.train(lines, 3000, tmp_path / "tokenizer.model").path
    model_tokenizer.tokenizer_files(trained(tmp_path / "bpe.model", lines), tmp_path, 48)
    options = dict(model_type="unigram", byte_fallback=False, remove_extra_whitespaces=True)
    (other := tmp_path / "u/tokenizer.model").parent.mkdir()
    trained(other, lines[::3], normalization_rule_name="nfkc", **options)
    of = sentencepiece.SentencePieceProcessor
    judges = {path: of(model_file=str(path)).encode for path in (ours, other)}
    for path in (extended / "bytes" / "tokenizer.json", tmp_path / "tokenizer.json"):
        judge = tokenizers.Tokenizer.from_file(str(path))
        judge.encode_special_tokens = True
        encode = partial(judge.encode_batch, add_special_tokens=False)
        judges[path] = lambda texts, encode=encode: [found.ids for found in encode(texts)]
    telugu = [chr(i) for i in range(0x0C00, 0x0C80)]
    texts = [*lines, *telugu, *(f"రా{c}జు {c}" for c in telugu), "👍🏽 😀", "👨‍👩‍👧 ఒక"]
    texts += [*model_tokenizer.EDGES, " ".join(WORDS), "the అమ్మఊరు king", "కఅమ్మక"]
    for i, (path, judge) in enumerate(judges.items()):
        one, folder, wanted = tokenizer_files.open(path), tmp_path / str(i), judge(texts)
        saved(folder, path, one.size, layers=1, eos_id=one.eos)
        to_gguf(folder, folder / "x.gguf", "Q8_0")
        file = llama_cpp.Model(folder / "x.gguf")
        assert [file.tokenize(text) for text in texts] == wanted
        # of BPE over bytes llama.cpp leaves out spaces before marks, so one line without them
        count = len(lines) if path.parent == tmp_path else 1
        shown = [file.decode([one.eos, *ids]).removeprefix(" ") for ids in wanted[:count]]
        assert "".join(shown) == "".join(lines[:count])


@pytest.mark.parametrize("name", CASES["others"])
def test_of_other_tokenizers_it_says_first_that_the_file_takes_ids(name, lines, tmp_path):
    options, why = CASES["others"][name]
    if options:
        ours = trained(tmp_path / "sentencepiece.model", lines[::4], **options)
    else:
        ours = hugging_face(lines[::4], tmp_path, None, regex=False)
    saved(tmp_path / "m", ours.path, ours.size, layers=1, eos_id=ours.eos)
    (out := tmp_path / "out").mkdir()
    with warnings.catch_warnings(action="error"):
        with pytest.raises(UserWarning, match=f"takes ids, no raw text .*{why}"):
            to_gguf(tmp_path / "m", out / "x.gguf", "F16")
    assert not [*out.iterdir()]  # it was said first
    with pytest.warns(UserWarning):
        to_gguf(tmp_path / "m", out / "x.gguf", "F16")
    file = llama_cpp.Model(out / "x.gguf")
    with pytest.raises(ValueError, match=r"takes ids, no raw text: .*run_gguf"):
        file.tokenize("క")
    ids = ours.encode([lines[5]])[0]
    assert file.decode(ids).removeprefix(" ") == ours.decode(ids)
    if why == "ends llama.cpp's process":
        assert run(out, lines[5][:12]).startswith(lines[5][:12])


def run(folder: Path, *arguments: str) -> str:
    """run_gguf.py as its owner runs it, far from this repository."""
    bare = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command, pipes = [sys.executable, "run_gguf.py", *arguments], dict(capture_output=True)
    done = subprocess.run(command, cwd=folder, env=bare, text=True, timeout=60, **pipes)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def joined(lines, tmp_path_factory) -> tuple[Path, Path]:
    """What is shipped of a model folder with upstream's tokenizer: that, and a file."""
    root = tmp_path_factory.mktemp("joined")
    upstream.write(root / "up", lines, 900)
    (root / "up" / "tokenizer.json").rename(root / "morfessor.json")
    saved(root / "50m", root / "morfessor.json", 900)
    with pytest.warns(UserWarning, match=r"takes ids, no raw text \(its pieces are joined by @@"):
        rows = shipping.ship(root / "50m", root / "exports")
    assert rows[0]["likeliest"] >= 0.99 and rows[0]["largest"] <= 0.02
    return root / "exports" / "morfessor.json", root / "exports" / rows[1]["file"]


def test_an_upstream_file_has_upstreams_pieces_and_the_50m_shape_is_within_31_mb(joined):
    card = joined[0].with_name("README.md").read_text("utf8")
    assert "take token ids, no raw text" in card and "llama-cli -no-cnv" not in card
    assert "pip install xllamacpp morfessor" in card
    pieces = gguf.GGUFReader(joined[1]).fields["tokenizer.ggml.tokens"].contents()
    table = json.loads(joined[0].read_text("utf8"))["token_to_id"]
    assert pieces[table["క@@"]] == "క" and pieces[table["క"]] == "క▁"
    words = sum(len(piece.encode()) + 12 for piece in pieces)  # of each its length and type too
    shape, plan = LlamaConfig(900, **SHAPE), LlamaConfig(51_800, **SHAPES["student-50m"])
    size = joined[1].with_name(joined[1].name.replace("Q8_0", "Q4_0")).stat().st_size
    assert size == pytest.approx(q4_0_bytes(shape) + words, abs=8000)
    assert q4_0_bytes(plan) + 51_800 * 30 <= 31e6


def test_the_script_beside_it_makes_the_books_own_ids_and_runs(joined, lines, tmp_path):
    words = [word for line in lines[:150] for word in line.split() if TELUGU.match(word)]
    model, segmenter = morfessor.BaselineModel(), tmp_path / "m.bin"
    model.load_data([(1, word) for word in words])
    model.train_batch(max_epochs=1)
    morfessor.MorfessorIO().write_binary_model_file(str(segmenter), model)
    folder, path = joined[1].parent, joined[0]
    source = importlib.util.spec_from_file_location("run_gguf", folder / "run_gguf.py")
    source.loader.exec_module(script := importlib.util.module_from_spec(source))
    ours = tokenizer_files.open(path, segmenter)
    for line in lines[::10]:
        assert script.encode(script.segmented(line, [str(segmenter)])) == ours.encode([line])[0]
    assert run(folder, "ఒక ఊరి@@ లో").startswith("ఒక ఊరిలో ")
    assert run(folder, "ఒక ఊరిలో", str(segmenter)).startswith("ఒక ఊరిలో ")


WORDS = ["అమ్మ", "ఊరు", "నుంచి", "వచ్చాడు"]


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A tokenizer.model without Telugu, and the tokenizer.json made of it to which words are added;
    and one over bytes, with words added."""
    place = tmp_path_factory.mktemp("extended")
    english = [f"the king went to the river {i}" for i in range(200)]
    options = {f"{name}_piece": f"<{name}>" for name in ("pad", "bos", "eos")}
    base = trained(place / "tokenizer.model", english, vocab_size=300, **options)
    model_tokenizer.tokenizer_files(base, place, 48)
    shutil.copy(place / "tokenizer.json", place / "base.json")
    (place / "tokenizer_config.json").unlink()
    for path in (place / "tokenizer.json", hugging_face(english, place / "bytes", None).path):
        words = tokenizers.Tokenizer.from_file(str(path))
        words.add_tokens(WORDS)
        words.save(str(path))
    return place


def test_added_words_are_the_models_own_in_the_file_and_beside_it(extended, tmp_path, recwarn):
    json_, line = tokenizer_files.open(extended / "tokenizer.json"), " ".join(WORDS)
    saved(tmp_path / "m", extended / "tokenizer.json", json_.size, layers=1)
    shutil.copy(extended / "tokenizer.model", tmp_path / "m")
    to_gguf(tmp_path / "m", tmp_path / "x.gguf", "F16")
    two, ids = (str(warning.message) for warning in recwarn)
    assert "tokenizer.model makes other ids than tokenizer.json" in two
    assert re.search("takes ids, .*; 4 of its pieces are words added", ids)
    wanted = transformers.AutoTokenizer.from_pretrained(tmp_path / "m").encode(line)
    own = model_tokenizer.open_beside(tmp_path / "m").tokenizer
    assert "as AutoTokenizer does" in str(recwarn[-1].message)
    assert own.encode([line])[0] == wanted == [300, 301, 302, 303]
    assert llama_cpp.Model(tmp_path / "x.gguf").decode(wanted) == own.decode(wanted)
    assert run(tmp_path, "అమ్మ").startswith("అమ్మ")
    trained(tmp_path / "m" / "sentencepiece.model", WORDS * 9, vocab_size=304)  # as many pieces
    with pytest.warns(UserWarning, match=r"m/sentencepiece\.model makes other ids"):
        model_tokenizer.open_beside(tmp_path / "m")


@pytest.mark.parametrize("base, file, fault", CASES["added"])
def test_words_added_in_a_file_have_a_remedy_that_works(base, file, fault, extended, tmp_path):
    shutil.copy(extended / base, tmp_path / base.replace("base", "tokenizer"))
    config = {"eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    if file == "added_tokens.json":
        added = {word: 300 + i for i, word in enumerate(WORDS)} | {"<pad>": 304}
        (tmp_path / file).write_text(json.dumps(added))
    else:
        entries = {str(300 + i): {"content": w, "special": False} for i, w in enumerate(WORDS)}
        config |= {"added_tokens_decoder": entries}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=fault):
        model_tokenizer.open_beside(tmp_path, rows=304)
    one = transformers.AutoTokenizer.from_pretrained(tmp_path)
    one.save_pretrained(tmp_path)
    line = "అమ్మ the ఊరు"
    ids = model_tokenizer.open_beside(tmp_path).tokenizer.encode([line])[0]
    assert ids == one.encode(line, add_special_tokens=False)


@pytest.mark.parametrize("name", CASES["around"])
def test_a_file_begins_and_ends_a_text_as_transformers_does(name, extended, tmp_path):
    config, template = CASES["around"][name]
    words = tokenizers.Tokenizer.from_file(str(extended / "base.json"))
    if template == "model":
        shutil.copy(extended / "tokenizer.model", tmp_path)
    elif template:
        named = [(name, words.token_to_id(name)) for name in ("<eos>", "<pad>") if name in template]
        words.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    if template != "model":
        words.save(str(tmp_path / "tokenizer.json"))
    if config is not None:
        config = config | {"bos_token": "<eos>", "eos_token": "<eos>"}
        config |= {"tokenizer_class": "LlamaTokenizerFast"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "bos_token_id": 3}')
    own = model_tokenizer.open_beside(tmp_path)
    judge = transformers.AutoTokenizer.from_pretrained(tmp_path)
    bare = judge.encode("the river", add_special_tokens=False)
    assert [*own.begin, *bare, *own.end] == judge.encode("the river")
    if name == "a template of three":
        why = gguf_file.vocabulary(tmp_path, LlamaConfig(300, **SHAPE)).why
        assert why == "its texts stand between the special tokens [3, 0] and []"


def test_a_file_says_whether_bos_comes_first_and_all_that_end_a_text(extended, tmp_path):
    (tmp_path / "t").mkdir()
    path = Path(shutil.copy(extended / "base.json", tmp_path / "t" / "tokenizer.json"))
    folder, named = tmp_path / "m", {"bos_token": "<eos>", "eos_token": "<eos>"}
    model = saved(folder, path, 300, layers=1)
    (folder / "tokenizer_config.json").write_text(json.dumps(named | {"add_bos_token": False}))
    ends = [3, 260, 261, 262]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.warns(UserWarning, match=r"not at \[262\] of generation_config"):
        to_gguf(folder, tmp_path / "x.gguf", "F16")
    file = llama_cpp.Model(tmp_path / "x.gguf")
    assert file.begin == [] and [i for i in ends if file.ends(i)] == ends[:3]
    assert not file.ends(5) and model.config.eos_id == 3
    released = named | {"split_special_tokens": True}  # as this book does
    (folder / "tokenizer_config.json").write_text(json.dumps(released))
    own = gguf_file.vocabulary(folder, model.config)
    assert own.beside.begin == (3,) and "ids = [3, *tokenizer" in gguf_file.script(own)
    config = json.loads((folder / "config.json").read_text()) | {"bos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))  # no model of this book
    own = gguf_file.vocabulary(folder, model.config)
    assert own.beside.begin == () and "ids = [*tokenizer" in gguf_file.script(own)


def test_a_damaged_file_is_refused_in_a_line_and_this_process_lives(files, tmp_path):
    whole, path = files["Q4_0"].read_bytes(), tmp_path / "x.gguf"
    header = gguf.GGUFReader(files["Q4_0"]).data_offset
    at = whole.index(b"llama.block_count") + len("llama.block_count") + 4
    broken = [whole[:size] for size in (30, header // 2, len(whole) - 100)]
    broken += [whole[:at] + b"\x07" + whole[at + 1 :]]  # more layers than there are
    broken += [whole.replace(b"tokenizer.ggml.model", b"tokenizer.ggml.mxdel")]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"\A.*x\.gguf .*again.*\Z"):
            llama_cpp.Model(path)


def test_generating_is_one_forward_after_another_and_what_it_cannot_take_is_an_error(files):
    file = llama_cpp.Model(files["F16"])
    new = file.generate([3, 300, 5], 20)
    assert new == file.logprobs([3, 300, 5, *new]).argmax(1)[2:-1].tolist()
    drawn = [[*file.stream([3], 20, temperature=1.0, seed=seed)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    for ids, fault in (([3, 700], "id 700 is none of the 700"), ([3] * 50, "50 .* context of 48")):
        with pytest.raises(ValueError, match=fault):
            file.logprobs(ids)
    assert len(file.generate([3] * 40, 9)) == 9


def test_drafts_change_no_text_and_another_vocabulary_drafts_nothing(files, tokenizer, tmp_path):
    saved(tmp_path / "other", tokenizer.path, tokenizer.size, seed=1)
    to_gguf(tmp_path / "other", tmp_path / "other.gguf", "Q4_0")
    less = tokenizer_files.train(["ఒక ఊరిలో ఒక రాజు"] * 99, 290, tmp_path / "tokenizer.model").path
    saved(tmp_path / "less", less, 290)
    to_gguf(tmp_path / "less", tmp_path / "less.gguf", "Q4_0")
    given = [[3, 300, 5], [60, 7, 400]], 12, 1
    own = inference.speculative(files["Q4_0"], files["Q4_0"], *given)
    other = inference._speculative(files["Q4_0"], tmp_path / "other.gguf", *given)
    assert own["accepted"] > 0.9 > 0.5 > other["accepted"]
    assert own["same"] == own["texts"] == other["same"] == 2
    alone, drafted = own["rows"]
    assert "drafted" in drafted["way"] and alone["decode"] > drafted["decode"] / 9 > 0
    with pytest.raises(ValueError, match=r"less.gguf draft for .*: name models of one vocabulary"):
        inference._speculative(files["Q4_0"], tmp_path / "less.gguf", *given)


def test_costs_are_those_of_dense_float64_over_documents(made, files, tokenizer, tmp_path):
    """Of the files by their dequantized weights: llama.cpp rounds activations too, to 8 bits, so
    the two are near and not equal. The last is of a model that is surer of itself, so that
    KL(model ‖ file) is not the other way's."""
    saved(tmp_path / "other", tokenizer.path, tokenizer.size, scale=15.0, seed=1)
    to_gguf(tmp_path / "other", tmp_path / "other.gguf", "F16")
    stream = np.array([i for ids in shipping.draw_prompts(made[1].config, None) for i in ids])
    mask, rows = np.ones(48 * 40 + 1, "u1"), np.array([0, 6, 13, 20, 26, 32, 39])
    mask[20 * 48 + 5 : 20 * 48 + 30] = mask[13 * 48 + 1 : 14 * 48 + 1] = 0
    tokens = data.Tokens(tmp_path, {}, *[data.Windows(stream[: len(mask)], 48, mask)] * 2)
    judge = tiny_model(3, made[1].config.vocab_size, 48)
    quantized = {q: files[q] for q in ("Q8_0", "Q4_0")} | {"F16": tmp_path / "other.gguf"}
    given = common.file_costs(made[0], quantized, tokens, 7, judge)
    assert [row["format"] for row in given] == ["PyTorch float32", "PyTorch INT8", *quantized]
    nets = [made[1], Decoder(made[1], int8=True)]
    for path in quantized.values():
        nets.append(Llama.load(made[0]))
        nets[-1].load_state_dict(of_file(path, made[1]))
    own_W4, kls = None, []
    for net, row in zip(nets, given, strict=True):
        values = []
        for w in np.delete(rows, 2):  # that has no target
            own, by_judge = (dense(net, other, tokens.val, [w]) for other in (made[1], judge))
            parts = own["loss"], own["kl"], own["same"], 1 - by_judge["apart"]
            values.append([x.mean() for x in parts])
        values_W4 = np.array(values)
        own_W4 = values_W4 if own_W4 is None else own_W4
        kls.append(values_W4[:, 1].mean())
        exact = row["format"].startswith("PyTorch")
        for k, metric in enumerate(inference.FORMS):
            near = partial(pytest.approx, abs=2e-6 if exact else 0.04)
            assert row[metric] == near(values_W4[:, k].mean()), (row["format"], metric)
            if exact:  # documents of two windows each: 0 and 6, 20 and 26, 32 and 39
                wanted = change(values_W4[:, k], own_W4[:, k], np.arange(6) // 2)
                assert row["changes"][metric] == near(wanted), metric
    assert [row["kl"] for row in given[3:]] == pytest.approx(kls[3:], 0.1) and given[0]["kl"] == 0
    assert given[2]["kl"] < 0.1 * given[3]["kl"]
    for other in (None, tiny_model(3, 97, 48)):  # no teacher, and one of another vocabulary
        found = common.file_costs(made[0], {}, tokens, 2, other)[1]
        assert np.isnan(found["acceptance"]) and inference.in_words(found)["acceptance"] == "–"


def test_what_four_bits_cost_a_model_is_the_loss_with_the_weights_of_the_file(made, tmp_path):
    """04's, minus its own."""
    ids = np.random.default_rng(0).integers(0, 700, 48 * 40)
    tokens = data.Tokens(tmp_path, {}, *[data.Windows(ids, 48)] * 2)
    rounded = gguf_file.rounded(made[1], inference.mean_squares(made[1], tokens.train))
    own, coarse = (evaluate.evaluate(net, tokens.val).window_loss_N for net in (made[1], rounded))
    folder = SimpleNamespace(place=lambda name: (made[0].parents[1], name))
    this = SimpleNamespace(device="cpu", folder=folder)
    found = comparison.rounding(this, {"50m": own, "adapter": own}, tokens)
    assert found == {"50m": pytest.approx(change(coarse, own, np.arange(39) // 16), abs=1e-5)}


def test_a_model_folder_becomes_a_folder_to_ship(made, files, tmp_path, capsys):
    def make(folder: Path, *more: str) -> tuple[int, str]:
        code = main(["export", f"OUT={tmp_path / 'exports'}", f"MODEL={folder}", *more])
        return code, capsys.readouterr().out

    code, shown = make(made[0])
    assert code == 0 and "files take raw text" in shown
    formats = gguf_file.formats(made[1].config)
    assert [line.split()[0] for line in shown.splitlines()[4:9]] == formats
    out = tmp_path / "exports" / "50m"
    names = {f"50m-115K-{q}.gguf" for q in formats}
    others = {"README.md", "tokenizer.model", MARK}
    assert {path.name for path in out.iterdir()} == names | others
    card = (out / "README.md").read_text("utf8")
    assert all(name in card for name in names)
    assert '-p "ఒక ఊరిలో"' in card and "begins each prompt after `<eos>`" in card
    ids = np.random.default_rng(0).integers(0, made[1].config.vocab_size, 48 * 40)
    about = dict(vocab_size=made[1].config.vocab_size, block_size=48)
    tokens = token_folder(tmp_path / "tokens", ids, ids, **about)
    code, shown = make(made[0], f"TOKENS={tokens}")
    said = "each weight counts by the mean square of its input on 39 windows of the training text"
    about, _, card = (out / "README.md").read_text("utf8").partition("## What each format costs")
    assert f"In rounding {said} (imatrix)." in about and f"in rounding {said}" in shown
    weigh = inference.mean_squares(made[1], token_files.open_tokens(tokens).train)
    to_gguf(made[0], tmp_path / "x.gguf", "IQ4_NL", weigh)
    shipped = (out / "50m-115K-IQ4_NL.gguf").read_bytes()
    assert (tmp_path / "x.gguf").read_bytes() == shipped != files["IQ4_NL"].read_bytes()
    told = re.findall(r"^\|? *(PyTorch \w+|F16|I?Q\w+) .*", shown, re.M)
    assert code == 0 and told == [*formats, "PyTorch float32", "PyTorch INT8", *formats]
    assert "On 32 windows" in card and re.search(r"\| Q4_0 .*\] +\| – ", card)
