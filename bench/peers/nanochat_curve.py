#!/usr/bin/env python3
"""Compares the loss curve of `tightloop train` with nanochat's on the same tokens and weights.

  bench/peers/nanochat_curve.py PATH-TO-NANOCHAT --tightloop build/cuda/bin/tightloop \\
      --data novels.tok --depth 12 [--steps 300 --total-batch-size 65536 --batch 32]

Runs `tightloop train --save-initial`, then nanochat --repeats times from those weights, on the rows
of `tightloop data rows`, in the same order and micro-batches, with the rates and schedules of
nanochat's base_train.py. nanochat is imported from the path given and compiled; all its repeats are
in one process with the same compiled code.

Prints a JSON line for each step of each run: the mean training loss over the step's micro-batches,
before its update. The last line is the verdict on the mean of the --last losses: |tightloop - mean
of the repeats| may be --allowed nats, or twice the difference of the repeats farthest apart if that
is more. Exit code 1 otherwise.

Both compute in --dtype. nanochat in bf16 keeps its embeddings and their optimizer state in bf16;
tightloop keeps float32. --tables float32 gives nanochat float32 embeddings, to tell that apart.
Where nanochat repeats itself to the bit (on the CPU), --nudge 1e-7 shows what rounding alone does
to its curve: each repeat but the first starts from weights moved by up to that share.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import nanochat_peer as peer


def say(text):
    print(text, file=sys.stderr, flush=True)


def emit(line):
    print(json.dumps(line), flush=True)


def tool(args, *more):
    command = [args.tightloop, *map(str, more)]
    say("  " + " ".join(command))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{command[0]} ended with {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def train_ours(args, work):
    """The losses, and the checkpoint of step 0."""
    events = tool(args, "train", "--data", args.data, "--depth", args.depth,
                  "--aspect-ratio", args.aspect_ratio, "--head-dim", args.head_dim,
                  "--max-seq-len", args.sequence, "--window-pattern", args.window_pattern,
                  "--num-iterations", args.steps, "--total-batch-size", args.total_batch_size,
                  "--device-batch-size", args.batch, "--seed", args.seed, "--eval-every", -1,
                  "--sample-every", -1, "--save-initial", "--run-dir", work / "runs",
                  "--run", f"curve-d{args.depth}", "--device", args.device,
                  "--dtype", {"bfloat16": "bf16", "float32": "f32"}[args.dtype], "--json")
    losses = [e["loss"] for e in events if e["event"] == "step"]
    folder = next(e["run_folder"] for e in events if e["event"] == "start")
    return losses, pathlib.Path(folder) / "checkpoints" / "step_000000"


def read_rows(args, work):
    """(steps, micro-steps, batch, sequence + 1) token ids, in the order of training."""
    import torch
    rows = args.total_batch_size // args.sequence
    micro_steps = rows // args.batch
    path = work / "rows.bin"
    made = tool(args, "data", "rows", args.data, "-o", path, "--rows", args.steps * rows,
                "--max-seq-len", args.sequence, "--json")[0]
    raw = bytearray(path.read_bytes())
    if made["vocab_size"] <= 65536:
        tokens = torch.frombuffer(raw, dtype=torch.uint16, offset=1024).int()
    else:
        tokens = torch.frombuffer(raw, dtype=torch.int32, offset=1024)
    return tokens.view(args.steps, micro_steps, args.batch, args.sequence + 1)


def train_peer(args, gpt, config, weights, rows):
    """Yields the losses of one run after another, all from `weights`."""
    import torch
    model = peer.build_model(gpt, config, args.device)
    if args.tables == "float32":
        model.transformer.wte.float()
        model.value_embeds.float()
    reference = peer.config_of_depth(peer.REFERENCE_DEPTH, args.aspect_ratio, args.head_dim,
                                     args.sequence, config["vocab_size"], args.window_pattern)
    rates = peer.rates(gpt, config, reference, args.total_batch_size)
    forward = torch.compile(model, dynamic=False)
    micro_steps = rows.shape[1]
    for run in range(args.repeats):
        random = torch.Generator().manual_seed(run)
        model.load_state_dict({
            name: w if run == 0 or args.nudge == 0 else
            w * (1 + args.nudge * (2 * torch.rand(w.shape, generator=random) - 1))
            for name, w in weights.items()})
        optimizer = model.setup_optimizer(**rates)
        losses = []
        for step in range(args.steps):
            total = 0.0
            for micro in rows[step].to(args.device):
                loss = forward(micro[:, :-1].contiguous(), micro[:, 1:].long().contiguous())
                total = total + loss.detach() / micro_steps
                (loss / micro_steps).backward()
            peer.set_schedules(optimizer, step, args.steps)
            optimizer.step()
            model.zero_grad(set_to_none=True)
            losses.append(total)
        yield torch.stack(losses).tolist()


def verdict(ours, theirs, last, allowed):
    mean = [sum(run[-last:]) / last for run in theirs]
    our_mean = sum(ours[-last:]) / last
    repeats = max(mean) - min(mean)
    gap = abs(our_mean - sum(mean) / len(mean))
    largest = max(abs(a - b) for a, b in zip(ours, theirs[0]))
    return {"event": "verdict", "last": last, "tightloop": our_mean, "nanochat": mean, "gap": gap,
            "repeat_gap": repeats, "allowed": max(allowed, 2 * repeats),
            "largest_gap_of_a_step": largest, "ok": gap <= max(allowed, 2 * repeats)}


def main():
    parser = argparse.ArgumentParser(description="loss curves of tightloop and nanochat")
    parser.add_argument("path", help="a checkout of nanochat")
    parser.add_argument("--tightloop", required=True, help="the program")
    parser.add_argument("--data", required=True, help="folder of token shards")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--aspect-ratio", type=int, default=64)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--total-batch-size", type=int, default=65536, help="tokens of a step")
    parser.add_argument("--batch", type=int, default=32, help="sequences of a micro-step")
    parser.add_argument("--sequence", type=int, default=2048)
    parser.add_argument("--window-pattern", default="SSSL")
    parser.add_argument("--seed", type=int, default=42, help="of the initial weights")
    parser.add_argument("--repeats", type=int, default=2, help="runs of nanochat")
    parser.add_argument("--nudge", type=float, default=0.0,
                        help="relative change of the weights that later repeats start from")
    parser.add_argument("--last", type=int, default=50, help="losses whose mean is judged")
    parser.add_argument("--allowed", type=float, default=0.01, help="nats")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--tables", default="bfloat16", choices=["bfloat16", "float32"],
                        help="storage of nanochat's embeddings")
    parser.add_argument("--eager", action="store_true", help="do not compile the peer")
    parser.add_argument("--work", help="folder to keep the run in; not set: one that is removed")
    args = parser.parse_args()
    if args.total_batch_size % (args.batch * args.sequence) != 0:
        parser.error(f"--total-batch-size must be a multiple of {args.batch} x {args.sequence}")
    if args.steps < args.last:
        parser.error("--steps is below --last")

    with tempfile.TemporaryDirectory() as scratch:
        work = pathlib.Path(args.work or scratch)
        work.mkdir(parents=True, exist_ok=True)
        say(f"tightloop, depth {args.depth}, {args.steps} steps of {args.total_batch_size} tokens")
        start = time.perf_counter()
        ours, checkpoint = train_ours(args, work)
        seconds = [time.perf_counter() - start]
        for step, loss in enumerate(ours):
            emit({"event": "step", "run": "tightloop", "step": step, "loss": loss})
        rows = read_rows(args, work)
        weights = peer.read_safetensors(checkpoint / "model.safetensors")

        gpt, _ = peer.import_nanochat(args.path, args.dtype)
        import torch
        torch.compiler.set_stance("force_eager" if args.eager else "default")
        saved = json.loads((checkpoint / "config.json").read_text())
        config = peer.config_of_depth(args.depth, args.aspect_ratio, args.head_dim, args.sequence,
                                      saved["vocab_size"], args.window_pattern)
        theirs = []
        start = time.perf_counter()
        for losses in train_peer(args, gpt, config, weights, rows):
            seconds.append(time.perf_counter() - start)
            for step, loss in enumerate(losses):
                emit({"event": "step", "run": f"nanochat {len(theirs)}", "step": step,
                      "loss": loss})
            theirs.append(losses)
            say(f"nanochat, run {len(theirs)} of {args.repeats}: {seconds[-1]:.0f} s, mean of the "
                f"last {args.last} losses {sum(losses[-args.last:]) / args.last:.5f}")
            start = time.perf_counter()
    result = verdict(ours, theirs, args.last, args.allowed)
    result.update(depth=args.depth, steps=args.steps, tokens_per_step=args.total_batch_size,
                  sequence=args.sequence, window_pattern=args.window_pattern,
                  vocab=config["vocab_size"], dtype=args.dtype, tables=args.tables, nudge=args.nudge,
                  peer="nanochat, " + ("eager" if args.eager else "compiled"),
                  torch=torch.__version__, seconds=seconds)
    if args.device == "cuda":
        result["device"] = torch.cuda.get_device_name()
    emit(result)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
