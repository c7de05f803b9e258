//! `config.json` of the families from Qwen 3 on, against the models that transformers builds from the same files
//! (`tests/golden/family_configs.py`).

use llamaprobe::arch::{
    Activation, Dtype, Family, Mlp, ModelConfig, NormPlacement, Positions, Projection, QkNorm, RmsWeight, RopePairs,
};
use serde_json::{Value, json};

fn parse(config: &Value) -> Result<ModelConfig, String> {
    ModelConfig::parse("config.json", &config.to_string()).map_err(|error| error.to_string())
}

fn cases() -> Vec<Value> {
    serde_json::from_str(include_str!("../golden/family_configs.json")).expect("golden file")
}

/// The function of an MLP, at 0.7.
fn at(mlp: Mlp) -> f64 {
    let (Mlp::Gated(function) | Mlp::Plain(function)) = mlp;
    let x = 0.7f64;
    match function {
        Activation::Relu => x.max(0.0),
        Activation::Gelu => x * (1.0 + libm::erf(x / 2f64.sqrt())) / 2.0,
        Activation::GeluTanh => {
            x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()) / 2.0
        }
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
    }
}

/// The shape and bias of every matrix of a block, under its module's name.
fn projections(config: &ModelConfig) -> Value {
    let fused = config.family.fused();
    let single = config.targets().iter().filter(|target| !fused.iter().any(|f| f.parts().contains(target)));
    let named = fused.iter().chain(single).map(|&target: &Projection| {
        let (input, output) = config.widths(target);
        let name = config.family.path(0, target);
        (name.rsplit('.').next().expect("a name").to_owned(), json!([[output, input], config.bias(target)]))
    });
    Value::Object(named.collect())
}

/// The modules of a block that are norms, by what stands where.
fn norms(config: &ModelConfig) -> Vec<&'static str> {
    let mut names = match config.norm_placement {
        NormPlacement::Pre if config.family == Family::GptJ => vec!["ln_1"],
        NormPlacement::Pre if config.one_norm => vec!["input_layernorm"],
        NormPlacement::Pre => vec!["input_layernorm", "post_attention_layernorm"],
        NormPlacement::Output => vec!["post_attention_layernorm", "post_feedforward_layernorm"],
        NormPlacement::PreAndOutput => vec![
            "input_layernorm",
            "post_attention_layernorm",
            "post_feedforward_layernorm",
            "pre_feedforward_layernorm",
        ],
        NormPlacement::Post => panic!("of OPT"),
    };
    names.extend(config.qk_norm.iter().flat_map(|_| ["self_attn.k_norm", "self_attn.q_norm"]));
    names
}

/// Largest differences allowed, three times what is measured: of rotations and functions, which transformers has in f32, and
/// of scales of scores.
const ROTATION: f64 = 2.9e-7;
const FUNCTION: f64 = 7e-8;
const SCALE: f64 = 8e-17;

/// With the bases of its rotations a thousandth larger.
fn other_bases(config: &ModelConfig) -> ModelConfig {
    let mut config = config.clone();
    if let Positions::Rope(ropes) = &mut config.positions {
        ropes.iter_mut().for_each(|rope| rope.theta *= 1.001);
    }
    config
}

fn check_layers(config: &ModelConfig, facts: &Value, given: &Value) {
    let other = other_bases(config);
    let far = |found: &[f64], index: &Value, what: &str| {
        let wanted = &facts["rotations"][index.as_u64().expect("an index") as usize];
        let wanted: Vec<f64> = serde_json::from_value(wanted.clone()).expect("numbers");
        assert_eq!(found.len(), wanted.len(), "{given}: {what}");
        found.iter().zip(&wanted).fold(0.0f64, |far, (a, b)| far.max((a - b).abs()))
    };
    for (i, layer) in facts["layers"].as_array().expect("layers").iter().enumerate() {
        assert_eq!(json!(config.windows[i]), layer["window"], "{given}: layer {i}");
        let scaling = layer["scaling"].as_f64().expect("a number");
        assert!((config.score_scales[i] - scaling).abs() <= SCALE, "{given}: layer {i}: {scaling}");
        let rounded_scale = f64::from(scaling as f32);
        let seen = (config.score_scales[i] - rounded_scale).abs() > SCALE;
        assert!(rounded_scale == scaling || seen, "{given}: layer {i}: a scale in f32 goes unseen");
        assert_eq!(json!(config.score_softcap), layer["softcap"], "{given}: layer {i}");
        let rope = &config.ropes()[i];
        assert_eq!(json!(config.rope(i).is_some()), layer["rotates"], "{given}: layer {i}");
        assert_eq!(json!(rope.pairs == RopePairs::Neighbours), facts["neighbours"], "{given}: layer {i}");
        let row_of = |config: &ModelConfig, positions: usize| {
            config.rope_table(i, positions)[3 * rope.dim..4 * rope.dim].to_vec()
        };
        let row = |positions| row_of(config, positions);
        let check = |positions: usize, index: &Value, what: &str| {
            let far = |config| far(&row_of(config, positions), index, what);
            assert!(far(config) <= ROTATION, "{given}: {what}: {:.1e}", far(config));
            assert!(far(&other) > ROTATION, "{given}: {what}: another base goes unseen");
        };
        check(4, &layer["rotation"], &format!("rotation of layer {i}"));
        if let Some(index) = layer.get("long_rotation") {
            let longer = rope.scales_beyond().expect("a length") + 1;
            check(longer, index, &format!("rotation of long sequences of layer {i}"));
            assert_eq!(row(longer - 1), row(4), "{given}: the last length of the short list");
        }
    }
}

#[test]
fn every_file_means_the_model_that_transformers_builds() {
    let mut seen = Vec::new();
    for case in cases().iter().filter(|case| !case["facts"].is_null()) {
        let (given, facts) = (&case["config"], &case["facts"]);
        let config = parse(given).unwrap_or_else(|error| panic!("{given}: {error}"));
        seen.push(config.family);
        let number = |key: &str| facts[key].as_f64().unwrap_or_else(|| panic!("{key} is a number"));
        assert_eq!(projections(&config), facts["projections"], "{given}");
        assert_eq!(json!(config.head_dim), facts["head_dim"], "{given}");
        assert_eq!(json!(norms(&config)), facts["norms"], "{given}");
        let qk_width = config.qk_norm.map(|norm| match norm {
            QkNorm::Head => config.head_dim,
            QkNorm::Row => config.q_width(),
        });
        assert_eq!(json!(qk_width), facts["qk_norm"], "{given}");
        assert_eq!(config.norm_eps, number("eps"), "{given}");
        let far = |function| (at(Mlp::Plain(function)) - number("act")).abs();
        let (Mlp::Gated(function) | Mlp::Plain(function)) = config.mlp;
        assert!(far(function) <= FUNCTION, "{given}: {function:?}: {:.1e}", far(function));
        let others = [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Tanh];
        for other in others.into_iter().filter(|other| *other != function) {
            assert!(far(other) > FUNCTION, "{given}: {other:?} goes unseen");
        }
        assert_eq!(config.embed_scale, number("embed_scale"), "{given}");
        assert_eq!(json!(config.logit_softcap), facts["logit_softcap"], "{given}");
        assert_eq!(json!(config.is_causal), facts["is_causal"], "{given}");
        assert_eq!(json!(config.parallel), facts["parallel"], "{given}");
        assert_eq!(json!(config.head_bias), facts["head_bias"], "{given}");
        assert_eq!(json!(config.tie_word_embeddings), facts["tied"], "{given}");
        assert_eq!(json!(config.max_position_embeddings), facts["max_position_embeddings"], "{given}");
        assert_eq!(json!(config.vocab_size), facts["vocab_size"], "{given}");
        // Ids that no row of the table is of are none here.
        let inside = |id: &Value| id.as_u64().filter(|&id| id < config.vocab_size as u64);
        assert_eq!(config.bos_token_id.map(u64::from), inside(&facts["bos"]), "{given}");
        let ends: Vec<u64> = facts["eos"].as_array().expect("a list").iter().filter_map(inside).collect();
        assert_eq!(config.eos_token_id.iter().copied().map(u64::from).collect::<Vec<_>>(), ends, "{given}");
        if given.get("pad_token_id").is_some() {
            assert_eq!(json!(config.pad_token_id), facts["pad"], "{given}");
        }
        let dtype = config.dtype.map(|dtype| match dtype {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::BF16 => "bfloat16",
            Dtype::F64 => "float64",
        });
        assert_eq!(json!(dtype), facts["dtype"], "{given}");
        check_layers(&config, facts, given);
    }
    for family in Family::ALL.into_iter().filter(|family| family.name() > "gemma") {
        let old = ["gpt2", "llama", "mistral", "opt", "qwen2"].contains(&family.name());
        assert!(old || seen.contains(&family), "{family:?} is not among the files");
    }
}

/// What `config.json` does not say: how a norm's weight enters, which the models' code decides.
#[test]
fn the_weight_of_a_norm_is_the_familys() {
    for case in cases().iter().filter(|case| !case["facts"].is_null()) {
        let config = parse(&case["config"]).expect("loads");
        let expected = match config.family.name() {
            "gpt_neox" | "phi" | "gptj" | "starcoder2" | "stablelm" => None,
            "olmo2" | "olmo3" => Some(RmsWeight::Exact),
            "gemma2" | "gemma3" | "gemma3_text" => Some(RmsWeight::OnePlus),
            _ => Some(RmsWeight::Rounded),
        };
        assert_eq!(config.rms_weight(), expected, "{}", case["config"]);
    }
}
