//! The families of models, and what their names decide.

use super::projection::Projection;

/// The family, which decides defaults and biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// LLaMA 1, 2, 3 and everything published under `"model_type": "llama"`.
    Llama,
    /// Mistral 7B and its kin: no biases, sliding window by default.
    Mistral,
    /// Qwen 2 and 2.5: biases on q, k and v.
    Qwen2,
    /// GPT-2: learned positions, layer norm, fused q, k, v, matrices stored transposed.
    Gpt2,
    /// OPT: learned positions, layer norm before or after each sublayer of a block.
    Opt,
    /// BLOOM: ALiBi, layer norm also of the embeddings, q, k and v fused head by head.
    Bloom,
    /// Qwen 3, the dense ones: norms of queries and keys, head by head.
    Qwen3,
    /// Gemma 2: norms around each sublayer, soft caps, a window in every second layer.
    Gemma2,
    /// Gemma 3, its text model: norms around each sublayer and of queries and keys, two rotations.
    Gemma3,
    /// Gemma 3's text part, in a checkpoint of texts and images, where modules have other names.
    Gemma3Images,
    /// OLMo 2: norms of the sublayers' outputs, and of all queries and all keys of a row.
    Olmo2,
    /// OLMo 3: as OLMo 2, with windows and two rotations.
    Olmo3,
    /// GPT-NeoX and Pythia: attention and MLP side by side, a part of each head rotated, q, k and v fused head by head.
    GptNeox,
    /// Phi 3, 3.5 and 4 (mini): q, k and v one below another in one matrix, gate and up in another, longrope.
    Phi3,
    /// Phi 1, 1.5 and 2: attention and MLP side by side behind one norm, a part of each head rotated, biases everywhere.
    Phi,
    /// GPT-J: attention and MLP side by side behind one norm, the first elements of each head rotated in neighbouring pairs.
    GptJ,
    /// SmolLM3: LLaMA's make, of whose layers some rotate nothing.
    SmolLm3,
    /// StarCoder 2: LLaMA's attention between layer norms with biases, a plain MLP.
    Starcoder2,
    /// StableLM: LLaMA's make with layer norms, a part of each head rotated.
    StableLm,
}

impl Family {
    /// Every one.
    pub const ALL: [Self; 19] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Gpt2,
        Self::Opt,
        Self::Bloom,
        Self::Qwen3,
        Self::Gemma2,
        Self::Gemma3,
        Self::Gemma3Images,
        Self::Olmo2,
        Self::Olmo3,
        Self::GptNeox,
        Self::Phi3,
        Self::Phi,
        Self::GptJ,
        Self::SmolLm3,
        Self::Starcoder2,
        Self::StableLm,
    ];

    /// The `model_type` of the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Gpt2 => "gpt2",
            Self::Opt => "opt",
            Self::Bloom => "bloom",
            Self::Qwen3 => "qwen3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
            Self::Gemma3Images => "gemma3",
            Self::Olmo2 => "olmo2",
            Self::Olmo3 => "olmo3",
            Self::GptNeox => "gpt_neox",
            Self::Phi3 => "phi3",
            Self::Phi => "phi",
            Self::GptJ => "gptj",
            Self::SmolLm3 => "smollm3",
            Self::Starcoder2 => "starcoder2",
            Self::StableLm => "stablelm",
        }
    }

    /// Whether modules and tensors bear LLaMA's names, up to norms and fused modules.
    pub const fn named_as_llama(self) -> bool {
        !matches!(
            self,
            Self::Gpt2 | Self::Opt | Self::Bloom | Self::GptNeox | Self::Phi | Self::GptJ | Self::Starcoder2
        )
    }

    /// Whether `config.json` names the number of heads of keys and values (`num_key_value_heads`).
    pub const fn has_kv_heads(self) -> bool {
        self.named_as_llama() || matches!(self, Self::Phi | Self::Starcoder2)
    }

    /// The modules of a checkpoint that are several projections in one matrix.
    pub const fn fused(self) -> &'static [Projection] {
        match self {
            Self::Gpt2 | Self::Bloom | Self::GptNeox => &[Projection::Qkv],
            Self::Phi3 => &[Projection::Qkv, Projection::GateUp],
            _ => &[],
        }
    }
}
