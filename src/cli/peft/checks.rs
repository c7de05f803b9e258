//! What PEFT 0.21 says of `adapter_config.json` before it looks at a tensor: where it stops, what it fills up, what it
//! passes over.

use serde_json::Value;

use super::state::{is_set, is_there};
use crate::arch::{Family, ModelConfig};
use crate::formats::adapter::{Adapter, PromptConfig, PromptKind};

/// The variants of LoRA, of which there can be one: their fields, and whether an empty object turns them on.
const VARIANTS: [(&str, bool); 7] = [
    ("alora_invocation_tokens", false),
    ("arrow_config", true),
    ("kasa_config", true),
    ("monteclora_config", true),
    ("use_bdlora", true),
    ("use_dora", false),
    ("velora_config", true),
];

/// The other types of PEFT 0.21.
pub const TYPES: [&str; 41] = [
    "MULTITASK_PROMPT_TUNING",
    "ADALORA",
    "ADAMSS",
    "BOFT",
    "ADAPTION_PROMPT",
    "IA3",
    "BEFT",
    "LILY",
    "LOHA",
    "LOKR",
    "OFT",
    "POLY",
    "LN_TUNING",
    "VERA",
    "FROD",
    "PVERA",
    "FOURIERFT",
    "GLORA",
    "XLORA",
    "HRA",
    "VBLORA",
    "UNILORA",
    "CPT",
    "MISS",
    "RANDLORA",
    "ROAD",
    "TRAINABLE_TOKENS",
    "HIRA",
    "SHIRA",
    "C3A",
    "WAVEFT",
    "OSF",
    "DELORA",
    "GRALORA",
    "CARTRIDGE",
    "TINYLORA",
    "PSOFT",
    "PEANUT",
    "SHADOW",
    "SUPERTUNING",
    "DEFT",
];

/// Whether PEFT stops at the configuration of a LoRA, and why.
pub fn stops(config: &Value, family: Family) -> Option<String> {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let null = |key: &str| config.get(key).is_some_and(Value::is_null);
    let number = |key: &str| config.get(key).and_then(Value::as_f64);
    let init = text("init_lora_weights");
    let on = |(key, empty): &(&str, bool)| if *empty { is_there(config, key) } else { is_set(config, key) };
    let variants: Vec<&str> = VARIANTS.iter().filter(|variant| on(variant)).map(|(key, _)| *key).collect();
    let is_text = config.get("target_modules").is_some_and(Value::is_string);
    let known = ["pissa", "eva", "orthogonal", "lora_ga", "mica"];
    let starts = |name: &str| {
        known.contains(&name)
            || name.starts_with("pissa_niter_")
            || ["gaussian", "olora"].iter().any(|known| name.eq_ignore_ascii_case(known))
    };
    let found = [
        (
            text("task_type").is_some_and(|name| !Adapter::TASK_TYPES.contains(&name)),
            "ValueError, the task_type is none of PEFT's",
        ),
        (
            !family.has_peft_defaults()
                && !is_there(config, "target_modules")
                && !is_there(config, "target_parameters"),
            "ValueError, target_modules is missing, and PEFT has none for a model of this family",
        ),
        (config.get("target_parameters").is_some_and(Value::is_string), "TypeError, target_parameters is no list"),
        (
            is_text && (is_there(config, "layers_to_transform") || is_there(config, "layers_pattern")),
            "ValueError, layers_to_transform or layers_pattern beside an expression for target_modules",
        ),
        (
            is_set(config, "layers_pattern") && !is_there(config, "layers_to_transform"),
            "ValueError, layers_pattern without layers_to_transform",
        ),
        (
            is_set(config, "use_dora") && is_set(config, "megatron_config"),
            "ValueError, use_dora beside megatron_config",
        ),
        (is_set(config, "megatron_config"), "ModuleNotFoundError without Megatron, which megatron_config asks for"),
        (init == Some("loftq") && !is_set(config, "loftq_config"), "ValueError, loftq without loftq_config"),
        (
            init.is_some_and(|name| name.starts_with("corda")),
            "ValueError, corda starts from what preprocess_corda leaves in a model",
        ),
        (
            init.is_some_and(|name| !name.is_empty() && name != "loftq" && !starts(name)),
            "ValueError, init_lora_weights is none of PEFT's",
        ),
        (
            init == Some("orthogonal") && number("r").is_some_and(|r| r % 2.0 != 0.0),
            "ValueError, orthogonal with an odd rank",
        ),
        (
            is_set(config, "lora_bias") && (init.is_some() || is_set(config, "use_dora")),
            "ValueError, lora_bias beside use_dora or a named init_lora_weights",
        ),
        (null("bias"), "AttributeError, bias is null"),
        (
            text("bias").is_some_and(|bias| !["none", "all", "lora_only"].contains(&bias)),
            "NotImplementedError, bias is none of PEFT's",
        ),
        (null("lora_dropout"), "TypeError, lora_dropout is null"),
        (number("lora_dropout").is_some_and(|p| p > 1.0), "ValueError, lora_dropout is no probability"),
        (null("rank_pattern") || null("alpha_pattern"), "AttributeError, rank_pattern or alpha_pattern is null"),
        (null("r") || null("lora_alpha"), "TypeError, r or lora_alpha is null"),
        (number("r").is_some_and(|r| r <= 0.0), "ValueError, r is not positive"),
        (is_there(config, "arrow_config"), "AttributeError, arrow_config wants adapters loaded before this one"),
        (
            VARIANTS.iter().any(|(key, object)| *object && is_there(config, key) && !config[*key].is_object()),
            "TypeError, the configuration of a variant is no object",
        ),
        (variants.len() > 1, "ValueError, two variants of LoRA at once"),
    ];
    found.iter().find(|(stops, _)| *stops).map(|(_, why)| (*why).to_owned())
}

/// What PEFT takes where the configuration of a LoRA is silent, and what it does that nothing in the file shows.
pub fn silent(config: &Value, family: Family) -> Vec<String> {
    let mut found = Vec::new();
    let modules = defaults(family).join(" and ");
    for (key, default) in [("r", "8"), ("lora_alpha", "8"), ("target_modules", modules.as_str())] {
        if config.get(key).is_none_or(|value| value.is_null() && key == "target_modules") {
            found.push(format!("silently takes {default} for {key}, which is missing"));
        }
    }
    if let Some(init) = config.get("init_lora_weights").and_then(Value::as_str)
        && (init.starts_with("pissa") || init == "loftq" || init.eq_ignore_ascii_case("olora"))
    {
        found.push(format!(
            "changes the base weights as it starts a {init} (init_lora_weights), and then loads A and B"
        ));
    }
    if is_set(config, "alora_invocation_tokens") {
        found.push(
            "applies it behind the last alora_invocation_tokens of a text alone, and not to a text without".to_owned(),
        );
    }
    if is_set(config, "layer_replication") {
        found.push("repeats layers of the model (layer_replication)".to_owned());
    }
    if is_there(config, "kasa_config") {
        found.push("takes the least singular values out of the base weights (kasa_config)".to_owned());
    }
    if is_there(config, "monteclora_config") {
        found.push("samples while it trains, not while it infers (monteclora_config)".to_owned());
    }
    found
}

/// The configuration of an IA3 with what PEFT takes where it is silent, and what that is.
///
/// # Errors
/// Where PEFT stops, and why.
pub fn ia3_with_defaults(config: &Value, family: Family) -> Result<(Value, Vec<String>), String> {
    if config.get("task_type").and_then(Value::as_str).is_some_and(|name| !Adapter::TASK_TYPES.contains(&name)) {
        return Err("ValueError, the task_type is none of PEFT's".to_owned());
    }
    let (mut whole, mut found) = (config.clone(), Vec::new());
    for (which, key) in ["target_modules", "feedforward_modules"].into_iter().enumerate() {
        if is_there(config, key) {
            continue;
        }
        let Some(sets) = family.ia3_modules() else {
            return Err(format!("ValueError, {key} is missing, and PEFT has none for a model of this family"));
        };
        let names: Vec<&str> = sets[which].iter().map(|&target| family.short_name(target)).collect();
        found.push(format!("silently takes {} for {key}, which is missing", names.join(" and ")));
        // Those of them that are adapted; PEFT asks for a subset only of what the file says.
        let adapted = whole["target_modules"].as_array();
        let is_adapted = |name: &&str| which == 0 || adapted.is_none_or(|all| all.iter().any(|other| other == name));
        whole[key] = names.into_iter().filter(is_adapted).collect::<Vec<_>>().into();
    }
    Ok((whole, found))
}

/// The modules that PEFT takes where the configuration names none.
pub fn defaults(family: Family) -> Vec<String> {
    family.default_modules().iter().map(|&target| family.short_name(target).to_owned()).collect()
}

/// The fields that PEFT drops with a warning.
pub fn dropped(config: &Value) -> Option<String> {
    let keys = Adapter::unknown_fields(config).join(", ");
    (!keys.is_empty()).then(|| format!("warns of fields that it does not know and drops: {keys}"))
}

/// Whether PEFT stops at the configuration of a soft prompt, and why.
pub fn prompt_stops(kind: PromptKind, config: &Value) -> Option<String> {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let starts_as_text = text("prompt_tuning_init") == Some("TEXT") && kind == PromptKind::PromptTuning;
    let task = text("task_type");
    let found = [
        (task.is_some_and(|name| !Adapter::TASK_TYPES.contains(&name)), "ValueError, the task_type is none of PEFT's"),
        (!is_there(config, "num_virtual_tokens"), "TypeError, num_virtual_tokens is missing"),
        (
            starts_as_text && !is_set(config, "tokenizer_name_or_path"),
            "ValueError, the start is a TEXT and tokenizer_name_or_path is missing",
        ),
        (
            starts_as_text && !is_there(config, "prompt_tuning_init_text"),
            "ValueError, the start is a TEXT and prompt_tuning_init_text is missing",
        ),
        (
            is_set(config, "tokenizer_kwargs") && !starts_as_text && kind == PromptKind::PromptTuning,
            "ValueError, tokenizer_kwargs without a start as TEXT",
        ),
        (kind == PromptKind::PrefixTuning && task == Some("SEQ_CLS"), "ValueError, a prefix before a classifier"),
        (kind == PromptKind::PrefixTuning && submodules(config) > 1, "AttributeError, a prefix of two submodules"),
    ];
    found.iter().find(|(stops, _)| *stops).map(|(_, why)| (*why).to_owned())
}

/// How often a soft prompt stands in its tensor: once for a decoder.
fn submodules(config: &Value) -> usize {
    let given = config.get("num_transformer_submodules").and_then(Value::as_u64);
    let sequences = config.get("task_type").and_then(Value::as_str) == Some("SEQ_2_SEQ_LM");
    given.map_or(if sequences { 2 } else { 1 }, |n| n as usize)
}

/// The shape of a soft prompt's rows, by what the configuration says and by the model where it is silent.
pub fn rows(kind: PromptKind, config: &Value, model: &ModelConfig) -> [usize; 2] {
    let number = |key: &str| config.get(key).and_then(Value::as_u64).map(|n| n as usize);
    let ours = PromptConfig::new(kind, number("num_virtual_tokens").unwrap_or(0), model);
    let width = match kind {
        // Heads of keys and values are the model's where it names their number.
        PromptKind::PrefixTuning => {
            let by_model = model.family.has_kv_heads();
            let keys = number("token_dim").filter(|_| !by_model).unwrap_or(ours.token_dim);
            number("num_layers").unwrap_or(ours.num_layers) * 2 * keys
        }
        PromptKind::PromptTuning | PromptKind::PTuning => number("token_dim").unwrap_or(ours.token_dim),
    };
    [ours.num_virtual_tokens * submodules(config), width]
}
