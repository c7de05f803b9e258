//! The tensors of the file: names, widths, and what of them is computed on demand.

use std::collections::HashMap;

use crate::arch::ModelConfig;
use crate::hooks::{Naming, NormPart, Selection, Site};
use crate::model::Layout;
use crate::{Error, Result};

/// The tensors of a selection.
pub struct Tensors {
    /// Name and width of each, in the order of the selection.
    pub widths: Vec<(String, usize)>,
    /// Query heads of the model.
    pub heads: usize,
    /// Positions of the longest document: those of a row by position.
    pub longest: usize,
    /// Rank of the head's LoRA, if it has one.
    head_rank: Option<usize>,
}

impl Tensors {
    /// The tensors of `selection` for documents of up to `longest` positions.
    pub fn new(naming: &Naming<'_>, layout: Option<&Layout>, selection: &Selection, longest: usize) -> Result<Self> {
        let (config, heads) = (naming.config, naming.config.num_attention_heads);
        let tensor = |&(site, layer): &(Site, usize)| {
            let width = width(config, layout, (site, layer), heads * longest)?;
            Ok((naming.name(site, layer)?, width))
        };
        let head_rank = layout.and_then(Layout::head).map(|site| site.rank);
        Ok(Self { widths: selection.hooks.iter().map(tensor).collect::<Result<_>>()?, heads, longest, head_rank })
    }

    /// Elements of the buffers that a pass of so many rows, and of so many that are captured, makes only because they are
    /// asked for: one for each site, which serves all layers.
    pub fn on_demand(&self, selection: &Selection, [rows, selected]: [usize; 2]) -> usize {
        let mut largest: HashMap<Site, usize> = HashMap::new();
        for (&(site, _), (_, width)) in selection.hooks.iter().zip(&self.widths) {
            let rows = match site {
                Site::AttnScores | Site::Pattern | Site::Result => selected,
                Site::Logits => selected,
                // At most: beside the result the rows it is of, their factors and indices, and weight and bias, each as
                // parameters and as a weight.
                Site::Norm(_, NormPart::Normalized) => 3 * selected + 4,
                Site::Norm(_, NormPart::Scale) => 4 * selected + 2,
                Site::PosEmbed | Site::LoraDelta(_) => rows,
                _ => continue,
            };
            // Beside the logits what the head's LoRA adds to them, and its `A x`.
            let of_lora = self.head_rank.filter(|_| site == Site::Logits).map_or(0, |rank| width + rank);
            let len = largest.entry(site).or_default();
            *len = (rows * (width + of_lora)).max(*len);
        }
        largest.into_values().sum()
    }
}

/// Elements of a row of a hook's tensor; `by_position` is that of a row with a number per head and position.
fn width(
    config: &ModelConfig,
    layout: Option<&Layout>,
    (site, layer): (Site, usize),
    by_position: usize,
) -> Result<usize> {
    if !config.has(site) {
        let expected = format!("a site that {} models have", config.family.name());
        return Err(Error::argument("sites", expected, site.name(layer)));
    }
    if site == Site::Logits {
        config.require_head()?;
    }
    Ok(match site {
        Site::AttnScores | Site::Pattern => by_position,
        Site::Result => config.num_attention_heads * config.hidden_size,
        Site::Logits => config.vocab_size,
        Site::LoraA(target) | Site::LoraDelta(target) => {
            let lora = layout.and_then(|layout| layout.site(layer, target)).ok_or_else(|| {
                let (module, name) = (config.family.path(layer, target), site.name(layer));
                let adapted = layout.is_some_and(|layout| layout.sites(layer, target).next().is_some());
                let scaled = layout.is_some_and(|layout| layout.scales(layer, target).next().is_some());
                let found = match (adapted, scaled) {
                    (true, _) => "several ranks or choices of modules",
                    (false, true) => {
                        "the vector of an IA3, which multiplies, with no A, no B and nothing that is added"
                    }
                    (false, false) => "none",
                };
                Error::argument("adapter", format!("a LoRA on {module} for the site {name}"), found)
            })?;
            if matches!(site, Site::LoraA(_)) { lora.rank } else { lora.output }
        }
        site => config.stored_width(site),
    })
}
