//! The names of sites, and what norms hand over by them.

use llamaprobe::arch::{Dtype, ModelConfig, NormPlacement, QkNorm};
use llamaprobe::backend::cpu::{Cpu, CpuSettings, Isa};
use llamaprobe::hooks::{Names, Naming, NormPart, NormSite, Record, Selection, Site};
use llamaprobe::model::{Activations, Input, Model, Save};
use llamaprobe::pack::{Label, Sequence};

use crate::support;

/// Largest difference allowed, as a share of the largest magnitude: at most three times what is measured over all
/// instruction sets (1.4e-7).
const LIMIT: f64 = 3.5e-7;

fn config(name: &str) -> ModelConfig {
    ModelConfig::load(support::golden(&format!("model-{name}"))).expect("a configuration")
}

fn read(name: &str, names: Names, config: &ModelConfig) -> Result<Vec<(Site, usize)>, String> {
    let naming = Naming { names, config };
    Selection::parse(name, &[0, 1], &naming).map(|found| found.hooks).map_err(|error| error.to_string())
}

/// The largest difference of two tensors as a share of the second's largest magnitude.
fn difference(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    found.iter().zip(expected).map(|(&a, b)| (f64::from(a) - b).abs()).fold(0.0, f64::max) / largest
}

/// Denominators and normalized rows of `x` in f64, by norms of `width` elements.
fn normalized(x: &[f64], width: usize, config: &ModelConfig, eps: f64) -> [Vec<f64>; 2] {
    let centred = config.norm == llamaprobe::arch::Norm::Layer;
    let mut parts = [Vec::new(), Vec::new()];
    for row in x.chunks(width) {
        let mean = if centred { row.iter().sum::<f64>() / width as f64 } else { 0.0 };
        let scale = (row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64 + eps).sqrt();
        parts[0].push(scale);
        parts[1].extend(row.iter().map(|x| (x - mean) / scale));
    }
    parts
}

/// What each norm of a block reads, as a sum of sites, and the elements of one norm.
fn norms_of_block(config: &ModelConfig) -> Vec<(NormSite, &'static [Site], usize)> {
    let width = config.hidden_size;
    let mut norms: Vec<(NormSite, &[Site], usize)> = match config.norm_placement {
        NormPlacement::Post => vec![
            (NormSite::Ln1, &[Site::ResidPre, Site::AttnOut], width),
            (NormSite::Ln2, &[Site::ResidMid, Site::MlpOut], width),
        ],
        NormPlacement::Output => Vec::new(),
        _ if config.one_norm => vec![(NormSite::Ln1, &[Site::ResidPre], width)],
        _ if config.parallel => {
            vec![(NormSite::Ln1, &[Site::ResidPre], width), (NormSite::Ln2, &[Site::ResidPre], width)]
        }
        _ => vec![(NormSite::Ln1, &[Site::ResidPre], width), (NormSite::Ln2, &[Site::ResidMid], width)],
    };
    if config.norm_placement.of_output() {
        norms.push((NormSite::Ln1Post, &[Site::AttnRaw], width));
        norms.push((NormSite::Ln2Post, &[Site::MlpRaw], width));
    }
    if let Some(over) = config.qk_norm {
        let of = |whole| if over == QkNorm::Head { config.head_dim } else { whole };
        norms.push((NormSite::Q, &[Site::Q], of(config.num_attention_heads * config.head_dim)));
        norms.push((NormSite::K, &[Site::K], of(config.num_key_value_heads * config.head_dim)));
    }
    norms
}

#[test]
fn norm_parts_are_those_of_their_formulas() {
    let models =
        ["gqa-llama3", "gpt2", "opt-behind", "bloom", "qwen3", "gemma2", "gemma3", "olmo2", "neox", "phi", "gptj"];
    let mut worst = 0.0f64;
    for (name, isa) in models.into_iter().flat_map(|name| Isa::available().iter().map(move |&isa| (name, isa))) {
        let b = &mut Cpu::<f32>::open(&CpuSettings { isa, ..CpuSettings::new(Dtype::F32) });
        let model = Model::load(b, &support::golden(&format!("model-{name}"))).expect("a model");
        let (config, depth) = (&model.config, model.config.num_hidden_layers);
        let layers: Vec<usize> = (0..depth).collect();
        let sites: Vec<Site> = Site::all().into_iter().filter(|&site| config.has(site)).collect();
        let sites: Vec<Site> =
            sites.into_iter().filter(|s| !matches!(s, Site::LoraA(_) | Site::LoraDelta(_))).collect();
        let sequences = [&[1u32, 5, 7, 9][..], &[2, 3]].map(|ids| Sequence::ids(ids, None, Label::Text));
        let pack = config.pack(&sequences, 1).pack;
        // In another order than the pack's.
        let mut record = Record::new(Selection::new(&sites, &layers), vec![4, 1, 3]);
        let mut acts = Activations::new(b, config, None, pack.len(), Save::Layer).expect("memory");
        let device = llamaprobe::backend::Buffers::pack(b, &pack).expect("a pack");
        model.forward(b, &mut acts, &Input::new(&pack, &device), None, &mut record).expect("a forward");
        let of = |site, layer| record.get(site, layer).unwrap_or_else(|| panic!("{name}: no {}", site.name(layer)));
        let sum = |sites: &[Site], layer| {
            let mut all = vec![0.0f64; of(sites[0], layer).len()];
            for &site in sites {
                all.iter_mut().zip(of(site, layer)).for_each(|(sum, &x)| *sum += f64::from(x));
            }
            all
        };
        let mut norms = Vec::new();
        for &layer in &layers {
            norms.extend(
                norms_of_block(config).into_iter().map(|(at, read, width)| (at, layer, sum(read, layer), width)),
            );
        }
        if config.final_norm {
            norms.push((NormSite::Final, 0, sum(&[Site::ResidPost], depth - 1), config.hidden_size));
        }
        for (at, layer, x, width) in norms {
            let part = |part| of(Site::Norm(at, part), layer);
            let [scale, rows] = normalized(&x, width, config, config.norm_eps);
            let rstd: Vec<f64> = scale.iter().map(|scale| 1.0 / scale).collect();
            for (found, expected) in [(NormPart::Scale, &scale), (NormPart::Normalized, &rows), (NormPart::Rstd, &rstd)]
            {
                assert_eq!(part(found).len(), expected.len(), "{name}: {} {layer}: {found:?}", at.name());
                let off = difference(part(found), expected);
                assert!(off < LIMIT, "{name}: {} {layer}: {found:?} is off by {off:.1e}", at.name());
                worst = worst.max(off);
            }
            // The mistake that moves least.
            let other = if config.norm_eps == 1e-6 { 1e-5 } else { 1e-6 };
            let [other, _] = normalized(&x, width, config, other);
            let off = difference(part(NormPart::Scale), &other);
            assert!(off > LIMIT, "{name}: {} {layer}: the other default epsilon goes unseen: {off:.1e}", at.name());
            let out = match at {
                NormSite::Ln1Post => of(Site::AttnOut, layer),
                NormSite::Ln2Post => of(Site::MlpOut, layer),
                _ => part(NormPart::Out),
            };
            // What they were mistaken for is far from them.
            assert!(difference(out, &rows) > 1e-2, "{name}: {} has weights of 1", at.name());
            assert!(difference(part(NormPart::Rstd), &scale) > 1e-2, "{name}: {} has rows of norm 1", at.name());
        }
    }
    println!("worst {worst:.1e}, limit {LIMIT:.1e}");
}

/// The page's table, which people read, and the names that the program takes, one by one.
#[test]
fn table_of_names_is_what_is_read_and_written() {
    let page = include_str!("../../src/hooks/names.md");
    let config = config("gqa-llama3");
    let mut sites: Vec<Site> =
        Site::all().into_iter().filter(|s| !matches!(s, Site::LoraA(_) | Site::LoraDelta(_))).collect();
    let named = |cell: &str| -> Vec<String> {
        cell.split(", ").map(|name| name.trim_matches('`').to_owned()).filter(|name| !name.is_empty()).collect()
    };
    for line in page.lines().filter(|line| line.contains("` | `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let Some(i) = sites.iter().position(|site| format!("{site:?}") == cells[1]) else { continue };
        let site = sites.remove(i);
        for (names, cell) in [(Names::Tl, cells[2]), (Names::Tl4, cells[3])] {
            let naming = Naming { names, config: &config };
            assert_eq!(naming.local(site), named(cell).pop(), "{line}");
            let mut listed: Vec<String> = cells[2..=4].iter().flat_map(|cell| named(cell)).collect();
            let mut read = naming.spellings(site);
            for names in [&mut listed, &mut read] {
                names.sort();
                names.dedup();
            }
            assert_eq!(listed, read, "{line}");
        }
        for name in cells[2..=4].iter().flat_map(|cell| named(cell)) {
            let expected = Selection::new(&[site], &[0, 1]).hooks;
            assert_eq!(read(&name, Names::Tl, &config), Ok(expected), "{name}");
        }
    }
    sites.retain(|&site| config.has(site));
    assert!(sites.is_empty(), "the page has no {sites:?}");
}

/// `get_act_name` of TransformerLens 4.3, its own examples among them; and names that only some families have.
#[test]
fn short_forms_are_those_of_transformer_lens() {
    let (llama, bloom, gpt2, phi) = (config("gqa-llama3"), config("bloom"), config("gpt2"), config("phi"));
    let norm = Site::Norm;
    for (name, config, site, layer) in [
        ("k1", &llama, Site::K, 1),
        ("pre0", &llama, Site::MlpPre, 0),
        ("scale1ln1", &llama, norm(NormSite::Ln1, NormPart::Scale), 1),
        ("normalized1ln2", &llama, norm(NormSite::Ln2, NormPart::Normalized), 1),
        ("scale", &llama, norm(NormSite::Final, NormPart::Scale), 0),
        ("normalized", &llama, norm(NormSite::Final, NormPart::Normalized), 0),
        ("attn1", &llama, Site::Pattern, 1),
        ("key1a", &llama, Site::K, 1),
        ("post0m", &llama, Site::MlpPost, 0),
        ("resid_post1", &llama, Site::ResidPost, 1),
        ("blocks.1.ln2.hook_in", &llama, Site::ResidMid, 1),
        ("blocks.1.mlp.in.hook_out", &llama, Site::MlpPreLinear, 1),
        ("blocks.1.mlp.in.hook_out", &gpt2, Site::MlpPre, 1),
        ("blocks.1.attn.hook_out", &llama, Site::AttnOut, 1),
        ("blocks.1.attn.hook_out", &bloom, Site::ResidMid, 1),
        ("blocks.0.mlp.hook_out", &bloom, Site::ResidPost, 0),
        ("embed_ln.hook_out", &bloom, Site::ResidPre, 0),
        ("ln_final.hook_in", &llama, Site::ResidPost, 1),
        ("unembed.hook_in", &llama, Site::FINAL_NORM, 0),
        ("hidden_states[2]", &llama, Site::FINAL_NORM, 0),
        // One norm is both sublayers'.
        ("blocks.1.ln2.hook_normalized", &phi, norm(NormSite::Ln1, NormPart::Normalized), 1),
        ("scale0ln2", &phi, norm(NormSite::Ln1, NormPart::Scale), 0),
        ("blocks.1.mlp.hook_in", &phi, Site::LN1_OUT, 1),
        ("blocks.1.ln2.hook_in", &phi, Site::ResidPre, 1),
    ] {
        for names in [Names::Tl, Names::Tl4] {
            assert_eq!(read(name, names, config), Ok(vec![(site, layer)]), "{name}");
        }
    }
    let naming = Naming { names: Names::Tl, config: &phi };
    let edited = |name| Selection::parse_outputs(name, &[0, 1], &naming);
    assert!(edited("ln1.hook_out").is_ok());
    let refused = edited("ln2.hook_out").expect_err("an edit of what the MLP alone reads").to_string();
    assert!(refused.contains("ln1.hook_out"), "{refused}");
}

#[test]
fn names_of_norms_mean_what_their_version_does() {
    let config = config("gqa-llama3");
    let both = |site| Ok(vec![(site, 0), (site, 1)]);
    let part = |part| Site::Norm(NormSite::Ln1, part);
    for (names, scale, normalized) in [
        (Names::Tl, NormPart::Scale, NormPart::Normalized),
        (Names::Tl4, NormPart::Scale, NormPart::Normalized),
        (Names::Llamaprobe1, NormPart::Rstd, NormPart::Out),
    ] {
        assert_eq!(read("ln1.hook_scale", names, &config), both(part(scale)));
        assert_eq!(read("ln1.hook_normalized", names, &config), both(part(normalized)));
        assert_eq!(read("ln1.hook_out", names, &config), both(Site::LN1_OUT));
        assert_eq!(read("final_norm", names, &config), Ok(vec![(Site::FINAL_NORM, 0)]));
        // No two sites are written under one name.
        let naming = Naming { names, config: &config };
        let sites = Site::all().into_iter().filter(|&site| config.has(site));
        let mut written: Vec<String> = sites.filter_map(|site| naming.local(site)).collect();
        let count = written.len();
        written.sort();
        written.dedup();
        assert_eq!(written.len(), count, "{names:?}");
    }
    assert_eq!(read("scale1", Names::Llamaprobe1, &config), both(part(NormPart::Rstd)));
    assert_eq!(read("normalized2", Names::Llamaprobe1, &config), both(Site::LN2_OUT));
    let naming = Naming { names: Names::Llamaprobe1, config: &config };
    let refused = naming.name(part(NormPart::Normalized), 1).expect_err("no name").to_string();
    assert!(refused.contains("--names llamaprobe1") && refused.contains("blocks.1.ln1.hook_normalized"), "{refused}");
}

/// Where a name is wrong, no name of another tensor is offered: a list is, or the name that it is a slip of.
#[test]
fn refused_names_suggest_no_other_tensor() {
    let config = config("gqa-llama3");
    let none =
        ["hook_attn_in", "hook_q_input", "rotary_emb.hook_cos", "attn.hook_cos", "mlp.hook_mid", "ln3.hook_scale"];
    let of_layers = [
        "scale1",
        "normalized1",
        "logits1",
        "embed0",
        "blocks.1.attn.w.hook_out",
        "blocks.0.hook_resid_past.x",
        "nonsense",
        "posd",
    ];
    for name in none.into_iter().chain(of_layers) {
        let error = read(name, Names::Tl, &config).expect_err(name);
        assert!(!error.contains("nearest") && error.contains("expected"), "{error}");
    }
    for (name, meant) in [
        ("hook_resid_pots", "hook_resid_post"),
        ("atn.hook_q", "attn.hook_q"),
        ("lnfinal.hook_out", "ln_final.hook_out"),
    ] {
        let error = read(name, Names::Tl, &config).expect_err(name);
        assert!(error.contains(&format!("(nearest: `{meant}`)")), "{error}");
    }
}

#[test]
fn what_one_module_reads_is_not_written_to() {
    for name in ["gqa-llama3", "opt-behind", "gpt2"] {
        let config = config(name);
        let naming = Naming::tl(&config);
        for (input, site) in naming.inputs() {
            let error = Selection::parse_outputs(input, &[0], &naming).expect_err(input).to_string();
            assert!(error.contains(&format!("`{}`", site.local())), "{error}");
            assert!(Selection::parse(input, &[0], &naming).expect("a name").contains(site, 0), "{input}");
        }
    }
}
