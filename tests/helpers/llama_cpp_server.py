"""Serves a tiny Qwen2 of `tiny_chat` with llama.cpp: a real server that sends log-probabilities.

    python tests/helpers/llama_cpp_server.py MODEL_FOLDER

Writes the model in llama.cpp's format, prints the server's address and serves until it is killed.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import gguf
import xllamacpp
from transformers import AutoModelForCausalLM, AutoTokenizer

LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write(model: str, path: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    config, bpe = network.config, json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    file = gguf.GGUFWriter(path, "qwen2")
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(config.rope_parameters["rope_theta"])
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("gpt-2")
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].get)
    special = set(tokenizer.all_special_tokens)
    kinds = gguf.TokenType
    file.add_token_list(tokens)
    file.add_token_types([kinds.CONTROL if t in special else kinds.NORMAL for t in tokens])
    file.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    file.add_bos_token_id(tokenizer.bos_token_id)
    file.add_eos_token_id(tokenizer.eos_token_id)
    file.add_pad_token_id(tokenizer.pad_token_id)
    file.add_add_bos_token(False)
    file.add_chat_template(tokenizer.chat_template)
    names = dict(ENDS)
    for layer in range(config.num_hidden_layers):
        names |= {f"model.layers.{layer}.{a}": f"blk.{layer}.{b}" for a, b in LAYER.items()}
    for name, tensor in network.state_dict().items():
        part, _, kind = name.rpartition(".")
        file.add_tensor(f"{names[part]}.{kind}", tensor.float().numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write(sys.argv[1], Path(folder) / "model.gguf")
        settings = xllamacpp.CommonParams()
        settings.model.path = str(Path(folder) / "model.gguf")
        settings.n_ctx, settings.n_parallel, settings.use_jinja = 2048, 4, True
        settings.cpuparams.n_threads = 1
        server = xllamacpp.Server(settings)
    print(f"serving at {server.listening_address}", flush=True)
    time.sleep(600)
