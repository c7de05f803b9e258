//! What goes into a pass: a pack, the adapters of its runs, dropout, and the rows whose output is wanted.

use std::ops::Range;

use super::adaptation::Adaptation;
use super::distillation::{PassTeacher, StateLosses};
use super::edits::PassEdits;
use super::output_rows::OutputRows;
use crate::arch::Projection;
use crate::backend::ops::Dropout;
use crate::backend::{Backend, DeviceIndex, TensorMut};
use crate::hooks::Site;
use crate::pack::{Pack, Segment, Token};

/// Dropout of a pass; see [`Dropout`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutPlan<'a> {
    /// Probability of dropping, in `[0, 1)`.
    pub p: f64,
    /// One seed per run, another for every step.
    pub seeds: &'a [u64],
    /// One key per row `[N]`: the row's number within its run.
    pub keys: &'a [u32],
}

/// What a pass adds to embeddings: noise.
pub struct EmbedNoise<'a, B: Backend> {
    /// `[M, E]`.
    pub values: &'a B::Acc,
    /// The pack rows `[M]` to which they are added.
    pub rows: &'a B::Index,
}

/// Rows of the residual stream `[N, C]`, one for each row of a pass.
pub enum StartRows<'a, B: Backend> {
    /// On the host, row-major.
    Host(&'a [f32]),
    /// Rows `rows [N]` of `x [_, C]` on the device.
    Device {
        /// `[_, C]`.
        x: &'a B::Acc,
        /// `[N]`; a row may stand several times.
        rows: &'a B::Index,
    },
}

/// Where a pass begins, if not with its tokens: the residual stream that enters a layer is given.
///
/// Nothing below the layer is computed or edited, nor its taps called. Cached segments are attended to from this layer on; no segment
/// of such a pass can be cached, for it has no keys below.
pub struct Start<'a, B: Backend> {
    /// The first layer that is computed, up to the depth L, which leaves the final norm alone.
    pub layer: usize,
    /// The residual stream that enters it (`resid_pre` of that layer; for L, `resid_post` of the last).
    pub resid: StartRows<'a, B>,
}

/// What goes into a pass.
pub struct Input<'a, B: Backend> {
    /// The N rows of the pass, as the host knows them.
    pub pack: &'a Pack,
    /// The same on the device.
    pub device: &'a B::Pack,
    /// The adapters that the pack's runs stand for.
    pub adaptation: Option<&'a Adaptation<B>>,
    /// Dropout before the adapters.
    pub dropout: Option<DropoutPlan<'a>>,
    /// Noise on the embeddings of tokens.
    pub noise: Option<EmbedNoise<'a, B>>,
    /// The M rows whose output is wanted; none means all of them.
    pub output_rows: Option<&'a OutputRows<B>>,
    /// Where the pass begins; none means with the tokens' embeddings.
    pub start: Option<Start<'a, B>>,
    /// Edits at rows of the pack.
    pub edits: Option<&'a PassEdits<'a, B>>,
    /// In a backward, the teacher of the label rows, with the losses of their states if they have any.
    pub teacher: Option<(&'a PassTeacher<'a, B>, Option<&'a StateLosses<B>>)>,
}

impl<'a, B: Backend> Input<'a, B> {
    /// The base model on a pack, with the output of every row.
    pub fn new(pack: &'a Pack, device: &'a B::Pack) -> Self {
        Self {
            pack,
            device,
            adaptation: None,
            dropout: None,
            noise: None,
            output_rows: None,
            start: None,
            edits: None,
            teacher: None,
        }
    }

    /// With adapters.
    pub fn adapted(self, adaptation: &'a Adaptation<B>) -> Self {
        Self { adaptation: Some(adaptation), ..self }
    }

    /// With the output of these rows only.
    pub fn with_output_rows(self, output_rows: Option<&'a OutputRows<B>>) -> Self {
        Self { output_rows, ..self }
    }

    /// Beginning at a layer.
    pub fn starting(self, start: Start<'a, B>) -> Self {
        Self { start: Some(start), ..self }
    }

    /// With edits, made for the same pack and output rows.
    pub fn edited(self, edits: Option<&'a PassEdits<'a, B>>) -> Self {
        Self { edits, ..self }
    }

    /// From the gradient of what flowed on from a site, a tensor `[rows, width]` of all rows or, as `outputs` says, of the output
    /// rows, to that of what came to it, in place: adds what a loss of its states has, and goes through its edits.
    pub(super) fn site_backward(
        &self,
        backend: &mut B,
        site: (Site, usize),
        outputs: bool,
        mut d_x: TensorMut<'_, B>,
        width: usize,
    ) {
        if let Some((pass, Some(losses))) = self.teacher {
            losses.backward(backend, pass, site, outputs, d_x.reborrow(), width);
        }
        if let Some(edits) = self.edits {
            edits.backward(backend, site, outputs, d_x, width);
        }
    }

    /// The rows that come out of a pass, M.
    pub(super) fn output_len(&self) -> usize {
        self.output_rows.map_or(self.pack.len(), |output| output.rows.len())
    }

    /// The pack rows that come out of a pass, ascending; none means all of them.
    pub(super) fn outputs(&self) -> Option<&'a [usize]> {
        self.output_rows.map(|output| &*output.rows)
    }

    /// The input of what runs over the output rows alone; `keys` is memory for their keys of the dropout.
    pub(super) fn narrowed<'b>(&'b self, output: &'b OutputRows<B>, keys: &'b mut Vec<u32>) -> Input<'b, B> {
        let dropout = self.dropout.map(|plan| {
            keys.extend(output.rows.iter().map(|&row| plan.keys[row]));
            DropoutPlan { keys, ..plan }
        });
        let (pack, device) = (&output.pack, &output.device);
        Input {
            adaptation: self.adaptation,
            dropout,
            edits: self.edits,
            teacher: self.teacher,
            ..Input::new(pack, device)
        }
    }

    /// Dropout of a projection's input; the parts of a fused module read one input, so they drop the same of it.
    pub(super) fn dropout(&self, layer: usize, target: Projection) -> Option<Dropout<'a>> {
        let first = self.adaptation.map_or(target, |a| a.layout.module_of(target).parts()[0]);
        self.dropout.map(|plan| Dropout {
            p: plan.p,
            seeds: plan.seeds,
            site: (layer * Projection::ALL.len() + first as usize) as u64,
            keys: plan.keys,
        })
    }

    /// The rows whose keys (`part` 0) or values (1) in a layer are a prefix's: the first row of each stretch in the pack,
    /// and where the stretch lies in the adapters as attention reads them, counted in rows of keys.
    pub(super) fn prefix(&self, layer: usize, part: usize) -> Vec<(usize, Range<usize>)> {
        let layout = self.adaptation.map(|adaptation| &adaptation.layout);
        let Some((layout, site)) = layout.and_then(|layout| Some((layout, layout.prefix_part(layer, part)?))) else {
            return Vec::new();
        };
        let stretch = |segment: &Segment| {
            let tokens = &self.pack.tokens()[segment.rows.clone()];
            let (Token::Virtual(first), Some(run)) = (tokens[0], segment.run) else { return None };
            let count = tokens.iter().take_while(|token| matches!(token, Token::Virtual(_))).count();
            let from = (run * site.stride + site.offset) / layout.kv_width + first as usize;
            Some((segment.rows.start, from..from + count))
        };
        self.pack.segments().iter().filter_map(stretch).collect()
    }

    /// Whether a soft prompt (or the zeros beside a prefix) goes in.
    pub(super) fn has_prompt(&self) -> bool {
        self.adaptation.is_some_and(|adaptation| adaptation.layout.prompt.is_some())
    }

    /// Asserts that the pack fits buffers for `capacity` rows, its runs the adapters, and its start a model of `depth` layers
    /// of `width`.
    pub(super) fn check(&self, capacity: usize, depth: usize, width: usize) {
        let pack = self.pack;
        assert!(pack.len() <= capacity, "forward: a pack of {} rows in buffers for {capacity}", pack.len());
        let runs = self.adaptation.map_or(0, |a| a.runs);
        let highest = pack.runs().iter().map(|(run, _)| run + 1).max().unwrap_or(0);
        assert!(highest <= runs, "forward: a pack of {highest} runs through {runs} adapters");
        if let Some(Start { layer, resid }) = &self.start {
            assert!(*layer <= depth, "forward: a start at layer {layer} of {depth}");
            let rows = match resid {
                StartRows::Host(x) => {
                    assert!(x.len().is_multiple_of(width), "forward: a start of {} elements, width {width}", x.len());
                    x.len() / width
                }
                StartRows::Device { rows, .. } => rows.len(),
            };
            assert!(rows == pack.len(), "forward: a start of {rows} rows for a pack of {}", pack.len());
        }
    }
}
