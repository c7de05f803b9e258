//! A task: a value that says what its data are, how they become text and how outputs are judged; read from a YAML file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::builtin;
use super::columns::{Choices, Columns};
use super::metrics::Metric;
use super::readers::Reader;
use super::templates::{Strings, Template};
use crate::formats::{atomic, yaml};
use crate::{Error, Result};

/// A task: data, labels or choices, template and metric. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task(Arc<Definition>);

/// The content of a task's file, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written")]
pub(super) struct Definition {
    pub name: String,
    pub template: Template,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    pub metric: Metric,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub train: Vec<PathBuf>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<PathBuf>,
    /// The examples themselves, in place of files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<Map<String, Value>>,
    #[serde(flatten)]
    pub source: Source,
}

/// How a row becomes an example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Source {
    /// By the columns that the definition names.
    Columns(Columns),
    /// By a reader of the original file of a data set.
    Reader {
        /// The reader of the data set's own format.
        reader: Reader,
    },
}

/// A task's file as it is written, before the check.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    template: Option<Strings>,
    labels: Option<Vec<String>>,
    metric: Option<Metric>,
    #[serde(default)]
    train: Files,
    #[serde(default)]
    test: Files,
    #[serde(default)]
    rows: Vec<Map<String, Value>>,
    input: Option<String>,
    output: Option<String>,
    choices: Option<Choices>,
    reader: Option<Reader>,
}

/// One path or a list of them.
#[derive(Deserialize)]
#[serde(untagged, expecting = "train and test: expected a file or a list of files")]
enum Files {
    One(PathBuf),
    More(Vec<PathBuf>),
}

impl Default for Files {
    fn default() -> Self {
        Self::More(Vec::new())
    }
}

impl From<Files> for Vec<PathBuf> {
    fn from(files: Files) -> Self {
        match files {
            Files::One(file) => vec![file],
            Files::More(files) => files,
        }
    }
}

/// Query and answer where a task's file has no template.
const GENERIC: (&str, &str) = ("Input: {input}\nOutput:", " {output}\n\n");

impl TryFrom<Written> for Definition {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self> {
        let Written { name, template, labels, metric, train, test, rows, input, output, choices, reader } = written;
        let (train, test): (Vec<PathBuf>, Vec<PathBuf>) = (train.into(), test.into());
        let template = template.unwrap_or_default().or(&Template::new(GENERIC.0, GENERIC.1)?)?;
        let closed = labels.is_some() || choices.is_some();
        let metric = metric.unwrap_or(if closed { Metric::Accuracy } else { Metric::Exact });
        let source = match reader {
            Some(reader) => {
                let given = [("input", input.is_some()), ("output", output.is_some()), ("choices", choices.is_some())];
                if let Some((key, _)) = given.iter().find(|(_, given)| *given) {
                    return Err(Error::argument(*key, "nothing beside reader", "a column"));
                }
                Source::Reader { reader }
            }
            None => Source::Columns(Columns {
                input: input.unwrap_or_else(|| "input".into()),
                output: output.unwrap_or_else(|| "output".into()),
                choices,
            }),
        };
        let definition = Self { name, template, labels, metric, train, test, rows, source };
        definition.check()?;
        Ok(definition)
    }
}

impl Definition {
    fn check(&self) -> Result<()> {
        let name = &self.name;
        // Names stand in the names of files.
        let fit = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(fit) {
            return Err(Error::argument("name", "letters, digits, - _ and .", format!("{name:?}")));
        }
        if let Some(labels) = &self.labels {
            if labels.len() < 2 {
                return Err(Error::argument("labels", "at least 2", labels.len()));
            }
            for (i, label) in labels.iter().enumerate() {
                if label.is_empty() || label.trim() != label {
                    return Err(Error::argument("labels", "texts without white space around", format!("{label:?}")));
                }
                if labels[..i].contains(label) {
                    return Err(Error::argument("labels", "each label once", format!("{label:?} twice")));
                }
            }
        }
        let files = self.train.len() + self.test.len();
        if !self.rows.is_empty() && files > 0 {
            return Err(Error::argument("rows", "nothing beside train and test", self.rows.len()));
        }
        match &self.source {
            Source::Columns(columns) => self.check_columns(columns)?,
            Source::Reader { reader } => self.check_reader(*reader)?,
        }
        match self.metric {
            Metric::Accuracy if self.labels.is_none() && self.choices().is_none() => {
                Err(Error::argument("metric", "another than accuracy without labels and choices", "accuracy"))
            }
            Metric::Blec if self.source != (Source::Reader { reader: Reader::Logic2Text }) => {
                Err(Error::argument("metric", "another than blec without the reader logic2text", "blec"))
            }
            _ => Ok(()),
        }
    }

    fn check_columns(&self, columns: &Columns) -> Result<()> {
        let Columns { input, output, choices } = columns;
        for (key, column) in [("input", input), ("output", output)] {
            if column.is_empty() {
                return Err(Error::argument(key, "a column", "\"\""));
            }
        }
        if input == output {
            return Err(Error::argument("output", "another column than input", format!("{output:?}")));
        }
        if choices.is_some() && self.labels.is_some() {
            return Err(Error::argument("choices", "nothing beside labels", "both"));
        }
        if let Some(Choices::Columns(names)) = choices
            && names.len() < 2
        {
            return Err(Error::argument("choices", "a column, or at least 2 columns", names.len()));
        }
        // A query that shows its answer asks nothing.
        if self.template.columns().any(|column| column == output) {
            return Err(Error::argument("template.query", "a query without the answer", format!("{{{output}}}")));
        }
        Ok(())
    }

    fn check_reader(&self, reader: Reader) -> Result<()> {
        if !self.rows.is_empty() {
            return Err(Error::argument("rows", "nothing beside reader", self.rows.len()));
        }
        let found = self.labels.as_ref().map(Vec::len);
        match reader {
            Reader::Sst2 | Reader::Events | Reader::Objects if found != Some(2) => {
                Err(Error::argument("labels", format!("2, of the reader {}", reader.name()), found.unwrap_or(0)))
            }
            Reader::Sst2 => Ok(()),
            Reader::Events | Reader::Objects => match [&self.train, &self.test].map(Vec::len) {
                [0, 0] => Ok(()),
                [train, test] => Err(Error::argument("train and test", "no files", train + test)),
            },
            _ if found.is_some() => {
                Err(Error::argument("labels", format!("none with the reader {}", reader.name()), found.unwrap_or(0)))
            }
            _ => Ok(()),
        }
    }

    fn choices(&self) -> Option<&Choices> {
        match &self.source {
            Source::Columns(columns) => columns.choices.as_ref(),
            Source::Reader { .. } => None,
        }
    }
}

impl Task {
    /// Reads a task's file. Its paths are relative to it.
    ///
    /// # Errors
    /// The file cannot be read, or is not the YAML of a task: the key is named.
    pub fn read(path: &Path) -> Result<Self> {
        let mut task = Self::parse(&path.display().to_string(), &atomic::read_to_string(path)?)?;
        let Definition { train, test, .. } = Arc::make_mut(&mut task.0);
        let directory = path.parent().unwrap_or(Path::new(""));
        train.iter_mut().chain(test).for_each(|file| *file = directory.join(&file));
        Ok(task)
    }

    /// A task from its YAML; `path` is only for errors.
    ///
    /// # Errors
    /// It is not the YAML of a task.
    fn parse(path: &str, text: &str) -> Result<Self> {
        // The two steps tell what YAML says of its place from what the check says of a key.
        let written: Written = yaml::parse(text).map_err(Error::file(path))?;
        let definition = Definition::try_from(written).map_err(|error| match error {
            Error::Argument { name, expected, found } => Error::field(path, name, expected, found),
            other => other,
        })?;
        Ok(Self(Arc::new(definition)))
    }

    /// A built-in task by its name, or the task of a YAML file by its path.
    ///
    /// # Errors
    /// See [`Task::read`] and [`Task::from_str`].
    pub fn named(name: &str) -> Result<Self> {
        if Self::is_file(name) { Self::read(Path::new(name)) } else { name.parse() }
    }

    /// Whether what names a task is the path of a file, by its extension or a separator in it.
    pub fn is_file(name: &str) -> bool {
        let extension = Path::new(name).extension();
        extension.is_some_and(|e| e == "yaml" || e == "yml") || name.contains(std::path::is_separator)
    }

    /// Every built-in task, in the order of messages that list them.
    pub fn all() -> &'static [Self] {
        static ALL: LazyLock<Vec<Task>> = LazyLock::new(|| {
            let parse = |text: &&str| Task::parse("built-in task", text).unwrap_or_else(|error| panic!("{error}"));
            builtin::FILES.iter().map(parse).collect()
        });
        &ALL
    }

    /// As the command line and reports spell it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether it is part of the program, as it stands there.
    pub fn is_builtin(&self) -> bool {
        self.name().parse().is_ok_and(|known: Self| known == *self)
    }

    /// The words of the labels, those that the data set calls 0, 1, ...; none for free text and for choices.
    pub fn labels(&self) -> Option<&[String]> {
        self.0.labels.as_deref()
    }

    /// Whether an answer is one of some: of the task's labels or of a row's own choices.
    pub fn is_closed(&self) -> bool {
        self.0.labels.is_some() || self.0.choices().is_some()
    }

    /// The template of the task unless another is given.
    pub fn template(&self) -> &Template {
        &self.0.template
    }

    /// The metric by which the task's outputs are judged.
    pub fn metric(&self) -> Metric {
        self.0.metric
    }

    pub(super) fn definition(&self) -> &Definition {
        &self.0
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Task {
    type Err = Error;

    /// A built-in task by its name.
    fn from_str(name: &str) -> Result<Self> {
        let known = || Self::all().iter().map(Self::name).collect::<Vec<_>>().join(", ");
        let found = Self::all().iter().find(|task| task.name() == name);
        found.cloned().ok_or_else(|| Error::unsupported("task", name, format!("{}, or a FILE.yaml", known())))
    }
}

impl Serialize for Task {
    /// The name of a built-in task; of others all there is to say, so that nobody needs the file again.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.is_builtin() { serializer.serialize_str(self.name()) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Task {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrDefinition;

        impl<'de> serde::de::Visitor<'de> for NameOrDefinition {
            type Value = Task;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the name of a built-in task, or a task")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Task, E> {
                name.parse().map_err(E::custom)
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Task, A::Error> {
                Definition::deserialize(MapAccessDeserializer::new(map)).map(|task| Task(Arc::new(task)))
            }
        }

        deserializer.deserialize_any(NameOrDefinition)
    }
}
