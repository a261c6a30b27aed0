"""bf16 gradients beside f32 ones, layer by layer: sdclr's, and PyTorch's under bf16 autocast.

    cargo run --release -p sdclr --example bf16_gradients -- IMAGES OUT sdclr 128 0 5 20 100 230
    gradients_torch.py OUT/*.safetensors [--layers]

Each file holds weights, masks, a batch of views, and sdclr's gradients of one step in f32 and in bf16. PyTorch computes the
same step in f32 and under autocast. Columns: the least cosine between the two precisions of one side, over the weight tensors and
over batch norm's; PyTorch's cosine for the gradient of the (dense or first view's) embeddings, where rounding in the forward pass
alone tells; the mean cosine between two embeddings; the least cosine between the two sides' f32 gradients.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call
from train_torch import Encoder, nt_xent, prunable
from trajectory_torch import torch_name

KINDS = {"F32": np.float32, "U8": np.uint8}


def read(path):
    raw = Path(path).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    tensors = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            first, end = (start + offset for offset in entry["data_offsets"])
            values = np.frombuffer(raw[first:end], KINDS[entry["dtype"]]).reshape(entry["shape"])
            tensors[name] = torch.from_numpy(values.copy())
    return tensors


def gradients(tensors, sdclr, autocast):
    model = Encoder(16, head_layers=3 if sdclr else 2, twin_norms=sdclr)
    ours = [name for name in tensors if not name.startswith(("f32.", "bf16.", "mask.", "views"))]
    own = {torch_name(name): name for name in ours}
    parameters = dict(model.named_parameters())
    model.load_state_dict(model.state_dict() | {name: tensors[own[name]] for name in parameters})
    views = tensors["views"].reshape(-1, 32, 32, 3).permute(0, 3, 1, 2).float() / 255
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        if sdclr:
            masks = {torch_name(name[5:]): tensor.float() for name, tensor in tensors.items() if name.startswith("mask.")}
            model.use_branch(0)
            a = model(views[0::2])
            model.use_branch(1)
            b = functional_call(model, {k: w * masks[k] for k, w in prunable(model).items()}, (views[1::2],))
        else:
            a, b = model(views).unflatten(0, (-1, 2)).unbind(1)
    # As published code does, the loss is computed in f32.
    a, b = a.float(), b.float()
    a.retain_grad()
    nt_xent(a, b, 0.2).backward()
    z = F.normalize(torch.cat([a, b]).detach())
    alike = ((z @ z.T).sum() - len(z)) / (len(z) * (len(z) - 1))
    return {own[name]: parameter.grad for name, parameter in parameters.items()} | {"z": a.grad}, alike.item()


def cosines(exact, rounded):
    result = {}
    for name, a in exact.items():
        a, b = a.double().flatten(), rounded[name].double().flatten()
        # The bias before a batch norm has no gradient but rounding; nor does a norm's shift before another norm.
        if a.norm() > 1e-6 and name != "fc1.bias":
            result[name] = (a @ b / (a.norm() * b.norm())).item()
    return result


def least(values, wanted):
    name = min((name for name in values if wanted(name)), key=values.get)
    return values[name], name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--layers", action="store_true", help="every tensor")
    args = parser.parse_args()
    torch.set_num_threads(2)
    print("| method, batch, step | sdclr: weights | batch norm | PyTorch: weights | batch norm | its embeddings | alike | f32 |")
    print("|---|---|---|---|---|---|---|---|")
    for path in args.files:
        tensors, name = read(path), Path(path).stem
        ours = [{n.removeprefix(p): t for n, t in tensors.items() if n.startswith(p)} for p in ("f32.", "bf16.")]
        (exact, alike), (rounded, _) = (gradients(tensors, name.startswith("sdclr"), autocast) for autocast in (False, True))
        z = cosines({"z": exact.pop("z")}, {"z": rounded.pop("z")})["z"]
        theirs = [exact, rounded]
        sides = [cosines(*ours), cosines(*theirs)]
        cells = []
        for side in sides:
            for is_weight in (True, False):
                value, at = least(side, lambda n: (tensors[n].dim() > 1) == is_weight)
                cells.append(f"{value:.4f} {at}")
        apart = min(cosines(ours[0], theirs[0]).values())
        print(f"| {name.replace('-', ', ')} | {' | '.join(cells)} | {z:.4f} | {alike:.2f} | {apart:.4f} |", flush=True)
        if args.layers:
            for n in sides[0]:
                print(f"    {n:34} sdclr {sides[0][n]:.4f}  PyTorch {sides[1].get(n, float('nan')):.4f}  norm {ours[0][n].norm():.2e}")


if __name__ == "__main__":
    main()
