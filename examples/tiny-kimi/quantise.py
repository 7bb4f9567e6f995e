"""Quantises to Q4_K and Q6_K, which gguf-py reads but does not write. Blocks are 256 weights of one row.

Q4_K: 8 groups of 32, weight = d * scale * q - dmin * min, q in 0..15, scale and min in 0..63.
Q6_K: 16 groups of 16, weight = d * scale * q, q in -32..31, scale in -128..127.
In both, each group's scale is searched for the least squared error, then rounded, then the codes are taken anew.
"""

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

BLOCK = 256


def _inverse(x):
    return np.divide(1, x, out=np.zeros_like(x), where=x != 0)


def _as_half(x):
    """The same float16 that a reader will see, as float32."""
    return x.astype(np.float16).astype(np.float32)


def _affine_fit(groups):
    """groups [..., 32] -> (scale, minimum), both >= 0, with x ~ scale * q - minimum and q in 0..15."""
    top, bottom = groups.max(-1), np.minimum(groups.min(-1), 0)
    best_scale, best_minimum = (top - bottom) / 15, -bottom
    best_error = np.full(top.shape, np.inf, np.float32)
    for levels in np.arange(14.0, 16.4, 0.2):
        scale, minimum = (top - bottom) / levels, -bottom
        for _ in range(3):
            q = np.clip(np.rint((groups + minimum[..., None]) * _inverse(scale)[..., None]), 0, 15)
            error = ((scale[..., None] * q - minimum[..., None] - groups) ** 2).sum(-1)
            better = error < best_error
            best_error = np.where(better, error, best_error)
            best_scale = np.where(better, scale, best_scale)
            best_minimum = np.where(better, minimum, best_minimum)
            # Least squares for these codes; a minimum below zero can't be stored.
            mean_q, mean_x = q.mean(-1), groups.mean(-1)
            spread = ((q - mean_q[..., None]) ** 2).sum(-1)
            scale = ((q - mean_q[..., None]) * groups).sum(-1) * _inverse(spread)
            minimum = scale * mean_q - mean_x
            through_zero = (q * groups).sum(-1) * _inverse((q * q).sum(-1))
            scale = np.maximum(np.where(minimum < 0, through_zero, scale), 0)
            minimum = np.maximum(minimum, 0)
    return best_scale, best_minimum


def q4_k(rows):
    groups = rows.astype(np.float32).reshape(-1, 8, 32)
    scale, minimum = _affine_fit(groups)
    d, dmin = (_as_half(x.max(-1, keepdims=True) / 63) for x in (scale, minimum))
    scale6, minimum6 = (np.clip(np.rint(x * _inverse(unit)), 0, 63) for x, unit in ((scale, d), (minimum, dmin)))
    scale, minimum = (d * scale6)[..., None], (dmin * minimum6)[..., None]
    q = np.clip(np.rint((groups + minimum) * _inverse(scale)), 0, 15).astype(np.uint8)

    s, m = scale6.astype(np.uint8), minimum6.astype(np.uint8)
    # Groups 0..3 keep six bits in one byte; 4..7 keep four, and two more in the top bits of 0..3.
    packed = np.concatenate(
        [s[:, :4] | (s[:, 4:] >> 4 << 6), m[:, :4] | (m[:, 4:] >> 4 << 6), (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4], -1
    )
    nibbles = (q[:, 0::2] | q[:, 1::2] << 4).reshape(-1, 128)
    head = np.concatenate([d, dmin], -1).astype(np.float16).view(np.uint8)
    return np.concatenate([head, packed, nibbles], -1).reshape(*rows.shape[:-1], -1)


def _linear_fit(groups):
    """groups [..., 16] -> scale of either sign with x ~ scale * q and q in -32..31."""
    at = np.abs(groups).argmax(-1, keepdims=True)
    extreme = np.take_along_axis(groups, at, -1)[..., 0]
    best_scale = extreme / -32
    best_error = np.full(extreme.shape, np.inf, np.float32)
    for levels in np.arange(-33.0, -28.0, 0.25):
        scale = extreme / levels
        for _ in range(2):
            q = np.clip(np.rint(groups * _inverse(scale)[..., None]), -32, 31)
            error = ((scale[..., None] * q - groups) ** 2).sum(-1)
            better = error < best_error
            best_error, best_scale = np.where(better, error, best_error), np.where(better, scale, best_scale)
            scale = (q * groups).sum(-1) * _inverse((q * q).sum(-1))
    return best_scale


def q6_k(rows):
    groups = rows.astype(np.float32).reshape(-1, 16, 16)
    scale = _linear_fit(groups)
    at = np.abs(scale).argmax(-1, keepdims=True)
    d = _as_half(np.take_along_axis(scale, at, -1) / -128)
    scale8 = np.clip(np.rint(scale * _inverse(d)), -128, 127)
    q = np.clip(np.rint(groups * _inverse(d * scale8)[..., None]), -32, 31)

    # Each half of 128: byte n holds the low nibbles of weights n and n + 64, their high bits lie with n + 32 and n + 96.
    codes = (q + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = codes & 15, codes >> 4
    low = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], -1)
    high = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return np.concatenate(
        [
            low.reshape(-1, 128),
            high.reshape(-1, 64),
            scale8.astype(np.int8).view(np.uint8),
            d.astype(np.float16).view(np.uint8),
        ],
        -1,
    ).reshape(*rows.shape[:-1], -1)


def quantise(rows, kind):
    """Packed bytes [..., bytes per row] of float rows [..., n]."""
    if kind in (Type.Q4_K, Type.Q6_K):
        assert rows.shape[-1] % BLOCK == 0, f"rows of {rows.shape[-1]} don't fill blocks of {BLOCK}"
    match kind:
        case Type.Q4_K:
            return q4_k(rows)
        case Type.Q6_K:
            return q6_k(rows)
        case _:
            return gguf.quants.quantize(np.ascontiguousarray(rows, np.float32), kind)


def relative_error(rows, kind):
    """Root mean square error after a round trip through gguf-py's reader, as a share of the weights' own."""
    read = gguf.quants.dequantize(quantise(rows, kind), kind).reshape(rows.shape)
    return float(np.sqrt(((read - rows) ** 2).mean() / (rows**2).mean()))
