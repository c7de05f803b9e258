//! What `--edit` and `control-vector` read and write.

use std::path::Path;

use serde_json::json;

use super::args::ControlVectorArgs;
use super::{Failure, output};
use crate::Result;
use crate::formats::control_vector::ControlVector;
use crate::formats::edits::{self, Positions};
use crate::hooks::{Edit, Naming};

/// The edits of a file, for inputs that have no query and no demonstrations; none without a file.
pub fn of_texts(path: Option<&Path>, naming: &Naming<'_>) -> Result<Vec<Edit>> {
    let edits = of_prompts(path, naming)?;
    for edit in &edits {
        let name = match edit.positions {
            Positions::Query => "query",
            Positions::Demonstrations => "demonstrations",
            _ => continue,
        };
        return Err(edit.error("positions", "last, all or a list, where prompts are read as they are", name));
    }
    Ok(edits)
}

/// The edits of a file, for prompts whose query and demonstrations are known; none without a file.
pub fn of_prompts(path: Option<&Path>, naming: &Naming<'_>) -> Result<Vec<Edit>> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let edits = Edit::of_file(edits::read(path)?, naming)?;
    naming.config.check_edits(&edits)?;
    Ok(edits)
}

/// `control-vector`.
pub fn control_vector(args: &ControlVectorArgs) -> Result<(), Failure> {
    let vector = ControlVector::mean_difference(&args.positive, &args.negative, &args.model_hint)?;
    vector.write(&args.out)?;
    let length = |v: &[f32]| v.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let layers: Vec<(usize, f64)> = vector.directions.iter().map(|(&layer, v)| (layer, length(v))).collect();
    if args.json {
        let layers: Vec<_> = layers
            .iter()
            .map(|(layer, norm)| json!({"layer": layer, "tensor": format!("direction.{layer}"), "norm": norm}))
            .collect();
        return output::json(&json!({"file": args.out, "layers": layers}));
    }
    let row = |(layer, norm): &(usize, f64)| {
        vec![format!("direction.{layer}"), format!("blocks.{layer}.hook_resid_post"), format!("{norm:.4}")]
    };
    output::table(&["tensor", "added to", "norm"], layers.iter().map(row))?;
    output::line(args.out.display())
}
