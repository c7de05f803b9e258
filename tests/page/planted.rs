//! Reports with planted numbers.

use serde_json::{Value, json};

/// What a probe found at each layer, and the scores.
#[derive(Clone)]
pub struct Planted {
    pub anchor_icl: f64,
    pub anchor_it: f64,
    pub icl_it: f64,
    pub update: f64,
    pub shuffled: f64,
    /// SD over the seeds of all similarities.
    pub sd: f64,
    /// Of the query alone, of ICL and of IT.
    pub accuracy: [f64; 3],
}

impl Default for Planted {
    /// Both arms moved, the same way, and answer alike.
    fn default() -> Self {
        let accuracy = [0.5, 0.95, 0.93];
        Self { anchor_icl: 0.4, anchor_it: 0.45, icl_it: 0.9, update: 0.8, shuffled: 0.3, sd: 0.02, accuracy }
    }
}

pub fn mean_sd(mean: f64, sd: f64) -> Value {
    json!({"mean": mean, "sd": sd})
}

impl Planted {
    fn layer(&self, name: &Value, sd: f64) -> Value {
        json!({
            "layer": name,
            "icl_it": mean_sd(self.icl_it, sd),
            "anchor_icl": mean_sd(self.anchor_icl, sd),
            "anchor_it": mean_sd(self.anchor_it, sd),
            "update": mean_sd(self.update, sd),
            "update_gaussian": mean_sd(0.001, sd),
            "update_shuffled": mean_sd(self.shuffled, sd),
        })
    }

    fn layers(&self, shift: f64) -> Value {
        let moved = Self { update: self.update + shift, ..self.clone() };
        [json!(0), json!(1), json!("final")].iter().map(|name| moved.layer(name, self.sd)).collect()
    }

    pub fn summary(&self) -> Value {
        let [anchor, icl, it] = self.accuracy.map(|accuracy| mean_sd(accuracy, 0.01));
        json!({
            "accuracy": {"anchor": anchor, "icl": icl, "it": it},
            "log_prob": {"anchor": mean_sd(-0.7, 0.0), "icl": mean_sd(-0.1, 0.01), "it": mean_sd(-0.2, 0.02)},
            "loss": [mean_sd(1.0, 0.1), mean_sd(0.5, 0.1), mean_sd(0.25, 0.05)],
            "final_loss": mean_sd(0.1, 0.01),
            "layers": self.layers(0.0),
        })
    }

    /// Two seeds whose update cosines are one SD to each side.
    pub fn seeds(&self) -> Value {
        let shift = self.sd / 2f64.sqrt();
        let seed = |(seed, shift): (u64, f64)| json!({"seed": seed, "layers": self.layers(shift)});
        [(0, -shift), (1, shift)].into_iter().map(seed).collect()
    }

    /// The part of a `report.json` that today's probe writes.
    pub fn report(&self) -> Value {
        json!({
            "version": "0.1.0", "model": "org/model", "device": "cpu", "dtype": "f32",
            "settings": {"task": "sst2", "demonstrations": 10, "seeds": [0, 1], "r": 8, "epochs": 10.0,
                "target_modules": ["q_proj", "v_proj"], "learning_rate": 0.001, "soft": {"arms": []}},
            "summary": self.summary(),
            "seeds": self.seeds(),
            "plan": {"labels": ["no", "yes"], "queries": [{"index": 0}, {"index": 1}]},
        })
    }
}

/// Recoveries of ICL's state and of a random vector, by block.
pub fn patching(blocks: &[[f64; 2]]) -> Value {
    let vector = |name: &str, recovery: f64| {
        json!({"vector": name, "accuracy": mean_sd(0.5 + 0.45 * recovery, 0.01), "log_prob": mean_sd(-0.5, 0.1),
            "recovery_accuracy": mean_sd(recovery, 0.02), "recovery_log_prob": mean_sd(recovery, 0.02)})
    };
    let block = |(i, [icl, random]): (usize, &[f64; 2])| json!({"layer": i, "vectors": [vector("icl", *icl), vector("task_vector", icl * 0.9), vector("random", *random)]});
    blocks.iter().enumerate().map(block).collect()
}

/// A report with everything that a page can show.
pub fn full() -> Value {
    let planted = Planted::default();
    let mut report = planted.report();
    let pair = |arms: [&str; 2], value: f64| {
        json!({"arms": arms, "values": {"cka": mean_sd(value, 0.01), "id_a": mean_sd(6.0, 0.5), "id_b": mean_sd(3.0, 0.5)},
            "shuffled": {"cka": mean_sd(0.1, 0.01)}, "gaussian": {"cka": mean_sd(0.2, 0.01), "id_b": mean_sd(40.0, 1.0)}})
    };
    for layer in report["summary"]["layers"].as_array_mut().expect("layers") {
        layer["measures"] = json!([pair(["anchor", "icl"], 0.4), pair(["icl", "it"], 0.8)]);
        let probe = json!({"probe_accuracy": mean_sd(0.9, 0.02), "probe_shuffled_labels": mean_sd(0.5, 0.05)});
        layer["readouts"] = json!([{"arm": "icl", "values": probe}, {"arm": "it", "values": probe}]);
        layer["attention"] = json!({"sim_aou": mean_sd(0.5, 0.01), "sim_aou_gaussian": mean_sd(0.0, 0.01)});
    }
    report["summary"]["outputs"] = json!({
        "pairs": [{"arms": ["icl", "it"], "values": {"agreement": mean_sd(0.97, 0.01)}, "shuffled": {"agreement": mean_sd(0.5, 0.0)}}],
        "arms": [{"arm": "icl", "values": {"entropy": mean_sd(0.1, 0.01)}}],
        "values": {"rec2ftp": mean_sd(95.0, 2.0), "rec2ftp_shuffled": mean_sd(60.0, 2.0)},
    });
    report["summary"]["patching"] = patching(&[[0.1, 0.02], [0.93, 0.01], [1.0, 0.03]]);
    let points = |x: f64| (0..5).map(|i| json!([x + f64::from(i), 0.5 * f64::from(i)])).collect::<Vec<_>>();
    report["pca"] = json!({"seed": 0, "layer": 1, "variance": [0.6, 0.2],
        "arms": [{"arm": "anchor", "points": points(-4.0)}, {"arm": "icl", "points": points(3.0)}]});
    let answer = |arm: &str| json!({"arm": arm, "predicted": "yes", "log_probs": [-2.4, -0.1]});
    report["examples"] = json!([{"query": 0, "tokens": ["Review:", "Ġfine", "▁&", " dandy", "Ċ", "Sentiment:"], "gold": "yes",
        "answers": [answer("anchor"), answer("icl"), answer("it")]}]);
    report["conditions"] = conditions(&[("10", 0.8, 0.95), ("0", 0.1, 0.5), ("2", 0.5, 0.8)]);
    report["conditions"][0]["lora_overlap"] =
        json!([{"with": null, "layers": [mean_sd(0.3, 0.02), mean_sd(0.4, 0.02)], "expected": 0.1}]);
    report["command"] = json!("llamaprobe probe --vary demos=10,0,2 --out run");
    report
}

/// Conditions of one factor: level, update cosine and ICL's accuracy.
pub fn conditions(levels: &[(&str, f64, f64)]) -> Value {
    let condition = |(level, update, accuracy): &(&str, f64, f64)| {
        let planted = Planted { update: *update, accuracy: [0.5, *accuracy, 0.9], ..Planted::default() };
        json!({"levels": {"demos": level}, "summary": planted.summary(), "seeds": planted.seeds(), "plan": {}})
    };
    levels.iter().map(condition).collect()
}

/// A comparison's report: arms with their scores and half the width of their intervals, on one target.
pub fn comparison() -> Value {
    let row = |(arm, length, score, sd): &(&str, Option<u64>, f64, Option<f64>)| {
        let bin = |i: u64, score: f64| json!({"low": 0.1 * i as f64, "high": 0.1 * i as f64 + 0.1, "queries": 10, "score": {"mean": score, "sd": sd}});
        let source = length.map(|_| "mtop");
        json!({"arm": arm, "source": source, "target": "mtop", "length": length, "score": {"mean": score, "sd": sd},
            "interval": {"low": score - 3.0, "high": score + 3.0}, "seeds": [{"seed": 0}, {"seed": 1}],
            "bins": [bin(0, score - 5.0), bin(1, *score), bin(2, score + 5.0)], "similarity": null, "shortened": 0,
            "outputs": [format!("{arm} writes\nthis")]})
    };
    let rows = [
        ("zero-shot", None, 0.0, None),
        ("icl-retrieved", None, 20.0, None),
        ("pt", Some(8), 30.0, Some(4.0)),
        ("pt", Some(32), 34.0, Some(6.0)),
        ("ipt", Some(8), 50.0, Some(1.0)),
        ("ipt", Some(32), 55.0, Some(2.0)),
    ];
    json!({
        "plan": {"version": "0.1.0", "model": "org/model", "settings": {"seeds": [0, 1], "demonstrations": 1}, "data": []},
        "metrics": [{"task": "mtop", "metric": "parse match", "signature": "parse match",
            "examples": [{"input": "ring <him>", "gold": "[IN:CALL ]"}]}],
        "rows": rows.iter().map(row).collect::<Vec<_>>(),
    })
}

/// The log and the results of a grid of nine runs, whose held-out loss rises again in the end but for the last run's.
pub fn training() -> Value {
    let mut log = Vec::new();
    for step in 1..=20_u64 {
        for run in 0..9_u64 {
            let common = json!({
                "run": run, "current_steps": step, "total_steps": 20, "epoch": step as f64 / 10.0, "percentage": step as f64 * 5.0,
                "elapsed_time": "0:00:01", "remaining_time": "0:00:01",
            });
            let line = |own: Value| {
                let mut line = common.as_object().expect("an object").clone();
                line.extend(own.as_object().expect("an object").clone());
                Value::Object(line)
            };
            let x = step as f64 / 20.0;
            log.push(line(json!({
                "loss": 3.0 - 2.0 * x + 0.1 * run as f64, "lr": 1e-3 * (1.0 - x), "grad_norm": 1.0 + x, "throughput": 1.0,
                "total_tokens": step * 100, "tokens_per_sec": 1.0,
            })));
            if step % 5 == 0 {
                let rise = if run == 8 { 0.0 } else { 2.0 * (x - 0.5).max(0.0) };
                let loss = 2.5 - x + rise + 0.1 * run as f64;
                log.push(line(
                    json!({"eval_loss": loss, "eval_accuracy": 0.2 + 0.5 * x, "eval_chrf": 20.0 + 30.0 * x}),
                ));
            }
        }
    }
    let run = |i: usize| json!({"run": format!("run-00{i}"), "r": 8, "learning_rate": 1e-3, "steps": 20, "eval_chrf": 50.0 - i as f64});
    let results = json!({"criterion": "eval_chrf", "best": "run-000", "runs": (0..9).map(run).collect::<Vec<_>>()});
    json!({"log": log, "results": results, "command": "train-lora"})
}
