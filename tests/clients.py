"""Clients that people have, against a service that embeds and one that writes (as jobs/minilm.txt and jobs/smollm2.txt give them):

    python3 -m venv clients
    clients/bin/pip install openai langchain-openai llama-index-llms-openai-like llama-index-embeddings-openai-like
    clients/bin/python tests/clients.py http://localhost:8080 http://localhost:8081

Each line says what was asked and tried; one that fails ends it. A client that is not installed is named and left out. With one address
twice, what the model is not for is left out too.
"""

import importlib.util
import json
import math
import sys
import urllib.request

TALK = [{"role": "user", "content": "What is the capital of France?"}]
TOOL = {"type": "function", "function": {"name": "turn_on", "description": "Turn on a light",
                                         "parameters": {"type": "object", "properties": {"name": {"type": "string"}}}}}  # fmt: skip


def model_of(address):
    """Return the name and what is made of the model behind an address, as its list of models says."""
    with urllib.request.urlopen(f"{address}/v1/models") as response:
        (one,) = json.load(response)["data"]
    return one["id"], one["meta"]["gives"]


def close(one, other):
    return len(one) == len(other) and max(abs(a - b) for a, b in zip(one, other)) < 1e-5


def openai(embeds, writes):
    import openai

    if embeds:
        client, name = openai.OpenAI(base_url=f"{embeds}/v1", api_key="none"), model_of(embeds)[0]
        coded = client.embeddings.create(model=name, input=["the cat sat", "good morning"])  # as base64, which it asks for by itself
        plain = client.embeddings.create(model=name, input="the cat sat", encoding_format="float")
        assert len(coded.data) == 2 and close(coded.data[0].embedding, plain.data[0].embedding) and coded.usage.total_tokens > 2
        refused(lambda: client.embeddings.create(model="gpt-4", input="a"), openai.NotFoundError)
        refused(lambda: client.embeddings.create(model=name, input=[]), openai.UnprocessableEntityError)
    if writes:
        client, name = openai.OpenAI(base_url=f"{writes}/v1", api_key="none"), model_of(writes)[0]
        how = {"model": name, "messages": TALK, "temperature": 0, "max_tokens": 12}
        whole = client.chat.completions.create(**how)
        parts = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **how))
        assert whole.choices[0].finish_reason in ("stop", "length") and parts[-1].usage == whole.usage and not parts[-1].choices
        assert "".join(part.choices[0].delta.content or "" for part in parts[:-1]) == whole.choices[0].message.content
        told = client.completions.create(model=name, prompt="The capital of France is", max_tokens=3, temperature=0, logprobs=2)
        assert told.choices[0].text and len(told.choices[0].logprobs.tokens) == 3


def langchain(embeds, writes):
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    if embeds:
        own = OpenAIEmbeddings(base_url=f"{embeds}/v1", api_key="none", model=model_of(embeds)[0], check_embedding_ctx_length=False)
        first, _ = own.embed_documents(["the cat sat", "good morning"])
        assert close(first, own.embed_query("the cat sat"))
    if writes:
        own = ChatOpenAI(base_url=f"{writes}/v1", api_key="none", model=model_of(writes)[0], temperature=0, max_tokens=12)
        assert own.invoke("Say hi").content == "".join(part.content for part in own.stream("Say hi"))


def llama_index(embeds, writes):
    from llama_index.core.llms import ChatMessage
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding
    from llama_index.llms.openai_like import OpenAILike

    if embeds:
        own = OpenAILikeEmbedding(model_name=model_of(embeds)[0], api_base=f"{embeds}/v1", api_key="none")
        assert math.isclose(sum(value**2 for value in own.get_text_embedding("the cat sat")), 1, abs_tol=1e-3)
    if writes:
        how = {"is_chat_model": True, "temperature": 0, "max_tokens": 12}
        own = OpenAILike(api_base=f"{writes}/v1", api_key="none", model=model_of(writes)[0], **how)
        asked = [ChatMessage(role="user", content="Say hi")]
        assert own.chat(asked).message.content == "".join(part.delta or "" for part in own.stream_chat(asked))


def home_assistant(embeds, writes):
    """As its llama.cpp integration asks before it takes a server: for models, then three tokens with a tool, whole and as a stream."""
    if not writes:
        return
    name, _ = model_of(writes)
    for stream in (False, True):
        asked = {"model": name, "messages": TALK, "max_tokens": 3, "tools": [TOOL], "stream": stream}
        sent = urllib.request.Request(f"{writes}/v1/chat/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(sent) as response:
            said = response.read()
            kind = response.headers["content-type"]
        if stream:
            assert kind.startswith("text/event-stream") and said.endswith(b"data: [DONE]\n\n"), said
            parts = [json.loads(line[6:]) for line in said.splitlines() if line.startswith(b"data: {")]
            assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
            assert [part["choices"][0]["finish_reason"] for part in parts][-1] in ("length", "stop", "tool_calls")
        else:
            found = json.loads(said)
            assert found["object"] == "chat.completion" and found["choices"][0]["message"]["role"] == "assistant"
            assert 0 < found["usage"]["completion_tokens"] <= 3


def refused(ask, kind):
    try:
        ask()
    except kind as error:
        assert error.body["message"], error
    else:
        raise AssertionError("it was answered")


CLIENTS = {"openai": openai, "langchain_openai": langchain, "llama_index": llama_index, "": home_assistant}


def main():
    addresses = [one.rstrip("/").removesuffix("/v1") for one in sys.argv[1:]]
    made = {model_of(one)[1]: one for one in addresses}
    for package, check in CLIENTS.items():
        if package and importlib.util.find_spec(package) is None:
            print(f"{check.__name__}: not installed")
            continue
        check(made.get("embeddings"), made.get("text"))
        print(f"{check.__name__}: passed for {', '.join(made)}")


if __name__ == "__main__":
    main()
