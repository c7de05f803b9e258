//! An array: what it is to do, noted before it is submitted, and the script that does it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::SlurmSettings;
use super::queue::output;
use crate::formats::{atomic, json};
use crate::hash::{digest, hex};
use crate::sweep::store::Store;
use crate::{Error, Result};

/// The folder of arrays in the directory of a sweep.
const FOLDER: &str = "slurm";

/// An array of tasks, each with some cells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// Its number in the sweep, from 1; the comment of the job.
    pub number: u64,
    /// The job, once Slurm has it.
    pub job: Option<u64>,
    /// When it was submitted, in seconds since 1970.
    pub at: u64,
    /// The names of the cells of every task.
    pub chunks: Vec<Vec<String>>,
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Submission {
    /// The folder of arrays, which is made where there is none.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn directory(store: &Store) -> Result<PathBuf> {
        let dir = store.dir().join(FOLDER);
        atomic::create_dir(&dir)?;
        dir.canonicalize().map_err(Error::io("read", &dir))
    }

    /// The name of all jobs of a sweep, by its directory.
    ///
    /// # Errors
    /// The directory is not there.
    pub fn name(store: &Store) -> Result<String> {
        let dir = Self::directory(store)?;
        Ok(format!("llamaprobe-{}", &hex(&digest([dir.to_string_lossy().as_bytes()]))[..12]))
    }

    /// All arrays of a sweep, by number.
    ///
    /// # Errors
    /// A file that is not of an array.
    pub fn read_all(store: &Store) -> Result<Vec<Self>> {
        let files = atomic::entries(Self::directory(store)?).into_iter();
        let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        let read = |path: PathBuf| serde_json::from_value(json::read(&path)?).map_err(Error::file(&path));
        let mut all: Vec<Self> = files.map(read).collect::<Result<_>>()?;
        all.sort_by_key(|submission| submission.number);
        Ok(all)
    }

    /// The array of a number.
    ///
    /// # Errors
    /// There is none.
    pub fn read(store: &Store, number: u64) -> Result<Self> {
        let path = Self::directory(store)?.join(format!("{number:04}.json"));
        serde_json::from_value(json::read(&path)?).map_err(Error::file(&path))
    }

    /// Writes it beside the others, before the array is submitted.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, store: &Store) -> Result<()> {
        atomic::write_json(Self::directory(store)?.join(format!("{:04}.json", self.number)), self)
    }

    /// Submits it; gives the job.
    ///
    /// # Errors
    /// `sbatch` cannot be run, or Slurm refuses the job.
    pub fn submit(&self, store: &Store, settings: &SlurmSettings, program: &[OsString]) -> Result<u64> {
        let path = Self::directory(store)?.join(format!("{:04}.sh", self.number));
        atomic::write(&path, self.script(store, settings, program)?.as_bytes())?;
        let mut command = Command::new("sbatch");
        command.arg("--parsable").arg(&path);
        let answer = output(command)?;
        // `JOB`, or `JOB;CLUSTER`.
        let job = answer.lines().next_back().and_then(|line| line.split(';').next()?.trim().parse().ok());
        job.ok_or_else(|| Error::argument("sbatch", "the number of a job", answer))
    }

    /// The script of a task. A task that died is not repeated by Slurm, which would wait for two minutes, but by the driver.
    fn script(&self, store: &Store, settings: &SlurmSettings, program: &[OsString]) -> Result<String> {
        let folder = Self::directory(store)?;
        let dir = store.dir().canonicalize().map_err(Error::io("read", store.dir()))?;
        let number = self.number;
        let mut options = vec![
            format!("--job-name={}", Self::name(store)?),
            format!("--comment={number}"),
            format!("--array=1-{}", self.chunks.len()),
            format!("--output=\"{}/{number:04}-%a.log\"", folder.display()),
            "--open-mode=append".to_owned(),
            "--no-requeue".to_owned(),
        ];
        let minutes = |seconds: u64| seconds.div_ceil(60);
        options.extend(settings.time.map(|time| format!("--time={}", minutes(time.as_secs()))));
        options.extend(settings.threads.map(|threads| format!("--cpus-per-task={threads}")));
        options.extend(settings.options.iter().cloned());
        let mut words: Vec<String> = program.iter().map(|word| quoted(&word.to_string_lossy())).collect();
        words.extend(["sweep".to_owned(), "worker".to_owned(), format!("--plan={}", settings.plan)]);
        words.push(format!("--array={number}"));
        words.push("--task=\"$SLURM_ARRAY_TASK_ID\"".to_owned());
        words.extend(settings.time.map(|time| format!("--seconds={}", time.as_secs())));
        words.extend(settings.threads.map(|threads| format!("--threads={threads}")));
        words.extend(["--".to_owned(), quoted(&dir.to_string_lossy())]);
        let options: String = options.iter().map(|option| format!("#SBATCH {option}\n")).collect();
        Ok(format!("#!/bin/sh\n{options}exec {}\n", words.join(" ")))
    }
}

/// A word of a shell's line.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn script_runs_the_task_and_says_what_it_needs() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path().join("it's")).expect("a store");
        let submission = Submission { number: 3, job: None, at: 0, chunks: vec![vec!["a".into()], vec!["b".into()]] };
        let settings = SlurmSettings {
            plan: "ab".to_owned(),
            jobs: 2,
            jobs_per_minute: 60,
            time: Some(Duration::from_secs(3601)),
            threads: Some(4),
            options: vec!["--mem=4G".to_owned()],
            poll: Duration::from_secs(1),
        };
        let script = submission.script(&store, &settings, &["llama probe".into()]).expect("a script");
        for line in [
            "#!/bin/sh",
            "#SBATCH --array=1-2",
            "#SBATCH --comment=3",
            "#SBATCH --time=61",
            "#SBATCH --cpus-per-task=4",
            "#SBATCH --mem=4G",
        ] {
            assert!(script.lines().any(|found| found == line), "{line}: {script}");
        }
        let last = script.lines().next_back().expect("lines");
        assert!(last.starts_with(
            "exec 'llama probe' sweep worker --plan=ab --array=3 --task=\"$SLURM_ARRAY_TASK_ID\" --seconds=3601 --threads=4 -- '"
        ));
        assert!(last.ends_with("/it'\\''s'"), "{last}");
        assert!(script.contains(&format!("--job-name={}", Submission::name(&store).expect("a name"))));
    }

    #[test]
    fn arrays_are_read_again_by_number() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path()).expect("a store");
        let of = |number| Submission { number, job: Some(17), at: 5, chunks: vec![vec!["a".into()]] };
        [2, 10_000, 1].into_iter().for_each(|number| of(number).save(&store).expect("saved"));
        let numbers: Vec<u64> = Submission::read_all(&store).expect("read").iter().map(|s| s.number).collect();
        assert_eq!(numbers, [1, 2, 10_000]);
        assert_eq!(Submission::read(&store, 2).expect("read"), of(2));
    }
}
