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

How a number is rounded is luck, and so is the error of one run. Both sides therefore also run from
weights moved by up to one part in 10^4, --nudges times, which deals the same rounding again; an
error below is the root of the mean square over all of these runs.

Judged in every case, by --allowed times the peer's: the tokens' losses, the whole gradient, and the
geometric mean over the gradients of at least 1,000 elements. The rest is printed: the mean loss of
a step is one number and a small gradient few. Of the former the largest error is told too.

Cases of recipe 2026-02 are of another nanochat, commit c7ba252: PATH is a checkout of that one with
--recipe 2026-02. It computes in bf16 under autocast and cannot compute in float32, so that its
losses must only be near those of the case. Cases of the other recipe are left out. Exit code 1 when
an error is larger than allowed.
"""
import argparse
import contextlib
import json
import math
import pathlib
import subprocess
import sys
import tempfile

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

    def nudged(self, nudge):
        """The weights; with a number above 0 moved a little."""
        import torch
        if nudge == 0:
            return self.weights
        random = torch.Generator().manual_seed(nudge)
        return {name: w * (1 + 1e-4 * (2 * torch.rand(w.shape, generator=random) - 1))
                for name, w in self.weights.items()}

    def token_losses(self, logits):
        import torch.nn.functional as F
        logits = logits.double().cpu()
        targets = self.tokens["step0.targets"].long().flatten()
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets, ignore_index=-1,
                               reduction="none")


class Peer:
    """nanochat with the model of a case, ready to run its steps."""

    def __init__(self, path, case, dtype, device, eager):
        import torch
        gpt, self.optim = peer.import_nanochat(path, dtype)
        torch._dynamo.reset()
        torch.compiler.set_stance("force_eager" if eager else "default")
        self.case, self.device = case, device
        self.model = peer.build_model(gpt, case.json["config"], device)
        self.forward = torch.compile(self.model, dynamic=False)
        self.autocast = case.recipe == "2026-02"

    def context(self):
        import torch
        return torch.autocast(self.device, torch.bfloat16) if self.autocast \
            else contextlib.nullcontext()

    def errors(self, nudge=0):
        import torch
        case = self.case
        self.model.load_state_dict(case.nudged(nudge))
        parameters = dict(self.model.named_parameters())
        optimizer = self.optim.MuonAdamW([
            {**{k: v for k, v in group.items() if k != "params"},
             "params": [parameters[name] for name in group["params"]]}
            for group in case.json["optimizer"]["groups"]])
        errors = {}
        for step in range(case.json["steps"]):
            inputs = case.tokens[f"step{step}.inputs"].to(self.device)
            targets = case.tokens[f"step{step}.targets"].long().to(self.device)
            if step == 0:
                with torch.no_grad(), self.context():
                    logits = self.forward(inputs)
                errors["token_losses"] = norm_error(
                    case.token_losses(logits), case.token_losses(case.expected["step0.logits"]))
            with self.context():
                loss = self.forward(inputs, targets)
            loss.backward()
            want = case.json["losses"][step]
            errors[f"loss.step{step}"] = abs(loss.item() - want) / abs(want)
            if step == 0:
                for name in case.names:
                    errors["grad." + name] = norm_error(parameters[name].grad.cpu(),
                                                        case.expected["step0.grad." + name])
            optimizer.step()
            self.model.zero_grad(set_to_none=True)
        for name in case.names:
            start = case.weights[name].double()
            errors["final." + name] = norm_error(parameters[name].detach().cpu().double() - start,
                                                 case.expected["final." + name].double() - start)
        return errors


def our_errors(args, case, rewrites, nudge):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name in ("case.json", "tokens.safetensors", "expected.safetensors"):
            (folder / name).symlink_to((case.folder / name).resolve())
        peer.write_safetensors(folder / "weights.safetensors", case.nudged(nudge))
        command = [args.tightloop, "check", str(folder), "--device", "cuda", "--dtype", "bf16",
                   "--rewrites", rewrites, "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    report = json.loads(done.stdout)
    if report["failures"]:
        sys.exit("\n".join(report["failures"]))
    return {q["name"]: q["error"] for q in report["quantities"]}


def root_mean_square(runs):
    return {name: math.sqrt(sum(run[name] ** 2 for run in runs) / len(runs)) for name in runs[0]}


def whole_gradient(case, errors):
    squares = {name: case.expected["step0.grad." + name].double().square().sum().item()
               for name in case.names}
    wrong = sum(errors["grad." + name] ** 2 * square for name, square in squares.items())
    return math.sqrt(wrong / sum(squares.values()))


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def compare(case, their_runs, our_runs, allowed):
    theirs, ours = root_mean_square(their_runs), root_mean_square(our_runs)
    grads = ["grad." + name for name in case.names]
    large = [g for g in grads if case.weights[g[5:]].numel() >= LARGE]
    rows = [("tokens' losses", theirs["token_losses"], ours["token_losses"]),
            ("whole gradient", whole_gradient(case, theirs), whole_gradient(case, ours)),
            (f"large gradients, geometric mean of {len(large)}",
             geometric_mean([theirs[g] for g in large]), geometric_mean([ours[g] for g in large]))]
    judged = [{"what": what, "peer": a, "ours": b, "ratio": b / a, "ok": b <= allowed * a}
              for what, a, b in rows]
    final = ["final." + g[5:] for g in large]
    told = []
    for step in range(case.json["steps"]):
        name = f"loss.step{step}"
        told.append((f"loss of step {step}", theirs[name], ours[name]))
        told.append((f"loss of step {step}, largest of {len(their_runs)} runs",
                     max(run[name] for run in their_runs), max(run[name] for run in our_runs)))
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
    parser.add_argument("--recipe", default="2026-07", choices=["2026-07", "2026-02"])
    parser.add_argument("--nudges", type=int, default=8)
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
        if case.recipe != args.recipe:
            summary["left_out"].append(str(folder))
            continue
        summary["cases"] += 1
        if args.recipe == "2026-07":
            control = Peer(args.path, case, "float32", args.peer_device, eager=True).errors()
            worst = max(v for name, v in control.items() if not name.startswith("final."))
            if worst > 1e-4:
                sys.exit(f"{folder}: nanochat in float32 is {worst:.1e} off its own values: is "
                         "the checkout of commit 92d63d4?")
        nanochat = Peer(args.path, case, "bfloat16", args.peer_device, args.eager)
        theirs = [nanochat.errors(nudge) for nudge in range(args.nudges + 1)]
        if theirs[0]["token_losses"] > 1e-2:
            sys.exit(f"{folder}: nanochat in bf16 is {theirs[0]['token_losses']:.1e} off its own "
                     "losses: is the checkout of the right commit?")
        rewrites = "none" if args.eager else "all"
        ours = [our_errors(args, case, rewrites, nudge) for nudge in range(args.nudges + 1)]
        judged, told = compare(case, theirs, ours, args.allowed)
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
