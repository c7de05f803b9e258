//! LoRA over stacked runs (Hu et al. 2021): rows of run r pass through adapter r, rows of the base model through none.
//!
//! `y += scale * B A dropout(x)`. All runs' A and B lie in one flat buffer `[runs, stride]`.

use std::collections::HashSet;

use super::check::{need, needs, runs};
use super::{Launch, Op, Projected, ProjectedLora, Work, operations};
use crate::backend::{Buffers, DevicePack, Len};
use crate::pack::Pack;

/// Consecutive runs of a pass, which share the shape of a LoRA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunRange {
    /// The first of them.
    pub first: usize,
    /// The run after the last.
    pub end: usize,
}

impl RunRange {
    /// Every run of a pass, however many there are.
    pub const ALL: Self = Self { first: 0, end: usize::MAX };

    /// Whether a run is one of them.
    pub fn contains(self, run: usize) -> bool {
        (self.first..self.end).contains(&run)
    }
}

/// Where one adapted projection lies inside the flat parameters `[runs, stride]`.
///
/// Runs may differ in rank, scale and adapted projections: a site is of those alone that it names, and an operation leaves
/// the rows of all others as it leaves those of the base model. Each such run `r` has A `[rank, input]` from element `r * stride + a` on and B `[output, rank]` from `r * stride + b` on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraSite {
    /// Offset of A within a run.
    pub a: usize,
    /// Offset of B within a run.
    pub b: usize,
    /// Elements of a run.
    pub stride: usize,
    /// Rank R, the same for all runs of the site.
    pub rank: usize,
    /// Elements of an input row.
    pub input: usize,
    /// Elements of an output row.
    pub output: usize,
    /// Multiplier of `B A x`: `alpha / R`, or `alpha / sqrt(R)` for rsLoRA (Kalajdzievski 2023).
    pub scale: f64,
    /// The runs that have it.
    pub runs: RunRange,
}

impl RunRange {
    /// Rows of a pack that are of these runs, and the number of runs that they are of.
    pub(super) fn adapted(self, pack: &Pack) -> (usize, usize) {
        let of_runs = || pack.runs().iter().filter(|(run, _)| self.contains(*run));
        let runs: HashSet<usize> = of_runs().map(|(run, _)| *run).collect();
        (of_runs().map(|(_, rows)| rows.len()).sum(), runs.len())
    }
}

impl LoraSite {
    /// What it has in common with LoRAs that share its launches.
    fn projected(self, pack: &Pack, adds: bool) -> ProjectedLora {
        let (rows, _) = self.runs.adapted(pack);
        let Self { input, rank, .. } = self;
        ProjectedLora { rows, all: rows == pack.len(), input, rank, in_vectors: self.in_vectors(), adds }
    }

    /// Whether the matrices of every run begin at multiples of 4 elements, and the rank is one.
    pub(in crate::backend) fn in_vectors(self) -> bool {
        [self.a, self.b, self.stride, self.rank].iter().all(|n| n.is_multiple_of(4))
    }

    /// Asserts that the site lies within a run, and the runs of a pack within `params` elements.
    #[track_caller]
    fn check(self, op: &'static str, pack: &Pack, params: usize) {
        need(op, "a run of the parameters (A)", self.stride, self.a + self.rank * self.input);
        need(op, "a run of the parameters (B)", self.stride, self.b + self.output * self.rank);
        need(op, "params", params, runs(pack) * self.stride);
    }
}

/// Dropout of the input of one adapted projection (Srivastava et al. 2014): an element survives, multiplied by `1 / (1 -
/// p)`, with probability `1 - p`. The decision is a hash of `(seed of the row's run, site, row's key, column)`, so that the
/// backward repeats it, and so that it does not depend on what else is in the pack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout<'a> {
    /// Probability of dropping, in `[0, 1)`.
    pub p: f64,
    /// One seed per run, another for every step.
    pub seeds: &'a [u64],
    /// Number of the projection, so that two projections drop independently.
    pub site: u64,
    /// One key per row `[N]`: the row's number within its run.
    pub keys: &'a [u32],
}

impl Dropout<'_> {
    #[track_caller]
    fn check(&self, op: &'static str, pack: &Pack) {
        assert!((0.0..1.0).contains(&self.p), "{op}: dropout is {}, must be in [0, 1)", self.p);
        need(op, "dropout seeds", self.seeds.len(), runs(pack));
        need(op, "dropout keys", self.keys.len(), pack.len());
    }
}

/// `y [N, output] += scale * B A dropout(x)`, `xa [N, R] = A dropout(x)` (0 for rows of the base model and of other runs).
pub struct LoraFwd<'a, B: Buffers + ?Sized> {
    /// `[N, output]`, added to; none where [`LoraDelta`] makes of `xa` what is added.
    pub y: Option<&'a mut B::Compute>,
    /// `[N, R]`, set.
    pub xa: &'a mut B::Acc,
    /// `[N, input]`.
    pub x: &'a B::Compute,
    /// `[runs, stride]`.
    pub params: &'a B::Acc,
    /// N rows with their runs.
    pub pack: &'a B::Pack,
    /// The projection's place in the parameters.
    pub site: LoraSite,
    /// Dropout of the adapter's input, if any.
    pub dropout: Option<Dropout<'a>>,
}

impl<B: Buffers + ?Sized> Op for LoraFwd<'_, B> {
    const NAME: &'static str = "lora_fwd";

    fn check(&self) {
        let (op, pack, site) = (Self::NAME, self.pack.host(), self.site);
        site.check(op, pack, self.params.len());
        self.dropout.iter().for_each(|dropout| dropout.check(op, pack));
        let y = self.y.as_ref().map_or(usize::MAX, |y| y.len());
        need(op, "y", y, pack.len() * site.output);
        need(op, "xa", self.xa.len(), pack.len() * site.rank);
        need(op, "x", self.x.len(), pack.len() * site.input);
    }

    fn work(&self) -> Work {
        let (pack, LoraSite { rank, input, output, .. }) = (self.pack.host(), self.site);
        let output = if self.y.is_some() { output } else { 0 };
        let (rows, runs) = self.site.runs.adapted(pack);
        let acc = (pack.len() + rows) * rank + runs * rank * (input + output);
        Work::moved(acc, rows * (input + 2 * output), 0).multiplied((rows * rank * (input + output)) as u64)
    }

    fn projected(&self) -> Option<Projected> {
        Some(Projected::Lora(self.site.projected(self.pack.host(), self.y.is_some())))
    }

    /// `xa`, then what is added to `y`.
    fn launches(&self) -> Vec<Launch> {
        let (pack, LoraSite { rank, input, output, .. }) = (self.pack.host(), self.site);
        let (rows, runs) = self.site.runs.adapted(pack);
        let narrow = Work::moved(pack.len() * rank + runs * rank * input, rows * input, 0);
        let wide = Work::moved(rows * rank + runs * rank * output, 2 * rows * output, 0);
        let narrow = Launch::kernel(narrow.multiplied((rows * rank * input) as u64));
        let wide = self.y.as_ref().map(|_| Launch::kernel(wide.multiplied((rows * rank * output) as u64)));
        std::iter::once(narrow).chain(wide).collect()
    }
}

/// `d_params [runs, stride]` `=` or `+=` the gradients of A and B of the runs in the pack, `d_x [N, input] +=` that of the input, from
/// `d_y [N, output]`.
///
/// Each run's sums are made in a fixed order.
pub struct LoraBwd<'a, B: Buffers + ?Sized> {
    /// `[runs, stride]`, of which A and B of the site are set, or added to if `accumulate`.
    pub d_params: &'a mut B::Acc,
    /// Whether the parameters' gradients are added to.
    pub accumulate: bool,
    /// `[N, input]`, added to; none where nothing below needs it.
    pub d_x: Option<&'a mut B::Acc>,
    /// `[N, output]`.
    pub d_y: &'a B::Compute,
    /// `[N, R]`, of the forward.
    pub xa: &'a B::Acc,
    /// `[N, input]`, of the forward.
    pub x: &'a B::Compute,
    /// `[runs, stride]`.
    pub params: &'a B::Acc,
    /// N rows with their runs.
    pub pack: &'a B::Pack,
    /// The projection's place in the parameters.
    pub site: LoraSite,
    /// The same as in the forward.
    pub dropout: Option<Dropout<'a>>,
}

impl<B: Buffers + ?Sized> Op for LoraBwd<'_, B> {
    const NAME: &'static str = "lora_bwd";

    fn check(&self) {
        let (op, pack, site) = (Self::NAME, self.pack.host(), self.site);
        site.check(op, pack, self.params.len());
        self.dropout.iter().for_each(|dropout| dropout.check(op, pack));
        need(op, "d_params", self.d_params.len(), runs(pack) * site.stride);
        let d_x = self.d_x.as_ref().map_or(usize::MAX, |d_x| d_x.len());
        needs(op, pack.len() * site.input, &[("d_x", d_x), ("x", self.x.len())]);
        need(op, "d_y", self.d_y.len(), pack.len() * site.output);
        need(op, "xa", self.xa.len(), pack.len() * site.rank);
    }

    fn work(&self) -> Work {
        let LoraSite { rank, input, output, .. } = self.site;
        let (rows, runs) = self.site.runs.adapted(self.pack.host());
        let d_x = if self.d_x.is_some() { input } else { 0 };
        let params = if self.accumulate { 3 } else { 2 };
        let acc = params * runs * rank * (input + output) + rows * (rank + 2 * d_x);
        let products = rows * rank * (2 * output + input + d_x);
        Work::moved(acc, rows * (input + output), 0).multiplied(products as u64)
    }

    fn projected(&self) -> Option<Projected> {
        Some(Projected::LoraGradient(self.site.projected(self.pack.host(), self.d_x.is_some())))
    }

    /// The gradient of `xa`, then those of A, B and the input.
    fn launches(&self) -> Vec<Launch> {
        let LoraSite { rank, input, output, .. } = self.site;
        let (rows, runs) = self.site.runs.adapted(self.pack.host());
        let (width, d_x) = (input + output, if self.d_x.is_some() { input } else { 0 });
        let products = |width: usize| (rows * rank * width) as u64;
        let of_xa = Work::moved(rows * rank + runs * rank * output, rows * output, 0).multiplied(products(output));
        let sums = if self.accumulate { 2 } else { 1 };
        let params = sums * runs * rank * width + if d_x > 0 { runs * rank * input } else { 0 };
        let of_inputs = Work::moved(2 * rows * rank + params + 2 * rows * d_x, rows * width, 0);
        [of_xa, of_inputs.multiplied(products(width + d_x))].map(Launch::kernel).to_vec()
    }
}

/// `out [N, output] = scale * B xa`: what the adapter adds; 0 for rows of the base model and of other runs.
pub struct LoraDelta<'a, B: Buffers + ?Sized> {
    /// `[N, output]`, set.
    pub out: &'a mut B::Acc,
    /// `[N, R]`, of the forward.
    pub xa: &'a B::Acc,
    /// `[runs, stride]`.
    pub params: &'a B::Acc,
    /// N rows with their runs.
    pub pack: &'a B::Pack,
    /// The projection's place in the parameters.
    pub site: LoraSite,
}

impl<B: Buffers + ?Sized> Op for LoraDelta<'_, B> {
    const NAME: &'static str = "lora_delta";

    fn check(&self) {
        let (op, pack, site) = (Self::NAME, self.pack.host(), self.site);
        site.check(op, pack, self.params.len());
        need(op, "out", self.out.len(), pack.len() * site.output);
        need(op, "xa", self.xa.len(), pack.len() * site.rank);
    }

    fn work(&self) -> Work {
        let (pack, LoraSite { rank, output, .. }) = (self.pack.host(), self.site);
        let (rows, runs) = self.site.runs.adapted(pack);
        let acc = pack.len() * output + rows * rank + runs * rank * output;
        Work::moved(acc, 0, 0).multiplied((rows * rank * output) as u64)
    }

    fn launches(&self) -> Vec<Launch> {
        let zeros = Work::moved(self.pack.host().len() * self.site.output, 0, 0);
        vec![Launch::fill(zeros), Launch::kernel(self.work())]
    }
}

/// Backward of [`LoraDelta`]: `d_params [runs, stride] +=` the gradient of B, `d_xa [N, R] = scale * B^T d_y` (0 for rows of the
/// base model and of other runs), from `d_y [N, output]`.
///
/// Each run's sums are made in a fixed order.
pub struct LoraDeltaBwd<'a, B: Buffers + ?Sized> {
    /// `[runs, stride]`, added to; the elements of A are left alone.
    pub d_params: &'a mut B::Acc,
    /// `[N, R]`, set.
    pub d_xa: &'a mut B::Acc,
    /// `[N, output]`.
    pub d_y: &'a B::Compute,
    /// `[N, R]`, of the forward.
    pub xa: &'a B::Acc,
    /// `[runs, stride]`.
    pub params: &'a B::Acc,
    /// N rows with their runs.
    pub pack: &'a B::Pack,
    /// The projection's place in the parameters.
    pub site: LoraSite,
}

impl<B: Buffers + ?Sized> Op for LoraDeltaBwd<'_, B> {
    const NAME: &'static str = "lora_delta_bwd";

    fn check(&self) {
        let (op, pack, site) = (Self::NAME, self.pack.host(), self.site);
        site.check(op, pack, self.params.len());
        need(op, "d_params", self.d_params.len(), runs(pack) * site.stride);
        needs(op, pack.len() * site.rank, &[("d_xa", self.d_xa.len()), ("xa", self.xa.len())]);
        need(op, "d_y", self.d_y.len(), pack.len() * site.output);
    }

    fn work(&self) -> Work {
        let (pack, LoraSite { rank, output, .. }) = (self.pack.host(), self.site);
        let (rows, runs) = self.site.runs.adapted(pack);
        let acc = 3 * runs * rank * output + (pack.len() + rows) * rank;
        Work::moved(acc, rows * output, 0).multiplied((2 * rows * rank * output) as u64)
    }

    /// Zeros, the gradient of `xa`, and that of B.
    fn launches(&self) -> Vec<Launch> {
        let (pack, LoraSite { rank, output, .. }) = (self.pack.host(), self.site);
        let (rows, runs) = self.site.runs.adapted(pack);
        let zeros = Launch::fill(Work::moved(pack.len() * rank, 0, 0));
        let of_xa = Work::moved(rows * rank + runs * rank * output, rows * output, 0);
        let of_b = Work::moved(rows * rank + 2 * runs * rank * output, rows * output, 0);
        let products = |work: Work| Launch::kernel(work.multiplied((rows * rank * output) as u64));
        vec![zeros, products(of_xa), products(of_b)]
    }
}

operations! {
    /// LoRA, forward and backward.
    LoraOps {
        lora_fwd(LoraFwd);
        lora_bwd(LoraBwd);
        lora_delta(LoraDelta);
        lora_delta_bwd(LoraDeltaBwd);
    }
}
