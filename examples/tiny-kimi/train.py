"""Trains tiny-kimi: `python train.py RUN_DIRECTORY`. Stops and saves on SIGTERM or ^C; the same command goes on.

The schedule goes by tokens seen, so that a slow machine trains the same model as a fast one, only later. Every
step's batch depends on the seed and the step's number alone.
"""

import argparse
import os
import pathlib
import random
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import corpus
import model
from tokenizer import Tokenizer

SEED = 20
PEAK_RATE, WARM_UP_STEPS = 2.5e-3, 60
# (rows, tokens per row, until this share of all tokens): short rows learn fast, long ones carry the stories.
STAGES = [(8, 256, 0.55), (4, 512, 0.85), (2, 1024, 1.0)]
SAVE_SECONDS = 180
# The selection bias moves by this many learning rates towards equal load.
BIAS_PACE = 2.5


def row(rng, tokenizer, length):
    """length + 1 ids and, for each but the first, whether it is learned. Half the rows begin with a document."""
    skip = 0 if rng.random() < 0.5 else rng.randrange(1200)
    ids, learned = [], []
    while len(ids) < skip + length + 1:
        if rng.random() < 0.5:
            ids.append(tokenizer.ids["[BOS]"])
            learned.append(False)
        spans = corpus.document(rng)
        for text, counts in spans:
            encoded = tokenizer.encode(text)
            ids += encoded
            learned += [counts] * len(encoded)
        # An unfinished count must not teach the end of a document.
        ids.append(tokenizer.ids["[EOS]"])
        learned.append(spans[-1][1] and spans[-1][0].endswith("<|im_end|>"))
    return ids[skip : skip + length + 1], learned[skip + 1 : skip + length + 1]


def batch(tokenizer, step, rows, length):
    rng = random.Random(SEED * 1_000_003 + step)
    ids, learned = zip(*(row(rng, tokenizer, length) for _ in range(rows)))
    return np.array(ids, np.int32), np.array(learned, np.float32)


def learning_rate(step, share_seen):
    return PEAK_RATE * min(1, (step + 1) / WARM_UP_STEPS) * (1 - share_seen) + 1e-5


def make_step(optimizer):
    def loss(weights, biases, ids, learned):
        logits, loads, missed = model.forward(weights | biases, ids[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
        return (losses * learned).sum() / learned.sum(), (loads, missed)

    @jax.jit
    def step(weights, biases, state, ids, learned, rate):
        (value, (loads, missed)), gradient = jax.value_and_grad(loss, has_aux=True)(weights, biases, ids, learned)
        updates, state = optimizer.update(gradient, state, weights)
        weights = jax.tree.map(lambda w, u: w - rate * u, weights, updates)
        fair = 1 / model.SHAPE.experts
        biases = {n: b + BIAS_PACE * rate * jnp.sign(fair - loads[n]) for n, b in biases.items()}
        return weights, biases, state, value, missed

    return step


def save(path, weights, biases, state, step, seen):
    leaves = {f"optimizer.{n}": leaf for n, leaf in enumerate(jax.tree.leaves(state))}
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, step=step, seen=seen, **leaves, **weights, **biases)
    os.replace(partial, path)


def load(path, state):
    saved = dict(np.load(path))
    step, seen = int(saved.pop("step")), int(saved.pop("seen"))
    leaves, structure = jax.tree.flatten(state)
    state = jax.tree.unflatten(structure, [saved.pop(f"optimizer.{n}") for n in range(len(leaves))])
    biases = {n: saved.pop(n) for n in list(saved) if model.is_bias(n)}
    return saved, biases, state, step, seen


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=6_000_000)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.directory / "checkpoint.npz"

    tokenizer = Tokenizer()
    parameters = model.initial_parameters(SEED)
    biases = {n: p for n, p in parameters.items() if model.is_bias(n)}
    weights = {n: p for n, p in parameters.items() if not model.is_bias(n)}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(0.9, 0.95, 1e-8),
        optax.add_decayed_weights(0.05, {n: w.ndim > 1 for n, w in weights.items()}),
    )
    state, step, seen = optimizer.init(weights), 0, 0
    if checkpoint.exists():
        weights, biases, state, step, seen = load(checkpoint, state)
    print(f"{sum(p.size for p in parameters.values())} parameters, from step {step}, {seen} tokens seen", flush=True)

    stop = []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.append(True))
    advance, average = make_step(optimizer), None
    started = saved = time.monotonic()
    seen_before = seen
    while seen < arguments.tokens and not stop:
        rows, length = next((r, n) for r, n, until in STAGES if seen < until * arguments.tokens)
        ids, learned = batch(tokenizer, step, rows, length)
        rate = learning_rate(step, seen / arguments.tokens)
        weights, biases, state, value, missed = advance(weights, biases, state, ids, learned, rate)
        value = float(value)
        average = value if average is None else 0.98 * average + 0.02 * value
        step, seen = step + 1, seen + rows * length
        now = time.monotonic()
        if step % 20 == 0:
            pace = (seen - seen_before) / (now - started)
            print(
                f"step {step}  tokens {seen}  loss {value:.3f}  average {average:.3f}  missed {float(missed):.3f}"
                f"  {pace:.0f} tokens/s  {(arguments.tokens - seen) / pace / 60:.0f} min left",
                flush=True,
            )
        if now - saved > SAVE_SECONDS:
            save(checkpoint, weights, biases, state, step, seen)
            saved = now
    save(checkpoint, weights, biases, state, step, seen)
    print(f"{'stopped' if stop else 'finished'} at step {step}, {seen} tokens, average loss {average}", flush=True)


if __name__ == "__main__":
    main()
