"""What the drivers of this folder share: nanochat imported from a path that the user gives.

Nothing of nanochat is here. The recipe below (rates, schedules, scaling with batch and depth) is the
one of its base_train.py at commit 92d63d4; docs/numerics.md has the same formulas.
"""
import json
import math
import os
import sys

REFERENCE_BATCH = 2**19   # tokens for which the rates are given
REFERENCE_DEPTH = 12      # and the depth whose horizon the weight decay is given for


def import_nanochat(path, dtype):
    """The modules nanochat.gpt and nanochat.optim, computing in "bfloat16" or "float32"."""
    os.environ["NANOCHAT_DTYPE"] = dtype
    if path not in sys.path:
        sys.path.insert(0, path)
    for name in [m for m in sys.modules if m.split(".")[0] == "nanochat"]:
        del sys.modules[name]
    import nanochat.gpt
    import nanochat.optim
    import torch
    nanochat.gpt.print0 = lambda *args, **more: None   # stdout is the driver's
    torch.set_float32_matmul_precision("high" if dtype == "bfloat16" else "highest")
    return nanochat.gpt, nanochat.optim


def read_safetensors(path):
    """name -> CPU tensor."""
    import torch
    types = {"F32": torch.float32, "BF16": torch.bfloat16, "I32": torch.int32}
    with open(path, "rb") as file:
        raw = bytearray(file.read())
    start = 8 + int.from_bytes(raw[:8], "little")
    tensors = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        flat = (torch.frombuffer(raw, dtype=types[entry["dtype"]], offset=start + begin,
                                 count=math.prod(entry["shape"]))
                if end > begin else torch.empty(0, dtype=types[entry["dtype"]]))
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def write_safetensors(path, tensors):
    """Float32 tensors."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        end = at + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.contiguous().numpy().tobytes())


def build_model(gpt, config, device):
    """As base_train.py does: shapes first, then memory, then initial values and types."""
    import torch
    with torch.device("meta"):
        model = gpt.GPT(gpt.GPTConfig(**config))
    model.to_empty(device=device)
    model.init_weights()
    return model


def config_of_depth(depth, aspect_ratio, head_dim, sequence, vocab, window_pattern):
    width = -(-depth * aspect_ratio // head_dim) * head_dim
    heads = width // head_dim
    return {"sequence_len": sequence, "vocab_size": vocab, "n_layer": depth, "n_head": heads,
            "n_kv_head": heads, "n_embd": width, "window_pattern": window_pattern}


def scaling_parameters(gpt, config):
    import torch
    with torch.device("meta"):
        counts = gpt.GPT(gpt.GPTConfig(**config)).num_scaling_params()
    return counts["transformer_matrices"] + counts["lm_head"]


def rates(gpt, config, reference_config, batch_tokens):
    """The arguments of setup_optimizer for a batch of so many tokens."""
    ratio = 12.0   # training tokens per scaling parameter; the number of steps does not enter
    tokens = int(ratio * scaling_parameters(gpt, config))
    reference_tokens = ratio * scaling_parameters(gpt, reference_config)
    factor = math.sqrt(batch_tokens / REFERENCE_BATCH)
    return {"unembedding_lr": 0.008 * factor, "embedding_lr": 0.3 * factor,
            "matrix_lr": 0.02 * factor, "scalar_lr": 0.5 * factor,
            "weight_decay": 0.28 * factor * reference_tokens / tokens}


def set_schedules(optimizer, step, steps):
    """Learning rates, and momentum and weight decay of Muon, for step 0 .. steps - 1."""
    warmup, warmdown, final = 40, round(0.65 * steps), 0.05
    if step < warmup:
        rate = (step + 1) / warmup
    elif step <= steps - warmdown:
        rate = 1.0
    else:
        progress = (steps - step) / warmdown
        rate = progress + (1 - progress) * final
    if step < 400:
        momentum = 0.85 + (0.97 - 0.85) * step / 400
    elif step >= steps - warmdown:
        momentum = 0.97 + (0.90 - 0.97) * (step - (steps - warmdown)) / warmdown
    else:
        momentum = 0.97
    decay = 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * rate
        if group["kind"] == "muon":
            group["momentum"] = momentum
            group["weight_decay"] = group.setdefault("initial_weight_decay",
                                                     group["weight_decay"]) * decay
