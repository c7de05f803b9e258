//! Two arms at one layer beside each other, and what chance alone would give.

use std::cell::OnceCell;

use serde::{Deserialize, Serialize};

use super::linear::{product, singular_values};
use super::settings::{Measure, Settings};
use super::similarity::{self, Updates, cosines, gaussian_rows, gaussian_updates, updates};
use super::states::States;
use crate::random::Rng;

/// A squared norm below this share of its terms is their rounding.
const ROUNDING: f64 = 1e-12;

/// The measures of two arms' states at one layer, or a baseline of them. A field is none where its measure is not asked for,
/// needs more rows, or has no value for these states: see the documentation of [`super`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StateMeasures {
    /// Mean cosine of the states of a row.
    pub cosine: Option<f64>,
    /// Mean cosine of the updates of a row from the anchor.
    pub update: Option<f64>,
    /// Mean ratio of the norms of the updates, b's over a's; of the states without an anchor.
    pub norm_ratio: Option<f64>,
    /// Linear CKA, which grows with the width where rows are few.
    pub cka: Option<f64>,
    /// Linear CKA of unbiased HSICs.
    pub cka_debiased: Option<f64>,
    /// Mean canonical correlation of the leading singular directions.
    pub svcca: Option<f64>,
    /// Mean share of common neighbours.
    pub knn_overlap: Option<f64>,
    /// Intrinsic dimension of a.
    pub id_a: Option<f64>,
    /// Intrinsic dimension of b.
    pub id_b: Option<f64>,
    /// Overlap of the leading principal directions.
    pub subspace_overlap: Option<f64>,
}

impl StateMeasures {
    /// The values of a measure with their names in reports: two of `id`, one of every other.
    pub fn values(&self, measure: Measure) -> Vec<(&'static str, Option<f64>)> {
        let value = match measure {
            Measure::Cosine => self.cosine,
            Measure::Update => self.update,
            Measure::NormRatio => self.norm_ratio,
            Measure::Cka => self.cka,
            Measure::CkaDebiased => self.cka_debiased,
            Measure::Svcca => self.svcca,
            Measure::KnnOverlap => self.knn_overlap,
            Measure::Id => return vec![("id_a", self.id_a), ("id_b", self.id_b)],
            Measure::SubspaceOverlap => self.subspace_overlap,
        };
        vec![(measure.name(), value)]
    }
}

/// What the measures of two arms give where the arms have nothing in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baselines {
    /// The rows of b in another order, see [`Pair::shuffled`].
    pub shuffled: StateMeasures,
    /// Gaussian rows in the place of b's, see [`Pair::gaussian`].
    pub gaussian: StateMeasures,
}

/// Two arms at one layer.
pub struct Pair<'a> {
    a: &'a States<'a>,
    b: &'a States<'a>,
    anchor: Option<&'a [f32]>,
    settings: &'a Settings,
    updates: OnceCell<Updates>,
}

/// Measures two arms' states `a`, `b` `[n, width]`, whose updates are taken from the states `anchor`, where there are some.
///
/// # Panics
/// If `width` is 0, or the lengths differ or are no multiple of `width`.
pub fn compare(a: &[f32], b: &[f32], anchor: Option<&[f32]>, width: usize, settings: &Settings) -> StateMeasures {
    let (a, b) = (States::new(a, width, settings), States::new(b, width, settings));
    Pair::new(&a, &b, anchor, settings).measures()
}

/// The baselines of [`compare`]; `layer` chooses the Gaussian rows.
///
/// # Panics
/// As [`compare`].
pub fn baselines(
    a: &[f32],
    b: &[f32],
    anchor: Option<&[f32]>,
    width: usize,
    layer: usize,
    settings: &Settings,
) -> Baselines {
    let (a, b) = (States::new(a, width, settings), States::new(b, width, settings));
    let noise = gaussian_rows(settings.seed, layer, a.rows(), width);
    let pair = Pair::new(&a, &b, anchor, settings);
    let states = States::gaussian(&noise, width, settings);
    Baselines { shuffled: pair.shuffled(), gaussian: pair.gaussian(&states, &noise) }
}

impl<'a> Pair<'a> {
    /// Two arms whose states were prepared for these settings.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn new(a: &'a States<'a>, b: &'a States<'a>, anchor: Option<&'a [f32]>, settings: &'a Settings) -> Self {
        let shape = (a.values.len(), a.width);
        assert!(shape == (b.values.len(), b.width), "pair: {shape:?} and {:?}", (b.values.len(), b.width));
        assert!(anchor.is_none_or(|anchor| anchor.len() == a.values.len()), "pair: an anchor of another shape");
        Self { a, b, anchor, settings, updates: OnceCell::new() }
    }

    /// The updates of both from the anchor, where there is one.
    pub fn updates(&self) -> Option<&Updates> {
        let (a, b) = (self.a, self.b);
        self.anchor.map(|anchor| self.updates.get_or_init(|| updates(anchor, &a.values, &b.values, a.width)))
    }

    /// What is asked for.
    pub fn measures(&self) -> StateMeasures {
        let (x, y, width) = (&self.a.values, &self.b.values, self.a.width);
        let moved = |found: &Updates| mean(found.update.iter().copied()).filter(|_| self.both_move());
        StateMeasures {
            cosine: self.wants(Measure::Cosine, || self.nonzero().then(|| mean(cosines(x, y, width))).flatten()),
            update: self.wants(Measure::Update, || moved(self.updates()?)),
            norm_ratio: self.wants(Measure::NormRatio, || {
                let [a, b] = self.norms()?;
                mean(a.iter().zip(&b).map(|(a, b)| b / a))
            }),
            svcca: self.wants(Measure::Svcca, || self.svcca(None)),
            knn_overlap: self.wants(Measure::KnnOverlap, || self.knn_overlap()),
            id_b: self.b.id,
            ..self.rotation_free()
        }
    }

    /// The rows of b in another order: whatever the arms share on average over the rows remains, and what is of the single
    /// row goes.
    ///
    /// Expectations where they are known: of `cosine`, `update` and `norm_ratio` over all pairs of a row and another one, of
    /// `cka` (`tr K tr L / ((n - 1) |K| |L|)`), `cka_debiased` (0) and `knn_overlap` (`k / (n - 1)`) over all orders.
    /// `svcca` is that of one order, drawn from the settings' seed. The others do not depend on the order, and are none.
    pub fn shuffled(&self) -> StateMeasures {
        let (x, y, width, n) = (&self.a.values, &self.b.values, self.a.width, self.a.rows());
        let rest = self.rotation_free();
        let cka = || {
            let (a, b) = (self.a.spread.as_ref()?, self.b.spread.as_ref()?);
            Some(a.total() * b.total() / ((n - 1) as f64 * (a.own * b.own).sqrt()))
        };
        let norm_ratio = || {
            let [a, b] = self.norms().filter(|_| n > 1)?;
            let (inverses, sum): (f64, f64) = (a.iter().map(|a| 1.0 / a).sum(), b.iter().sum());
            let own: f64 = a.iter().zip(&b).map(|(a, b)| b / a).sum();
            Some((inverses * sum - own) / (n * (n - 1)) as f64)
        };
        let order = || {
            let mut order: Vec<usize> = (0..n).collect();
            Rng::new(self.settings.seed).shuffle(&mut order);
            order
        };
        StateMeasures {
            cosine: self.wants(Measure::Cosine, || {
                let zeros = vec![0.0; x.len()];
                self.nonzero().then(|| mean(updates(&zeros, x, y, width).update_shuffled)).flatten()
            }),
            update: self.wants(Measure::Update, || {
                mean(self.updates()?.update_shuffled.iter().copied()).filter(|_| self.both_move())
            }),
            norm_ratio: self.wants(Measure::NormRatio, norm_ratio),
            cka: rest.cka.and_then(|_| cka()),
            cka_debiased: rest.cka_debiased.map(|_| 0.0),
            svcca: self.wants(Measure::Svcca, || self.svcca(Some(&order()))),
            knn_overlap: self.wants(Measure::KnnOverlap, || {
                let k = self.a.neighbours.as_ref()?.first()?.len();
                self.b.neighbours.is_some().then(|| k as f64 / (n - 1) as f64)
            }),
            ..StateMeasures::default()
        }
    }

    /// Gaussian rows in the place of b's: `states` are [`States::gaussian`] of `noise`. The update of b is then a row of this
    /// ([`gaussian_updates`]), whose norm means nothing: `norm_ratio` is none, as `id_a` is.
    pub fn gaussian(&self, states: &States, noise: &[f64]) -> StateMeasures {
        let (x, width) = (&self.a.values, self.a.width);
        let pair = Pair::new(self.a, states, None, self.settings);
        let cosine = |anchor: &[f32]| {
            let moves = || mean(gaussian_updates(anchor, x, width, noise));
            (**x != *anchor).then(moves).flatten()
        };
        StateMeasures {
            cosine: self.wants(Measure::Cosine, || cosine(&vec![0.0; x.len()])),
            update: self.wants(Measure::Update, || cosine(self.anchor?)),
            norm_ratio: None,
            svcca: self.wants(Measure::Svcca, || pair.svcca(None)),
            knn_overlap: self.wants(Measure::KnnOverlap, || pair.knn_overlap()),
            id_a: None,
            id_b: states.id,
            ..pair.rotation_free()
        }
    }

    /// CKA and what rests on the states' principal directions or on one arm alone.
    fn rotation_free(&self) -> StateMeasures {
        StateMeasures {
            cka: self.wants(Measure::Cka, || self.cka()),
            cka_debiased: self.wants(Measure::CkaDebiased, || self.cka_debiased()),
            id_a: self.a.id,
            subspace_overlap: self.wants(Measure::SubspaceOverlap, || self.subspace_overlap()),
            ..StateMeasures::default()
        }
    }

    fn wants(&self, measure: Measure, value: impl FnOnce() -> Option<f64>) -> Option<f64> {
        if self.settings.has(measure) { value() } else { None }
    }

    /// Whether both arms have a state that is not zero.
    fn nonzero(&self) -> bool {
        [self.a, self.b].iter().all(|states| states.values.iter().any(|&x| x != 0.0))
    }

    /// Whether both arms move some state.
    fn both_move(&self) -> bool {
        self.anchor.is_some_and(|anchor| [self.a, self.b].iter().all(|states| *states.values != *anchor))
    }

    /// The norms of both arms' updates by row; none where a row of a has none, or where there is no row.
    fn norms(&self) -> Option<[Vec<f64>; 2]> {
        let zeros = vec![0.0; self.a.values.len()];
        let anchor = self.anchor.unwrap_or(&zeros);
        let of = |states: &States| similarity::norms(anchor, &states.values, states.width);
        let [a, b] = [of(self.a), of(self.b)];
        (!a.is_empty() && a.iter().all(|&norm| norm > 0.0)).then_some([a, b])
    }

    fn cka(&self) -> Option<f64> {
        let (a, b) = (self.a.spread.as_ref()?, self.b.spread.as_ref()?);
        let norms = (a.own * b.own).sqrt();
        (norms > 0.0).then(|| (a.inner(b) / norms).clamp(0.0, 1.0))
    }

    fn cka_debiased(&self) -> Option<f64> {
        let (a, b) = (self.a.spread.as_ref()?, self.b.spread.as_ref()?);
        let n = self.a.rows() as f64;
        if n < 4.0 {
            return None;
        }
        // n (n - 3) times the U-statistic. Rows of a Gram matrix of centred rows add up to 0, so without its diagonal to
        // minus the diagonal.
        let hsic = |inner: f64, x: &[f64], y: &[f64]| {
            let both: f64 = x.iter().zip(y).map(|(x, y)| x * y).sum();
            let traces = x.iter().sum::<f64>() * y.iter().sum::<f64>();
            inner - both + traces / ((n - 1.0) * (n - 2.0)) - 2.0 / (n - 2.0) * both
        };
        let (own_a, own_b) = (hsic(a.own, &a.norms, &a.norms), hsic(b.own, &b.norms, &b.norms));
        let beyond = own_a > ROUNDING * a.own && own_b > ROUNDING * b.own;
        beyond.then(|| (hsic(a.inner(b), &a.norms, &b.norms) / (own_a * own_b).sqrt()).clamp(-1.0, 1.0))
    }

    /// With the rows of b in some order.
    fn svcca(&self, order: Option<&[usize]>) -> Option<f64> {
        let (a, b) = (self.a.principal.as_ref()?, self.b.principal.as_ref()?);
        let n = self.a.rows();
        let ordered: Vec<f64>;
        let right = match order {
            None => &b.left,
            Some(order) => {
                ordered = b.left.chunks_exact(n).flat_map(|u| order.iter().map(|&i| u[i])).collect();
                &ordered
            }
        };
        mean(singular_values(&product(&a.left, right, n), right.len() / n).into_iter().map(|s| s.min(1.0)))
    }

    fn knn_overlap(&self) -> Option<f64> {
        let (a, b) = (self.a.neighbours.as_ref()?, self.b.neighbours.as_ref()?);
        let common =
            |(x, y): (&Vec<u32>, &Vec<u32>)| x.iter().filter(|i| y.contains(i)).count() as f64 / x.len() as f64;
        mean(a.iter().zip(b).map(common))
    }

    fn subspace_overlap(&self) -> Option<f64> {
        let right = |states: &'a States| states.principal.as_ref()?.right.as_deref();
        super::subspace::overlap(right(self.a)?, right(self.b)?, self.a.width)
    }
}

/// The mean of some values, if there are any.
fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.into_iter().collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}
