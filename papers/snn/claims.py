"""What the paper claims, where, its numbers, and when a claim counts as reproduced. No torch."""

from __future__ import annotations

from hooke.claim import Claim
from papers.snn import depth_verdict as depth
from papers.snn import dissent_verdict as dissent
from papers.snn import table_verdict as table
from papers.snn import theory_verdict as theory
from papers.snn import uci_verdict as uci

_RANKS = "SNN -0.756, MSRAinit -0.240, LayerNorm -0.198, Highway 0.021, ResNet 0.273, WeightNorm 0.397, BatchNorm 0.504"
_LARGE = "of 24 methods: SNN 5.8, MSRAinit 7.1, LayerNorm 7.2, Highway 7.9, ResNet 8.4, WeightNorm 8.7, BatchNorm 9.7"
_FIRST = "SNN has the best mean rank and is better than at least four of the six others (Wilcoxon, p < 0.05)"
_LOWER = "the worst seed of the SNN is below the best seed of the batch-normalized net at every depth, best rates"
_LEAD = "the 95 % interval of the lead is above 0; around 0 it is not judged"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "alpha and lambda follow from the fixed point (0, 1).",
        "section 2, eq. 14",
        theory.constants,
        "alpha 1.6733, lambda 1.0507",
        "both agree to 1e-12",
    ),
    Claim(
        "Another fixed point, (0, 2), has its own alpha and lambda.",
        "appendix A5",
        theory.other_point,
        "alpha 1.97126, lambda 1.06071",
        "both agree to 1e-5",
    ),
    Claim("The Jacobian of the map at (0, 1) has norm 0.7877: the fixed point attracts.", "section 2", theory.norm),
    Claim(
        "Theorem 1: on Omega the map contracts, and maps Omega's means and variances into themselves.",
        "theorem 1",
        theory.proved("theorem 1", 1),
        "proved with a computer",
        "proved over the whole domain",
    ),
    Claim(
        "Theorem 2: a variance from 3 to 16 decreases.",
        "theorem 2",
        theory.proved("theorem 2", 1),
        "proved",
        "proved over the whole domain",
    ),
    Claim(
        "Theorem 3: a variance below 0.16 (or 0.24) increases.",
        "theorem 3",
        theory.proved("theorem 3", 4),
        "proved, down to 0.02 (text) or 0.05 (appendix)",
        "proved over the whole domain, with both lower bounds",
    ),
    Claim(
        "ReLU, leaky ReLU, sigmoid and tanh cannot make a net normalize itself.",
        "section 2",
        theory.unable(scaled=False),
        "none of them",
        "none has an attracting fixed point with mean within 0.1 of 0 and variance within 0.5 of 1 (omega 0, tau 1)",
    ),
    Claim(
        "Nor can they when multiplied to keep variance 1.",
        "section 2 says so of ReLU; the others are our extension",
        theory.unable(scaled=True),
        "none of them",
        "the same, for each times one over its standard deviation under a standard normal input",
    ),
    Claim(
        "Activations stay near mean 0 and variance 1 through many layers.",
        "abstract",
        theory.moments_stay,
        "toward 0 and 1",
        "the worst layer of all seeds, from width 256, is within 0.1 of mean 0 and 0.3 of variance 1",
    ),
    Claim(
        "Wider layers come closer to the theory: the central limit theorem.",
        "section 2",
        theory.central_limit,
        "by the theory of sums, at least as width^-0.5",
        "the scatter of a layer's variance over seeds falls at least as width^-0.4 (upper end of the interval)",
    ),
    Claim(
        "Vanishing and exploding gradients are impossible.",
        "abstract",
        theory.gradients,
        "neither",
        "the interval of the growth a layer lies within 0.01 of 1",
    ),
    Claim(
        "Alpha dropout keeps mean and variance at any rate.",
        "section 2, new dropout",
        theory.alpha_dropout,
        "kept at 0 and 1",
        "the worst layer of all seeds and rates has |mean| below 0.1 and variance between 0.8 and 1.25",
    ),
    Claim(
        "Plain dropout does not.",
        "section 2, new dropout",
        theory.plain_dropout,
        "not kept",
        "the variance passes 1.25 in some layer at every rate",
    ),
    Claim(
        "On MNIST, SNNs reach a lower training error than batch-normalized nets at 8, 16 and 32 layers.",
        "figure 1, left",
        depth.lower_than_batch_norm("mnist"),
        "lower (figure)",
        _LOWER,
    ),
    Claim("Likewise on CIFAR-10.", "figure 1, right", depth.lower_than_batch_norm("cifar10"), "lower (figure)", _LOWER),
    Claim(
        "The training error of batch-normalized nets varies more.",
        "figure 1",
        depth.steadier,
        "higher variance (figure)",
        "the 95 % interval of the ratio is above 1; around 1 it is not judged",
    ),
    Claim(
        "At 32 layers the SNN trains best of the seven methods.",
        "our extension of figure 1",
        depth.deepest_best,
        "",
        "its worst seed is below the best seed of every other method, on every data set with all methods",
    ),
    Claim(
        "On the UCI tasks SNNs rank first, with the paper's own grids.",
        "section 3, table 1",
        uci.uci("paper"),
        _RANKS,
        f"{_FIRST}; judged from 60 tasks",
    ),
    Claim(
        "They still do with one grid for every method.",
        "section 3, made fair",
        uci.uci("equal"),
        f"with its own grids: {_RANKS}",
        f"{_FIRST}; judged from 60 tasks",
    ),
    Claim(
        "On tasks of more than 1,000 rows they rank first of the networks.",
        "section 3, table A13",
        uci.uci("paper", large=True),
        _LARGE,
        f"{_FIRST}; the paper's grids; judged from 15 tasks",
    ),
    Claim(
        "Tuning chooses deeper nets for SNNs than for the others.",
        "section 3",
        uci.chosen_depth,
        "SNN 10.8, MSRAinit 7.1, LayerNorm 7.0, BatchNorm 6.0, Highway 5.9, WeightNorm 3.8 (ResNet 6.35 blocks)",
        f"{_LEAD}; the paper's grids, judged from 60 tasks",
    ),
    Claim(
        "On small tasks random forests and support vector machines are better.",
        "section 3",
        uci.small,
        "both before SNN, 75 tasks",
        "both have a better mean rank than SNN; judged from 30 tasks",
    ),
    Claim(
        "SNNs are the best on HTRU2.",
        "section 3, astronomy",
        table.pulsars,
        "SNN .9803, MSRAinit .9791 (p .35), WeightNorm .9786, Highway .9766, LayerNorm .9762, "
        "BatchNorm .9760 (p .065), ResNet .9753",
        _LEAD,
    ),
    Claim(
        "SNNs are the best on Tox21, with a deep net.",
        "section 3, table 2",
        table.tox21_best,
        "SNN 84.5 at 8, LayerNorm 84.3 at 2, WeightNorm 83.7 at 2",
        f"its best depth is 8 or more, and {_LEAD}",
    ),
    Claim(
        "On Tox21 SNNs lose least when they grow deep.",
        "section 3, table 2",
        table.tox21_deep,
        "SNN 2.0, MSRAinit 2.3, Highway 3.7, BatchNorm 4.0, LayerNorm 5.5, WeightNorm 27.1 (ResNet not given)",
        _LEAD,
    ),
    Claim(
        "Dissent: with sums over words and Keras's initialization SELU loses to ReLU.",
        "Patel 2017",
        dissent.selu_loses("plain"),
        "about 82.0 % against 80.7 %, read off a plot",
        _LEAD,
    ),
    Claim(
        "Dissent: likewise with batch normalization.",
        "Patel 2017",
        dissent.selu_loses("batch norm"),
        "SELU loses",
        _LEAD,
    ),
    Claim(
        "Built as the theory asks, SELU beats ReLU there, too.",
        "our question",
        dissent.mended,
        "",
        "the audit finds nothing, and the interval of SELU's lead over the best ReLU net is above 0",
    ),
)
