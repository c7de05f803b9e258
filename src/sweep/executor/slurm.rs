//! Job arrays of Slurm: submitted in chunks, followed, and submitted again where they died.
//!
//! The driver knows nothing that is not in the directory of the sweep or in Slurm's queue: what is submitted is noted before
//! (`slurm/0001.json`, with the array's number as the job's comment), what came of it is what cells are there. So a driver
//! that was killed is followed by the next one where it was; a task that nobody remembers finds its cells locked or done.

mod chunks;
mod queue;
mod submission;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::thread;
use std::time::Duration;

use self::queue::{Queue, Task};
pub use self::submission::Submission;
use crate::formats::lock::FileLock;
use crate::sweep::groups::groups;
use crate::sweep::plan::Cell;
use crate::sweep::store::{State, Store};
use crate::{Error, Result};

/// Tasks that may end one after another, for each that may run, while no cell gets its end: then it is the cells.
const DEATHS: usize = 5;
/// Times in a row that the queue may not answer: controllers are started again now and then.
const SILENCES: usize = 30;

/// What is asked of Slurm.
#[derive(Clone, Debug, PartialEq)]
pub struct SlurmSettings {
    /// The digest of the plan whose cells they are.
    pub plan: String,
    /// Most tasks in the queue at once, waiting or running.
    pub jobs: usize,
    /// Most tasks submitted in a minute.
    pub jobs_per_minute: usize,
    /// The time limit of a task; none leaves the partition's, and then a task ends when its cells do.
    pub time: Option<Duration>,
    /// Threads of a task, which are its CPUs; none leaves the partition's default.
    pub threads: Option<usize>,
    /// Further options of sbatch, each a line `#SBATCH OPTION`.
    pub options: Vec<String>,
    /// Between two looks at the queue.
    pub poll: Duration,
}

/// What a task has come to, for the user.
type Say<'a> = &'a mut dyn FnMut(String);

/// Runs the cells by Slurm until all have their end. `program` are the words that start this program; `say` hears what
/// happens, `progress` which cells have an end.
///
/// # Errors
/// Another driver follows the sweep, Slurm refuses a job or does not answer, or tasks end again and again without a
/// result.
pub fn run(
    store: &Store,
    cells: &[Cell],
    settings: &SlurmSettings,
    program: &[OsString],
    say: Say<'_>,
    progress: &mut dyn FnMut(&State) -> Result<()>,
) -> Result<()> {
    let dir = Submission::directory(store)?;
    let Some(_alone) = FileLock::try_acquire(dir.join("driver.lock"))? else {
        return Err(Error::argument("executor", "no other process that submits this sweep", "one"));
    };
    let mut driver = Driver::new(store, cells, settings, program)?;
    loop {
        let state = store.state();
        progress(&state)?;
        if cells.iter().all(|cell| state.is_settled(&cell.key)) {
            return Ok(());
        }
        driver.step(&state, say)?;
        thread::sleep(settings.poll);
    }
}

struct Driver<'a> {
    store: &'a Store,
    cells: &'a [Cell],
    settings: &'a SlurmSettings,
    program: &'a [OsString],
    queue: Queue,
    submissions: Vec<Submission>,
    /// Tasks that were seen in the queue, or were submitted by this driver.
    followed: HashSet<Task>,
    /// What cells that are done took, as far as it was looked up.
    seconds: HashMap<String, f64>,
    /// Cells with an end when last one was added, and tasks that have ended since.
    settled: usize,
    deaths: usize,
    silences: usize,
}

impl<'a> Driver<'a> {
    fn new(store: &'a Store, cells: &'a [Cell], settings: &'a SlurmSettings, program: &'a [OsString]) -> Result<Self> {
        let submissions = Submission::read_all(store)?;
        let queue = Queue::new(Submission::name(store)?);
        let (followed, seconds) = (HashSet::new(), HashMap::new());
        Ok(Self {
            store,
            cells,
            settings,
            program,
            queue,
            submissions,
            followed,
            seconds,
            settled: 0,
            deaths: 0,
            silences: 0,
        })
    }

    /// Looks at the queue once, and submits what nobody is at.
    fn step(&mut self, state: &State, say: Say<'_>) -> Result<()> {
        let queued = match self.queue.tasks() {
            Ok(queued) => queued,
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(error) => {
                self.silences += 1;
                say(format!("squeue: {error}"));
                return if self.silences < SILENCES { Ok(()) } else { Err(error) };
            }
        };
        self.silences = 0;
        let active: HashSet<Task> =
            queued.iter().filter(|(_, state)| !queue::has_ended(state)).map(|(task, _)| *task).collect();
        self.note_ends(state, &queued, &active, say)?;
        self.followed.extend(&active);
        let underway: HashSet<&str> = active.iter().flat_map(|task| self.chunk(*task)).map(String::as_str).collect();
        let left =
            self.cells.iter().filter(|cell| !state.is_settled(&cell.key) && !underway.contains(cell.key.as_str()));
        let left: Vec<&Cell> = left.collect();
        let free = self.settings.jobs.saturating_sub(active.len());
        let allowed = chunks::allowed(&self.submissions, self.settings.jobs_per_minute, submission::now());
        if !left.is_empty() && free.min(allowed) > 0 {
            let size = chunks::size(left.len(), free, self.settings.time, self.slowest(state)?);
            let in_groups = groups(left, self.settings.jobs);
            let chunks = chunks::chunks(&in_groups, size, free.min(allowed).min(chunks::LARGEST_ARRAY));
            self.submit(chunks, say)?;
        }
        Ok(())
    }

    /// The names of the cells of a task; none of one that no record has.
    fn chunk(&self, task: Task) -> &[String] {
        let of = self.submissions.iter().find(|submission| submission.number == task.array);
        of.and_then(|submission| submission.chunks.get(task.index.checked_sub(1)?)).map_or(&[], Vec::as_slice)
    }

    /// Says of tasks that have ended what they left, and gives up where they only end.
    fn note_ends(
        &mut self,
        state: &State,
        queued: &[(Task, String)],
        active: &HashSet<Task>,
        say: Say<'_>,
    ) -> Result<()> {
        let settled = self.cells.iter().filter(|cell| state.is_settled(&cell.key)).count();
        if settled > self.settled {
            (self.settled, self.deaths) = (settled, 0);
        }
        let mut ended: Vec<Task> = self.followed.difference(active).copied().collect();
        ended.sort_unstable();
        let mut last = String::new();
        for task in ended {
            self.followed.remove(&task);
            let left = self.chunk(task).iter().filter(|key| !state.is_settled(key)).count();
            if left > 0 {
                self.deaths += 1;
                let seen = queued.iter().find(|(other, _)| *other == task).map(|(_, state)| state.clone());
                last = seen.unwrap_or_else(|| self.ended_as(task));
                say(format!(
                    "task {} of array {} ended ({last}), {left} of its cells are left",
                    task.index, task.array
                ));
            }
        }
        match self.deaths >= DEATHS.saturating_mul(self.settings.jobs) {
            true => {
                let found = format!(
                    "{} that ended without one, the last {last}; see {}",
                    self.deaths,
                    self.store.dir().join("slurm").display()
                );
                Err(Error::argument("executor slurm", "tasks that give cells a result", found))
            }
            false => Ok(()),
        }
    }

    /// How a task ended that has left the queue, as the accounting says it.
    fn ended_as(&self, task: Task) -> String {
        let of = self.submissions.iter().find(|submission| submission.number == task.array);
        let job = of.and_then(|submission| submission.job);
        job.and_then(|job| queue::accounted(job, task.index)).unwrap_or_else(|| "no longer in the queue".to_owned())
    }

    /// The most seconds that a cell took; none before one is done.
    fn slowest(&mut self, state: &State) -> Result<Option<f64>> {
        for cell in self.cells.iter().filter(|cell| state.done.contains(&cell.key)) {
            if !self.seconds.contains_key(&cell.key) {
                self.seconds.insert(cell.key.clone(), self.store.record(&cell.key)?.seconds);
            }
        }
        Ok(self.seconds.values().copied().reduce(f64::max))
    }

    fn submit(&mut self, chunks: Vec<Vec<&Cell>>, say: Say<'_>) -> Result<()> {
        let number = self.submissions.last().map_or(1, |last| last.number + 1);
        let keys = |chunk: &Vec<&Cell>| chunk.iter().map(|cell| cell.key.clone()).collect();
        let chunks: Vec<Vec<String>> = chunks.iter().map(keys).collect();
        let cells: usize = chunks.iter().map(Vec::len).sum();
        let mut submission = Submission { number, job: None, at: submission::now(), chunks };
        submission.save(self.store)?;
        let job = submission.submit(self.store, self.settings, self.program)?;
        submission.job = Some(job);
        submission.save(self.store)?;
        let tasks = submission.chunks.len();
        say(format!("array {number} is job {job}: {cells} cells in {tasks} tasks"));
        self.followed.extend((1..=tasks).map(|index| Task { array: number, index }));
        self.submissions.push(submission);
        Ok(())
    }
}
