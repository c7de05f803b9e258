"""Writes tokenizers/: small tokenizers of the kinds that published models have, trained on the text below, and
ids.json: what transformers makes of the texts of tokenizer_ids.py with them.

Usage: python small_tokenizers.py FOLDER

Nothing is cut from a published vocabulary. Where sentencepiece has trained the vocabulary, its own ids are compared too.
"""

import json
import pathlib
import shutil
import sys
import tempfile

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaTokenizer, Qwen2Tokenizer

from tokenizer_ids import TEXTS, directory_ids, ids_of

TEXT = """
The river was high after the rain, and the old bridge had begun to sing in the wind. Nobody in the village could say
when it was built. It isn't on the map of 1823, yet there it stands, with its seven arches and one lamp that's never lit.
Anna said: "We'll cross before noon." They've crossed it twice already; I'm not sure they should do so a third time.
A review of the walk: it was a good and pleasant journey, often charming, never dull. Sentiment: positive
Another review: the path was bad, the food was worse, and the weather was the worst of all. Sentiment: negative
Once there was a little girl who liked to count: 1, 2, 3, 45, 678, 9012, 3.14 and 1e-5. She counted lamps and lambs.
Řeka byla po dešti vysoká a starý most začal ve větru zpívat. Žluťoučký kůň stál na břehu a úpěl ďábelské ódy.
Příliš mnoho otázek, řekla Anna, a šla domů. Kdo ví, kdy byl most postaven?
Le café était fermé, naïve comme toujours; le garçon préférait l'été à l'hiver.
橋は古い。川は雨のあとで高くなった。漢字かな交じり文をここに書く。
Мост старый, река высокая. الجسر قديم والنهر عالٍ. הגשר ישן.
fn cross(bridge: &Bridge) -> Result<(), Error> { bridge.arches.iter().map(|a| a.len()).sum() }
snake_case names, CamelCase names and kebab-case names; tabs\tand  two  spaces, a (bracket) [or] {two} <more>.
"""
LINES = [line for line in TEXT.split("\n") if line] * 3
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM_WORDS = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def byte_level_bpe(specials, vocab_size, pre_tokenizer):
    """A byte-level BPE; `specials` get the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def bytes_only(**keys):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **keys})


def after_words(words):
    split = pre_tokenizers.Split(Regex(words), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, bytes_only(use_regex=False)])


def write(folder, name, tokenizer, config=None):
    (folder / name).mkdir(parents=True)
    tokenizer.save(str(folder / name / "tokenizer.json"))
    if config is not None:
        put(folder / name / "tokenizer_config.json", config)


def put(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def llama(folder):
    """A sentencepiece BPE with byte fallback, as transformers saves it."""
    with tempfile.TemporaryDirectory() as temp:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES), model_prefix=f"{temp}/tokenizer", model_type="bpe", vocab_size=620, byte_fallback=True, split_digits=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, character_coverage=0.98,
            unk_surface="", minloglevel=2,
        )
        LlamaTokenizer.from_pretrained(temp, legacy=False).save_pretrained(folder / "llama")
        model = sentencepiece.SentencePieceProcessor(f"{temp}/tokenizer.model")
    config = json.loads((folder / "llama" / "tokenizer_config.json").read_text())
    for key in ("name_or_path", "is_local", "local_files_only", "backend"):
        config.pop(key, None)
    put(folder / "llama" / "tokenizer_config.json", config)
    ours = AutoTokenizer.from_pretrained(folder / "llama")
    for text in TEXTS:
        # Special tokens' texts are ordinary text for sentencepiece, which puts a ▁ before a leading space too.
        if not any(special in text for special in ("<s>", "</s>", "<unk>")) and not text.startswith((" ", "▁")):
            assert ours(text, add_special_tokens=False)["input_ids"] == model.encode(text), text


def llama2(folder):
    """The same vocabulary in the older form: a normalizer puts the ▁, `unk_token` is named, merges are lines."""
    value = json.loads((folder / "llama" / "tokenizer.json").read_text())
    value["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    value["pre_tokenizer"] = None
    value["model"]["unk_token"] = "<unk>"
    value["model"]["merges"] = [" ".join(pair) for pair in value["model"]["merges"]]
    (folder / "llama2").mkdir()
    put(folder / "llama2" / "tokenizer.json", value)
    token = lambda text: {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    config = {"add_bos_token": True, "add_eos_token": False, "bos_token": token("<s>"), "eos_token": token("</s>"), "unk_token": token("<unk>"),
              "pad_token": None, "model_max_length": 10**30, "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer"}
    put(folder / "llama2" / "tokenizer_config.json", config)


def characters(folder):
    """Characters alone, with nothing to fall back to: those that are unknown vanish."""
    value = json.loads((folder / "llama" / "tokenizer.json").read_text())
    tokens = ["<unk>", "<s>", "</s>", "▁", "\n", *(chr(c) for c in range(33, 127))]
    value["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
    value["model"]["merges"] = []
    (folder / "characters").mkdir()
    put(folder / "characters" / "tokenizer.json", value)
    shutil.copyfile(folder / "llama" / "tokenizer_config.json", folder / "characters" / "tokenizer_config.json")


def gpt2(folder):
    """No configuration, and its one special token has the last id."""
    tokenizer = byte_level_bpe([], 600, bytes_only())
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=True)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    write(folder, "gpt2", tokenizer)


def opt(folder):
    """A vocabulary and merges alone."""
    tokenizer = byte_level_bpe(["<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>"], 600, bytes_only())
    (folder / "opt").mkdir()
    tokenizer.model.save(str(folder / "opt"))


def qwen2(folder):
    """As transformers' own class saves it."""
    made = byte_level_bpe([], 600, bytes_only())
    with tempfile.TemporaryDirectory() as temp:
        made.model.save(temp)
        vocab = json.loads(pathlib.Path(temp, "vocab.json").read_text(encoding="utf-8"))
        merges = [tuple(line.split(" ")) for line in pathlib.Path(temp, "merges.txt").read_text(encoding="utf-8").split("\n")[1:] if line]
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(folder / "qwen2")


def bloom(folder):
    """Words are cut by a pattern of its own."""
    tokenizer = byte_level_bpe(["<unk>", "<s>", "</s>", "<pad>"], 600, after_words(BLOOM_WORDS))
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    write(folder, "bloom", tokenizer, {"unk_token": "<unk>", "eos_token": "</s>", "bos_token": "<s>", "pad_token": "<pad>", "add_prefix_space": False,
                                       "tokenizer_class": "BloomTokenizerFast"})


def llama3(folder):
    """Byte-level with BOS by a template; words of the vocabulary are taken whole, whatever the merges say."""
    tokenizer = byte_level_bpe([], 600, after_words(LLAMA3_WORDS))
    value = json.loads(tokenizer.to_str())
    value["model"]["ignore_merges"] = True
    # A word that no merge makes: `ignore_merges` shows.
    value["model"]["vocab"]["Ġquick"] = len(value["model"]["vocab"])
    tokenizer = Tokenizer.from_str(json.dumps(value))
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    template = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    tokenizer.decoder = decoders.ByteLevel()
    write(folder, "llama3", tokenizer, {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "clean_up_tokenization_spaces": False,
                                        "tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]})


def gemma(folder):
    """A sentencepiece BPE without a space before a text, BOS by a template, and marks of turns."""
    value = json.loads((folder / "llama" / "tokenizer.json").read_text())
    old = value["model"]["vocab"]
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    others = [token for token, _ in sorted(old.items(), key=lambda item: item[1]) if token not in ("<unk>", "<s>", "</s>")]
    value["model"] = {**value["model"], "vocab": {token: i for i, token in enumerate(first + others)}, "unk_token": "<unk>"}
    value["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    value["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    value["decoder"] = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    value["added_tokens"] = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} for i, token in enumerate(first)]
    value["post_processor"] = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
                               "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}}
    (folder / "gemma").mkdir()
    put(folder / "gemma" / "tokenizer.json", value)
    listed = {str(i): {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True} for i, token in enumerate(first)}
    config = {"add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": listed, "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"], "bos_token": "<bos>", "eos_token": "<eos>",
              "pad_token": "<pad>", "unk_token": "<unk>", "clean_up_tokenization_spaces": False, "spaces_between_special_tokens": False, "tokenizer_class": "GemmaTokenizer"}
    put(folder / "gemma" / "tokenizer_config.json", config)


def neox(folder):
    """Byte-level behind NFC; runs of spaces are added tokens that are not special."""
    tokenizer = byte_level_bpe(["<|endoftext|>", "<|padding|>"], 600, bytes_only())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=True)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in (8, 4, 3, 2)])
    write(folder, "neox", tokenizer, {"add_prefix_space": False, "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "clean_up_tokenization_spaces": True,
                                      "tokenizer_class": "GPTNeoXTokenizer"})


# Files, what the model beside them is, and keys of tokenizer_config.json above the file's own.
DIRECTORIES = [
    ("llama2", "mistral", {}),
    ("llama2", "llama", {"add_bos_token": False, "add_eos_token": True}),
    ("llama2", "llama", {"legacy": True, "tokenizer_class": "LlamaTokenizerFast"}),
    ("llama", "llama", {"add_prefix_space": False}),
    ("gpt2", "gpt2", {"add_prefix_space": True}),
    ("gpt2", "llama", {"add_prefix_space": True, "add_bos_token": True, "bos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}),
    ("gpt2", "qwen2", {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>"}),
    ("opt", "opt", {"add_prefix_space": True, "add_bos_token": True, "tokenizer_class": "GPT2Tokenizer",
                    "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}),
    ("bloom", "bloom", {}),
    ("llama3", "llama", {}),
    ("gemma", "gemma2", {}),
    ("gemma", "gemma3_text", {"tokenizer_class": "GemmaTokenizerFast"}),
    ("gemma", "gemma3", {"tokenizer_class": None}),
    ("gemma", "gemma2", {"add_bos_token": False, "add_eos_token": True}),
    ("gemma", "gemma2", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ("gemma", "gemma3_text", {"tokenizer_class": "LlamaTokenizer"}),
    ("neox", "gpt_neox", {}),
    ("neox", "gpt_neox", {"add_bos_token": True}),
    ("neox", "gpt_neox", {"add_eos_token": True, "add_prefix_space": True, "tokenizer_class": "GPTNeoXTokenizerFast"}),
    ("neox", "gpt_neox", {"tokenizer_class": None}),
    ("neox", "olmo2", {"tokenizer_class": "GPTNeoXTokenizerFast", "add_bos_token": True}),
    ("qwen2", "qwen3", {}),
    ("qwen2", "qwen3", {"tokenizer_class": None, "add_bos_token": False}),
    ("llama3", "qwen3", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ("llama3", "qwen3", {"tokenizer_class": "Qwen2TokenizerFast", "bos_token": None}),
    ("llama3", "olmo2", {"tokenizer_class": "GPT2Tokenizer"}),
    ("llama3", "olmo3", {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True}),
    ("llama3", "olmo3", {"tokenizer_class": "TokenizersBackend"}),
    ("llama2", "phi3", {}),
    ("llama2", "phi3", {"legacy": False, "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False}),
    ("llama3", "phi3", {"tokenizer_class": "GPT2Tokenizer"}),
    ("gpt2", "phi", {"tokenizer_class": "CodeGenTokenizer"}),
    ("gpt2", "phi", {"tokenizer_class": None}),
    ("llama3", "phi", {"tokenizer_class": "CodeGenTokenizerFast", "add_prefix_space": True, "add_bos_token": True}),
    ("gpt2", "gptj", {"tokenizer_class": "GPT2Tokenizer"}),
    ("llama3", "gptj", {"tokenizer_class": None}),
]


def main():
    folder = pathlib.Path(sys.argv[1]) / "tokenizers"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for make in (llama, llama2, characters, gpt2, opt, qwen2, bloom, llama3, gemma, neox):
        make(folder)
    names = sorted(path.name for path in folder.iterdir())
    out = {"texts": TEXTS, "tokenizers": {name: ids_of(folder / name) for name in names}}
    out["directories"] = [directory_ids(folder, *directory) for directory in DIRECTORIES]
    (folder / "ids.json").write_text(json.dumps(out, ensure_ascii=True, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
