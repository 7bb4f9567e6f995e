"""The shape of tiny-kimi and its forward pass in JAX, for training.

Parameters are a flat dict by their GGUF names; arrays are in numpy order, the reverse of GGUF's. Per layer:
attn_q_a [q_lora, width], attn_q_b [heads * (nope + rope), q_lora], attn_kv_a_mqa [kv_lora + rope, width],
attn_k_b [heads, kv_lora, nope], attn_v_b [heads, v, kv_lora], ffn_*_exps [experts, out, in].
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Shape:
    vocabulary: int = 512
    layers: int = 3
    dense_layers: int = 1
    width: int = 256
    dense_width: int = 512
    heads: int = 4
    q_lora: int = 256
    kv_lora: int = 256
    rope: int = 32
    nope: int = 64
    v: int = 64
    experts: int = 8
    used: int = 2
    expert_width: int = 256
    expert_scale: float = 2.827
    epsilon: float = 1e-6
    rope_base: float = 50000.0
    yarn_factor: float = 32.0
    yarn_original: int = 4096
    yarn_fast: float = 32.0
    yarn_slow: float = 1.0
    yarn_log: float = 0.1


SHAPE = Shape()


def initial_parameters(seed):
    rng, parameters = np.random.default_rng(seed), {}

    def normal(name, *shape, deviation):
        parameters[f"{name}.weight"] = rng.normal(0, deviation, shape).astype(np.float32)

    def matrix(name, *shape, gain=1.0):
        normal(name, *shape, deviation=gain / math.sqrt(shape[-1]))

    def norm(name, width):
        parameters[f"{name}.weight"] = np.ones(width, np.float32)

    s = SHAPE
    into_stream = 1 / math.sqrt(2 * s.layers)  # keeps the residual stream's size over the layers
    normal("token_embd", s.vocabulary, s.width, deviation=0.3)
    norm("output_norm", s.width)
    matrix("output", s.vocabulary, s.width, gain=0.5)
    for layer in range(s.layers):
        at = f"blk.{layer}."
        norm(at + "attn_norm", s.width)
        matrix(at + "attn_q_a", s.q_lora, s.width)
        norm(at + "attn_q_a_norm", s.q_lora)
        matrix(at + "attn_q_b", s.heads * (s.nope + s.rope), s.q_lora)
        matrix(at + "attn_kv_a_mqa", s.kv_lora + s.rope, s.width)
        norm(at + "attn_kv_a_norm", s.kv_lora)
        normal(at + "attn_k_b", s.heads, s.kv_lora, s.nope, deviation=1 / math.sqrt(s.kv_lora))
        matrix(at + "attn_v_b", s.heads, s.v, s.kv_lora)
        matrix(at + "attn_output", s.width, s.heads * s.v, gain=into_stream)
        norm(at + "ffn_norm", s.width)
        if layer < s.dense_layers:
            feed_forwards = [("", (), s.dense_width)]
        else:
            feed_forwards = [("_exps", (s.experts,), s.expert_width), ("_shexp", (), s.expert_width)]
            matrix(at + "ffn_gate_inp", s.experts, s.width)
            parameters[at + "exp_probs_b.bias"] = np.zeros(s.experts, np.float32)
        for kind, lead, inner in feed_forwards:
            matrix(at + "ffn_gate" + kind, *lead, inner, s.width)
            matrix(at + "ffn_up" + kind, *lead, inner, s.width)
            matrix(at + "ffn_down" + kind, *lead, s.width, inner, gain=into_stream)
    return parameters


def is_bias(name):
    """The experts' selection bias has no gradient: it is moved by load."""
    return name.endswith("exp_probs_b.bias")


def yarn_angles(positions):
    """Angles [positions, rope / 2] of the interleaved pairs, slow ones stretched by the YaRN factor."""
    s = SHAPE
    speed = s.rope_base ** (-np.arange(0, s.rope, 2) / s.rope)

    def pair_that_turns(times):
        return s.rope * math.log(s.yarn_original / (times * 2 * math.pi)) / (2 * math.log(s.rope_base))

    low = max(0, math.floor(pair_that_turns(s.yarn_fast)))
    high = min(s.rope - 1, math.ceil(pair_that_turns(s.yarn_slow)))
    stretched = np.clip((np.arange(s.rope // 2) - low) / max(0.001, high - low), 0, 1)
    return np.outer(np.arange(positions), speed * (1 - stretched + stretched / s.yarn_factor))


def attention_scale():
    s = SHAPE
    return (1 + s.yarn_log * math.log(s.yarn_factor)) ** 2 / math.sqrt(s.nope + s.rope)


def rms_norm(x, weight):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + SHAPE.epsilon) * weight


def _rotate(x, cos, sin):
    even, odd = x[..., 0::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


def attention(weight, x, cos, sin):
    """x [batch, n, width]. The latent is expanded here; an engine absorbs k_b and v_b instead."""
    s, (batch, n, _) = SHAPE, x.shape
    q = rms_norm(x @ weight("attn_q_a").T, weight("attn_q_a_norm")) @ weight("attn_q_b").T
    q = q.reshape(batch, n, s.heads, s.nope + s.rope)
    q_rope = _rotate(q[..., s.nope :], cos[:, None], sin[:, None])
    compressed = x @ weight("attn_kv_a_mqa").T
    latent = rms_norm(compressed[..., : s.kv_lora], weight("attn_kv_a_norm"))
    k_rope = _rotate(compressed[..., s.kv_lora :], cos, sin)
    k_nope = jnp.einsum("bnl,hld->bnhd", latent, weight("attn_k_b"))
    value = jnp.einsum("bnl,hdl->bnhd", latent, weight("attn_v_b"))
    key = jnp.concatenate([k_nope, jnp.broadcast_to(k_rope[:, :, None], (batch, n, s.heads, s.rope))], -1)
    query = jnp.concatenate([q[..., : s.nope], q_rope], -1)
    score = jnp.einsum("bnhd,bmhd->bhnm", query, key) * attention_scale()
    share = jax.nn.softmax(jnp.where(np.tri(n, dtype=bool), score, -1e30), -1)
    return jnp.einsum("bhnm,bmhd->bnhd", share, value).reshape(batch, n, -1) @ weight("attn_output").T


@jax.custom_vjp
def _gather(rows, source, filled, target, kept):
    """Row source[i] where filled[i], else zeros. target and kept are the way back: on a CPU a gather in the
    backward pass is many times faster than the scatter-add that JAX would derive."""
    return jnp.where(filled[:, None], rows[source], 0)


def _gather_forward(rows, source, filled, target, kept):
    return _gather(rows, source, filled, target, kept), (target, kept)


def _gather_backward(back, gradient):
    target, kept = back
    return jnp.where(kept[:, None], gradient[target], 0), None, None, None, None


_gather.defvjp(_gather_forward, _gather_backward)


def experts(weight, x, bias, room):
    """x [tokens, width] -> (sum over the chosen experts, load [experts], share of tokens without room).

    Every expert computes a fixed number of rows, room; tokens beyond it miss that expert.
    """
    s, tokens = SHAPE, x.shape[0]
    gate = jax.nn.sigmoid(x @ weight("ffn_gate_inp").T)
    _, chosen = jax.lax.top_k(jax.lax.stop_gradient(gate) + bias, s.used)
    share = jnp.take_along_axis(gate, chosen, -1)
    share = share / share.sum(-1, keepdims=True) * s.expert_scale

    expert = chosen.reshape(-1)
    one_hot = jax.nn.one_hot(expert, s.experts, dtype=jnp.int32)
    place = (jnp.cumsum(one_hot, 0) * one_hot).sum(-1) - 1
    kept = place < room
    slots = s.experts * room
    slot = jnp.where(kept, expert * room + place, slots)
    source = jnp.full(slots, -1, jnp.int32).at[slot].set(jnp.arange(tokens * s.used, dtype=jnp.int32), mode="drop")
    filled, source, slot = source >= 0, jnp.maximum(source, 0), jnp.minimum(slot, slots - 1)

    rows = _gather(jnp.repeat(x, s.used, 0), source, filled, slot, kept).reshape(s.experts, room, -1)
    inner = jax.nn.silu(jnp.einsum("erd,efd->erf", rows, weight("ffn_gate_exps")))
    inner = inner * jnp.einsum("erd,efd->erf", rows, weight("ffn_up_exps"))
    rows = jnp.einsum("erf,edf->erd", inner, weight("ffn_down_exps")).reshape(slots, -1)
    out = _gather(rows, slot, kept, source, filled).reshape(tokens, s.used, -1)
    return (out * share[..., None]).sum(1), one_hot.mean(0), 1 - kept.mean()


def feed_forward(weight, x, kind):
    inner = jax.nn.silu(x @ weight("ffn_gate" + kind).T) * (x @ weight("ffn_up" + kind).T)
    return inner @ weight("ffn_down" + kind).T


def forward(parameters, ids, spare_room=1.6):
    """ids [batch, n] -> (logits [batch, n, vocabulary], load by bias name, share of missed experts)."""
    s, (batch, n) = SHAPE, ids.shape
    angles = yarn_angles(n)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    room = min(batch * n, int(spare_room * batch * n * s.used / s.experts))
    x, loads, missed = parameters["token_embd.weight"][ids], {}, 0.0
    for layer in range(s.layers):
        def weight(name, at=f"blk.{layer}."):
            return parameters[f"{at}{name}.weight"]

        x = x + attention(weight, rms_norm(x, weight("attn_norm")), cos, sin)
        h = rms_norm(x, weight("ffn_norm"))
        if layer < s.dense_layers:
            x = x + feed_forward(weight, h, "")
        else:
            bias = f"blk.{layer}.exp_probs_b.bias"
            chosen, loads[bias], without_room = experts(weight, h.reshape(batch * n, -1), parameters[bias], room)
            missed = jnp.maximum(missed, without_room)
            x = x + chosen.reshape(x.shape) + feed_forward(weight, h, "_shexp")
    return rms_norm(x, parameters["output_norm.weight"]) @ parameters["output.weight"].T, loads, missed
