//! The conditions of a probe, as its flags ask for them: levels become settings, settings and data become plans.

use std::collections::HashMap;
use std::path::PathBuf;

use super::args::ProbeArgs;
use super::resolve::{self, ModelFiles};
use crate::backend::Backend;
use crate::formats::tokenizer::Tokenizer;
use crate::model::Model;
use crate::probe::factors::{Factor, Levels, Similarity, Vary, cross};
use crate::probe::plan::Plan;
use crate::probe::{Condition, DemonstrationPool, PlanInputs, ProbeSettings, SimilarityBy, similarity_to_queries};
use crate::task::embedding::mean_states;
use crate::task::{Dataset, Example, Side, Task, Template};
use crate::{Error, Result};

/// A condition that has no plan yet.
#[derive(Clone, Debug)]
pub struct Asked {
    pub levels: Levels,
    /// With those levels.
    pub settings: ProbeSettings,
    /// The model, as it is named.
    pub model: String,
    /// The task of the demonstrations, where it is another.
    source: Option<Task>,
}

/// The conditions of a study and their data.
pub struct Study {
    pub asked: Vec<Asked>,
    queries: Vec<Example>,
    /// The pools of demonstrations, by their task as it was asked for; none is that of the queries.
    pools: HashMap<Option<String>, Vec<Example>>,
}

impl Study {
    /// The study that resolved arguments ask for.
    ///
    /// # Errors
    /// Levels out of their domain, or data that cannot be read or are missing.
    pub fn new(args: &ProbeArgs, settings: &ProbeSettings) -> Result<Self> {
        let asked = levels(args, settings)?;
        let asked: Vec<Asked> =
            asked.into_iter().map(|levels| Asked::new(args, settings, levels)).collect::<Result<_>>()?;
        let task = &settings.task;
        let mut pools = HashMap::new();
        for condition in &asked {
            let (of, files): (&Task, &[PathBuf]) = match &condition.source {
                // `--train` is of the task of the queries.
                Some(source) if !source.has_data(Side::Train) => {
                    let expected = "tasks with data of their own (a YAML file that names them) as levels of source";
                    return Err(Error::argument("vary", expected, source.name()));
                }
                Some(source) => (source, &[]),
                None => (task, &args.train),
            };
            if !pools.contains_key(&condition.settings.source) {
                let pool = data(of, Side::Train, files, &template(of, condition))?;
                pools.insert(condition.settings.source.clone(), pool);
            }
        }
        let queries = data(task, Side::Test, &args.test, &settings.template)?;
        Ok(Self { asked, queries, pools })
    }

    /// Whether a plan needs the states of the model.
    pub fn needs_states(&self, asked: &Asked) -> bool {
        asked.settings.similarity != Similarity::Random && asked.settings.similarity_by == SimilarityBy::States
    }

    /// The plan of a condition. `vectors` are those of its pool and its queries, where it needs states.
    ///
    /// # Errors
    /// Too few examples, or a failure of the tokenizer.
    pub fn plan(
        &self,
        asked: &Asked,
        tokenizer: &Tokenizer,
        vectors: Option<(Vec<f32>, Vec<f32>)>,
    ) -> Result<Condition> {
        let settings = &asked.settings;
        let source = asked.source.as_ref().unwrap_or(&settings.task);
        let (template, examples) = (template(source, asked), &self.pools[&settings.source][..]);
        let count = settings.queries.unwrap_or(self.queries.len()).min(self.queries.len());
        let similarities = (settings.similarity != Similarity::Random)
            .then(|| similarity_to_queries(examples, &self.queries[..count], vectors));
        let inputs = PlanInputs {
            tokenizer,
            task: &settings.task,
            demonstrations: DemonstrationPool { task: source, template: &template, examples },
            queries: &self.queries,
            similarities: similarities.as_deref(),
        };
        let plan = Plan::draw(&inputs, settings)?;
        Ok(Condition { levels: asked.levels.clone(), settings: settings.clone(), plan })
    }

    /// The vectors of a condition's pool and of its queries.
    ///
    /// # Errors
    /// A failure of the tokenizer or of the device.
    pub fn vectors<B: Backend>(
        &self,
        asked: &Asked,
        backend: &mut B,
        model: &Model<B>,
        tokenizer: &Tokenizer,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let count = asked.settings.queries.unwrap_or(self.queries.len()).min(self.queries.len());
        let mut of = |examples: &[Example]| {
            let ids = examples.iter().map(|e| Ok(tokenizer.encode(&e.input, true)?.ids));
            mean_states(backend, model, &ids.collect::<Result<Vec<_>>>()?, asked.settings.rows)
        };
        Ok((of(&self.pools[&asked.settings.source])?, of(&self.queries[..count])?))
    }
}

impl Asked {
    fn new(args: &ProbeArgs, settings: &ProbeSettings, levels: Levels) -> Result<Self> {
        let text = |factor: Factor| levels.get(&factor).and_then(|level| level.as_str());
        let mut settings = settings.at(&levels)?;
        if let Some(level) = text(Factor::Template).filter(|level| *level != "default") {
            let yaml = match std::path::Path::new(level).is_file() {
                true => crate::formats::atomic::read_to_string(level)?,
                false => level.to_owned(),
            };
            let default = settings.task.template().clone().with_chat(settings.template.is_chat());
            settings.template = Template::parse(&yaml, &default)?;
        }
        let source = settings.source.as_deref().map(Task::named).transpose()?;
        let source = source.filter(|source| *source != settings.task);
        if source.is_none() {
            settings.source = None;
        }
        let model = text(Factor::Model).unwrap_or(&args.base.model).to_owned();
        Ok(Self { levels, settings, model, source })
    }
}

/// How a task's examples become text in a condition.
fn template(task: &Task, condition: &Asked) -> Template {
    let template = &condition.settings.template;
    match condition.source.as_ref() == Some(task) {
        true => task.template().clone().with_chat(template.is_chat()),
        false => template.clone(),
    }
}

fn data(task: &Task, side: Side, files: &[PathBuf], template: &Template) -> Result<Vec<Example>> {
    if files.is_empty() && !task.has_data(side) {
        let expected = "the task's data (or --plan REPORT, to repeat a run)";
        return Err(Error::argument(format!("--{}", side.name()), expected, "none"));
    }
    let Dataset { examples, skipped } = task.data(side, files, template)?;
    for (why, n) in skipped {
        log::warn!("{task}: {n} {} rows skipped: {why}", side.name());
    }
    Ok(examples)
}

/// The levels of every condition.
fn levels(args: &ProbeArgs, settings: &ProbeSettings) -> Result<Vec<Levels>> {
    if is_default_run(args, settings) {
        return Ok(default_study());
    }
    cross(&args.vary.iter().map(|text| Vary::parse(text)).collect::<Result<Vec<_>>>()?)
}

/// Whether this is the run that needs no argument: the embedded model on its own task, with nothing of the experiment said
/// but its seeds and measures.
pub fn is_default_run(args: &ProbeArgs, settings: &ProbeSettings) -> bool {
    let own = ProbeSettings {
        seeds: settings.seeds.clone(),
        measures: settings.measures.clone(),
        patch: settings.patch,
        ..ProbeSettings::new(settings.task.clone())
    };
    let embedded = args.base.model == crate::formats::embedded::NAME && settings.task.name() == "events";
    embedded && args.vary.is_empty() && *settings == own
}

/// The study of the default run: each factor varied alone, around the first condition.
fn default_study() -> Vec<Levels> {
    let factors = ["demos=10,0,1,2,4,16", "labels=gold,half,flipped,random", "source=events,objects"]
        .map(|text| Vary::parse(text).expect("study: levels of the default run"));
    let first: Levels = factors.iter().map(|vary| (vary.factor, vary.levels[0].clone())).collect();
    let others = factors.iter().flat_map(|vary| {
        let first = &first;
        vary.levels[1..].iter().map(move |level| {
            let mut levels = first.clone();
            levels.insert(vary.factor, level.clone());
            levels
        })
    });
    std::iter::once(first.clone()).chain(others).collect()
}

/// Adapted modules as names of the model's family: those of `all-linear`, or where nobody names any the family's own.
pub fn expand_modules(settings: &mut ProbeSettings, args: &ProbeArgs, levels: &Levels, files: &ModelFiles) {
    let family = files.config.family;
    if settings.target_modules == ["all-linear"] {
        settings.target_modules = resolve::all_linear(family);
    } else if args.lora.target_modules.is_none() && !levels.contains_key(&Factor::TargetModules) && args.plan.is_none()
    {
        settings.target_modules = resolve::module_names(&args.lora, family);
    }
}
