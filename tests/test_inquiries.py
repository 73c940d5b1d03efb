"""What the routes for texts ask of a model and answer with, without a service."""

import math
from dataclasses import replace

import numpy as np
import pytest
from services import GOLDEN

from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.serving.asking import Model
from hepti_mpi.serving.http import inquiries
from hepti_mpi.serving.http.fields import Fields, parsed
from hepti_mpi.serving.http.refusals import Refused


def model(case):
    made = read_model(GOLDEN / case)
    return Model(made.spec, made.files, "")


@pytest.mark.parametrize("route, case, fields", [
    (inquiries.embed, "bert_sentence", {"inputs": "a"}), (inquiries.embeddings, "bert_sentence", {"input": "a"}),
    (inquiries.predict, "bert_seqcls", {"inputs": "a"}), (inquiries.classify, "bert_seqcls", {"input": "a"}),
])  # fmt: skip
def test_what_would_make_other_tokens_is_not_passed_over(route, case, fields):
    """text-embeddings-inference puts the prompt of that name before each text, and cuts off at that side."""
    served = model(case)
    plain = route(served, Fields(fields)).requests
    same = route(served, Fields(fields | {"prompt_name": None, "truncation_direction": "Right"})).requests
    assert [one.arrays["ids"].tolist() for one in same] == [one.arrays["ids"].tolist() for one in plain]
    for more in ({"prompt_name": "query"}, {"truncation_direction": "Left"}):
        with pytest.raises(Refused, match="|".join(more)) as caught:
            route(served, Fields(fields | more))
        assert caught.value.status == 422 and caught.value.param in more


def test_what_other_servers_know_is_not_passed_over():
    served = model("bert_sentence")
    assert inquiries.embeddings(served, Fields({"input": "a", "task": "", "embedding_type": "float", "user": "me"})).requests
    for route, more in ((inquiries.embeddings, {"input_type": "query"}), (inquiries.embed, {"late_chunking": True})):
        with pytest.raises(Refused, match="which is not supported here; leave it out") as caught:
            route(served, Fields({"input": "a", "inputs": "a"} | more))
        assert caught.value.status == 422 and caught.value.param in more


@pytest.mark.parametrize("route, case, fields, other", [
    (inquiries.classify, "bert_seqcls", {"input": "a"}, {"inputs": "b"}),
    (lambda served, fields: inquiries.tokenize(served, fields, 8), "bert_sentence", {"inputs": "a"}, {"prompt": "b"}),
    (inquiries.rerank, "bert_seqcls", {"query": "q", "documents": ["a"]}, {"texts": ["b"]}),
])  # fmt: skip
def test_of_two_fields_that_stand_for_the_same_none_is_passed_over(route, case, fields, other):
    """/rerank answered the texts, and the documents were gone without a word."""
    served, name = model(case), next(iter(other))
    served.spec = replace(served.spec, labels=served.spec.labels[:1])  # of which a reranker has one
    same = [value for key, value in fields.items() if key != "query"][0]
    with pytest.raises(Refused, match=f"{name}.* are both given: leave one out") as caught:
        route(served, Fields(fields | other))
    assert caught.value.status == 422 and caught.value.param in {*fields, name}
    assert route(served, Fields(fields | {name: same})) and route(served, Fields({**fields, name: None}))


def test_raw_scores_are_those_of_the_model():
    served = model("bert_seqcls")
    logits = {"logits": np.arange(len(served.spec.labels), dtype=np.float32)}
    found = inquiries.predict(served, Fields({"inputs": "a", "raw_scores": True})).reply([logits])
    assert [one["score"] for one in found] == sorted(logits["logits"].tolist(), reverse=True)[:5]
    assert math.isclose(sum(one["score"] for one in inquiries.predict(served, Fields({"inputs": "a"})).reply([logits])), 1, rel_tol=1e-5)


@pytest.mark.parametrize("body, where", [(b"{nope", "line 1 column 2"), (b'{"a": "\xff"}', "position 7")])
def test_where_a_body_is_no_json_is_said_to_the_end(body, where):
    with pytest.raises(Refused, match=f"is not JSON: .*{where}") as caught:
        parsed(body)
    assert caught.value.status == 400


def test_a_body_that_says_something_twice_is_refused():
    """The last was answered."""
    with pytest.raises(Refused, match='the body is not taken as JSON: it has "input" twice') as caught:
        parsed(b'{"input": "a", "input": "b"}')
    assert caught.value.status == 400
