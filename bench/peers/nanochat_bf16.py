#!/usr/bin/env python3
"""Compares the bf16 errors of tightloop and of nanochat on parity cases computed in float32.

  bench/peers/nanochat_bf16.py PATH-TO-NANOCHAT --tightloop build/cuda/bin/tightloop \\
      tests/golden/tiny-nanochat-2026-07 ...

A case holds weights, tokens and the losses and gradients that nanochat computes from them in
float32. nanochat, imported from the path given, computes them again in bf16, compiled as it trains,
and in float32, which must agree with the case. `tightloop check --dtype bf16` does with all
rewrites. With --eager the peer is not compiled and no rewrite is on: what is fused rounds less, and
is compared with what is fused. Errors are |a-b| / |b| in 2-norms: of the losses of the
first step's tokens, of each gradient, and of the gradient of all parameters as one vector.

Judged in every case, by --allowed times the peer's: the tokens' losses, the whole gradient, and the
geometric mean over the gradients of at least 1,000 elements. The rest is printed: the mean loss of
a step is one number and a small gradient few, so that the ratio of their errors is luck. Cases of
recipe 2026-02 are left out: they are of another nanochat. Exit code 1 when an error is larger than
allowed.
"""
import argparse
import json
import math
import pathlib
import subprocess
import sys

import nanochat_peer as peer


def norm_error(got, want):
    got, want = got.double().flatten(), want.double().flatten()
    return ((got - want).norm() / want.norm()).item() if want.norm() > 0 else got.norm().item()


LARGE = 1000   # elements from which on the error of a gradient is a steady number


class Case:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.json = json.loads((self.folder / "case.json").read_text())
        self.recipe = self.json.get("recipe", "2026-07")
        self.weights = peer.read_safetensors(self.folder / "weights.safetensors")
        self.tokens = peer.read_safetensors(self.folder / "tokens.safetensors")
        self.expected = peer.read_safetensors(self.folder / "expected.safetensors")
        # In a model of at most two layers the gradient of the backout is rounding alone.
        self.names = [name for name in self.weights
                      if name != "backout_lambda" or self.json["config"]["n_layer"] > 2]

    def token_losses(self, logits):
        import torch.nn.functional as F
        logits = logits.double().cpu()
        targets = self.tokens["step0.targets"].long().flatten()
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets, ignore_index=-1,
                               reduction="none")


def peer_errors(path, case, dtype, device, eager):
    import torch
    gpt, optim = peer.import_nanochat(path, dtype)
    torch._dynamo.reset()
    torch.compiler.set_stance("force_eager" if eager else "default")
    model = peer.build_model(gpt, case.json["config"], device)
    model.load_state_dict(case.weights)
    parameters = dict(model.named_parameters())
    optimizer = optim.MuonAdamW([
        {**{k: v for k, v in group.items() if k != "params"},
         "params": [parameters[name] for name in group["params"]]}
        for group in case.json["optimizer"]["groups"]])
    forward = torch.compile(model, dynamic=False)
    errors = {}
    for step in range(case.json["steps"]):
        inputs = case.tokens[f"step{step}.inputs"].to(device)
        targets = case.tokens[f"step{step}.targets"].long().to(device)
        if step == 0:
            with torch.no_grad():
                logits = forward(inputs)
            errors["token_losses"] = norm_error(
                case.token_losses(logits), case.token_losses(case.expected["step0.logits"]))
        loss = forward(inputs, targets)
        loss.backward()
        want = case.json["losses"][step]
        errors[f"loss.step{step}"] = abs(loss.item() - want) / abs(want)
        if step == 0:
            for name in case.names:
                errors["grad." + name] = norm_error(parameters[name].grad.cpu(),
                                                    case.expected["step0.grad." + name])
        optimizer.step()
        model.zero_grad(set_to_none=True)
    for name in case.names:
        start = case.weights[name].double()
        errors["final." + name] = norm_error(parameters[name].detach().cpu().double() - start,
                                             case.expected["final." + name].double() - start)
    return errors


def our_errors(args, case, rewrites):
    command = [args.tightloop, "check", str(case.folder), "--device", "cuda", "--dtype", "bf16",
               "--rewrites", rewrites, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    report = json.loads(done.stdout)
    if report["failures"]:
        sys.exit("\n".join(report["failures"]))
    return {q["name"]: q["error"] for q in report["quantities"]}


def whole_gradient(case, errors):
    squares = {name: case.expected["step0.grad." + name].double().square().sum().item()
               for name in case.names}
    wrong = sum(errors["grad." + name] ** 2 * square for name, square in squares.items())
    return math.sqrt(wrong / sum(squares.values()))


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def compare(case, theirs, ours, allowed):
    grads = ["grad." + name for name in case.names]
    large = [g for g in grads if case.weights[g[5:]].numel() >= LARGE]
    rows = [("tokens' losses", theirs["token_losses"], ours["token_losses"]),
            ("whole gradient", whole_gradient(case, theirs), whole_gradient(case, ours)),
            (f"large gradients, geometric mean of {len(large)}",
             geometric_mean([theirs[g] for g in large]), geometric_mean([ours[g] for g in large]))]
    judged = [{"what": what, "peer": a, "ours": b, "ratio": b / a, "ok": b <= allowed * a}
              for what, a, b in rows]
    final = ["final." + g[5:] for g in large]
    told = [(f"loss of step {i}", theirs[f"loss.step{i}"], ours[f"loss.step{i}"])
            for i in range(case.json["steps"])]
    told.append(("updates of these, geometric mean", geometric_mean([theirs[f] for f in final]),
                 geometric_mean([ours[f] for f in final])))
    told += [(f"{g} ({case.weights[g[5:]].numel()})", theirs[g], ours[g]) for g in grads]
    told = [{"what": what, "peer": a, "ours": b, "ratio": b / a if a > 0 else None}
            for what, a, b in told]
    return judged, told


def main():
    parser = argparse.ArgumentParser(description="bf16 errors beside nanochat's")
    parser.add_argument("path", help="a checkout of nanochat")
    parser.add_argument("cases", nargs="+", help="folders with a case.json")
    parser.add_argument("--tightloop", required=True, help="the program")
    parser.add_argument("--peer-device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--allowed", type=float, default=1.2)
    parser.add_argument("--eager", action="store_true", help="do not compile the peer")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of tables")
    args = parser.parse_args()

    import torch
    summary = {"event": "summary", "peer": "nanochat, " + ("eager" if args.eager else "compiled"),
               "torch": torch.__version__, "allowed": args.allowed, "cases": 0, "left_out": [],
               "largest_ratio": 0.0, "ok": True}
    if args.peer_device == "cuda":
        summary["device"] = torch.cuda.get_device_name()
    for folder in args.cases:
        case = Case(folder)
        if case.recipe != "2026-07":
            summary["left_out"].append(str(folder))
            continue
        summary["cases"] += 1
        control = peer_errors(args.path, case, "float32", args.peer_device, eager=True)
        worst = max(v for name, v in control.items() if not name.startswith("final."))
        if worst > 1e-4:
            sys.exit(f"{folder}: nanochat in float32 is {worst:.1e} off its own values: is the "
                     "checkout of commit 92d63d4?")
        theirs = peer_errors(args.path, case, "bfloat16", args.peer_device, args.eager)
        rewrites = "none" if args.eager else "all"
        judged, told = compare(case, theirs, our_errors(args, case, rewrites), args.allowed)
        summary["ok"] = summary["ok"] and all(row["ok"] for row in judged)
        summary["largest_ratio"] = max([summary["largest_ratio"],
                                        *(row["ratio"] for row in judged)])
        if args.json:
            for row in judged + told:
                print(json.dumps({"case": str(folder), "rewrites": rewrites, **row}))
            continue
        print(f"\n{folder}, rewrites: {rewrites}\n  {'peer':>10} {'ours':>10}  ratio")
        for row in judged + told:
            mark = {True: "ok", False: "FAIL", None: ""}[row.get("ok")]
            print(f"  {row['peer']:10.3e} {row['ours']:10.3e} {row['ratio'] or 0.0:6.2f}  "
                  f"{row['what']} {mark}")
    if not args.json:
        print()
    print(json.dumps(summary))
    return 0 if summary["ok"] and summary["cases"] > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
