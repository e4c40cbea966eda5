#!/usr/bin/env python3
"""Times nanochat's own training step on this machine's GPU, as a peer of `tightloop bench train`.

  bench/peers/nanochat_step.py PATH-TO-NANOCHAT [--depth 12 --batch 32 --sequence 2048 --json]

Imports nanochat from the path given (any checkout that has nanochat/gpt.py with GPTConfig and
setup_optimizer), builds the model of that depth as its base_train.py does, compiles it, and times
forward + backward and the optimizer with CUDA events on random tokens: median, 10th and 90th
percentile of the repetitions, and the most memory that PyTorch had allocated. Needs PyTorch with
CUDA and what nanochat itself imports.
"""
import argparse
import json
import statistics
import sys
import time


def main():
    parser = argparse.ArgumentParser(description="time nanochat's training step")
    parser.add_argument("path", help="a checkout of nanochat")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--sequence", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--window-pattern", default="L")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    sys.path.insert(0, args.path)
    import torch
    from nanochat.gpt import GPT, GPTConfig

    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    width = (args.depth * 64 + 127) // 128 * 128
    heads = width // 128
    config = GPTConfig(sequence_len=args.sequence, vocab_size=args.vocab, n_layer=args.depth,
                       n_head=heads, n_kv_head=heads, n_embd=width,
                       window_pattern=args.window_pattern)
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cuda")
    model.init_weights()
    optimizer = model.setup_optimizer()
    start = time.perf_counter()
    step = torch.compile(model, dynamic=False)
    shape = (args.batch, args.sequence)
    tokens = torch.randint(args.vocab, shape, device="cuda", dtype=torch.int32)
    targets = torch.randint(args.vocab, shape, device="cuda", dtype=torch.int64)

    def forward_backward():
        step(tokens, targets).backward()

    def update():
        optimizer.step()
        model.zero_grad(set_to_none=True)

    forward_backward()
    update()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    for _ in range(3):
        forward_backward()
        update()

    def milliseconds(work):
        from_event, to_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        from_event.record()
        work()
        to_event.record()
        to_event.synchronize()
        return from_event.elapsed_time(to_event)

    micro, optimize = [], []
    for _ in range(args.repeats):
        micro.append(milliseconds(forward_backward))
        optimize.append(milliseconds(update))

    def row(name, values):
        tenths = statistics.quantiles(values, n=10)
        return {"peer": "nanochat, torch.compile", "torch": torch.__version__,
                "device": torch.cuda.get_device_name(), "what": name, "n": len(values),
                "median_ms": statistics.median(values), "p10_ms": tenths[0], "p90_ms": tenths[-1]}

    rows = [row("forward + backward", micro), row("optimizer", optimize)]
    memory = torch.cuda.max_memory_allocated() / 2**30
    if args.json:
        for r in rows:
            r.update(depth=args.depth, batch=args.batch, sequence=args.sequence,
                     peak_allocated_gib=memory, first_step_s=first)
            print(json.dumps(r))
        return
    for r in rows:
        print(f"  {r['what']:20} {r['median_ms']:8.2f} ms  (p10 {r['p10_ms']:.2f}, "
              f"p90 {r['p90_ms']:.2f}, n {r['n']})")
    print(f"  first step {first:.1f} s, peak allocated {memory:.2f} GiB, {rows[0]['device']}, "
          f"torch {torch.__version__}")


if __name__ == "__main__":
    main()
