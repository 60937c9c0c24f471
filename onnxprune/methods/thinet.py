"""prototype"""
from __future__ import annotations
import torch
from torch import Tensor
from onnxprune.contract import ChannelMethod, ChannelView, Moments, method
from onnxprune.contract.statistics import PatchMoments

def gram(view, reader):
    patches = view.statistic(reader.layer, PatchMoments)
    columns = reader.columns.double()
    if patches is not None and patches.total is not None:
        H = patches.products / patches.count
        groups, d = H.shape[:2]
        k = groups * d // len(columns)
        H = torch.block_diag(*H)
        W = columns.reshape(len(columns), -1, k).transpose(1, 2).reshape(len(columns) * k, -1)
        B = (reader.positions[:, :, None] * k + torch.arange(k)).flatten(1)
    else:
        m = view.statistic(reader.layer, Moments)
        H = torch.eye(len(columns)).double() if m is None or m.total is None else m.products / m.count
        W, B = columns, reader.positions
    o = B.flatten()
    n, b = B.shape
    A = (W[o] @ W[o].T) * H[o][:, o]
    return A.reshape(n, b, n, b).sum((1, 3))

@method
class ThinetChannel(ChannelMethod):
    name = "thinet-channel"
    target = "channel"
    paper = "x"
    needs = (Moments, PatchMoments)
    def wants(self, activation):
        return self.needs if activation is None else ()
    def score(self, view: ChannelView) -> Tensor:
        if not view.readers: return view.maker_norms
        gains = view.gains
        G = sum(gains.get(r.layer, 1.0) * gram(view, r) for r in view.readers)
        n = view.channels
        lin = torch.zeros(n).double(); alive = torch.ones(n, dtype=torch.bool)
        score = torch.empty(n).double()
        for i in range(n):
            inc = (G.diagonal() + 2 * lin).masked_fill(~alive, torch.inf)
            c = int(inc.argmin()); score[c] = i
            lin += G[:, c]; alive[c] = False
        return score
