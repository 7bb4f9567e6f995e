"""Writes the trained weights as a quantised GGUF: `python export.py RUN_DIRECTORY/checkpoint.npz tiny-kimi-Q4_K_M.gguf`."""

import argparse
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

import model
from quantise import quantise, relative_error
from tokenizer import SPECIAL, Tokenizer

LARGEST_FILE = 4_000_000

# Kimi's turns: <|im_ROLE|>NAME<|im_middle|>TEXT<|im_end|>. Content is a string or a list of parts.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_{{ message['role'] }}|>{{ message['name'] or message['role'] }}<|im_middle|>
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] or [] -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_assistant|>assistant<|im_middle|>
{%- endif -%}"""


def kind_of(name, array):
    """As the usual mixes have it: expert and dense gate and up are small, what is small or steers stays whole."""
    if array.ndim == 1 or "ffn_gate_inp" in name:
        return Type.F32
    if "attn_k_b" in name:
        return Type.Q8_0  # rows of 64 fill no K-quant block
    if "ffn_gate" in name or "ffn_up" in name:
        return Type.Q4_K
    return Type.Q6_K


def add_metadata(out):
    s, tokenizer = model.SHAPE, Tokenizer()
    out.add_type("model")
    out.add_name("tiny-kimi")
    out.add_basename("tiny-kimi")
    out.add_size_label("8x0.4M")
    out.add_license("apache-2.0")
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)

    out.add_block_count(s.layers)
    out.add_context_length(int(s.yarn_original * s.yarn_factor))
    out.add_embedding_length(s.width)
    out.add_feed_forward_length(s.dense_width)
    out.add_vocab_size(s.vocabulary)
    out.add_layer_norm_rms_eps(s.epsilon)

    out.add_head_count(s.heads)
    out.add_head_count_kv(1)
    out.add_q_lora_rank(s.q_lora)
    out.add_kv_lora_rank(s.kv_lora)
    out.add_key_length(s.kv_lora + s.rope)
    out.add_value_length(s.kv_lora)
    out.add_key_length_mla(s.nope + s.rope)
    out.add_value_length_mla(s.v)

    out.add_leading_dense_block_count(s.dense_layers)
    out.add_expert_count(s.experts)
    out.add_expert_used_count(s.used)
    out.add_expert_shared_count(1)
    out.add_expert_group_count(1)
    out.add_expert_group_used_count(1)
    out.add_expert_feed_forward_length(s.expert_width)
    out.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    out.add_expert_weights_norm(True)
    out.add_expert_weights_scale(s.expert_scale)

    out.add_rope_dimension_count(s.rope)
    out.add_rope_freq_base(s.rope_base)
    out.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    out.add_rope_scaling_factor(s.yarn_factor)
    out.add_rope_scaling_orig_ctx_len(s.yarn_original)
    out.add_rope_scaling_yarn_log_mul(s.yarn_log)
    out.add_rope_scaling_yarn_beta_fast(s.yarn_fast)
    out.add_rope_scaling_yarn_beta_slow(s.yarn_slow)

    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("kimi-k2")
    out.add_token_list(tokenizer.tokens)
    out.add_token_types(
        [gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokenizer.tokens]
    )
    out.add_token_merges([f"{a} {b}" for a, b in tokenizer.merges])
    out.add_bos_token_id(tokenizer.ids["[BOS]"])
    out.add_eos_token_id(tokenizer.ids["[EOS]"])
    out.add_eot_token_id(tokenizer.ids["<|im_end|>"])
    out.add_pad_token_id(tokenizer.ids["[PAD]"])
    out.add_add_bos_token(False)
    out.add_chat_template(CHAT_TEMPLATE)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("gguf", type=pathlib.Path)
    arguments = parser.parse_args()
    saved = dict(np.load(arguments.checkpoint))

    out = gguf.GGUFWriter(arguments.gguf, "deepseek2")
    add_metadata(out)
    errors = {}
    for name in sorted(model.initial_parameters(0)):
        array = saved[name]
        kind = kind_of(name, array)
        if kind == Type.F32:
            out.add_tensor(name, array.astype(np.float32))
        else:
            out.add_tensor(name, quantise(array, kind), raw_dtype=kind)
            errors.setdefault(kind.name, []).append(relative_error(array, kind))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()

    size = arguments.gguf.stat().st_size
    print(f"{int(saved['seen'])} tokens seen, {int(saved['step'])} steps, {size} bytes")
    for kind, each in errors.items():
        print(f"{kind}: {len(each)} tensors, relative error {min(each):.4f} to {max(each):.4f}")
    assert size <= LARGEST_FILE, f"the file is larger than {LARGEST_FILE} bytes"


if __name__ == "__main__":
    main()
