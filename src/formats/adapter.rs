//! PEFT adapters.

/// A projection of a block that an adapter can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
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
}

impl Target {
    /// All, in the order of a block.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The module's name in a checkpoint.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }
}

/// An adapter's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {}

/// One adapted projection.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraModule {
    /// Layer.
    pub layer: usize,
    /// Projection.
    pub target: Target,
    /// Rank R.
    pub r: usize,
    /// Multiplier of `B A x`.
    pub scale: f64,
    /// A `[R, input]`.
    pub a: Vec<f32>,
    /// B `[output, R]`.
    pub b: Vec<f32>,
}

/// A LoRA adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraAdapter {
    /// Settings.
    pub config: LoraConfig,
    /// Modules.
    pub modules: Vec<LoraModule>,
}
