"""What each route asks of the model and how it is answered: OpenAI's embeddings, Jina's and text-embeddings-inference's reranking,
embedding and classes. Knows fields, requests and results; knows no connection and no engine.
"""

import base64
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.models.tasks.heads import Result, numbers
from hepti_mpi.serving.asking import Model, Text
from hepti_mpi.serving.http.fields import Fields, data_url, is_tokens, listed, shown, sound
from hepti_mpi.serving.http.refusals import Refused
from hepti_mpi.serving.http.unmet import VECTORS, check_met

Reply = Callable[[Sequence[Result]], Any]


@dataclass
class Inquiry:
    """Requests, and what becomes of their results: a document that is JSON. `headers`: what the answer's say besides."""

    requests: list[Request]
    reply: Reply
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cut = sum(request.truncated for request in self.requests)
        if cut:
            self.headers["x-truncated-inputs"] = str(cut)  # as the checkpoint says; a client may want to know


def check_name(model: Model, fields: Fields) -> None:
    """Refuse a model that is not the one that is served."""
    asked = fields.text("model", "") or model.spec.name
    if asked != model.spec.name:
        raise Refused(404, f"model {asked[:60]!r} is not served here; served is {model.spec.name!r}", "model", "model_not_found")


def check_kept(model: Model, fields: Fields) -> None:
    """Refuse what asks for other tokens of the texts than the store makes of them: passed over, the answer would be another's."""
    if name := fields.text("prompt_name", ""):
        why = "a store has only the prompt that its model puts before all texts; write this one before the texts"
        raise Refused(422, f"prompt_name is {shown(name)}: {why}", "prompt_name")
    side = fields.text("truncation_direction", "")
    if side and not model.takes_pictures and side.lower() != model.tokens.side:
        why = f"this model's texts are cut off at the {model.tokens.side}"
        raise Refused(422, f"truncation_direction is {shown(side)}: {why}", "truncation_direction")


def usage(requests: Sequence[Request]) -> dict[str, int]:
    tokens = sum(request.rows for request in requests)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def embeddings(model: Model, fields: Fields) -> Inquiry:
    """OpenAI's /v1/embeddings."""
    check_name(model, fields)
    check_met(fields, VECTORS)
    check_kept(model, fields)
    model.check_embeds()
    coding = fields.choice("encoding_format", ("float", "base64"))
    size = fields.number("dimensions", 1, 1 << 20, whole=True)
    asked = fields.any("input")
    if is_tokens(asked):
        asked = [asked]
    if isinstance(asked, list) and asked and all(map(is_tokens, asked)):
        requests = model.ids(listed("input", asked))
    else:
        requests = model.texts(fields.texts("input")[0])

    def reply(results: Sequence[Result]) -> Any:
        values = shortened(model.embeddings(requests, results), None if size is None else int(size))
        coded: Callable[[np.ndarray], Any] = numbers if coding == "float" else in_base64
        data = [{"object": "embedding", "index": index, "embedding": coded(one)} for index, one in enumerate(values)]
        return {"object": "list", "model": model.spec.name, "data": data, "usage": usage(requests)}

    return Inquiry(requests, reply)


def shortened(values: np.ndarray, size: int | None) -> np.ndarray:
    """Return the first `size` numbers of each embedding, of length 1 where the whole ones are. Raises Refused."""
    if size is None or size == values.shape[1]:
        return values
    if size > values.shape[1]:
        raise Refused(422, f"dimensions is {size}, the model's embeddings have {values.shape[1]}", "dimensions")
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    short = values[:, :size]
    return normalised(short) if np.allclose(lengths, 1, atol=1e-4) else short


def normalised(values: np.ndarray) -> np.ndarray:
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.float32(1e-12)), np.float32)


def in_base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def embed(model: Model, fields: Fields) -> Inquiry:
    """text-embeddings-inference's /embed: embeddings of length 1 unless told otherwise, and texts cut off only where told so."""
    check_met(fields, VECTORS)
    check_kept(model, fields)
    model.check_embeds()
    texts, _ = fields.texts("inputs")
    size, unit = fields.number("dimensions", 1, 1 << 20, whole=True), fields.flag("normalize", True)
    cuts, requests = fields.flag("truncate", False), model.texts(texts)
    cut = [request for request in requests if request.truncated]
    if cut and not cuts:
        raise Refused(413, f"{cut[0].origin} is longer than the model takes; shorten it, or let it be cut off with truncate", "inputs")

    def reply(results: Sequence[Result]) -> Any:
        values = shortened(model.embeddings(requests, results), None if size is None else int(size))
        return [numbers(one) for one in (normalised(values) if unit else values)]

    return Inquiry(requests, reply)


def rerank(model: Model, fields: Fields) -> Inquiry:
    """/rerank and /v1/rerank: as Jina and Cohere ask, with documents, or as text-embeddings-inference, with texts."""
    check_name(model, fields)
    check_kept(model, fields)
    model.check_ranks()
    query, name = fields.text("query"), fields.one_of("documents", "texts")
    plain = name == "texts"
    texts = [sound(name, one.get("text") if isinstance(one, dict) else one) for one in listed(name, fields.any(name), alone=False)]
    most = fields.number("top_n", 1, 1 << 20, whole=True)
    raw, whole = fields.flag("raw_scores", False), fields.flag("return_text", False) or fields.flag("return_documents", False)
    requests = model.texts([(query, text) for text in texts])

    def reply(results: Sequence[Result]) -> Any:
        scores = model.scores(requests, results, raw)
        best = np.argsort(-scores, kind="stable")[: None if most is None else int(most)]
        ranked = list(zip(best.tolist(), numbers(scores[best])))
        if plain:
            return [{"index": index, "score": score} | ({"text": texts[index]} if whole else {}) for index, score in ranked]
        documents = [{"document": {"text": text}} if whole else {} for text in texts]
        found = [{"index": index, "relevance_score": score, **documents[index]} for index, score in ranked]
        head = {"id": f"rerank-{secrets.token_hex(8)}", "object": "list", "model": model.spec.name}
        return head | {"results": found, "usage": usage(requests)}

    return Inquiry(requests, reply)


def predict(model: Model, fields: Fields) -> Inquiry:
    """text-embeddings-inference's /predict: classes of a text, of a pair (a list of two), or of a list of lists of one or two; of models
    that give no classes, what `run` answers with."""
    if model.spec.generates:
        raise InputError(f"model {model.spec.name} has nothing to predict: it writes text; ask it with /v1/completions")
    check_kept(model, fields)
    asked, raw = fields.any("inputs"), fields.flag("raw_scores", False)
    many = isinstance(asked, list) and any(isinstance(one, list) for one in asked)
    texts = [_text_or_pair(one) for one in (listed("inputs", asked) if many else [asked])]
    return _labelled(model, model.texts(texts), raw, lambda records: records if many else records[0])


def _text_or_pair(value: Any) -> Text:
    if isinstance(value, str):
        return sound("inputs", value)
    own = [sound("inputs", text) for text in listed("inputs", value)]
    if len(own) > 2:
        raise Refused(422, f"inputs has a list of {len(own)} texts, expected one or a pair; give several as a list of lists", "inputs")
    return own[0] if len(own) == 1 else (own[0], own[1])


def _labelled(model: Model, requests: list[Request], raw: bool, shaped: Callable[[list[Any]], Any]) -> Inquiry:
    def reply(results: Sequence[Result]) -> Any:
        records = model.records(requests, results, raw)
        if all("labels" in record for record in records):
            records = [record["labels"] for record in records]
        return shaped(records)

    return Inquiry(requests, reply)


def classify(model: Model, fields: Fields) -> Inquiry:
    """/classify of texts, or of pictures in data URLs."""
    check_name(model, fields)
    check_kept(model, fields)
    texts, _ = fields.texts(fields.one_of("input", "inputs"))
    if model.takes_pictures:
        return classes(model, model.pictures([data_url("input", text) for text in texts]))
    return classes(model, model.texts(texts))


def pictures(model: Model, contents: Sequence[bytes]) -> Inquiry:
    """/classify of the files of a form."""
    if not contents:
        raise Refused(422, "the form holds no file: send pictures as files, such as curl -F file=@cat.jpg")
    return classes(model, model.pictures(contents))


def classes(model: Model, requests: list[Request]) -> Inquiry:
    model.check_classifies()
    return Inquiry(requests, partial(_classes, model, requests))


def _classes(model: Model, requests: list[Request], results: Sequence[Result]) -> Any:
    data = []
    for index, record in enumerate(model.records(requests, results)):
        best = record["labels"][0] if record.get("labels") else {}
        data.append({"index": index, **best} | {key: record[key] for key in ("labels", "tokens") if key in record})
    return {"object": "list", "model": model.spec.name, "data": data, "usage": usage(requests)}


def tokenize(model: Model, fields: Fields, room: int) -> Any:
    """/tokenize: as text-embeddings-inference answers `inputs`, and as vLLM answers `prompt`. Asks nobody. `room`: tokens that the service
    takes of one text, with its answer where it writes."""
    name = fields.one_of("inputs", "prompt")
    if model.takes_pictures:
        raise InputError(f"model {model.spec.name} takes pictures: it has no tokens")
    texts = fields.texts(name)[0] if name == "inputs" else [fields.text(name)]
    added, tokens = fields.flag("add_special_tokens", True), model.tokens
    found = []
    for index, text in enumerate(texts):
        encoded = tokens.encode([text], f"input {index + 1}")
        own = [(number, bool(special)) for number, special in zip(encoded.ids, encoded.added) if added or not special]
        found.append([{"id": number, "text": tokens.piece(number), "special": special} for number, special in own])
    if name == "prompt":
        ids = [token["id"] for token in found[0]]
        return {"tokens": ids, "count": len(ids), "max_model_len": room}
    return found
