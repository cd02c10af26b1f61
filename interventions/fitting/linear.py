"""Regularised logistic regression between two groups of rows, in the raw units of the residual stream."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from data.errors import UserError
from interventions.fitting.moments import mass_mean, moments_of

if TYPE_CHECKING:
    from sklearn.model_selection import StratifiedKFold

C = 0.01
C_GRID = tuple(np.logspace(-4, 0, 9))
FOLDS = 5
Linear = tuple[np.ndarray, np.ndarray, float]


def fit_logistic(x: np.ndarray, positive: np.ndarray, c: float = C) -> Linear:
    """Weight (d,), mean (d,) and bias of scikit-learn's fit: log-odds of `positive` = (x − mean)·weight + bias.

    Columns are standardised for the fit, so that the L2 penalty weighs all dimensions alike, and mapped back; both
    classes count the same whatever their sizes. With more dimensions than rows the penalty decides the direction:
    C = 0.01 is what cross-validation chooses on SmolLM2's middle layers.

    Args:
        x: (rows, d) float64.
        positive: (rows,) bool.
        c: Inverse strength of the L2 penalty.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=c, class_weight="balanced", max_iter=5000).fit(scaler.transform(x), positive)
    return model.coef_[0] / np.asarray(scaler.scale_), np.asarray(scaler.mean_), float(model.intercept_[0])


def fit_mass_mean(x: np.ndarray, positive: np.ndarray) -> Linear:
    """Weight (d,), mean (d,) and bias of the difference in means over each dimension's variance within the groups.

    Marks and Tegmark 2023 (arXiv 2310.06824), section 5, with a diagonal covariance: the limit of `fit_logistic` as its
    penalty grows. It tells its own rows apart less well and others' better, above all where the model was tuned on the
    rows that it is fitted to. A logistic regression on the one number that is left gives it the scale of log-odds.

    Args:
        x: (rows, d) float64.
        positive: (rows,) bool.
    """
    weight, mean = mass_mean(moments_of(x, np.stack([positive, ~positive])))
    slope, bias = fit_line((x - mean) @ weight, positive)
    return weight * slope, mean, bias


def fit_line(along: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Slope and bias of a logistic regression on one number a row, both classes counting the same: log-odds = slope · number + bias.

    Args:
        along: (rows,) float64.
        positive: (rows,) bool.
    """
    from sklearn.linear_model import LogisticRegression

    scale = float(along.std()) or 1.0
    line = LogisticRegression(class_weight="balanced").fit(along[:, None] / scale, positive)
    return float(line.coef_[0, 0]) / scale, float(line.intercept_[0])


def best_c(x: np.ndarray, positive: np.ndarray, seed: int) -> float:
    """Inverse L2 strength with the highest AUC in 5-fold cross-validation (fewer folds for fewer rows)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=5000))
    search = GridSearchCV(
        model, {"logisticregression__C": C_GRID}, scoring="roc_auc", cv=stratified(positive, seed), refit=False
    )
    return float(search.fit(x, positive).best_params_["logisticregression__C"])


def stratified(positive: np.ndarray, seed: int) -> "StratifiedKFold":
    """At most five folds, each with both classes.

    Raises:
        UserError: A class has a single row.
    """
    from sklearn.model_selection import StratifiedKFold

    least = min(int(positive.sum()), int((~positive).sum()))
    if least < 2:
        raise UserError("a probe needs at least two harmful and two benign rows to fit on; add prompts")
    return StratifiedKFold(min(FOLDS, least), shuffle=True, random_state=seed)


def fit_published(x: np.ndarray, harmful: np.ndarray, seed: int) -> Linear:
    """Weight, mean and bias as arXiv 2603.13359's code fits them.

    `nn.Linear` on mean-centred activations, AdamW with learning rate 1e-3 and weight decay 1e-4, 15 epochs of
    shuffled batches of 512, binary cross-entropy without class weights.
    """
    generator = torch.Generator().manual_seed(seed)
    mean = x.mean(0)
    inputs, wanted = torch.from_numpy(x - mean).float(), torch.from_numpy(harmful).float()
    bound = x.shape[1] ** -0.5  # nn.Linear's own start
    start = [(torch.rand(size, generator=generator) * 2 - 1) * bound for size in (x.shape[1], 1)]
    weight, bias = (torch.nn.Parameter(value) for value in start)
    optimizer = torch.optim.AdamW([weight, bias], lr=1e-3, weight_decay=1e-4)
    for _epoch in range(15):
        for batch in torch.randperm(len(inputs), generator=generator).split(512):
            logits = inputs[batch] @ weight + bias
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weight.detach().double().numpy(), mean, float(bias.detach())
