//! `analyze`: the measures of captured states.

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::args::AnalyzeArgs;
use super::device::with_threads;
use super::{Failure, notes, output};
use crate::formats::activations::ActivationFile;
use crate::hooks::Names;
use crate::measures::similarity::gaussian_rows;
use crate::measures::{Baselines, Measure, Pair, Settings, StateMeasures, States};
use crate::{Error, Result};

/// Columns by which the rows of two files are told to be the same.
const COLUMNS: [&str; 2] = ["doc_id", "pos"];

/// What was measured of a site.
struct Layer {
    name: String,
    measures: StateMeasures,
    baselines: Baselines,
}

pub fn run(args: &AnalyzeArgs) -> Result<(), Failure> {
    with_threads(args.threads, |_| analyze(args))
}

fn analyze(args: &AnalyzeArgs) -> Result<(), Failure> {
    let settings = Settings {
        measures: Measure::parse(&args.measures)?,
        knn: args.knn,
        subspace: args.subspace.unwrap_or(Settings::default().subspace),
        seed: args.seed,
    };
    settings.validate()?;
    let [a, b] = [ActivationFile::open(&args.a)?, ActivationFile::open(&args.b)?];
    let anchor = args.anchor.as_ref().map(ActivationFile::open).transpose()?;
    same_rows(&a, &b)?;
    anchor.as_ref().map_or(Ok(()), |anchor| same_rows(&a, anchor))?;
    let sites = common_sites(&a, &b, anchor.as_ref())?;
    for site in &sites {
        check_site(site, &a, &b, anchor.as_ref(), args)?;
    }
    notes::release();
    let layer = |(i, site): (usize, &&str)| layer(i, site, &a, &b, anchor.as_ref(), &settings);
    let layers: Vec<Layer> = sites.par_iter().enumerate().map(layer).collect::<Result<_>>()?;
    if args.json { output::json(&report(&layers, &settings)) } else { print(&layers, &settings) }
}

/// Checks that the rows of two files are of the same tokens.
fn same_rows(a: &ActivationFile, b: &ActivationFile) -> Result<()> {
    let documents = a.labels("doc_id")?;
    for column in COLUMNS {
        let (Some(x), Some(y)) = (a.labels(column)?, b.labels(column)?) else { continue };
        if x.len() != y.len() {
            let expected = format!("{} rows, as {} has", x.len(), a.path().display());
            return Err(Error::field(b.path(), column, expected, y.len().to_string()));
        }
        let Some(row) = x.iter().zip(&y).position(|(x, y)| x != y) else { continue };
        let once =
            documents.as_ref().is_some_and(|of| of.iter().collect::<std::collections::BTreeSet<_>>().len() == of.len());
        if column == "pos" && once && b.labels("doc_id")?.is_some() {
            // One row of each document: its place says only what stood before it.
            let (a, b) = (a.path().display(), b.path().display());
            log::warn!(
                "{a} and {b} have their documents' rows at other positions (row {row}: {} and {})",
                x[row],
                y[row]
            );
            continue;
        }
        let expected = format!("the same rows as {}, whose row {row} has {}", a.path().display(), x[row]);
        return Err(Error::field(b.path(), column, expected, y[row].to_string()));
    }
    Ok(())
}

/// The sites of all files, of which there is at least one; a note names the others.
fn common_sites<'a>(
    a: &'a ActivationFile,
    b: &ActivationFile,
    anchor: Option<&ActivationFile>,
) -> Result<Vec<&'a str>> {
    let files: Vec<&ActivationFile> = [a, b].into_iter().chain(anchor).collect();
    let common: Vec<&str> =
        a.sites().into_iter().filter(|site| files.iter().all(|f| f.shape(site).is_some())).collect();
    for file in &files {
        let only: Vec<&str> = file.sites().into_iter().filter(|site| !common.contains(site)).collect();
        if !only.is_empty() && !common.is_empty() {
            log::warn!("{}: left out, since not every file has them: {}", file.path().display(), only.join(", "));
        }
    }
    if common.is_empty() {
        let found = b.sites().join(", ");
        let expected = format!("a tensor of {}, which has {}", a.path().display(), a.sites().join(", "));
        return Err(Error::field(b.path(), "tensors", expected, if found.is_empty() { "none".into() } else { found }));
    }
    Ok(common)
}

/// Checks that a site has the same shape in all files, and enough of it for what is asked for.
fn check_site(
    site: &str,
    a: &ActivationFile,
    b: &ActivationFile,
    anchor: Option<&ActivationFile>,
    args: &AnalyzeArgs,
) -> Result<()> {
    let shape = a.shape(site).expect("a common site");
    for file in [b].into_iter().chain(anchor) {
        let found = file.shape(site).expect("a common site");
        if found != shape {
            let expected = format!("shape {shape:?}, as in {}", a.path().display());
            return Err(Error::field(file.path(), site, expected, format!("{found:?}")));
        }
    }
    if site.ends_with("hook_scale") || site.ends_with("hook_normalized") {
        check_conventions(site, a, b)?;
        anchor.map_or(Ok(()), |anchor| check_conventions(site, a, anchor))?;
    }
    let [rows, width] = shape;
    if rows == 0 {
        return Err(Error::field(a.path(), site, "at least one row", "none"));
    }
    if let Some(knn) = args.knn.filter(|&knn| knn >= rows) {
        return Err(Error::argument("knn", format!("fewer than the {rows} rows of {site}"), knn));
    }
    // Centred rows have one direction less than there are rows.
    match args.subspace.filter(|&k| k >= rows || k > width) {
        Some(k) => {
            let most = (rows - 1).min(width);
            Err(Error::argument("subspace", format!("at most {most}, for {rows} rows of width {width} in {site}"), k))
        }
        None => Ok(()),
    }
}

/// Checks that a part of a norm means the same in two files: its names have had several meanings.
fn check_conventions(site: &str, a: &ActivationFile, b: &ActivationFile) -> Result<()> {
    let [of_a, of_b] = [conventions(a)?, conventions(b)?];
    if of_a == of_b {
        return Ok(());
    }
    let expected = format!("the meaning that the name has in {}: {of_a}", a.path().display());
    Err(Error::field(b.path(), site, expected, of_b))
}

/// What the names of norms mean in a file; captures of version 0.1, which know tokens but say nothing, mean that version's.
fn conventions(file: &ActivationFile) -> Result<&str> {
    Ok(match file.metadata().get("conventions") {
        Some(said) => said,
        None if file.labels("token_id")?.is_some() => Names::Llamaprobe1.conventions(),
        None => "not said",
    })
}

fn layer(
    i: usize,
    site: &str,
    a: &ActivationFile,
    b: &ActivationFile,
    anchor: Option<&ActivationFile>,
    settings: &Settings,
) -> Result<Layer> {
    let (a, b) = (a.rows(site)?, b.rows(site)?);
    let anchor = anchor.map(|anchor| anchor.rows(site)).transpose()?;
    let (x, y) = (States::new(&a.values, a.width, settings), States::new(&b.values, b.width, settings));
    let noise = gaussian_rows(settings.seed, i, x.rows(), a.width);
    let gaussian = States::gaussian(&noise, a.width, settings);
    let pair = Pair::new(&x, &y, anchor.as_ref().map(|anchor| anchor.values.as_slice()), settings);
    let baselines = Baselines { shuffled: pair.shuffled(), gaussian: pair.gaussian(&gaussian, &noise) };
    Ok(Layer { name: site.to_owned(), measures: pair.measures(), baselines })
}

/// The values of the measures that were asked for, by name.
fn values(measures: &StateMeasures, settings: &Settings) -> Map<String, Value> {
    let named = settings.measures.iter().flat_map(|&measure| measures.values(measure));
    named.map(|(name, value)| (name.to_owned(), json!(value))).collect()
}

fn report(layers: &[Layer], settings: &Settings) -> Value {
    let layer = |layer: &Layer| {
        let mut all = Map::from_iter([("name".to_owned(), json!(layer.name))]);
        all.append(&mut values(&layer.measures, settings));
        let Baselines { shuffled, gaussian } = &layer.baselines;
        let baselines = json!({"shuffled": values(shuffled, settings), "gaussian": values(gaussian, settings)});
        all.insert("baselines".to_owned(), baselines);
        Value::Object(all)
    };
    json!({"settings": settings, "layers": layers.iter().map(layer).collect::<Vec<_>>()})
}

fn print(layers: &[Layer], settings: &Settings) -> Result<(), Failure> {
    let part = |title: &str, of: &dyn Fn(&Layer) -> StateMeasures| {
        let names = settings.measures.iter().flat_map(|&measure| StateMeasures::default().values(measure));
        let header: Vec<&str> = [title].into_iter().chain(names.map(|(name, _)| name)).collect();
        let cell = |(_, value): (&str, Option<f64>)| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
        let row = |layer: &Layer| {
            let found = settings.measures.iter().flat_map(|&measure| of(layer).values(measure)).map(cell);
            [layer.name.clone()].into_iter().chain(found).collect()
        };
        output::table(&header, layers.iter().map(row))
    };
    part("states", &|layer| layer.measures)?;
    output::line("")?;
    part("shuffled rows of B", &|layer| layer.baselines.shuffled)?;
    output::line("")?;
    part("Gaussian rows for B", &|layer| layer.baselines.gaussian)
}
