//! What is measured of states, answers and updates: formulas, their sources, and what chance alone gives.
//!
//! Pure arithmetic in f64 on rows of f32: no model, no file. Everything that is drawn comes from a seed.
//!
//! # Of the states of two arms
//!
//! `A`, `B` `[n, C]` are the states of the same n queries in two arms at one layer, `a_i`, `b_i` their rows, `o_i` those of the
//! anchor (the query alone in the untuned model); `X`, `Y` are `A`, `B` without their column means. [`compare`] gives them all,
//! [`States`] and [`Pair`] share the work between the pairs of a layer.
//!
//! | name | formula | source | none where |
//! |---|---|---|---|
//! | `cosine` | mean of `a_i . b_i / (\|a_i\| \|b_i\|)`, 0 for a zero vector | | an arm is zero |
//! | `update` | mean of `cos(a_i - o_i, b_i - o_i)`, 0 where an arm does not move a query | | there is no anchor, or an arm moves no query |
//! | `norm_ratio` | mean of `\|b_i - o_i\| / \|a_i - o_i\|`; `\|b_i\| / \|a_i\|` without an anchor | | a denominator is 0 |
//! | `cka` | `\|Y'X\|_F^2 / (\|X'X\|_F \|Y'Y\|_F)` | Kornblith et al. 2019, equation 3 with a linear kernel | all rows of an arm are equal |
//! | `cka_debiased` | `H(K, L) / sqrt(H(K, K) H(L, L))`, `K = A A'`, `L = B B'` | H: the unbiased HSIC of Song et al. 2012, equation 5 | n < 4; `H(K, K)` is 0 but for rounding, as where one row alone differs |
//! | `svcca` | mean canonical correlation of the fewest principal directions that hold 99% of the variance of each arm | Raghu et al. 2017 | all rows of an arm are equal |
//! | `knn_overlap` | mean of the share of `a_i`'s k nearest rows that are among `b_i`'s, by Euclidean distance; of equally near ones the first | Doimo et al., arXiv 2409.03662 | k >= n; all rows of an arm are equal |
//! | `id_a`, `id_b` | TwoNN: the slope through the origin of `-ln(1 - i/N)` over the ascending `ln(r2/r1)`, of the first 0.9 N rows | Facco et al. 2017; `compute_id_2NN` of dadapy 0.3.4, algorithm `base` | fewer than 3 different rows; all their ratios are 1 |
//! | `subspace_overlap` | `(1/k) \|Va' Vb\|_F^2`, the k = 10 leading right singular vectors of X, Y | | fewer than k directions of an arm have variance |
//!
//! With `K~` for K without its diagonal, `H(K, L) = (tr(K~ L~) + 1'K~1 1'L~1 / ((n-1)(n-2)) - 2 1'K~L~1 / (n-2)) / (n (n-3))`. It
//! does not depend on the columns' means, so that centred rows give it without the loss of digits that large means cost.
//! TwoNN counts equal rows once; N is the number of different ones. The canonical correlations are the singular values of
//! `Ua' Ub`, U the left singular vectors that are kept. k of `knn_overlap` is 30, or a quarter of the rows where that is less.
//!
//! Read `svcca` beside its baselines: where the kept directions of both arms are together more than n - 1, some correlations
//! are 1 whatever the states. `cka` has such a floor too when C is not far below n, which is what `cka_debiased` is for.
//!
//! # Baselines
//!
//! | measure | identity (B = A) | shuffled rows of B | Gaussian rows for B |
//! |---|---|---|---|
//! | `cosine`, `update` | 1 | expectation over other queries | about 0, SD `1 / sqrt(C)` of a query |
//! | `norm_ratio` | 1 | expectation over other queries | none: noise has no norm of its own |
//! | `cka` | 1 | `tr K tr L / ((n - 1) \|K\| \|L\|)` of centred K, L | as computed |
//! | `cka_debiased` | 1 | 0 | about 0 |
//! | `svcca` | 1 | as computed for one order | as computed |
//! | `knn_overlap` | 1 | `k / (n - 1)` | about `k / (n - 1)` |
//! | `id_b` | `id_a` | does not depend on the order: none | of the noise, which fills its space |
//! | `subspace_overlap` | 1 | does not depend on the order: none | expectation `k / C` |
//!
//! The identity is 1 by construction, which a test shows; `svcca` and `subspace_overlap` to the rounding of their directions.
//!
//! # Of updates, attention and answers
//!
//! | function | source | baseline |
//! |---|---|---|
//! | [`lora_overlap`] of two LoRA updates | IA2, arXiv 2509.22621 | [`lora_overlap_expected`] |
//! | [`sim_aou`](attention::sim_aou), [`sim_am`](attention::sim_am), [`rec2ftp`](attention::rec2ftp) | Dai et al., arXiv 2212.10559 | [`sim_aou_gaussian`](attention::sim_aou_gaussian); the zero-shot scores; [`rec2ftp_shuffled`](attention::rec2ftp_shuffled) |
//! | [`outputs`]: agreement, KL divergence, entropy, calibration error over 15 bins | Guo et al. 2017 for the last | shuffled queries; `ln` of the labels; 0 |
//! | [`readouts`]: logit lens, direct logit attribution | nostalgebraist 2020; Elhage et al. 2021 | [`margins_shuffled`](readouts::margins_shuffled) |
//! | [`linear_probe`](fn@linear_probe): logistic regression, cross-validated by query | Alain and Bengio 2016; controls of Hewitt and Liang 2019 | shuffled labels, random features |

pub mod attention;
pub mod outputs;
pub mod readouts;
pub mod similarity;
pub mod singular;

mod compare;
mod linear;
mod linear_probe;
mod logistic;
mod projection;
mod settings;
mod states;
mod subspace;

pub use compare::{Baselines, Pair, StateMeasures, baselines, compare};
pub use linear_probe::{
    Folds, LinearProbe, LogisticRegression, ProbeFeatures, ProbeFit, linear_probe, logistic_regression, shuffled_labels,
};
pub use projection::{Projection, projection};
pub use settings::{Measure, Settings};
pub use states::States;
pub use subspace::{lora_overlap, lora_overlap_expected};
