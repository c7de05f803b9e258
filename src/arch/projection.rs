//! The projections of a block, alone and fused.

/// A projection of a block that an adapter can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Projection {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Output of the attention.
    O,
    /// Gate of the MLP.
    Gate,
    /// Up-projection of the MLP.
    Up,
    /// Down-projection of the MLP.
    Down,
    /// Queries, keys and values as one module of the checkpoint: one A for the three, and their Bs one below another.
    Qkv,
    /// Gate and up-projection as one module of the checkpoint, in the same way.
    GateUp,
}

impl Projection {
    /// The single projections, in the order of a block.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The projections that a module consists of.
    pub const fn parts(self) -> &'static [Self] {
        match self {
            Self::Q => &[Self::Q],
            Self::K => &[Self::K],
            Self::V => &[Self::V],
            Self::O => &[Self::O],
            Self::Gate => &[Self::Gate],
            Self::Up => &[Self::Up],
            Self::Down => &[Self::Down],
            Self::Qkv => &[Self::Q, Self::K, Self::V],
            Self::GateUp => &[Self::Gate, Self::Up],
        }
    }

    /// The name of the projection in the names of hooks, the same for every family: that of LLaMA's checkpoints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
            Self::Qkv => "qkv_proj",
            Self::GateUp => "gate_up_proj",
        }
    }

    /// Widths of the input and the output in a block of the given widths: residual stream C, queries H D, keys K D and
    /// feed-forward layer F.
    pub const fn widths(self, [c, q, kv, f]: [usize; 4]) -> (usize, usize) {
        match self {
            Self::Q => (c, q),
            Self::K | Self::V => (c, kv),
            Self::O => (q, c),
            Self::Gate | Self::Up => (c, f),
            Self::Down => (f, c),
            Self::Qkv => (c, q + 2 * kv),
            Self::GateUp => (c, 2 * f),
        }
    }
}
