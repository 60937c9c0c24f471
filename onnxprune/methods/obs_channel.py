"""prototype"""
from __future__ import annotations
import os
from dataclasses import dataclass
from typing import ClassVar
import torch
from torch import Tensor
from onnxprune.contract import ChannelMethod, ChannelView, Moments, Option, Statistic, method
from onnxprune.contract.statistics import PatchMoments
from onnxprune.contract.channels import Reader

LEVEL = os.environ.get("LEVEL", "patch")
STEPS = int(os.environ.get("STEPS", "32"))
DAMP = float(os.environ.get("DAMP", "0.01"))
GAINS = os.environ.get("GAINS", "1") == "1"
SHRINK = os.environ.get("SHRINK", "1") == "1"

def shrink(plain, count):
    squares = (plain**2).sum().clamp(min=1e-300)
    rank = plain.diagonal().sum() ** 2 / squares
    share = ((1 + rank) / ((count + 1) * (1 - rank / len(plain)).clamp(min=1e-3))).clamp(max=1.0)
    return (1 - share) * plain + share * torch.diag(plain.diagonal())

@dataclass
class Problem:
    covariance: Tensor
    weights: Tensor
    blocks: Tensor

def problem(view: ChannelView, reader: Reader) -> Problem:
    patches = view.statistic(reader.layer, PatchMoments)
    columns = reader.columns.double()
    if LEVEL == "patch" and patches is not None and patches.total is not None:
        cov = patches.covariance
        groups, d = cov.shape[:2]
        k = groups * d // len(columns)
        cov = torch.stack([shrink(c, patches.count) for c in cov]) if SHRINK else cov
        cov = torch.block_diag(*cov)
        weights = columns.reshape(len(columns), -1, k).transpose(1, 2).reshape(len(columns) * k, -1)
        blocks = (reader.positions[:, :, None] * k + torch.arange(k)).flatten(1)
        return Problem(cov, weights, blocks)
    m = view.statistic(reader.layer, Moments)
    cov = torch.eye(len(columns)).double() if m is None or m.total is None else m.shrunk() if SHRINK else m.covariance
    return Problem(cov, columns, reader.positions)

def eliminate(problems, factors, channels):
    step = max(1, channels // STEPS)
    state = []
    for p in problems:
        cov = p.covariance + DAMP * p.covariance.diagonal().mean().clamp(min=1e-12) * torch.eye(len(p.covariance))
        w = p.weights
        if w.shape[1] > w.shape[0]:
            w = torch.linalg.qr(w.T, mode="r").R.T
        rest = torch.ones(len(cov), dtype=torch.bool); rest[p.blocks.flatten()] = False
        prec = torch.cholesky_inverse(torch.linalg.cholesky(cov))
        o = p.blocks.flatten()
        # inputs of other groups stay: they take part in the precision only
        state.append([prec[o][:, o], w[o], p.blocks.shape[1]])
    alive = torch.arange(channels)
    gone, costs = [], []
    while len(alive):
        total = torch.zeros(len(alive)).double()
        for f, (P, W, b) in zip(factors, state):
            if b == 1:
                total += f * (W**2).sum(1) / P.diagonal()
            else:
                n = len(alive)
                ar = torch.arange(n)
                blk = P.reshape(n, b, n, b)[ar, :, ar, :]
                w = W.reshape(n, b, -1)
                total += f * (w * torch.linalg.solve(blk, w)).sum((1, 2))
        t = min(step, len(alive))
        chosen = torch.argsort(total, stable=True)[:t]
        gone.append(alive[chosen]); costs.append(total[chosen])
        keep = torch.ones(len(alive), dtype=torch.bool); keep[chosen] = False
        keep = keep.nonzero()[:, 0]
        for s in state:
            P, W, b = s
            K = (keep[:, None] * b + torch.arange(b)).flatten(); R = (chosen[:, None] * b + torch.arange(b)).flatten()
            if len(K):
                PR = P[K][:, R]
                X = torch.linalg.solve(P[R][:, R], torch.cat([W[R], PR.T], 1))
                m = W.shape[1]
                s[0] = P[K][:, K] - PR @ X[:, m:]
                s[1] = W[K] - PR @ X[:, :m]
        alive = alive[keep]
    return torch.cat(gone), torch.cat(costs)

@method
class ObsChannel(ChannelMethod):
    name = "obs-channel"
    target = "channel"
    paper = "x"
    needs = (Moments, PatchMoments)

    def wants(self, activation):
        return self.needs if activation is None else ()

    def score(self, view: ChannelView) -> Tensor:
        if not view.readers:
            return view.maker_norms
        problems = [problem(view, r) for r in view.readers]
        gains = getattr(view, "gains", {})
        f = [gains.get(r.layer, 1.0) if GAINS else 1.0 for r in view.readers]
        order, costs = eliminate(problems, f, view.channels)
        found = torch.empty(view.channels, dtype=torch.float64)
        found[order] = torch.cummax(costs, 0).values * (1 + 1e-9 * torch.arange(view.channels))
        return found
