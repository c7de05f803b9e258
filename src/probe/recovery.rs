//! The states that patching puts into the run of the query alone, and how much of an arm's gain they recover.

use super::arm::Arm;
use super::arm_run::ArmRun;
use super::condition::Condition;
use super::patching::{PatchedLogProbs, Patching};
use super::plan::Plan;
use super::progress::Count;
use super::report::{PatchLayer, PatchVector};
use super::states::Reading;
use super::statistics::MeanSd;
use crate::Result;
use crate::backend::Backend;
use crate::measures::similarity::gaussian;
use crate::task::metrics::{Scores, score};

/// What is put in, at one layer and query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vector {
    /// The arm's own state of that query.
    State(Arm),
    /// The anchor's state, and the mean update of the arm over the other queries: the task vector of ICL.
    MeanUpdate(Arm),
    /// The anchor's state, and a Gaussian vector as long as the task vector.
    Random,
    /// As the task vector, with demonstrations of another task.
    OtherTask,
}

impl Vector {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::State(Arm::Lora) => "it",
            Self::MeanUpdate(Arm::Lora) => "it_vector",
            Self::State(_) => "icl",
            Self::MeanUpdate(_) => "task_vector",
            Self::Random => "random",
            Self::OtherTask => "other_task",
        }
    }
}

/// The arms of one seed whose states are put in.
struct SeedVectors<'a> {
    seed: u64,
    width: usize,
    anchor: &'a [Vec<f32>],
    icl: Updates<'a>,
    it: Updates<'a>,
    other: Option<Updates<'a>>,
}

/// An arm's states, and the sums over the queries of its updates.
struct Updates<'a> {
    states: &'a [Vec<f32>],
    /// By layer `[C]`.
    sums: Vec<Vec<f64>>,
}

impl<'a> Updates<'a> {
    fn new(anchor: &[Vec<f32>], states: &'a [Vec<f32>], width: usize) -> Self {
        let sum = |(anchor, states): (&Vec<f32>, &Vec<f32>)| {
            let mut sum = vec![0.0; width];
            for (a, x) in anchor.chunks_exact(width).zip(states.chunks_exact(width)) {
                sum.iter_mut().zip(a.iter().zip(x)).for_each(|(sum, (&a, &x))| *sum += f64::from(x) - f64::from(a));
            }
            sum
        };
        Self { states, sums: anchor.iter().zip(states).map(sum).collect() }
    }
}

impl SeedVectors<'_> {
    /// What replaces a layer's output at a query.
    fn state(&self, vector: Vector, layer: usize, query: usize) -> Vec<f32> {
        let of = |states: &[Vec<f32>]| states[layer][query * self.width..(query + 1) * self.width].to_vec();
        let anchor = of(self.anchor);
        let moved = |update: Vec<f64>| anchor.iter().zip(update).map(|(&a, u)| (f64::from(a) + u) as f32).collect();
        match vector {
            Vector::State(Arm::Lora) => of(self.it.states),
            Vector::State(_) => of(self.icl.states),
            Vector::MeanUpdate(Arm::Lora) => moved(self.mean(&self.it, layer, query)),
            Vector::MeanUpdate(_) => moved(self.mean(&self.icl, layer, query)),
            Vector::OtherTask => {
                let other = self.other.as_ref().expect("recovery: another task was found");
                moved(self.mean(other, layer, query))
            }
            Vector::Random => {
                let noise = gaussian(self.seed, layer, query, self.width);
                let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
                let scale = norm(&self.mean(&self.icl, layer, query)) / norm(&noise);
                moved(noise.iter().map(|x| x * scale).collect())
            }
        }
    }

    /// The mean update over all queries but one.
    fn mean(&self, arm: &Updates<'_>, layer: usize, query: usize) -> Vec<f64> {
        let at = query * self.width;
        let (anchor, state) = (&self.anchor[layer][at..at + self.width], &arm.states[layer][at..at + self.width]);
        let others = (self.anchor[layer].len() / self.width - 1) as f64;
        let own = anchor.iter().zip(state).map(|(&a, &x)| f64::from(x) - f64::from(a));
        arm.sums[layer].iter().zip(own).map(|(sum, own)| (sum - own) / others).collect()
    }
}

/// Patches every layer of a condition by every vector: of each seed the layers. `other` has the arms of the same condition
/// with demonstrations of another task.
pub(super) fn recover<B: Backend>(
    reading: Reading<'_, B>,
    backend: &mut B,
    Condition { plan, .. }: &Condition,
    arms: &[ArmRun],
    other: Option<&[ArmRun]>,
    count: &mut Count<'_>,
) -> Result<Vec<Vec<PatchLayer>>> {
    let (width, depth) = (reading.model.config.hidden_size, reading.model.config.num_hidden_layers);
    let vectors = vectors(plan, other.is_some());
    let seeds: Vec<SeedVectors> = plan
        .seeds
        .iter()
        .enumerate()
        .map(|(s, seed)| {
            let anchor = &of(arms, Arm::ZeroShot).seed(s).states[..depth];
            let updates = |arms, arm| Updates::new(anchor, &of(arms, arm).seed(s).states[..depth], width);
            let (icl, it) = (updates(arms, Arm::Icl), updates(arms, Arm::Lora));
            SeedVectors { seed: seed.seed, width, anchor, icl, it, other: other.map(|arms| updates(arms, Arm::Icl)) }
        })
        .collect();
    let state =
        |layer: usize, v: usize, query: usize| seeds[v / vectors.len()].state(vectors[v % vectors.len()], layer, query);
    let prompts = plan.prompts();
    let patching = Patching { reading, prompts: &prompts, vectors: seeds.len() * vectors.len(), state: &state };
    let found = patching.run(backend, count)?;
    Ok((0..seeds.len()).map(|s| layers(plan, arms, s, &vectors, &found)).collect())
}

/// The vectors that there are: means over other queries need some.
pub(super) fn vectors(plan: &Plan, other_task: bool) -> Vec<Vector> {
    let mut vectors = vec![Vector::State(Arm::Icl), Vector::State(Arm::Lora)];
    if plan.queries.len() > 1 {
        vectors.extend([Vector::MeanUpdate(Arm::Icl), Vector::MeanUpdate(Arm::Lora), Vector::Random]);
        vectors.extend(other_task.then_some(Vector::OtherTask));
    }
    vectors
}

fn of(arms: &[ArmRun], arm: Arm) -> &ArmRun {
    arms.iter().find(|run| run.arm == arm).expect("recovery: every probe has the three arms")
}

/// A seed's layers.
fn layers(plan: &Plan, arms: &[ArmRun], s: usize, vectors: &[Vector], found: &PatchedLogProbs) -> Vec<PatchLayer> {
    let gold = plan.gold();
    let judge = |log_probs: &[Vec<f64>], of: &ArmRun| score(log_probs, of.lengths(s), &gold, plan.is_closed());
    let alone = of(arms, Arm::ZeroShot);
    let [anchor, icl] = [alone, of(arms, Arm::Icl)].map(|arm| judge(&arm.seed(s).log_probs, arm));
    let vector = |found: &[Vec<Vec<f64>>], (v, vector): (usize, &Vector)| {
        let patched = judge(&found[s * vectors.len() + v], alone);
        let share = |get: &dyn Fn(&Scores) -> Option<f64>| {
            let (patched, anchor, icl) = (get(&patched)?, get(&anchor)?, get(&icl)?);
            (icl != anchor).then(|| (patched - anchor) / (icl - anchor))
        };
        PatchVector {
            vector: vector.name().to_owned(),
            accuracy: MeanSd::of(patched.accuracy),
            log_prob: MeanSd::of([patched.log_prob]),
            recovery_accuracy: MeanSd::of(share(&|scores| scores.accuracy)),
            recovery_log_prob: MeanSd::of(share(&|scores| Some(scores.log_prob))),
        }
    };
    let layer = |(layer, found): (usize, &Vec<Vec<Vec<f64>>>)| PatchLayer {
        layer,
        vectors: vectors.iter().enumerate().map(|v| vector(found, v)).collect(),
    };
    found.iter().enumerate().map(layer).collect()
}
