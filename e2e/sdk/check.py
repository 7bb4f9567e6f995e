"""Holds a server against the official OpenAI SDK: streaming and not, and an error of each kind.

usage: check.py BASE_URL MODEL     (prints one line per check; exits 1 at the first that fails)
"""

import sys

import openai

base, model = sys.argv[1:3]
client = openai.OpenAI(base_url=f"{base}/v1", api_key="unused", max_retries=0, timeout=60)
question = [{"role": "user", "content": "What is Tandem?"}]


def check(name, holds, seen=""):
    print(f"{'ok  ' if holds else 'FAIL'} {name} {'' if holds else seen}")
    if not holds:
        sys.exit(1)


def refused(name, kind, code, **request):
    request = {"model": model, "messages": question, "max_tokens": 8} | request
    try:
        client.chat.completions.create(**request)
    except kind as error:
        body = error.body if isinstance(error.body, dict) else {}
        check(name, code is None or body.get("code") == code, repr(error))
        check(f"  {name} says why", len(str(body.get("message", ""))) > 20, repr(body))
    else:
        check(name, False, "it was accepted")


models = [m.id for m in client.models.list()]
check("models are listed", model in models, models)
check("one model can be asked for", client.models.retrieve(model).id == model)

whole = client.chat.completions.create(model=model, messages=question, max_tokens=60, temperature=0, seed=1)
text = whole.choices[0].message.content
check("non-streaming chat answers", bool(text.strip()), text)
check("usage adds up", whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens)
check("finish reason is known", whole.choices[0].finish_reason in ("stop", "length"))

pieces, reasons, usage = [], [], None
stream = client.chat.completions.create(
    model=model, messages=question, max_tokens=60, temperature=0, seed=1, stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.usage:
        usage = chunk.usage
    for choice in chunk.choices:
        pieces.append(choice.delta.content or "")
        reasons.append(choice.finish_reason)
check("streamed text is the same text", "".join(pieces) == text, "".join(pieces))
check("one finish reason, at the end", [r for r in reasons if r] == [whole.choices[0].finish_reason], reasons)
check("usage comes last", usage is not None and usage.total_tokens == whole.usage.total_tokens)

several = client.chat.completions.create(model=model, messages=question, max_tokens=12, n=2, seed=3, temperature=1)
check("n = 2 gives two choices", sorted(c.index for c in several.choices) == [0, 1])
scored = client.chat.completions.create(model=model, messages=question, max_tokens=4, logprobs=True, top_logprobs=3)
check("logprobs carry alternatives", all(len(t.top_logprobs) == 3 for t in scored.choices[0].logprobs.content))
stopped = client.chat.completions.create(model=model, messages=question, max_tokens=60, temperature=0, stop=[" "])
check("a stop string is not part of the text", " " not in stopped.choices[0].message.content)
plain = client.completions.create(model=model, prompt="7 8 9 10 ", max_tokens=12, temperature=0)
check("plain completion answers", bool(plain.choices[0].text), plain)

refused("context overflow", openai.BadRequestError, "context_length_exceeded",
        messages=[{"role": "user", "content": "word " * 20000}])
refused("image part", openai.BadRequestError, None, messages=[{"role": "user", "content": [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}])
refused("unknown model", openai.NotFoundError, "model_not_found", model="no-such-model")
refused("temperature out of range", openai.BadRequestError, None, temperature=-1)
refused("no messages", openai.BadRequestError, None, messages=[])
refused("too many choices", openai.BadRequestError, None, n=1000)
print("all checks hold")
