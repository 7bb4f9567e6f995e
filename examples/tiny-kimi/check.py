"""Asks a GGUF of tiny-kimi everything it should know: `python check.py tiny-kimi-Q4_K_M.gguf`.

The decoder is numpy in float32 on the dequantised weights, one token at a time with Kimi's cache of one latent
vector per token and layer. It shares no code with training, only the tokenizer. With --checkpoint, its logits on
unquantised weights are held against the training pass. The table for the card goes to stdout; wrong answers and the
stories go to stderr.
"""

import argparse
import math
import random
import sys

import gguf
import numpy as np

import corpus
from tokenizer import Tokenizer

COUNTS = [("7 8 9 10 ", 640), ("0 1 2 3 ", 640), ("88 89 90 ", 400), ("985 986 987 ", 400), ("2397 2398 ", 400), ("9940 9941 ", 280)]
STORY_TOKENS = 1100


def read(path):
    """(metadata by key, float32 arrays by name) of a GGUF."""
    reader = gguf.GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    arrays = {}
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        arrays[tensor.name] = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
    return metadata, arrays


def _rms_norm(x, weight, epsilon):
    return x / np.sqrt((x * x).mean() + epsilon) * weight


def _silu(x):
    return x / (1 + np.exp(-x))


def _softmax(x):
    shares = np.exp(x - x.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


class Decoder:
    """One sequence. step(id) returns the logits of the next token."""

    def __init__(self, metadata, arrays):
        self.value = lambda key: metadata[f"deepseek2.{key}"]
        self.arrays = arrays
        self.layers = self.value("block_count")
        self.epsilon = self.value("attention.layer_norm_rms_epsilon")
        self.latent = self.value("attention.kv_lora_rank")
        self.rope = self.value("rope.dimension_count")
        factor = self.value("rope.scaling.factor")
        stretch = 1 + self.value("rope.scaling.yarn_log_multiplier") * math.log(factor)
        self.scale = stretch**2 / math.sqrt(self.value("attention.key_length_mla"))
        self.speeds = self._yarn_speeds(factor)
        self.cache = [np.zeros((0, self.latent + self.rope), np.float32) for _ in range(self.layers)]

    def _yarn_speeds(self, factor):
        base, original = self.value("rope.freq_base"), self.value("rope.scaling.original_context_length")
        speeds = []
        edges = [
            self.rope * math.log(original / (self.value(f"rope.scaling.yarn_beta_{end}") * 2 * math.pi)) / (2 * math.log(base))
            for end in ("fast", "slow")
        ]
        low, high = max(0, math.floor(edges[0])), min(self.rope - 1, math.ceil(edges[1]))
        for pair in range(self.rope // 2):
            speed = base ** (-2 * pair / self.rope)
            stretched = min(1, max(0, (pair - low) / max(0.001, high - low)))
            speeds.append(speed * (1 - stretched) + speed / factor * stretched)
        return np.array(speeds)

    def _rotate(self, x, position):
        cos, sin = np.cos(position * self.speeds).astype(np.float32), np.sin(position * self.speeds).astype(np.float32)
        turned = np.empty_like(x)
        turned[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
        turned[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
        return turned

    def _attention(self, layer, weight, x):
        position = len(self.cache[layer])
        q = weight("attn_q_b") @ _rms_norm(weight("attn_q_a") @ x, weight("attn_q_a_norm"), self.epsilon)
        q = q.reshape(self.value("attention.head_count"), -1)
        compressed = weight("attn_kv_a_mqa") @ x
        latent = _rms_norm(compressed[: self.latent], weight("attn_kv_a_norm"), self.epsilon)
        row = np.concatenate([latent, self._rotate(compressed[self.latent :], position)])
        self.cache[layer] = cache = np.concatenate([self.cache[layer], row[None]])
        nope, rope = q[:, : -self.rope], q[:, -self.rope :]
        absorbed = np.einsum("hln,hn->hl", weight("attn_k_b"), nope)
        query = np.concatenate([absorbed, self._rotate(rope, position)], -1)
        mixed = _softmax(query @ cache.T * self.scale) @ cache[:, : self.latent]
        return weight("attn_output") @ np.einsum("hvl,hl->hv", weight("attn_v_b"), mixed).ravel()

    def _feed_forward(self, weight, x, kind):
        return weight("ffn_down" + kind) @ (_silu(weight("ffn_gate" + kind) @ x) * (weight("ffn_up" + kind) @ x))

    def _experts(self, weight, x, bias):
        gate = 1 / (1 + np.exp(-(weight("ffn_gate_inp") @ x)))
        chosen = np.argsort(-(gate + bias), kind="stable")[: self.value("expert_used_count")]
        shares = gate[chosen] / gate[chosen].sum() * self.value("expert_weights_scale")
        return sum(
            share * self._feed_forward(lambda name: weight(name)[expert], x, "_exps")
            for expert, share in zip(chosen, shares)
        )

    def step(self, token):
        x = self.arrays["token_embd.weight"][token]
        for layer in range(self.layers):
            def weight(name, at=f"blk.{layer}."):
                return self.arrays[f"{at}{name}.weight"]

            x = x + self._attention(layer, weight, _rms_norm(x, weight("attn_norm"), self.epsilon))
            h = _rms_norm(x, weight("ffn_norm"), self.epsilon)
            if layer < self.value("leading_dense_block_count"):
                x = x + self._feed_forward(weight, h, "")
            else:
                bias = self.arrays[f"blk.{layer}.exp_probs_b.bias"]
                x = x + self._experts(weight, h, bias) + self._feed_forward(weight, h, "_shexp")
        return self.arrays["output.weight"] @ _rms_norm(x, self.arrays["output_norm.weight"], self.epsilon)


class Model:
    def __init__(self, metadata, arrays):
        self.metadata, self.arrays, self.tokenizer = metadata, arrays, Tokenizer()
        assert metadata["tokenizer.ggml.tokens"] == self.tokenizer.tokens, "file and merges.json are of different runs"
        self.ends = {self.tokenizer.ids["<|im_end|>"], self.tokenizer.ids["[EOS]"]}

    def run(self, prompt, limit, rng=None):
        """(text, entropy in bits of each draw, whether it ended itself); greedy, or at temperature 1 with an rng."""
        decoder, bits, ids = Decoder(self.metadata, self.arrays), [], []
        for token in self.tokenizer.encode(prompt):
            logits = decoder.step(token)
        for _ in range(limit):
            shares = _softmax(logits.astype(np.float64))
            bits.append(-(shares * np.log2(shares + 1e-300)).sum())
            token = int(shares.argmax()) if rng is None else int(rng.choice(len(shares), p=shares))
            if token in self.ends:
                return self.tokenizer.decode(ids), np.array(bits), True
            ids.append(token)
            logits = decoder.step(token)
        return self.tokenizer.decode(ids), np.array(bits), False

    def answer(self, question, limit=80, rng=None):
        return self.run(corpus.answer_to(corpus.turn("user", question)), limit, rng)


def right_numbers(text):
    """(numbers that follow their forerunner from the first on, numbers in all); a cut last one is left out."""
    found = text.split()[:-1]
    right = 1
    while right < len(found) and found[right] == str(int(found[0]) + right):
        right += 1
    return right, len(found)


def check_questions(model, which):
    rows = []
    for answer, learned, held_out in corpus.FACTS:
        for question in {"learned": learned, "held out": held_out}[which]:
            said, _, ended = model.answer(question)
            rows.append(said == answer and ended)
            if not rows[-1]:
                print(f"{question} -> {said}", file=sys.stderr)
    print(f"| questions, {which}: answered word for word | {sum(rows)} of {len(rows)} |", flush=True)


def check_counting(model):
    for prompt, limit in COUNTS:
        text, _, _ = model.run(prompt, limit)
        right, numbers = right_numbers(prompt + text)
        last = int(prompt.split()[0]) + right - 1
        print(f"| counting on from `{prompt.strip()}`, {limit} tokens | right up to {last}, {right} of {numbers} numbers |", flush=True)
    rng, right, asked = random.Random(11), 0, 24
    for _ in range(asked):
        start = rng.choice([rng.randrange(10), rng.randrange(100), rng.randrange(1000), rng.randrange(9900)])
        end = start + rng.randint(5, 30)
        said, _, ended = model.answer(f"Count from {start} to {end}.", 200)
        right += said == corpus.numbers(start, end - start + 1) and ended
    print(f"| `Count from A to B.`, right to the last number | {right} of {asked} |", flush=True)


def check_stories(model):
    for topic in list(corpus.TOPICS)[:2]:
        text, bits, ended = model.answer(f"Tell a long story about {topic}.", STORY_TOKENS, np.random.default_rng(5))
        print(
            f"| a long story about {topic}, temperature 1 | {len(bits)} tokens{' and an end' if ended else ''}, "
            f"{bits.mean():.2f} bits a token, {np.mean(bits > 1):.0%} above 1 bit |",
            flush=True,
        )
        print(f"{text}\n", file=sys.stderr)


def check_training_pass(checkpoint, metadata):
    """Largest difference in logits between this decoder and the JAX pass, on the same unquantised weights."""
    import jax

    import model as training

    saved = {n: a for n, a in np.load(checkpoint).items() if n.endswith((".weight", ".bias"))}
    ids = Tokenizer().encode("".join(text for text, _ in corpus.story_chat(random.Random(2))))[:300]
    room = training.SHAPE.experts / training.SHAPE.used
    whole = np.asarray(jax.jit(lambda p, i: training.forward(p, i, room)[0])(saved, np.array([ids], np.int32)))[0]
    decoder = Decoder(metadata, saved)
    single = np.stack([decoder.step(n) for n in ids])
    same = np.mean(whole.argmax(-1) == single.argmax(-1))
    print(f"| decoder against training pass, {len(ids)} tokens | logits within {np.abs(whole - single).max():.1e}, {same:.1%} equal argmax |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf")
    parser.add_argument("--checkpoint", help="hold the decoder against the training pass on this checkpoint")
    arguments = parser.parse_args()
    metadata, arrays = read(arguments.gguf)
    print("| check | result |\n|---|---|")
    if arguments.checkpoint:
        check_training_pass(arguments.checkpoint, metadata)
    model = Model(metadata, arrays)
    check_questions(model, "learned")
    check_questions(model, "held out")
    check_counting(model)
    check_stories(model)


if __name__ == "__main__":
    main()
