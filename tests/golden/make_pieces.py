"""Write pieces.json: two small SentencePiece models of BPE with bytes, and how they cut texts. Needs: pip install sentencepiece==0.2.3."""

import io
import json
from pathlib import Path

import sentencepiece

HERE = Path(__file__).parent
PAGES = (HERE.parents[1] / "README.md", HERE.parents[1] / "hepti_mpi" / "commands" / "README.md")
TEXTS = ["Hello world", " leading", "two  blanks   three", "", "a\nb\tc", "naïve café", "日本語のテキスト", "emoji 🙂 end", "the ranks",
         "x", " ", "plan --layout heads/columns", "Numbers 1234567 and 3.14", "trailing  ", "\n\n", "▁ odd", "mixed日本 text",
         "The quick brown fox jumps over the lazy dog.", "é́ combining", "\u00a0nbsp", "ranks ranks ranks", "answers.jsonl"]  # fmt: skip

def kind(model, number):
    """Return the type of a piece as GGUF files have it."""
    if model.is_unknown(number):
        return 2
    if model.is_control(number):
        return 3
    return 6 if model.is_byte(number) else 1


def made(prefix):
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("".join(page.read_text() for page in PAGES).splitlines()), model_writer=content, vocab_size=520,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, minloglevel=2, add_dummy_prefix=prefix,
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_proto=content.getvalue())
    every = range(model.get_piece_size())
    return {
        "tokens": [model.id_to_piece(one) for one in every], "scores": [model.get_score(one) for one in every],
        "token_type": [kind(model, one) for one in every],
        "texts": [[text, model.encode(text)] for text in TEXTS],
    }  # fmt: skip


found = {"made": f"sentencepiece {sentencepiece.__version__}", "llama": made(True), "gemma": made(False)}
(HERE / "pieces.json").write_text(json.dumps(found, ensure_ascii=False))
