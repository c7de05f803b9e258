//! Learned scales of a projection's output over stacked runs: the magnitudes of DoRA (Liu et al. 2024) over the norms of its
//! adapted rows, and the vectors of IA3 (Liu et al. 2022).
//!
//! Rows of run r are multiplied by `f = params / norms`, elementwise, without the bias where it is not scaled; those of the
//! base model are left as they are. The norms are constants of a pass, as in PEFT: no gradient goes through them.

use super::check::{need, runs, same};
use super::linear::kernel_launches;
use super::{Launch, LoraSite, Op, RunRange, Work, operations};
use crate::backend::{Buffers, DevicePack, Len, TensorMut};
use crate::pack::Pack;

/// Where the norms of a projection's rows lie inside those of all projections `[runs, stride]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormSite {
    /// Offset within a run.
    pub at: usize,
    /// Elements of a run.
    pub stride: usize,
}

/// Where the scale of one projection lies inside the flat parameters `[runs, stride]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleSite {
    /// Offset within a run.
    pub at: usize,
    /// Elements of a run.
    pub stride: usize,
    /// Number of factors: elements of a row that they multiply.
    pub width: usize,
    /// What the factors are divided by, if anything.
    pub norms: Option<NormSite>,
    /// The runs that have it.
    pub runs: RunRange,
}

impl ScaleSite {
    /// Elements of a run's parameters and norms.
    fn factors(self) -> usize {
        if self.norms.is_some() { 2 * self.width } else { self.width }
    }

    /// Asserts that the site lies within a run, and the runs of a pack within so many parameters and norms.
    #[track_caller]
    fn check(self, op: &'static str, pack: &Pack, params: usize, norms: Option<usize>) {
        need(op, "a run of the parameters", self.stride, self.at + self.width);
        need(op, "params", params, runs(pack) * self.stride);
        assert!(norms.is_some() == self.norms.is_some(), "{op}: norms are given if the site has them");
        if let (Some(site), Some(norms)) = (self.norms, norms) {
            need(op, "a run of the norms", site.stride, site.at + self.width);
            need(op, "norms", norms, runs(pack) * site.stride);
        }
    }
}

/// `norms [runs, output] = |W + scale B A|`, the Euclidean norm of each row of an adapted weight, of the runs that have the
/// site; those of others stay.
pub struct WeightNorm<'a, B: Buffers + ?Sized> {
    /// `[all runs, norm stride]`, set at the site.
    pub norms: &'a mut B::Acc,
    /// W `[output, input]`.
    pub weight: &'a B::Weight,
    /// `[all runs, stride]`.
    pub params: &'a B::Acc,
    /// Where A and B lie.
    pub site: LoraSite,
    /// Where the norms go.
    pub to: NormSite,
    /// Number of all runs.
    pub runs: usize,
}

impl<B: Buffers + ?Sized> Op for WeightNorm<'_, B> {
    const NAME: &'static str = "weight_norm";

    fn check(&self) {
        let (op, site, to) = (Self::NAME, self.site, self.to);
        need(op, "a run of the parameters (A)", site.stride, site.a + site.rank * site.input);
        need(op, "a run of the parameters (B)", site.stride, site.b + site.output * site.rank);
        need(op, "a run of the norms", to.stride, to.at + site.output);
        need(op, "params", self.params.len(), self.runs * site.stride);
        need(op, "norms", self.norms.len(), self.runs * to.stride);
        same(op, "the weight's length", self.weight.len(), site.output * site.input);
    }

    fn work(&self) -> Work {
        let LoraSite { rank, input, output, runs, .. } = self.site;
        let runs = runs.end.min(self.runs).saturating_sub(runs.first);
        let acc = runs * (rank * (input + output) + output);
        Work::moved(acc, 0, output * input).multiplied((runs * rank * input * output) as u64)
    }

    fn launches(&self) -> Vec<Launch> {
        kernel_launches(self.weight, self.work())
    }
}

/// `y [N, width] = f * (y - bias) + bias`, `unscaled [N, width] = y - bias` as it was, at the rows of the site's runs; the
/// others stay.
pub struct ScaleFwd<'a, B: Buffers + ?Sized> {
    /// `[N, width]`, in place.
    pub y: &'a mut B::Compute,
    /// `[N, width]`, set; none where nobody reads it.
    pub unscaled: Option<&'a mut B::Compute>,
    /// `[runs, stride]`.
    pub params: &'a B::Acc,
    /// `[runs, norm stride]`.
    pub norms: Option<&'a B::Acc>,
    /// `[width]`, what is not scaled.
    pub bias: Option<&'a B::Weight>,
    /// N rows with their runs.
    pub pack: &'a B::Pack,
    /// The factors' place in the parameters.
    pub site: ScaleSite,
}

impl<B: Buffers + ?Sized> Op for ScaleFwd<'_, B> {
    const NAME: &'static str = "scale_fwd";

    fn check(&self) {
        let (op, pack, site) = (Self::NAME, self.pack.host(), self.site);
        site.check(op, pack, self.params.len(), self.norms.map(Len::len));
        need(op, "y", self.y.len(), pack.len() * site.width);
        let unscaled = self.unscaled.as_ref().map_or(usize::MAX, |unscaled| unscaled.len());
        need(op, "unscaled", unscaled, pack.len() * site.width);
        same(op, "the bias's length", self.bias.map_or(site.width, Len::len), site.width);
    }

    fn work(&self) -> Work {
        let (rows, runs) = self.site.runs.adapted(self.pack.host());
        let width = self.site.width;
        let bias = self.bias.map_or(0, |_| width);
        Work::moved(runs * self.site.factors(), 3 * rows * width, bias)
    }
}

/// `d_params [runs, stride] +=` the sum over rows of `d_y * unscaled / norms`, and `d_y [N, width] = f * d_y` in place, at
/// the rows of the site's runs.
///
/// Each run's sums are made in a fixed order.
pub struct ScaleBwd<'a, B: Buffers + ?Sized> {
    /// `[runs, stride]`, added to.
    pub d_params: &'a mut B::Acc,
    /// `[N, width]`, in place.
    pub d_y: TensorMut<'a, B>,
    /// `[N, width]`, of the forward.
    pub unscaled: &'a B::Compute,
    /// `[runs, stride]`.
    pub params: &'a B::Acc,
    /// `[runs, norm stride]`.
    pub norms: Option<&'a B::Acc>,
    /// N rows with their runs.
    pub pack: &'a B::Pack,
    /// The factors' place in the parameters.
    pub site: ScaleSite,
}

impl<B: Buffers + ?Sized> Op for ScaleBwd<'_, B> {
    const NAME: &'static str = "scale_bwd";

    fn check(&self) {
        let (op, pack, site) = (Self::NAME, self.pack.host(), self.site);
        site.check(op, pack, self.params.len(), self.norms.map(Len::len));
        need(op, "d_y", self.d_y.len(), pack.len() * site.width);
        need(op, "unscaled", self.unscaled.len(), pack.len() * site.width);
        need(op, "d_params", self.d_params.len(), runs(pack) * site.stride);
    }

    fn work(&self) -> Work {
        let (rows, runs) = self.site.runs.adapted(self.pack.host());
        let width = self.site.width;
        let factors = runs * (self.site.factors() + 2 * width);
        match self.d_y {
            TensorMut::Acc(_) => Work::moved(factors + 2 * rows * width, rows * width, 0),
            TensorMut::Compute(_) => Work::moved(factors, 3 * rows * width, 0),
        }
    }
}

/// `out [N, width] += (f - 1) * unscaled` at the rows of the site's runs: what the scale adds, for captures.
pub struct ScaleDelta<'a, B: Buffers + ?Sized> {
    /// `[N, width]`, added to.
    pub out: &'a mut B::Acc,
    /// `[N, width]`, of the forward.
    pub unscaled: &'a B::Compute,
    /// `[runs, stride]`.
    pub params: &'a B::Acc,
    /// `[runs, norm stride]`.
    pub norms: Option<&'a B::Acc>,
    /// N rows with their runs.
    pub pack: &'a B::Pack,
    /// The factors' place in the parameters.
    pub site: ScaleSite,
}

impl<B: Buffers + ?Sized> Op for ScaleDelta<'_, B> {
    const NAME: &'static str = "scale_delta";

    fn check(&self) {
        let (op, pack, site) = (Self::NAME, self.pack.host(), self.site);
        site.check(op, pack, self.params.len(), self.norms.map(Len::len));
        need(op, "out", self.out.len(), pack.len() * site.width);
        need(op, "unscaled", self.unscaled.len(), pack.len() * site.width);
    }

    fn work(&self) -> Work {
        let (rows, runs) = self.site.runs.adapted(self.pack.host());
        let width = self.site.width;
        Work::moved(runs * self.site.factors() + 2 * rows * width, rows * width, 0)
    }
}

operations! {
    /// Learned scales, forward and backward.
    ScaleOps {
        weight_norm(WeightNorm);
        scale_fwd(ScaleFwd);
        scale_bwd(ScaleBwd);
        scale_delta(ScaleDelta);
    }
}
