"""Writes measures.safetensors: states and answers, and every measure of them by numpy, SciPy and scikit-learn in f64.

Formulas are taken straight from their sources: singular value decompositions where the library goes over inner products,
kernels with their diagonal set to 0, scikit-learn's neighbours and solver. TwoNN is the formula of dadapy's `base`; where
dadapy 0.3.4 is installed (it needs numpy 1) its own result is compared as well.
"""

import pathlib

import numpy as np
from safetensors.numpy import save_file
from scipy.special import log_softmax, rel_entr
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

N, C, K = 40, 48, 5


def centred(x):
    return x - x.mean(0)


def cosine(x, y):
    return float(np.mean(np.sum(x * y, 1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))))


def cka(a, b):
    x, y = centred(a), centred(b)
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def hsic(k, l):
    """Song et al. 2012, equation 5."""
    n, one = len(k), np.ones(len(k))
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    terms = np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)
    return terms / (n * (n - 3))


def cka_debiased(a, b):
    k, l = a @ a.T, b @ b.T
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def kept(a):
    u, s, _ = np.linalg.svd(centred(a), full_matrices=False)
    share = np.cumsum(s**2) / np.sum(s**2)
    return u[:, : int(np.searchsorted(share, 0.99)) + 1]


def svcca(a, b):
    return np.mean(np.linalg.svd(kept(a).T @ kept(b), compute_uv=False))


def neighbours(a, k):
    return NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(a).kneighbors(a)[1][:, 1:]


def knn_overlap(a, b, k):
    both = zip(neighbours(a, k), neighbours(b, k))
    return np.mean([len(set(x) & set(y)) / k for x, y in both])


def two_nn(a):
    a = np.unique(a, axis=0)
    distances = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(a).kneighbors(a)[0]
    n = len(a)
    fitted = int(n * 0.9)
    x = np.sort(np.log(distances[:, 2] / distances[:, 1]))[:fitted]
    y = -np.log(1 - np.arange(1, fitted + 1) / n)
    slope = np.sum(x * y) / np.sum(x * x)
    try:
        from dadapy import Data
    except ImportError:
        return slope
    theirs = Data(coordinates=a).compute_id_2NN()[0]
    assert abs(theirs - slope) < 1e-6 * slope, (theirs, slope)
    return slope


def subspace_overlap(a, b, k):
    right = [np.linalg.svd(centred(x))[2][:k] for x in (a, b)]
    return np.linalg.norm(right[0] @ right[1].T) ** 2 / k


def states(a, b, anchor, knn, k):
    x, y = (a, b) if anchor is None else (a - anchor, b - anchor)
    out = {
        "cosine": cosine(a, b),
        "norm_ratio": np.mean(np.linalg.norm(y, axis=1) / np.linalg.norm(x, axis=1)),
        "cka": cka(a, b),
        "cka_debiased": cka_debiased(a, b),
        "svcca": svcca(a, b),
        "knn_overlap": knn_overlap(a, b, knn),
        "id_a": two_nn(a),
        "id_b": two_nn(b),
        "subspace_overlap": subspace_overlap(a, b, k),
    }
    return out if anchor is None else {**out, "update": cosine(x, y)}


def calibration_error(p, gold):
    confidence, right = p.max(1), p.argmax(1) == gold
    total = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            total += inside.sum() / len(p) * abs(right[inside].mean() - confidence[inside].mean())
    return total


def logistic(x, y):
    """To convergence; the gradient of the objective says so."""
    fit = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-13, max_iter=1000).fit(x, y)
    return fit.coef_, fit.intercept_


def attention(a, b, anchor):
    n = [x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-20) for x in (a, b, anchor)]
    return {"sim_aou": cosine(n[0] - n[2], n[1] - n[2])}


def readout(rng, a, words, gold):
    """A LayerNorm's attributions of three terms that make up the last state."""
    weight = rng.normal(1, 0.2, C).astype(np.float32)
    parts = [a * 0.5, rng.normal(0, 1, a.shape).astype(np.float32).astype(np.float64)]
    total = sum(parts)
    inverse = 1 / np.sqrt(total.var(1) + 1e-5)
    normed = (total - total.mean(1, keepdims=True)) * inverse[:, None] * weight
    logits = normed @ words.T

    def margin(some):
        rows = np.arange(N)
        return some[rows, gold] - (some.sum(1) - some[rows, gold]) / (some.shape[1] - 1)

    each = [((x - x.mean(1, keepdims=True)) * inverse[:, None] * weight) @ words.T for x in parts]
    return {
        "readout.weight": weight, "readout.inverse": inverse, "readout.term0": parts[0].astype(np.float32),
        "readout.term1": parts[1].astype(np.float32), "readout.logits": logits, "readout.margins": margin(logits),
        "readout.attributions0": margin(each[0]), "readout.attributions1": margin(each[1]),
    }  # fmt: skip


def main():
    rng = np.random.default_rng(3)
    # Anisotropic states with a large common mean, as a residual stream has them.
    spectrum = np.exp(-np.arange(C) / 12)
    common = rng.normal(0, 3, C)
    anchor = (rng.normal(0, 1, (N, C)) * spectrum + common).astype(np.float32)
    move = rng.normal(0, 1, (N, C)) * spectrum
    a = (anchor + 0.6 * move + 0.4).astype(np.float32)
    b = (anchor + 0.5 * move + 0.3 * rng.normal(0, 1, (N, C)) * spectrum).astype(np.float32)
    out = {"anchor": anchor, "a": a, "b": b}
    wide = [x.astype(np.float64) for x in (a, b, anchor)]
    tall = [x[:, :K] for x in wide]
    repeated = [x.copy() for x in wide]
    for x in repeated[:2]:
        x[[5, 9, 11]] = x[2]
    expected = {
        "wide": states(*wide, 10, 10),
        "alone": states(wide[0], wide[1], None, 10, 10),
        "tall": states(*tall, 10, 3),
        "given": {"knn_overlap": knn_overlap(*wide[:2], 3), "subspace_overlap": subspace_overlap(*wide[:2], 4)},
        "repeated": {"id_a": two_nn(repeated[0]), "id_b": two_nn(repeated[1]), "cka": cka(*repeated[:2])},
        "attention": attention(*wide),
    }
    # LoRA factors of two ranks, the second partly in the range of the first.
    first = rng.normal(0, 1, (C, 4)).astype(np.float32)
    second = np.concatenate([first[:, :1] + first[:, 1:2], rng.normal(0, 1, (C, 1))], 1).astype(np.float32)
    u = [np.linalg.svd(x.astype(np.float64), full_matrices=False)[0] for x in (first, second)]
    expected["lora"] = {"overlap": np.linalg.norm(u[0].T @ u[1]) ** 2 / 2}
    out |= {"lora.first": first, "lora.second": second}
    # Log-probabilities of labels, which need not add up to 1.
    answers = [log_softmax(rng.normal(0, 1.5, (N, 6)), axis=1)[:, :4] for _ in range(2)]
    gold = rng.integers(0, 4, N)
    p = [np.exp(log_softmax(x, axis=1)) for x in answers]
    expected["outputs"] = {
        "agreement": np.mean(p[0].argmax(1) == p[1].argmax(1)),
        "kl": np.mean(rel_entr(p[0], p[1]).sum(1)),
        "entropy": np.mean(-np.sum(p[0] * np.log(p[0]), 1)),
        "calibration": calibration_error(p[0], gold),
    }
    out |= {"answers.a": answers[0], "answers.b": answers[1], "gold": gold}
    for name, labels in {"binary": (wide[0] @ move[0] + rng.normal(0, 4, N) > 0).astype(int), "multinomial": gold}.items():
        coefficients, intercepts = logistic(wide[0], labels)
        out |= {f"{name}.labels": labels, f"{name}.weights": coefficients, f"{name}.intercepts": intercepts}
    words = rng.normal(0, 1, (4, C)).astype(np.float32)
    out |= {"words": words, **readout(rng, wide[0], words.astype(np.float64), gold)}
    out |= {f"expected.{case}.{name}": np.float64(x) for case, all in expected.items() for name, x in all.items()}
    out = {name: np.atleast_1d(np.ascontiguousarray(x)) for name, x in out.items()}
    save_file(out, pathlib.Path(__file__).with_name("measures.safetensors"))


if __name__ == "__main__":
    main()
