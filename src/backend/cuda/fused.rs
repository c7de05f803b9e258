//! Launches that the next operation may do in one of its own.

use super::Cuda;
use super::context::{Context, Deferred};
use super::geometry::blocks2;
use super::launch::{Arg, Kernel, LaunchDims, Param, acc_ptr, compute_ptr, int, long};
use super::lora_launch::Rotations;
use super::memory::DevicePtr;
use crate::arch::RopePairs;
use crate::backend::ops::{AttentionBwd, Op, ResidualFwd, RmsNormBwd, RopeBwd, RopeFwd};

/// `out [len] = a + b`, which a norm may read.
pub struct ResidualSum {
    /// `[len]` of the accumulation dtype.
    pub out: DevicePtr,
    /// `[len]` of the accumulation dtype.
    pub a: DevicePtr,
    /// `[len]` of the compute dtype.
    pub b: DevicePtr,
    /// Number of elements.
    pub len: usize,
}

impl ResidualSum {
    /// The sum and the summands.
    pub fn args(&self) -> [Arg; 3] {
        [acc_ptr(self.out), acc_ptr(self.a), compute_ptr(self.b)]
    }
}

impl Deferred for ResidualSum {
    fn launch(self: Box<Self>, cx: &mut Context) {
        let name = ResidualFwd::<Cuda>::NAME;
        let args = [&self.args()[..], &[long(self.len)]].concat();
        cx.launch(name, Kernel::new("rows", name), LaunchDims::elements(self.len), &args);
    }
}

/// The gradient through an RMS norm, added to `d_x [rows, width]`, which may be rounded then.
pub struct RmsNormGradient {
    /// Which of the kernels.
    pub kernel: &'static str,
    /// `[rows, width]` of the accumulation dtype, added to.
    pub d_x: DevicePtr,
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// The other arguments.
    pub rest: Vec<Arg>,
}

impl RmsNormGradient {
    /// The launch, which also sets `rounded [rows, width]`, if that is wanted, to what `d_x` is then.
    pub fn launch(&self, cx: &mut Context, rounded: Option<DevicePtr>) {
        let name = RmsNormBwd::<Cuda>::NAME;
        let rounded = rounded.map_or(Arg::null(Param::Compute), compute_ptr);
        let args = [&[acc_ptr(self.d_x), rounded], &self.rest[..]].concat();
        cx.launch(name, Kernel::new("rms_norm", self.kernel), LaunchDims::norm(self.rows, self.width), &args);
    }
}

impl Deferred for RmsNormGradient {
    fn launch(self: Box<Self>, cx: &mut Context) {
        Self::launch(&self, cx, None);
    }
}

/// A tensor `[rows, heads, D]` that is rotated in place, and its heads.
pub type Rotated = (Arg, usize);

/// A rotation, which may be that of another tensor too.
pub struct Rotation {
    /// The operation.
    pub name: &'static str,
    /// What is rotated.
    pub rotated: Rotated,
    /// Number of rows.
    pub rows: usize,
    /// Positions and the table of cosines and sines.
    pub angles: [Arg; 2],
    /// Elements of a head, and of its rotated part.
    pub widths: [usize; 2],
    /// Which elements are rotated together.
    pub pairs: RopePairs,
}

impl Rotation {
    /// Whether the other is that of another tensor in the same way.
    pub fn is_like(&self, other: &Self) -> bool {
        let key = |r: &Self| (r.name, r.rows, r.angles, r.widths, r.pairs);
        key(self) == key(other) && self.rotated.0 != other.rotated.0
    }

    /// Whether it is a forward's over whole heads, by halves.
    pub fn is_whole(&self) -> bool {
        self.pairs == RopePairs::Halves && self.name == RopeFwd::<Cuda>::NAME && self.widths[0] == self.widths[1]
    }

    /// Whether it is a backward's that attention's kernels can do.
    fn is_attentions(&self) -> bool {
        self.name == RopeBwd::<Cuda>::NAME && AttentionBwd::<Cuda>::rotates(self.widths, self.pairs)
    }

    /// The rotations of a launch with this one behind them.
    pub fn next(&self, before: Rotations) -> Rotations {
        Rotations { count: before.count + 1, angles: self.angles, half: self.widths[0] / 2 }
    }

    /// What is rotated, `[len]`.
    pub fn tensor(&self) -> (Arg, usize) {
        let (tensor, heads) = self.rotated;
        (tensor, self.rows * heads * self.widths[0])
    }

    /// One launch for this tensor and another.
    pub fn launch(self, cx: &mut Context, other: Option<Rotated>) {
        let Self { name, rotated, rows, angles, widths, pairs } = self;
        let tensors = 1 + usize::from(other.is_some());
        let other = other.unwrap_or((Arg::null(Param::Compute), 0));
        let sizes = [rows, rotated.1, other.1, widths[0], widths[1]].map(int);
        let args = [&[rotated.0, other.0], &angles[..], &sizes].concat();
        let kernel = match pairs {
            RopePairs::Halves => name,
            RopePairs::Neighbours if name == RopeFwd::<Cuda>::NAME => "rope_neighbours_fwd",
            RopePairs::Neighbours => "rope_neighbours_bwd",
        };
        cx.launch(name, Kernel::new("rope", kernel), LaunchDims::new(blocks2(rows, tensors)), &args);
    }
}

impl Deferred for Rotation {
    fn launch(self: Box<Self>, cx: &mut Context) {
        Self::launch(*self, cx, None);
    }
}

/// A launch that is not made yet: its kernel, its blocks, its arguments.
pub struct Call {
    /// The kernel.
    pub kernel: Kernel,
    /// Its blocks.
    pub dims: LaunchDims,
    /// Its arguments.
    pub args: Vec<Arg>,
}

/// The gradients of queries, or of keys and values, that attention's backward makes.
pub struct HeadGradients {
    /// What may be rotated back before it is stored.
    pub rotated: Rotated,
    /// Cosines and sines of that, if it is wanted.
    pub cos_sin: Option<Arg>,
    /// The launch without its last argument, which is those.
    pub call: Call,
}

/// Attention's backward.
pub struct AttentionGradients {
    /// What comes first, if that is not done by the operation before.
    pub delta: Option<Call>,
    /// Of queries, then of keys and values.
    pub of: [HeadGradients; 2],
    /// Number of rows, and their positions.
    pub rows: (usize, Arg),
}

impl AttentionGradients {
    /// Adds a rotation of the queries' or the keys' gradient, if the same launch can do it. Returns whether it can.
    pub fn rotate(cx: &mut Context, rotation: &Rotation) -> bool {
        let [positions, cos_sin] = rotation.angles;
        let open = |of: &HeadGradients| of.rotated == rotation.rotated && of.cos_sin.is_none();
        let fits = |work: &Self| {
            rotation.is_attentions() && work.rows == (rotation.rows, positions) && work.of.iter().any(open)
        };
        let rotated = cx.join_deferred(fits).and_then(|work| work.of.iter_mut().find(|of| open(of)));
        rotated.map(|of| of.cos_sin = Some(cos_sin)).is_some()
    }

    /// All that is read and written.
    pub fn args(&self) -> Vec<Arg> {
        let calls = self.delta.iter().chain(self.of.iter().map(|of| &of.call));
        calls.flat_map(|call| &call.args).copied().collect()
    }
}

impl Deferred for AttentionGradients {
    fn launch(self: Box<Self>, cx: &mut Context) {
        let with_angles = |HeadGradients { cos_sin, mut call, .. }: HeadGradients| {
            call.args.push(cos_sin.unwrap_or(Arg::null(Param::Acc)));
            call
        };
        for Call { kernel, dims, args } in self.delta.into_iter().chain(self.of.map(with_angles)) {
            cx.launch(AttentionBwd::<Cuda>::NAME, kernel, dims, &args);
        }
    }
}
